"""A branch job's own folder: what it tidies up, and what it leaves to others."""

from __future__ import annotations

from pathlib import Path

import pytest

from merit.base.errors import InputError
from merit.run.layout import RunDir
from merit.train.job import run_branch_job


def test_a_job_that_begins_leaves_alone_what_its_driver_is_writing(tmp_path: Path) -> None:
    branch = RunDir(tmp_path).method("merit").branch(0)
    branch.root.mkdir(parents=True)
    branch.spec.write_text("{}")  # far enough to begin, and to end at once
    theirs, ours = branch.job.with_name(f"{branch.job.name}.7.part"), branch.root / "progress.json.8.part"
    theirs.touch()
    ours.touch()
    with pytest.raises(InputError, match=r"spec\.json"):
        run_branch_job(tmp_path, "merit", 0)
    assert theirs.exists()
    assert not ours.exists()
