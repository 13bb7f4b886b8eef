"""A branch whose training is cut into rounds: each ends with a whole training checkpoint, and the next goes on from it
with the merge's weights in place of its own. Schedule, order of examples and counts run over all rounds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from merit.base.errors import InputError, StageError
from merit.base.files import atomic_dir
from merit.base.words import plural
from merit.run.layout import BranchDir, MethodDir, RunDir
from merit.train.checkpoints import Counters, mark_whole, newest_checkpoint, step_of
from merit.train.spec import MARKER, BranchSpec

_STATE = "trainer_state.json"
_OPTIMIZER = "optimizer.pt"


def last_step(spec: BranchSpec, steps: int) -> int:
    """The optimizer step that ends the round, of `steps` over all rounds.

    Raises:
        InputError: fewer steps than rounds.
    """
    if steps < spec.train.rounds:
        said = f"{spec.method} branch {spec.branch} has only {plural(steps, 'optimizer step')}"
        raise too_few_steps(spec.train.rounds, said)
    return round(steps * spec.round / spec.train.rounds)


def too_few_steps(rounds: int, what: str) -> InputError:
    """The error of a branch that has fewer steps than rounds, as `what` says."""
    said = f"{rounds}, but {what}: take fewer rounds, or lower `train.batch_tokens`"
    return InputError(said, field="train.rounds")


def at_end(checkpoint: Path, spec: BranchSpec) -> bool:
    """Whether the round ended with this training checkpoint."""
    if spec.is_last:
        return False
    steps = int(json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))["max_steps"])
    return step_of(checkpoint) >= last_step(spec, steps)


def end_of_round(branch: BranchDir, spec: BranchSpec) -> tuple[Path, Counters] | None:
    """The training checkpoint with which the branch's round ended. An earlier one, whole or not, is none: to go on from
    it would train a part of the round twice."""
    found = newest_checkpoint(branch)
    return found if found is not None and at_end(found[0], spec) else None


def go_on(run: RunDir, branch: BranchDir, spec: BranchSpec, start: Path) -> tuple[Path, Counters] | None:
    """Makes the training checkpoint from which a later round begins: that of the round before, with the weights of
    `start`. None in the first round.

    Raises:
        StageError: the round before left no whole checkpoint of its last step.
    """
    if spec.round == 1:
        return None
    earlier = _before(branch, spec)
    found = end_of_round(earlier, spec.model_copy(update={"round": spec.round - 1}))
    if found is None:
        raise StageError(
            f"{spec.method} branch {spec.branch}: the training state that round {spec.round - 1} ended with is damaged "
            "or gone; run again with `--from rounds`"
        )
    before, counters = found
    step = step_of(before)
    target = branch.training_state / before.name
    branch.training_state.mkdir(parents=True, exist_ok=True)
    with atomic_dir(target) as part:
        for file in before.iterdir():
            if file.is_file() and not _is_weights(file) and file.name != MARKER:
                _link(file, part / file.name)
        for file in start.iterdir():
            if _is_weights(file):
                _link(file, part / file.name)
        if not spec.train.carry_optimizer:
            _forget_moments(part / _OPTIMIZER)
    mark_whole(branch, step, counters)
    if earlier.log.is_file():  # one log over all rounds
        shutil.copyfile(earlier.log, branch.log)
    return target, counters


def drop_state_before(branch: BranchDir, spec: BranchSpec) -> None:
    """Removes the training state that a finished round went on from."""
    if spec.round > 1:
        shutil.rmtree(_before(branch, spec).training_state, ignore_errors=True)


def _before(branch: BranchDir, spec: BranchSpec) -> BranchDir:
    """The branch in the round before. A folder of the user's may have any name, `rounds` too: the spec says how deep
    `branch` lies."""
    method = branch.root.parents[1] if spec.is_last else branch.root.parents[3]
    return MethodDir(method).round(spec.round - 1).branch(spec.branch)


def _is_weights(file: Path) -> bool:
    return file.name.endswith((".safetensors", ".safetensors.index.json"))


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the disk has no links. Checkpoints are never written again."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _forget_moments(file: Path) -> None:
    import torch

    state = torch.load(file, weights_only=True, map_location="cpu")
    file.unlink()  # a link to that of the round before
    torch.save({**state, "state": {}}, file)
