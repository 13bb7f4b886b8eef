"""Generated pictures: always the same for a seed, right answers, honest chance."""

from __future__ import annotations

from collections import Counter

import pytest

from merit.base.errors import InputError
from merit.config.sections import DatasetConfig
from merit.data.reading import DatasetReader
from merit.demo.visual import TASKS, VisualSource


@pytest.mark.parametrize("task", TASKS)
def test_rows(tmp_path, task):
    config = DatasetConfig(path=f"visual:{task}", max_examples=300)
    rows = [row.value for row in VisualSource.open(config, "mixture.d").rows()]
    assert rows == [row.value for row in VisualSource.open(config, "mixture.d").rows()]
    assert len({row["image"]["bytes"] for row in rows}) > 290
    most = Counter(row["answer"] for row in rows).most_common(1)[0][1] / len(rows)
    assert abs(most - TASKS[task].chance) < 0.09
    other = DatasetConfig(path=f"visual:{task}", max_examples=2, options={"seed": 1})
    assert next(iter(VisualSource.open(other, "mixture.d").rows())).value != rows[0]
    (read, *_) = DatasetReader.open("d", DatasetConfig(path=f"visual:{task}", max_examples=1), tmp_path).read()
    assert read.value.images[0].read() == rows[0]["image"]["bytes"]


def test_more_is_asked_about_the_same_picture(tmp_path):
    plain, talk = (
        [
            row.value
            for row in VisualSource.open(
                DatasetConfig(path="visual:compare", max_examples=60, options=options), "d"
            ).rows()
        ]
        for options in ({}, {"talk": True})
    )
    assert [row["image"] for row in talk] == [row["image"] for row in plain]
    second = Counter()
    for row, alone in zip(talk, plain, strict=True):
        asked = {row["messages"][i]["content"]: row["messages"][i + 1]["content"] for i in (0, 2, 4)}
        assert asked[alone["question"]] == alone["answer"]
        left, right = int(asked["What is on the left?"]), int(asked["What is on the right?"])
        assert alone["answer"] == ("left" if left > right else "right")
        assert row["messages"][0]["content"] == alone["question"]
        second[row["messages"][2]["content"]] += 1
    assert min(second.values()) > 15
    config = DatasetConfig(path="visual:compare", max_examples=1, options={"talk": True})
    (read,) = DatasetReader.open("d", config, tmp_path).read()
    assert [turn.role for turn in read.value.completion] == ["assistant", "user", "assistant", "user", "assistant"]
    assert len(read.value.images) == 1


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"path": "visual:digits"}, "`mixture.d.path`: unknown task 'digits'; did you mean `digit`?"),
        (
            {"path": "visual:digit", "options": {"sed": 1}},
            "`mixture.d.options.sed`: unknown option; there are: seed, talk",
        ),
        ({"path": "visual:digit", "options": {"talk": 1}}, "`mixture.d.options.talk`: must be true or false, not 1"),
        ({"path": "visual:digit", "options": {"seed": "a"}}, "`mixture.d.options.seed`: must be a whole number"),
    ],
)
def test_mistakes(config, line):
    with pytest.raises(InputError) as error:
        VisualSource.open(DatasetConfig(**config), "mixture.d")
    assert str(error.value).startswith(line)
