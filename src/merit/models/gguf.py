"""GGUF → a clean Hugging Face folder, once, into the cache."""

from __future__ import annotations

import contextlib
import io
import logging
import struct
import warnings
from importlib import util
from pathlib import Path

from merit.base.errors import InputError
from merit.base.files import safe_name, sha256_file
from merit.base.kept import made_once

_log = logging.getLogger(__name__)
# What the reader raises on truncated and damaged files: it trusts the lengths that it finds in them.
_DAMAGE = (
    *(ValueError, OSError, LookupError, ArithmeticError, TypeError, AttributeError, RuntimeError, MemoryError),
    struct.error,
)
_FORMAT = 1  # raise it when what is written changes, so that old conversions are made again


def convert_gguf(file: Path, cache: Path) -> Path:
    """The folder that holds `file` dequantised to float32. Made at the first call (about 20 s for 135M parameters).

    Raises:
        InputError: not a GGUF file that transformers can read, or the reader is not installed.
    """
    target = cache / f"{safe_name(file.stem)[:60]}-{sha256_file(file)[:16]}-v{_FORMAT}"
    return made_once(target, lambda part: _convert(file, part))


def _convert(file: Path, folder: Path) -> None:
    if util.find_spec("gguf") is None:
        raise InputError("reading GGUF needs the `gguf` package: pip install 'merit-tuning[demo]'", file=file)
    _log.info("converting %s to safetensors (once, into %s)", file.name, folder.parent)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from merit.models.loading import quiet_transformers

    quiet_transformers()
    try:
        # The reader draws a bar of its own, whatever the verbosity.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            loaded = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=torch.float32, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    except _DAMAGE as error:
        raise InputError(f"cannot be read as GGUF: {' '.join(str(error).split())[:200]}", file=file) from error
    # A model from GGUF remembers that it was quantised and refuses to be saved: rebuild it from config and weights.
    values = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        values.pop(key, None)
    config = type(loaded.config)(**values)
    with torch.device("meta"):
        clean = AutoModelForCausalLM.from_config(config)
    clean.load_state_dict(loaded.state_dict(), assign=True)
    clean.tie_weights()
    clean.generation_config = loaded.generation_config
    clean.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
