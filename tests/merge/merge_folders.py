"""Small checkpoint folders, and a float64 reference that rounds once by exact rational arithmetic."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import torch
from safetensors.torch import load_file, save_file

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float32"}
TORCH = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def write(folder, tensors, *, config=CONFIG, shards=1):
    """A checkpoint of `tensors` in `shards` files, with an index where there are several."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = list(tensors)
    where = {}
    for number in range(shards):
        part = names[number::shards]
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        if part:
            save_file({name: tensors[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read(folder):
    """All tensors of a folder, by the safetensors library."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def bits(tensor):
    """The tensor's bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def exact_mean(tensors, weights):
    """Σ n_k θ_k / Σ n_k in float64, inputs in order."""
    if len(set(weights)) == 1:
        weights = [1.0] * len(weights)
    total = tensors[0].double() * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total = total + tensor.double() * weight
    return total / math.fsum(weights)


def round_once(values, dtype):
    """float64 → `dtype`, nearest, ties to even. torch itself rounds twice on the way to 16 bits."""
    if dtype in (torch.float64, torch.float32):
        return values.to(dtype)
    steps = np.arange(1 << 15, dtype=np.uint16)
    known = torch.from_numpy(steps.view(np.int16)).view(dtype).double().numpy()
    known = known[np.isfinite(known)]
    flat = values.double().numpy().ravel()
    at = np.clip(np.searchsorted(known, np.abs(flat)), 1, len(known) - 1)
    out = np.empty(flat.size, np.uint16)
    for index, (value, upper) in enumerate(zip(flat, at, strict=True)):
        size = Fraction(abs(value))
        down, up = size - Fraction(known[upper - 1]), Fraction(known[upper]) - size
        lower = down < up or (down == up and upper % 2 == 1)
        out[index] = (upper - 1 if lower else upper) | (0x8000 if np.signbit(value) else 0)
    return torch.from_numpy(out.view(np.int16)).view(dtype).reshape(values.shape)
