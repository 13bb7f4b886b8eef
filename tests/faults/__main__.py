"""`make faults`: inflicts every fault, prints what was survived, and fails if anything was lost."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from faults.catalogue import catalogue, in_turns, one_of_each
from faults.fault import KINDS, Fault, Skipped
from faults.process import import_everything
from faults.world import FINISHED, STAGES, STATES, World, environment

Outcome = tuple[int, list[str] | None, str]  # number of the fault, what was lost (None: skipped), why it was skipped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m faults")
    parser.add_argument("--only", default="", help="faults whose words match this regular expression")
    parser.add_argument("--quick", action="store_true", help="one fault of each kind, all at the merge")
    parser.add_argument("--each", type=int, default=10**6, metavar="N", help="at most N faults of a stage and kind")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop then, and say what was tried")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", action="store_true", help="keep the folders of what is lost")
    options = parser.parse_args()
    started = time.monotonic()
    environment()
    import_everything()
    root = Path(tempfile.mkdtemp(prefix="merit-faults-"))
    try:
        labels = ("merge", FINISHED) if options.quick else tuple(STATES)
        world = World.make(root / "world", labels, optional=not options.quick)
        faults = [fault for fault in catalogue(world) if re.search(options.only, str(fault))]
        faults = one_of_each(faults) if options.quick else in_turns(faults, options.each)
        deadline = started + options.minutes * 60
        outcomes = Campaign(world, faults, root, options.keep).inflict_all(options.workers, deadline)
    finally:
        if not options.keep:
            shutil.rmtree(root, ignore_errors=True)
    return report(faults, outcomes, time.monotonic() - started)


@dataclass(frozen=True)
class Campaign:
    """What the workers share."""

    world: World
    faults: Sequence[Fault]
    root: Path
    keep: bool

    def inflict(self, number: int) -> Outcome:
        """One fault, in a folder of its own."""
        folder = self.root / f"{number:04d}"
        folder.mkdir()
        try:
            lost = self.faults[number].inflict(self.world, folder)
        except Skipped as error:
            return number, None, str(error)
        except Exception:  # the campaign's own mistake is a fault that was not survived
            lost = [traceback.format_exc()]
        if not (self.keep and lost):
            shutil.rmtree(folder, ignore_errors=True)
        return number, lost, ""

    def inflict_all(self, workers: int, deadline: float) -> list[Outcome]:
        """All faults, side by side, until the deadline; says at once what is lost."""
        outcomes: list[Outcome] = []
        with multiprocessing.get_context("fork").Pool(workers, _here.append, (self,)) as pool:
            coming = pool.imap_unordered(_inflict, range(len(self.faults)))
            while len(outcomes) < len(self.faults):
                try:
                    outcome = coming.next(max(0.0, deadline - time.monotonic()))
                except multiprocessing.TimeoutError:
                    break
                number, lost, _ = outcome
                if lost:
                    say(f"LOST  {number:04d} {self.faults[number]}")
                    for line in lost:
                        say(f"      {line}")
                outcomes.append(outcome)
                if len(outcomes) % 10 == 0:
                    sys.stderr.write(f"{len(outcomes)} of {len(self.faults)}\n")
        return outcomes


_here: list[Campaign] = []  # in a worker: its campaign


def _inflict(number: int) -> Outcome:
    return _here[0].inflict(number)


def report(faults: Sequence[Fault], outcomes: Sequence[Outcome], seconds: float) -> int:
    """Prints a table of survived/tried and one JSON object; the exit code."""
    tried: Counter[tuple[str, str]] = Counter()
    survived: Counter[tuple[str, str]] = Counter()
    skipped: Counter[str] = Counter()
    for number, lost, why in outcomes:
        cell = faults[number].stage, faults[number].kind
        if lost is None:
            skipped[why] += 1
            continue
        tried[cell] += 1
        survived[cell] += not lost
    say(f"\n{'survived / tried':17}" + "".join(f"{kind:>15}" for kind in KINDS))
    for stage in (stage for stage in STAGES if any(tried[stage, kind] for kind in KINDS)):
        cells = [f"{survived[stage, kind]} / {tried[stage, kind]}" for kind in KINDS]
        say(f"{stage:17}" + "".join(f"{cell:>15}" for cell in cells))
    for why, count in skipped.items():
        say(f"skipped {count}: {why}")
    if len(outcomes) < len(faults):
        say(f"time is up: {len(faults) - len(outcomes)} of {len(faults)} faults were not tried")
    say(f"{survived.total()} of {tried.total()} faults survived, in {seconds:.0f} s")
    figures: dict[str, float] = {}
    for kind in KINDS:
        key = re.sub(r"\W+", "_", kind).lower()
        figures[f"{key}_tried"] = sum(tried[stage, kind] for stage in STAGES)
        figures[f"{key}_survived"] = sum(survived[stage, kind] for stage in STAGES)
    total = {"faults_tried": tried.total(), "faults_survived": survived.total(), "faults_skipped": skipped.total()}
    say(json.dumps(total | figures | {"seconds": round(seconds)}))
    return int(survived.total() != tried.total() or not tried)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
