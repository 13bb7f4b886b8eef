"""Stage `mixture`: reads every dataset, encodes it, splits it into train and held-out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from merit.base.record import fingerprint
from merit.context import RunContext, Step
from merit.data.build import build_mixture, source_fingerprints
from merit.data.format import format_marks

NAME = "mixture"


def depends(context: RunContext) -> dict[str, str]:
    """The configuration of the datasets, the content of their sources, and the tokenizer."""
    config = context.config
    datasets = [*config.mixture.values(), *config.evaluate.unseen.values()]
    return {
        "mixture": fingerprint(
            {name: item.mark for name, item in config.mixture.items()},
            {name: item.mark for name, item in config.evaluate.unseen.items()},
            config.held_out_fraction,
            config.train.max_length,
            *format_marks([item.format for item in datasets]),
        ),
        "sources": fingerprint(source_fingerprints(config, context.base)),
        "model": fingerprint(context.model.fingerprint, config.model.chat_template),
    }


def files(context: RunContext) -> list[Path]:
    """The files whose damage makes the step run again."""
    run = context.run
    return [run.mixture, *(run.data(name) for name in (*context.config.mixture, *context.config.evaluate.unseen))]


def run(context: RunContext) -> dict[str, Any]:
    """Writes data/*.arrow and mixture.json."""
    mixture = build_mixture(
        context.config, context.base, context.run, context.tokenizer, context.progress, again=NAME in context.redo
    )
    return {
        "datasets": len(mixture.datasets),
        "examples": sum(item.train.examples for item in mixture.datasets),
        "supervised_tokens": sum(item.train.supervised_tokens for item in mixture.datasets),
    }


def _says(context: RunContext) -> str:
    return f"reading {len(context.config.mixture)} datasets and encoding their examples"


STEP = Step(NAME, run, depends, says=_says, files=files)
