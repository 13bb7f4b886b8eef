"""Which comparisons are made: what is the same models under two labels is tested once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from merit.config.study import MethodConfig
from merit.study.compare import BASE, Contender, _controls, _subjects
from merit.study.spec import Study

METHODS = {
    "joint": MethodConfig(splitter="single", scales=[0.5, 1.0]),
    "random": MethodConfig(splitter="random"),
    "merit": MethodConfig(splitter="pca", merge="actmat", scales=[0.5, 1.0]),
}
STUDY = cast(Study, SimpleNamespace(config=SimpleNamespace(methods=METHODS, reference="joint", subjects=[])))


def contender(label: str, *marks: str) -> Contender:
    """One of a study of two seeds, of the models that are known by these marks."""
    entries = [cast(Any, SimpleNamespace(scores=SimpleNamespace(mark=mark))) for mark in marks]
    return Contender(label, None, "", 1.0, entries)


@pytest.mark.parametrize(
    ("chosen", "controls"),
    [(("j1", "j2"), ["joint", "random"]), (("j1", "j2 pulled"), ["joint", "joint*", "random"])],
)
def test_a_choice_that_chose_the_plain_method_for_all_seeds_is_no_further_test(
    chosen: tuple[str, str], controls: list[str]
) -> None:
    found = [
        contender(BASE, "b", "b"),
        contender("joint", "j1", "j2"),
        contender("joint*", *chosen),
        contender("random", "r1", "r2"),
        contender("merit", "m1", "m2"),
        contender("merit*", "m1", "m2 pulled"),
    ]
    competing = {item.label: item for item in found}
    assert _subjects(STUDY, competing) == ["merit*"]
    assert _controls(STUDY, competing, "merit*") == controls
