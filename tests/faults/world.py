"""What every fault starts from: a tiny model, a tiny mixture, a run that nothing disturbs, and that run on its way."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from faults.process import Ended, call, merit
from faults.trigger import Moment, Strike, install

STAGES = ("prepare", "mixture", "conflict", "split", "gate", "train", "merge", "evaluate", "diagnose", "report")
FINISHED = "finished"
_TIMELY = ("seconds", "train_seconds", "machine_seconds", "seal")  # the seal covers the others
# Runs to start from → the stage that has written last in them: finished up to a stage, killed in one, or finished.
STATES = {
    "prepare": "",
    "prepare killed": "prepare",
    "mixture": "prepare",
    "mixture killed": "mixture",
    "conflict": "mixture",
    "conflict killed": "conflict",
    "split": "conflict",
    "gate": "split",
    "gate killed": "gate",
    "train": "gate",
    "train killed": "train",
    "merge": "train",
    "merge killed": "merge",
    "evaluate": "merge",
    "evaluate killed": "evaluate",
    "diagnose": "evaluate",
    "diagnose killed": "diagnose",
    "report": "diagnose",
    FINISHED: "report",
}
_KILLED = {
    "prepare killed": ("train prepare 1", "rename /prepare/branches/01/checkpoint"),
    "mixture killed": ("mixture", "remove /data/last.arrow"),
    "conflict killed": ("conflict", "rename /gradients/rows/shout.json"),
    "gate killed": ("gate", "mkdir /gate/.merged.merging"),
    "train killed": ("train", "remove /branches/00/training/checkpoint-2/merit.json"),
    "merge killed": ("merge", "rename /.merged.merging/merit_merge.json"),
    "evaluate killed": ("evaluate", "rename /evaluation/merit.json"),
    "diagnose killed": ("diagnose", "rename /diagnostics/perturbation.json"),
}
_FIGURES = ("evaluation/*.json", "diagnostics/*.json", "gate/gate.json")
_NOTES = {"notes.txt": "mine", "branches/notes.txt": "mine too"}
_CONFIG = """
model: {model}
mixture:
  chat: {{path: chat.jsonl}}
  copy: {{path: copy.json}}
  last: {{path: last.csv}}
  shout: {{path: shout.parquet, weight: 0.5}}
held_out_fraction: 0.25
calibration: {{examples: 4}}
split: {{splitter: pca, axes: 1}}
train:
  {{epochs: 1, learning_rate: 3.0e-3, batch_tokens: 300, precision: fp32, checkpoint_minutes: 1.0e-6, snapshots: 2}}
merge: {{scales: [1.0, 0.5], also: [uniform]}}
evaluate: {{held_out: 2, generate: 1, max_new_tokens: 2, drift: 1}}
"""
_OPTIONAL = """
prepare: {stages: [{epochs: 0.1}, {epochs: 0.1}]}
gate: {share: 0.1, examples: 2, points: 3, enforce: false}
diagnose: {checks: [displacement, lmc, perturbation], examples: 2, points: 3, noise: [0.0, 0.1], noise_seeds: 1}
"""


@dataclass(frozen=True)
class World:
    """Folders below `root`: `user` is the user's own, `states/LABEL` a run to start from, for every one of `labels`.

    Attributes:
        results: what an undisturbed run gives, by file.
        touches: (stage of events.jsonl, number, what) of every touch of the undisturbed run.
        seconds: how long each stage took in it.
    """

    root: Path
    labels: tuple[str, ...]
    results: dict[str, str]
    touches: list[tuple[str, int, str]]
    seconds: dict[str, float]
    mine: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls, root: Path, labels: Sequence[str] = tuple(STATES), *, optional: bool = True) -> World:
        """Makes it, with the states that are named; `optional` are the stages that a run need not have."""
        user, record, run = root / "user", root / "touches", root / "states" / FINISHED
        user.mkdir(parents=True)
        call(lambda: _write_inputs(user, _CONFIG.format(model=user / "model") + (_OPTIONAL if optional else "")))

        def go(*more: str, strike: Strike | None = None) -> Ended:
            return merit(
                *command(user, run), *more, log=root / "log", prepare=lambda: install(run, strike, record=record)
            )

        for stage, following in itertools.pairwise(STAGES):
            if following not in labels:
                continue
            ended = go("--until", stage)
            assert ended.code == 0, ended.said
            shutil.copytree(run, run.with_name(following))
        assert go().code == 0
        touches = _read_touches(record)
        for label, (stage, what) in _KILLED.items():
            if label not in labels:
                continue
            moment = next(Moment(of, n) for of, n, told in touches if told.partition(what)[1])
            killed = run.with_name(label)
            if run.with_name(stage).exists():  # there is none yet before the first stage
                shutil.copytree(run.with_name(stage), killed)
            merit(
                *command(user, killed),
                log=root / "log",
                prepare=partial(install, killed, Strike(moment, "end of all")),
            )
            killed.with_name("fired").unlink()
        return cls.read(root, labels)

    @classmethod
    def read(cls, root: Path, labels: Sequence[str] = tuple(STATES)) -> World:
        """A world that `make` made."""
        run, user = root / "states" / FINISHED, root / "user"
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        seconds = {event["stage"]: event["seconds"] for event in events if event["event"] == "end"}
        touches = _read_touches(root / "touches")
        return cls(root, tuple(labels), results(run), touches, seconds, digests(user))

    @property
    def user(self) -> Path:
        return self.root / "user"

    def state(self, label: str) -> Path:
        """A run of `STATES`; there is none yet before the first stage."""
        return self.root / "states" / label

    def place(self, folder: Path, label: str) -> Path:
        """A run of its own in `folder`, as in state `label`, with notes of the user's in it."""
        run = folder / "run"
        if (before := self.state(label)).exists():
            shutil.copytree(before, run)
            for name, text in _NOTES.items():
                (run / name).parent.mkdir(exist_ok=True)
                (run / name).write_text(text)
        return run

    def command(self, run: Path) -> list[str]:
        return command(self.user, run)

    def wrong(self, run: Path, *, noted: bool = True, but: Sequence[str] = ()) -> list[str]:
        """What is not as it should be after a rerun; empty when nothing is lost.

        Args:
            noted: whether the run began with the user's notes.
            but: results that are not looked at.
        """
        found, wrong = results(run), []
        for name in sorted({*self.results, *found}.difference(but)):
            if found.get(name) != self.results.get(name):
                wrong.append(f"{name} is " + ("another" if name in found and name in self.results else "gone or new"))
        if digests(self.user) != self.mine:
            wrong.append("a file of the user's was touched")
        for name, text in _NOTES.items() if noted else ():
            if not (run / name).is_file() or (run / name).read_text() != text:
                wrong.append(f"the user's {name} is gone")
        wrong += [f"{path.name} is left over" for path in run.rglob("*.part")]
        wrong += [f"{path.name} is left over" for path in run.rglob(".*.merging")]
        wrong += [f"{name} is missing" for name in ("report.html", "README.md") if not (run / name).is_file()]
        return wrong


def command(user: Path, run: Path) -> list[str]:
    return ["run", str(user / "merit.yaml"), "-o", str(run)]


def results(run: Path) -> dict[str, str]:
    """What a run is for, by file: weights and groups as SHA-256, figures without the time that they took."""
    found = {}
    for file in sorted(run.rglob("model*.safetensors")):
        if "training" not in file.parts:
            found[file.relative_to(run).as_posix()] = _sha256(file.read_bytes())
    for name in ("conflict/similarity.npy", "split/partition.json"):
        if (run / name).is_file():
            found[name] = _sha256((run / name).read_bytes())
    for file in sorted(path for name in _FIGURES for path in run.glob(name)):
        found[file.relative_to(run).as_posix()] = _sha256(json.dumps(_timeless(file)).encode())
    return found


def digests(folder: Path) -> dict[str, str]:
    """Every file below `folder`, with its content and its time."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): f"{_sha256(path.read_bytes())} {path.stat().st_mtime_ns}" for path in files
    }


def _read_touches(record: Path) -> list[tuple[str, int, str]]:
    lines = [line.split("\t") for line in record.read_text().splitlines()]
    # The report is made at every call: the last one is of the whole run.
    touches = {(stage, int(number)): what for stage, number, what in lines}
    return [(*moment, what) for moment, what in touches.items()]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _timeless(file: Path) -> Any:
    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(item) for key, item in value.items() if key not in _TIMELY}
        return [strip(item) for item in value] if isinstance(value, list) else value

    try:
        return strip(json.loads(file.read_bytes()))
    except ValueError:
        return None


def _write_inputs(user: Path, config: str) -> None:
    from four_files import write_four_files
    from tiny_llama import write_tiny_llama

    write_four_files(user, rows=16)
    write_tiny_llama(user / "model")
    (user / "merit.yaml").write_text(config)


def environment() -> None:
    """For this process and all that it starts."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["MERIT_COLD_JOBS"] = "1"  # the campaign forks them itself
