"""The cut's rule, by hand and by property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merit.base.errors import InputError
from merit.split.median import cut_group, median_partition


def groups(partition):
    return [group.datasets for group in partition.groups]


def test_two_axes_by_hand():
    scores = {"a": [-2.0, 1.0], "b": [-1.0, -1.0], "c": [1.0, 5.0], "d": [2.0, -5.0]}
    partition = median_partition("pca", scores, dict.fromkeys(scores, 10), axes=2)
    assert groups(partition) == [["b"], ["a"], ["d"], ["c"]]
    assert [(cut.axis, cut.group, cut.threshold) for cut in partition.cuts] == [
        (0, ["a", "b", "c", "d"], 0.0),
        (1, ["b", "a"], 0.0),
        (1, ["d", "c"], 0.0),
    ]
    assert partition.group_of == {"b": 0, "a": 1, "d": 2, "c": 3}
    assert [group.tokens for group in partition.groups] == [10] * 4
    assert all(cut.note is None for cut in partition.cuts)


def test_tokens_weigh():
    scores = {"a": 0.0, "b": 1.0, "c": 2.0, "d": 3.0}
    low, high, cut = cut_group(scores, {"a": 10, "b": 10, "c": 10, "d": 30}, axis=0)
    assert (low, high) == (["a", "b", "c"], ["d"])
    assert (cut.low, cut.high) == (30, 30)
    assert cut.threshold == 2.5


def test_of_two_equal_cuts_the_low_side_gets_more():
    low, high, _ = cut_group({"a": 0.0, "b": 1.0, "c": 2.0}, {"a": 1, "b": 1, "c": 1}, axis=0)
    assert (low, high) == (["a", "b"], ["c"])


def test_equal_scores_stand_by_name():
    low, high, cut = cut_group({"d": 0.0, "a": 0.0, "c": 0.0, "b": 0.0}, dict.fromkeys("abcd", 1), axis=0)
    assert (low, high) == (["a", "b"], ["c", "d"])
    assert cut.threshold == 0.0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_dataset_heavier_than_half(place):
    scores = {"a": 0.0, "b": 1.0, "c": 2.0}
    tokens = dict.fromkeys("abc", 10) | {"abc"[place]: 100}
    low, high, cut = cut_group(scores, tokens, axis=0)
    assert low
    assert high
    assert cut.note == f"`{'abc'[place]}` holds 83% of this group's tokens: the cut cannot balance it"


def test_every_side_keeps_enough_for_the_axes_that_follow():
    scores = {name: [float(i), float(-i)] for i, name in enumerate("abcde")}
    tokens = {"a": 1000, "b": 1, "c": 1, "d": 1, "e": 1}
    partition = median_partition("pca", scores, tokens, axes=2)
    assert groups(partition) == [["b"], ["a"], ["d", "e"], ["c"]]
    assert partition.cuts[0].note is not None
    assert "each side must keep 2 datasets" in partition.cuts[0].note


@pytest.mark.parametrize(("count", "axes"), [(1, 1), (3, 2), (7, 3)])
def test_too_few_datasets(count, axes):
    scores = {str(i): [0.0] * axes for i in range(count)}
    with pytest.raises(InputError, match=rf"{axes} axes make {2**axes} groups, .* only {count}") as error:
        median_partition("pca", scores, dict.fromkeys(scores, 1), axes=axes)
    assert error.value.field == "split.axes"


MIXTURES = st.dictionaries(
    st.text(min_size=1, max_size=4),
    st.tuples(st.lists(st.integers(-3, 3).map(float), min_size=3, max_size=3), st.integers(0, 100)),
    min_size=8,
    max_size=20,
)


@given(MIXTURES, st.integers(1, 3), st.randoms())
def test_properties(mixture, axes, random):
    scores = {name: values for name, (values, _) in mixture.items()}
    tokens = {name: count for name, (_, count) in mixture.items()}
    partition = median_partition("pca", scores, tokens, axes=axes)
    assert len(partition.groups) == 2**axes
    assert sorted(name for group in partition.groups for name in group.datasets) == sorted(mixture)
    assert sum(group.tokens for group in partition.groups) == sum(tokens.values())
    for cut in partition.cuts:
        # Balance as the rule says: a freely placed cut is off by no more than the heaviest dataset it sits beside.
        if cut.note is None:
            heaviest = max(tokens[name] for name in cut.group)
            assert abs(cut.low - cut.high) <= heaviest
        low = [name for name in cut.group if scores[name][cut.axis] < cut.threshold]
        high = [name for name in cut.group if scores[name][cut.axis] > cut.threshold]
        assert sum(tokens[name] for name in low) <= cut.low
        assert sum(tokens[name] for name in high) <= cut.high
    order = list(mixture)
    random.shuffle(order)
    again = median_partition("pca", {n: scores[n] for n in order}, {n: tokens[n] for n in order}, axes=axes)
    assert again == partition
