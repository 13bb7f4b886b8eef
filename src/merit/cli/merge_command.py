"""`merit merge A B C -o OUT` and `merit merge --verify OUT`: reads options, merges or verifies, answers in lines."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from merit.base import extensions
from merit.base.errors import InputError
from merit.base.files import is_url, url_of
from merit.base.progress import SILENT, Progress
from merit.base.record import Record
from merit.base.words import plural
from merit.config.sections import MEMORY_BYTES, DtypeName, ModelConfig
from merit.merge.average import merge_checkpoints
from merit.merge.lora import merge_adapters, recorded
from merit.merge.recipe import read_mergekit
from merit.merge.record import MergeResult, WeightRule, short_names
from merit.merge.remote import fetch, send_merge
from merit.merge.rule import Branches, find_rule
from merit.merge.verify import verify_adapters, verify_merge
from merit.models.adapter import is_adapter
from merit.models.source import check_model_folder, locate_model
from merit.train.spec import BranchResult

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Merging:
    """The options of `merit merge` for checkpoints, as they stand on the command line.

    Attributes:
        output: the folder or URL to write.
        weights: `1,2,3`, or the name of a rule that is an average (by tokens: what each branch of a run says it was
            trained on); then, after `;`, `PATTERN=1,2,3` for tensors with other weights.
        scale: every β to write.
        base: θ0.
        rule: the name of a rule that is no average, and its ridge.
        device: of torch, that solves the rule's linear layers.
        adapter: `exact` or a rank: LoRA folders become one LoRA folder instead of a whole model.
        memory: of all buffers, such as `512MB`.
    """

    output: Path | None = None
    weights: str | None = None
    scale: Sequence[float] = (1.0,)
    base: str | None = None
    dtype: str = "input"
    rule: str | None = None
    ridge: float | None = None
    device: str | None = None
    adapter: str | None = None
    partial: bool = False
    stochastic: bool = False
    keep_sums: Path | None = None
    memory: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a merge gave: its record, and the lines to print."""

    record: Record
    lines: list[str]


def merge_models(inputs: Sequence[str], wanted: Merging, progress: Progress = SILENT) -> Answer:
    """Merges folders, Hub ids, URLs, or the models of one mergekit recipe.

    Raises:
        InputError: an option that cannot be read, or what the merge itself refuses.
        StageError: the disk is full, or a remote output cannot be written.
    """
    output = wanted.output
    if output is None:
        raise InputError("where does the merged model go? name a folder with -o", field="output")
    models = list(inputs)
    if len(models) == 1 and models[0].endswith((".yaml", ".yml")):
        recipe = read_mergekit(Path(models[0]))
        models, numbers = list(recipe.models), ",".join(map(repr, recipe.weights))
        wanted = replace(wanted, base=recipe.base, dtype=recipe.dtype, scale=(recipe.scale,), weights=numbers)
    folders = [_locate(model, progress, must_exist=not wanted.partial) for model in models]
    wanted, rule = _rule_of(wanted, folders)
    weights, rules = parse_weights(wanted.weights, folders)
    base = _locate(wanted.base, progress) if wanted.base is not None else None
    if wanted.adapter is not None:
        return _merge_adapters(folders, weights, wanted, base, progress)

    def merge(outputs: Mapping[float, Path]) -> MergeResult:
        return merge_checkpoints(
            folders,
            weights,
            outputs,
            base=base,
            dtype=parse_dtype(wanted.dtype),
            rules=rules,
            rule=rule,
            ridge=wanted.ridge,
            device=wanted.device,
            partial=wanted.partial,
            keep_sums=wanted.keep_sums,
            rounding="stochastic" if wanted.stochastic else "nearest",
            memory_bytes=MEMORY_BYTES if wanted.memory is None else parse_bytes(wanted.memory),
            progress=progress,
        )

    outputs = name_outputs(output, wanted.scale)
    if is_url(str(output)):
        urls = {beta: url_of(str(path)) for beta, path in outputs.items()}
        there = [folder for folder in (*folders, *([base] if base is not None else [])) if folder.is_dir()]
        marks = [recorded(folder, 0.0, 0.0).fingerprint for folder in there]
        depends = [list(map(str, folders)), wanted.weights, wanted.base, wanted.dtype, wanted.stochastic, marks]
        depends += [rule, str(wanted.ridge), *filter(None, [wanted.device])] if rule is not None else []
        result = send_merge(merge, urls, depends, progress)
    else:
        result = merge(outputs)
    return Answer(result, _lines(result, {f"{beta:g}": str(path) for beta, path in outputs.items()}))


def verify_models(inputs: Sequence[str], output: Path | None, progress: Progress = SILENT) -> Answer:
    """Verifies the merge in `output`, or in the last of `inputs`, against the other inputs or the recorded ones.

    Raises:
        InputError: no folder is named, or the merge is not what its record and its inputs say.
    """
    *sources, last = [*inputs, *([str(output)] if output else [])] or [""]
    if not last:
        raise InputError("name the merged folder to verify", field="output")
    verify = verify_adapters if is_adapter(Path(last)) else verify_merge
    result = verify(Path(last), inputs=[Path(source) for source in sources] or None, progress=progress)
    lines = [
        f"{last}: {result.shards} shards have their recorded checksum; {result.blocks} random blocks "
        f"({result.parameters_recomputed / result.parameters:.0%} of the parameters) are what the inputs give"
    ]
    if result.rounded_otherwise:
        lines.append(f"{result.rounded_otherwise} elements round to the other neighbour: a branch was removed")
    return Answer(result, lines)


def _rule_of(wanted: Merging, folders: Sequence[Path]) -> tuple[Merging, str | None]:
    """The options, and the rule where it is no average. It weighs branches of a run by their tokens, others equally,
    unless `--weights` says otherwise.

    Raises:
        InputError: no such rule, one that needs the branches' data, or an option that it cannot have.
    """
    if wanted.rule is None:
        for field in ("ridge", "device"):
            if getattr(wanted, field) is not None:
                raise InputError(f"a {field} is of a rule: name one with --rule", field=field)
        return wanted, None
    rule = find_rule(wanted.rule)
    if rule.is_average:
        if wanted.weights is not None or wanted.ridge is not None or wanted.device is not None:
            said = f"{wanted.rule!r} is an average: it has weights of its own, and neither ridge nor device"
            raise InputError(said, field="rule")
        return replace(wanted, weights=wanted.rule), None
    if not rule.is_solved:
        raise InputError(
            f"{wanted.rule!r} needs the branches' training data: set `merge.weights: {wanted.rule}` in a run's "
            "configuration",
            field="rule",
        )
    if wanted.weights is None and all((path.parent / "DONE").is_file() for path in folders):
        return replace(wanted, weights="tokens"), wanted.rule
    return wanted, wanted.rule


def parse_weights(text: str | None, folders: Sequence[Path]) -> tuple[list[float], list[WeightRule]]:
    """`1,2,3;lm_head=0,1,0` → the weights and the rules.

    Raises:
        InputError: neither numbers nor a rule; or a rule by tokens where the inputs are no branches of a run; or a rule
            that needs more than the inputs.
    """
    first, *others = (text or "uniform").split(";")
    given = _by_rule(first, folders) if first in extensions.names("rules") else _numbers(first)
    rules = []
    for part in others:
        pattern, found, numbers = part.rpartition("=")
        if not found:
            raise InputError(f"{part!r} is not PATTERN=1,2,3", field="weights")
        rules.append(WeightRule(pattern=pattern, weights=_numbers(numbers)))
    return given, rules


def _by_rule(name: str, folders: Sequence[Path]) -> list[float]:
    rule = find_rule(name)
    if not rule.is_average:
        raise InputError(
            f"{name!r} is no average: name it with --rule",
            field="weights",
        )
    done = [path.parent / "DONE" for path in folders] if rule.needs_tokens else []
    return rule.weights(Branches(folders, [BranchResult.load(file).supervised_tokens for file in done]))


def parse_bytes(text: str) -> int:
    """`512MB`, `2GiB`, `1000000` → bytes.

    Raises:
        InputError: not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B?)\s*", text.upper())
    unit = match[2] if match else ""
    if match is None or (unit not in _UNITS and f"{unit}B" not in _UNITS):
        raise InputError(f"{text!r} is not a size; write 512MB or 2GiB", field="memory")
    return int(float(match[1]) * _UNITS.get(unit, _UNITS.get(f"{unit}B", 1)))


def parse_dtype(text: str) -> DtypeName:
    """A type that can be written.

    Raises:
        InputError: another one.
    """
    if text not in get_args(DtypeName):
        raise InputError(f"{text!r} is none of {', '.join(get_args(DtypeName))}", field="dtype")
    return cast(DtypeName, text)


def name_outputs(output: Path, scales: Sequence[float]) -> dict[float, Path]:
    """One β: `output` itself. Several: β = 1 there, the others beside it as `output@β`."""
    found = list(dict.fromkeys(scales))
    if len(found) == 1:
        return {found[0]: output}
    return {beta: output if beta == 1 else output.with_name(f"{output.name}@{beta:g}") for beta in found}


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{text!r} is not numbers with commas between them", field="weights") from None


def _locate(model: str, progress: Progress, *, must_exist: bool = True) -> Path:
    if is_url(model):
        return fetch(model, progress)
    # A folder is opened as it is, so that adapters pass too; a path that looks local is no Hub id.
    local = Path(model)
    if local.is_dir() or not must_exist or local.is_absolute() or model.startswith((".", "~")):
        return local
    found = locate_model(ModelConfig(path=model), Path.cwd())
    if not is_adapter(found):
        check_model_folder(found, trust_remote_code=False)
    return found


def _merge_adapters(
    folders: Sequence[Path], weights: Sequence[float], wanted: Merging, base: Path | None, progress: Progress
) -> Answer:
    if base is None or wanted.output is None:
        raise InputError("name the model that the adapters were trained on", field="base")
    if wanted.adapter is None or (wanted.adapter != "exact" and not wanted.adapter.isdecimal()):
        raise InputError(f"{wanted.adapter!r} is neither `exact` nor a rank", field="adapter")
    rank = None if wanted.adapter == "exact" else int(wanted.adapter)
    result = merge_adapters(folders, weights, wanted.output, base=base, rank=rank, progress=progress)
    most = max(result.ranks.values(), default=0)
    lines = [f"merged {len(folders)} adapters into {wanted.output}, ranks up to {most}"]
    if rank is not None:
        worst = f", most of it in {result.worst_module}" if result.worst_module else ""
        lines.append(f"cut to rank {rank}: {result.truncation_error:.2%} of the update's norm is lost{worst}")
    return Answer(result, lines)


def _lines(result: MergeResult, places: Mapping[str, str]) -> list[str]:
    names = short_names([item.path for item in result.inputs])
    lines = [
        f"merged {plural(len(result.inputs), 'input')}, {result.parameters:,} parameters in {result.dtype}, "
        f"in {result.seconds:.1f} s"
        + (f"; {result.solved} of {result.tensors} tensors by {result.rule}, the rest averaged" if result.rule else "")
    ]
    for number, (item, name) in enumerate(zip(result.inputs, names, strict=True)):
        moved = f"  ‖θ−θ0‖ {result.branch_displacement[number]:.4g}" if result.branch_displacement else ""
        lines.append(f"  {item.weight:.4f}  {name}{moved}")
    for label, place in places.items():
        moved = f"  ‖θ−θ0‖ {result.displacement[label]:.4g}" if label in result.displacement else ""
        lost = f", rounding lost {result.rounding_error[label]:.2%} of it" if label in result.rounding_error else ""
        lines.append(f"β = {label}: {place}{moved}{lost}")
    return lines
