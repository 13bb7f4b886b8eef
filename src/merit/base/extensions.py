"""Extensions: a splitter, merge rule, check, engine, data format or importer is one object in one file.

The file's name is the extension's name. So the configuration's schema and `--help` know every name without an import.
Built-in files are in the packages of `HOMES`. Yours are in a folder `merit_ext/KIND/` anywhere on the Python path (a
namespace package: it needs no `__init__.py`).
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, Literal

from merit.base.errors import InputError
from merit.base.files import sha256_file

Kind = Literal["splitters", "rules", "checks", "engines", "formats", "importers"]
# Kind → (the package of the built-in files, the attribute that holds a file's object)
HOMES: dict[Kind, tuple[str, str]] = {
    "splitters": ("merit.split.splitters", "SPLITTER"),
    "rules": ("merit.merge.rules", "RULE"),
    "checks": ("merit.diagnose.checks", "CHECK"),
    "engines": ("merit.jobs.engines", "ENGINE"),
    "formats": ("merit.data.formats", "FORMAT"),
    "importers": ("merit.data.importers", "IMPORTER"),
}
FOREIGN = "merit_ext"


@cache
def files(kind: Kind) -> dict[str, Path]:
    """Name → file of every extension of this kind: the built-in ones by name, then the others by name.

    Raises:
        InputError: a file in `merit_ext` has the name of another extension.
    """
    package, _ = HOMES[kind]
    found: dict[str, Path] = {}
    for folder in _folders(package) + _folders(f"{FOREIGN}.{kind}"):
        for file in sorted(folder.glob("[a-z]*.py")):
            if file.stem in found:
                raise InputError(f"there is another extension of this name: {found[file.stem]}", file=file)
            found[file.stem] = file
    return found


def names(kind: Kind) -> tuple[str, ...]:
    """The names of all extensions of this kind."""
    return tuple(files(kind))


def summary(kind: Kind, name: str) -> str:
    """The first line of the file's docstring, without importing or parsing the file; empty if there is none."""
    lines = files(kind)[name].read_text(encoding="utf-8", errors="replace").splitlines()
    first = next((line for line in lines if line and not line.startswith("#")), "")
    return first[3:].removesuffix('"""').strip() if first.startswith('"""') else ""


def summaries(kind: Kind) -> str:
    """The summaries of all extensions of this kind, in one paragraph."""
    return " ".join(filter(None, (summary(kind, name) for name in names(kind))))


def foreign(kind: Kind) -> list[str]:
    """The names of the extensions that are not built in."""
    return [name for name, file in files(kind).items() if file.parent.parent.name == FOREIGN]


@cache
def marks(kind: Kind, name: str) -> tuple[str, ...]:
    """What a fingerprint holds of an extension besides its name: the SHA-256 of its file in `merit_ext`, and of all
    files there that it imports, so that what an edited one made is made again. Nothing of a built-in one."""
    return tuple(map(sha256_file, _sources(files(kind)[name]))) if name in foreign(kind) else ()


def _sources(file: Path) -> list[Path]:
    """The file, and those below `merit_ext` that it imports, directly or not, by name."""
    found, todo = [file], [file]
    while todo:
        one = todo.pop()
        home = next(folder for folder in one.parents if folder.name == FOREIGN)
        here = (FOREIGN, *one.relative_to(home).parts[:-1])
        for module in sorted(_imported(one, here)):
            path = home.parent.joinpath(*module.split("."))
            known = (path.with_suffix(".py"), path / "__init__.py")
            new = [item for item in known if item.is_file() and item not in found]
            found += new
            todo += new
    return [file, *sorted(found[1:])]


def _imported(file: Path, package: tuple[str, ...]) -> set[str]:
    """The modules of `merit_ext` that a file of this package names when it imports; some may be objects in a module."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # importing it says so
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {item.name for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            names |= {module, *(f"{module}.{item.name}" for item in node.names)}
    return {name for name in names if name.partition(".")[0] == FOREIGN}


def stated(kind: Kind, name: str, keyword: str) -> Any:
    """The literal for `keyword` in the definition of the file's object, read without importing the file.

    Raises:
        InputError: the file is not Python, or the definition has no literal for `keyword`.
    """
    file, (_, attribute) = files(kind)[name], HOMES[kind]
    try:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                given = {item.arg: item.value for item in node.value.keywords}
                if [ast.unparse(target) for target in node.targets] == [attribute] and keyword in given:
                    return ast.literal_eval(given[keyword])
    except (SyntaxError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", file=file) from None
    raise InputError(f"defines no {attribute} with a literal `{keyword}`", file=file)


@cache
def load(kind: Kind, name: str) -> Any:
    """Imports the file and returns its object.

    Raises:
        InputError: there is no such extension; or its file cannot be imported, or defines no object of this kind.
    """
    if name not in files(kind):
        raise InputError(f"no {kind[:-1]} {name!r}; there are {', '.join(names(kind))}")
    package, attribute = HOMES[kind]
    try:
        module = importlib.import_module(f"{FOREIGN}.{kind}.{name}" if name in foreign(kind) else f"{package}.{name}")
    except (ImportError, SyntaxError) as error:
        raise InputError(f"cannot be imported: {error}", file=files(kind)[name]) from error
    if not hasattr(module, attribute):
        raise InputError(f"defines no {attribute}", file=files(kind)[name])
    return getattr(module, attribute)


def _folders(package: str) -> list[Path]:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # there is no `merit_ext`
        return []
    places = (spec.submodule_search_locations or ()) if spec is not None else ()
    return list(dict.fromkeys(Path(place).absolute() for place in places))  # a folder may be on the path twice
