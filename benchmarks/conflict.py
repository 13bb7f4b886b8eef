"""The conflict engine: speed, memory, similarity and fidelity, as ratios within one run.

    python benchmarks/conflict.py [--quick] [--model PATH] [--only speed,memory,similarity,fidelity]

Prints a table, and as its last line one JSON object. The full run needs 40 GB of scratch space and an idle machine.
On a GPU, which a thousand tokens do not fill, add `--batch-tokens 16384 --examples 32`.
"""

from __future__ import annotations

import argparse
import functools
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
from torch.nn import functional as F  # noqa: N812

from merit.config.sections import ModelConfig
from merit.conflict.axes import principal_axes
from merit.conflict.similarity import cosines, gram
from merit.data.example import IGNORED, Encoded
from merit.gradients.engine import GradientEngine
from merit.gradients.sketch import SketchLayout, SketchSpec
from merit.gradients.store import RowInfo, SketchStore, StoreInfo
from merit.models.loading import Precision, autocast, load_model, pick_precision
from merit.models.source import resolve_model
from merit.split.evidence import captured
from merit.split.splitters.pca import pca_partition

FAMILIES = [
    *("ab", "acre", "advanced_geometry", "aiw", "base_conversion", "basic_arithmetic", "binary_alternation"),
    *("binary_matrix", "bitwise_arithmetic", "caesar_cipher", "calendar_arithmetic", "chain_sum", "coin_flip"),
    *("color_cube_rotation", "complex_arithmetic", "count_bits", "count_primes", "countdown", "course_schedule"),
    *("cryptarithm", "decimal_arithmetic", "dice"),
]
FOLD = SketchSpec(kind="fold", fold=100)
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
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
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


def fidelity(model: Any, data: dict[str, list[Encoded]], folder: Path) -> dict[str, float]:
    """Cosines of sketches against those of the full gradients, off the diagonal; conflict that 2D groups capture."""
    names = list(data)
    stores = {spec.kind: collect(model, data, spec, folder / spec.kind) for spec in (SketchSpec(kind="full"), FOLD)}
    found = {label: cosines(gram(store, names)) for label, store in stores.items()}
    # The rest follows from these: a companion holds hashed rows, and sampling picks from full gradients.
    found["hashed"] = cosines(gram(stores["fold"].companion, names))
    for offset in (0, 50, 99):
        rows = np.stack([stores["full"].read_halves(name).sum(0)[offset::100] for name in names]).astype(np.float64)
        found[f"flat offset {offset}"] = cosines(rows @ rows.T)
    tokens = {name: sum(e.supervised for e in data[name]) for name in names}
    equal = dict.fromkeys(names, 1)
    upper = np.triu_indices(len(names), 1)

    def share(matrix: np.ndarray, weights: dict[str, int]) -> float:
        """Of the conflict that the full gradients' groups capture; the cuts and the variance weigh datasets alike."""

        def groups(matrix: np.ndarray) -> list[list[int]]:
            partition = pca_partition(principal_axes(names, matrix, axes=2), weights, r=2)
            return [[names.index(name) for name in group.datasets] for group in partition.groups]

        return captured(found["full"], groups(matrix), groups(found["full"]), [float(w) for w in weights.values()])

    full, result = found["full"], {}
    for label, matrix in found.items():
        r = float(np.corrcoef(matrix[upper], full[upper])[0, 1])
        worst = float(np.abs(matrix - full).max())
        by_tokens, alike = share(matrix, tokens), share(matrix, equal)
        print(
            f"{label:15s} r {r:.5f}  largest error {worst:.4f}  captured 2D {by_tokens:.3f}, datasets alike {alike:.3f}"
        )
        if label == "fold":
            result |= {"fidelity_r": r, "fidelity_max_error": worst}
            result |= {"captured_2d": by_tokens, "captured_2d_equal": alike}
        elif label == "hashed":
            result |= {"hashed_r": r, "hashed_max_error": worst}
    return result


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
    result: dict[str, float] = {}
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
