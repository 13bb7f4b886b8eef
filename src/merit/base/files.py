"""Files: atomic writes, hashes, safe names, places elsewhere. Nobody sees half a file; no name leaves its folder."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from merit.base.errors import InputError, StageError, first_line

HALF_WRITTEN = ".part"
_UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
_MAX_JSON = 500_000_000  # bytes; tokenizers have tens of millions
_HASHERS = 8  # threads that hash; one disk serves more no faster
XXH3 = "xxh3:"  # begins a checksum that is an XXH3 and no SHA-256
_XXH3_CHUNK = 1 << 20  # bytes
_WORTH_THREADS = 2**26  # bytes; hashing fewer is done before threads have started


def disk_is_full(error: OSError) -> bool:
    """Whether a write failed because the disk is full. numpy's `tofile` gives no error number, only what it wrote."""
    short = re.fullmatch(r"\d+ requested and \d+ written", str(error))
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or (error.errno is None and short is not None)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a forbidden path into one clear line that names `path`.

    Raises:
        StageError: the disk is full; finished files stay.
        InputError: merit may not write the path.
    """
    try:
        yield
    except OSError as error:
        if disk_is_full(error):
            raise StageError(f"{path}: the disk is full; free some space and run again to resume") from error
        if error.errno in _UNUSABLE:
            raise InputError(f"cannot write here ({error.strerror})", file=path) from error
        raise


def fsync_dir(path: Path) -> None:
    """Makes a rename inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling of `path`; on success it is fsynced and renamed onto `path`, else removed."""
    part = path.with_name(f"{path.name}.{os.getpid()}{HALF_WRITTEN}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            with part.open("rb") as handle:
                os.fsync(handle.fileno())
            part.replace(path)
            fsync_dir(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yields an empty temporary sibling folder of `path`; on success it takes `path`'s place in one rename."""
    part = path.with_name(f"{path.name}.{os.getpid()}{HALF_WRITTEN}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            yield part
            for file in part.rglob("*"):
                if file.is_file():
                    with file.open("rb") as handle:
                        os.fsync(handle.fileno())
            if path.exists():
                shutil.rmtree(path)
            part.replace(path)
            fsync_dir(path.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def sweep_parts(folder: Path, *, below: bool = True, of: str | None = None, but: str | None = None) -> None:
    """Removes half-written files that killed processes left in `folder`, and `below` it. Hold the run's lock.

    Args:
        of: the only file whose leftovers are removed; default: all.
        but: a file that another process may be writing now.
    """
    pattern = f"{of or ''}*{HALF_WRITTEN}"
    for part in list(folder.rglob(pattern) if below else folder.glob(pattern)):
        if but is not None and part.name.startswith(f"{but}."):
            continue
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes atomically."""
    with atomic_path(path) as part:
        part.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, indented for people. NaN and infinity are refused: they are not JSON."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not UTF-8 has surrogates in Python, which JSON can escape
        text = json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path, *, parse_int: Callable[[str], int] = int) -> Any:
    """Reads a JSON file.

    Args:
        parse_int: converts the digits of an integer, or raises ValueError.

    Raises:
        InputError: the file is missing, unreadable or not JSON; names file and line.
    """
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode) or info.st_size > _MAX_JSON:  # reading a pipe may never end
            raise InputError(f"cannot be read: not a plain file, or larger than {_MAX_JSON:,} bytes", file=path)
        return json.loads(path.read_text(encoding="utf-8"), parse_int=parse_int)
    except FileNotFoundError as error:
        raise InputError("no such file", file=path) from error
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg}", file=path, line=error.lineno) from error
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, a number of a million digits, deep nesting
        raise InputError(f"cannot be read: {error}", file=path) from error


def matching(path: Path) -> list[Path]:
    """`path` itself if it is there; else what its folder has whose names fit its own, with `*` for any text, sorted.

    Raises:
        OSError: its folder cannot be read.
    """
    if path.exists():
        return [path]
    if "*" not in path.name or not path.parent.is_dir():
        return []
    name = re.compile(".*".join(map(re.escape, path.name.split("*"))), re.DOTALL)
    return sorted(item for item in path.parent.iterdir() if name.fullmatch(item.name))


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def xxh3_file(path: Path) -> str:
    """Hex XXH3 (128 bits) of a file's bytes: SHA-256 of 100 GB takes over a minute, each time."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as handle:
        while chunk := handle.read(_XXH3_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(checksum: str) -> Callable[[Path], str] | None:
    """What a checksum that says so itself was taken with; None for one that does not, such as a plain SHA-256."""
    return (lambda path: XXH3 + xxh3_file(path)) if checksum.startswith(XXH3) else None


def digest_files(paths: Sequence[Path], digest: Callable[[Path], str] = sha256_file) -> list[str | None]:
    """The checksum of each file; None for what is not a file.

    Raises:
        OSError: a file cannot be read. A disk that fails for a moment is no reason to repeat work.
    """

    def mark(path: Path) -> str | None:
        return digest(path) if path.is_file() else None

    if len(paths) < 2 or sum(path.stat().st_size for path in paths if path.is_file()) < _WORTH_THREADS:
        return [mark(path) for path in paths]
    with ThreadPoolExecutor(max_workers=min(len(paths), os.cpu_count() or 1, _HASHERS)) as pool:
        return list(pool.map(mark, paths))


def safe_name(name: str) -> str:
    """The file name for a dataset's name: injective, ASCII, at most 120 characters, never `.` or `..`.

    Plain names stay as they are. Any other keeps its readable characters and gets a hash of the whole name.
    """
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,79}", name):
        return name
    readable = re.sub(r"[^A-Za-z0-9_\-]+", "_", name)[:60].lstrip("-")  # never what looks like an option
    return f"{readable}~{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:16]}"


def is_own(file: Path, folder: Path) -> bool:
    """Whether `file` is a plain file inside `folder`, and not a link to a file elsewhere.

    merit copies files out of strangers' folders and may publish them: a link must not lead to the user's own files. In
    the Hub's cache a snapshot's files are links into the same repository.
    """
    home = folder.resolve()
    for part in (home, *home.parents):  # a subfolder of a snapshot, too
        if part.parent.name == "snapshots" and (part == home or part.parent.parent.name.startswith("models--")):
            home = part.parent.parent
            break
    return file.is_file() and file.resolve().is_relative_to(home)


def inside(root: Path, relative: str) -> Path:
    """`root / relative`, refused when it would leave `root` (through `..`, an absolute path or a symlink).

    Raises:
        InputError: the path escapes.
    """
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise InputError(f"the path {relative!r} leaves the run directory", file=root)
    return path


def is_url(text: str) -> bool:
    """Whether `text` is a URL, even one that lost a slash in `Path`."""
    return re.match(r"^[a-z][a-z0-9+.\-]+:/", text) is not None


def url_of(text: str) -> str:
    """The URL with all its slashes, which `Path` may have removed."""
    protocol, rest = text.split(":/", 1)
    if rest.startswith("/"):
        return text
    return f"{protocol}://{'/' if protocol == 'file' else ''}{rest}"


def open_url(url: str, *, field: str | None = None) -> tuple[Any, str]:
    """fsspec's file system of a URL (or of a local folder), and the path in it. `field` is the setting that names it.

    Raises:
        InputError: not a URL that fsspec knows, or its driver (s3fs, gcsfs, …) is not installed.
    """
    import fsspec

    refused: tuple[type[Exception], ...] = (ImportError, ValueError, *url_errors())
    try:
        system, root = fsspec.core.url_to_fs(url_of(url) if is_url(url) else url)
    except refused as error:
        raise InputError(f"cannot be opened: {first_line(error)}", file=url, field=field) from error
    return system, str(root)


def url_errors() -> tuple[type[Exception], ...]:
    """What a file system of fsspec raises when the place or the network fails: OSError and HTTP errors."""
    try:
        from aiohttp import ClientError
    except ImportError:
        return (OSError,)
    return (OSError, ClientError)
