"""The model card of a merged folder: what it was made of, how to check it, how to make it again."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import yaml

from merit.base import extensions
from merit.base.errors import InputError
from merit.base.files import write_text
from merit.base.words import code_cell, plain
from merit.merge.recipe import mergekit_recipe
from merit.merge.record import MergeRecord, hub_id, load_record, short_names
from merit.merge.rule import MergeRule, find_rule

CARD = "README.md"


def write_card(
    folder: Path,
    *,
    title: str | None = None,
    datasets: Sequence[Sequence[str]] = (),
    missing: Sequence[Sequence[str]] = (),
    rule: MergeRule | None = None,
) -> None:
    """(Re)writes the card of a merged folder.

    Args:
        title: its heading; default: the folder's name.
        datasets: the names of the datasets that each input was trained on, where they are known.
        missing: the datasets of each branch that was planned and not finished.
        rule: what merged them. A rule of sums made a checkpoint first, and that is the merge's only input.

    Raises:
        InputError: merit did not merge this folder.
    """
    record = load_record(folder)
    if rule is not None and rule.sums is not None:
        card = merge_card(record, title or folder.name, [[name for group in datasets for name in group]], recipe=False)
    else:
        card = merge_card(record, title or folder.name, datasets)
    if rule is not None:
        card += f"\n**{rule.label[0].upper()}{rule.label[1:]}**: the branches were merged {plain(rule.how)}.\n"
    if missing:
        names = "; ".join(", ".join(map(plain, group)) for group in missing)
        left_out = f"{len(missing)} of the planned branches were not finished and are not in this model"
        card += f"\n**Partial**: {left_out}: {names}.\n"
    write_text(folder / CARD, card)


def merge_card(record: MergeRecord, title: str, datasets: Sequence[Sequence[str]] = (), *, recipe: bool = True) -> str:
    """The card as Markdown with the Hub's front matter; `recipe`: with mergekit's, where there is one."""
    result = record.result
    known = [*result.inputs, *([result.base] if result.base else [])]
    names = [plain(name) for name in short_names([item.path for item in known])]
    hub = [name for item in known if (name := hub_id(item.path))]
    front: dict[str, object] = {"library_name": "transformers", "tags": ["merge", "merit"]}
    if hub:
        front |= {"base_model": list(dict.fromkeys(hub)), "base_model_relation": "merge"}
    parts = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {plain(title)}", ""]
    parts += [_summary(record, names[-1] if result.base else None), ""]
    head = ["input", "share", "fingerprint", *(["datasets"] if datasets else [])]
    parts += ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" + " --- |" * (len(head) - 2)]
    for number, item in enumerate(result.inputs):
        row = [names[number], f"{item.weight:.6g}", f"`{item.fingerprint}`"]
        if datasets:
            row.append(", ".join(map(plain, datasets[number])) if number < len(datasets) else "")
        parts.append("| " + " | ".join(row) + " |")
    parts += ["", *_figures(record), *_rules(record), *_notes(record)]
    parts += ["## Check it", "", "```", "merit merge --verify .", "```", ""]
    parts += ["| shard | checksum |", "| --- | --- |"]
    parts += [f"| {name} | `{digest}` |" for name, digest in result.checksums[record.label].items()]
    with contextlib.suppress(InputError):
        text = mergekit_recipe(record, names) if recipe else ""
        parts += ["", "## As a mergekit recipe", "", "```yaml", text.strip(), "```"] if text else []
    return "\n".join([*parts, "", f"Made with merit {result.version}.", ""])


def _summary(record: MergeRecord, base: str | None) -> str:
    result = record.result
    if record.scale is None:
        return (
            f"Running sums Σ n_k θ_k of {len(result.inputs)} checkpoints in float64: not a model, but what a late "
            "branch is added to."
        )
    count = len(result.inputs)
    mean = f"the weighted average of {count} fine-tuned checkpoints" if count > 1 else "one fine-tuned checkpoint"
    if result.rule is not None:
        label = find_rule(result.rule).label if result.rule in extensions.names("rules") else result.rule
        mean = f"the {label} of {count} fine-tuned checkpoints"
    what = mean[0].upper() + mean[1:]
    if record.scale != 1:
        what = f"θ0 + β(θ̄ − θ0) at β = {record.scale:g}: on the ray from θ0 to θ̄, {mean}"
    where = f", tuned from {base} (θ0)" if base else ""
    if result.rule is not None:
        where += (
            f". {result.solved} of {result.tensors} tensors are its own, ridge {result.ridge:g}; others are averages"
        )
    if result.outer is not None:
        where += (
            f". An outer step goes there from the merge of the round before, rate {result.outer.rate:g}, Nesterov "
            f"momentum {result.outer.momentum:g}"
        )
    return (
        f"{what}{where}. {result.parameters:,} parameters in {result.dtype}, summed in float64 and rounded once "
        f"({result.rounding})."
    )


def _figures(record: MergeRecord) -> list[str]:
    result = record.result
    if not result.displacement or record.scale is None:
        return []
    rows = ["| distance from θ0 | |", "| --- | ---: |", f"| this model | {result.displacement[record.label]:.4g} |"]
    rows += [f"| input {n + 1} | {moved:.4g} |" for n, moved in enumerate(result.branch_displacement)]
    rows.append(f"| rounding error, of this model's distance | {result.rounding_error[record.label]:.2%} |")
    return [*rows, ""]


def _rules(record: MergeRecord) -> list[str]:
    rows = [
        f"| {code_cell(rule.pattern)} | {', '.join(f'{w:g}' for w in rule.weights)} |" for rule in record.result.rules
    ]
    return ["| tensors that match | weights |", "| --- | --- |", *rows, ""] if rows else []


def _notes(record: MergeRecord) -> list[str]:
    return [*(f"- {plain(note)}" for note in record.result.notes), ""] if record.result.notes else []
