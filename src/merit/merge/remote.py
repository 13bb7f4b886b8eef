"""Inputs and outputs elsewhere (S3, GCS, SFTP, …) through fsspec: fetched once into the cache, sent when whole."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from merit.base.errors import InputError, StageError
from merit.base.files import open_url, url_errors
from merit.base.kept import made_once
from merit.base.progress import Progress
from merit.base.record import fingerprint
from merit.merge.record import MergeResult, load_record
from merit.models.input_sketch import sketch_file
from merit.models.source import cache_folder

_WANTED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
_SKETCH = sketch_file(Path()).as_posix()  # of a branch's inputs, in a folder of its own
_LAST = ("config.json", "model.safetensors.index.json", "merit_merge.json")  # a reader must not find these too early


def fetch(url: str, progress: Progress) -> Path:
    """A local copy of a remote folder of weights, in the cache. Fetched again when sizes or versions there change.

    Raises:
        InputError: no such folder, no access, or a protocol whose fsspec package is not installed.
    """
    system, root = open_url(url)
    try:
        found = [item for item in system.ls(root, detail=True) if item["type"] == "file"]
        wanted = sorted((item for item in found if item["name"].endswith(_WANTED)), key=lambda item: str(item["name"]))
        if not wanted:
            raise InputError("no weights or configuration in this folder", file=url)
        sketch = f"{root.rstrip('/')}/{_SKETCH}"
        wanted += [system.info(sketch)] if system.exists(sketch) else []
        versions = [f"{item['name']} {item['size']} {_version(item)}" for item in wanted]
        mark = hashlib.sha256("\n".join([url, *versions]).encode()).hexdigest()[:24]

        def get(part: Path) -> None:
            with progress.bar("fetch", total=len(wanted), unit="file") as bar:
                for done, item in enumerate(wanted, 1):
                    name = str(item["name"]).rsplit("/", 1)[-1]
                    target = part / (_SKETCH if str(item["name"]).endswith(f"/{_SKETCH}") else name)
                    target.parent.mkdir(exist_ok=True)
                    system.get_file(item["name"], str(target))
                    bar.update(done, note=name)

        return made_once(cache_folder() / "remote" / mark, get)
    except url_errors() as error:
        raise InputError(f"cannot be fetched: {error}", file=url) from error


def check_free(url: str) -> None:
    """Refuses to write where there is something already.

    Raises:
        InputError: there is, or the place cannot be reached.
    """
    system, root = open_url(url)
    try:
        taken = system.exists(root) and bool(system.ls(root))
    except url_errors() as error:
        raise InputError(f"cannot be reached: {error}", file=url, field="output") from error
    if taken:
        raise InputError("exists already; name a new folder, or remove it first", file=url, field="output")


def send_merge(
    merge: Callable[[Mapping[float, Path]], MergeResult], urls: Mapping[float, str], request: object, progress: Progress
) -> MergeResult:
    """Merges into the cache, sends each output to its URL, and removes it here.

    `request` tells one merge from another: a merge that was killed, or could not be sent, goes on when asked again.

    Raises:
        InputError: something is at a URL already, or what the merge refuses.
        StageError: a transfer failed; the merge is kept.
    """
    room = cache_folder() / "outgoing" / fingerprint([request, sorted(urls.items())])
    folders = {beta: room / f"{beta:g}" for beta in urls}
    if all(folder.is_dir() for folder in folders.values()):
        result = load_record(next(iter(folders.values()))).result
    else:
        for url in urls.values():
            check_free(url)
        result = merge(folders)
    for beta, folder in folders.items():
        send(folder, urls[beta], progress)
    shutil.rmtree(room)
    return result


def send(folder: Path, url: str, progress: Progress) -> None:
    """Copies a finished folder to `url`; what makes it look like a model goes last.

    Raises:
        StageError: the transfer failed; the local folder is kept.
    """
    system, root = open_url(url)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files.sort(key=lambda path: path.name in _LAST)
    try:
        with progress.bar("send", total=len(files), unit="file") as bar:
            for done, path in enumerate(files, 1):
                place = f"{root.rstrip('/')}/{path.relative_to(folder).as_posix()}"
                system.makedirs(place.rsplit("/", 1)[0], exist_ok=True)
                system.put_file(str(path), place)
                bar.update(done, note=path.name)
    except url_errors() as error:
        raise StageError(f"{url}: sending failed ({error}); the merge is whole in {folder}") from error


def _version(item: dict[str, Any]) -> str:
    return str(next((item[key] for key in ("ETag", "etag", "mtime", "LastModified", "updated") if key in item), ""))
