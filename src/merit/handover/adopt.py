"""`merit adopt`: checks a branch that another trainer trained, and puts it into the run."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from merit.base.errors import InputError
from merit.base.files import read_json
from merit.base.kept import files_below, keep
from merit.base.record import fingerprint
from merit.context import RunContext
from merit.handover.bundle import MANIFEST, OUTPUT, Handover
from merit.handover.write import find_method
from merit.jobs.process import job_lock
from merit.models.adapter import is_adapter
from merit.models.checkpoint import Checkpoint
from merit.models.input_sketch import InputSketch
from merit.run.events import append_event
from merit.run.guard import run_lock, unplanned
from merit.run.layout import BranchDir
from merit.train import step as train
from merit.train.spec import BranchResult, BranchSpec, finished_branch

BUDGET = 0.1  # how far the tokens trained on may be from the plan
# Fine-tuning moves a model by a few per cent of its norm; two models trained apart are further apart than their norms.
FAR = 0.5


def adopt_branch(
    context: RunContext,
    method: str,
    k: int,
    folder: Path,
    *,
    tokens: int | None = None,
    any_budget: bool = False,
    redo: bool = False,
) -> BranchResult:
    """Checks the model in `folder` and makes it branch `k`. A LoRA adapter is merged into θ0 first.

    Args:
        folder: the trainer's output, or the folder of the hand-over that holds it.
        tokens: supervised tokens really trained on; default: those of the hand-over's manifest.
        any_budget: accept a number of tokens far from the plan.
        redo: replace a branch that is done.

    Raises:
        InputError: the branch was planned differently; another architecture, vocabulary or layout; weights that are
            not finite; a sketch of other weights; a model that is θ0 itself, or was not trained from it; a budget far
            from the plan.
    """
    chosen = find_method(context, method)
    branch = chosen.dir.branch(k)
    if not branch.spec.is_file():
        raise unplanned(context.run, method, k, "`merit handover` plans branches")
    spec = BranchSpec.load(branch.spec)
    with run_lock(context.run), job_lock(branch.root / "lock", wait_seconds=0):
        if finished_branch(branch, fingerprint(spec)) is not None and not redo:
            raise InputError(f"branch {k} is done already; --redo replaces it", file=branch.done)
        if spec.model_fingerprint != context.model.fingerprint:
            raise InputError("θ0 is not the model that this branch was planned with", file=context.model.path)
        source = _model_folder(folder)
        manifest = _manifest(folder, source)
        if manifest is not None:
            _check_manifest(manifest, spec, folder)
        steps = _check_finished(source, said=tokens is not None)
        counted = _tokens(tokens, manifest, spec, source, any_budget=any_budget)
        sketch = None if is_adapter(source) else InputSketch.open(source)
        _bring_in(context, branch, source)
        if sketch is not None:
            sketch.carry(branch.checkpoint, fingerprint(spec))
        context.run.stage(train.NAME).unlink(missing_ok=True)
        result = BranchResult(
            fingerprint=fingerprint(spec),
            supervised_tokens=counted,
            examples=round(manifest.examples * spec.train.epochs) if manifest else 0,
            steps=steps,
            seconds=0.0,
            final_loss=None,
            files={},
        )
        result = keep(branch.done, result, branch.root, files_below(branch.checkpoint))
        shutil.rmtree(branch.training_state, ignore_errors=True)
        append_event(context.run.events, "adopted", method=method, branch=k, supervised_tokens=counted)
    return result


def _model_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError("no such folder", file=folder)
    for place in (folder, folder / OUTPUT):
        if (place / "config.json").is_file() or is_adapter(place):
            return place
    raise InputError(f"no model here or in {OUTPUT}/ below (no config.json)", file=folder)


def _manifest(folder: Path, source: Path) -> Handover | None:
    for place in (folder, source.resolve().parent):
        if (place / MANIFEST).is_file():
            return Handover.load(place / MANIFEST)
    return None


def _check_manifest(manifest: Handover, spec: BranchSpec, folder: Path) -> None:
    if (manifest.method, manifest.branch) != (spec.method, spec.branch):
        raise InputError(
            f"this is branch {manifest.branch} of {manifest.method!r}, not branch {spec.branch} of {spec.method!r}",
            file=folder / MANIFEST,
        )
    if manifest.fingerprint != fingerprint(spec):
        raise InputError("the branch has been planned again since it was handed over; hand it over again", file=folder)


def _check_finished(source: Path, *, said: bool) -> int:
    """Optimizer steps, if the trainer left its state, else 0.

    Raises:
        InputError: the training stopped half-way.
    """
    file = source / "trainer_state.json"
    if not file.is_file():
        return 0
    state = read_json(file)
    step, last = (state.get(key) if isinstance(state, dict) else None for key in ("global_step", "max_steps"))
    if not isinstance(step, int) or not isinstance(last, int):
        return 0
    if step < last and not said:
        raise InputError(
            f"training stopped at step {step} of {last}; finish it, or give the tokens it was trained on with --tokens",
            file=file,
        )
    return step


def _tokens(claimed: int | None, manifest: Handover | None, spec: BranchSpec, source: Path, *, any_budget: bool) -> int:
    if claimed is None and manifest is None:
        raise InputError(
            "there is no handover.json beside it; give the tokens it was trained on with --tokens", file=source
        )
    counted = claimed if claimed is not None else manifest.supervised_tokens if manifest is not None else 0
    planned = manifest.supervised_tokens if manifest is not None else spec.planned_tokens
    if abs(counted - planned) > BUDGET * planned and not any_budget:
        raise InputError(
            f"trained on {counted:,} supervised tokens, but the plan says {planned:,}: the comparison with other "
            "methods would not be fair; --any-budget accepts it",
            field="--tokens",
        )
    return counted


def _bring_in(context: RunContext, branch: BranchDir, source: Path) -> None:
    """Copies the checkpoint through the merge engine, which checks it: the average of one keeps its bits."""
    from merit.merge.average import merge_checkpoints
    from merit.merge.card import CARD
    from merit.merge.record import RECORD

    shutil.rmtree(branch.incoming, ignore_errors=True)
    theta0 = context.model.path
    try:
        moved = merge_checkpoints([source], [1.0], {1.0: branch.incoming}, base=theta0, progress=context.progress)
        distance, norm = moved.branch_displacement[0], _norm(theta0)
        if distance == 0:
            raise InputError("these are θ0's own weights: nothing was trained", file=source)
        if distance > FAR * norm:
            raise InputError(
                f"‖θ − θ0‖ is {distance / norm:.0%} of ‖θ0‖: it was not trained from this run's θ0 ({theta0})",
                file=source,
            )
        for name in (CARD, RECORD):
            (branch.incoming / name).unlink(missing_ok=True)
        branch.done.unlink(missing_ok=True)
        shutil.rmtree(branch.checkpoint, ignore_errors=True)
        branch.incoming.replace(branch.checkpoint)
    finally:
        shutil.rmtree(branch.incoming, ignore_errors=True)


def _norm(folder: Path) -> float:
    checkpoint = Checkpoint.open(folder)
    return math.sqrt(math.fsum(float(checkpoint.tensor(name).double().norm()) ** 2 for name in checkpoint.tensors))
