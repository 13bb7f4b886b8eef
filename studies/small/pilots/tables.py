"""The pilots' tables: losses of every cell, and paired differences with Student's t intervals over seeds.

python studies/small/pilots/tables.py OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from merit.study.compare import Bootstrap, Estimate, paired
from merit.study.measure import FACES, Faces

_BOOTSTRAP = Bootstrap(shared=False, draws=1000)  # every seed draws its own examples
_HEAD = "in-mixture | unseen | retention | average |"
Entries = dict[str, Faces]  # seed → scores


def tables(folder: Path) -> str:
    """Markdown of the cells that `folder` holds, whichever seeds it has of each."""
    cells = sorted({path.stem.split("-", 1)[1] for path in folder.glob("*.json")}, key=_order)
    files = {cell: sorted(folder.glob(f"*-{cell}.json")) for cell in cells}
    raw = {cell: {path.name.split("-")[0]: json.loads(path.read_text()) for path in files[cell]} for cell in cells}
    lines: list[str] = []
    for point, head in (("plain", "At scale 1"), ("chosen", "At the scale that validation chose")):
        found: dict[tuple[str, str], Entries] = {}
        for cell, seeds in raw.items():
            for merge in next(iter(seeds.values()))["merges"] if seeds else ():
                items = {seed: item["merges"][merge][point] for seed, item in seeds.items()}
                found[cell, merge] = {seed: Faces.model_validate(item) for seed, item in items.items()}
        lines += [f"## {head}", "", f"| cell | merge | seeds | {_HEAD} steps | scales |", "| --- " * 9 + "|"]
        for (cell, merge), entries in found.items():
            values = " | ".join(f"{_estimate(entries, None, face).value:.3f}" for face in (*FACES, None))
            steps = "; ".join(" ".join(map(str, item["steps"])) for item in [*raw[cell].values()][:1])
            scales = " ".join(f"{item['merges'][merge]['scale']:g}" for item in raw[cell].values())
            lines.append(f"| {cell} | {merge} | {len(entries)} | {values} | {steps} | {scales} |")
        for control in ("merit", "joint"):
            lines += ["", f"Minus {control}:", "", f"| cell | merge | seeds | {_HEAD}", "| --- " * 7 + "|"]
            lines += [*_differences(found, control), ""]
    _check_tokens(raw)
    return "\n".join(lines)


def _order(cell: str) -> tuple[bool, bool, str]:
    return cell != "joint", cell != "merit", cell


def _differences(found: dict[tuple[str, str], Entries], control: str) -> list[str]:
    lines = []
    for (cell, merge), entries in found.items():
        other = found.get((control, merge if control == "merit" else "tokens"), {})
        same = [seed for seed in entries if seed in other]
        if same and cell not in (control, "joint"):
            a, b = ({seed: items[seed] for seed in same} for items in (entries, other))
            values = " | ".join(_text(_estimate(a, b, face)) for face in (*FACES, None))
            lines.append(f"| {cell} | {merge} | {len(same)} | {values} |")
    return lines


def _estimate(a: Entries, b: Entries | None, face: Any) -> Estimate:
    """a − b on one face; None: on the mean of all three."""

    def scores(items: Entries) -> list[Any]:
        return [[score for name in ([face] if face else FACES) for score in item.face(name)] for item in items.values()]

    sizes = [len(next(iter(a.values())).face(name)) for name in ([face] if face else FACES)]
    weights = [1 / size for size in sizes for _ in range(size)]
    return paired(scores(a), scores(b) if b is not None else None, _BOOTSTRAP, weights)


def _text(found: Estimate) -> str:
    mark = "**" if found.low > 0 or found.high < 0 else ""
    return f"{mark}{found.value:+.3f}{mark} [{found.low:+.3f}, {found.high:+.3f}]"


def _check_tokens(raw: dict[str, dict[str, Any]]) -> None:
    """All cells of a seed trained on the same number of supervised tokens, by their logs."""
    for cell, seeds in raw.items():
        for seed, item in seeds.items():
            base = raw.get("joint", {}).get(seed)
            if base is not None and sum(base["tokens"]) != sum(item["tokens"]):
                raise SystemExit(f"{cell}, seed {seed}: {sum(item['tokens'])} tokens, joint {sum(base['tokens'])}")


if __name__ == "__main__":
    sys.stdout.write(tables(Path(sys.argv[1]) / "pilots"))
