"""Activation checkpointing for measuring: layers keep only their inputs, and run again in the backward pass.

The model's own switch works in training mode only, where dropout would be on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


@contextlib.contextmanager
def recomputed(model: Any, surroundings: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Inside, every decoder layer is checkpointed.

    Args:
        surroundings: the mode that a layer's second run must happen in, as its first did; on an accelerator the
            backward pass runs in a thread of its own, where none is active.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(
            checkpoint,
            layer.forward,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (contextlib.nullcontext(), surroundings()),
        )
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
