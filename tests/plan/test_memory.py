"""What a branch's training holds in memory, by hand, and the refusal of what cannot fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from merit.base.errors import InputError
from merit.config.launch import LaunchConfig
from merit.config.sections import LoraSection, TrainConfig
from merit.plan.costs import ModelFacts
from merit.plan.memory import branch_memory, device_memory, shards

SEVEN = ModelFacts(
    parameters=7_600_000_000,
    trainable=7_600_000_000,
    bytes_per_parameter=2,
    hidden={"hidden_size": 3584, "num_hidden_layers": 28, "vocab_size": 152_064},
)
TRAIN = TrainConfig(micro_batch_tokens=4096)
CARD = 80_000_000_000


def test_seven_billion_by_hand():
    found = branch_memory(SEVEN, TRAIN)
    assert (found.weights, found.gradients, found.optimizer) == (30_400_000_000, 30_400_000_000, 60_800_000_000)
    assert found.states == 121_600_000_000
    logits = 4096 * 8 * 152_064
    assert found.activations == 4096 * 34 * 3584 * 28 + logits
    assert found.recomputed == 4096 * (2 * 3584 * 28 + 34 * 3584) + logits


def test_what_cannot_fit_is_refused_with_what_to_change():
    branch_memory(SEVEN, TRAIN).check()  # nothing is known of the device
    with pytest.raises(
        InputError, match=r"a branch needs 128 GB on a device of 80 GB; shard it over 2 devices"
    ) as error:
        branch_memory(SEVEN, TRAIN, device=CARD).check()
    assert error.value.field == "launch.accelerate"
    branch_memory(SEVEN, TRAIN, shards=2, device=CARD).check()
    branch_memory(
        SEVEN.model_copy(update={"trainable": 40_000_000}),
        TRAIN.model_copy(update={"lora": LoraSection()}),
        device=CARD,
    ).check()
    long = TRAIN.model_copy(update={"micro_batch_tokens": 65_536})
    with pytest.raises(InputError, match="most of it for activations; lower it") as error:
        branch_memory(SEVEN, long, shards=8, device=CARD).check()
    assert error.value.field == "train.micro_batch_tokens"


def test_shards_are_read_from_the_accelerate_configuration(tmp_path: Path):
    file = tmp_path / "accelerate.yaml"
    assert shards(LaunchConfig(), tmp_path) == 1
    file.write_text("distributed_type: FSDP\nnum_processes: 8\n")
    assert shards(LaunchConfig(accelerate="accelerate.yaml"), tmp_path) == 8
    assert shards(LaunchConfig(accelerate="accelerate.yaml", processes=4), tmp_path) == 4
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 8\n")
    assert shards(LaunchConfig(accelerate="accelerate.yaml"), tmp_path) == 1
    file.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        shards(LaunchConfig(accelerate="accelerate.yaml"), tmp_path)


def test_another_machine_s_memory_is_not_known():
    assert device_memory(LaunchConfig(engine="slurm")) is None
    assert device_memory(LaunchConfig()) > 0
