"""`release/check_dist.py` sees what is missing, altered or stray in a wheel and an sdist."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
INFO = "merit_tuning-1.dist-info"
METADATA = "Metadata-Version: 2.4\nName: merit-tuning\nLicense-Expression: Apache-2.0\nRequires-Python: >=3.11\n"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_dist", ROOT / "release" / "check_dist.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def package() -> dict[str, bytes]:
    """The tracked files, by their names in an sdist."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listing.split("\0") if name and (ROOT / name).is_file()]
    return {name: (ROOT / name).read_bytes() for name in names}


def build(dist: Path, package: dict[str, bytes], **changes: bytes | None) -> None:
    """A wheel and an sdist of `package` with `changes`: None takes a file away."""
    files = {name.removeprefix("src/"): data for name, data in package.items() if name.startswith("src/merit/")}
    files |= {f"{INFO}/{name}": b"" for name in ("WHEEL", "RECORD", "licenses/LICENSE")}
    files |= {f"{INFO}/METADATA": METADATA.encode()}
    files |= {f"{INFO}/entry_points.txt": b"[console_scripts]\nmerit = merit.cli.main:main\n"}
    (dist / "tree").mkdir(parents=True)
    sdist = {**package, "PKG-INFO": b""}
    for name, data in changes.items():
        for where in (files, sdist):
            where.pop(name, None)
            if data is not None:
                where[name] = data
    for folder in (dist, dist / "tree"):
        with zipfile.ZipFile(folder / "merit_tuning-1-py3-none-any.whl", "w") as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name), data)
    with tarfile.open(dist / "merit_tuning-1.tar.gz", "w:gz") as archive:
        for name, data in sdist.items():
            member = tarfile.TarInfo(f"merit_tuning-1/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_what_is_right_passes(check: ModuleType, package: dict[str, bytes], tmp_path: Path, capsys):
    build(tmp_path / "dist", package)
    assert check.main(tmp_path / "dist") == 0
    assert "the same from sdist and repository" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("merit/py.typed", None, "merit/py.typed is missing"),
        ("merit/cli/main.py", b"x", "merit/cli/main.py is not what is in the repository"),
        ("merit/stray.txt", b"x", "merit/stray.txt is not in the repository"),
        ("tests/test_x.py", b"x", "tests/test_x.py is stray"),
        (f"{INFO}/entry_points.txt", b"", "there is no command `merit` in it"),
        (f"{INFO}/METADATA", b"Name: other\n", "Name is 'other', expected 'merit-tuning'"),
        ("../up", b"x", "is no plain file below merit_tuning-1"),
        ("runs/secret", b"x", "runs/secret is not in the repository"),
        ("LICENSE", None, "LICENSE is missing"),
    ],
)
def test_what_is_wrong_is_named(check: ModuleType, package, tmp_path: Path, capsys, name, data, words):
    build(tmp_path / "dist", package, **{name: data})
    assert check.main(tmp_path / "dist") == 1
    assert words in capsys.readouterr().out


def test_wheels_that_differ(check: ModuleType, package: dict[str, bytes], tmp_path: Path, capsys):
    build(tmp_path / "dist", package)
    with zipfile.ZipFile(tmp_path / "dist" / "tree" / "merit_tuning-1-py3-none-any.whl", "a") as archive:
        archive.comment = b"other"
    assert check.main(tmp_path / "dist") == 1
    assert "another than built from the repository" in capsys.readouterr().out
