"""Small jobs for tests of executors: a second of Python instead of a training."""

from __future__ import annotations

import sys
from pathlib import Path

from merit.jobs.job import Job

HEAD = "import json, os, signal, sys, time\nfrom pathlib import Path\nhere = Path(sys.argv[1])\n"
DONE = "(here / 'DONE').touch()\n"
# A job with checkpoints: counts up to `steps`, a tenth of a second each, and goes on where it was killed.
COUNTING = """
from merit.jobs.process import die_with_parent
die_with_parent()
steps, count = int(sys.argv[2]), here / 'count'
(here / 'starts').open('a').write('start\\n')
begun = int(count.read_text()) if count.exists() and count.read_text() else 0
if len(sys.argv) > 3 and begun:
    steps = begun + int(sys.argv[3])
for step in range(begun, steps):
    time.sleep(0.1)
    (here / 'steps').open('a').write(f'{step}\\n')
    part = here / 'count.part'
    part.write_text(str(step + 1))
    part.replace(count)
    (here / 'progress.json').write_text(json.dumps({'done': step + 1, 'total': steps, 'note': ''}))
"""


def job(
    folder: Path,
    name: str,
    program: str,
    *arguments: str,
    weight: float = 1.0,
    env: dict[str, str] | None = None,
) -> Job:
    """A job that runs `program`, which knows its folder as `here`."""
    here = folder / name
    return Job(
        name=name,
        command=(sys.executable, "-c", HEAD + program, str(here), *arguments),
        done=here / "DONE",
        progress=here / "progress.json",
        output=here / "output.txt",
        weight=weight,
        env=env or {},
        record=here / "job.json",
    )


def counting(folder: Path, name: str, steps: int, *, weight: float = 1.0, again: int | None = None) -> Job:
    """A job of `steps` tenths of a second that resumes; with `again`, for so many steps only."""
    more = [] if again is None else [str(again)]
    return job(folder, name, COUNTING + DONE, str(steps), *more, weight=weight)


def steps_of(item: Job) -> list[int]:
    """The steps that a counting job did, over all its starts."""
    return [int(line) for line in (item.done.parent / "steps").read_text().split()]


def starts_of(item: Job) -> int:
    """How often a counting job was started."""
    return len((item.done.parent / "starts").read_text().split())
