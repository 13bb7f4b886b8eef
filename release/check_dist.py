"""Is what was built what is in the repository: nothing missing, nothing stray, and sdist → wheel gives the same wheel?

    python release/check_dist.py DIST

DIST holds one sdist, the wheel that was built from it, and `tree/` with the wheel that was built from the repository.
Prints what it found; exit code 1 and a line a problem otherwise.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What must be importable as data, whatever else is there.
NEEDED = (
    "py.typed",
    "cli/demo.yaml",
    "cli/demo_vision.yaml",
    "report/templates/report.html.j2",
    "report/assets/report.css",
)
METADATA = {"Name": "merit-tuning", "License-Expression": "Apache-2.0", "Requires-Python": ">=3.11"}


def main(dist: Path) -> int:
    wheel, sdist, tree = _one(dist, "*.whl"), _one(dist, "*.tar.gz"), _one(dist / "tree", "*.whl")
    problems = [*_wheel(wheel), *_sdist(sdist)]
    if hashlib.sha256(wheel.read_bytes()).digest() != hashlib.sha256(tree.read_bytes()).digest():
        problems.append(f"{wheel.name}: built from the sdist it is another than built from the repository")
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, the same from sdist and repository")
        print(f"{sdist.name}: {sdist.stat().st_size:,} bytes")
    return 1 if problems else 0


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{folder}: expected one {pattern}, found {len(found)}; `make dist` builds them")
    return found[0]


def _tracked(folder: str) -> set[str]:
    listing = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()}


def _wheel(wheel: Path) -> Iterator[str]:
    """Problems: against the tracked files below src/merit, byte by byte."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        package = {name for name in names if name.startswith("merit/")}
        expected = {name.removeprefix("src/"): ROOT / name for name in _tracked("src/merit")}
        yield from (f"{wheel.name}: {name} is missing" for name in sorted(expected.keys() - package))
        yield from (f"{wheel.name}: {name} is not in the repository" for name in sorted(package - expected.keys()))
        for name in sorted(package & expected.keys()):
            if archive.read(name) != expected[name].read_bytes():
                yield f"{wheel.name}: {name} is not what is in the repository"
        yield from (f"{wheel.name}: merit/{name} is missing" for name in NEEDED if f"merit/{name}" not in package)
        info = next((name.split("/")[0] for name in names if name.endswith(".dist-info/METADATA")), "")
        allowed = {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
        yield from (f"{wheel.name}: {name} is stray" for name in sorted(names - package - allowed))
        yield from (f"{wheel.name}: {name} is missing" for name in sorted(allowed - names))
        if allowed <= names:
            metadata = BytesParser().parsebytes(archive.read(f"{info}/METADATA"))
            for field, value in METADATA.items():
                if metadata[field] != value:
                    yield f"{wheel.name}: {field} is {metadata[field]!r}, expected {value!r}"
            if "merit = merit.cli.main:main" not in archive.read(f"{info}/entry_points.txt").decode():
                yield f"{wheel.name}: there is no command `merit` in it"


def _sdist(sdist: Path) -> Iterator[str]:
    """Problems: everything in it is tracked, and nothing but plain files below its own folder."""
    top = sdist.name.removesuffix(".tar.gz")
    tracked = _tracked(".")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    names = set()
    for member in members:
        head, _, name = member.name.partition("/")
        if head != top or ".." in Path(member.name).parts or not member.isreg():
            yield f"{sdist.name}: {member.name} is no plain file below {top}"
        names.add(name)
    yield from (f"{sdist.name}: {name} is not in the repository" for name in sorted(names - tracked - {"PKG-INFO"}))
    needed = _tracked("src/merit") | {"pyproject.toml", "README.md", "LICENSE"}
    yield from (f"{sdist.name}: {name} is missing" for name in sorted(needed - names))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")))
