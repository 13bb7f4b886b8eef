"""Stage `prepare`: joint training that makes θ0 merge-ready (method.md, step 0), one branch job per round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.base.errors import InputError
from merit.base.kept import made_once
from merit.base.machine import merit_command
from merit.base.record import fingerprint
from merit.config.run import RunConfig
from merit.config.sections import EvaluateConfig, PrepareConfig, PrepareStage
from merit.context import RunContext, Step
from merit.data.build import build_mixture, source_fingerprints
from merit.data.mixture import Mixture
from merit.jobs.drive import RetryPolicy
from merit.jobs.engine import make_executor
from merit.jobs.job import Job
from merit.models.source import check_model_folder, resolve_model
from merit.run.layout import BranchDir, relative
from merit.train.spec import BranchData, BranchResult, BranchSpec, damaged_files, finished_branch
from merit.train.step import prepare_branch

NAME = "prepare"


def wanted(context: RunContext) -> bool:
    """Whether the configuration has a section `prepare`."""
    return context.config.prepare is not None


def depends(context: RunContext) -> dict[str, str]:
    """The recipe, the model that it starts from, and the general mixture."""
    config = _config(context)
    return {
        "prepare": fingerprint(_section(context).mark, config.train, config.held_out_fraction),
        "model": fingerprint(context.origin.fingerprint, config.model.chat_template),
        "sources": fingerprint(source_fingerprints(config, context.base)),
        "seed": fingerprint(config.seed),
    }


def files(context: RunContext) -> list[Path]:
    """The last round's result and checkpoint. If they are damaged, the round is trained again."""
    branch = context.prepared_branch
    return [branch.done, *(branch.root / name for name in BranchResult.load(branch.done).files)]


def run(context: RunContext) -> dict[str, Any]:
    """Writes prepare/: the mixture, and one branch per round, each from the checkpoint of the round before.

    Raises:
        InputError: the tower cannot be joined, or the data is bad.
        StageError: a round failed for good.
    """
    home = context.run.prepare
    start = _start(context)
    mixture = build_mixture(_config(context), context.base, home, context.tokenizer, context.progress)
    rounds = context.preparation
    trained = 0
    for number, stage in enumerate(rounds):
        path = str(start) if number == 0 else relative(home.method().branch(number - 1).checkpoint, home.root)
        spec = _spec(context, mixture, number, stage, path)
        branch = home.method().branch(number)
        todo = prepare_branch(branch, spec)
        if not todo and damaged_files(branch):  # all later rounds start from it
            branch.done.unlink()
            todo = prepare_branch(branch, spec)
        if todo:
            launch = context.config.launch
            job = _job(home.root, branch, spec, f"preparation {number + 1} of {len(rounds)}")
            # Other machines do not see its paths if there is a store; then it is trained on this machine.
            here = launch.model_copy(update={"parallel": 1, "engine": "local" if launch.store else launch.engine})
            policy = RetryPolicy(retries=launch.retries, preemption_retries=launch.preemption_retries)
            make_executor(here, policy, context.run.engine).run([job], context.progress)
            trained += 1
        if finished_branch(branch, fingerprint(BranchSpec.load(branch.spec))) is None:
            raise InputError("its spec changed during training; run again", file=branch.root)
    results = [BranchResult.load(home.method().branch(number).done) for number in range(len(rounds))]
    return {"rounds": len(rounds), "trained": trained, "losses": [result.final_loss for result in results]}


def _section(context: RunContext) -> PrepareConfig:
    if context.config.prepare is None:
        raise InputError("there is nothing to prepare", field="prepare")
    return context.config.prepare


def _config(context: RunContext) -> RunConfig:
    """The run's configuration with the general mixture in place of its own."""
    mixture = _section(context).mixture or context.config.mixture
    return context.config.model_copy(update={"mixture": mixture, "evaluate": EvaluateConfig()})


def _start(context: RunContext) -> Path:
    """The model of the first round: the configured one, or vision tower and language model joined."""
    tower = _section(context).vision_tower
    if tower is None:
        return context.origin.path

    def join(part: Path) -> None:
        from merit.models.assemble import assemble

        assemble(context.origin.path, context.vision_tower, part, seed=context.config.seed)

    folder = made_once(context.assembled, join, holds="config.json")
    check_model_folder(folder, trust_remote_code=False)
    return folder


def _spec(context: RunContext, mixture: Mixture, number: int, stage: PrepareStage, path: str) -> BranchSpec:
    home, config = context.run.prepare, context.config
    update: dict[str, Any] = {"epochs": stage.epochs, "rounds": 1, "outer": None}
    update |= {"learning_rate": stage.learning_rate} if stage.learning_rate is not None else {}
    update |= {"batch_tokens": stage.batch_tokens} if stage.batch_tokens is not None else {}
    model = config.model.model_copy(update={"path": path, "revision": None, "freeze": stage.freeze})
    return BranchSpec(
        method=NAME,
        branch=number,
        model=model,
        model_fingerprint=resolve_model(model, home.root).fingerprint,
        train=config.train.model_copy(update=update),
        data=[
            BranchData(
                name=item.name,
                data=relative(home.data(item.name), home.root),
                weight=item.weight,
                fingerprint=item.fingerprint,
            )
            for item in mixture.datasets
        ],
        max_length=mixture.max_length,
        planned_tokens=round(sum(item.planned_tokens for item in mixture.datasets) * stage.epochs),
        seed=config.seed + number,
    )


def _job(root: Path, branch: BranchDir, spec: BranchSpec, name: str) -> Job:
    return Job(
        name=name,
        command=tuple(merit_command("train", str(root), "--branch", str(spec.branch))),
        done=branch.done,
        progress=branch.progress,
        output=branch.output,
        weight=spec.planned_tokens,
    )


def _says(context: RunContext) -> str:
    return f"preparing θ0: {len(context.preparation)} rounds of joint training"


STEP = Step(NAME, run, depends, says=_says, files=files, wanted=wanted)
