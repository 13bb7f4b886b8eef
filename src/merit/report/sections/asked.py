"""The first chapter and the last: what was asked, and how to do it again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merit.base import extensions
from merit.base.words import compact, count, plural, series
from merit.data.mixture import DatasetSummary, Mixture, Rendered
from merit.report.drawing import DataTable
from merit.report.evidence import Evidence
from merit.report.page import Section

_EXAMPLE_CHARS = 1500


def asked(evidence: Evidence) -> Section:
    """What was asked."""
    mixture = evidence.mixture
    context: dict[str, Any] = {"facts": list(facts(evidence)), "mixture": None, "unseen": None, "examples": []}
    if mixture:
        context |= {
            "mixture": _table(mixture.datasets),
            "unseen": _table(mixture.unseen, trained=False) if mixture.unseen else None,
            "max_length": mixture.max_length,
            "examples": [
                (item.name, list(_capped(item.rendered[0].pieces)), _pictures(item.rendered[0]))
                for item in mixture.datasets
                if item.rendered
            ],
        }
    return Section("asked", "What was asked", "asked", context)


def facts(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """What was asked, in a line each: what it is, and its value."""
    config = evidence.config
    model = config.get("model")
    if isinstance(model, dict) and model.get("path"):
        revision = f", revision {model['revision']}" if model.get("revision") else ""
        yield "Shared init θ0", f"{model['path']}{revision}"
    if evidence.mixture:
        yield "Mixture", _mixture_words(evidence.mixture)
    partition = evidence.main.partition
    split = _section(config, "split")
    if partition or split:
        splitter = partition.splitter if partition else str(split.get("splitter"))
        groups = plural(len(partition.groups), "group") if partition else f"{split.get('axes')} axes"
        yield "Splitter", f"{splitter}, {groups}"
    train = _section(config, "train")
    if train:
        kind = "LoRA" if train.get("lora") else "full fine-tuning"
        epochs = _plain(train.get("epochs"))
        yield (
            "Recipe",
            f"{kind}, {epochs} epoch{'' if epochs == '1' else 's'}, learning rate {train.get('learning_rate')}, "
            f"about {train.get('batch_tokens')} tokens a step, schedule {train.get('schedule')}",
        )
    rule = _section(config, "merge").get("weights")
    if rule in extensions.names("rules"):
        yield "Merge rule", extensions.summary("rules", rule).replace("`", "").removesuffix(".")
    if evidence.merges:
        own = rule if isinstance(rule, str) else "the same rule"
        merges = [f"{item.name} ({item.rule or own}, the branches of {item.branches})" for item in evidence.merges]
        yield "Merged once more", series(merges)
    if len(evidence.methods) > 1:
        told = [
            f"{method.name} ({method.partition.splitter})" if method.partition else method.name
            for method in evidence.methods[1:]
        ]
        yield "Compared with", series(told)
    if "seed" in config:
        yield "Seed", str(config["seed"])


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _mixture_words(mixture: Mixture) -> str:
    examples = sum(item.train.examples for item in mixture.datasets)
    tokens = sum(item.planned_tokens for item in mixture.datasets)
    unseen = f"; {plural(len(mixture.unseen), 'unseen dataset')} only measured" if mixture.unseen else ""
    return (
        f"{plural(len(mixture.datasets), 'dataset')}, {plural(examples, 'training example')}, "
        f"{compact(tokens)} supervised tokens an epoch{unseen}"
    )


def _table(datasets: list[DatasetSummary], *, trained: bool = True) -> DataTable:
    header = ["dataset", "source", "format", *(["training"] if trained else []), "held out"]
    header += [*(["supervised tokens"] if trained else []), "median length"]
    weighted = any(item.weight != 1 for item in datasets)
    dropped = any(
        item.truncated or item.duplicates or item.skipped or item.bad_images or item.bad_rows for item in datasets
    )
    rows = []
    for item in datasets:
        row = [
            item.name,
            _short_path(item.source),
            item.format,
            *([count(item.train.examples)] if trained else []),
            count(item.held_out.examples),
            *([count(item.train.supervised_tokens)] if trained else []),
            count(item.length_quantiles.get("0.5", 0)),
        ]
        row += [f"{item.weight:g}"] * weighted + [_dropped(item)] * dropped
        rows.append(row)
    return DataTable(header + ["weight"] * weighted + ["left out or cut"] * dropped, rows)


def _short_path(source: str) -> str:
    """A file's name and folder: a whole path is wider than all other columns. Other sources as they are."""
    path = Path(source)
    return str(Path("…", *path.parts[-2:])) if path.is_absolute() and len(path.parts) > 3 else source


def _dropped(item: DatasetSummary) -> str:
    parts = [
        f"{count(number)} {word}"
        for number, word in (
            (item.truncated, "truncated"),
            (item.duplicates, "duplicates"),
            (item.skipped, "beyond the cap"),
            (item.bad_images, "with bad images"),
            (item.bad_rows, "bad rows"),
        )
        if number
    ]
    return ", ".join(parts) or "–"


def _pictures(rendered: Rendered) -> list[str]:
    """Small images that merit itself made. An address of any other kind could make a reader's browser fetch it."""
    return [image for image in rendered.images if re.fullmatch(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", image)]


def _capped(pieces: list[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
    left = _EXAMPLE_CHARS
    for text, supervised in pieces:
        if text and left > 0:
            yield (text if len(text) <= left else text[:left] + " …"), supervised
            left -= len(text)


_PACKAGES = {"merit": "merit-tuning"}  # as pip knows them
_NOT_PACKAGES = ("python", "git_commit", "git commit", "commit")


def reproduce(evidence: Evidence) -> Section:
    """How to do it again."""
    versions = evidence.versions
    # "2.9.0+cpu" names a build of one index; any index has 2.9.0.
    pins = [
        f"{_PACKAGES.get(name, name)}=={value.partition('+')[0]}"
        for name, value in versions.items()
        if name not in _NOT_PACKAGES
    ]
    context = {
        "pins": " ".join(f"'{pin}'" for pin in pins),
        "versions": DataTable(["what", "version"], [[name, value] for name, value in versions.items()])
        if versions
        else None,
        "seed": evidence.config.get("seed"),
        "config": evidence.config_text,
        "problems": evidence.problems,
    }
    return Section("reproduce", "How to do it again", "reproduce", context)
