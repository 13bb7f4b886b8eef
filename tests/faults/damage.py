"""Files of a run directory that are cut short, or have one bit flipped."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from faults.fault import Fault, rerun
from faults.world import FINISHED, STATES, World

# A branch is read again only when it is merged again: reading all branches of a finished run at every call would cost
# minutes for large models. So their damage in a finished run changes no result, and stays until then.
# Nor are pilots, and rounds of the preparation before the last: what came of them has been made.
_KEPT = re.compile(r"(gate/|prepare/)?branches/\d\d/checkpoint/")


def faults(world: World) -> Iterator[Fault]:
    """Every kind of file, both damages: where it first appears, which is before anything has read it, and in the
    finished run."""
    writer: dict[str, str] = {}  # kind of file → stage
    for label in world.labels:
        state, stage, finished = world.state(label), STATES[label], label == FINISHED
        new: dict[str, str] = {}
        for file in sorted(path for path in state.rglob("*") if path.is_file() and path.stat().st_size):
            name = file.relative_to(state).as_posix()
            if finished or _kind(name) not in writer:
                new.setdefault(_kind(name), name)
        writer = dict.fromkeys(new, stage) | writer
        for kind, name in new.items():
            for damage in ("truncated", "bit flip"):
                inflict = partial(_damaged, label=label, name=name, damage=damage)
                yield Fault(writer[kind], damage, f"{name}, {label}", inflict)


def _damaged(world: World, folder: Path, *, label: str, name: str, damage: str) -> list[str]:
    run = world.place(folder, label)
    file = run / name
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        del content[len(content) // 2 :]
    else:
        bit = random.Random(name).randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    kept = [name] if label == FINISHED and _KEPT.match(name) else []
    if "/trajectory/" in name:  # snapshots are for a figure alone, which does without them
        kept.append("diagnostics/displacement.json")
    return rerun(world, folder, run, times=2, but=kept)


def _kind(name: str) -> str:
    """The name without what tells one dataset, branch, model or step from another."""
    name = re.sub(r"\b(chat|copy|last|shout)\b", "NAME", name)
    name = re.sub(r"evaluation/(?!table|drift)[^/]+\.json", "evaluation/LABEL.json", name)
    name = re.sub(r"^\.?merged(@0\.5)?(?=[./])", "merged", name)
    return re.sub(r"\d+", "N", name)
