"""The command of a branch job: the same on every engine."""

from __future__ import annotations

from merit.branches.spec import BranchSpec
from merit.executors.base import Job
from merit.run.layout import BranchDir
from merit.run.program import merit_command
from merit.stages.context import Method, RunContext
from merit.stages.staging import store_url


def branch_job(context: RunContext, method: Method, branch: BranchDir, spec: BranchSpec) -> Job:
    """`merit train RUN --branch k --method NAME`, with the devices that the configuration gives a branch."""
    launch = context.config.launch
    root = store_url(context) if launch.store is not None else str(context.run.root.resolve())
    command = merit_command("train", root, "--branch", str(spec.branch), "--method", method.name)
    if launch.processes > 1:
        command += ["--processes", str(launch.processes)]
    if launch.accelerate is not None:
        command += ["--accelerate", launch.accelerate]
    return Job(
        name=f"{method.name} branch {spec.branch}",
        command=tuple(command),
        done=branch.done,
        progress=branch.progress,
        output=branch.output,
        weight=spec.planned_tokens,
        env=launch.env,
        record=branch.job,
    )
