"""The conflict engine: speed, memory, similarity and fidelity, as ratios within one run.

    python benchmarks/conflict.py [--quick] [--model PATH] [--only speed,memory,similarity,fidelity]

Prints a table, and as its last line one JSON object. The full run needs 40 GB of scratch space and an idle machine.
On a GPU, which a thousand tokens do not fill, add `--batch-tokens 16384 --examples 32`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score
from torch.nn import functional

from merit.config.sections import ModelConfig
from merit.conflict.axes import principal_axes
from merit.conflict.similarity import HalfGram, cosines, gram, half_gram
from merit.data.example import IGNORED, Encoded
from merit.gradients.engine import GradientEngine
from merit.gradients.sketch import SketchLayout, SketchSpec
from merit.gradients.store import HASHED, RowInfo, SketchStore, StoreInfo
from merit.models.loading import Precision, autocast, load_model, pick_precision
from merit.models.source import resolve_model
from merit.split.evidence import between_variance, captured, unit_products
from merit.split.median import median_partition
from merit.split.splitters.pca import pca_partition

FAMILIES = [
    *("ab", "acre", "advanced_geometry", "aiw", "base_conversion", "basic_arithmetic", "binary_alternation"),
    *("binary_matrix", "bitwise_arithmetic", "caesar_cipher", "calendar_arithmetic", "chain_sum", "coin_flip"),
    *("color_cube_rotation", "complex_arithmetic", "count_bits", "count_primes", "countdown", "course_schedule"),
    *("cryptarithm", "decimal_arithmetic", "dice"),
]
FOLD = SketchSpec(kind="fold", fold=100)
SKETCHES = {
    "full": SketchSpec(kind="full"),
    "fold 100": FOLD,
    "fold 20": SketchSpec(kind="fold", fold=20),
    "flat 5": SketchSpec(kind="flat", stride=5),  # as published: 20% of the numbers
}
STRIDES = [*((5, offset) for offset in range(5)), *((100, offset) for offset in (0, 50, 99))]
BATCH_TOKENS = 1024


def load(path: str) -> tuple[Any, Any]:
    """Model (fp32, evaluation mode) and tokenizer."""
    from transformers import AutoTokenizer

    folder = resolve_model(ModelConfig(path=path), Path.cwd()).path
    return load_model(folder).float().eval(), AutoTokenizer.from_pretrained(folder)


def families(tokenizer: Any, count: int, examples: int) -> dict[str, list[Encoded]]:
    """reasoning-gym datasets in the model's chat format, answers supervised."""
    import reasoning_gym

    result = {}
    for name in FAMILIES[:count]:
        rows = reasoning_gym.create_dataset(name, size=examples, seed=0)
        result[name] = [_encode(tokenizer, rows[i]["question"], str(rows[i]["answer"])) for i in range(examples)]
    return result


def _encode(tokenizer: Any, question: str, answer: str) -> Encoded:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    completion = tokenizer(f"{answer}{tokenizer.eos_token}", add_special_tokens=False).input_ids
    return Encoded(prompt + completion, [IGNORED] * len(prompt) + completion)


def quarter(data: dict[str, list[Encoded]], each: int) -> list[Encoded]:
    """`each` examples a family, shuffled, with the last quarter of their tokens supervised."""
    rows = [e for rows in data.values() for e in rows[:each]]
    order = np.random.default_rng(0).permutation(len(rows))
    result = []
    for i in order:
        ids = rows[i].input_ids
        prompt = len(ids) - max(1, len(ids) // 4)
        result.append(Encoded(ids, [IGNORED] * prompt + ids[prompt:]))
    return result


def plain(model: Any, data: list[Encoded], precision: Precision, size: int, *, by_length: bool) -> None:
    """Forward and backward of the mean loss over batches of `size`, all logits, as a training loop does it."""
    rows = sorted(data, key=lambda e: len(e.input_ids)) if by_length else data
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        longest = max(len(e.input_ids) for e in part)
        pads = [longest - len(e.input_ids) for e in part]
        table = [
            [e.input_ids + [0] * pad for e, pad in zip(part, pads, strict=True)],
            [[1] * len(e.input_ids) + [0] * pad for e, pad in zip(part, pads, strict=True)],
            [e.labels + [IGNORED] * pad for e, pad in zip(part, pads, strict=True)],
        ]
        ids, mask, labels = torch.tensor(table, device=model.device)
        with autocast(precision):
            logits = model(input_ids=ids, attention_mask=mask if size > 1 else None, use_cache=False).logits
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        loss.backward()
        model.zero_grad(set_to_none=True)


def sketch(
    model: Any, data: list[Encoded], precision: Any, spec: SketchSpec = FOLD, *, batch_tokens: int = BATCH_TOKENS
) -> np.ndarray:
    """Half sums of the whole list as one dataset."""
    return engine_of(model, precision, spec, batch_tokens).measure("all", data).sums


@functools.lru_cache(maxsize=1)
def engine_of(model: Any, precision: Any, spec: SketchSpec, batch_tokens: int) -> GradientEngine:
    """One engine serves all datasets of a run, so it is not made anew each time."""
    return GradientEngine(model, spec, batch_tokens=batch_tokens, precision=precision)


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` runs after one to warm up."""
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        work()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        if i:
            times.append(time.perf_counter() - start)
    return float(np.median(times))


def speed(model: Any, data: list[Encoded], repeats: int, batch_tokens: int) -> dict[str, float]:
    """Ratios of seconds. Plain is the fastest of several sizes of batch, sorted by length."""
    result: dict[str, float] = {}
    tokens = sum(len(e.input_ids) for e in data)
    fastest = pick_precision("auto")
    if fastest != "bf16":
        print("bf16: left out, this processor would emulate it")
    sizes = (1, 4) if model.device.type == "cpu" else (8, 32, 64)
    for precision in dict.fromkeys((fastest, "fp32")):
        ours = seconds(lambda p=precision: sketch(model, data, p, batch_tokens=batch_tokens), repeats)
        base = min(seconds(lambda p=precision, s=s: plain(model, data, p, s, by_length=True), repeats) for s in sizes)
        print(f"{precision}: sketch {tokens / ours:8.1f} tokens/s, plain {tokens / base:8.1f}: {ours / base:.3f}")
        result[f"sketch_over_plain_{precision}"] = ours / base
        if precision == "bf16":
            padded = seconds(lambda p=precision: plain(model, data, p, 8, by_length=False), repeats)
            print(f"{precision}: padded batches of 8 {tokens / padded:8.1f} tokens/s: {ours / padded:.3f}")
            result["sketch_over_padded"] = ours / padded
    return result


def memory(model_path: str, batch_tokens: int) -> dict[str, float]:
    """Peak memory of a process that sketches ÷ of one that only runs forward, on as many tokens at once.

    Of the whole process on a CPU, of tensors on a GPU. The first figure is with `recompute`, which costs time; the
    second without.
    """
    peaks = {}
    for what in ("forward", "recompute", "sketch"):
        command = [sys.executable, __file__, "--model", model_path, "--batch-tokens", str(batch_tokens), "--peak", what]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[what] = float(output.splitlines()[-1])
        print(f"peak of a process that runs {what}: {peaks[what]:.0f} MB")
    return {
        "peak_over_forward": peaks["recompute"] / peaks["forward"],
        "peak_over_forward_fast": peaks["sketch"] / peaks["forward"],
    }


def peak(model_path: str, what: str, batch_tokens: int) -> None:
    """Runs in a process of its own; prints the peak in MB."""
    model, _ = load(model_path)
    ids = [(7 * i) % 1000 + 5 for i in range(256)]
    count = batch_tokens // 256  # as many as a sketched row holds
    data = [Encoded(ids[i:] + ids[:i], [IGNORED] * 192 + (ids[i:] + ids[:i])[192:]) for i in range(2 * count)]
    precision = pick_precision("auto")
    if what == "forward":
        with torch.no_grad(), autocast(precision):
            for start in (0, count):
                rows = [e.input_ids for e in data[start : start + count]]
                model(input_ids=torch.tensor(rows, device=model.device), use_cache=False)
    else:
        recompute = what == "recompute"
        engine = GradientEngine(model, FOLD, batch_tokens=batch_tokens, precision=precision, recompute=recompute)
        engine.measure("all", data)
    gpu = torch.accelerator.is_available()
    print(torch.accelerator.max_memory_allocated() / 2**20 if gpu else peak_mb())


def peak_mb() -> float:
    """Of this process alone; `ru_maxrss` would start from the parent's size."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024


def similarity(folder: Path, datasets: int, numbers: int) -> dict[str, float]:
    """Cosines of a synthetic store, in a process of its own so that its peak is its own."""
    layout = SketchLayout.plan(SketchSpec(kind="full"), [("w", [numbers], 0)])
    store = SketchStore.create(folder, StoreInfo(model_fingerprint="-", precision="fp32", layout=layout))
    rng = np.random.default_rng(0)
    for i in range(datasets):
        row = RowInfo(name=f"d{i}", fingerprint="-", numbers=numbers, examples=(1, 1), tokens=(1, 1), losses=(1, 1))
        path = store.path(row.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        rng.standard_normal(numbers, dtype=np.float32).tofile(path)
        with path.open("r+b") as handle:
            handle.truncate(store.row_bytes)  # the first half-set's sum: not read, so a hole will do
        row.save(path.with_suffix(".json"))
    code = (
        "import re, sys, time; from pathlib import Path; from merit.conflict.similarity import cosines, gram;"
        "from merit.gradients.store import SketchStore; s = SketchStore.open(Path(sys.argv[1]));"
        "t = time.perf_counter(); cosines(gram(s, [f'd{i}' for i in range(int(sys.argv[2]))]));"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text()).group(1);"
        "print(time.perf_counter() - t, int(peak) / 1024)"
    )
    command = [sys.executable, "-c", code, str(folder), str(datasets)]
    took, size = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    print(f"similarity of {datasets} × {numbers:,}: {took:.1f} s, {size:.0f} MB")
    return {"similarity_seconds": took, "similarity_peak_mb": size}


def collect(
    model: Any, data: dict[str, list[Encoded]], spec: SketchSpec, folder: Path, precision: Any = "fp32"
) -> SketchStore:
    """A store of every dataset's sketch."""
    engine = GradientEngine(model, spec, batch_tokens=BATCH_TOKENS, precision=precision)
    store = SketchStore.create(folder, StoreInfo(model_fingerprint="-", precision=precision, layout=engine.layout))
    for name, examples in data.items():
        half = engine.measure(name, examples)
        row = RowInfo(
            name=name,
            fingerprint="-",
            numbers=store.numbers,
            examples=half.examples,
            tokens=half.tokens,
            losses=half.losses,
        )
        store.write(row, half.sums)
    return store


def fidelity(model: Any, data: dict[str, list[Encoded]], folder: Path) -> dict[str, Any]:
    """Cosines of sketches against those of the full gradients, off the diagonal, and the conflict that their 2D groups
    capture, cut as published and as by default. One line a sketch; the seconds are of measuring it."""
    names = list(data)
    stores, took = {}, {}
    for label, spec in SKETCHES.items():
        start = time.perf_counter()
        stores[label] = collect(model, data, spec, folder / label.replace(" ", "-"))
        took[label] = time.perf_counter() - start
    found = {label: cosines(gram(store, names)) for label, store in stores.items()}
    kept = {label: store.numbers for label, store in stores.items()}
    # The rest follows from these: a companion holds hashed rows, and sampling picks from full gradients.
    found["hashed"], kept["hashed"] = cosines(gram(stores["fold 100"].companion, names)), HASHED
    for stride, offset in STRIDES:
        products = _strided(stores["full"], names, stride, offset)
        label = f"flat {stride}, offset {offset}"
        found[label], kept[label] = cosines(products), -(-(stores["full"].numbers - offset) // stride)
    weights = {
        "samples": dict.fromkeys(names, len(next(iter(data.values())))),
        "tokens": {name: sum(e.supervised for e in data[name]) for name in names},
    }
    full, upper = found["full"], np.triu_indices(len(names), 1)

    def share(matrix: np.ndarray, balance: str) -> float:
        """Of the conflict that the full gradients' groups capture; the cuts and the variance weigh datasets alike."""

        def groups(matrix: np.ndarray) -> list[list[int]]:
            partition = pca_partition(principal_axes(names, matrix, axes=2), weights[balance], r=2)
            return [[names.index(name) for name in group.datasets] for group in partition.groups]

        sizes = [float(w) for w in weights[balance].values()]
        return captured(full, groups(matrix), groups(full), sizes)

    print(
        f"{'sketch':20s} {'numbers':>11s}  seconds   r        Spearman  mean |d|  RMSE    max |d|  "
        "captured: samples, tokens"
    )
    rows: dict[str, dict[str, float]] = {}
    for label, matrix in found.items():
        difference = (matrix - full)[upper]
        rows[label] = row = {
            "numbers": kept[label],
            "r": float(np.corrcoef(matrix[upper], full[upper])[0, 1]),
            "spearman": float(spearmanr(matrix[upper], full[upper]).statistic),
            "mean_error": float(np.abs(difference).mean()),
            "rmse": float(np.sqrt((difference**2).mean())),
            "max_error": float(np.abs(matrix - full).max()),
            **{f"captured_{balance}": share(matrix, balance) for balance in weights},
        }
        seconds_ = f"{took[label]:8.1f}" if label in took else "       –"
        print(
            f"{label:20s} {kept[label]:11,d} {seconds_}   {row['r']:.5f}  {row['spearman']:.4f}    "
            f"{row['mean_error']:.4f}    {row['rmse']:.4f}  {row['max_error']:.4f}   "
            f"{row['captured_samples']:.3f}, {row['captured_tokens']:.3f}"
        )
    fold = rows["fold 100"]
    fresh = cuts(half_gram(stores["fold 100"].companion, names), weights)
    return {
        "cuts": fresh,
        "fidelity_r": fold["r"],
        "fidelity_max_error": fold["max_error"],
        "captured_2d": fold["captured_samples"],
        "captured_2d_tokens": fold["captured_tokens"],
        "hashed_r": rows["hashed"]["r"],
        "hashed_max_error": rows["hashed"]["max_error"],
        "sketches": rows,
        "sketch_seconds": took,
    }


def cuts(halves: HalfGram, weights: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """Every centring and balance: how alike its groups are to the published ones (adjusted Rand index), and the
    conflict between them on the half of the examples that they were not found on, a random partition's beside."""
    names, rng = list(halves.names), np.random.default_rng(0)
    judges = [unit_products(halves, 1 - half, debias=True) for half in range(2)]
    alone = [[i] for i in range(len(names))]

    def share(groups: list[list[int]], half: int) -> float:
        even = [1.0] * len(names)
        return between_variance(judges[half], groups, even) / between_variance(judges[half], alone, even)

    found = []
    print("axes  centre   balance   adjusted Rand  conflict between groups, fresh examples  random")
    possible = [r for r in (1, 2, 3) if 2**r <= len(names)]
    for r, centre, balance in itertools.product(possible, ("columns", "both", "none"), weights):
        made = [
            [
                pca_partition(principal_axes(names, unit_products(halves, half), axes=r, centre=c), weights[b], r=r)
                for half in range(2)
            ]
            for c, b in ((centre, balance), ("columns", "samples"))
        ]
        labels = [[[p.group_of[name] for name in names] for p in pair] for pair in made]
        alike = float(np.mean([adjusted_rand_score(*pair) for pair in zip(*labels, strict=True)]))
        captured_ = float(np.mean([share(made[0][half].indices(names), half) for half in range(2)]))
        chance = []
        for _ in range(200):
            scores = dict(zip(names, rng.standard_normal((len(names), r)).tolist(), strict=True))
            drawn = median_partition("random", scores, weights[balance], axes=r).indices(names)
            chance.append(np.mean([share(drawn, half) for half in range(2)]))
        row = {"axes": r, "centre": centre, "balance": balance, "alike": alike, "share": captured_}
        row |= {"random": float(np.mean(chance))}
        print(f"{r:4d}  {centre:8s} {balance:8s} {alike:14.2f}  {captured_:38.1%}  {row['random']:6.1%}")
        found.append(row)
    return found


def _strided(store: SketchStore, names: list[str], stride: int, offset: int) -> np.ndarray:
    """Products of every `stride`-th number of the full gradients, in blocks that fit into memory."""
    products = np.zeros((len(names), len(names)))
    block = 4_000_000 // stride * stride
    for start in range(0, store.numbers, block):
        rows = np.empty((len(names), min(block, store.numbers - start)), np.float32)
        for i, name in enumerate(names):
            store.read_total(name, start, rows[i])
        part = rows[:, offset::stride].astype(np.float64)
        products += part @ part.T
    return products


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller inputs, the same keys, under a minute")
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--only", default="speed,memory,similarity,fidelity")
    parser.add_argument("--repeats", type=int, default=3, help="of each timing; the median counts")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS, help="of a sketched row (speed, memory)")
    parser.add_argument("--examples", type=int, default=2, help="of each family (speed)")
    parser.add_argument("--peak", choices=("forward", "recompute", "sketch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.model, options.peak, options.batch_tokens)
        return
    parts = options.only.split(",")
    result: dict[str, Any] = {}
    model, tokenizer = load(options.model)
    count, each = (5, 2) if options.quick else (22, max(16, options.examples))
    data = families(tokenizer, count, each)
    with tempfile.TemporaryDirectory() as scratch:
        if "speed" in parts:
            rows = quarter(data, 1 if options.quick else options.examples)
            result |= speed(model, rows, 1 if options.quick else options.repeats, options.batch_tokens)
        if "memory" in parts:
            result |= memory(options.model, options.batch_tokens)
        if "similarity" in parts:
            size = (136, 300_000) if options.quick else (136, 30_000_000)
            result |= similarity(Path(scratch) / "similarity", *size)
        if "fidelity" in parts:
            sixteen = {name: rows[:16] for name, rows in data.items()}
            result |= fidelity(model, sixteen, Path(scratch) / "fidelity")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
