"""The files beside the weights, which a merge takes over: tokenizer, chat template, processor, licence, code.

Files that belong together come from one folder: the first input that has any of them. One model's template with
another's tokenizer would be neither model's. So with its code.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from merit.base.errors import InputError
from merit.base.files import is_own, read_json, sha256_file
from merit.merge.side_notes import template_notes
from merit.models.tokens import TokenTable

_KEPT = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".py"}
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING")
_LEFT = ("config.json", "adapter_config.json", "trainer_state.json", "merit_merge.json")
_LEFT_ENDS = (".index.json", "_results.json")
_TEMPLATES = "additional_chat_templates"
_MAX_BYTES = 100_000_000  # a tokenizer is smaller; anything else is data
_TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens", "vocab.", "merges.", "chat_template", "spiece")
_TOKENIZER_ENDS = (".model", ".tiktoken")
_PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
              "image_processor_config.json")  # fmt: skip
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx")


def copy_side_files(sources: Sequence[Path], target: Path) -> None:
    """Copies what a loader needs beside weights; where several folders have it, the earlier one's is taken."""
    for file, name in _chosen(sources):
        if not (target / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            _copy(file, target / name)


def check_side_files(sources: Sequence[Path], *, saved: Collection[str] = ()) -> None:
    """Refuses a folder that cannot be copied whole. A linked licence is only left out.

    Args:
        saved: groups of files that training writes anew.

    Raises:
        InputError: a link to a file elsewhere, or a module with weights of its own; names it.
    """
    for file, _ in _chosen(sources, links=True):
        source = next(source for source in sources if file.is_relative_to(source))
        if _group(file.name) in saved or file.name.upper().startswith(_LEGAL):
            continue
        if not is_own(file, source):
            raise InputError(
                f"{file.name} is a link to a file outside this folder, which is not copied; put a copy in its place "
                f"(cp -rL {source} COPY)",
                file=source,
            )
    for module in _modules(sources[0]) if sources else ():
        for file in sorted(module.rglob("*")):
            if file.suffix in _WEIGHTS:
                raise InputError(
                    f"the module {module.name} has weights of its own, which are not merged; merge them apart and "
                    "remove its line from modules.json",
                    file=file,
                )


def side_marks(sources: Sequence[Path]) -> list[list[str]]:
    """Name and SHA-256 of every file that would be copied."""
    return [[name, sha256_file(file)] for file, name in _chosen(sources)]


def check_tokenizers(paths: Sequence[Path], base: Path | None, rows: int | None) -> list[str]:
    """Compares the tokens and templates of all inputs; the notes are differences without harm.

    Args:
        rows: of the input embeddings.

    Raises:
        InputError: one number stands for two tokens, or a token has no row.
    """
    notes: list[str] = []
    tables = [(path, TokenTable.read(path)) for path in dict.fromkeys((*paths, *([base] if base is not None else [])))]
    known = [(path, table) for path, table in tables if table is not None]
    for path, table in known[1:]:
        mine = known[0][1]
        note = mine.compare(table, may_lack=path == base)
        if note is not None:
            notes.append(f"{note}; the merge takes the former's tokenizer")
        elif _differ(mine.file, table.file):
            notes.append(
                f"{table.file} and {mine.file} have the same vocabulary but different settings; the merge takes the "
                "latter"
            )
    holders = [path for path, _ in tables if any(_group(file.name) == "tokenizer" for file in path.iterdir())]
    for path in holders[1:]:
        notes += template_notes(holders[0], path)
    if known and rows is not None:
        shared = known[-1][1].beyond(rows) if len(known) > 1 else {}
        for path, table in known:
            beyond = table.beyond(rows)
            for token, number in beyond.items():
                if path != base and token not in shared and len(tables) > 1:
                    raise InputError(
                        f"token {token!r} is number {number}, but the embeddings have {rows} rows", file=table.file
                    )
            if beyond and path == known[0][0]:
                token, number = next(iter(beyond.items()))
                notes.append(f"{table.file}: token {token!r} is number {number}, but the embeddings have {rows} rows")
    return notes


def _differ(mine: Path, theirs: Path) -> bool:
    return mine.name == theirs.name and mine.is_file() and theirs.is_file() and mine.read_bytes() != theirs.read_bytes()


def _chosen(sources: Sequence[Path], *, links: bool = False) -> Iterator[tuple[Path, str]]:
    """The files to copy, and their names below the target; `links`: those that lead elsewhere, too."""
    taken: dict[str, Path] = {}
    seen: set[str] = set()
    for number, source in enumerate(sources):
        for file in sorted(source.iterdir()):
            if not _wanted(file) or not (links or is_own(file, source)):
                continue
            group = _group(file.name)
            if file.name not in seen and taken.setdefault(group, source) == source:
                seen.add(file.name)
                yield file, file.name
        if taken.get("tokenizer") == source:
            for file in sorted((source / _TEMPLATES).glob("*.jinja")):
                if links or is_own(file, source):
                    yield file, f"{_TEMPLATES}/{file.name}"
        for module in _modules(source) if number == 0 else ():
            for file in sorted(module.rglob("*")):
                if file.is_file() and (links or is_own(file, source)):
                    yield file, file.relative_to(source).as_posix()


def _group(name: str) -> str:
    """Files of one group come from one folder; others each from the first that has it."""
    if name in _PROCESSOR:
        return "processor"
    if name.endswith(".py"):
        return "code"
    return "tokenizer" if name.startswith(_TOKENIZER) or name.endswith(_TOKENIZER_ENDS) else name


def _modules(source: Path) -> list[Path]:
    """The folders of sentence-transformers' modules, which modules.json lists."""
    value = read_json(source / "modules.json") if (source / "modules.json").is_file() else []
    names = [item.get("path") for item in value if isinstance(item, dict)] if isinstance(value, list) else []
    found = [source / name for name in names if isinstance(name, str) and name and Path(name).name == name]
    return [folder for folder in found if folder.is_dir() and not folder.is_symlink()]


def _wanted(file: Path) -> bool:
    if file.name in _LEFT or file.name.startswith(".") or file.name.endswith(_LEFT_ENDS):
        return False
    if not file.is_file() or file.stat().st_size > _MAX_BYTES:
        return False
    return file.suffix in _KEPT or file.name.upper().startswith(_LEGAL)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as handle:
        os.fsync(handle.fileno())
