"""What conflict costs: seconds and bytes against tokens, datasets, parameters and the fold, with fitted exponents.

    python benchmarks/conflict_scaling.py [--quick] [--plot FILE.png]

Random Llama-like models, so that only the size differs. Prints a table, and as its last line one JSON object with the
exponents of y ∝ x^b: 1 is proportional, 0 is free.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from merit.conflict.similarity import gram
from merit.data.example import Encoded
from merit.gradients.engine import GradientEngine
from merit.gradients.sketch import SketchSpec
from merit.gradients.store import RowInfo, SketchStore, StoreInfo

LENGTH = 128
REPEATS = 3


@dataclass(frozen=True)
class Curve:
    """One cost against one size."""

    name: str
    unit: str
    x: Sequence[float]
    y: Sequence[float]

    @property
    def exponent(self) -> float:
        """b of the least-squares fit log y = a + b log x."""
        return float(np.polyfit(np.log(self.x), np.log(self.y), 1)[0])


def model(width: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=LENGTH,
    )
    return LlamaForCausalLM(config).eval()


def examples(count: int) -> list[Encoded]:
    """`count` examples of LENGTH tokens, a quarter of them supervised."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        ids = rng.integers(0, 2048, LENGTH).tolist()
        found.append(Encoded(ids, [-100] * (LENGTH * 3 // 4) + ids[LENGTH * 3 // 4 :]))
    return found


def seconds(work: Callable[[], object]) -> float:
    """Median of a few runs, after one to warm up."""
    work()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def engine(width: int = 512, layers: int = 4, fold: int = 100) -> GradientEngine:
    return GradientEngine(model(width, layers), SketchSpec(kind="fold", fold=fold), batch_tokens=1024, precision="fp32")


def against_tokens(sizes: Sequence[int]) -> Curve:
    made = engine()
    return Curve("sketch seconds / tokens", "s", [n * LENGTH for n in sizes], [sketch_seconds(made, n) for n in sizes])


def against_parameters(widths: Sequence[int], count: int) -> Curve:
    sizes, times = [], []
    for width in widths:
        made = engine(width)
        sizes.append(float(sum(p.numel() for p in made.model.parameters())))
        times.append(sketch_seconds(made, count))
    return Curve("sketch seconds / parameters", "s", sizes, times)


def against_fold(folds: Sequence[int], count: int) -> list[Curve]:
    made = [engine(1024, 2, fold) for fold in folds]
    times = [sketch_seconds(item, count) for item in made]
    return [
        Curve("sketch seconds / fold", "s", folds, times),
        Curve("sketch numbers / fold", "", folds, [float(item.layout.numbers) for item in made]),
    ]


def sketch_seconds(made: GradientEngine, count: int) -> float:
    data = examples(count)
    return seconds(lambda: made.measure("x", data, lambda _: None))


def against_datasets(counts: Sequence[int], numbers: int) -> Curve:
    """The similarity matrix of T rows of `numbers` floats."""
    layout = engine(256, 1).layout
    tensor = layout.tensors[0].model_copy(update={"start": 0, "stop": numbers})
    layout = layout.model_copy(update={"tensors": [tensor]})
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = SketchStore.create(Path(folder), StoreInfo(model_fingerprint="m", precision="fp32", layout=layout))
        names = [f"d{i}" for i in range(max(counts))]
        for name in names:
            row = RowInfo(
                name=name,
                fingerprint="f",
                numbers=store.numbers,
                examples=(1, 1),
                tokens=(1, 1),
                losses=(1.0, 1.0),
            )
            store.write(row, rng.standard_normal((2, store.numbers), dtype=np.float32))
        times = [seconds(lambda count=count: gram(store, names[:count])) for count in counts]  # type: ignore[misc]
    return Curve("similarity seconds / datasets", "s", counts, times)


def plot(curves: Sequence[Curve], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(3.2 * len(curves), 3.2), layout="constrained")
    for curve, axis in zip(curves, axes, strict=True):
        y_name, x_name = curve.name.split(" / ")
        axis.loglog(curve.x, curve.y, "o-", color="#2a6f97")
        axis.set_xlabel(x_name)
        axis.set_xticks(curve.x, [f"{x:g}" if x < 1e6 else f"{x / 1e6:.3g} M" for x in curve.x], fontsize=7)
        axis.xaxis.minorticks_off()
        axis.set_title(f"{y_name} ∝ {x_name}^{curve.exponent:.2f}", fontsize=9)
        axis.grid(True, which="both", alpha=0.25)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller inputs, the same keys, under a minute")
    parser.add_argument("--plot", type=Path, help="draw the curves into this PNG (needs matplotlib)")
    arguments = parser.parse_args()
    quick = arguments.quick
    curves = [
        against_tokens([8, 16, 32] if quick else [8, 16, 32, 64, 128]),
        against_parameters([128, 256, 512] if quick else [128, 256, 512, 1024, 1536], 8 if quick else 16),
        *against_fold([4, 16, 64] if quick else [4, 8, 16, 32, 64], 8 if quick else 16),
        against_datasets([16, 32, 64] if quick else [16, 32, 64, 128, 256], 200_000 if quick else 2_000_000),
    ]
    for curve in curves:
        points = ", ".join(f"{x:g}: {y:.3g}{curve.unit}" for x, y in zip(curve.x, curve.y, strict=True))
        print(f"{curve.name:32} exponent {curve.exponent:5.2f}   {points}")
    if arguments.plot:
        plot(curves, arguments.plot)
    print(json.dumps({f"exponent {curve.name}": round(curve.exponent, 3) for curve in curves}))


if __name__ == "__main__":
    main()
