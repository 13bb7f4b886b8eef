"""Diagnostics: what mode connectivity costs beside plain forward passes, Lanczos, and the theory's identities.

    python benchmarks/diagnostics.py [--quick] [--model PATH] [--keep FOLDER] [--only lmc,lanczos,theory]

Prints a table, and as its last line one JSON object. Branches are θ0 with a little noise: their losses do not matter,
their bytes do. Lanczos is of θ0's loss on 4,096 tokens of reasoning-gym, until ten eigenpairs have converged. With
`--keep` it goes on from what a killed run left. The full run needs 3 GB of scratch space for `lmc`, up to 33 GB for
`lanczos`, and an idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from merit.config.sections import ModelConfig
from merit.data.example import Encoded
from merit.diagnose.checks.lmc import connectivity
from merit.diagnose.hessian import Hessian, within_budget
from merit.diagnose.lanczos import Lanczos
from merit.diagnose.live import LiveModel
from merit.diagnose.losses import LossSet
from merit.models.loading import load_model, pick_precision
from merit.models.source import resolve_model
from merit.run.events import peak_memory_bytes
from merit.theory.lab import run_lab

BRANCHES = 4
LENGTH = 128
PAIRS = 10
PARTS = ("lmc", "lanczos", "theory")


def model_folder(path: str | None, quick: bool, scratch: Path) -> Path:
    """The model's folder; with --quick a random one of 12M parameters."""
    if not quick or path is not None:
        return resolve_model(ModelConfig(path=path or "embedded:smollm2-135m"), Path.cwd()).path
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=6,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(scratch / "init")
    return scratch / "init"


def examples(count: int, vocabulary: int) -> list[Encoded]:
    """Rows of random tokens, the last quarter supervised."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, vocabulary, (count, LENGTH)).tolist()
    return [Encoded(row, [-100] * (LENGTH * 3 // 4) + row[LENGTH * 3 // 4 :]) for row in ids]


def answers(folder: Path, tokens: int) -> list[Encoded]:
    """Rows of reasoning-gym families, `tokens` tokens in all."""
    from transformers import AutoTokenizer

    from conflict import families

    found = families(AutoTokenizer.from_pretrained(folder), 16, 8)
    return within_budget(list(found.values()), tokens)


def lmc(folder: Path, rows: list[Encoded], scratch: Path) -> dict[str, float]:
    """Ten segments, as published, of eleven points (published: 21), against as many plain forward passes."""
    model = load_model(folder)
    folders = {}
    for k in range(BRANCHES + 1):
        torch.manual_seed(k)
        noisy = load_model(folder)
        with torch.no_grad():
            for parameter in noisy.parameters():
                parameter.add_(1e-4 * torch.randn_like(parameter))
        folders[f"branch {k}" if k < BRANCHES else "merge"] = scratch / str(k)
        noisy.save_pretrained(scratch / str(k))
        del noisy
    live = LiveModel(model, folders)
    held_out = Interleaved(rows, [0] * len(rows), 4096, pick_precision("auto"), seed=0)
    held_out.measure(live.model, "warm-up")
    held_out.plain.clear()
    branches = list(folders)[:BRANCHES]
    pairs = [*itertools.combinations(branches, 2), *((branch, "merge") for branch in branches)]
    passes = len(folders) + len(pairs) * 9
    before = peak_memory_bytes()
    started = clocks()
    connectivity(live, pairs, {"held_out": held_out}, points=11)
    plain = np.array(held_out.plain)
    took = clocks() - started - plain.sum(0)
    wall, processor = took / (passes * plain.mean(0))
    return {
        "lmc_over_forward": float(wall),
        "lmc_over_forward_cpu": float(processor),
        "lmc_seconds": float(took[0]),
        "lmc_extra_peak_mb": (peak_memory_bytes() - before) / 1e6,  # beside the model and a forward pass: the blocks
    }


def clocks() -> np.ndarray:
    """Wall and processor seconds."""
    return np.array([time.monotonic(), time.process_time()])


@dataclass(frozen=True)
class Interleaved(LossSet):
    """After every fifth measurement a plain forward pass over the same examples, so that both meet the same machine."""

    plain: list[np.ndarray] = field(default_factory=list)  # wall and processor seconds of each
    calls: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def measure(self, model: Any, what: str, advance: Callable[[int], None] = lambda _: None) -> np.ndarray:
        found = super().measure(model, what, advance)
        if next(self.calls) % 5 == 0:
            started = clocks()
            super().measure(model, "plain")
            self.plain.append(clocks() - started)
        return found


def lanczos(folder: Path, rows: list[Encoded], place: Path, steps: int) -> dict[str, float]:
    """Hessian-vector products until ten eigenpairs have converged, or `steps` of them; goes on from what lies in
    `place`, where a killed call left it."""
    model: Any = load_model(folder)
    hessian = Hessian(model, dict(model.named_parameters()), rows, batch_tokens=1024)
    in_product = np.zeros(2)

    def product(vector: np.ndarray) -> np.ndarray:
        nonlocal in_product
        started = clocks()
        result = hessian.product(vector)
        in_product = clocks() - started
        return result

    found = Lanczos(place / "basis", hessian.size, product, fingerprint=f"{folder} {hessian.tokens}")
    spent = place / "seconds.jsonl"  # a line a step: of all, and of the product, wall and processor
    while found.steps < steps and not found.converged(PAIRS):
        started = clocks()
        found.step()
        line = json.dumps([*(clocks() - started), *in_product])
        with spent.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
        print(f"product {found.steps}: {line}", file=sys.stderr)
    seconds = np.array([json.loads(line) for line in spent.read_text(encoding="utf-8").splitlines()][: found.steps])
    ritz = found.ritz(PAIRS)
    took = seconds.sum(0)
    return {
        "lanczos_seconds": float(took[0]),
        "lanczos_cpu_seconds": float(took[1]),
        "lanczos_tokens": hessian.tokens,
        "lanczos_steps": found.steps,
        "lanczos_product_seconds": float(took[2] / found.steps),
        "lanczos_product_cpu_seconds": float(took[3] / found.steps),
        "lanczos_worst_residual": float(ritz.residuals.max() / ritz.values[0]),  # converged at 1e-3
    }


def theory(quick: bool) -> dict[str, float]:
    """The lab's identities."""
    started = time.monotonic()
    found = run_lab(instances=20 if quick else 200)
    slopes = {slope.quantity: slope.early for slope in found.slopes}
    return {
        "theorem1_error": found.identity.largest_error,
        "slope_lambda": slopes["lambda"],
        "slope_alpha": slopes["alpha"],
        "theory_seconds": time.monotonic() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--keep", help="folder for Lanczos' basis, to go on from after a kill")
    parser.add_argument("--only", default=",".join(PARTS))
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    keys = ("lmc_over_forward", "theorem1_error", "slope_lambda", "slope_alpha")
    found: dict[str, float | None] = dict.fromkeys(keys)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        folder = model_folder(arguments.model, arguments.quick, scratch)
        vocabulary = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        if "lmc" in parts:
            found |= lmc(folder, examples(8 if arguments.quick else 64, vocabulary), scratch)
        if "lanczos" in parts:
            rows = examples(4, vocabulary) if arguments.quick else answers(folder, 4096)
            place = Path(arguments.keep or scratch)
            place.mkdir(parents=True, exist_ok=True)
            found |= lanczos(folder, rows, place, 8 if arguments.quick else 60)
        if "theory" in parts:
            found |= theory(arguments.quick)
    for key, value in found.items():
        print(f"{key:28} {'–' if value is None else f'{value:.4g}'}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
