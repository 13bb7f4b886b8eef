"""`manual`: the user's own groups, from a JSON or YAML file `{group: [dataset, …]}`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merit.base.errors import InputError, Problems
from merit.config.yaml import read_yaml
from merit.split.partition import Group, Partition
from merit.split.splitter import SplitRequest, Splitter


def manual_partition(file: Path, tokens: Mapping[str, int]) -> Partition:
    """The groups of `file`, in its order. Every dataset of the mixture belongs to exactly one.

    Raises:
        InputError: the file cannot be read or has another form; a dataset is unknown, missing or named twice. Several
            such come together, as `Problems`.
    """
    content = _read(file)
    problems: list[InputError] = []
    owner: dict[str, str] = {}
    groups: list[Group] = []
    for field, members in content.items():
        if not isinstance(members, list) or not members or not all(isinstance(name, str) for name in members):
            problems.append(InputError("a group must be a non-empty list of dataset names", file=file, field=field))
            continue
        for position, name in enumerate(members):
            where = f"{field}[{position}]"
            if name not in tokens:
                near = difflib.get_close_matches(name, list(tokens), n=1)
                hint = f"; did you mean `{near[0]}`?" if near else ""
                problems.append(InputError(f"`{name}` is no dataset of the mixture{hint}", file=file, field=where))
            elif name in owner:
                problems.append(InputError(f"`{name}` is already in group `{owner[name]}`", file=file, field=where))
            owner.setdefault(name, field)
        groups.append(Group.of(members, tokens))
    missing = [name for name in tokens if name not in owner]
    if missing:
        problems.append(InputError(f"no group has {', '.join(f'`{name}`' for name in missing)}", file=file))
    if problems:
        raise problems[0] if len(problems) == 1 else Problems(problems)
    return Partition(splitter="manual", groups=groups, scores={}, cuts=[])


def _read(file: Path) -> dict[str, Any]:
    """JSON is YAML too, so one reader does for both."""
    missing = InputError("no such file; it should hold {group: [dataset, …]}", file=file, field="split.file")
    content, _ = read_yaml(file, missing=missing)
    if not isinstance(content, dict) or not content:
        raise InputError("must hold a mapping {group: [dataset, …]}", file=file)
    return content


def _partition(request: SplitRequest) -> Partition:
    if request.file is None:
        raise InputError("the `manual` splitter needs a file of groups", field="split.file")
    return manual_partition(request.file, request.tokens)


SPLITTER = Splitter(label="manual split", how="by hand", partition=_partition, role="control", needs_file=True)
