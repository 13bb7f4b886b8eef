"""What a method costs with a machine a branch: bytes between the machines, and time until the last has trained."""

from __future__ import annotations

from dataclasses import dataclass

from merit.conflict.similarity import ConflictResult
from merit.context import Method, RunContext
from merit.merge.step import merged_branches
from merit.merge.traffic import FLOAT32, data_parallel, moved
from merit.split.partition import Partition


@dataclass(frozen=True)
class Effort:
    """None where it is not known: weights that are elsewhere, or that another trainer made."""

    bytes_moved: int | None = None
    seconds: float | None = None


def effort_apart(context: RunContext, method: Method) -> Effort:
    """The effort of a method, or of its rounds up to one.

    Joint training runs data-parallel on as many machines as the main method has branches. They exchange fp32 gradients
    in every step, and are taken to share the work without loss.

    Raises:
        InputError: not merged yet.
    """
    branches = merged_branches(method)
    folders = [method.dir.branch(k).checkpoint for k in branches]
    size = max(sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in folders)
    if not size or not all(result.seconds for result in branches.values()):
        return Effort()
    if len(Partition.load(method.dir.partition).groups) > 1:
        return Effort(moved(len(branches), method.round, size), _until_the_last(context, method))
    if context.run.conflict.exists():  # of what is trained, where the checkpoint may hold more
        size = FLOAT32 * ConflictResult.load(context.run.conflict).parameters
    (joint,) = branches.values()
    machines = len(merged_branches(context.methods[0]))
    return Effort(data_parallel(machines, joint.steps, size), joint.seconds / machines)


def _until_the_last(context: RunContext, method: Method) -> float:
    """Seconds of training, when every round waits for its longest branch."""
    trained = next(item for item in context.methods if item.name == (method.source or method.name))
    seconds, before = 0.0, dict.fromkeys(merged_branches(method), 0.0)
    for one in (*trained.before[: method.round - 1], method):
        now = {k: result.seconds for k, result in merged_branches(one).items()}
        seconds += max(now[k] - before[k] for k in before)
        before = now
    return seconds
