"""Sketches of branches' inputs: RegMean from them against RegMean from the exact Gram matrices, and what they weigh.

    python benchmarks/input_sketches.py [RUN] [--quick] [--keep FOLDER]

Prints a table, and as its last line one JSON object. RUN is a run with `merge.weights: regmean` whose branches are
trained; without one, two branches of SmolLM2-135M-Instruct are trained on twelve reasoning-gym families (half an hour
on two cores; with `--quick` a random small model on four of them). Faces: held-out examples of the mixture, unseen
families, and merit's general text (drift), each as the mean loss of its tokens, in nats.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from merit.compute.losses import example_losses
from merit.config.sections import GRAM_BYTES, ModelConfig
from merit.context import RunContext
from merit.data.example import Encoded
from merit.data.store import EncodedDataset
from merit.merge.curvature import open_sketches, regmean_step
from merit.merge.weights import normalised
from merit.models.checkpoint import Checkpoint
from merit.models.loading import load_model
from merit.models.source import resolve_model
from merit.pipeline import run_pipeline
from merit.train.curvature import input_grams, shared_inputs
from merit.train.rows import training_rows
from merit.train.spec import BranchSpec
from merit.train.step import branch_results

FAMILIES = (
    *("chain_sum", "spell_backward", "syllogism", "prime_factorization", "gcd", "caesar_cipher"),
    *("fraction_simplification", "simple_equations", "word_sequence_reversal", "sentence_reordering"),
    *("family_relationships", "number_sequence"),
)
UNSEEN = ("lcm", "letter_counting", "aiw")
WINDOW = 256  # tokens of general text in one example


def recipe(model: str, quick: bool) -> dict[str, Any]:
    """Two branches that learn."""
    families, rows = (FAMILIES[:4], 16) if quick else (FAMILIES, 50)
    data = {name: {"path": f"reasoning_gym:{name}", "max_examples": rows} for name in families}
    return {
        "model": model,
        "mixture": data,
        "held_out_fraction": 0.3,
        "calibration": {"examples": 4},
        "split": {"axes": 1},
        "train": {"epochs": 2, "learning_rate": 5e-5, "schedule": "constant_with_warmup", "batch_tokens": 512},
        "merge": {"weights": "regmean"},
        "evaluate": {"unseen": {name: {"path": f"reasoning_gym:{name}", "max_examples": 12} for name in UNSEEN}},
    }


def small_model(folder: Path) -> str:
    """A random Llama with the embedded model's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(ModelConfig(path="embedded:smollm2-135m"), folder).path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return str(folder / "model")


def faces(context: RunContext) -> dict[str, list[Encoded]]:
    """Name → examples."""

    def held_out(name: str) -> Iterator[Encoded]:
        stored = EncodedDataset.open(context.run.data(name))
        marks = stored.table["held_out"].to_pylist()
        yield from (stored[row].encoded for row in [row for row, held in enumerate(marks) if held][:10])

    text = (resources.files("merit") / "evaluate" / "general_text.txt").read_text()
    ids = context.tokenizer(text)["input_ids"]
    parts = [ids[at : at + WINDOW] for at in range(0, len(ids) - WINDOW // 4, WINDOW)]
    return {
        "inside": [row for item in context.mixture.datasets for row in held_out(item.name)],
        "unseen": [row for item in context.mixture.unseen for row in held_out(item.name)],
        "drift": [Encoded(part, [-100, *part[1:]]) for part in parts],
    }


def losses(model: Any, examples: Mapping[str, list[Encoded]]) -> dict[str, float]:
    """Face → mean loss of its supervised tokens."""
    found = {}
    for face, rows in examples.items():
        values, counts = example_losses(model, rows, batch_tokens=2048, precision="fp32")
        found[face] = sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)
    return found


@torch.no_grad()
def measure(context: RunContext) -> dict[str, float]:
    """Average, exact RegMean and RegMean from sketches: losses of each, and how far apart the steps are."""
    method = context.methods[0]
    results = branch_results(context, method)
    folders = [method.dir.branch(k).checkpoint for k in results]
    shares = normalised([result.supervised_tokens for result in results.values()])
    sketches, stored = open_sketches(folders), [Checkpoint.open(folder) for folder in folders]
    exact: list[dict[str, Tensor]] = []
    for k, sketch in zip(results, sketches, strict=True):
        model = load_model(folders[k]).eval()
        spec = BranchSpec.load(method.dir.branch(k).spec)
        rows = training_rows(context.run.root, spec, sketch.facts.wanted)
        groups = shared_inputs(model, rows)
        grams = input_grams(model, rows, groups, GRAM_BYTES)
        exact.append({name: gram for group, gram in zip(groups, grams, strict=True) for name in group})
    model = load_model(context.model.path).eval()
    parameters = dict(model.named_parameters())
    start = {name: value.clone() for name, value in parameters.items()}
    ridge = context.config.merge.effective_ridge
    found: dict[str, float] = {}
    steps: dict[str, dict[str, Tensor]] = {"average": {}, "exact": {}, "sketch": {}}
    for name, theta0 in start.items():
        each = [branch.tensor(name).double() - theta0.double() for branch in stored]
        mean = sum((step * share for step, share in zip(each, shares, strict=True)), torch.zeros_like(each[0]))
        made = dict.fromkeys(steps, mean)
        if name in exact[0]:
            grams_of = [branch[name] for branch in exact]
            total = sum((g * w for g, w in zip(grams_of, shares, strict=True)), torch.zeros_like(grams_of[0]))
            level = ridge * total.diagonal().mean()
            pulled = sum((s @ g * w for s, g, w in zip(each, grams_of, shares, strict=True)), level * mean)
            total.diagonal().add_(level)
            made["exact"] = torch.linalg.solve(total, pulled.T).T
            made["sketch"] = regmean_step(each, [sketch.of(name) for sketch in sketches], shares, ridge)  # type: ignore[misc]
        for kind, step in made.items():
            steps[kind][name] = step.float()
    examples = faces(context)
    for kind, step in steps.items():
        for name, value in parameters.items():
            value.copy_(start[name] + step[name])
        found |= {f"{kind}_{face}": loss for face, loss in losses(model, examples).items()}
    found["largest_difference"] = max(abs(found[f"sketch_{face}"] - found[f"exact_{face}"]) for face in examples)
    found["step_error"] = apart(steps["sketch"], steps["exact"]) / apart(steps["average"], steps["exact"])
    found["bytes_over_checkpoint"] = max(
        sketch.file.stat().st_size / branch.nbytes for sketch, branch in zip(sketches, stored, strict=True)
    )
    return found


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The distance of two steps."""
    return sum(float((one[name] - other[name]).double().square().sum()) for name in one) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", type=Path, help="the folder of the run that is made here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if given.run is None:
            model = small_model(folder) if given.quick else "embedded:smollm2-135m"
            (folder / "merit.yaml").write_text(yaml.safe_dump(recipe(model, given.quick)))
        context = RunContext.open(given.run or folder / "merit.yaml")
        run_pipeline(context, until="train")
        found = measure(context)
    print("| merge | inside | unseen | drift |\n| --- | --- | --- | --- |")
    for kind in ("average", "exact", "sketch"):
        print(
            f"| {kind} | "
            + " | ".join(f"{found[f'{kind}_{face}']:.4f}" for face in ("inside", "unseen", "drift"))
            + " |"
        )
    print(json.dumps({name: round(value, 5) for name, value in found.items()}))


if __name__ == "__main__":
    main()
