"""What pyproject.toml asks for, what the constraints pin and what the workflows call agree with each other."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TOOLS = ("dev", "docs")  # of developers, who take the newest
NOT_TRIED = {"lmms-eval", "kaleido"}  # does not install beside the other extras; needs a browser


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked_for(*without: str) -> dict[str, Requirement]:
    extras = [lines for extra, lines in PROJECT["optional-dependencies"].items() if extra not in without]
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return {plain(found.name): found for found in map(Requirement, lines) if found.name != PROJECT["name"]}


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {plain(package): Version(version) for package, version in found}


def test_the_lower_bounds_are_those_that_are_tested():
    lowest = pins("constraints-min.txt")
    for name, requirement in asked_for(*TOOLS).items():
        if name in NOT_TRIED:
            continue
        bounds = {item.operator: Version(item.version) for item in requirement.specifier}
        assert bounds.get(">=") == lowest.pop(name), name
    assert not lowest, "pinned, and not asked for"


def test_the_pinned_versions_are_allowed():
    for name, version in pins("constraints.txt").items():
        requirement = asked_for().get(name)
        assert requirement is None or version in requirement.specifier, name


def test_every_library_that_is_imported_is_asked_for():
    """Also those that others would bring along: they may stop to."""
    owners = packages_distributions()
    wanted = {*asked_for(), plain(PROJECT["name"])}
    source = ROOT / "src" / "merit"
    imports = re.compile(r"^\s*(?:from|import) ([A-Za-z_]\w*)", re.MULTILINE)
    found = {name for file in source.rglob("*.py") for name in imports.findall(file.read_text(encoding="utf-8"))}
    missing = set()
    for name in found - set(sys.stdlib_module_names):
        packages = {plain(package) for package in owners.get(name, [])}
        if packages and not packages & wanted:
            missing.add(name)
    assert not missing - {"pydantic_core"}  # of pydantic, pinned to it


def steps() -> list[tuple[str, dict[str, object]]]:
    found = []
    for file in WORKFLOWS:
        for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values():
            found += [(file.name, step) for step in job["steps"]]
    return found


def test_actions_are_pinned_and_steps_are_targets():
    assert {file.name for file in WORKFLOWS} == {"test.yml", "campaigns.yml", "release.yml"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    for file, step in steps():
        if "uses" in step:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", str(step["uses"])), file
        else:
            command, target, *variables = str(step["run"]).split()
            assert command == "make", file
            assert target in targets or target == "${{", (file, target)
            assert target == "${{" or all("=" in word for word in variables), file


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_may_only_read(file: Path):
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_targets_of_a_matrix_are_there(file: Path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values():
        for target in job.get("strategy", {}).get("matrix", {}).get("target", []):
            assert re.search(rf"^{re.escape(target)}:", makefile, flags=re.M), target
