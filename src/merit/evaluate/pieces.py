"""One model's scores, measured in pieces that workers share: half of its answers, half of its losses, its drift.

The pieces are the same with one worker and with many, and nothing that runs in one batch is cut. So who measures what
changes no bit of a score, and a killed evaluation loses the piece in progress.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from merit.base.errors import StageError
from merit.base.kept import kept
from merit.base.record import Sealed
from merit.context import RunContext
from merit.data.example import Encoded
from merit.data.mixture import DatasetSummary, Mixture
from merit.data.store import EncodedDataset, StoredExample
from merit.evaluate.drift import DriftSet
from merit.evaluate.scores import DatasetScore, ModelScores
from merit.evaluate.subjects import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from merit.models.loading import Precision

HALVES = 2
Kind = Literal["answers", "in_mixture", "unseen", "drift"]


@dataclass(frozen=True)
class Piece:
    """A part of what is measured of a model."""

    kind: Kind
    half: int = 0
    of: int = HALVES

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.half}" if self.of > 1 else self.kind


class PieceScores(Sealed):
    """`evaluation/jobs/pieces/LABEL.PIECE.json`, until the model is measured in full."""

    fingerprint: str  # as in ModelScores
    losses: list[float] = Field(default_factory=list)  # of all examples of its kind: 0 if another piece has one
    tokens: list[int] = Field(default_factory=list)
    exact: list[float] = Field(default_factory=list)  # of its own answers
    seconds: float


def by_dataset(
    sizes: Mapping[str, int], losses: Sequence[float], tokens: Sequence[int], exact: Sequence[float] | None = None
) -> list[DatasetScore]:
    """Cuts the figures of all examples into those of each dataset; `sizes`: name → examples."""
    ends = [0, *accumulate(sizes.values())]
    return [
        DatasetScore(
            name=name,
            losses=list(losses[start:end]),
            tokens=list(tokens[start:end]),
            exact=None if exact is None else list(exact[start:end]),
        )
        for name, start, end in zip(sizes, ends, ends[1:], strict=False)
    ]


@dataclass
class Evaluation:
    """One model of a run, and how it is measured. The weights are loaded when they are first needed.

    Attributes:
        mark: the fingerprint that its scores have.
        drift: θ0's answers to the general prompts.
        advance: told the number of examples that are done.
    """

    context: RunContext
    subject: Subject
    mark: str
    precision: Precision
    drift: Callable[[], DriftSet] | None
    advance: Callable[[int], None] = lambda _: None

    @property
    def is_measured(self) -> bool:
        """Whether its scores are there, and hold."""
        return kept(self._path, ModelScores, {"fingerprint": self.mark}).fresh

    @cached_property
    def pieces(self) -> list[Piece]:
        """What it takes, the longest first: then workers that share them end almost together."""
        kinds: list[Kind] = ["answers"] if self._count("answers") else []
        kinds += ["in_mixture", "unseen"] if self._mixture.unseen else ["in_mixture"]
        found = [Piece(kind, half) for kind in kinds for half in range(HALVES)]
        return [*found, Piece("drift", of=1)] if self.drift is not None else found

    @cached_property
    def asked(self) -> list[tuple[str, StoredExample]]:
        """The examples to answer, each with its dataset."""
        limit = self._limit("answers")
        return [(item.name, row) for item in self._datasets("answers") for row in self._rows(item.name)[:limit]]

    def units(self, piece: Piece) -> int:
        """How many examples a piece has; of losses about, since it takes whole batches."""
        return (self._count(piece.kind) + piece.of - 1 - piece.half) // piece.of

    def kept(self, piece: Piece) -> PieceScores | None:
        """The scores of a piece that is measured already."""
        return kept(self._piece(piece), PieceScores, {"fingerprint": self.mark}).record

    def measure(self, piece: Piece) -> None:
        """Measures a piece and writes its scores.

        Raises:
            StageError: a loss is not finite.
        """
        _ = self._model  # loading it is not measuring
        started = time.monotonic()
        if piece.kind == "answers":
            found = PieceScores(fingerprint=self.mark, exact=self._exact(piece.half), seconds=0)
        else:
            losses, tokens = self._losses(piece)
            found = PieceScores(fingerprint=self.mark, losses=losses, tokens=tokens, seconds=0)
        self._save(piece, found, time.monotonic() - started)

    def save_answers(self, answers: Sequence[Sequence[int]], seconds: float) -> None:
        """Writes the scores of answers (token ids) to all of `asked`, as if the pieces had been measured."""
        exact = self._scored(self.asked, answers)
        for piece in self.pieces:
            if piece.kind == "answers":
                start = self._cut if piece.half else 0
                own = exact[start : start + len(self._half(piece.half))]
                self._save(piece, PieceScores(fingerprint=self.mark, exact=own, seconds=0), seconds / HALVES)

    def finish(self) -> bool:
        """Puts the pieces together in evaluation/<label>.json, if all are measured and nobody has done it yet."""
        if self.is_measured:
            return False
        found = {piece: self.kept(piece) for piece in self.pieces}
        done = {piece: scores for piece, scores in found.items() if scores is not None}
        if len(done) < len(found):
            return False
        exact: dict[str, list[float]] = {}
        answered = [score for piece, scores in done.items() if piece.kind == "answers" for score in scores.exact]
        for (name, _), score in zip(self.asked, answered, strict=True):
            exact.setdefault(name, []).append(score)

        def scores(kind: Kind) -> list[DatasetScore]:
            parts = [scores for piece, scores in done.items() if piece.kind == kind]
            if not parts:
                return []
            losses = [sum(values) for values in zip(*(part.losses for part in parts), strict=True)]
            tokens = [sum(values) for values in zip(*(part.tokens for part in parts), strict=True)]
            sizes = {name: len(rows) for name, rows in self._examples(kind).items()}
            whole = by_dataset(sizes, losses, tokens)
            if kind == "drift":
                return whole
            return [score.model_copy(update={"exact": exact.get(score.name)}) for score in whole]

        ModelScores(
            label=self.subject.label,
            method=self.subject.method,
            kind=self.subject.kind,
            scale=self.subject.scale,
            fingerprint=self.mark,
            in_mixture=scores("in_mixture"),
            unseen=scores("unseen"),
            drift=next(iter(scores("drift")), None),
            seconds=round(sum(item.seconds for item in done.values()), 3),
        ).save(self._path)
        return True

    @cached_property
    def _model(self) -> PreTrainedModel:
        from merit.models.loading import load_model

        model = load_model(self.subject.folder, trust_remote_code=self.context.model.trust_remote_code)
        return model.eval()

    @property
    def _path(self) -> Path:
        return self.context.run.evaluation(self.subject.label)

    def _piece(self, piece: Piece) -> Path:
        return self.context.run.piece(self.subject.label, piece.name)

    def _save(self, piece: Piece, scores: PieceScores, seconds: float) -> None:
        scores.model_copy(update={"seconds": round(seconds, 3)}).save(self._piece(piece))

    def _losses(self, piece: Piece) -> tuple[list[float], list[int]]:
        from merit.compute.losses import example_scores

        # One pool over all datasets of a kind: batches of like length leave the least padding. A loss in bf16 depends
        # on what it is batched with, so pools stay apart, and a piece takes whole batches.
        losses, tokens, _ = example_scores(
            self._model,
            [row for rows in self._examples(piece.kind).values() for row in rows],
            batch_tokens=self.context.config.evaluate.batch_tokens,
            precision=self.precision,
            advance=self.advance,
            share=(piece.half, piece.of),
        )
        if not all(map(math.isfinite, losses)):
            raise StageError(f"{self.subject.label}: a held-out loss is not finite, so its training has diverged")
        return losses, tokens

    def _examples(self, kind: Kind) -> dict[str, list[Encoded]]:
        """Dataset → the examples whose loss is measured."""
        if kind == "drift":
            return {"drift": self.drift().encoded} if self.drift is not None else {}
        limit = self._limit(kind)
        return {item.name: [row.encoded for row in self._rows(item.name)[:limit]] for item in self._datasets(kind)}

    def _datasets(self, kind: Kind) -> list[DatasetSummary]:
        mixture = self._mixture
        if kind == "answers":
            return mixture.answered
        return mixture.datasets if kind == "in_mixture" else mixture.unseen

    def _limit(self, kind: Kind) -> int:
        """The most examples of a dataset. A branch is asked nothing: it is a part, not a result."""
        config = self.context.config.evaluate
        if kind == "answers":
            return 0 if self.subject.kind == "branch" else config.generate
        return config.held_out

    def _count(self, kind: Kind) -> int:
        if kind == "drift":
            return self.context.config.evaluate.drift
        return sum(min(self._limit(kind), item.held_out.examples) for item in self._datasets(kind))

    @cached_property
    def _mixture(self) -> Mixture:
        return self.context.mixture

    def _rows(self, name: str) -> list[StoredExample]:
        """The first held-out examples of a dataset, as many as anything needs."""
        if name not in self._read:
            config, data = self.context.config.evaluate, EncodedDataset.open(self.context.run.data(name))
            rows = data.held_out[: max(config.held_out, config.generate)]
            self._read[name] = [data[int(row)] for row in rows]
        return self._read[name]

    @cached_property
    def _read(self) -> dict[str, list[StoredExample]]:
        return {}

    @property
    def _cut(self) -> int:
        return (len(self.asked) + 1) // HALVES

    def _half(self, half: int) -> list[tuple[str, StoredExample]]:
        """Half of the examples to answer. A cut in the middle leaves most datasets whole, whose prompts begin alike."""
        return self.asked[self._cut :] if half else self.asked[: self._cut]

    def _exact(self, half: int) -> list[float]:
        from merit.evaluate.answers import greedy_answers

        config, examples = self.context.config.evaluate, self._half(half)
        answers = greedy_answers(
            self._model,
            self.context.tokenizer,
            [example.prompt_ids for _, example in examples],
            [example.encoded.images[: example.encoded.prompt_images] for _, example in examples],
            max_new_tokens=config.max_new_tokens,
            batch_tokens=config.batch_tokens,
            advance=self.advance,
        )
        return self._scored(examples, answers)

    def _scored(self, examples: Sequence[tuple[str, StoredExample]], answers: Sequence[Sequence[int]]) -> list[float]:
        from merit.evaluate.answers import AnswerReader, score_answer

        reader = AnswerReader.of(self.context.tokenizer)
        return [
            score_answer(reader.text(answer), reference=example.reference, verifier=example.verifier)
            for (_, example), answer in zip(examples, answers, strict=True)
        ]
