"""The gradient stage: resumable dataset by dataset, and never mixing two models or sketches."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import subprocess
import sys

import numpy as np
import pytest
from tiny_models import examples, tiny

from merit.base.errors import InputError
from merit.base.locks import claim
from merit.base.progress import SILENT
from merit.config.calibration import CalibrationConfig
from merit.data.example import Encoded
from merit.data.mixture import DatasetSummary, Mixture, SplitCounts
from merit.data.store import EncodedDataset, StoredExample, calibration_rows, write_store
from merit.gradients.collect import Collector, Measurement, collect_sketches
from merit.gradients.engine import GradientEngine
from merit.run.layout import RunDir

CONFIG = CalibrationConfig(examples=4, fold=7, batch_tokens=64)


def write_dataset(run, name, data):
    rows = [
        StoredExample(
            hashlib.sha256(repr(e.input_ids).encode()).hexdigest()[:32],
            e,
            held_out=False,
            prompt_ids=e.input_ids[:1],
            prompt_text="",
        )
        for e in data
    ]
    write_store(run.data(name), rows)
    counts = SplitCounts(examples=len(data), tokens=1, supervised_tokens=1)
    return DatasetSummary(
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
        fingerprint=f"f-{name}-{len(data)}",
        rendered=[],
    )


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path)


@pytest.fixture
def mixture(run):
    datasets = [write_dataset(run, name, examples(6, seed=i)) for i, name in enumerate(["a", "b/ä", "c"])]
    return Mixture(datasets=datasets, unseen=[], max_length=64, tokenizer_fingerprint="t")


def collect_all(run, mixture, config=CONFIG, model="m", load=lambda: tiny("Llama")):
    return collect_sketches(Measurement(run, mixture, load, config, model, "fp32"))


def measured(monkeypatch):
    """Names that are measured from now on."""
    names: list[str] = []
    real = GradientEngine.measure
    monkeypatch.setattr(
        GradientEngine, "measure", lambda self, name, *rest: names.append(name) or real(self, name, *rest)
    )
    return names


def test_a_finished_store_loads_no_model(run, mixture, caplog):
    caplog.set_level(logging.INFO, logger="merit")
    store = collect_all(run, mixture)
    assert "sketches (fold 7, seed 0)" in caplog.text
    assert [sum(row.examples) for row in store.rows(mixture.names)] == [4, 4, 4]
    again = collect_all(run, mixture, load=lambda: pytest.fail("loaded"))
    assert np.array_equal(again.read_halves("a"), store.read_halves("a"))


def test_a_kill_costs_one_dataset_and_adding_one_measures_one(run, mixture, monkeypatch):
    real, calls = GradientEngine.measure, []

    def die(self, name, *rest):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, name, *rest)

    monkeypatch.setattr(GradientEngine, "measure", die)
    with pytest.raises(KeyboardInterrupt):
        collect_all(run, mixture)
    monkeypatch.undo()
    names = measured(monkeypatch)
    collect_all(run, mixture)
    assert names == calls[2:]
    more = mixture.model_copy(update={"datasets": [*mixture.datasets, write_dataset(run, "d", examples(5, seed=9))]})
    names.clear()
    collect_all(run, Mixture(**more.model_dump()))
    assert names == ["d"]


@pytest.mark.parametrize("change", ["model", "fold", "examples", "data", "truncated"])
def test_what_no_longer_matches_is_measured_again(run, mixture, monkeypatch, change):
    store = collect_all(run, mixture)
    names = measured(monkeypatch)
    if change == "model":
        collect_all(run, mixture, model="other")
    elif change == "fold":
        collect_all(run, mixture, CONFIG.model_copy(update={"fold": 5}))
    elif change == "examples":
        collect_all(run, mixture, CONFIG.model_copy(update={"examples": 3}))
    elif change == "data":
        changed = [write_dataset(run, "a", examples(5, seed=7)), *mixture.datasets[1:]]
        collect_all(run, Mixture(datasets=changed, unseen=[], max_length=64, tokenizer_fingerprint="t"))
    else:
        with store.path("a").open("r+b") as handle:
            handle.truncate(17)
        collect_all(run, mixture)
    assert sorted(names) == (["a"] if change in ("data", "truncated") else ["a", "b/ä", "c"])


def test_an_example_beyond_the_context(run, mixture):
    long = Encoded([1] * 65, [1] * 65)
    dataset = write_dataset(run, "a", [long, *examples(3)])
    with pytest.raises(InputError, match=r"`mixture.a`: an example of 65 tokens .* context of 64"):
        collect_all(run, Mixture(datasets=[dataset], unseen=[], max_length=64, tokenizer_fingerprint="t"))


def test_progress_reaches_its_total(run, mixture):
    seen = []

    class Bar:
        def update(self, done, *, total=None, note=None):
            seen.append((done, note))

    class Progress:
        @contextlib.contextmanager
        def bar(self, name, *, total, unit=""):
            seen.append((total, name))
            yield Bar()

    collect_sketches(Measurement(run, mixture, lambda: tiny("Llama"), CONFIG, "m", "fp32", Progress()))
    assert seen[0][1] == "gradients"
    assert seen[-1][0] == seen[0][0]
    assert {note for _, note in seen[1:]} == {"a", "b/ä", "c"}


@pytest.mark.parametrize("hashed", [None, 1024])
def test_rounds_add_up_to_the_whole(run, tmp_path, monkeypatch, hashed):
    monkeypatch.setattr("merit.gradients.collect.FIRST_ROUND", 2)
    config = CONFIG.model_copy(update={"examples": 6, "hashed": hashed})
    datasets = [
        write_dataset(run, name, examples(count, seed=i)) for i, (name, count) in enumerate([("a", 9), ("b", 3)])
    ]
    mixture = Mixture(datasets=datasets, unseen=[], max_length=64, tokenizer_fingerprint="t")
    names, asked = measured(monkeypatch), []
    store = collect_sketches(
        Measurement(run, mixture, lambda: tiny("Llama"), config, "m", "fp32"), enough=lambda s: asked.append(s)
    )
    assert len(asked) == 2  # after 2 and 4 examples
    assert sorted(names) == ["a", "a", "a", "b", "b"]  # `b` has no more than 3
    assert [sum(row.examples) for row in store.rows(["a", "b"])] == [6, 3]
    rounds = [store.read_halves(name) for name in ("a", "b")]
    other = RunDir(tmp_path / "other")
    for name, dataset in zip(("a", "b"), datasets, strict=True):
        other.data(name).parent.mkdir(parents=True, exist_ok=True)
        other.data(name).write_bytes(run.data(name).read_bytes())
        assert dataset.name == name
    once = collect_all(other, mixture, config)
    for name, sums in zip(("a", "b"), rounds, strict=True):
        np.testing.assert_allclose(sums, once.read_halves(name), rtol=1e-4, atol=1e-4)
        assert store.row(name).tokens == once.row(name).tokens
    # Finished: nothing is measured again, and no model is loaded.
    collect_sketches(
        Measurement(run, mixture, lambda: pytest.fail("loaded"), config, "m", "fp32"), enough=lambda s: asked.append(s)
    )


def test_rounds_stop_when_it_is_enough(run, mixture, monkeypatch):
    monkeypatch.setattr("merit.gradients.collect.FIRST_ROUND", 2)
    store = collect_sketches(
        Measurement(run, mixture, lambda: tiny("Llama"), CONFIG, "m", "fp32"), enough=lambda _: True
    )
    assert [sum(row.examples) for row in store.rows(mixture.names)] == [2, 2, 2]
    again = collect_sketches(
        Measurement(run, mixture, lambda: pytest.fail("loaded"), CONFIG, "m", "fp32"), enough=lambda _: True
    )
    assert [sum(row.examples) for row in again.rows(mixture.names)] == [2, 2, 2]


def test_the_rows_used_are_kept(run, mixture):
    store = collect_all(run, mixture)
    for name in mixture.names:
        assert store.row(name).rows == calibration_rows(EncodedDataset.open(run.data(name)), 4).tolist()


def collector(run, mixture):
    return Collector(Measurement(run, mixture, lambda: tiny("Llama"), CONFIG, "m", "fp32", SILENT))


def test_workers_share_the_datasets(run, mixture, monkeypatch):
    real, names = GradientEngine.measure, []
    other = collector(run, mixture)

    def measure(self, name, *rest):
        names.append(name)
        if len(names) == 1:  # another process comes while the first dataset is in hand
            assert other.share(4) == 2
        return real(self, name, *rest)

    monkeypatch.setattr(GradientEngine, "measure", measure)
    assert collector(run, mixture).share(4) == 1
    assert sorted(names) == ["a", "b/ä", "c"]
    assert collector(run, mixture).missing(4) == 0


def test_a_dead_workers_dataset_is_free(run, mixture):
    store = collect_all(run, mixture)
    lock = store.path("a").with_suffix(".lock")
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import fcntl; f = open({str(lock)!r}, 'w'); fcntl.flock(f, 2); print(1, flush=True); input()",
        ],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    assert child.stdout.readline() == b"1\n"
    with claim(lock) as mine:
        assert not mine
    child.kill()
    child.wait()
    with claim(lock) as mine:
        assert mine


def test_a_worker_of_no_round(run, mixture):
    with pytest.raises(InputError, match=r"--examples.*use one of 4, not 5"):
        collector(run, mixture).share(5)
