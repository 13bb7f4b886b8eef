"""The merge engine: time against mergekit and against a plain copy, peak memory, and exactness, within one run.

    python benchmarks/merge.py [--quick] [--mergekit PATH/TO/mergekit-yaml] [--big] [--work DIR]
    python benchmarks/merge.py --rule [--quick] [--big] [--layers N] [--work DIR]

mergekit runs from an environment of its own, named by --mergekit or $MERGEKIT. Whole processes alternate, so both meet
the same machine. Prints a table, and as its last line one JSON object. `--big` adds 8 × 4 GB (36 GB of scratch space).
`--rule` measures actmat against the average; with `--big` instead on a 3B model's shapes in bfloat16, half of its 36
layers (21 GB of scratch space; `--layers 36`: twice the time, 38 GB). The scratch folder is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from merit.models.checkpoint import Checkpoint, FilePool, TensorInfo
from merit.models.writer import OutTensor, ShardFiles, ShardPlan

# SmolLM2-135M: 134.5M parameters, 538 MB in float32. Quick: 17M.
FULL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
QUICK = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "vocab_size": 32768}
# 2.0G parameters, 4.0 GB in bfloat16.
BIG = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 20, "vocab_size": 128256}
# Qwen2.5-3B: 3.1G parameters, 6.2 GB in bfloat16.
REAL_3B = {
    "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "vocab_size": 151936,
    "head_dim": 128, "num_key_value_heads": 2,
}  # fmt: skip
HEAD = 64
WEIGHTS = [5.0, 2.0, 7.0, 3.0]
LIBRARY = """
import sys, time
from pathlib import Path
from merit.merge.average import merge_checkpoints
*inputs, out, dtype = sys.argv[1:]
weights = ([5.0, 2.0, 7.0, 3.0] * 4)[:len(inputs)]
started = time.perf_counter()
merge_checkpoints([Path(p) for p in inputs], weights, {1.0: Path(out)}, dtype=dtype)
print(time.perf_counter() - started)
"""


def config_of(size: dict[str, int], dtype: str) -> dict[str, Any]:
    """A Llama configuration with tied embeddings."""
    heads = size["hidden_size"] // size.get("head_dim", HEAD)
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": heads,
        "num_key_value_heads": heads // 3 or 1, "head_dim": HEAD, "tie_word_embeddings": True, "dtype": dtype,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
    } | size  # fmt: skip


def shapes_of(size: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of that model."""
    wide, inner = size["hidden_size"], size["intermediate_size"]
    config = config_of(size, "")
    narrow = config["num_key_value_heads"] * config["head_dim"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (size["vocab_size"], wide)}
    for layer in range(size["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found |= {
            f"{at}.input_layernorm.weight": (wide,),
            f"{at}.mlp.down_proj.weight": (wide, inner),
            f"{at}.mlp.gate_proj.weight": (inner, wide),
            f"{at}.mlp.up_proj.weight": (inner, wide),
            f"{at}.post_attention_layernorm.weight": (wide,),
            f"{at}.self_attn.k_proj.weight": (narrow, wide),
            f"{at}.self_attn.o_proj.weight": (wide, wide),
            f"{at}.self_attn.q_proj.weight": (wide, wide),
            f"{at}.self_attn.v_proj.weight": (narrow, wide),
        }
    return found | {"model.norm.weight": (wide,)}


def write_model(folder: Path, size: dict[str, int], dtype: str, seed: int) -> Path:
    """A checkpoint of random weights; dtype is F32 or BF16. Each piece is cut from one pool of random numbers."""
    folder.mkdir(parents=True)
    names = {"F32": ("float32", 4), "BF16": ("bfloat16", 2)}
    config = config_of(size, names[dtype][0])
    (folder / "config.json").write_text(json.dumps(config))
    bytes_each = names[dtype][1]
    tensors = [OutTensor(n, dtype, s, int(np.prod(s)) * bytes_each) for n, s in shapes_of(size).items()]
    files = ShardFiles(folder, ShardPlan.make(tensors, 1 << 62))
    random = np.random.default_rng(seed)
    pool = random.standard_normal(1 << 24, np.float32) * np.float32(0.02)
    for tensor in tensors:
        for start in range(0, tensor.nbytes, 1 << 24):
            count = min(1 << 24, tensor.nbytes - start) // bytes_each
            values = pool[(at := int(random.integers(pool.size - count + 1))) : at + count]
            data = values if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16)
            files.write(tensor.name, start, data.view(np.uint8).data)
    files.sync()
    files.close()
    return folder


def run(command: list[str], out: Path | None = None) -> tuple[float, float, str]:
    """Seconds, peak resident MB (mapped file pages counted) and output of a whole process."""
    if out is not None:
        shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{' '.join(command[:4])} … failed:\n{errors[-2000:]}")
    return seconds, float("nan"), output


def measured(command: list[str], out: Path) -> tuple[float, float, str]:
    """As `run`, with the peak read by a parent of its own: getrusage knows only the largest of all children."""
    script = (
        "import json, resource, subprocess, sys, time\n"
        "t = time.perf_counter(); r = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "s = time.perf_counter() - t; peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024\n"
        "print(json.dumps([s, peak, r.stdout])) if r.returncode == 0 else sys.exit(r.stderr[-2000:])\n"
    )
    _, _, text = run([sys.executable, "-c", script, *command], out)
    seconds, peak, output = json.loads(text)
    return float(seconds), float(peak), str(output)


def ours(inputs: list[Path], out: Path) -> list[str]:
    """The command line, as a user types it."""
    weights = ",".join(map(str, (WEIGHTS * 4)[: len(inputs)]))
    return [sys.executable, "-m", "merit", "merge", *map(str, inputs), "--weights", weights, "-o", str(out)]


def by_rule(inputs: list[Path], base: Path, out: Path, rule: str) -> list[str]:
    """The same with θ0, by `average` or by a rule."""
    options = [] if rule == "average" else ["--rule", rule]
    return [*ours(inputs, out), "--base", str(base), *options]


def theirs(mergekit: str, inputs: list[Path], out: Path, work: Path) -> list[str]:
    """mergekit's `linear` on the same inputs and weights."""
    models = [{"model": str(p), "parameters": {"weight": w}} for p, w in zip(inputs, WEIGHTS, strict=False)]
    recipe = {"merge_method": "linear", "models": models, "parameters": {"normalize": True}, "dtype": "float32"}
    (work / "recipe.yaml").write_text(json.dumps(recipe))
    return [mergekit, str(work / "recipe.yaml"), str(out), "--no-copy-tokenizer", "--quiet"]


def library(inputs: list[Path], out: Path, dtype: str = "input") -> float:
    """Seconds of the merge alone, imports not counted."""
    return float(run([sys.executable, "-c", LIBRARY, *map(str, inputs), str(out), dtype], out)[2])


def copy_seconds(inputs: list[Path], out: Path, written: int) -> float:
    """Reading all inputs, then writing what a merge writes, durably."""
    out.unlink(missing_ok=True)
    blocks = -(-written // (1 << 20))
    started = time.perf_counter()
    files = " ".join(str(path / "model.safetensors") for path in inputs)
    first = inputs[0] / "model.safetensors"
    command = f"cat {files} > /dev/null; dd if={first} of={out} bs=1M count={blocks} conv=fsync status=none"
    subprocess.run(["sh", "-c", command], check=True)
    seconds = time.perf_counter() - started
    out.unlink()
    return seconds


def drop_caches() -> bool:
    """Empties the page cache, where the machine lets us."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def identical(inputs: list[Path], out: Path) -> bool:
    """Whether every element is the float64 mean, rounded once, by another road than the engine's."""
    merged = Checkpoint.open(out)
    opened = [Checkpoint.open(path) for path in inputs]
    weights = (WEIGHTS * 4)[: len(inputs)]
    with FilePool() as files:
        for name, info in merged.tensors.items():
            total = np.zeros(info.elements)
            for checkpoint, weight in zip(opened, weights, strict=True):
                total += _float64(files, checkpoint.info(name)) * weight
            raw = np.empty(info.nbytes, np.uint8)
            files.read(info, 0, raw)
            if not np.array_equal(raw, _rounded(total / sum(weights), info.dtype)):
                return False
    return True


def _float64(files: FilePool, info: TensorInfo) -> np.ndarray:
    raw = np.empty(info.nbytes, np.uint8)
    files.read(info, 0, raw)
    if info.dtype == "BF16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.view(np.float32).astype(np.float64)


def _rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "F32":
        return values.astype(np.float32).view(np.uint8)
    # On the bits of float64 itself: add half of the last kept place, ties to even, then cut. Normal numbers only.
    bits = values.view(np.uint64)
    kept = np.uint64(52 - 7)
    bits = bits + (np.uint64((1 << 44) - 1) + ((bits >> kept) & np.uint64(1)))
    cut = ((bits >> kept) << kept).view(np.float64).astype(np.float32)
    return (cut.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def show(rows: list[tuple[str, str]]) -> None:
    """A table of two columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def bench(work: Path, size: dict[str, int], rounds: int, mergekit: str | None) -> dict[str, Any]:
    """All but the big merge."""
    inputs = [write_model(work / f"in{n}", size, "F32", n) for n in range(4)]
    small = [write_model(work / f"small{n}", QUICK, "BF16", n) for n in range(4)]
    out = work / "out"
    written = (inputs[0] / "model.safetensors").stat().st_size
    rows = [("inputs", f"4 × {written / 1e6:.0f} MB fp32, {os.cpu_count()} cores")]
    warm = copy_seconds(inputs, work / "copy", written)
    mine, other, copies, alone = [], [], [warm], []
    peaks: dict[str, float] = {}
    for _ in range(rounds):
        seconds, peaks["merit"], _ = measured(ours(inputs, out), out)
        mine.append(seconds)
        if mergekit:
            seconds, peaks["mergekit"], _ = measured(theirs(mergekit, inputs, out, work), out)
            other.append(seconds)
        alone.append(library(inputs, out))
        copies.append(copy_seconds(inputs, work / "copy", written))
    best = {"ours": statistics.median(mine), "alone": statistics.median(alone), "copy": statistics.median(copies)}
    rows.append(("merit merge, whole process", f"{best['ours']:.2f} s, peak {peaks['merit']:.0f} MB"))
    rows.append(("merit, the merge alone", f"{best['alone']:.2f} s"))
    over = None
    if mergekit:
        over = statistics.median(other) / best["ours"]
        rows.append(("mergekit linear, whole process", f"{statistics.median(other):.2f} s, {peaks['mergekit']:.0f} MB"))
        rows.append(("mergekit ÷ merit, whole processes", f"{over:.1f}"))
        rows.append(("mergekit ÷ merit's merge alone", f"{statistics.median(other) / best['alone']:.1f}"))
    rows.append(
        ("cat inputs; dd, warm", f"{best['copy']:.2f} s; the merge takes {best['alone'] / best['copy']:.2f} of it")
    )
    if drop_caches():
        cold = copy_seconds(inputs, work / "copy", written)
        drop_caches()
        merge = library(inputs, out)
        rows.append(("cat inputs; dd, cold", f"{cold:.2f} s; the merge takes {merge / cold:.2f} of it"))
    memory = {k: measured(ours((inputs * 4)[:k], out), out)[1] for k in (2, 4, 8, 16)}
    rows.append(("peak MB at K = 2, 4, 8, 16", ", ".join(f"{peak:.0f}" for peak in memory.values())))
    exact = []
    for group, dtype in ((inputs, "input"), (inputs, "bfloat16"), (small, "input"), (small[:3], "float32")):
        library(group, out, dtype)
        exact.append(identical(group, out))
    rows.append(("bit-identical: fp32, fp32 → bf16, bf16, bf16 → fp32", ", ".join(map(str, exact))))
    show(rows)
    return {
        "over_mergekit": over,
        "peak_mb_k2": round(memory[2], 1),
        "peak_mb_k8": round(memory[8], 1),
        "bit_identical": all(exact),
        "over_copy": round(best["alone"] / best["copy"], 3),
    }


def bench_big(work: Path) -> None:
    """8 × 4 GB in bfloat16."""
    inputs = [write_model(work / f"big{n}", BIG, "BF16", n) for n in range(8)]
    total = sum((path / "model.safetensors").stat().st_size for path in inputs)
    drop_caches()
    seconds, peak, _ = measured(ours(inputs, work / "big-out"), work / "big-out")
    show([("8 × 4 GB bf16", f"{seconds:.1f} s, {total / seconds / 1e9:.2f} GB/s read, peak {peak:.0f} MB")])


def bench_rule(work: Path, size: dict[str, int], rounds: int) -> dict[str, Any]:
    """actmat against the average of the same inputs, θ0 given to both: whole processes, in turns."""
    base, out = write_model(work / "base", size, "F32", 99), work / "out"
    inputs = [write_model(work / f"in{n}", size, "F32", n) for n in range(4)]
    taken: dict[str, list[float]] = {"average": [], "actmat": []}
    for _ in range(rounds):
        for rule, seconds in taken.items():
            seconds.append(measured(by_rule(inputs, base, out, rule), out)[0])
    best = {rule: statistics.median(seconds) for rule, seconds in taken.items()}
    peaks = {k: measured(by_rule((inputs * 2)[:k], base, out, "actmat"), out)[1] for k in (2, 4, 8)}
    rows = [
        ("average of 4, with θ0, whole process", f"{best['average']:.2f} s"),
        ("actmat of the same", f"{best['actmat']:.2f} s: {best['actmat'] / best['average']:.1f} of it"),
        ("peak MB of actmat at K = 2, 4, 8", ", ".join(f"{peak:.0f}" for peak in peaks.values())),
    ]
    show(rows)
    return {"actmat_over_average": round(best["actmat"] / best["average"], 2), "actmat_peak_mb": round(peaks[4])}


def bench_rule_big(work: Path, layers: int) -> dict[str, Any]:
    """actmat of four branches with a 3B model's shapes and some of its layers."""
    size = REAL_3B | {"num_hidden_layers": layers}
    base = write_model(work / "base", size, "BF16", 99)
    inputs = [write_model(work / f"in{n}", size, "BF16", n) for n in range(4)]
    taken = sum(file.stat().st_size for file in work.rglob("*.safetensors")) / 5e9
    seconds, peak, _ = measured(by_rule(inputs, base, work / "out", "actmat"), work / "out")
    show(
        [
            ("inputs", f"θ0 and 4 × {taken:.1f} GB bf16, {layers} layers, {os.cpu_count()} cores"),
            ("actmat, whole process", f"{seconds / 60:.1f} min, {seconds / layers:.1f} s a layer, peak {peak:.0f} MB"),
        ]
    )
    return {"actmat_3b_layers": layers, "actmat_3b_minutes": round(seconds / 60, 1), "actmat_3b_peak_mb": round(peak)}


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description="Times the merge engine against mergekit and a plain copy.")
    parser.add_argument("--quick", action="store_true", help="under a minute: 4 × 67 MB")
    parser.add_argument("--mergekit", default=os.environ.get("MERGEKIT"), help="mergekit-yaml of another environment")
    parser.add_argument("--big", action="store_true", help="also 8 × 4 GB; with --rule: 3B shapes")
    parser.add_argument("--rule", action="store_true", help="actmat instead; with --big of 3B shapes")
    parser.add_argument("--layers", type=int, default=18, help="of --rule --big; the whole model has 36")
    parser.add_argument("--work", type=Path, default=None, help="scratch folder; default: a temporary one")
    options = parser.parse_args()
    if options.work:
        Path(options.work).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        size, rounds = (QUICK, 1) if options.quick else (FULL, 5)
        if options.rule:
            keys = bench_rule_big(Path(name), options.layers) if options.big else bench_rule(Path(name), size, rounds)
        else:
            keys = bench(Path(name), size, rounds, options.mergekit)
            if options.big:
                bench_big(Path(name))
    print(json.dumps(keys))


if __name__ == "__main__":
    main()
