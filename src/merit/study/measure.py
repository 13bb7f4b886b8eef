"""Measures a study's models, and keeps the records of it.

Validation examples choose among models; losses on test examples are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from merit.base.errors import InputError
from merit.base.kept import kept
from merit.base.record import Record, fingerprint
from merit.config.study import MEASURED
from merit.context import RunContext
from merit.data.example import Encoded, Example, Message
from merit.data.store import EncodedDataset
from merit.evaluate.drift import DriftSet
from merit.evaluate.options import Options, options_of, score_options
from merit.evaluate.scores import DatasetScore
from merit.study.spec import Study

if TYPE_CHECKING:
    from merit.models.loading import Precision

Face = Literal["in_mixture", "unseen", "retention"]
FACES: tuple[Face, ...] = ("in_mixture", "unseen", "retention")
DRIFT, TEXT = MEASURED


class Faces(Record):
    """One model on one part of the held-out examples, dataset by dataset. Retention includes drift and text."""

    in_mixture: list[DatasetScore]
    unseen: list[DatasetScore]
    retention: list[DatasetScore]

    def face(self, name: Face) -> list[DatasetScore]:
        found: list[DatasetScore] = getattr(self, name)
        return found

    @property
    def losses(self) -> dict[str, float]:
        """Face → unweighted mean over its datasets; a face without datasets is left out."""
        found = {name: self.face(name) for name in FACES}
        return {name: sum(s.loss for s in scores) / len(scores) for name, scores in found.items() if scores}

    @property
    def average(self) -> float:
        """Unweighted mean of the faces, as the paper averages benchmarks."""
        losses = self.losses
        return sum(losses.values()) / len(losses)


class PointScores(Record):
    """`points/<mark>.json`. Test examples are measured only where the result is reported."""

    mark: str
    validation: Faces
    test: Faces | None = None
    chosen: dict[str, list[float]] = Field(default_factory=dict)  # dataset → whether each test example's answer is the
    # most likely of its options, 1 or 0; datasets of multiple choice alone, and none of points of earlier versions


class PointResult(Record):
    """One point of a method's ray."""

    scale: float
    ridge: float | None  # of a curvature-aware merge
    mark: str
    validation: dict[str, float]  # face → loss
    average: float  # of them
    distance: float  # ‖θ − θ0‖


class MethodResult(Record):
    """The results of one method on one seed and budget."""

    name: str
    mark: str
    groups: list[list[str]]
    supervised_tokens: int  # really trained on, over all branches
    branch_tokens: list[int]
    steps: list[int]
    seconds: float  # of training, over all branches
    branch_distance: list[float]  # ‖θ_k − θ0‖
    points: list[PointResult]
    plain: int  # the point that the method's name stands for: scale 1, ridge by validation
    chosen: int  # the point with the best validation average
    between: list[PointResult] = Field(default_factory=list)  # the merges after every round but the last
    notes: list[str] = Field(default_factory=list)

    @property
    def files(self) -> dict[str, str]:
        """The scores of its points. A point is named by its fingerprint, so it is right if it exists."""
        return {f"{item.mark}.json": "" for item in (*self.points, *self.between)}


class Summary(Record):
    """`jobs/<seed>-<budget>/summary.json`."""

    mark: str
    seed: int
    budget: str
    base: str  # mark of θ0's scores
    methods: dict[str, MethodResult]
    skipped: dict[str, str]  # method → why it could not run
    parameters: int
    seconds: float


_DIGITS = 6  # of a loss, as it is kept
_FEWEST = 4  # answers that drift can be measured on


@dataclass(frozen=True)
class Part:
    """Examples of one dataset, and the face that they belong to."""

    face: Face
    name: str
    rows: list[Encoded]
    options: Options = ()  # of a dataset of multiple choice


@dataclass(frozen=True)
class Examples:
    """The held-out examples of one seed: those that choose, and those that are reported."""

    validation: list[Part]
    test: list[Part]
    mark: str  # of all of them

    @classmethod
    def of(cls, study: Study, run: RunContext, drift: DriftSet | None) -> Examples:
        """Takes examples in the order of their content hash, for validation first.

        Retention is also measured on θ0's own answers and on plain text, of which every token counts. Every other row
        of these is for validation.

        Raises:
            InputError: a dataset has too few held-out examples; names it.
        """
        faces, mixture = study.config.faces, run.mixture
        validation, test = [], []
        for item in (*mixture.datasets, *mixture.unseen):
            face: Face = "retention" if item.name in study.config.retention else "unseen"
            if item in mixture.datasets:
                face = "in_mixture"
            stored = EncodedDataset.open(run.run.data(item.name))
            rows = [stored[int(row)].encoded for row in stored.held_out[: faces.validation + faces.test]]
            if len(rows) < faces.validation + 2:
                raise InputError(
                    f"{len(rows)} held-out examples; a study needs {faces.validation + 2} at least, "
                    f"of which {faces.validation} validate: give more rows, or hold out a larger share",
                    field=f"{'mixture' if face == 'in_mixture' else face}.{item.name}",
                )
            validation.append(Part(face, item.name, rows[: faces.validation]))
            options = options_of(stored[row].encoded for row in range(len(stored)))
            test.append(Part(face, item.name, rows[faces.validation :], options))
        others = {DRIFT: drift.encoded if drift is not None else [], TEXT: _plain_text(run, faces.text)}
        for name, rows in others.items():
            if len(rows) >= _FEWEST:
                validation.append(Part("retention", name, rows[::2]))
                test.append(Part("retention", name, rows[1::2]))
        mark = fingerprint(
            [
                [part.face, part.name, [[row.input_ids, row.labels] for row in part.rows]]
                for part in (*validation, *test)
            ]
        )
        return cls(validation, test, mark)


def measure(model: Any, parts: Sequence[Part], *, batch_tokens: int, precision: Precision) -> Faces:
    """Loss of every example of `parts`, and whether greedy decoding would give its reference."""
    from merit.evaluate.measure import score_examples

    rows = {part.name: part.rows for part in parts}
    faces: dict[str, list[DatasetScore]] = {face: [] for face in FACES}
    for part, score in zip(
        parts, score_examples(model, rows, batch_tokens=batch_tokens, precision=precision), strict=True
    ):
        rounded = [round(value, _DIGITS) for value in score.losses]
        faces[part.face].append(score.model_copy(update={"losses": rounded}))
    return Faces(**faces)


def choose(model: Any, parts: Sequence[Part], *, batch_tokens: int, precision: Precision) -> dict[str, list[float]]:
    """Dataset of multiple choice → whether the model finds each example's answer the most likely of the options."""
    asked = {part.name: (part.rows, part.options) for part in parts if part.options}
    return score_options(model, asked, batch_tokens=batch_tokens, precision=precision) if asked else {}


def drift_set(study: Study, run: RunContext, load: Callable[[], Any]) -> DriftSet | None:
    """θ0's own greedy answers to prompts of the datasets to retain, in turn, or else to merit's general prompts.

    A prompt whose answer ends at once is left out, since it would measure only the end token. The set is kept.
    """
    faces = study.config.faces
    if not faces.drift:
        return None
    from merit.evaluate.answers import greedy_answers

    mark = fingerprint(faces, study.theta0.fingerprint, [item.fingerprint for item in run.mixture.unseen])
    path = study.dir.drift(run.config.seed)
    stored = kept(path, DriftSet, {"fingerprint": mark}).record
    if stored is not None:
        return stored
    tokenizer = run.tokenizer
    prompts = _retained_prompts(study, run) or _general_prompts(run, faces.drift)
    answers = greedy_answers(
        load(), tokenizer, prompts, max_new_tokens=faces.max_new_tokens, batch_tokens=faces.batch_tokens
    )
    answered = [(ids, answer) for ids, answer in zip(prompts, answers, strict=True) if len(answer) > 1]
    made = DriftSet.of(mark, tokenizer, answered)
    made.save(path)
    return made


def _retained_prompts(study: Study, run: RunContext) -> list[list[int]]:
    """Token ids of held-out prompts, a dataset after the other: the last of the test examples first."""
    faces = study.config.faces
    found: list[list[int]] = []
    stored = [EncodedDataset.open(run.run.data(name)) for name in study.config.retention]
    place = faces.validation + faces.test - 1
    while stored and len(found) < faces.drift and place >= 0:
        found += [list(item[int(item.held_out[place])].prompt_ids) for item in stored if place < len(item.held_out)]
        place -= 1
    return found[: faces.drift]


def _general_prompts(run: RunContext, count: int) -> list[list[int]]:
    from merit.data.encode import Encoder
    from merit.evaluate.drift import general_prompts

    encoder = Encoder(run.tokenizer, run.mixture.max_length)
    texts = general_prompts(count)
    return [encoder.prompt_ids(Example(prompt=(Message("user", text),), completion=())) for text in texts]


def _plain_text(run: RunContext, count: int) -> list[Encoded]:
    if not count:
        return []
    from merit.evaluate.drift import general_texts

    texts = [run.tokenizer(text)["input_ids"] for text in general_texts(count)]
    return [Encoded(ids, ids) for ids in texts]
