"""Measures a dataset's mean gradient at θ0 as two sketched half-sets, in hardly more memory than a forward pass.

Of a model that FSDP2 shards, each rank runs its share of the examples, and the sketches of all ranks are added up. A
sketch is linear, so it does not matter where its parts are made: folds of the layers where the activations are,
parameters kept whole where their shard is. What crosses the network is the sketch, not the gradient.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers.pytorch_utils import Conv1D

from merit.base.errors import InputError
from merit.compute.abilities import Abilities
from merit.compute.attention import packed, packed_model
from merit.compute.batches import HALVES, packed_task, padded_tasks, split_half
from merit.compute.head import Task, backward
from merit.compute.packing import pack
from merit.compute.recompute import recomputed
from merit.data.example import Encoded
from merit.gradients.fold import FoldMode, Sketcher
from merit.gradients.sketch import SketchLayout, SketchSpec
from merit.models.loading import Precision, images_of

OnTokens = Callable[[int], None]  # called after each forward pass with the tokens of the examples it did


@dataclass(frozen=True)
class HalfSums:
    """Sketched gradient *sums* of the two half-sets of one dataset; divide by `tokens` for means.

    The mean gradient over all is (sums[0] + sums[1]) / (tokens[0] + tokens[1]): every supervised token weighs the same,
    exactly as in the training loss.
    """

    sums: NDArray[np.float32]  # (2, width of the layout)
    tokens: tuple[int, int]  # supervised tokens
    examples: tuple[int, int]
    losses: tuple[float, float]  # summed −log p


@dataclass(frozen=True)
class Shortcuts:
    """What saves work. The results are the same without.

    Args:
        intercept: fold where a weight is used; else every gradient is formed in full and sketched afterwards.
        packing: run examples in packed rows; else batches are padded.
        share_prefixes: run what examples have in common once. By default on a CPU alone: a GPU computes a prefix again
            sooner than it calls attention once more.
    """

    intercept: bool = True
    packing: bool = True
    share_prefixes: bool | None = None


ALL_SHORTCUTS = Shortcuts()


class GradientEngine:
    """One model, one sketch. Dropout is off while it measures; frozen parameters are not covered.

    Args:
        batch_tokens: tokens of one forward pass.
        recompute: layers keep only their inputs and run twice: a fraction of the memory, about a third more time.
        precision: `bf16` runs under autocast; sums are float32 in any case.
        shortcuts: fewer of them are for tests and comparisons only.
        abilities: of the model, where they are known.
    """

    def __init__(
        self,
        model: Any,
        spec: SketchSpec,
        *,
        batch_tokens: int,
        precision: Precision = "fp32",
        recompute: bool = False,
        shortcuts: Shortcuts = ALL_SHORTCUTS,
        abilities: Abilities | None = None,
    ) -> None:
        self.model = model
        self.layout: SketchLayout = sketch_layout(model, spec)
        self.in_full: set[str] = set()  # folded parameters whose gradient was formed in full
        self._sketcher = Sketcher(self.layout)
        self._ranks = Ranks(model)
        self._batch_tokens = batch_tokens
        self._precision = precision
        self._recompute = recompute
        self._device: torch.device = next(model.parameters()).device
        share = shortcuts.share_prefixes
        self._share = self._device.type == "cpu" if share is None else share
        self._abilities = abilities or Abilities.of(model, self._device)
        self._may_pack = self._packing = shortcuts.packing and self._abilities.packed
        self._may_pack_images = shortcuts.packing and self._abilities.packed_images
        self._image_tokens = vision.token_ids if (vision := images_of(model)) is not None else frozenset()
        self._parameters: dict[str, Tensor] = {
            name: parameter for name, parameter in model.named_parameters() if name in self.layout.by_name
        }
        self._sums = {
            tensor.name: torch.zeros(tensor.size, dtype=torch.float32, device=self._parameters[tensor.name].device)
            for tensor in self.layout.tensors
        }
        # Kept between datasets: it holds the weights in the autocast dtype.
        fold = shortcuts.intercept and spec.kind == "fold"
        self._mode = FoldMode(self._sketcher, self._parameters, self._sums) if fold else None

    def measure(self, name: str, examples: Sequence[Encoded], on_tokens: OnTokens = lambda _: None) -> HalfSums:
        """The half-set sums of dataset `name`. Examples go to the halves alternately, in the order given.

        Raises:
            InputError: no supervised token; a loss or gradient that is not finite (names dataset, batch and the first
                bad parameter); a gradient that is zero everywhere.
        """
        self._packing = self._may_pack_images if any(example.images for example in examples) else self._may_pack
        sums = np.zeros((HALVES, self.layout.width), dtype=np.float32)
        halves = [split_half(examples, half) for half in range(HALVES)]
        tokens = [sum(example.supervised for example in half) for half in halves]
        if sum(tokens) == 0:
            raise InputError("no supervised token in its calibration examples", field=f"mixture.{name}")
        losses = [0.0, 0.0]
        with self._measuring():
            for half in range(HALVES):
                losses[half] = self._half(name, halves[half], on_tokens)
                whole = self._ranks.total(torch.cat([value.to(self._device) for value in self._sums.values()]))
                sums[half] = whole.cpu().numpy()
                self._check(name, None, losses[half])
        if not sums.any():
            raise InputError("its gradient is zero everywhere; is the model trainable?", field=f"mixture.{name}")
        return HalfSums(sums, (tokens[0], tokens[1]), (len(halves[0]), len(halves[1])), (losses[0], losses[1]))

    def _half(self, name: str, examples: Sequence[Encoded], on_tokens: OnTokens) -> float:
        """Fills the sums; returns the summed loss."""
        for value in self._sums.values():
            value.zero_()
        total = torch.zeros((), device=self._device)
        for number, (task, attention, weight) in enumerate(self._tasks(examples)):
            with attention, self._mode or contextlib.nullcontext():
                loss = backward(self.model, task, self._abilities.tail, self._autocast, weight=weight)
            if self._mode is not None:
                self._mode.forget_input()
            if self._ranks.count == 1:  # ranks that stop alone would leave the others waiting
                self._check(name, number, float(loss))
            total += loss.to(self._device)
            on_tokens(task.tokens if weight else 0)
        return float(self._ranks.total(total))

    def _check(self, name: str, batch: int | None, loss: float) -> None:
        # One wait for the device, not one a parameter.
        finite = torch.stack([value.sum().to(self._device) for value in self._sums.values()]).isfinite().cpu()
        if not bool(finite.all()) or not np.isfinite(loss):
            bad = next((key for key, ok in zip(self._sums, finite.tolist(), strict=True) if not ok), None)
            raise InputError(_not_finite(batch, loss, bad), field=f"mixture.{name}")

    def _tasks(self, examples: Sequence[Encoded]) -> Iterator[tuple[Task, AbstractContextManager[None], float]]:
        """Forward passes, the context to run each in, and its weight: 0 where a rank only keeps in step with others."""
        if self._ranks.count == 1:
            for task, attention in self._batches(examples):
                yield task, attention, 1.0
            return
        share = self._ranks.share(examples)
        mine = list(self._batches(share))
        most = self._ranks.most(len(mine))  # asked before the first pass: ranks must communicate in the same order
        for task, attention in mine:
            yield task, attention, 1.0
        for _ in range(most - len(mine)):
            task, attention = next(self._batches(share or examples))
            yield task, attention, 0.0

    def _batches(self, examples: Sequence[Encoded]) -> Iterator[tuple[Task, AbstractContextManager[None]]]:
        if self._packing:
            for row in pack(examples, self._batch_tokens, share=self._share, image_tokens=self._image_tokens):
                yield packed_task(row, self.model).to(self._device), packed(row.segments, self._device)
        else:
            for task in padded_tasks(examples, self._batch_tokens, self.model, equal=not self._abilities.padded):
                yield task.to(self._device), contextlib.nullcontext()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._precision == "bf16")

    @contextlib.contextmanager
    def _measuring(self) -> Iterator[None]:
        """Evaluation mode, hooks in place, and no stray gradients before or after."""
        training: list[nn.Module] = [module for module in self.model.modules() if module.training]
        self.model.eval()
        self.model.zero_grad(set_to_none=True)
        with contextlib.ExitStack() as stack:
            stack.callback(_set_training, training)
            stack.callback(self.model.zero_grad, set_to_none=True)
            for name, parameter in self._parameters.items():
                stack.callback(parameter.register_post_accumulate_grad_hook(self._hook(name)).remove)
            if self._packing:
                stack.enter_context(packed_model(self.model))
            stack.enter_context(torch.enable_grad())
            if self._mode is not None:
                stack.enter_context(eager_experts(self.model))
                stack.enter_context(gathered(self.model, self._parameters, self._mode.tell))
            if self._recompute:
                stack.enter_context(recomputed(self.model, lambda: self._mode or contextlib.nullcontext()))
            stack.enter_context(_frozen(p for name, p in self.model.named_parameters() if name not in self._parameters))
            yield

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        """Sketches and frees a gradient the moment it is complete, so that no two are ever held at once.

        The hook of a tied weight fires once, when all its uses have been added up.
        """

        def keep(parameter: Tensor) -> None:
            if parameter.grad is not None:
                add_sketch(self._sketcher, name, parameter.grad, self._sums[name], self._ranks)
                parameter.grad = None
                if self.layout.by_name[name].how == "fold":
                    self.in_full.add(name)

        return keep


@contextlib.contextmanager
def _frozen(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Parameters outside the scope need no gradient, so what lies below the lowest covered one costs nothing."""
    loose = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in loose:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in loose:
            parameter.requires_grad_(True)


def _set_training(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        module.training = True


def _not_finite(batch: int | None, loss: float, parameter: str | None) -> str:
    where = f"; the first bad gradient is that of {parameter}" if parameter else ""
    which = "a calibration batch" if batch is None else f"calibration batch {batch}"
    return f"{which} has the loss {loss:g}{where}; are the model's weights finite?"


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


class Ranks:
    """The processes that share one model; a single one where it is not sharded."""

    def __init__(self, model: nn.Module) -> None:
        sharded = [p for p in model.parameters() if isinstance(p, DTensor)]
        self.group = sharded[0].device_mesh.get_group() if sharded else None
        self.count: int = dist.get_world_size(self.group) if sharded else 1
        self.index: int = dist.get_rank(self.group) if sharded else 0

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This rank's part of a half-set."""
        return list(items[self.index :: self.count])

    def most(self, count: int) -> int:
        """The largest `count` of any rank: all must take part in as many forward passes."""
        return int(self._reduce(torch.tensor(float(count)), dist.ReduceOp.MAX)) if self.group else count

    def total(self, value: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        return self._reduce(value, dist.ReduceOp.SUM) if self.group else value

    def _reduce(self, value: Tensor, how: Any) -> Tensor:
        dist.all_reduce(value, op=how, group=self.group)
        return value


def add_sketch(sketcher: Sketcher, name: str, grad: Tensor, sink: Tensor, ranks: Ranks) -> None:
    """Adds the sketch of `grad` to `sink`; of a sharded gradient, the local rows' part of it."""
    if not isinstance(grad, DTensor):
        sink += sketcher.apply(name, grad)
        return
    local = grad.to_local()
    _, offsets = compute_local_shape_and_global_offset(grad.shape, grad.device_mesh, grad.placements)
    # FSDP shards rows and averages over ranks; the sum is wanted.
    whole = torch.zeros(grad.shape, dtype=local.dtype, device=local.device)
    if local.numel():
        whole[offsets[0] : offsets[0] + local.shape[0]] = local
    sink += sketcher.apply(name, whole) * ranks.count


@contextlib.contextmanager
def gathered(model: nn.Module, parameters: Mapping[str, Tensor], tell: Callable[[Tensor, str], None]) -> Iterator[None]:
    """Inside, `tell` learns under which tensor a sharded parameter appears while its module runs."""
    handles = []
    names = {id(parameter): name for name, parameter in parameters.items()}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            name = names.get(id(parameter))
            if name is None or not isinstance(parameter, DTensor):
                continue

            def before(module: nn.Module, _: Any, attribute: str = attribute, name: str = name) -> None:
                tell(getattr(module, attribute), name)

            handles.append(module.register_forward_pre_hook(before))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
