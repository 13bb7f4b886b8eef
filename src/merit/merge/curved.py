"""A merge rule that weighs more than branches: its merge of a run's branches, as a checkpoint of its own.

The merge engine takes it from there: points of its ray, types, rounding, checks and cards are as of any other merge.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from merit.base.errors import StageError
from merit.base.files import atomic_dir
from merit.context import Method, RunContext
from merit.merge.ray import Ray, norm
from merit.merge.rule import Branches, MergeRule
from merit.merge.tensors import merge_tensors
from merit.models.loading import load_model
from merit.run.layout import BranchDir
from merit.train.rows import training_rows
from merit.train.spec import BranchSpec

CURVED = "curved"  # beside the method's merges


def prepared_checkpoint(
    context: RunContext, method: Method, rule: MergeRule, branches: Branches
) -> tuple[Path, list[float]]:
    """Writes curved/ in float32, and returns it with each ‖θ_k − θ0‖.

    Memory: of a rule of tensors K + 2 tensors; of a rule that sums over branches three models, and its sums.

    Raises:
        InputError: a branch is not of θ0's model.
        StageError: a branch has diverged.
    """
    out = method.dir.root / CURVED
    shutil.rmtree(out, ignore_errors=True)
    if rule.tensor is not None:
        ridge = context.config.merge.effective_ridge
        return out, merge_tensors(rule, branches, out, base=context.model.path, ridge=ridge)
    return out, _sum_up(context, method, rule, branches, out)


def _sum_up(context: RunContext, method: Method, rule: MergeRule, branches: Branches, out: Path) -> list[float]:
    if rule.sums is None:
        raise StageError(f"{rule.label}: an average needs no checkpoint of its own")
    config = context.config.merge
    ray = Ray(load_model(context.model.path, trust_remote_code=context.model.trust_remote_code))
    sums = rule.sums(ray.theta0)
    distances = []
    with context.progress.bar(f"curvature {method.name}", total=len(branches.folders), unit="branch") as bar:
        for done, (folder, weight) in enumerate(zip(branches.folders, rule.weights(branches), strict=True), 1):
            step = ray.step(folder)
            distances.append(norm(step))
            spec = BranchSpec.load(BranchDir(folder.parent).spec)
            sums.add(ray.set(step), step, weight, training_rows(context.run.root, spec, config.curvature_examples))
            bar.update(done)
    model = ray.set(sums.solve(config.effective_ridge))
    with atomic_dir(out) as part:
        model.save_pretrained(part)
        context.tokenizer.save_pretrained(part)
    return distances
