"""A part of the hostile input campaign (`make hostile` is the whole), and proof that it would notice."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import surfaces_data
import surfaces_files
import surfaces_resume
import surfaces_run
import surfaces_weights
from end_to_end import run_case
from surface import attack
from surfaces_weights import PICKLE
from verdict import Room, limited_memory, open_room

from merit.base.errors import InputError

PART = 30  # of a campaign's cases, one is tried here
_MODULES = (surfaces_files, surfaces_data, surfaces_weights, surfaces_run, surfaces_resume)
SURFACES = {surface.name: surface for module in _MODULES for surface in module.SURFACES}


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    with open_room() as found:
        yield found
    surfaces_resume.remove_made()


@pytest.mark.parametrize("name", SURFACES)
def test_nothing_escapes(name: str, room: Room) -> None:
    surface = SURFACES[name]
    with limited_memory():
        tally = attack(surface, room, max(3, surface.count // PART), number=1)
    assert not tally.found
    assert tally.cases >= 3


@pytest.mark.parametrize("name", ["YAML bomb", "pickles alone", "a user's folder as output"])
def test_a_whole_command_refuses(name: str, room: Room) -> None:
    verdict = run_case(room, name)
    assert verdict.kind == "refused", verdict
    assert len(verdict.said.splitlines()) == 1


def _complain(text: str) -> Callable[[Path], Any]:
    def act(_: Path) -> None:
        raise InputError(text)

    return act


def _refuse_silently(_: Path) -> int:
    return 2


def _follow(case: Path) -> None:
    (case / "x").symlink_to("../secret/secret.json")
    (case / "x").read_text()


ESCAPES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "reads the canary": (lambda case: (case.parent / "secret" / "secret.json").read_text(), "opened the canary"),
    "follows a link to it": (_follow, "opened the canary"),
    "writes outside": (lambda case: (case.parent / "x").write_text("x") and None, "open for writing"),
    "removes outside": (lambda case: (case.parent / "x").unlink(), "os.remove"),
    "runs a program": (lambda _: subprocess.run(["true"], check=True) and None, "subprocess.Popen"),
    "loads a pickle": (lambda _: pickle.loads(PICKLE) and None, "pickle.find_class"),
    "looks for a host": (lambda _: socket.create_connection(("127.0.0.1", 9)), "socket."),
    "takes memory": (lambda _: len(bytearray(500 * 2**20)) and None, "MiB"),
    "drives the terminal": (lambda _: print("\x1b[2J"), "the terminal gets"),
    "says nothing": (_refuse_silently, "without a word"),
    "ends with another code": (lambda _: 3, "exit code 3"),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_the_judge_notices(name: str, room: Room) -> None:
    act, why = ESCAPES[name]
    verdict = room.judge(lambda _: None, lambda case: act(case))
    assert verdict.kind == "escaped"
    assert why in verdict.why


def test_the_judge_knows_a_refusal_from_an_accident(room: Room) -> None:
    def stumble(_: Path) -> None:
        raise KeyError("x")

    assert room.judge(lambda _: None, _complain("bad \x1b[2J \ud800")).kind == "refused"
    assert room.judge(lambda _: None, lambda _: None).kind == "accepted"
    assert room.judge(lambda _: None, stumble).kind == "traceback"


def test_code_of_a_model_would_run_with_leave(room: Room) -> None:
    """Otherwise the cases of remote code would show nothing."""
    from merit.config.sections import ModelConfig
    from merit.models.loading import load_tokenizer
    from merit.models.source import resolve_model

    config = {"model_type": "strange", "auto_map": {"AutoConfig": "modeling.Config"}}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": b"\x02\0\0\0\0\0\0\0{}"}

    def lay(case: Path) -> None:
        for name, content in files.items():
            (case / name).write_bytes(content)
        (case / "modeling.py").write_bytes(surfaces_weights.CODE.replace(b"@SECRET@", str(room.secret).encode()))

    def act(case: Path, *, leave: bool) -> None:
        load_tokenizer(resolve_model(ModelConfig(path=str(case), trust_remote_code=leave), case))

    assert room.judge(lay, lambda case: act(case, leave=False)).kind == "refused"
    verdict = room.judge(lay, lambda case: act(case, leave=True))
    (room.secret / "pwned").unlink(missing_ok=True)
    assert verdict.kind == "escaped"
