"""Numbers, lists and labels in words; logs and label places."""

from __future__ import annotations

from pathlib import Path

import pytest

from merit.base.words import compact, data_size, decimal, duration, plural, series, short_labels, signed
from merit.report.drawing import place_labels
from merit.report.evidence import read_log
from merit.report.sections.training import smooth


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (compact, 999, "999"),
        (compact, 12_345, "12.3 k"),
        (compact, 134_515_008, "135 M"),
        (compact, 3.1e12, "3.1 T"),
        (data_size, 512, "512 bytes"),
        (data_size, 2_340_000, "2.34 MB"),
        (duration, 3.14, "3.1 s"),
        (duration, 59.9, "1 min"),
        (duration, 3725, "1 h 2 min"),
        (signed, -0.5, "−0.500"),
        (signed, 0.5, "+0.500"),
        (decimal, None, "–"),
        (decimal, -1.0, "−1.000"),
    ],
)
def test_numbers(function, value, text) -> None:
    assert function(value) == text


def test_lists() -> None:
    assert series([]) == ""
    assert series(["a"]) == "a"
    assert series(["a", "b", "c"]) == "a, b and c"
    assert series(["a", "b", "c", "d"], limit=2) == "a, b and 2 more"
    assert plural(1, "axis", "axes") == "1 axis"
    assert plural(2, "axis", "axes") == "2 axes"


def test_short_labels_stay_apart() -> None:
    names = [f"{'a' * 40}{i}{'b' * 40}" for i in range(3)]
    labels = short_labels(names, 20)
    assert len(set(labels)) == 3
    assert max(map(len, labels)) <= 20


def test_logs_are_read_as_far_as_they_are_whole(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [
        '{"step": 2, "loss": 1.5}',
        '{"step": 1, "loss": 2.0, "supervised_tokens": 7, "seconds": 0.5}',
        '{"step": 2, "loss": 1.4}',
        '{"step": 3, "loss": NaN}',
        '{"step": 4}',
        "[]",
        "7",
        '{"step": 5, "lo',
    ]
    log.write_text("\n".join(lines), encoding="utf-8")
    assert [(line.step, line.loss, line.supervised_tokens) for line in read_log(log)] == [(1, 2.0, 7), (2, 1.4, None)]
    assert read_log(tmp_path / "none") == []


def test_the_running_mean_keeps_the_first_value() -> None:
    assert smooth([4, 2, 0, 2, 4], 3) == [4, 2, pytest.approx(4 / 3), 2, 3]


def test_labels_of_near_points_go_to_different_places() -> None:
    points = [(0.0, 0.0), (0.01, 0.0), (0.0, 0.01), (1.0, 1.0)]
    places = place_labels(points, ["gsm8k", "leg_counting", "caesar_cipher", "gcd"])
    assert len(set(places[:3])) == 3
    assert places[3] == "top center"
    assert place_labels([], []) == []
