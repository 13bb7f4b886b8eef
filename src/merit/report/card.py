"""RUN/README.md: the run as a model card, in the Hub's format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from merit.base.errors import printable
from merit.base.files import write_text
from merit.base.words import count, duration, plain, plural
from merit.evaluate.scores import TableRow
from merit.merge.record import hub_id
from merit.report.evidence import Evidence, read_evidence
from merit.report.sections.asked import facts
from merit.report.table import table_markdown
from merit.report.verdict import reach_verdict
from merit.run.layout import RunDir

_CAPTION = (
    "Losses are nats a supervised token, unweighted means over datasets, ± one standard error over examples; "
    "★ marks the best. Drift is the loss on θ0's own answers to general prompts."
)
_USE = """
```python
from transformers import AutoTokenizer, {auto}

folder = "merged"  # in the run directory; on the Hub the model is at the repository's root
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto}.from_pretrained(folder)
```
"""


def write_run_card(root: Path) -> None:
    """Writes the card from what the run holds; a run that is not measured yet has none.

    Raises:
        InputError: it may not be written; a file of the run makes no sense.
    """
    run = RunDir(root)
    if run.table.is_file() and run.method().partition.is_file():
        evidence = read_evidence(root)
        if evidence.table is not None and evidence.main.partition is not None:
            write_text(run.card, run_card(evidence))


def run_card(evidence: Evidence) -> str:
    """The card as Markdown with the Hub's front matter."""
    name = printable(evidence.run.root.resolve().name)
    verdict = reach_verdict(evidence)
    front = metadata(evidence, name, verdict.merge if verdict else None)
    parts = ["---", front, "---", "", f"# {plain(name)}", "", _summary(evidence)]
    if verdict:
        parts += ["", f"**{_sentence(verdict.headline)}**"]
    sees = "pipeline_tag: image" in front
    parts += ["", "## Use", _USE.format(auto="AutoModelForImageTextToText" if sees else "AutoModelForCausalLM")]
    parts += ["## How it was made", "", *(f"- **{what}**: {_source(value)}" for what, value in facts(evidence)), ""]
    parts += [*_data(evidence), ""]
    if evidence.table:
        parts += ["## Results", "", table_markdown(evidence.table).rstrip(), "", _CAPTION]
        parts += [f"\n{_sentence(note)}" for note in evidence.table.notes]
    limits = _limits(verdict.caveats[:1] if verdict else [])
    parts += ["", "## Limits", "", *(f"- {_sentence(line)}" for line in limits)]
    parts += ["", "## Cost", "", *_cost(evidence), ""]
    parts += ["## Again", "", "```", "merit run config.yaml", "```", "", *_versions(evidence)]
    return "\n".join(parts).rstrip() + "\n"


def _summary(evidence: Evidence) -> str:
    groups = len(evidence.main.partition.groups) if evidence.main.partition else 0
    branches = f"{groups} branches of one init were" if groups > 1 else "One branch was"
    return (
        f"An instruction-tuned model made with MERIT: {branches} tuned without communication, each on its own group of "
        "datasets, and averaged once by supervised tokens. `report.html` tells the whole story, `config.yaml` makes it "
        "again."
    )


def _data(evidence: Evidence) -> Iterator[str]:
    """Every dataset with its source and the branch that it was trained in."""
    yield "## Training data"
    yield ""
    partition, mixture = evidence.main.partition, evidence.mixture
    if partition is None:
        return
    known = {item.name: item for item in mixture.datasets} if mixture else {}
    yield "| branch | dataset | source | examples | supervised tokens an epoch |"
    yield "| --- | --- | --- | ---: | ---: |"
    for k, group in enumerate(partition.groups):
        for name in group.datasets:
            item = known.get(name)
            cells = [_source(item.source), count(item.train.examples), count(item.planned_tokens)] if item else [""] * 3
            yield f"| {k} | {plain(name)} | {' | '.join(cells)} |"
    if mixture and mixture.unseen:
        names = ", ".join(plain(item.name) for item in mixture.unseen)
        yield ""
        yield f"Measured, and never trained on: {names}."


def _source(text: str) -> str:
    """A Hub id or a generator as it is; of a local path only the file's name, for a card is public."""
    local = text.startswith(("/", "~", ".")) or "\\" in text
    return plain(Path(text).name if local else text)


def _limits(caveats: Sequence[str]) -> list[str]:
    return [
        *caveats,
        "It says what its data taught it and what θ0 knew; it has not been made safe for any use beyond that, and "
        "nobody has tested it for bias or for harmful answers.",
        "It may be used only as the licenses of θ0 and of the datasets allow.",
    ]


def _cost(evidence: Evidence) -> Iterator[str]:
    results = evidence.main.results
    if results:
        tokens = sum(result.supervised_tokens for result in results)
        yield (
            f"{count(tokens)} supervised tokens; {duration(sum(result.seconds for result in results))} of training in "
            f"all, {duration(max(result.seconds for result in results))} in the longest branch."
        )
    else:
        yield "Not recorded."


def _versions(evidence: Evidence) -> list[str]:
    told = ", ".join(f"{name} {value}" for name, value in evidence.versions.items())
    return [f"Made with {plain(told)}."] if told else []


def _sentence(text: str) -> str:
    """Words of the report, whose backticks are code; everything else is without power, as a name is."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # one that is never closed
        return plain(text)
    return "`".join(piece if k % 2 else plain(piece) for k, piece in enumerate(pieces))


_TAGS = ["merit", "merge", "instruction-tuning", "conversational"]
_EMBEDDED = {"embedded:smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def metadata(evidence: Evidence, title: str, merge: TableRow | None) -> str:
    """YAML, without the lines of dashes. The license is the owner's to choose, and stays out."""
    from huggingface_hub import ModelCardData

    base = _base_model(evidence.config)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text" if _sees(evidence) else "text-generation",
        tags=_TAGS,
        base_model=base,
        base_model_relation="merge" if base else None,
        datasets=_datasets(evidence.config) or None,
        model_name=title,
        eval_results=_results(evidence, merge) or None,
    )
    return str(data.to_yaml()).strip()


def _base_model(config: dict[str, Any]) -> str | None:
    """θ0's Hub id, if it has one: local paths are absolute in a resolved configuration."""
    model = config.get("model")
    path = str(model.get("path") or "") if isinstance(model, dict) else ""
    return _EMBEDDED.get(path) or hub_id(path) or (path if _ID.fullmatch(path) else None)


def _datasets(config: dict[str, Any]) -> list[str]:
    mixture = config.get("mixture")
    entries = mixture.values() if isinstance(mixture, dict) else ()
    paths = [str(entry.get("path") or "") for entry in entries if isinstance(entry, dict)]
    return list(dict.fromkeys(path for path in paths if _ID.fullmatch(path)))


def _sees(evidence: Evidence) -> bool:
    return evidence.mixture is not None and any(item.images for item in evidence.mixture.datasets)


def _results(evidence: Evidence, merge: TableRow | None) -> list[Any]:
    from huggingface_hub import EvalResult

    if merge is None:
        return []
    task = "image-text-to-text" if _sees(evidence) else "text-generation"
    mixture = evidence.mixture
    inside = f"held-out examples of {plural(len(mixture.datasets), 'dataset')}" if mixture else "held-out examples"
    unseen = f"{plural(len(mixture.unseen), 'unseen dataset')}" if mixture else "unseen datasets"
    figures = [
        (inside, "merit-held-out", "loss", "loss, nats a supervised token", merge.in_mixture),
        (inside, "merit-held-out", "exact_match", "exact match", merge.exact),
        (unseen, "merit-unseen", "loss", "loss, nats a supervised token", merge.unseen),
    ]
    return [
        EvalResult(
            task_type=task,
            dataset_type=kind,
            dataset_name=dataset,
            metric_type=metric,
            metric_name=words,
            metric_value=round(value, 4),
        )
        for dataset, kind, metric, words, value in figures
        if value is not None
    ]
