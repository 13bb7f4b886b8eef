"""Images: sketching a vision-language model against plain forward and backward, and checking images, per second.

    python benchmarks/vision.py [--quick] [--images N] [--model PATH]

The model is a tiny CLIP tower joined with SmolLM2-135M, on generated pictures; `--model` names another. Plain is what a
training loop does with the same examples: padded batches, all logits, every gradient of projector and language model
formed. The tower is frozen in both.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from merit.compute.batches import length_batches, padded
from merit.config.calibration import CalibrationConfig
from merit.config.run import RunConfig
from merit.config.sections import DatasetConfig, ModelConfig
from merit.data.check import check_mixture
from merit.data.encode import Encoder
from merit.data.example import Encoded
from merit.data.reading import DatasetReader
from merit.gradients.engine import GradientEngine, Shortcuts
from merit.gradients.sketch import SketchSpec
from merit.models.assemble import assemble
from merit.models.loading import Precision, autocast, load_model, load_tokenizer, pick_precision
from merit.models.source import ModelFolder, resolve_model

BATCH_TOKENS = 2048


def encoded(folder: Path, count: int) -> list[Encoded]:
    """`count` examples of the task that counts dots, in three answers' lengths."""
    encoder = Encoder(load_tokenizer(ModelFolder(folder, "", False)), 512)
    found: list[Encoded] = []
    for task in ("count", "position", "colour", "word"):
        config = DatasetConfig(path=f"visual:{task}", max_examples=count // 4)
        for read in DatasetReader.open(task, config, folder).read():
            if read.value is not None:
                found.append(encoder.encode(read.value))
    return found


def joined(folder: Path) -> Path:
    """SmolLM2-135M with a tiny tower."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    tower = folder / "tower"
    config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=48,
        patch_size=8,
    )
    CLIPVisionModel(config).save_pretrained(tower)
    side = {"height": 48, "width": 48}
    CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=side).save_pretrained(tower)
    model = folder / "model"
    model.mkdir()
    assemble(resolve_model(ModelConfig(path="embedded:smollm2-135m"), folder).path, tower, model)
    return model


def plain(model: Any, rows: list[Encoded]) -> None:
    """Forward and backward, batches of like length, all logits."""
    for batch in length_batches([len(row.input_ids) for row in rows], BATCH_TOKENS):
        inputs = padded([rows[index] for index in batch], model)
        labels = inputs.pop("labels")
        logits = model(**inputs, use_cache=False).logits
        functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()).backward()
        model.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class Ratios:
    """Of medians over plain passes, taken in turns with them. Wall clock is what one waits for; CPU seconds of all
    threads can be compared on a busy machine, too."""

    packed: float
    packed_cpu: float
    padded_cpu: float


def sketch_over_plain(folder: Path, count: int, repeats: int, precision: Precision) -> Ratios:
    """`measure` on packed rows, as it is used, and on padded ones, against plain passes."""
    data = encoded(folder, count)
    rows = data
    model = load_model(folder).float().eval()
    spec = SketchSpec.of(CalibrationConfig())
    engines = [
        GradientEngine(
            model, spec, batch_tokens=BATCH_TOKENS, precision=precision, shortcuts=Shortcuts(packing=packing)
        )
        for packing in (True, False)
    ]

    def train() -> None:
        with autocast(precision):
            plain(model, rows)

    ways: list[Callable[[], object]] = [*(partial(engine.measure, "d", data) for engine in engines), train]
    wall: list[list[float]] = [[] for _ in ways]
    cpu: list[list[float]] = [[] for _ in ways]
    for repeat in range(repeats + 1):
        for index, way in enumerate(ways):
            started, used = time.perf_counter(), time.process_time()
            way()
            if repeat:  # the first one warms up
                wall[index].append(time.perf_counter() - started)
                cpu[index].append(time.process_time() - used)
    (packed_wall, _, plain_wall), (packed, padded, trained) = (map(statistics.median, times) for times in (wall, cpu))
    return Ratios(packed_wall / plain_wall, packed / trained, padded / trained)


def images_per_second(folder: Path, count: int) -> tuple[float, float, float, float]:
    """Of a first check, of a second one, CPU milliseconds an image of the first, and how much the process grew between
    a tenth of the images and all, in MB."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temp:
        home = Path(temp)
        os.environ["MERIT_CACHE"] = str(home / "cache")
        with (home / "d.jsonl").open("w") as handle:
            for index in range(count):
                # Smooth colours and some noise: about 20 kB, as photographs of this size are.
                small = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
                picture = np.asarray(Image.fromarray(small).resize((336, 252), Image.Resampling.BICUBIC))
                noisy = np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(home / f"{index}.jpg", quality=85)
                handle.write(json.dumps({"image": f"{index}.jpg", "question": f"{index}?", "answer": "yes"}) + "\n")
        tokenizer = load_tokenizer(ModelFolder(folder, "", False))
        config = RunConfig.model_validate(
            {"model": str(folder), "mixture": {"d": {"path": "d.jsonl"}}, "split": {"splitter": "single"}}
        )
        tenth = config.mixture["d"].model_copy(update={"max_examples": max(1, count // 10)})
        check_mixture(config.model_copy(update={"mixture": {"d": tenth}}), home, tokenizer)
        (home / "cache" / "images.sqlite").unlink()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        speeds, used = [], []
        for _ in range(2):
            started, before_cpu = time.perf_counter(), time.process_time()
            report = check_mixture(config, home, tokenizer)
            speeds.append(count / (time.perf_counter() - started))
            used.append(1000 * (time.process_time() - before_cpu) / count)
            if not report.ok:
                raise SystemExit("\n".join(report.problems))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return speeds[0], speeds[1], used[0], grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller inputs, the same keys")
    parser.add_argument("--images", type=int, default=None, help="images to check (10,000, or 1,000 if quick)")
    parser.add_argument("--model", type=Path, default=None, help="a vision-language model's folder")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=None, help="default: what is fast here")
    options = parser.parse_args()
    precision: Precision = options.precision or pick_precision("auto")
    count = options.images or (1000 if options.quick else 10_000)
    with tempfile.TemporaryDirectory() as temp:
        folder = options.model or joined(Path(temp))
        ratios = sketch_over_plain(folder, 32 if options.quick else 128, 2 if options.quick else 5, precision)
        first, second, used, grown = images_per_second(folder, count)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, {precision}")
    print(f"sketching over plain forward and backward   {ratios.packed:.2f}")
    print(f"the same in CPU seconds                     {ratios.packed_cpu:.2f}")
    print(f"the same with padded batches                {ratios.padded_cpu:.2f}")
    print(f"images checked a second, of {count:,}        {first:,.0f}")
    print(f"CPU milliseconds an image                   {used:.2f}")
    print(f"the same again, from what is remembered     {second:,.0f}")
    print(f"growth from a tenth of the images to all    {grown:.0f} MB")
    figures = {
        "sketch_over_plain": round(ratios.packed, 3),
        "sketch_over_plain_cpu": round(ratios.packed_cpu, 3),
        "sketch_padded_over_plain_cpu": round(ratios.padded_cpu, 3),
        "images_per_second": round(first, 1),
        "image_cpu_ms": round(used, 2),
        "images_per_second_again": round(second, 1),
        "growth_mb": round(grown, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
