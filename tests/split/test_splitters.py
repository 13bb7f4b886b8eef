"""All splitters through their one entry."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merit.base.errors import InputError, Problems, StageError
from merit.conflict.axes import principal_axes
from merit.data.mixture import DatasetSummary, Mixture, SplitCounts
from merit.split.evidence import between_variance
from merit.split.splitter import SplitRequest, make_partition
from merit.split.splitters.adversarial import adversarial_partition
from merit.split.splitters.random import random_partition


def mixture_of(tokens, weight=1.0):
    def summary(name, count):
        counts = SplitCounts(examples=5, tokens=2 * count, supervised_tokens=count)
        return DatasetSummary(
            name=name,
            source=name,
            format="messages",
            weight=weight,
            train=counts,
            held_out=counts,
            length_quantiles={},
            truncated=0,
            duplicates=0,
            skipped=0,
            scoring=None,
            fingerprint="f",
            rendered=[],
        )

    datasets = [summary(name, count) for name, count in tokens.items()]
    return Mixture(datasets=datasets, unseen=[], max_length=64, tokenizer_fingerprint="t")


def cosines(count, seed=0, width=6):
    vectors = np.random.default_rng(seed).standard_normal((count, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors @ vectors.T


def make(splitter, tokens, *, r=1, seed=0, file=None, similarity=None, weight=1.0):
    mixture = mixture_of(tokens, weight)
    similarity = cosines(len(tokens)) if similarity is None else similarity
    axes = principal_axes(mixture.names, similarity, axes=r)
    request = SplitRequest(mixture.planned_tokens, r=r, seed=seed, axes=axes, similarity=similarity, file=file)
    return make_partition(splitter, request)


EIGHT = {name: 10 + i for i, name in enumerate("hgfedcba")}
SPLITTERS = ["pca", "random", "adversarial", "kmeans"]


@pytest.mark.parametrize("splitter", SPLITTERS)
@pytest.mark.parametrize("r", [1, 2, 3])
def test_every_dataset_once_and_the_order_does_not_matter(splitter, r):
    similarity = cosines(8)
    partition = make(splitter, EIGHT, r=r, seed=4, similarity=similarity)
    assert partition.splitter == splitter
    assert len(partition.groups) == 2**r
    assert sorted(name for group in partition.groups for name in group.datasets) == sorted(EIGHT)
    assert [g.tokens for g in partition.groups] == [sum(EIGHT[n] for n in g.datasets) for g in partition.groups]
    order = [3, 1, 7, 0, 2, 6, 5, 4]
    names = list(EIGHT)
    again = make(
        splitter, {names[i]: EIGHT[names[i]] for i in order}, r=r, seed=4, similarity=similarity[np.ix_(order, order)]
    )
    assert [g.datasets for g in again.groups] == [g.datasets for g in partition.groups]


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_too_few_datasets(splitter):
    with pytest.raises(InputError) as error:
        make(splitter, {"a": 1, "b": 1, "c": 1}, r=2)
    assert error.value.field == "split.axes"


def test_pca_parts_the_camps_and_weights_count():
    camp = np.array([1.0, -1, 1, -1])
    partition = make("pca", dict.fromkeys("abcd", 10), similarity=np.outer(camp, camp), weight=0.5)
    assert sorted(g.datasets for g in partition.groups) == [["a", "c"], ["b", "d"]]
    assert [g.tokens for g in partition.groups] == [10, 10]
    assert {n: round(s, 9) for n, (s,) in partition.scores.items()} == {"a": 1, "b": -1, "c": 1, "d": -1}


def test_adversarial_joins_the_camps():
    camp = np.array([1.0, -1, 1, -1])
    partition = make("adversarial", dict.fromkeys("abcd", 10), similarity=np.outer(camp, camp))
    assert all({*"ac"} != set(g.datasets) != {*"bd"} for g in partition.groups)
    assert between(np.outer(camp, camp), "abcd", partition) == pytest.approx(0, abs=1e-12)


def between(similarity, names, partition):
    groups = [[list(names).index(name) for name in group.datasets] for group in partition.groups]
    return between_variance(similarity, groups, [1.0] * len(names))


@pytest.mark.parametrize("seed", range(5))
def test_adversarial_reaches_nearly_the_least_spread(seed):
    names = list("abcdefgh")
    similarity = cosines(8, seed)
    tokens = dict.fromkeys(names, 10)
    found = between(similarity, names, adversarial_partition(names, similarity, tokens, r=1, seed=seed))
    halves = [half for half in itertools.combinations(range(8), 4) if 0 in half]
    values = sorted(
        between_variance(similarity, [half, [i for i in range(8) if i not in half]], [1.0] * 8) for half in halves
    )
    assert found <= values[2] + 1e-12  # of 35 balanced partitions one of the three best
    assert found >= values[0] - 1e-12


@settings(max_examples=40, deadline=None)  # a busy machine takes longer than hypothesis' 200 ms for 16 datasets
@given(st.lists(st.integers(1, 50), min_size=8, max_size=16), st.integers(1, 3), st.integers(0, 5))
def test_adversarial_is_balanced_and_no_worse_than_its_start(counts, r, seed):
    names = [f"n{i:02d}" for i in range(len(counts))]
    tokens = dict(zip(names, counts, strict=True))
    similarity = cosines(len(names), seed)
    start = random_partition(tokens, r=r, seed=seed)
    found = adversarial_partition(names, similarity, tokens, r=r, seed=seed)
    mean = sum(counts) / 2**r

    def worst(partition):
        return max(abs(group.tokens - mean) for group in partition.groups)

    assert worst(found) <= max(worst(start), 0.05 * mean) * (1 + 1e-9)
    spread = [
        between_variance(similarity, [[names.index(n) for n in g.datasets] for g in p.groups], counts)
        for p in (start, found)
    ]
    assert spread[1] <= spread[0] + 1e-9


def test_between_variance_by_hand():
    vectors = np.array([[1.0, 0], [0, 1.0], [-1.0, 0]])
    # weights 1, 1, 2; groups {0, 1}, {2}: ḡ = (−.25, .25), ḡ_0 = (.5, .5), ḡ_1 = (−1, 0)
    want = 0.5 * (0.75**2 + 0.25**2) + 0.5 * (0.75**2 + 0.25**2)
    assert between_variance(vectors @ vectors.T, [[0, 1], [2]], [1, 1, 2]) == pytest.approx(want)


def test_random_is_seeded_and_differs():
    seen = {tuple(map(tuple, (g.datasets for g in make("random", EIGHT, r=2, seed=s).groups))) for s in range(10)}
    assert len(seen) > 5
    assert make("random", EIGHT, r=2, seed=3) == make("random", EIGHT, r=2, seed=3)
    assert make("random", EIGHT, seed=3).seed == 3


def test_kmeans_finds_the_camps_whatever_their_size():
    camp = np.array([1.0, 1, 1, 1, 1, -1, 1, 1])
    partition = make("kmeans", dict.fromkeys("abcdefgh", 1), similarity=np.outer(camp, camp))
    assert sorted(len(g.datasets) for g in partition.groups) == [1, 7]


def test_kmeans_leaves_no_group_empty_when_datasets_coincide():
    partition = make("kmeans", dict.fromkeys("abcdefgh", 1), r=2, similarity=np.ones((8, 8)))
    assert len(partition.groups) == 4


def test_single_and_replicate():
    single = make("single", EIGHT)
    assert [g.datasets for g in single.groups] == [list(EIGHT)]
    soup = make("replicate", EIGHT, r=2)
    assert [g.datasets for g in soup.groups] == [list(EIGHT)] * 4
    assert soup.groups[0].tokens == sum(EIGHT.values())
    assert make_partition("single", SplitRequest({"a": 1}, r=1, seed=0)).groups[0].tokens == 1


def test_conflict_of_another_mixture():
    with pytest.raises(StageError, match="run `merit conflict` first"):
        make_partition("pca", SplitRequest(EIGHT, r=1, seed=0))
    axes = principal_axes(list("ab"), cosines(2), axes=1)
    with pytest.raises(StageError, match="this mixture's conflict stage"):
        make_partition("pca", SplitRequest(EIGHT, r=1, seed=0, axes=axes, similarity=cosines(8)))


@pytest.mark.parametrize("text", ['{"maths": ["a", "c"], "rest": ["b"]}', "maths: [a, c]\nrest:\n- b\n"])
def test_manual(tmp_path, text):
    file = tmp_path / "groups.yaml"
    file.write_text(text)
    partition = make("manual", {"a": 1, "b": 2, "c": 4}, file=file)
    assert [(g.datasets, g.tokens) for g in partition.groups] == [(["a", "c"], 5), (["b"], 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{x: [a, b], y: [zz]}", r"`y\[0\]`: `zz` is no dataset of the mixture"),
        ("{x: [a, bbb], y: [ccc]}", r"`x\[1\]`: `bbb` is no dataset.*; did you mean"),
        ("{x: [a, b], y: [a]}", r"`y\[0\]`: `a` is already in group `x`"),
        ("{x: [a]}", r"no group has `b`"),
        ("{x: [], y: [a, b]}", r"`x`: a group must be a non-empty list"),
        ("{x: a, y: [b]}", r"`x`: a group must be a non-empty list"),
        ("[a, b]", r"must hold a mapping"),
        ("{x: [a", r"groups\.yaml:1: not valid YAML"),
        ("", r"must hold a mapping"),
    ],
)
def test_manual_mistakes(tmp_path, text, message):
    file = tmp_path / "groups.yaml"
    file.write_text(text)
    tokens = {"a": 1, "b": 1} if "bbb" not in text else {"a": 1, "bbbb": 1, "ccc": 1}
    with pytest.raises(InputError, match=message) as error:
        make("manual", tokens, file=file)
    lines = str(error.value).splitlines()
    assert all("groups.yaml" in line for line in lines)
    assert (len(lines) > 1) == isinstance(error.value, Problems)


def test_manual_without_a_file(tmp_path):
    with pytest.raises(InputError, match="needs a file"):
        make("manual", EIGHT)
    with pytest.raises(InputError, match="no such file"):
        make("manual", EIGHT, file=tmp_path / "absent.json")
