"""Whole commands in processes of their own: what a person at a terminal gets from a hostile folder."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from surface import Tally
from surfaces_data import as_lines, rows_of
from surfaces_files import BOMBS
from surfaces_resume import split_run, tiny_model
from surfaces_run import finished
from surfaces_weights import ADAPTER, ADAPTER_CONFIG, CODE, CONFIG, HEADER, INDEX, PICKLE, SINGLE, safetensors
from values import as_json, as_yaml
from verdict import Room, Verdict, seen_on_terminal

_MEMORY = 16 * 2**30  # address space; torch alone maps several
_SECONDS = 300
_CHECKED = {"model": "model", "mixture": {"x": {"path": "x.jsonl"}}, "split": {"splitter": "single"}}
ESCAPES = "\x1b[2J\x1b]0;owned\x07"

Lay = Callable[[Path], None]


def files(content: dict[str, bytes], below: str = ".") -> Lay:
    """Lays files in the folder `below`."""

    def lay(folder: Path) -> None:
        for name, value in content.items():
            path = folder / below / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value.replace(b"@SECRET@", str(folder.parent / "secret").encode()))

    return lay


def both(*parts: Lay) -> Lay:
    return lambda folder: [part(folder) for part in parts] and None


def model(folder: Path) -> None:
    """A good one, as `model`."""
    tiny_model(folder / "model")


def _robbing_record(folder: Path) -> None:
    """A stage record that calls the user's folder a damaged result of this run, to have it removed."""
    files(split_run(), "run")(folder)
    record = folder / "run" / ".merit" / "mixture.json"
    value = json.loads(record.read_text(encoding="utf-8"))
    record.write_bytes(as_json({**value, "files": {"../../secret": "0", **value["files"]}}))


def _odd_names(folder: Path) -> None:
    for number, name in enumerate((f"a{ESCAPES}.jsonl", "<script><b>.jsonl", "..jsonl", "-rf.jsonl", "[red].jsonl")):
        (folder / name).write_bytes(as_lines([rows_of("qa", 10 * number + row) for row in range(3)]))


def _hostile_names() -> dict[str, bytes]:
    run = dict(finished())
    text = f"</script><script>alert(1)</script>{ESCAPES}"
    for name in ("mixture.json", "split/partition.json", "conflict/conflict.json", "conflict/axes.json"):
        run[name] = run[name].replace(b'"one"', json.dumps(text).encode())
    return run


_GOOD = as_lines([rows_of("qa", number) for number in range(9)])
_OUTSIDE = as_lines([{**rows_of("image", number), "image": "../secret/secret.png"} for number in range(9)])
_CODE = {**CONFIG, "model_type": "strange", "auto_map": {"AutoConfig": "modeling.X"}}
_SHARDS = {"weight_map": {"w": "../../secret/model.safetensors"}}
_ADAPTER = {**ADAPTER_CONFIG, "base_model_name_or_path": "@SECRET@"}
_NAMED = {**_CHECKED, "mixture": {ESCAPES: {"path": f"{ESCAPES}.jsonl"}}}
_CHECK, _MERGE = "check c.yaml", "merge m m -o out"

# Name → what lies in the folder, the command, and the exit codes that are right.
CASES: dict[str, tuple[Lay, str, tuple[int, ...]]] = {
    "YAML bomb": (files({"c.yaml": BOMBS[4]}), _CHECK, (2,)),
    "Python object in YAML": (files({"c.yaml": BOMBS[16]}), _CHECK, (2,)),
    "deep JSON": (both(model, files({"c.yaml": as_yaml(_CHECKED), "x.jsonl": b"[" * 3_000_000})), _CHECK, (2,)),
    "escapes in a name": (files({"c.yaml": as_yaml(_NAMED)}), _CHECK, (2,)),
    "image outside": (both(model, files({"c.yaml": as_yaml(_CHECKED), "x.jsonl": _OUTSIDE})), _CHECK, (2,)),
    "code of a model": (
        both(
            files({"c.yaml": as_yaml(_CHECKED), "x.jsonl": _GOOD}),
            files({"config.json": as_json(_CODE), SINGLE: safetensors(HEADER), "modeling.py": CODE}, "model"),
        ),
        _CHECK,
        (2,),
    ),
    "a user's folder as output": (
        files({"c.yaml": as_yaml({**_CHECKED, "output": "mine"}), "mine/README.md": b"mine", "x.jsonl": _GOOD}),
        "run c.yaml",
        (2,),
    ),
    "pickle as safetensors": (files({"config.json": as_json(CONFIG), SINGLE: PICKLE}, "m"), _MERGE, (2,)),
    "pickles alone": (files({"config.json": as_json(CONFIG), "pytorch_model.bin": PICKLE}, "m"), _MERGE, (2,)),
    "no safetensors": (files({"config.json": as_json(CONFIG), SINGLE: bytes(9)}, "m"), _MERGE, (2,)),
    "shard outside": (files({"config.json": as_json(CONFIG), INDEX: as_json(_SHARDS)}, "m"), _MERGE, (2,)),
    "adapter that names a folder": (
        files({"adapter_config.json": as_json(_ADAPTER), "adapter_model.safetensors": safetensors(ADAPTER, 16)}, "m"),
        "merge m -o out",
        (2,),
    ),
    "recipe bomb": (files({"r.yaml": BOMBS[1]}), "merge r.yaml -o out", (2,)),
    "run that robs": (_robbing_record, "run run --until split", (0, 2)),
    "markup in a run": (files(_hostile_names(), "run"), "status run", (0, 2)),
    "odd file names": (_odd_names, "init .", (0, 2)),
}


def run_case(room: Room, name: str) -> Verdict:
    """One command; judged by exit code, by what it printed, and by what it left in the canary folder."""
    lay, command, codes = CASES[name]
    room.clear()
    lay(room.case)
    before = _content(room.secret)
    started = time.monotonic()
    limits = lambda: resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))  # noqa: E731
    ran = subprocess.run(
        [sys.executable, "-m", "merit", *command.split()],
        cwd=room.case,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=_SECONDS,
        preexec_fn=limits,
        check=False,
    )
    out, err = ran.stdout.decode("utf-8"), ran.stderr.decode("utf-8")
    seconds = time.monotonic() - started
    if "Traceback" in err or ran.returncode < 0:
        return Verdict("traceback", f"{name}: exit code {ran.returncode}", err[-300:], seconds=seconds)
    why = seen_on_terminal(out + err)
    if _content(room.secret) != before:
        why = "the canary was touched"
    elif ran.returncode not in codes:
        why = f"exit code {ran.returncode}: {err[-300:]}"
    if why:
        return Verdict("escaped", f"{name}: {why}", err[:300], seconds=seconds)
    return Verdict("accepted" if ran.returncode == 0 else "refused", said=err[:300], seconds=seconds)


def attack_commands(room: Room, names: list[str]) -> Tally:
    """Runs the commands."""
    tally = Tally("whole commands")
    for name in names:
        tally.add(run_case(room, name), name)
    return tally


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
