"""Four small datasets, each in another file type and another record format."""

from __future__ import annotations

import json
from pathlib import Path

WORDS = (
    *("red", "green", "blue", "cat", "dog", "bird", "one", "two", "three", "four"),
    *("five", "run", "jump", "swim", "tree", "rock", "moon", "sun", "north", "south"),
)


def write_four_files(folder: Path, rows: int = 40) -> None:
    """chat.jsonl (messages), copy.json (Alpaca), shout.parquet (prompt/completion), last.csv (question/answer)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def words(index: int, shift: int) -> list[str]:
        return [WORDS[(index * step + shift) % len(WORDS)] for step in (1, 3, 7)]

    with (folder / "chat.jsonl").open("w") as handle:
        for index in range(rows):
            one, two, three = words(index, 0)
            turns = [
                {"role": "user", "content": f"say {one}"},
                {"role": "assistant", "content": one},
                {"role": "user", "content": f"now {two} {three}"},
                {"role": "assistant", "content": f"{two} {three}"},
            ]
            handle.write(json.dumps({"messages": turns}) + "\n")
    alpaca = [
        {"instruction": "copy", "input": " ".join(words(i, 1)), "output": " ".join(words(i, 1))} for i in range(rows)
    ]
    (folder / "copy.json").write_text(json.dumps(alpaca))
    table = {
        "prompt": [f"shout {' '.join(words(i, 2))}" for i in range(rows)],
        "completion": [" ".join(words(i, 2)).upper() for i in range(rows)],
    }
    pq.write_table(pa.table(table), folder / "shout.parquet")
    lines = ["question,answer", *(f"last of {' '.join(words(i, 3))}?,{words(i, 3)[-1]}" for i in range(rows))]
    (folder / "last.csv").write_text("\n".join(lines) + "\n")
