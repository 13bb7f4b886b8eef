"""A synthetic but realistic run directory: 12 datasets, 4 groups, joint and random as baselines. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from merit.base.files import write_json, write_text
from merit.conflict.axes import AxesResult
from merit.conflict.similarity import ConflictResult
from merit.data.mixture import DatasetSummary, Mixture, Rendered, SplitCounts
from merit.evaluate.drift import DriftSet
from merit.evaluate.scores import Comparison, DatasetScore, ModelScores, Table, TableRow
from merit.run.layout import MethodDir, RunDir
from merit.split.partition import Cut, Group, Partition
from merit.train.spec import BranchResult

NAMES = (
    "gsm8k", "chain_sum", "gcd", "basic_arithmetic", "leg_counting", "spell_backward",
    "letter_counting", "word_sorting", "caesar_cipher", "syllogism", "number_filtering", "code_alpaca",
)  # fmt: skip
UNSEEN = ("lcm", "isomorphic_strings")
STAGES = ("mixture", "conflict", "split", "train", "merge", "evaluate")


def make_run(
    root: Path, *, until: str = "evaluate", names: Sequence[str] = NAMES, axes: int = 2, text: str = "Add 2 and 3."
) -> RunDir:
    """Writes a run whose stages up to `until` are done."""
    done = STAGES[: STAGES.index(until) + 1]
    rng = np.random.default_rng(7)
    run = RunDir(root)
    tokens = {name: int(rng.integers(4_000, 22_000)) for name in names}
    _write_config(run, names)
    _write_events(run, done)
    _mixture(names, tokens, text).save(run.mixture)
    if "conflict" not in done:
        return run
    scores = _write_conflict(run, names, tokens, max(2, axes), rng)
    if "split" not in done:
        return run
    partition = _partition(names, tokens, scores, axes)
    partition.save(run.method().partition)
    joint = Partition(
        splitter="single", groups=[Group(datasets=list(names), tokens=sum(tokens.values()))], scores={}, cuts=[]
    )
    joint.save(run.method("joint").partition)
    random = partition.model_copy(update={"splitter": "random", "scores": {}, "cuts": [], "seed": 0})
    random.save(run.method("random").partition)
    if "train" not in done:
        return run
    for name, part in (("merit", partition), ("joint", joint), ("random", random)):
        _train(run.method(name), part, rng)
    if "merge" in done:
        for name, part in (("merit", partition), ("joint", joint), ("random", random)):
            _merge(run.method(name), part, 2.4 if name != "joint" else 7.7)
    if "evaluate" in done:
        _evaluate(run, names, len(partition.groups), rng)
    return run


def _write_config(run: RunDir, names: Sequence[str]) -> None:
    config = {
        "model": {"path": "embedded:smollm2-135m", "revision": None, "trust_remote_code": False},
        "mixture": {name: {"path": f"reasoning_gym:{name[:20]}", "weight": 1.0} for name in names},
        "split": {"splitter": "pca", "axes": 2, "centre": "both"},
        "baselines": {
            "joint": {"splitter": "single", "scales": [1.0, 0.5]},
            "random": {"splitter": "random", "axes": 2},
        },
        "train": {"epochs": 1, "learning_rate": 5e-5, "batch_tokens": 4096, "schedule": "cosine", "lora": None},
        "seed": 3,
        "versions": {
            "python": "3.11.9", "merit": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0",
            "git_commit": "3211cf9",
        },
    }  # fmt: skip
    write_text(run.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _write_events(run: RunDir, done: Sequence[str]) -> None:
    seconds = {"mixture": 6.2, "conflict": 48.0, "split": 0.2, "train": 312.0, "merge": 2.9, "evaluate": 95.4}
    lines = []
    for index, stage in enumerate(done):
        start = {"time": 1e9 + index, "event": "start", "host": "node-1", "stage": stage}
        if stage == "train":
            lines += [start, {**start, "event": "failed", "seconds": 21.5, "error": "StageError: branch 2 died"}]
        lines += [start, {**start, "event": "end", "seconds": seconds[stage], "peak_memory_bytes": 2_400_000_000}]
        if stage in ("conflict", "train"):
            lines[-1]["tokens"] = 48_000
    if "train" in done:
        job = {"time": 1e9, "event": "end", "host": "node-1", "stage": "train merit 1", "seconds": 54.0}
        lines.append({**job, "peak_memory_bytes": 3_100_000_000})
    if "evaluate" in done:
        lines.append({"time": 1e9, "event": "end", "host": "node-2", "stage": "evaluate worker 1", "seconds": 90.0})
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"time": 1, "eve'
    write_text(run.events, text)


def _mixture(names: Sequence[str], tokens: dict[str, int], text: str) -> Mixture:
    answer = "5<|end|>"
    shown = f"<|user|>{text}<|assistant|>{answer}"

    def summary(name: str, supervised: int) -> DatasetSummary:
        return DatasetSummary(
            name=name,
            source="/srv/people/ann/tuning/arithmetic.jsonl" if name == NAMES[0] else f"reasoning_gym:{name}",
            format="qa",
            weight=1.0,
            train=SplitCounts(examples=500, tokens=supervised * 4, supervised_tokens=supervised),
            held_out=SplitCounts(examples=64, tokens=9000, supervised_tokens=2000),
            length_quantiles={"0.5": 61, "0.9": 120, "1.0": 233},
            truncated=3 if name == names[0] else 0,
            duplicates=0,
            skipped=0,
            scoring="verifier",
            fingerprint="0" * 16,
            rendered=[Rendered(text=shown, spans=[(len(shown) - len(answer), len(shown))])],
        )

    return Mixture(
        datasets=[summary(name, tokens[name]) for name in names],
        unseen=[summary(name, 3000) for name in UNSEEN],
        max_length=2048,
        tokenizer_fingerprint="0" * 16,
    )


def _write_conflict(
    run: RunDir, names: Sequence[str], tokens: dict[str, int], axes: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    size = len(names)
    corner = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])[np.arange(size) % 4]
    vectors = np.concatenate(
        [corner * 0.5 + rng.normal(0, 0.12, (size, 2)), np.full((size, 1), 0.55), rng.normal(0, 0.13, (size, 30))],
        axis=1,
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    centre = np.eye(size) - 1 / size
    values, basis = np.linalg.eigh(centre @ similarity @ centre)
    scores = (basis[:, ::-1] * np.sqrt(np.maximum(values[::-1], 0)))[:, :axes]
    run.similarity.parent.mkdir(parents=True, exist_ok=True)
    np.save(run.similarity, similarity)
    ConflictResult(
        names=list(names),
        sketch="fold 100, seed 0",
        sketch_numbers=1_430_000,
        parameters=134_515_008,
        examples=[200] * size,
        tokens=[tokens[name] // 2 for name in names],
        norms=rng.uniform(1, 9, size).tolist(),
        losses=rng.uniform(1.5, 5, size).tolist(),
        reliability=[0.41, *rng.uniform(0.7, 0.97, size - 1).tolist()],
        noise=rng.uniform(0.01, 0.05, size).tolist(),
        notes=[f"`{names[0]}`: most of its gradient is noise (reliability 0.41); use more examples"],
    ).save(run.conflict)
    AxesResult(
        names=list(names),
        centre="both",
        eigenvalues=values[::-1].tolist(),
        scores=scores.tolist(),
        directions=scores.tolist(),
    ).save(run.axes)
    return {name: row.tolist() for name, row in zip(names, scores, strict=True)}


def _partition(names: Sequence[str], tokens: dict[str, int], scores: dict[str, list[float]], axes: int) -> Partition:
    groups, cuts = [sorted(names)], []
    for axis in range(axes):
        halves = []
        for group in groups:
            order = sorted(group, key=lambda name: scores[name][axis])
            half = len(order) // 2
            low = sum(tokens[name] for name in order[:half])
            cuts.append(
                Cut(
                    axis=axis,
                    group=order,
                    threshold=(scores[order[half - 1]][axis] + scores[order[half]][axis]) / 2,
                    low=low,
                    high=sum(tokens[name] for name in order) - low,
                    margins={name: 4.0 * (i - half + 0.75) for i, name in enumerate(order)},
                    note="`gsm8k` holds 71% of this group's tokens: the cut cannot balance it" if axis else None,
                )
            )
            halves += [order[:half], order[half:]]
        groups = halves
    return Partition(
        splitter="pca",
        groups=[Group(datasets=sorted(group), tokens=sum(tokens[name] for name in group)) for group in groups],
        scores=scores,
        cuts=cuts,
    )


def _train(method: MethodDir, partition: Partition, rng: np.random.Generator) -> None:
    for k, group in enumerate(partition.groups):
        branch = method.branch(k)
        steps = 200 if len(partition.groups) == 1 else 60
        losses = 1.4 + 0.2 * k + 2.8 * np.exp(-np.arange(steps) / (steps / 5)) + rng.normal(0, 0.12, steps)
        lines = [
            json.dumps(
                {
                    "step": step + 1,
                    "epoch": (step + 1) / steps,
                    "loss": float(loss),
                    "learning_rate": 5e-5,
                    "grad_norm": 1.0,
                    "supervised_tokens": group.tokens * (step + 1) // steps,
                    "seconds": 0.9 * step,
                }
            )
            for step, loss in enumerate(losses)
        ]
        write_text(branch.log, "\n".join(lines) + '\n{"step": 61, "lo')
        branch.checkpoint.mkdir(parents=True)
        (branch.checkpoint / "model.safetensors").write_bytes(b"\0" * 4096)
        BranchResult(
            fingerprint="0" * 16,
            supervised_tokens=group.tokens,
            examples=1500,
            steps=steps,
            seconds=0.9 * steps,
            final_loss=float(losses[-1]),
            files={},
        ).save(branch.done)


def _merge(method: MethodDir, partition: Partition, displacement: float) -> None:
    total = sum(group.tokens for group in partition.groups)
    record = {
        "fingerprint": "0" * 16,
        "weights": [group.tokens / total for group in partition.groups],
        "supervised_tokens": [group.tokens for group in partition.groups],
        "displacement": {"1": displacement},
        "branch_displacement": [displacement * 2] * len(partition.groups),
        "rounding_error": {"1": 0.01},
        "seconds": 2.0,
    }
    write_json(method.merge_record, record)


# label → method, kind, scale, description, in-mixture, unseen, drift, displacement
_MODELS = {
    "base": ("base", "base", 0.0, "θ0, before tuning", 4.21, 4.08, 0.61, None),
    "merit": ("merit", "merge", 1.0, "MERIT, 4 groups", 2.03, 1.77, 0.83, 2.4),
    "joint": ("joint", "merge", 1.0, "joint training", 1.49, 2.04, 0.97, 7.7),
    "joint@0.5": ("joint", "merge", 0.5, "joint training, pulled to β = 0.5", 1.73, 1.64, 0.71, 3.85),
    "random": ("random", "merge", 1.0, "random split, 4 groups", 2.06, 1.79, 0.87, 2.3),
}


def _evaluate(run: RunDir, names: Sequence[str], groups: int, rng: np.random.Generator) -> None:
    models = dict(_MODELS)
    for k in range(groups):
        models[f"merit/branch-{k:02d}"] = (
            "merit",
            "branch",
            1.0,
            f"branch {k} of {groups}",
            2.3 + 0.1 * k,
            2.1,
            0.95,
            4.0,
        )
    spread = rng.normal(0, 0.5, len(names))
    rows = []
    for label, (method, kind, scale, description, inside, unseen, drift, displacement) in models.items():

        def measured(name: str, mean: float) -> DatasetScore:
            losses = np.maximum(0.05, mean + rng.normal(0, 0.3, 16)).tolist()
            return DatasetScore(name=name, losses=losses, tokens=[20] * 16, exact=None)

        ModelScores(
            label=label,
            method=method,
            kind=kind,
            scale=scale,
            fingerprint="0" * 16,
            in_mixture=[measured(name, inside + shift) for name, shift in zip(names, spread, strict=True)],
            unseen=[measured(name, unseen) for name in UNSEEN],
            drift=measured("drift", drift),
            seconds=12.0,
        ).save(run.evaluation(label))
        rows.append(
            TableRow(
                label=label,
                method=method,
                kind=kind,
                description=description,
                in_mixture=inside,
                in_mixture_se=0.04,
                exact=None if kind == "branch" else 0.31 if method == "joint" else 0.22,
                exact_se=None if kind == "branch" else 0.04,
                unseen=unseen,
                unseen_se=0.08,
                drift=drift,
                drift_se=0.05,
                displacement=displacement,
                supervised_tokens=0 if kind == "base" else 142_000_000,
                train_seconds=0 if kind == "base" else 12_345.0,
            )
        )
    comparisons = [
        Comparison(
            a="merit", b=label, face=face, difference=_MODELS["merit"][at] - _MODELS[label][at], standard_error=error
        )
        for label in ("base", "joint", "joint@0.5", "random")
        for face, at, error in (("in_mixture", 4, 0.02), ("unseen", 5, 0.05), ("drift", 6, 0.015))
    ]
    Table(rows=rows, comparisons=comparisons, notes=["Only 16 held-out examples in the smallest dataset."]).save(
        run.table
    )
    DriftSet(
        fingerprint="0" * 16,
        prompts=["Why is the sky blue?"],
        answers=["Because of <i>Rayleigh</i> scattering."],
        input_ids=[[1, 2]],
        labels=[[-100, 2]],
    ).save(run.drift)
