"""`merit demo --vision`: its configuration stands, and its last table tells right answers from chance."""

from __future__ import annotations

from importlib import resources

from merit.cli.run_commands import _print_accuracy
from merit.config import load_config
from merit.demo.visual import TASKS
from merit.evaluate.scores import DatasetScore, ModelScores
from merit.models.source import resolve_model
from merit.run.layout import RunDir


def test_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("MERIT_CACHE", str(tmp_path))
    with resources.as_file(resources.files("merit.cli").joinpath("demo_vision.yaml")) as file:
        config = load_config(file)
    assert set(config.mixture) == set(config.prepare.mixture) == set(TASKS)
    # What the model is prepared on is drawn with another seed than what it is measured on.
    assert {item.options.get("seed", 0) for item in config.prepare.mixture.values()} == {1}
    assert {item.options.get("seed", 0) for item in config.mixture.values()} == {0}
    first, again = (resolve_model(config.model, tmp_path) for _ in range(2))
    assert first == again


def test_the_table(tmp_path, capsys):
    run = RunDir(tmp_path)
    for label, right in (("base", 0), ("merit", 3), ("joint", 2)):
        scores = [
            DatasetScore(name=name, losses=[1.0], tokens=[1], exact=[1.0] * right + [0.0] * (4 - right))
            for name in ("digit", "same")
        ]
        ModelScores(
            label=label,
            method=label,
            kind="merge",
            scale=1,
            fingerprint="",
            in_mixture=scores,
            unseen=[],
            drift=None,
            seconds=0,
        ).save(run.evaluation(label))
    _print_accuracy(tmp_path)
    out = capsys.readouterr().out
    assert "2 of 2 tasks lie more than 20 points above chance" in out
    assert [line.split() for line in out.splitlines() if "digit" in line or "same" in line] == [
        ["digit", "10%", "0%", "75%", "50%"],
        ["same", "50%", "0%", "75%", "50%"],
    ]
