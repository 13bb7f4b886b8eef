"""Models sharded by FSDP2: each rank runs its share of the examples, and the sketches of all are added up.

A sketch is linear, so it does not matter where its parts are made: folds of the layers where the activations are,
parameters kept whole where their shard is. What crosses the network is the sketch, not the gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from merit.gradients.fold import Sketcher


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
