"""`merge.weights: fisher | regmean`: the curvature-aware merge of a run's branches, as a checkpoint of its own.

The merge engine takes it from there: points of its ray, types, rounding, checks and cards are as of any other merge.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from merit.base.files import atomic_dir
from merit.config.merge import RIDGE
from merit.context import Method, RunContext
from merit.merge.curvature import RULES
from merit.merge.ray import Ray, norm
from merit.models.loading import load_model
from merit.run.layout import BranchDir
from merit.train.rows import training_rows
from merit.train.spec import BranchSpec

CURVED = "curved"  # beside the method's merges


def curved_checkpoint(
    context: RunContext, method: Method, folders: Sequence[Path], tokens: Sequence[int]
) -> tuple[Path, list[float]]:
    """Writes curved/ in float32, and returns it with each ‖θ_k − θ0‖. Memory: three models, and their curvatures.

    Raises:
        InputError: a branch is not of θ0's model.
        StageError: a branch has diverged.
    """
    config = context.config.merge
    ray = Ray(load_model(context.model.path, trust_remote_code=context.model.trust_remote_code))
    merge = RULES[config.weights](ray.theta0)
    distances = []
    with context.progress.bar(f"curvature {method.name}", total=len(folders), unit="branch") as bar:
        for done, (folder, count) in enumerate(zip(folders, tokens, strict=True), 1):
            step = ray.step(folder)
            distances.append(norm(step))
            spec = BranchSpec.load(BranchDir(folder.parent).spec)
            merge.add(ray.set(step), step, count, training_rows(context.run.root, spec, config.curvature_examples))
            bar.update(done)
    model = ray.set(merge.solve(RIDGE[config.weights] if config.ridge is None else config.ridge))
    out = method.dir.root / CURVED
    shutil.rmtree(out, ignore_errors=True)
    with atomic_dir(out) as part:
        model.save_pretrained(part)
        context.tokenizer.save_pretrained(part)
    return out, distances
