"""A GPU: sketching, sums, training on packed rows and merging by a rule, as ratios within one run.

    python benchmarks/gpu.py [--quick] [--device cuda] [--only sketch,sums,training,merge] [--layers N] [--work DIR]

Random models of the shapes of Llama-3.2-1B and Qwen2.5-3B in float32, under autocast; reasoning-gym examples, the last
quarter of each supervised. Prints a line a figure, and as its last line one JSON object. Each contender runs at its
best size of batch; what does not fit is left out. Peaks are of tensors on the GPU.

* sketch: sketching ÷ plain forward and backward passes, as in conflict.py.
* sums: a sketch has a sum a parameter, and empties and checks each; ÷ the same of one flat buffer.
* training: forward and backward of all examples in rows without padding, attention by `varlen_attn`, ÷ TRL's loss of
  TRL's batches: padded, and packed with flash attention, without and with Liger kernels. No optimizer.
* merge: 8 branches in bfloat16 with some of the 3B model's layers, by actmat and by RegMean: linear layers solved on
  the GPU ÷ on the processor, and ÷ the average. It needs 30 GB of scratch space, with `--layers 36` 92 GB.

`--quick --device cpu` runs all of it on tiny shapes, only to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import is_flash_attn_2_available, is_liger_kernel_available
from trl import SFTConfig, SFTTrainer

from conflict import FOLD, engine_of, families, plain, quarter, seconds, sketch
from conflict_scaling import examples
from merge import REAL_3B, WEIGHTS, config_of, shapes_of, write_model
from merit.compute.batches import packed_task, segmented
from merit.compute.head import task_nll
from merit.compute.packing import pack
from merit.config.sections import SKETCH_SHARE, ModelConfig
from merit.data.example import Encoded
from merit.gradients.engine import sketch_layout
from merit.merge.average import merge_checkpoints
from merit.models.checkpoint import Checkpoint
from merit.models.input_sketch import LowRank, SketchFacts, rank_for, write_sketch
from merit.models.loading import autocast, free_cached_memory, pick_precision
from merit.models.source import resolve_model, weights_fingerprint

REAL_1B = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "vocab_size": 128256,
    "head_dim": 64, "num_key_value_heads": 8,
}  # fmt: skip
QUICK = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 2048, "head_dim": 32}
BRANCHES = 8
ROW_TOKENS, ROWS = (4096, 16384, 65536), (8, 32, 64)  # sizes of batch: of packed rows, and in examples
# Layers with the same inputs share their sketch.
INPUTS = {"q": "qkv", "k": "qkv", "v": "qkv", "o": "o", "gate": "up", "up": "up", "down": "down"}


@dataclass(frozen=True)
class Figure:
    """Of one contender."""

    seconds: float
    peak_mb: float | None
    size: int = 0

    def __str__(self) -> str:
        peak = "" if self.peak_mb is None else f", peak {self.peak_mb:,.0f} MB"
        return f"{self.seconds:.3f} s" + (f" at {self.size:,}" if self.size else "") + peak


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    device: str
    repeats: int
    sizes: tuple[Sequence[int], Sequence[int]]  # of batch, in tokens and in examples
    tokenizer: Any
    rows: list[Encoded]
    work: Path

    def best(self, name: str, model: Any, sizes: Sequence[int], work: Callable[[int], object]) -> Figure | None:
        """The fastest size of batch; None if none fits."""
        found: list[Figure] = []
        for size in sizes:
            engine_of.cache_clear()  # it holds weights in bfloat16
            start_peak()
            try:
                found.append(Figure(seconds(partial(work, size), self.repeats), peak_mb(), size))
            except torch.OutOfMemoryError:
                print(f"{name}: {size:,} does not fit")
            model.zero_grad(set_to_none=True)
        best = min(found, key=lambda figure: figure.seconds, default=None)
        print(f"{name}: {best or 'left out'}", flush=True)
        return best


def start_peak() -> None:
    """`peak_mb` counts from here."""
    free_cached_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> float | None:
    """Of tensors on the GPU; None without one."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None


def ratio(key: str, one: Figure | None, other: Figure | None) -> dict[str, float | None]:
    """one ÷ other, and both peaks; None where a contender is missing."""
    names = key.split("_over_")
    found = {key: round(one.seconds / other.seconds, 3) if one and other else None}
    peaks = {f"{name}_peak_mb": figure.peak_mb for name, figure in zip(names, (one, other), strict=True) if figure}
    return found | {name: round(peak) for name, peak in peaks.items() if peak is not None}


def random_model(size: Mapping[str, int], device: str) -> Any:
    """A Llama with random weights, float32."""
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig.from_dict(config_of(dict(size), "float32"))).eval()


def bench_sketch(bench: Bench, model: Any, name: str) -> dict[str, float | None]:
    rows, precision, (tokens, counts) = bench.rows, pick_precision("auto"), bench.sizes
    ours = bench.best(f"{name}, sketch", model, tokens, lambda n: sketch(model, rows, precision, batch_tokens=n))
    base = bench.best(f"{name}, plain", model, counts, lambda n: plain(model, rows, precision, n, by_length=True))
    return {f"{key}_{name}": value for key, value in ratio("sketch_over_plain", ours, base).items()}


def bench_sums(bench: Bench, model: Any, name: str) -> dict[str, float | None]:
    """What the engine does with its sums beside the adding, and the same of one buffer."""
    layout = sketch_layout(model, FOLD)
    flat = torch.zeros(layout.width, device=bench.device)
    sums = [torch.zeros(tensor.size, device=bench.device) for tensor in layout.tensors]

    def apart(_: int) -> bool:
        for value in sums:
            value.zero_()
        return bool(torch.stack([value.sum() for value in sums]).isfinite().cpu().all())

    many = bench.best(f"{name}, {len(sums)} sums", model, [len(sums)], apart)
    one = bench.best(f"{name}, one buffer of them", model, [1], lambda _: bool(flat.zero_().sum().isfinite()))
    over = ratio("sums_over_flat", many, one)["sums_over_flat"]
    return {f"sums_over_flat_{name}": over, f"sums_seconds_{name}": many and round(many.seconds, 6)}


def packed_pass(model: Any, rows: Sequence[Encoded], batch_tokens: int) -> None:
    """Forward and backward of the mean loss in rows without padding, each example on its own."""
    precision, count = pick_precision("auto"), sum(row.supervised for row in rows)
    for row in pack(rows, batch_tokens, share=False):
        task = packed_task(row, model).to(model.device)
        with segmented(model, row.segments, model.device):
            with autocast(precision):
                loss = task_nll(model, task).sum() / count
            loss.backward()
    model.zero_grad(set_to_none=True)


def trl_pass(trainer: SFTTrainer, batches: Sequence[Mapping[str, Any]]) -> None:
    """The same by TRL's loss."""
    for batch in batches:
        with autocast(pick_precision("auto")):
            loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
    trainer.model.zero_grad(set_to_none=True)


def trl_of(bench: Bench, model: Any, size: int, *, packing: bool, liger: bool) -> SFTTrainer:
    """TRL's trainer of the examples: rows of up to `size` tokens, or batches of `size` examples."""
    arguments = SFTConfig(
        output_dir=str(bench.work / "trl"),
        packing=packing,
        max_length=size if packing else None,
        per_device_train_batch_size=1 if packing else size,
        use_liger_kernel=liger,
        use_cpu=bench.device == "cpu",
        bf16=False,  # `trl_pass` runs it under autocast
        gradient_checkpointing=False,
        report_to="none",
    )
    data = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in bench.rows])
    return SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=bench.tokenizer)


def bench_training(bench: Bench, model: Any, name: str) -> dict[str, float | None]:
    """TRL and Liger change the model, so that ours is first and Liger last."""
    model.train()
    tokens, counts = bench.sizes
    ours = bench.best(f"{name}, packed rows", model, tokens, lambda n: packed_pass(model, bench.rows, n))
    found: dict[str, float | None] = {}
    for other in ("trl_padded", "trl_flash", "trl_flash_liger"):
        packing, liger = other != "trl_padded", other.endswith("liger")
        key = f"packed_over_{other}"
        flash = packing and bench.device == "cuda"  # else sdpa stands in
        missing = ["flash-attn"] * (flash and not is_flash_attn_2_available())
        missing += ["liger-kernel"] * (liger and not is_liger_kernel_available())
        if missing:
            print(f"{name}, {other}: left out, {' and '.join(missing)} is not installed")
            found[key] = None
            continue
        model.set_attn_implementation("flash_attention_2" if flash else "sdpa")
        made = {n: trl_of(bench, model, n, packing=packing, liger=liger) for n in (tokens if packing else counts)}
        batches = {n: list(trainer.get_train_dataloader()) for n, trainer in made.items()}
        theirs = bench.best(f"{name}, {other}", model, [*made], lambda n, m=made, b=batches: trl_pass(m[n], b[n]))
        found |= ratio(key, ours, theirs)
    return {f"{key}_{name}": value for key, value in found.items()}


def write_inputs(folder: Path, size: Mapping[str, int]) -> None:
    """A sketch of random inputs beside a checkpoint of `write_model`."""
    layers, widths = {}, {}
    for name, shape in shapes_of(dict(size)).items():
        if name.endswith("_proj.weight"):
            layer, part = name.split(".")[2], name.split(".")[4].removesuffix("_proj")
            layers[name] = f"{layer}.{INPUTS[part]}"
            widths[layers[name]] = shape[1]
    rank = rank_for(widths, len(layers), round(SKETCH_SHARE * Checkpoint.open(folder).nbytes))
    inputs = {}
    for name, width in widths.items():
        rows = torch.randint(-127, 128, (min(rank, width), width), dtype=torch.int8)
        # A third of the diagonal lies in these directions.
        inputs[name] = LowRank(rows, torch.full((len(rows),), 1 / 127 / len(rows) ** 0.5), torch.ones(width))
    mark = weights_fingerprint(folder)
    write_sketch(folder, SketchFacts(branch="-", weights=mark, wanted=0, examples=0, tokens=0, layers=layers), inputs)


def bench_merge(bench: Bench, size: Mapping[str, int]) -> dict[str, float | None]:
    """Whole merges: reading and writing count."""
    folder = bench.work / "merge"
    base = write_model(folder / "base", dict(size), "BF16", 99)
    inputs = [write_model(folder / f"in{n}", dict(size), "BF16", n) for n in range(BRANCHES)]
    for path in inputs:
        write_inputs(path, size)
    figures: dict[str, Figure] = {}
    for name in ("average", "actmat", "actmat_card", "regmean", "regmean_card"):
        rule, device = name.partition("_")[0], bench.device if "_" in name else None
        start_peak()
        started = time.perf_counter()
        solved = {} if rule == "average" else {"rule": rule, "device": device}
        merge_checkpoints(inputs, WEIGHTS * 2, {1.0: folder / name}, base=base, **solved)
        figures[name] = Figure(time.perf_counter() - started, peak_mb() if device else None)
        print(f"{BRANCHES} branches, {size['num_hidden_layers']} layers, {name}: {figures[name]}", flush=True)
    found: dict[str, float | None] = {}
    for rule in ("actmat", "regmean"):
        for other in (rule, "average"):
            found |= ratio(f"{rule}_card_over_{other}", figures[f"{rule}_card"], figures[other])
        one, two = (Checkpoint.open(folder / name) for name in (rule, f"{rule}_card"))
        unlike = sum(int((one.tensor(name) != two.tensor(name)).sum()) for name in one.tensors) / one.elements
        print(f"{rule}: {unlike:.1e} of the numbers round otherwise on the GPU")
        found[f"{rule}_unlike"] = unlike
    shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, the same keys, under a minute")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", default="sketch,sums,training,merge")
    parser.add_argument("--examples", type=int, default=24, help="of each of 22 families")
    parser.add_argument("--layers", type=int, default=9, help="of the merge; the whole model has 36")
    parser.add_argument("--work", type=Path, help="scratch folder; default: a temporary one")
    options = parser.parse_args()
    if (options.device == "cuda") != torch.cuda.is_available():
        there = "hide this machine's GPU (CUDA_VISIBLE_DEVICES=)" if options.device == "cpu" else "no CUDA GPU is here"
        print(f"--device {options.device}: {there}", file=sys.stderr)
        sys.exit(2)
    parts = options.only.split(",")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(ModelConfig(path="embedded:smollm2-135m"), Path()).path)
    rows = examples(6) if options.quick else quarter(families(tokenizer, 22, options.examples), options.examples)
    found: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        sizes = ((512,), (2,)) if options.quick else (ROW_TOKENS, ROWS)
        bench = Bench(options.device, 1 if options.quick else 3, sizes, tokenizer, rows, Path(name))
        works = {"sketch": bench_sketch, "sums": bench_sums, "training": bench_training}
        for label, size in {"1b": REAL_1B, "3b": REAL_3B}.items() if works.keys() & set(parts) else ():
            try:
                model = random_model(QUICK if options.quick else size, options.device)
                for work in (work for part, work in works.items() if part in parts):
                    found |= work(bench, model, label)
            except torch.OutOfMemoryError:
                print(f"{label}: the model does not fit")
            model = None
        if "merge" in parts:
            for size in (QUICK,) if options.quick else (QUICK, REAL_3B | {"num_hidden_layers": options.layers}):
                found |= bench_merge(bench, size)  # the first of two warms up
    print(json.dumps(found))


if __name__ == "__main__":
    main()
