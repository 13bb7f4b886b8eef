"""Which parameters of a model a sketch covers, and along which dimension each one takes its input."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from merit.errors import InputError
from merit.gradients.sketch import SketchLayout, SketchSpec


def sketch_layout(model: nn.Module, spec: SketchSpec) -> SketchLayout:
    """Lays the sketch out over every parameter with `requires_grad` in the spec's scope, in model order.

    A tied weight counts once, under its first name.

    Raises:
        InputError: nothing is trainable, or the scope matches nothing that is; a parameter is offloaded.
    """
    axes = input_axes(model)
    parameters = [
        (name, list(parameter.shape), axes.get(name, parameter.ndim - 1))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and re.search(spec.scope, name)
    ]
    if not parameters and spec.scope:
        raise InputError(f"no trainable parameter's name matches {spec.scope!r}", field="calibration.parameters")
    if not parameters:
        raise InputError("the model has no trainable parameter, so there is no gradient to measure", field="model")
    offloaded = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if offloaded:  # what stands in for it during a forward pass is another tensor, whose gradient would be lost
        raise InputError(f"`{offloaded[0]}` is offloaded, and would get no gradient; use more devices", field="model")
    return SketchLayout.plan(spec, parameters)


def input_axes(model: nn.Module) -> dict[str, int]:
    """Parameters that take their input along another dimension than the last: Conv1D, and transposed fused experts."""
    axes: dict[str, int] = {}
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, Conv1D):
            axes[f"{dot}weight"] = 0
        elif getattr(module, "is_transposed", False):
            axes |= {f"{dot}{name}": 1 for name, p in module.named_parameters(recurse=False) if p.ndim == 3}
    return axes


@contextlib.contextmanager
def eager_experts(model: Any) -> Iterator[None]:
    """Fused experts run one after another inside, each on a slice of the weight: what `FoldMode` can see."""
    before = getattr(model.config, "_experts_implementation", None)
    if before in (None, "eager"):
        yield
        return
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        model.set_experts_implementation(before)
