"""Whether a branch is whole."""

from __future__ import annotations

import shutil

from merit.branches.spec import BranchResult
from merit.errors import InputError
from merit.io import sha256_files
from merit.run.layout import BranchDir


def finished_branch(branch: BranchDir, mark: str) -> BranchResult | None:
    """The result of `branch` if it is whole and was made from the spec with fingerprint `mark`, else None.

    A job that is killed after its DONE leaves its training state behind; that goes now.
    """
    try:
        result = BranchResult.load(branch.done)
    except InputError:
        return None
    if result.fingerprint != mark or not all((branch.root / name).is_file() for name in result.files):
        return None
    shutil.rmtree(branch.training_state, ignore_errors=True)
    return result


def damaged_files(branch: BranchDir) -> list[str]:
    """Files of a finished branch that are not as its job wrote them; reads all of them.

    Raises:
        InputError: the branch is not finished.
    """
    result = BranchResult.load(branch.done)
    marks = sha256_files([branch.root / name for name in result.files])
    return [name for (name, mark), now in zip(result.files.items(), marks, strict=True) if now != mark]
