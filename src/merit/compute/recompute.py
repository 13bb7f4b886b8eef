"""Activation checkpointing for gradients: layers keep only their inputs, and run again in the backward pass.

The model's own switch works only in training mode, which would turn dropout on.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
OWN_PAGES = 2**20  # blocks of this size or more, which only tensors have


@functools.cache
def return_freed_tensors() -> None:
    """Makes glibc return a tensor's memory to the system as soon as it is freed.

    Tensors are aligned, and glibc's heap rarely reuses the hole of one aligned block for the next: a checkpointed pass
    over 1,000 tokens of a 135M-parameter model held 600 MB for 140 MB of tensors. This costs a third of the speed, but
    only here, where the user asked for less memory. jemalloc and tcmalloc do not need this call, and ignore it.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, OWN_PAGES)


@contextlib.contextmanager
def recomputed(model: Any, surroundings: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Inside, every decoder layer is checkpointed.

    Args:
        surroundings: the modes in which a layer runs, and must run the second time, too. On an accelerator the
            backward pass has its own thread, where no mode is active.
    """
    if next(model.parameters()).device == torch.device("cpu"):
        return_freed_tensors()
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = functools.partial(
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
