"""What a branch writes while it trains: its log, its progress, and checkpoints that are known to be whole."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from merit.branches.checkpoints import Counters, drop_older, mark_whole
from merit.errors import StageError
from merit.io import write_text
from merit.progress import write_state
from merit.run.layout import BranchDir


class BranchCallback(TrainerCallback):
    """Log, progress and timed checkpoints of one branch. Only the main process writes."""

    def __init__(self, branch: BranchDir, counters: Counters, checkpoint_minutes: float) -> None:
        self.branch = branch
        self.counters = counters
        self.checkpoint_seconds = checkpoint_minutes * 60
        self._saved = time.monotonic()
        self._shown = 0.0
        self._loss: float | None = None
        self._began = (time.monotonic(), counters.supervised_tokens)  # of this sitting

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            _cut_log(self.branch.log, state.global_step)
            self._began = (time.monotonic(), self.counters.supervised_tokens)
            self._progress(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        due = now - self._saved >= self.checkpoint_seconds and state.global_step < state.max_steps
        if _first_says(due, args):
            control.should_save = True
            self._saved = now
        if state.is_world_process_zero and (now - self._shown > 0.3 or state.global_step == state.max_steps):
            self._progress(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise StageError(
                f"the loss is {logs['loss']} at step {state.global_step}; lower `train.learning_rate`, "
                "or set `train.precision: fp32`"
            )
        self._loss = logs["loss"]
        line = {"step": state.global_step, "epoch": round(state.epoch or 0, 4)}
        line |= {key: logs[key] for key in ("loss", "learning_rate", "grad_norm") if key in logs}
        with self.branch.log.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line | self.counters.as_dict()) + "\n")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every process writes a part of it
        if state.is_world_process_zero:
            mark_whole(self.branch, state.global_step, self.counters)
            drop_older(self.branch)

    def _progress(self, state: TrainerState) -> None:
        self._shown = time.monotonic()
        note = [f"loss {self._loss:.3f}"] if self._loss is not None else []
        seconds, tokens = self._shown - self._began[0], self.counters.supervised_tokens - self._began[1]
        if tokens and seconds > 0:
            note.append(f"{tokens / seconds:,.0f} supervised tok/s")
        write_state(self.branch.progress, state.global_step, state.max_steps, ", ".join(note))


def _first_says(due: bool, args: TrainingArguments) -> bool:
    """The first process's clock decides for all: saving is a thing that all do together, or none."""
    if args.world_size == 1:
        return due
    flag = torch.tensor([int(due)], device=args.device)
    torch.distributed.broadcast(flag, src=0)
    return bool(flag.item())


def _cut_log(log: Path, step: int) -> None:
    """Drops what a killed sitting logged after the checkpoint that training resumes from."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, RecursionError, KeyError, TypeError):
            continue
    write_text(log, "".join(line + "\n" for line in kept))
