"""The hostile input campaign: `python tests/hostile/campaign.py [--quick] [--only WORD] [--seed N]`.

Prints a table, then one line of JSON. The exit code is 1 when anything escaped or ended in a traceback.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from surface import Surface, Tally, attack, smallest
from verdict import KINDS, Room, limited_memory, open_room

QUICK = 12  # a quick campaign tries one case of so many


def surfaces() -> list[Surface]:
    """All of them; imported here, because some bring torch, and as a script we must say where the tests' own lie."""
    tests = Path(__file__).parent.parent
    sys.path += [str(folder) for folder in (tests, tests / "report")]
    import surfaces_data
    import surfaces_files
    import surfaces_resume
    import surfaces_run
    import surfaces_weights

    _import_first()
    modules = (surfaces_files, surfaces_data, surfaces_weights, surfaces_run, surfaces_resume)
    return [surface for module in modules for surface in module.SURFACES]


def _import_first() -> None:
    """What a case imports as the first one makes files of its own: compiled modules, torch's cache folder."""
    from merit.base import extensions
    from merit.models.architecture import architecture_of

    sys.dont_write_bytecode = True
    for kind in ("splitters", "rules", "checks", "formats", "engines"):
        for name in extensions.names(kind):
            extensions.load(kind, name)
    known = architecture_of({"model_type": "mistral", "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 8})
    if known is not None:
        known.loading({})


def run(chosen: list[Surface], room: Room, *, quick: bool, number: int) -> list[Tally]:
    """Attacks each surface; memory is limited meanwhile."""
    found = []
    with limited_memory():
        for surface in chosen:
            started = time.monotonic()
            tally = attack(surface, room, max(8, surface.count // QUICK) if quick else surface.count, number)
            found.append(tally)
            print(_row(tally, time.monotonic() - started), flush=True)
            for why, case in tally.found.items():
                print(f"    {why}\n      {str(case)[:300]!r}", flush=True)
    return found


def run_commands(room: Room, *, quick: bool) -> Tally:
    """A few whole commands, in processes of their own."""
    from end_to_end import CASES, attack_commands

    started = time.monotonic()
    tally = attack_commands(room, list(CASES)[:: 5 if quick else 1])
    print(_row(tally, time.monotonic() - started), flush=True)
    for why in tally.found:
        print(f"    {why}", flush=True)
    return tally


def _row(tally: Tally, seconds: float) -> str:
    counts = "".join(f"{tally.counts[kind]:>11,}" for kind in KINDS)
    return (
        f"{tally.name:<26}{tally.cases:>8,}{counts}{tally.peak_bytes / 2**20:>9,.0f}{tally.slowest_seconds:>9.2f}"
        f"{seconds:>8.1f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"one case of {QUICK}")
    parser.add_argument("--only", default="", help="surfaces whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shrink", action="store_true", help="look for the smallest case of each finding")
    options = parser.parse_args()
    chosen = [surface for surface in surfaces() if options.only in surface.name]
    started = time.monotonic()
    head = "".join(f"{kind:>11}" for kind in KINDS)
    print(f"{'surface':<26}{'cases':>8}{head}{'MiB':>9}{'slowest':>9}{'s':>8}")
    with open_room() as room:
        found = run(chosen, room, quick=options.quick, number=options.seed)
        if options.only in "whole commands":
            found.append(run_commands(room, quick=options.quick))
        if options.shrink:
            for surface, tally in zip(chosen, found, strict=False):
                for why in tally.found:
                    print(f"{surface.name}: {why}\n    {smallest(surface, room, why)!r}")
    from surfaces_resume import remove_made

    remove_made()
    total = {kind: sum(tally.counts[kind] for tally in found) for kind in KINDS}
    result = {
        "cases": sum(tally.cases for tally in found),
        "refused": total["refused"],
        "accepted": total["accepted"],
        "escaped": total["escaped"],
        "tracebacks": total["traceback"],
        "peak_mb": round(max(tally.peak_bytes for tally in found) / 2**20, 1),
        "slowest_s": round(max(tally.slowest_seconds for tally in found), 2),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(result))
    return 1 if total["escaped"] or total["traceback"] else 0


if __name__ == "__main__":
    sys.exit(main())
