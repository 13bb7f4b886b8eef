"""How near a training step on a CPU comes to plain matrix products of the same shapes.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py [--quick] [--profile] [--data FILE …] [--steps N]

SmolLM2-135M-Instruct, 700 tokens a step, trained by merit itself. After each step the same matrix products run alone:
forward and both backward products of every linear layer, in the same dtype, with the same threads. A step does its
linear layers' arithmetic and its attention's; padding, a recomputed pass and element-wise work do not count. Prints a
line a step, and as its last line one JSON object; `step_over_plain` is the step's GFLOP/s ÷ those of the products.
`--profile` prints where the time of one more step goes. `--cpu-time` counts seconds of the processor: better on
a machine with other work; it needs a single thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

import merit.train.branch as branch_module
from merit.compute.head import innermost
from merit.data.example import IGNORED
from merit.models.loading import pick_precision
from merit.train.trainer import BranchTrainer
from training import SKIPPED, families, joint_branch

CONFIG = """
model: {model}
mixture:
{mixture}
held_out_fraction: 0.1
split: {{splitter: single}}
train: {{batch_tokens: {tokens}, micro_batch_tokens: {micro}, max_length: 512, learning_rate: 2e-5,
        precision: {precision}, trl: {trl}}}
"""
CLOCK = {False: time.perf_counter, True: time.process_time}


class Enough(Exception):
    """All steps are measured."""


@dataclass(frozen=True)
class Batch:
    """What one micro-batch asks for: rows of the layers and of the head, and pairs of query and key."""

    tokens: int
    supervised: int
    pairs: int

    @classmethod
    def of(cls, inputs: dict[str, Tensor]) -> Batch:
        mask = inputs.get("attention_mask")
        if "segments" in inputs:
            lengths = [(stop - start, shared - first) for start, stop, first, shared in inputs["segments"].tolist()]
        else:
            lengths = [(length, 0) for length in mask.sum(1).tolist()]
        tokens = inputs["input_ids"].numel() if mask is None else int(mask.sum())
        pairs = sum(own * (own + 1) // 2 + own * shared for own, shared in lengths)
        return cls(tokens, int((inputs["labels"][:, 1:] != IGNORED).sum()), pairs)


class Products:
    """The matrix products of a model's linear layers, alone. Each weight has its own memory, as in the model."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, clock: Callable[[], float]) -> None:
        self._clock = clock
        head = model.get_output_embeddings()
        modules = [module for module in model.modules() if isinstance(module, nn.Linear)]
        self._weights = [(module.weight.detach().to(dtype, copy=True), module is head) for module in modules]
        config = model.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        # Two products forward and four backward, 2 · width operations a pair and head.
        self._pair_flops = 12 * width * config.num_attention_heads * config.num_hidden_layers
        self.seconds = dict.fromkeys(("forward", "input", "weight"), 0.0)
        self.flops = 0

    def flops_of(self, batches: Sequence[Batch]) -> tuple[int, int]:
        """Of the linear layers' products, and of the whole step."""
        linear = sum(
            6 * weight.numel() * (b.supervised if head else b.tokens) for b in batches for weight, head in self._weights
        )
        return linear, linear + sum(b.pairs for b in batches) * self._pair_flops

    def run(self, batches: Sequence[Batch]) -> float:
        """Seconds of all products."""
        before = sum(self.seconds.values())
        for batch in batches:
            inputs: dict[tuple[int, int], Tensor] = {}
            for weight, head in self._weights:
                rows = batch.supervised if head else batch.tokens
                x, dy = (
                    inputs.setdefault((rows, width), torch.randn(rows, width).to(weight.dtype))
                    for width in (weight.shape[1], weight.shape[0])
                )
                self._time("forward", lambda x=x, w=weight: x @ w.T)
                self._time("input", lambda dy=dy, w=weight: dy @ w)
                self._time("weight", lambda dy=dy, x=x: dy.T @ x)
        self.flops += self.flops_of(batches)[0]
        return sum(self.seconds.values()) - before

    def _time(self, name: str, work: Any) -> None:
        start = self._clock()
        work()
        self.seconds[name] += self._clock() - start


@dataclass
class Watch(TrainerCallback):
    """Times each step, then the products of the same shapes; profiles the step after the last, if asked to."""

    steps: int
    profiled: bool
    dtype: torch.dtype
    clock: Callable[[], float]
    batches: list[Batch] = field(default_factory=list)
    found: list[tuple[float, int, float, int]] = field(default_factory=list)  # seconds and FLOPs: step, products
    tokens: int = 0
    products: Products | None = None
    profiler: Any = None
    start: float = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches.clear()
        if state.global_step >= self.steps + SKIPPED:
            self.profiler = profile(activities=[ProfilerActivity.CPU])
            self.profiler.__enter__()
        self.start = self.clock()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        seconds = self.clock() - self.start
        if self.profiler is not None:
            self.profiler.__exit__(None, None, None)
            print(self.profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))
            raise Enough
        if state.global_step <= SKIPPED:
            return
        if self.products is None:
            self.products = Products(innermost(model), self.dtype, self.clock)
            self.products.run(self.batches)  # to warm up
            self.products.seconds = dict.fromkeys(self.products.seconds, 0.0)
            self.products.flops = 0
        plain = self.products.run(self.batches)
        linear, whole = self.products.flops_of(self.batches)
        self.found.append((seconds, whole, plain, linear))
        self.tokens += sum(batch.tokens for batch in self.batches)
        ratio = whole / seconds / (linear / plain)
        print(f"step {state.global_step}: {whole / seconds / 1e9:6.1f} GFLOP/s, {seconds:5.2f} s; plain products "
              f"{linear / plain / 1e9:6.1f} GFLOP/s, {plain:5.2f} s; ratio {ratio:.3f}", flush=True)  # fmt: skip
        if state.global_step >= self.steps + SKIPPED and not self.profiled:
            raise Enough

    def result(self) -> dict[str, Any]:
        seconds, whole, plain, linear = (sum(column) for column in zip(*self.found, strict=True))
        cores = torch.get_num_threads()
        products = self.products
        assert products is not None
        rates = {name: products.flops / 3 / s / 1e9 / cores for name, s in products.seconds.items()}
        return {
            "step_over_plain": round(whole / seconds / (linear / plain), 3),
            "step_gflops_a_core": round(whole / seconds / 1e9 / cores, 1),
            "plain_gflops_a_core": round(linear / plain / 1e9 / cores, 1),
            **{f"plain_{name}_gflops_a_core": round(rate, 1) for name, rate in rates.items()},
            "tokens_a_step": round(self.tokens / len(self.found)),
            "seconds_a_step": round(seconds / len(self.found), 3),
            "steps": len(self.found),
            "threads": cores,
        }


def mixture_of(options: argparse.Namespace) -> str:
    """The YAML of the datasets: the files that were given, or reasoning-gym families."""
    if options.data:
        return "\n".join(f"  {file.stem}: {{path: '{file.resolve()}'}}" for file in options.data)
    return families(24 + options.steps)


def train(folder: Path, options: argparse.Namespace, watch: Watch) -> None:
    file = folder / "merit.yaml"
    file.write_text(
        CONFIG.format(
            model=options.model,
            mixture=mixture_of(options),
            tokens=options.batch_tokens,
            micro=options.micro_batch_tokens,
            precision=options.precision,
            trl=options.trl,
        )
    )
    run, branch = joint_branch(file)
    callbacks, training_step = branch_module._callbacks, BranchTrainer.training_step

    def counted(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        watch.batches.append(Batch.of(inputs))
        return training_step(self, model, inputs, *args, **kwargs)

    branch_module._callbacks = lambda *args: [*callbacks(*args), watch]
    BranchTrainer.training_step = counted
    try:
        branch_module.train_branch(run, branch, base=folder)
    except Enough:
        return
    raise SystemExit(f"the data ended after {len(watch.found)} timed steps; ask for fewer --steps")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three steps")
    parser.add_argument("--steps", type=int, default=12, help="that are timed")
    parser.add_argument("--profile", action="store_true", help="print where the time of one more step goes")
    parser.add_argument("--cpu-time", action="store_true", help="count seconds of the processor")
    parser.add_argument("--data", type=Path, nargs="+", help="data files, in place of reasoning-gym")
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--batch-tokens", type=int, default=900, help="of a step, with those that packing saves")
    parser.add_argument("--micro-batch-tokens", type=int, default=4096)
    parser.add_argument("--trl", default="{}", help="`train.trl`, as YAML")
    options = parser.parse_args()
    if options.cpu_time and torch.get_num_threads() > 1:
        parser.error("--cpu-time needs OMP_NUM_THREADS=1")
    options.steps = 3 if options.quick else options.steps
    dtype = torch.bfloat16 if pick_precision(options.precision) == "bf16" else torch.float32
    watch = Watch(options.steps, options.profile, dtype, CLOCK[options.cpu_time])
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), options, watch)
    print(json.dumps(watch.result()))


if __name__ == "__main__":
    main()
