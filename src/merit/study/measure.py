"""One model on the held-out examples of a seed: those that choose, and those that are reported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from merit.base.errors import InputError
from merit.base.kept import kept
from merit.base.record import Record, fingerprint
from merit.compute.losses import example_scores
from merit.config.study import MEASURED, FacesConfig
from merit.data.example import Encoded
from merit.data.mixture import Mixture
from merit.data.store import EncodedDataset
from merit.evaluate.drift import DriftSet, general_prompts, general_texts
from merit.evaluate.scores import DatasetScore
from merit.models.loading import Precision
from merit.run.layout import RunDir
from merit.study.spec import Study

Face = Literal["in_mixture", "unseen", "retention"]
FACES: tuple[Face, ...] = ("in_mixture", "unseen", "retention")
DRIFT, TEXT = MEASURED


class Faces(Record):
    """One model on one part of the held-out examples, dataset by dataset. Retention holds drift and text, too."""

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
    """`points/<mark>.json`. Validation chooses; test is reported, and only measured where it will be."""

    mark: str
    validation: Faces
    test: Faces | None = None


class PointResult(Record):
    """One point of a method's ray."""

    scale: float
    ridge: float | None  # of a curvature-aware merge
    mark: str
    validation: dict[str, float]  # face → loss
    average: float  # of them
    distance: float  # ‖θ − θ0‖


class MethodResult(Record):
    """What one method came to on one seed and budget."""

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
    notes: list[str] = Field(default_factory=list)

    @property
    def files(self) -> dict[str, str]:
        """The scores of its points. A point is named by its fingerprint, so being there is enough."""
        return {f"{item.mark}.json": "" for item in self.points}


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
    """Examples of one dataset, on one face."""

    face: Face
    name: str
    rows: list[Encoded]


@dataclass(frozen=True)
class Examples:
    """The held-out examples of one seed: those that choose, and those that are reported."""

    validation: list[Part]
    test: list[Part]
    mark: str  # of all of them

    @classmethod
    def of(
        cls,
        run: RunDir,
        mixture: Mixture,
        retained: frozenset[str],
        config: FacesConfig,
        others: Mapping[str, Sequence[Encoded]],
    ) -> Examples:
        """Takes them in the order of their content hash, validation first.

        Args:
            retained: names of the datasets that measure retention.
            others: what measures it besides; every other row validates.

        Raises:
            InputError: a dataset has too few held-out examples; names it.
        """
        validation, test = [], []
        for item in (*mixture.datasets, *mixture.unseen):
            face: Face = "retention" if item.name in retained else "unseen"
            if item in mixture.datasets:
                face = "in_mixture"
            stored = EncodedDataset.open(run.data(item.name))
            rows = [stored[int(row)] for row in stored.held_out[: config.validation + config.test]]
            if len(rows) < config.validation + 2:
                raise InputError(
                    f"{len(rows)} held-out examples; a study needs {config.validation + 2} at least, "
                    f"of which {config.validation} validate: give more rows, or hold out a larger share",
                    field=f"{'mixture' if face == 'in_mixture' else face}.{item.name}",
                )
            encoded = [row.encoded for row in rows]
            validation.append(Part(face, item.name, encoded[: config.validation]))
            test.append(Part(face, item.name, encoded[config.validation :]))
        for name, rows_of in others.items():
            if len(rows_of) >= _FEWEST:
                validation.append(Part("retention", name, list(rows_of[::2])))
                test.append(Part("retention", name, list(rows_of[1::2])))
        mark = fingerprint(
            [
                [part.face, part.name, [[row.input_ids, row.labels] for row in part.rows]]
                for part in (*validation, *test)
            ]
        )
        return cls(validation, test, mark)


def measure(model: Any, parts: list[Part], *, batch_tokens: int, precision: Precision) -> Faces:
    """Loss and exactness of every example of `parts`."""
    rows = [row for part in parts for row in part.rows]
    losses, tokens, exact = example_scores(model, rows, batch_tokens=batch_tokens, precision=precision)
    faces: dict[Face, list[DatasetScore]] = {"in_mixture": [], "unseen": [], "retention": []}
    at = 0
    for part in parts:
        end = at + len(part.rows)
        score = DatasetScore(
            name=part.name,
            losses=[round(value, _DIGITS) for value in losses[at:end]],
            tokens=tokens[at:end],
            exact=exact[at:end],
        )
        faces[part.face].append(score)
        at = end
    return Faces(**faces)


def other_rows(study: Study, drift: DriftSet | None) -> dict[str, list[Encoded]]:
    """What measures retention and is no dataset: θ0's own answers, and plain text, whose every token counts."""
    found: dict[str, list[Encoded]] = {}
    if drift is not None:
        found[DRIFT] = drift.encoded
    if study.config.faces.text:
        texts = [study.tokenizer(text)["input_ids"] for text in general_texts(study.config.faces.text)]
        found[TEXT] = [Encoded(ids, ids) for ids in texts]
    return found


def drift_set(
    study: Study, seed: int, mixture: Mixture, load: Callable[[], Any], progress: Callable[[int], None] = lambda _: None
) -> DriftSet | None:
    """θ0's own greedy answers: to prompts of what it is to retain, in turn, or to merit's general prompts. Kept.

    An answer that ends at once would measure nothing but the end token; such prompts are left out.
    """
    faces = study.config.faces
    if not faces.drift:
        return None
    from merit.data.encode import Encoder
    from merit.data.example import Example, Message
    from merit.evaluate.answers import greedy_answers

    run = study.dir.seed(seed)
    mark = fingerprint(faces, study.theta0.fingerprint, [item.fingerprint for item in mixture.unseen])
    path = study.dir.drift(seed)
    stored = kept(path, DriftSet, {"fingerprint": mark}).record
    if stored is not None:
        return stored
    prompts = _retained_prompts(study, run, faces)
    if not prompts:
        encoder = Encoder(study.tokenizer, mixture.max_length)
        texts = general_prompts(faces.drift)
        prompts = [encoder.prompt_ids(Example(prompt=(Message("user", text),), completion=())) for text in texts]
    answers = greedy_answers(
        load(),
        study.tokenizer,
        prompts,
        max_new_tokens=faces.max_new_tokens,
        batch_tokens=faces.batch_tokens,
        advance=progress,
    )
    answered = [(ids, answer) for ids, answer in zip(prompts, answers, strict=True) if len(answer) > 1]
    made = DriftSet(
        fingerprint=mark,
        prompts=[study.tokenizer.decode(ids) for ids, _ in answered],
        answers=[study.tokenizer.decode(answer, skip_special_tokens=True) for _, answer in answered],
        input_ids=[[*ids, *answer] for ids, answer in answered],
        labels=[[-100] * len(ids) + list(answer) for ids, answer in answered],
    )
    made.save(path)
    return made


def _retained_prompts(study: Study, run: RunDir, faces: FacesConfig) -> list[list[int]]:
    found: list[list[int]] = []
    stored = [EncodedDataset.open(run.data(name)) for name in study.config.retention]
    place = faces.validation + faces.test - 1
    while stored and len(found) < faces.drift and place >= 0:
        found += [list(item[int(item.held_out[place])].prompt_ids) for item in stored if place < len(item.held_out)]
        place -= 1
    return found[: faces.drift]
