"""Measures one model of a run on everything that the configuration asks for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from merit.compute.losses import example_losses
from merit.config.sections import EvaluateConfig
from merit.data.example import Encoded
from merit.data.mixture import DatasetSummary, Mixture
from merit.data.store import EncodedDataset
from merit.evaluate.answers import greedy_answers
from merit.evaluate.exact import score_answer
from merit.evaluate.scores import DatasetScore, DriftSet, ModelScores, Subject
from merit.models.loading import Precision
from merit.run.layout import RunDir

DRIFT = "drift"


@dataclass(frozen=True)
class Evaluation:
    """What every model of a run is evaluated on, and how.

    Attributes:
        drift: θ0's answers to general prompts, if drift is measured.
        advance: told the number of examples that are done.
    """

    run: RunDir
    mixture: Mixture
    tokenizer: PreTrainedTokenizerBase
    config: EvaluateConfig
    drift: DriftSet | None
    precision: Precision
    advance: Callable[[int], None] = lambda _: None


def evaluate_model(on: Evaluation, subject: Subject, model: PreTrainedModel, *, fingerprint: str) -> ModelScores:
    """Held-out loss on every dataset, exact match where it can be scored, drift; written to evaluation/<label>.json.

    A branch is measured by its losses alone: it is a part, not a result.
    """
    started = time.monotonic()
    generate = on.config.generate if subject.kind != "branch" else 0

    def measure(datasets: Sequence[DatasetSummary]) -> list[DatasetScore]:
        losses = _losses(on, model, datasets)
        exact = _exact(on, model, datasets, generate)
        return [score.model_copy(update={"exact": exact.get(score.name)}) for score in losses]

    scores = ModelScores(
        label=subject.label,
        method=subject.method,
        kind=subject.kind,
        scale=subject.scale,
        fingerprint=fingerprint,
        in_mixture=measure(on.mixture.datasets),
        unseen=measure(on.mixture.unseen),
        drift=_drift(on, model, on.drift) if on.drift else None,
        seconds=0,
    )
    scores = scores.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
    scores.save(on.run.evaluation(subject.label))
    return scores


def _losses(on: Evaluation, model: PreTrainedModel, datasets: Sequence[DatasetSummary]) -> list[DatasetScore]:
    rows, owners = [], []
    for index, dataset in enumerate(datasets):
        stored = EncodedDataset.open(on.run.data(dataset.name))
        for row in stored.held_out[: on.config.held_out]:
            example = stored[int(row)]
            rows.append(example.encoded)
            owners.append(index)
    # One pool over all datasets: batches of like length leave the least padding.
    losses, tokens = _score(on, model, rows)
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


def _score(on: Evaluation, model: PreTrainedModel, rows: Sequence[Encoded]) -> tuple[list[float], list[int]]:
    return example_losses(model, rows, batch_tokens=on.config.batch_tokens, precision=on.precision, advance=on.advance)


def _exact(
    on: Evaluation, model: PreTrainedModel, datasets: Sequence[DatasetSummary], generate: int
) -> dict[str, list[float]]:
    examples = []
    for dataset in datasets if generate else ():
        if dataset.scoring:
            stored = EncodedDataset.open(on.run.data(dataset.name))
            examples += [(dataset.name, stored[int(row)]) for row in stored.held_out[:generate]]
    answers = greedy_answers(
        model,
        on.tokenizer,
        [example.prompt_ids for _, example in examples],
        [example.encoded.images[: example.encoded.prompt_images] for _, example in examples],
        max_new_tokens=on.config.max_new_tokens,
        batch_tokens=on.config.batch_tokens,
        advance=on.advance,
    )
    exact: dict[str, list[float]] = {}
    for (name, example), answer in zip(examples, answers, strict=True):
        text = on.tokenizer.decode(answer, skip_special_tokens=True)
        score = score_answer(text, reference=example.reference, verifier=example.verifier)
        exact.setdefault(name, []).append(score)
    return exact


def _drift(on: Evaluation, model: PreTrainedModel, drift: DriftSet) -> DatasetScore:
    losses, tokens = _score(on, model, drift.encoded)
    return DatasetScore(name=DRIFT, losses=losses, tokens=tokens, exact=None)
