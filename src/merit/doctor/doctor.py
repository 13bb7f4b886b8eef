"""`merit doctor`: finds and loads a model, and has it examined."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from merit.base.progress import SILENT, Progress
from merit.config.sections import ModelConfig
from merit.models.source import EMBEDDED, resolve_model

if TYPE_CHECKING:
    from merit.doctor.finding import Diagnosis

DEFAULT = f"embedded:{next(iter(EMBEDDED))}"


def examine_model(path: str, progress: Progress = SILENT) -> Diagnosis:
    """Loads `path` (a Hub id, folder, .gguf file or embedded model) in fp32 and examines it.

    Raises:
        InputError: no such model, or one that cannot be loaded.
    """
    folder = resolve_model(ModelConfig(path=path), Path.cwd())
    from merit.doctor.examine import examine
    from merit.models.loading import load_model, load_tokenizer

    return examine(load_model(folder.path), load_tokenizer(folder), path, progress)
