"""Measures one model of a run on everything that the configuration asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from merit.compute.losses import example_losses
from merit.config.evaluate import EvaluateConfig
from merit.data.mixture import DatasetSummary, Mixture
from merit.data.store import EncodedDataset
from merit.evaluate.answers import greedy_answers
from merit.evaluate.exact import score_answer
from merit.evaluate.scores import DatasetScore, DriftSet, ModelScores, Subject
from merit.models.loading import Precision
from merit.run.layout import RunDir

DRIFT = "drift"


def evaluate_model(
    run: RunDir,
    subject: Subject,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mixture: Mixture,
    config: EvaluateConfig,
    drift: DriftSet | None,
    *,
    precision: Precision,
    fingerprint: str,
    advance: Callable[[int], None] = lambda _: None,
) -> ModelScores:
    """Held-out loss on every dataset, exact match where it can be scored, drift; written to evaluation/<label>.json.

    A branch is measured by its losses alone: it is a part, not a result.
    """
    started = time.monotonic()
    generate = config.generate if subject.kind != "branch" else 0

    def measure(datasets: Sequence[DatasetSummary]) -> list[DatasetScore]:
        losses = _losses(run, model, datasets, config, precision, advance)
        exact = _exact(run, model, tokenizer, datasets, generate, config, advance)
        return [score.model_copy(update={"exact": exact.get(score.name)}) for score in losses]

    scores = ModelScores(
        label=subject.label,
        method=subject.method,
        kind=subject.kind,
        scale=subject.scale,
        fingerprint=fingerprint,
        in_mixture=measure(mixture.datasets),
        unseen=measure(mixture.unseen),
        drift=_drift(model, drift, config, precision, advance) if drift else None,
        seconds=0,
    )
    scores = scores.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
    scores.save(run.evaluation(subject.label))
    return scores


def _losses(
    run: RunDir,
    model: PreTrainedModel,
    datasets: Sequence[DatasetSummary],
    config: EvaluateConfig,
    precision: Precision,
    advance: Callable[[int], None],
) -> list[DatasetScore]:
    rows, owners = [], []
    for index, dataset in enumerate(datasets):
        stored = EncodedDataset.open(run.data(dataset.name))
        for row in stored.held_out[: config.held_out]:
            example = stored[int(row)]
            rows.append(example.encoded)
            owners.append(index)
    # One pool over all datasets: batches of like length leave the least padding.
    losses, tokens = example_losses(model, rows, batch_tokens=config.batch_tokens, precision=precision, advance=advance)
    scores = []
    for index, dataset in enumerate(datasets):
        mine = [position for position, owner in enumerate(owners) if owner == index]
        scores.append(
            DatasetScore(
                name=dataset.name,
                losses=[losses[position] for position in mine],
                tokens=[tokens[position] for position in mine],
                exact=None,
            )
        )
    return scores


def _exact(
    run: RunDir,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    datasets: Sequence[DatasetSummary],
    generate: int,
    config: EvaluateConfig,
    advance: Callable[[int], None],
) -> dict[str, list[float]]:
    examples = []
    for dataset in datasets if generate else ():
        if dataset.scoring:
            stored = EncodedDataset.open(run.data(dataset.name))
            examples += [(dataset.name, stored[int(row)]) for row in stored.held_out[:generate]]
    answers = greedy_answers(
        model,
        tokenizer,
        [example.prompt_ids for _, example in examples],
        [example.pictures[: example.prompt_images] for _, example in examples],
        max_new_tokens=config.max_new_tokens,
        batch_tokens=config.batch_tokens,
        advance=advance,
    )
    exact: dict[str, list[float]] = {}
    for (name, example), answer in zip(examples, answers, strict=True):
        text = tokenizer.decode(answer, skip_special_tokens=True)
        score = score_answer(text, reference=example.reference, verifier=example.verifier)
        exact.setdefault(name, []).append(score)
    return exact


def _drift(
    model: PreTrainedModel,
    drift: DriftSet,
    config: EvaluateConfig,
    precision: Precision,
    advance: Callable[[int], None],
) -> DatasetScore:
    losses, tokens = example_losses(
        model, drift.encoded, batch_tokens=config.batch_tokens, precision=precision, advance=advance
    )
    return DatasetScore(name=DRIFT, losses=losses, tokens=tokens, exact=None)
