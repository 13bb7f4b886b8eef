"""`merit check`: everything that can be known to be wrong before a model is loaded."""

from __future__ import annotations

from pathlib import Path

from merit.data.check import CheckReport, check_mixture
from merit.data.encode import Encoder
from merit.errors import InputError
from merit.progress import SILENT, Progress
from merit.stages.context import RunContext
from merit.stages.preflight import preflight_problems


def check_run(path: Path, progress: Progress = SILENT) -> CheckReport:
    """Checks the configuration, what `preflight` does, and every row of every dataset. Writes nothing.

    Raises:
        InputError: the configuration cannot be read. All other problems are in the report.
    """
    context = RunContext.open(path, progress=progress)
    config = context.config
    found = preflight_problems(context)
    tokenizer = None
    try:
        tokenizer = context.tokenizer
        Encoder(tokenizer, config.train.max_length)
    except InputError as error:
        # Without θ0 there is no tokenizer, which says nothing new.
        if str(error) not in map(str, found):
            found.append(error)
        tokenizer = None
    return check_mixture(config, context.base, tokenizer, progress, found)
