"""Stage `merge`: the branches of every method become one model, or several points on its ray."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from merit.base import extensions
from merit.base.files import atomic_dir, read_json, sweep_parts, write_text
from merit.base.kept import Files, checksums, files_below, kept
from merit.base.record import Sealed, fingerprint
from merit.config.sections import OuterConfig
from merit.context import Method, RunContext, Step
from merit.data.encode import template_by
from merit.merge.rule import Branches, MergeRule, find_rule
from merit.merge.weights import normalised
from merit.models.input_sketch import FOLDER
from merit.run.layout import MethodDir, relative
from merit.split.partition import Partition
from merit.train.spec import BranchResult
from merit.train.step import branch_results, check_branches, left_out

if TYPE_CHECKING:
    from merit.merge.outer import Outer
    from merit.merge.record import MergeResult

NAME = "merge"
_EDITED = ("README.md", "generation_config.json")
CURVED = "curved"  # beside the method's merges


class MethodMerge(Sealed):
    """`merge.json`: what one method's merge was made of. Displacements are ‖θ − θ0‖ over all parameters."""

    fingerprint: str
    weights: list[float]
    supervised_tokens: list[int]
    left_out: list[int] = Field(default_factory=list)  # branches that were not done: a partial run
    displacement: dict[str, float]  # scale, as `%g` → of the model written
    branch_displacement: list[float]
    rounding_error: dict[str, float]  # scale → ‖rounding error‖ / ‖θ − θ0‖
    seconds: float
    files: dict[str, str] = Field(default_factory=dict)  # of the outputs, relative to the method's folder → checksum


def depends(context: RunContext) -> dict[str, str]:
    """The branches' weights and the merge's settings."""
    return {
        "branches": fingerprint([_inputs(context, method) for method in context.methods]),
        "merge": fingerprint(
            context.config.merge.mark, [_wanted(method) for method in context.methods], *_outer_mark(context)
        ),
        "model": context.model.fingerprint,
    }


def merged_branches(method: Method) -> dict[int, BranchResult]:
    """The results of the branches that are in the method's merge.

    Raises:
        InputError: not merged yet, or a branch is gone.
    """
    skip = MethodMerge.load(method.dir.merge_record).left_out
    count = len(Partition.load(method.dir.partition).groups)
    return {k: BranchResult.load(method.dir.branch(k).done) for k in range(count) if k not in skip}


def outputs(context: RunContext) -> list[Path]:
    """What a forced rerun makes anew."""
    return [method.dir.merge_record for method in context.methods]


def files(context: RunContext) -> list[Path]:
    """What must not be damaged: the records, and the merged models themselves."""
    return files_of_merges(context.methods)


def files_of_merges(methods: Sequence[Method]) -> list[Path]:
    """The records and the merged models of these methods."""
    found = []
    for method in methods:
        record = method.dir.merge_record
        found += [record, *(method.dir.root / name for name in MethodMerge.load(record).files)]
    return found


def run(context: RunContext) -> dict[str, Any]:
    """Writes merged/ (and merged@β/) of every method whose branches or settings changed."""
    return {"merged": merge_methods(context, context.methods)}


def merge_methods(context: RunContext, methods: Sequence[Method]) -> int:
    """Merges those of these methods (or of a round of each) whose branches or settings changed; returns how many."""
    checked: set[Path] = set()
    return sum(make_merge(context, method, checked) for method in methods)


def make_merge(context: RunContext, method: Method, checked: set[Path]) -> bool:
    """Writes the merge of one method's branches, unless it is there and still holds: whether it was written.

    Args:
        checked: where the branches are whose checksums this process has seen to be right; they are added.

    Raises:
        InputError: a branch is not finished, or the merge refuses it.
        StageError: a branch is damaged.
    """
    config = context.merging(method)
    mark = fingerprint(
        _inputs(context, method),
        config.mark,
        method.config.scales,
        context.model.fingerprint,
        *(_outer_mark(context) if method.rounds > 1 else ()),
    )
    if kept(method.dir.merge_record, MethodMerge, {"fingerprint": mark}, Files(method.dir.root)).fresh:
        return False
    if method.dir.source not in checked:
        check_branches(context, method, branch_results(context, method))
        checked.add(method.dir.source)
    sweep_parts(method.dir.root)
    merge_method(context, method, mark)
    return True


def merge_method(context: RunContext, method: Method, mark: str) -> MethodMerge:
    """Merges one method's branches by its rule (the method's step 4)."""
    from merit.merge.average import merge_checkpoints
    from merit.merge.card import write_card

    config = context.merging(method)
    results = branch_results(context, method)
    branches = Branches(
        [method.dir.branch(k).checkpoint for k in results], [result.supervised_tokens for result in results.values()]
    )
    rule = find_rule(config.weights)
    weights = rule.weights(branches)
    outputs = {scale: method.dir.merged(scale) for scale in method.config.scales}
    method.dir.merge_record.unlink(missing_ok=True)
    _clear(method)
    inputs, shares, distances = branches.folders, weights, None
    solved, outer = rule.is_solved and len(inputs) > 1, _outer(context, method)
    if rule.sums is not None and len(inputs) > 1:
        folder, distances = prepared_checkpoint(context, method, rule, branches)
        inputs, shares = [folder], [1.0]
    merge = merge_checkpoints(
        inputs,
        shares,
        outputs,
        base=context.model.path,
        rule=config.weights if solved else None,
        ridge=config.effective_ridge if solved else None,
        start=context.start(method).path if (solved or outer is not None) and method.round > 1 else None,
        outer=outer,
        trust_remote_code=context.model.trust_remote_code,
        dtype=config.dtype,
        shard_bytes=config.shard_bytes,
        progress=context.progress,
    )
    for folder in outputs.values():
        _stop_at(folder, template_by(context.tokenizer).end_token)
    groups = [group.datasets for group in Partition.load(method.dir.partition).groups]
    missing = left_out(method)
    for scale, folder in outputs.items():
        name = method.name if scale == 1 else f"{method.name}, pulled to {scale:g}"
        write_card(
            folder,
            title=f"{context.run.root.name}: {name}",
            datasets=[groups[k] for k in results],
            missing=[groups[k] for k in missing],
            rule=rule if len(results) > 1 else None,
        )
    record = MethodMerge(
        fingerprint=mark,
        weights=normalised(weights),
        supervised_tokens=list(branches.tokens),
        left_out=missing,
        displacement=merge.displacement,
        branch_displacement=merge.branch_displacement if distances is None else distances,
        rounding_error=merge.rounding_error,
        seconds=merge.seconds,
        files=_files(method, merge),
    )
    record.save(method.dir.merge_record)
    return record


def _stop_at(folder: Path, token: int | None) -> None:
    """Writes the token that ends an assistant turn into the model's generation config, where it is not one of its ends:
    a base model's end token is another, and what serves it would never stop."""
    file = folder / "generation_config.json"
    config, model = (read_json(path) if path.is_file() else {} for path in (file, folder / "config.json"))
    if token is None or not isinstance(config, dict) or not isinstance(model, dict):
        return
    text = model.get("text_config")
    places = [config, model, text if isinstance(text, dict) else {}]
    own = next((place["eos_token_id"] for place in places if place.get("eos_token_id") is not None), None)
    ends = [end for end in (own if isinstance(own, list) else [own]) if end is not None]
    if token not in ends:
        # The first one also pads, in some servers: the turn's own end comes last.
        write_text(file, json.dumps({**config, "eos_token_id": [*ends, token]}, indent=2) + "\n")


def _clear(method: Method) -> None:
    """Removes outputs of an earlier merge, and no copy that the user has put beside them. Half a merge alone is kept,
    to be resumed; one that was killed while its outputs were renamed into place is not worth telling apart."""
    root = method.dir.root
    outputs = [*root.glob(method.dir.merged().name), *root.glob("merged@*")]
    outputs += root.glob(method.dir.momentum.name) if method.round < method.rounds else ()
    for folder in [*outputs, *(root.glob(".*.merging") if outputs else ())]:
        shutil.rmtree(folder)


def _outer(context: RunContext, method: Method) -> Outer | None:
    """The outer step of the method's round; None where the merge is taken as it is."""
    from merit.merge.outer import Outer

    settings = context.config.train.outer_step
    if settings is None or method.rounds == 1:
        return None
    home = MethodDir(method.dir.whole or method.dir.source)
    before = home.round(method.round - 1).momentum if settings.momentum and method.round > 1 else None
    return Outer(settings, before, method.dir.momentum if settings.momentum and method.round < method.rounds else None)


def _outer_mark(context: RunContext) -> list[OuterConfig]:
    settings = context.config.train.outer_step
    return [] if settings is None else [settings]


def _inputs(context: RunContext, method: Method) -> list[Any]:
    """What the merge rests on. A sketch that came late changes only the merges that read it."""
    reads = find_rule(context.merging(method).weights).needs_inputs
    found = []
    for result in branch_results(context, method).values():
        kept = {name: mark for name, mark in result.files.items() if reads or f"/{FOLDER}/" not in name}
        found.append([kept, result.supervised_tokens])
    return found


def _files(method: Method, merge: MergeResult) -> dict[str, str]:
    """Checksums of all files of the merged models but those that people edit; the weights' are those of the merge."""
    found: dict[str, str] = {}
    for scale in method.config.scales:
        folder, shards = method.dir.merged(scale), merge.checksums[f"{scale:g}"]
        found |= {relative(folder / name, method.dir.root): mark for name, mark in shards.items()}
        found |= checksums(method.dir.root, files_below(folder, *shards, *_EDITED))
    kept = merge.checksums.get("momentum", {})
    return found | {relative(method.dir.momentum / name, method.dir.root): mark for name, mark in kept.items()}


def _wanted(method: Method) -> list[Any]:
    """A method's own part of what the stage depends on, without what merit 0.1.0 did not have."""
    own = method.config.merge
    parts = [method.source, own] if own is not None or method.source else []
    file = extensions.marks("rules", own.rule) if own is not None else ()
    return [method.name, method.config.scales, *parts, *file]


def merge_words(context: RunContext, method: Method) -> str:
    """The merge in a few words; empty where the run has one merge of each method's branches by one rule."""
    shared = method.source or any(other.source == method.name for other in context.methods)
    if not shared and method.config.merge is None:
        return ""
    config, rule = context.merging(method), find_rule(context.merging(method).weights)
    return rule.label if config.ridge is None or rule.is_average else f"{rule.label} with ridge {config.ridge:g}"


def _says(context: RunContext) -> str:
    return f"merging the branches of {', '.join(method.name for method in context.methods)}"


def prepared_checkpoint(
    context: RunContext, method: Method, rule: MergeRule, branches: Branches
) -> tuple[Path, list[float]]:
    """Writes curved/ in float32, and returns it with each ‖θ_k − θ0‖.

    Memory: three models, and the rule's sums.

    Raises:
        InputError: a branch is not of θ0's model.
        StageError: a branch has diverged.
    """
    out = method.dir.root / CURVED
    shutil.rmtree(out, ignore_errors=True)
    return out, _sum_up(context, method, rule, branches, out)


def _sum_up(context: RunContext, method: Method, rule: MergeRule, branches: Branches, out: Path) -> list[float]:
    from merit.merge.ray import Ray
    from merit.models.loading import load_model

    config = context.merging(method)
    ray = Ray(load_model(context.model.path, trust_remote_code=context.model.trust_remote_code))
    with context.progress.bar(f"curvature {method.name}", total=len(branches.folders), unit="branch") as bar:
        sums, distances = ray.sum_up(rule, branches, context.run, config.curvature_examples, bar.update)
    model = ray.set(sums.solve(config.effective_ridge))
    with atomic_dir(out) as part:
        model.save_pretrained(part)
        context.tokenizer.save_pretrained(part)
    return distances


STEP = Step(NAME, run, depends, says=_says, outputs=outputs, files=files)
