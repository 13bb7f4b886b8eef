"""Bytes: in memory, on disk, between machines."""

from __future__ import annotations

import math

from merit.config import RunConfig
from merit.gradients.sketch import LEAST
from merit.gradients.store import HASHED
from merit.planning.result import ModelFacts, Traffic

FP32 = 4
ADAMW = 16  # bytes a trained parameter: fp32 weight, gradient and AdamW's two moments
TOKEN_BYTES = 8  # of an encoded token: its id and its label
ACTIVATION = 34  # bytes a token, layer and hidden unit in half precision, without recomputation
STATES_KEPT = 2  # TRL checkpoints of a branch in training

_MERGED = {"input": FP32, "float32": FP32, "bfloat16": 2, "float16": 2}


def training_memory(config: RunConfig, model: ModelFacts) -> int:
    """Weights, gradients, AdamW, and the activations of one micro-batch."""
    if config.train.lora is None:
        states = ADAMW * model.trainable
    else:
        states = model.bytes_per_parameter * model.parameters + ADAMW * model.trainable
    return states + activations(model, config.train.micro_batch_tokens)


def forward_memory(model: ModelFacts, batch_tokens: int) -> int:
    """fp32 weights and one batch's logits."""
    return FP32 * model.parameters + FP32 * batch_tokens * model.hidden.get("vocab_size", 0)


def gradient_memory(model: ModelFacts, batch_tokens: int) -> int:
    """fp32 weights and the activations of one batch; gradients are folded layer by layer and freed at once."""
    return FP32 * model.parameters + activations(model, batch_tokens)


def activations(model: ModelFacts, tokens: int) -> int:
    """What backward needs of `tokens` tokens, logits and their gradient in fp32 included; 0 for an unknown shape."""
    width, layers = model.hidden.get("hidden_size", 0), model.hidden.get("num_hidden_layers", 0)
    return tokens * (ACTIVATION * width * layers + 2 * FP32 * model.hidden.get("vocab_size", 0))


def sketch_disk(config: RunConfig, model: ModelFacts, datasets: int) -> int:
    """Two half-sets of fp32 sketch numbers a dataset, and the same hashed, for what needs the halves."""
    calibration = config.calibration
    width = model.hidden.get("hidden_size", 0)
    buckets = max(math.ceil(width / calibration.fold), min(LEAST, width))
    fold = width / buckets if width else calibration.fold
    factor = {"fold": fold, "flat": calibration.stride, "full": 1}[calibration.sketch]
    numbers = calibration.hashed or math.ceil(model.parameters / factor)
    return 2 * FP32 * datasets * (numbers + (HASHED if numbers > 4 * HASHED else 0))


def training_disk(config: RunConfig, model: ModelFacts, branches: int, at_once: int) -> int:
    """The branches' fp32 checkpoints, and the states of those in training (weights and AdamW's moments)."""
    state = STATES_KEPT * (ADAMW - FP32) * model.trainable
    return branches * FP32 * model.parameters + min(at_once, branches) * state


def merge_disk(config: RunConfig, model: ModelFacts, models: int) -> int:
    """The merged models written."""
    return models * _MERGED[config.merge.dtype] * model.parameters


def traffic(model: ModelFacts, machines: int, tokens: float, joint_steps: int) -> Traffic:
    """K branches on K machines, against joint training on K data-parallel workers."""
    step = round(2 * (machines - 1) / machines * FP32 * model.trainable)
    return Traffic(
        machines=machines,
        theta0_out=machines * model.bytes_per_parameter * model.parameters,
        data_out=round(TOKEN_BYTES * tokens),
        checkpoints_back=machines * FP32 * model.parameters,
        joint_steps=joint_steps,
        joint_step_per_worker=step,
        joint_total=machines * step * joint_steps,
    )
