"""lmms-eval from outside: what is asked of it, and how its answer is read. A small program stands in for it."""

from __future__ import annotations

import json

import pytest

from merit.base.errors import InputError, StageError
from merit.evaluate.benchmarks import VISION_BENCHMARKS, run_vision_benchmarks

STAND_IN = """
import json, sys, pathlib
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if given["--limit"] == "0":
    sys.exit("no examples")
out = pathlib.Path(given["--output_path"]) / "model"
out.mkdir()
tasks = {name: {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": name} for name in given["--tasks"].split(",")}
(out / "20260101_results.json").write_text(json.dumps({"results": tasks, "given": given}))
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    package = tmp_path / "site" / "lmms_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))
    return folder


def test_the_eight_of_the_paper(model, tmp_path):
    assert len(VISION_BENCHMARKS) == 8
    found = run_vision_benchmarks(model, list(VISION_BENCHMARKS), tmp_path / "out", limit=3)
    assert found.scores == {name: {"acc": 0.5} for name in VISION_BENCHMARKS}
    assert (found.model_class, found.limit) == ("llava_hf", 3)
    given = json.loads((tmp_path / "out" / "model" / "20260101_results.json").read_text())["given"]
    assert given["--model_args"] == f"pretrained={model}"


def test_what_can_go_wrong(model, tmp_path):
    with pytest.raises(InputError, match="no benchmark 'MME'; there are SeedBench"):
        run_vision_benchmarks(model, ["MME"], tmp_path)
    with pytest.raises(StageError, match=r"code 1 and 0 result files; see .*lmms_eval\.log"):
        run_vision_benchmarks(model, ["MMMU"], tmp_path / "out", limit=0)
    assert "no examples" in (tmp_path / "out" / "lmms_eval.log").read_text()
