"""Scores of answers: the reference by equality, reasoning_gym by its own scorers, after a trip through JSON."""

from __future__ import annotations

import json
from importlib import resources

import pytest
import yaml

from merit.evaluate.answers import score_answer


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("blue", "blue", 1.0),
        ("  blue\n", "blue", 1.0),
        ("a  b\tc", "a b c", 1.0),
        ("\ufb01ne", "fine", 1.0),  # the ligature ﬁ is fi after NFKC
        ("Blue", "blue", 0.0),
        ("blue.", "blue", 0.0),
        ("", "blue", 0.0),
        ("blue", None, 0.0),
    ],
)
def test_the_reference_is_compared_after_normalisation(answer, reference, score):
    assert score_answer(answer, reference=reference, verifier=None) == score


def demo_families() -> list[str]:
    config = yaml.safe_load(resources.files("merit.cli").joinpath("demo.yaml").read_text(encoding="utf-8"))
    datasets = {**config["mixture"], **config["evaluate"]["unseen"]}
    return [item["path"].removeprefix("reasoning_gym:") for item in datasets.values()]


@pytest.mark.parametrize("family", [*demo_families(), "arc_agi", "rearc"])
def test_a_generator_finds_its_own_answer_right(family):
    """The verifier is stored as JSON, in which a tuple comes back as a list."""
    import reasoning_gym as gym

    dataset = gym.create_dataset(family, seed=3, size=3)
    for index in range(3):
        entry = dataset[index]
        verifier = json.dumps({"name": family, "entry": entry}, default=str)
        assert score_answer(entry["answer"], reference=None, verifier=verifier) == 1.0


def test_a_wrong_grid_is_still_wrong():
    import reasoning_gym as gym

    entry = gym.create_dataset("rearc", seed=3, size=1)[0]
    verifier = json.dumps({"name": "rearc", "entry": entry}, default=str)
    assert score_answer("9 9\n9 9", reference=None, verifier=verifier) < 0.5


def test_an_answer_that_breaks_the_scorer_is_wrong():
    verifier = json.dumps({"name": "gcd", "entry": {"question": "?", "answer": None, "metadata": {}}})
    assert score_answer("\x00", reference=None, verifier=verifier) == 0.0
