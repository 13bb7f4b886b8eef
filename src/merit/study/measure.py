"""Ways to say how alike two datasets' gradients are; the study asks which of them foretells harm.

raw             cosine of the mean gradients, as published
disattenuated   as between the true means: divided by √(reliability · reliability)
matrices        without norm weights and biases, which hold much of the energy in few coordinates
adam            gradients divided by √RMS of the mixture's: the inner product ⟨g_i, g_j / RMS⟩, what AdamW's step on j
                does to i in first order
rms             gradients divided by the RMS: every coordinate counts alike (the diagonal Fisher's inverse as metric)
curvature       the same with damping: ⟨g_i, (F + λ)⁻¹ g_j⟩, F the mixture's mean squared gradient, λ its mean

RMS and F are taken over the half-set means of all datasets, coordinate by coordinate of what the sketch keeps: exact
for a full sketch, sums of a hundred coordinates for a fold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.kept import kept
from merit.base.record import fingerprint
from merit.compute.losses import example_scores
from merit.config.study import FacesConfig
from merit.conflict.reliability import disattenuated
from merit.conflict.similarity import HalfGram, cosines
from merit.data.example import Encoded
from merit.data.mixture import Mixture
from merit.data.store import EncodedDataset
from merit.evaluate.drift import DriftSet, general_prompts, general_texts
from merit.evaluate.scores import DatasetScore
from merit.gradients.store import SketchStore
from merit.models.loading import Precision
from merit.run.layout import RunDir
from merit.study.scores import DRIFT, TEXT, Face, Faces
from merit.study.spec import Study

Matrix = NDArray[np.float64]
VARIANTS = ("raw", "disattenuated", "matrices", "adam", "rms", "curvature")
_COLUMNS = 1 << 17


def similarities(store: SketchStore, halves: HalfGram, names: Sequence[str]) -> dict[str, Matrix]:
    """Variant → (T, T). Reads the store twice.

    Raises:
        InputError: a row is missing or truncated.
    """
    tokens = np.array([row.tokens for row in store.rows(names)], dtype=np.float64)  # (T, 2)
    matrix = _matrix_columns(store)
    level = sum(float(second.sum()) for _, _, second in _blocks(store, names, tokens)) / max(1, store.numbers)
    found = {name: np.zeros((len(names), len(names))) for name in VARIANTS if name != "disattenuated"}
    for start, means, second in _blocks(store, names, tokens):
        live = second > 0
        means, second = means[:, live], second[live]
        kept = matrix[start : start + len(live)][live]
        scaled = {
            "raw": means,
            "matrices": means[:, kept],
            "adam": means / second**0.25,
            "rms": means / second**0.5,
            "curvature": means / (second + level) ** 0.5,
        }
        for name, part in scaled.items():
            found[name] += part @ part.T
    result = {name: cosines(products) for name, products in found.items()}
    result["disattenuated"] = np.nan_to_num(disattenuated(halves, result["raw"]), nan=0.0)
    return {name: result[name] for name in VARIANTS}


def _blocks(
    store: SketchStore, names: Sequence[str], tokens: NDArray[np.float64]
) -> Iterator[tuple[int, Matrix, NDArray[np.float64]]]:
    """First column; mean gradients (T, columns); mean square (columns,) over datasets and half-sets."""
    for start in range(0, store.numbers, _COLUMNS):
        stop = min(start + _COLUMNS, store.numbers)
        sums = np.stack([store.read_halves(name, start, stop) for name in names]).astype(np.float64)  # (T, 2, columns)
        means = sums.sum(axis=1) / tokens.sum(axis=1)[:, None]
        halves = sums / np.maximum(tokens, 1)[:, :, None]
        yield start, means, (halves**2).mean(axis=(0, 1))


def _matrix_columns(store: SketchStore) -> NDArray[np.bool_]:
    """(numbers,) which columns are of matrices; all of a hashed row, where parameters are mixed."""
    layout = store.info.layout
    found = np.ones(store.numbers, np.bool_)
    if not layout.spec.hashed:
        for tensor in layout.tensors:
            if len(tensor.shape) < 2:
                found[tensor.start : tensor.stop] = False
    return found


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
