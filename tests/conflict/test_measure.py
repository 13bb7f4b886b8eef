"""The conflict stage's files."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sketches import noisy_store, store_of

from merit.conflict.axes import AxesResult
from merit.conflict.similarity import ConflictResult
from merit.conflict.step import measure_conflict
from merit.data.mixture import DatasetSummary, Mixture, SplitCounts
from merit.run.layout import RunDir


def mixture_of(names):
    counts = SplitCounts(examples=3, tokens=100, supervised_tokens=40)
    datasets = [
        DatasetSummary(
            name=name,
            source=name,
            format="messages",
            weight=1.0,
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
        for name in names
    ]
    return Mixture(datasets=datasets, unseen=[], max_length=64, tokenizer_fingerprint="t")


def test_files_agree_with_what_is_returned(tmp_path):
    run = RunDir(tmp_path)
    names = ["d3", "d0", "d5", "d1", "d2", "d4"]
    store, _ = noisy_store(run.gradients)
    result, axes, similarity = measure_conflict(run, mixture_of(names), store, 2, True)
    assert np.array_equal(np.load(run.similarity), similarity)
    assert similarity.dtype == np.float64
    assert ConflictResult.load(run.conflict) == result
    assert AxesResult.load(run.axes) == axes
    assert result.names == axes.names == names
    assert result.examples == [3] * 6
    assert result.tokens == [18] * 6
    assert result.losses == pytest.approx([1.5] * 6)
    assert result.sketch == "full"
    assert result.sketch_numbers == result.parameters == 400
    assert not list(tmp_path.rglob("*.part"))


def test_notes_name_what_cannot_be_trusted(tmp_path):
    run = RunDir(tmp_path)
    same = np.array([[3.0, 4.0, 0], [3.0, 4.1, 0]])
    rows = {
        "a": (same, (2, 2)),
        "b": (same * 2, (2, 2)),
        "noisy": (np.array([[1.0, 0, 0], [0, 0, 1.0]]), (2, 2)),
        "one": (np.array([[0, 1.0, 1], [0, 0, 0]]), (2, 0)),
    }
    result, _, _ = measure_conflict(run, mixture_of(list(rows)), store_of(run.gradients, rows), 1, True)
    assert result.reliability[3] is None
    assert len(result.notes) == 3
    assert "`noisy`: most of its gradient is noise" in result.notes[0]
    assert "`one` has a single calibration example" in result.notes[1]
    assert "`a` and `b` have nearly the same gradient (cosine 1.000)" in result.notes[2]


def test_no_torch():
    code = "import sys, merit.conflict.step, merit.split.splitter; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
