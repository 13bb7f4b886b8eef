"""The executor that a configuration asks for."""

from __future__ import annotations

from pathlib import Path

from merit.config.launch import LaunchConfig
from merit.executors.base import Executor
from merit.executors.drive import Rules
from merit.executors.local import LocalExecutor


def make_executor(launch: LaunchConfig, rules: Rules, folder: Path) -> Executor:
    """An executor; `folder` is for files of the engine's own.

    Raises:
        InputError: what the engine needs is not installed, or the engine refuses its options.
    """
    if launch.engine == "ray":
        from merit.executors.ray import RayExecutor

        return RayExecutor(launch, rules)
    if launch.engine == "slurm":
        from merit.executors.slurm import SlurmExecutor

        return SlurmExecutor(launch, rules, folder)
    return LocalExecutor(parallel=launch.parallel, rules=rules)
