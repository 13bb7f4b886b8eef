"""Scores that travel: what a study has measured, as small files without weights, for the same study elsewhere.

    FOLDER/seed-1/seed.json         what the seed's scores rest on: the data, θ0's own answers and θ0's scores
    FOLDER/seed-1/small/joint.json  one method at one budget: its results and the scores of its points

Scores are used if everything holds that decides them: θ0, the method, the settings and the content of the data. Only
the groups are believed: cosines differ in their last bits between machines, and a cut might. A job that measures
further methods of a seed makes the groups itself, and measures again what has others.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from merit.base import extensions
from merit.base.errors import InputError
from merit.base.files import write_text
from merit.base.kept import kept
from merit.base.progress import SILENT, Progress
from merit.base.record import Sealed, fingerprint
from merit.base.words import plural, series
from merit.config.study import FOREIGN_RULES
from merit.data.mixture import Mixture
from merit.evaluate.drift import DriftSet
from merit.jobs.process import job_lock
from merit.merge.rule import find_rule
from merit.study.measure import FACES, Faces, MethodResult, PointScores, Summary
from merit.study.question import QuestionResult
from merit.study.run import is_whole, summary, summary_so_far
from merit.study.spec import VERSION, Study, job_mark, scored_settings

BESIDE = "scores"  # the folder beside a study file in which they are looked for
_MARK = re.compile(r"[0-9a-f]{16}")
_DATASETS = ("mixture", "unseen", "retention")
_PLACES = {"path", "revision", "chat_template"}  # of a model; its fingerprint and that of the data tell their content
_NAMED = 6  # methods in a message
_PATIENCE_SECONDS = 24 * 3600
_log = logging.getLogger(__name__)
Used = dict[tuple[int, str], dict[str, str]]  # seed and budget → method → mark of its results


class _Scores(Sealed):
    def save(self, path: Path) -> None:
        """Writes the record on one line: indented, each number would have a line of its own."""
        sealed = self.model_copy(update={"seal": self._fingerprint()})
        write_text(path, sealed.model_dump_json() + "\n")


class SeedScores(_Scores):
    """`seed.json`."""

    seed: int
    data: dict[str, str]  # dataset → fingerprint of its encoded content
    drift: DriftSet | None
    base: PointScores  # of θ0
    parameters: int
    skipped: dict[str, str]  # method → why it could not run
    question: QuestionResult | None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.base.test is None or not _MARK.fullmatch(self.base.mark):
            raise ValueError("θ0's scores are incomplete")
        return self


class MethodScores(_Scores):
    """`METHOD.json`."""

    settings: dict[str, str]  # what the scores depend on besides seed and data; part → fingerprint
    base: str  # mark of θ0's scores on the same examples
    result: MethodResult
    points: list[PointScores]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        found, result = {item.mark: item for item in self.points}, self.result
        if not all(_MARK.fullmatch(mark) for mark in found) or {f"{mark}.json" for mark in found} != {*result.files}:
            raise ValueError("other points than its results name")
        if not all(0 <= index < len(result.points) for index in (result.plain, result.chosen)):
            raise ValueError("no such point")
        reported = [result.points[result.plain], result.points[result.chosen], *result.between]
        if any(found[item.mark].test is None for item in reported):
            raise ValueError("test scores are missing")
        return self


def export_scores(study: Study, folder: Path) -> int:
    """Writes the scores of all measured methods to `folder`; returns how many methods times seeds and budgets.

    Reads only what is finished, so it may run while the study does.

    Raises:
        InputError: nothing is measured; or `folder` holds scores of other data or examples.
    """
    written = 0
    for seed in study.config.seeds:
        found = {}
        for budget in study.config.budgets:
            if (item := summary_so_far(study, seed, budget)) is not None:
                found[budget] = item
            elif study.dir.summary(seed, budget).is_file() or study.dir.so_far(seed, budget).is_file():
                _log.warning(
                    "seed %d, %s: left out, the study has changed since; `merit study` measures what is missing",
                    seed,
                    budget,
                )
        if not found:
            continue
        rests = _rests_on(study, seed, [*found.values()])
        home = _home(folder, seed)
        there = kept(home / "seed.json", SeedScores).record
        if there is not None and there.base.mark != rests.base.mark:
            raise InputError(
                "holds scores of this seed on other data or other held-out examples; export to another folder",
                file=home,
            )
        if rests.question is None and there is not None:
            rests = rests.model_copy(update={"question": there.question})
        rests.save(home / "seed.json")
        for budget, item in found.items():
            if item.base != rests.base.mark:
                _log.warning("seed %d, %s: left out, measured on other examples than other budgets", seed, budget)
                continue
            for name, result in item.methods.items():
                marks = dict.fromkeys(point.mark for point in (*result.points, *result.between))
                MethodScores(
                    settings=_settings(study, name, budget),
                    base=item.base,
                    result=result,
                    points=[PointScores.load(study.dir.point(mark)) for mark in marks],
                ).save(home / budget / f"{name}.json")
                written += 1
    if not written:
        raise InputError(
            "nothing to export: no method is measured yet with the settings of this study", file=study.dir.root
        )
    return written


def adopt_scores(
    study: Study,
    folder: Path,
    progress: Progress = SILENT,
    *,
    seeds: Collection[int] | None = None,
    verify: bool = True,
) -> Used:
    """Writes the scores in `folder` that are this study's into its directory, where it has none; tells which are not.

    Args:
        seeds: only of these; default: of all.
        verify: compare the content of the data, and only then take a job as finished. Otherwise the data need not be
            there: for tables.

    Raises:
        InputError: a dataset cannot be read.
    """
    used: Used = {}
    for seed in study.config.seeds if seeds is None else seeds:
        home = _home(folder, seed)
        unfinished = [b for b in study.config.budgets if (home / b).is_dir() and summary(study, seed, b) is None]
        if not unfinished:
            continue
        rests, why = _usable(study, seed, home, progress, verify)
        if rests is None:
            _log.warning("%s: not used: %s", home, why)
            continue
        for budget in unfinished:
            methods = _adopt(study, seed, budget, rests, home / budget, verify)
            used |= {(seed, budget): methods} if methods else {}
    if used:
        count = sum(map(len, used.values()))
        _log.info("%s: %s measured already", folder, plural(count, "method is", "methods are"))
    return used


def tell_measured_again(study: Study, used: Used) -> None:
    """Tells which scores a job has not believed after all."""
    for (seed, budget), methods in used.items():
        found = summary_so_far(study, seed, budget)
        again = [n for n, mark in methods.items() if found and n in found.methods and found.methods[n].mark != mark]
        if again:
            names = series(again, limit=_NAMED)
            _log.warning("seed %d, %s: measured again, since the groups are others here: %s", seed, budget, names)


def _home(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def _settings(study: Study, name: str, budget: str) -> dict[str, str]:
    """What the scores of one method depend on besides the seed and the content of the data, part by part. Nothing in it
    says where a file lies."""
    config, method = study.config, study.config.methods[name]
    parts = scored_settings(config)
    for section in _DATASETS:
        parts[section] = {key: _placeless(item) for key, item in parts.get(section, {}).items()}
    if method.merge in FOREIGN_RULES or find_rule(method.merge).of_weights_alone:
        parts.pop("curvature", None)
    model = {key: value for key, value in parts.pop("model", {}).items() if key not in _PLACES}
    own = extensions.marks("rules", method.merge)
    parts |= {
        "model": [study.theta0.fingerprint, model],
        f"methods.{name}": [*method.training, method.merge, method.ridge, method.scales, *own],
        f"budgets.{budget}": config.budgets[budget],
        "version": VERSION,
    }
    return {key: fingerprint(value) for key, value in parts.items()}


def _placeless(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's settings without the folder of its file, which need not be there."""
    found = {key: value for key, value in dataset.items() if key != "image_folder"}
    path = Path(found["path"])
    is_file = path.is_absolute() or (path.suffix and ":" not in found["path"])
    return found | {"path": path.name} if is_file else found


def _rests_on(study: Study, seed: int, found: Sequence[Summary]) -> SeedScores:
    question = study.config.question is not None
    return SeedScores(
        seed=seed,
        data=_contents(Mixture.load(study.dir.seed(seed).mixture)),
        drift=kept(study.dir.drift(seed), DriftSet).record,
        base=PointScores.load(study.dir.point(found[0].base)),
        parameters=found[0].parameters,
        skipped={name: why for item in found for name, why in item.skipped.items()},
        question=kept(study.dir.question(seed), QuestionResult).record if question else None,
    )


def _contents(mixture: Mixture) -> dict[str, str]:
    return {item.name: item.fingerprint for item in (*mixture.datasets, *mixture.unseen)}


def _usable(
    study: Study, seed: int, home: Path, progress: Progress, verify: bool
) -> tuple[SeedScores, str] | tuple[None, str]:
    """What the scores of one seed rest on, if that is so here; or None, and why not."""
    found = kept(home / "seed.json", SeedScores)
    rests = found.record
    if rests is None or rests.seed != seed:
        return None, "seed.json is damaged, gone or another seed's"
    if verify and (other := _other_data(study, seed, rests, progress)):
        return None, f"the data are others here: {series(other, limit=_NAMED)}"
    here = kept(study.dir.drift(seed), DriftSet, {"fingerprint": rests.drift.fingerprint} if rests.drift else {}).record
    if here is not None and here != rests.drift:
        return None, "this study has measured drift on other answers of θ0"
    return rests, ""


def _other_data(study: Study, seed: int, rests: SeedScores, progress: Progress) -> list[str]:
    """The datasets that hold something else here. Reads and encodes the data; the jobs find that done."""
    from merit.data.step import NAME
    from merit.pipeline import run_pipeline

    context = study.seed_run(seed, progress)
    with job_lock(context.run.root / "lock", wait_seconds=_PATIENCE_SECONDS):
        run_pipeline(context, until=NAME)
    here = _contents(context.mixture)
    return [name for name in {**here, **rests.data} if here.get(name) != rests.data.get(name)]


def _adopt(study: Study, seed: int, budget: str, rests: SeedScores, folder: Path, verify: bool) -> dict[str, str]:
    """Writes the scores of one job; returns method → mark of its results."""
    known = summary_so_far(study, seed, budget)
    if known is not None and known.base != rests.base.mark:
        _log.warning("%s: not used: this study has measured other examples", folder)
        return {}
    own = known.methods if known is not None else {}
    found: dict[str, MethodScores] = {}
    refused: dict[str, list[str]] = {}
    for name, scores in _readable(study, budget, rests, folder):
        if isinstance(scores, str):
            refused.setdefault(scores, []).append(name)
        elif name not in own:
            found[name] = scores
    for why, names in refused.items():
        _log.warning("%s: not used: %s (%s)", folder, series(names, limit=_NAMED), why)
    if not found:
        return {}
    if rests.drift is not None:
        rests.drift.save(study.dir.drift(seed))
    if rests.question is not None and not study.dir.question(seed).is_file():
        rests.question.save(study.dir.question(seed))
    for point in (rests.base, *(point for scores in found.values() for point in scores.points)):
        there = kept(study.dir.point(point.mark), PointScores).record
        if there is None or there.test is None:
            point.save(study.dir.point(point.mark))
    for name, scores in found.items():
        scores.result.save(study.dir.method_result(seed, budget, name))
    results = {**{name: scores.result for name, scores in found.items()}, **own}
    measured = Summary(
        mark=job_mark(study),
        seed=seed,
        budget=budget,
        base=rests.base.mark,
        methods={name: results[name] for name in study.config.methods if name in results},
        skipped={name: why for name, why in rests.skipped.items() if name not in results},
        parameters=rests.parameters,
        seconds=known.seconds if known is not None else 0.0,
    )
    whole = verify and is_whole(study, measured)
    measured.save(study.dir.summary(seed, budget) if whole else study.dir.so_far(seed, budget))
    return {name: scores.result.mark for name, scores in found.items()}


def _readable(
    study: Study, budget: str, rests: SeedScores, folder: Path
) -> Iterator[tuple[str, MethodScores] | tuple[str, str]]:
    """Method → its scores, or why they cannot be used."""
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem):
        name = path.stem
        if name not in study.config.methods:
            yield name, "no method of this study"
            continue
        state = kept(path, MethodScores, {"settings": _settings(study, name, budget), "base": rests.base.mark})
        scores = state.record
        if scores is None:
            yield name, f"other here: {series(state.changed)}" if state.changed else state.why
        elif scores.result.name != name or any(_examples(p) != _examples(rests.base, p) for p in scores.points):
            yield name, "its record is damaged"
        else:
            yield name, scores


def _examples(point: PointScores, like: PointScores | None = None) -> list[Any]:
    """What the scores are of: face, dataset and tokens of every example. Without test examples, if `like` has none."""
    parts: list[Faces | None] = [point.validation, point.test if like is None or like.test is not None else None]
    return [
        (face, score.name, score.tokens, len(score.losses))
        for part in parts
        if part is not None
        for face in FACES
        for score in part.face(face)
    ]
