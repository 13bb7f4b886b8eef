"""The executor that a configuration asks for."""

from __future__ import annotations

from pathlib import Path

from merit.config.launch import LaunchConfig
from merit.jobs.drive import Rules
from merit.jobs.job import Executor
from merit.jobs.local import LocalExecutor


def make_executor(launch: LaunchConfig, rules: Rules, folder: Path) -> Executor:
    """An executor; `folder` is for files of the engine's own.

    Raises:
        InputError: what the engine needs is not installed, or the engine refuses its options.
    """
    if launch.engine == "ray":
        from merit.jobs.ray import RayExecutor

        return RayExecutor(launch, rules)
    if launch.engine == "slurm":
        from merit.jobs.slurm import SlurmExecutor

        return SlurmExecutor(launch, rules, folder)
    return LocalExecutor(parallel=launch.parallel, rules=rules)
