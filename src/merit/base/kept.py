"""Kept results: is the result of an earlier call whole, and is it still valid? Only this file decides.

A result is a record, one small JSON file that is written last, and perhaps files that it names. The record has the
fingerprints of what the result depends on, and the checksums of its files. `keep` writes it. `kept` reads it, and
returns it only if all of that still holds. A folder without a record appears in one rename: `made_once`.
A journal, which only grows, is whole line by line: `checked_lines`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

from merit.base.errors import InputError
from merit.base.files import HALF_WRITTEN, atomic_dir, digest_files, digest_of, inside, sha256_file
from merit.base.record import Record

KindT = TypeVar("KindT", bound=Record)
Digest = Callable[[Path], str]


class _NamesFiles(Protocol):
    @property
    def files(self) -> Mapping[str, str]: ...


@dataclass(frozen=True)
class Kept(Generic[KindT]):
    """What was found.

    Attributes:
        record: None unless everything holds.
        why: why it does not, in words; empty if nothing was ever kept.
        changed: the dependencies that are different now.
        damaged: the files that have changed since they were written, or are gone.
    """

    record: KindT | None = None
    why: str = ""
    changed: tuple[str, ...] = ()
    damaged: tuple[Path, ...] = ()

    @property
    def fresh(self) -> bool:
        """Whether the result may be used as it is."""
        return self.record is not None


@dataclass(frozen=True)
class Files:
    """How to check the files that a record names (`files`: name → checksum).

    Attributes:
        root: the folder that their names are relative to.
        digest: how to hash a file; None: it only has to exist, because its bytes are checked before they are used.
        alone: whether any other file below `root`, except the record, counts as damage.
        always: check them even if the record is no longer valid: damaged files must go, the others may be of use.
    """

    root: Path
    digest: Digest | None = sha256_file
    alone: bool = False
    always: bool = False


def kept(
    path: Path, kind: type[KindT], depends: Mapping[str, Any] | None = None, files: Files | None = None
) -> Kept[KindT]:
    """The record at `path`, if it and its files are whole and it is still valid.

    Args:
        depends: field of the record → the value that it must have now. Mappings are compared key by key; a set holds
            all values that are allowed.
        files: how to check its files; None: it has none.

    Raises:
        OSError: a file cannot be read. A disk that fails for a moment is no reason to repeat work.
    """
    try:
        record = kind.load(path)
    except InputError:
        return Kept(why="its record is damaged" if path.exists() else "")
    names = dict(cast(_NamesFiles, record).files) if files is not None else {}
    if files is not None and not all(_own(files.root, name) for name in names):
        return Kept(why="its record is damaged")
    changed = tuple(sorted(_changed(record, depends or {})))
    look = files is not None and (files.always or not changed)
    wrong = _wrong(files, names, path) if files is not None and look else []
    if not changed and not wrong:
        return Kept(record)
    why = [f"{', '.join(changed)} changed"] if changed else []
    why += [f"{', '.join(wrong)} damaged or gone"] if wrong else []
    return Kept(None, "; ".join(why), changed, tuple(files.root / name for name in wrong) if files else ())


def keep(path: Path, record: KindT, root: Path, files: Iterable[Path], digest: Digest = sha256_file) -> KindT:
    """Saves `record` at `path` with the checksums of `files`, and returns it. Call it when all files are on disk.

    Args:
        root: the folder that the names of `files` are relative to.
    """
    record = record.model_copy(update={"files": checksums(root, files, digest)})
    record.save(path)
    return record


def checksums(root: Path, files: Iterable[Path], digest: Digest = sha256_file) -> dict[str, str]:
    """Name relative to `root` → checksum, without what is not a file."""
    paths = list(files)
    marks = zip(paths, digest_files(paths, digest), strict=True)
    return {path.relative_to(root).as_posix(): mark for path, mark in marks if mark is not None}


def damaged(root: Path, files: Mapping[str, str], digest: Digest = sha256_file) -> dict[str, str]:
    """Those of `files` (name relative to `root` → checksum) that have another checksum now → `gone` or `changed`.

    A checksum that says what it was taken with (`digest_of`) is compared by that, whatever `digest` is.
    """
    by = {root / name: digest_of(mark) or digest for name, mark in files.items()}
    marks = digest_files([root / name for name in files], lambda path: by[path](path))
    return {
        name: "gone" if now is None else "changed"
        for (name, mark), now in zip(files.items(), marks, strict=True)
        if now != mark
    }


def files_below(root: Path, *but: str) -> list[Path]:
    """All plain files below `root`, in order, except half-written ones and those with a name in `but`."""
    found = (path for path in root.rglob("*") if path.is_file() and path.suffix != HALF_WRITTEN)
    return sorted(path for path in found if path.name not in but)


def made_once(folder: Path, make: Callable[[Path], None], *, holds: str = ".") -> Path:
    """`folder`, which `make` fills at the first call. It appears in one rename, so it is whole if it exists.

    Args:
        holds: a file that it must hold; without this file it is made again.
    """
    if not (folder / holds).exists():
        with atomic_dir(folder) as part:
            make(part)
    return folder


def checked_line(value: Mapping[str, Any]) -> bytes:
    """A line of a journal: `value`, which is not empty, as JSON with a checksum of itself."""
    text = json.dumps(value, separators=(",", ":"))
    return f'{{"check":{zlib.crc32(text.encode())},{text[1:]}\n'.encode()


def checked_lines(raw: bytes) -> tuple[list[dict[str, Any]], int]:
    """The values of a journal's lines up to the first that a kill has torn, or that is damaged; and their length in
    bytes. What follows such a line is worth nothing, because lines are only appended."""
    values, size = [], 0
    for line in raw.splitlines(keepends=True):
        try:
            value = json.loads(line)
            del value["check"]
            if checked_line(value) != line:
                break
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        values.append(value)
        size += len(line)
    return values, size


def _changed(record: Record, depends: Mapping[str, Any]) -> set[str]:
    found = set()
    for field, now in depends.items():
        then = getattr(record, field)
        if isinstance(now, Mapping):
            found |= {name for name in {*now, *then} if now.get(name) != then.get(name)}
        elif then not in now if isinstance(now, set | frozenset) else then != now:
            found.add(field)
    return found


def _wrong(files: Files, names: Mapping[str, str], record: Path) -> list[str]:
    if files.digest is None:
        return [name for name in names if not (files.root / name).is_file()]
    below = files_below(files.root) if files.alone else []
    others = {path.relative_to(files.root).as_posix() for path in below if path != record}
    return [*damaged(files.root, names, files.digest), *sorted(others - {*names})]


def _own(root: Path, name: str) -> bool:
    """Whether a record may name this file. Damaged files are removed, and a stranger's record must not choose them."""
    try:
        return not inside(root, name).is_dir()
    except (InputError, ValueError, OSError):
        return False
