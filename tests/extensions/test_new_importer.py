"""A new importer is one new file."""

from __future__ import annotations

import json

from own import merit, write_extension

MINE = '''"""My trainer: {"mine": [file, …]}."""

from merit.data.draft import Dataset
from merit.data.importer import Importer


def _read(foreign, draft):
    for name in foreign.take("mine"):
        foreign.add(draft, Dataset(name, f"{name}.jsonl"), "mine")


IMPORTER = Importer(label="Mine", recognises=lambda values: "mine" in values, read=_read)
'''


def test_init_reads_it(tmp_path):
    write_extension(tmp_path, "importers", "mine", MINE)
    rows = [{"question": f"{n}?", "answer": f"{n}"} for n in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text("mine: [a]\nother: 3\n")
    done = merit(tmp_path, "init", tmp_path / "mine.yaml")
    assert done.returncode == 0, done.stderr
    assert "not carried: without a counterpart here: other" in done.stdout
    assert "  a: {path: a.jsonl}  # format: qa\n" in (tmp_path / "merit.yaml").read_text()
    assert "mine" in merit(tmp_path, "init", "--help").stdout
