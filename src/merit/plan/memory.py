"""What a process that trains a branch holds in memory, and whether a device has as much."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from merit.base.errors import InputError
from merit.base.machine import gpu_memory, total_memory
from merit.base.record import Record
from merit.base.words import data_size
from merit.config.launch import LaunchConfig
from merit.config.sections import TrainConfig

if TYPE_CHECKING:
    from merit.plan.costs import ModelFacts

FP32 = 4
ADAMW = 16  # bytes a trained parameter: fp32 weight, gradient and AdamW's two moments
ACTIVATION = 34  # bytes a token, layer and hidden unit in half precision, without recomputation
_HALF = 2
_ROOM = 0.9  # of a device: the rest is the framework's


class BranchMemory(Record):
    """Bytes. What is sharded is divided by `shards` on each device; activations are not."""

    weights: int  # fp32 master weights; with LoRA the frozen ones as stored, and the adapters
    gradients: int
    optimizer: int  # AdamW's two moments
    activations: int  # of one micro-batch
    recomputed: int  # the same with gradient checkpointing, which merit turns on where there is a GPU
    shards: int  # processes that hold a part each (FSDP, DeepSpeed)
    device: int | None  # bytes of one device, where that is known

    @property
    def states(self) -> int:
        """Weights, gradients and moments on one device."""
        return math.ceil((self.weights + self.gradients + self.optimizer) / self.shards)

    @property
    def least(self) -> int:
        """What one device must hold at least."""
        return self.states + min(self.activations, self.recomputed)

    @property
    def sentence(self) -> str:
        """The figures, in a line."""
        shared = f", over {self.shards} processes" if self.shards > 1 else ""
        return (
            f"Memory of a branch: weights {data_size(self.weights)}, gradients {data_size(self.gradients)}, AdamW "
            f"{data_size(self.optimizer)}{shared}: {data_size(self.states)} a device; activations "
            f"{data_size(self.activations)}, with gradient checkpointing {data_size(self.recomputed)}."
        )

    def check(self) -> None:
        """Whether it fits.

        Raises:
            InputError: it cannot; with what to change.
        """
        if self.device is None or self.least <= _ROOM * self.device:
            return
        room = _ROOM * self.device - min(self.activations, self.recomputed)
        text = f"a branch needs {data_size(self.least)} on a device of {data_size(self.device)}"
        if room <= 0:
            raise InputError(f"{text}, most of it for activations; lower it", field="train.micro_batch_tokens")
        shards = math.ceil(self.states * self.shards / room)
        raise InputError(
            f"{text}; shard it over {shards} devices (FSDP2: docs/cluster.md has a configuration), or set `train.lora`",
            field="launch.accelerate",
        )


def branch_memory(model: ModelFacts, train: TrainConfig, shards: int = 1, device: int | None = None) -> BranchMemory:
    """The memory of a branch's training."""
    frozen = 0 if train.lora is None else model.bytes_per_parameter * model.parameters
    return BranchMemory(
        weights=frozen + FP32 * model.trainable,
        gradients=FP32 * model.trainable,
        optimizer=2 * FP32 * model.trainable,
        activations=activations(model, train.micro_batch_tokens),
        recomputed=activations(model, train.micro_batch_tokens, recompute=True),
        shards=shards,
        device=device,
    )


def activations(model: ModelFacts, tokens: int, *, recompute: bool = False) -> int:
    """Bytes that the backward pass of so many tokens needs, with logits and their gradient in fp32; 0 for an unknown
    shape. With `recompute` every layer keeps its input alone, and one layer at a time is whole."""
    width, layers = model.hidden.get("hidden_size", 0), model.hidden.get("num_hidden_layers", 0)
    kept = _HALF * width * layers + ACTIVATION * width if recompute else ACTIVATION * width * layers
    return tokens * (kept + 2 * FP32 * model.hidden.get("vocab_size", 0))


def device_memory(launch: LaunchConfig) -> int | None:
    """Bytes of one device that a branch of this machine would train on; None where other machines train."""
    if launch.engine != "local":
        return None
    return min(gpu_memory(), default=None) or total_memory() // (launch.parallel or 1)


def shards(launch: LaunchConfig, base: Path) -> int:
    """Over how many processes the accelerate configuration spreads a branch's states; 1 without one, or for DDP.

    Raises:
        InputError: it is not to be read.
    """
    value = _sharding(launch, base)
    if value is None:
        return 1
    count = launch.processes if launch.processes > 1 else value.get("num_processes", 1)
    return count if isinstance(count, int) and count > 0 else 1


def check_whole(launch: LaunchConfig, base: Path) -> None:
    """Refuses a launch that shards a branch, where each process must hold its whole state: in rounds.

    Raises:
        InputError: the accelerate configuration says FSDP or DeepSpeed, or is not to be read.
    """
    if launch.accelerate is not None and (value := _sharding(launch, base)) is not None:
        said = f"{value['distributed_type']} shards a branch, and its parts cannot go on from a merge: set it to 1"
        raise InputError(said, file=base / launch.accelerate, field="train.rounds")


def _sharding(launch: LaunchConfig, base: Path) -> dict[str, Any] | None:
    """The accelerate configuration, if it shards a branch."""
    if launch.accelerate is None:
        return None
    file = base / launch.accelerate
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot be read: {' '.join(str(error).split())}", file=file) from None
    sharded = isinstance(value, dict) and value.get("distributed_type") in ("FSDP", "DEEPSPEED")
    return value if sharded else None
