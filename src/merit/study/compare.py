"""Which differences are tested, and what came of them."""

from __future__ import annotations

from merit.config.merge import PUBLISHED
from merit.evaluation.scores import DatasetScore
from merit.split.splitter import find_splitter
from merit.study.gather import BASE, BEST, CHOSEN, Contender, face_names
from merit.study.results import Comparison
from merit.study.spec import Study
from merit.study.statistics import Estimate, holm, paired

AVERAGE = "average"
_SEED = 20260601  # of the bootstrap: tables of the same scores are the same


def shared_examples(study: Study) -> bool:
    """Whether seeds are measured on the same held-out examples: yes, unless every dataset is drawn anew."""
    config = study.config
    datasets = [*config.mixture.values(), *config.unseen.values(), *config.retention.values()]
    return not all(item.path.startswith("reasoning_gym:") for item in datasets)


def compare(study: Study, budget: str, competing: dict[str, Contender]) -> list[Comparison]:
    """Every subject against every control, with Holm's correction over all comparisons of one face at this budget."""
    pairs = [(a, b) for a in _subjects(study, competing) for b in _controls(study, competing, a)]
    estimates: dict[tuple[str, str, str], Estimate] = {}
    for a, b in pairs:
        for face in (*face_names(competing[a]), AVERAGE):
            estimates[a, b, face] = difference(study, competing[a], competing[b], face)
    adjusted: dict[tuple[str, str, str], float] = {}
    for face in (*face_names(competing[BASE]), AVERAGE):
        found = holm({f"{a}\t{b}": item.p for (a, b, at), item in estimates.items() if at == face})
        adjusted |= {(*key.split("\t"), face): p for key, p in found.items()}  # type: ignore[misc]
    gains = {
        face: difference(study, competing[study.config.reference], competing[BASE], face).value
        for face in (*face_names(competing[BASE]), AVERAGE)
        if study.config.reference in competing
    }
    return [
        Comparison(
            budget=budget,
            a=a,
            b=b,
            face=face,
            difference=item.value,
            low=item.low,
            high=item.high,
            p=item.p,
            holm=adjusted[a, b, face],
            effect=item.effect,
            share=item.value / abs(gains[face]) if gains.get(face) else None,
            wins=wins,
            datasets=count,
        )
        for (a, b, face), item in estimates.items()
        for wins, count in [_wins(competing[a], competing[b], face)]
    ]


def _subjects(study: Study, competing: dict[str, Contender]) -> list[str]:
    """What is tested: the methods by conflict, as published and as validation chose them, and pools of them."""
    methods = study.config.methods
    wanted = study.config.subjects or [
        name for name, item in methods.items() if find_splitter(item.splitter).role == "method"
    ]
    curved = {name for name in wanted if not methods[name].is_published}
    # A curvature-aware merge has no published form: only what validation made of it is tested.
    labels = [name for name in wanted if name not in curved] + [name + CHOSEN for name in sorted(curved)]
    pools = {methods[name].pool for name in wanted} - {None}
    labels += [BEST + str(pool) for pool in sorted(str(item) for item in pools)]
    return [label for label in dict.fromkeys(labels) if label in competing]


def _controls(study: Study, competing: dict[str, Contender], subject: str) -> list[str]:
    """What it is tested against: joint training, the same pulled back, its best, soup, and random groups: as many as
    the subject's where there are such, else the best of them."""
    reference, methods = study.config.reference, study.config.methods
    labels = [reference, reference + CHOSEN]
    pools = {item.pool for item in methods.values() if find_splitter(item.splitter).whole_mixture} - {None}
    labels += [BEST + str(pool) for pool in sorted(str(item) for item in pools)]
    groups = methods[subject].groups if subject in methods else None
    random = {name: item for name, item in methods.items() if find_splitter(item.splitter).role == "chance"}
    plain = [name for name, item in random.items() if item.is_published]
    matched = [name for name in plain if groups is not None and random[name].groups == groups]
    best = {BEST + str(item.pool) for item in random.values() if item.pool is not None}
    labels += matched or [label for label in sorted(best) if label in competing] or plain
    own = methods.get(subject.removesuffix(CHOSEN))
    if own is not None and not own.is_published:  # against the token average of the same branches, too
        same = own.model_copy(update={"merge": PUBLISHED, "scales": [], "pool": None})
        plain = [n for n, m in methods.items() if m.model_copy(update={"scales": [], "pool": None}) == same]
        labels += [label for name in plain for label in (name, name + CHOSEN)]
        labels += [name + CHOSEN for name, item in random.items() if item.merge == own.merge]
    return [label for label in dict.fromkeys(labels) if label in competing and label != subject]


def difference(study: Study, a: Contender, b: Contender | None, face: str) -> Estimate:
    """Of one face, or of the unweighted mean of all faces."""
    shared = shared_examples(study)
    names = face_names(a) if face == AVERAGE else [face]

    def tables(item: Contender) -> list[list[DatasetScore]]:
        return [[score for name in names for score in entry.face(name)] for entry in item.entries]

    weights = None
    if face == AVERAGE:  # every face counts the same, whatever the number of its datasets
        sizes = [len(a.entries[0].face(name)) for name in names]
        weights = [1 / size / len(sizes) for size in sizes for _ in range(size)]
    return paired(
        tables(a),
        tables(b) if b is not None else None,
        shared=shared,
        draws=study.config.draws,
        seed=_SEED,
        weights=weights,
    )


def _wins(a: Contender, b: Contender, face: str) -> tuple[int, int]:
    names = face_names(a) if face == AVERAGE else [face]
    won = total = 0
    for name in names:
        for d in range(len(a.entries[0].face(name))):
            pairs = [(x.face(name)[d].loss, y.face(name)[d].loss) for x, y in zip(a.entries, b.entries, strict=True)]
            won += sum(left for left, _ in pairs) < sum(right for _, right in pairs)
            total += 1
    return won, total
