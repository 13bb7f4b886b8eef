"""Run by two processes: sketches of sharded models, saved by rank 0."""

from __future__ import annotations

import sys

import numpy as np
import torch.distributed as dist
from tiny_models import examples, tiny
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from merit.gradients.engine import GradientEngine
from merit.gradients.sketch import SketchSpec

CASES = [("Llama", "fold"), ("Qwen2", "fold"), ("GPT2", "fold"), ("Mixtral", "fold"), ("Llama", "flat")]


def main(out: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    results = {}
    for architecture, kind in CASES:
        model = tiny(architecture)
        layers = model.transformer.h if architecture == "GPT2" else model.model.layers
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        engine = GradientEngine(model, SketchSpec(kind=kind, fold=7, least=1, stride=5), batch_tokens=24)
        # Seven examples make the ranks' passes uneven; of one example, a rank has nothing.
        for count in (7, 1):
            found = engine.measure("a", examples(count))
            results[f"{architecture} {kind} {count}"] = np.concatenate([found.sums.ravel(), found.losses])
        results[f"{architecture} {kind} in full"] = np.array(sorted(engine.in_full))
    if dist.get_rank() == 0:
        np.savez(out, **results)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
