"""`evaluate.engine: vllm`, with a module in vLLM's place that decodes by transformers and keeps what it is told."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_pieces import unmeasured

from cli.command import Command
from merit.base.errors import InputError, StageError
from merit.cli.main import run as cli
from merit.context import RunContext
from merit.data.mixture import Mixture
from merit.evaluate import answers, measure, vllm_engine
from merit.evaluate.measure import answer, missing
from merit.evaluate.scores import ModelScores
from merit.evaluate.subjects import subjects
from merit.evaluate.vllm_engine import VLLM_ENVIRONMENT, answers_by_vllm, check_engine, picked_engine
from merit.jobs.job import Job
from merit.models.loading import load_model

# The part of the documented interface that merit relies on; anything else it is told is an error.
FAKE = """
import json, os
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM

LOG = Path(__file__).with_suffix(".jsonl")


def log(**told):
    with LOG.open("a") as file:
        file.write(json.dumps(told) + "\\n")


class SamplingParams:
    def __init__(self, *, temperature, max_tokens, stop_token_ids, detokenize):
        assert isinstance(temperature, float) and isinstance(max_tokens, int) and max_tokens > 0
        assert all(type(token) is int for token in stop_token_ids)
        vars(self).update(temperature=temperature, tokens=max_tokens, ends=stop_token_ids, detokenize=detokenize)


class LLM:
    def __init__(self, model, *, dtype, load_format, generation_config, trust_remote_code, max_model_len,
                 enforce_eager, seed):
        assert isinstance(model, str)
        log(model=model, dtype=dtype, load_format=load_format, generation_config=generation_config,
            trust_remote_code=trust_remote_code, max_model_len=max_model_len, enforce_eager=enforce_eager, seed=seed,
            env={name: os.environ.get(name) for name in os.environ if name.startswith(("VLLM", "HF_HUB"))})
        self.limit = max_model_len
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def generate(self, prompts, sampling_params, *, use_tqdm):
        assert len(prompts) == len(sampling_params) and use_tqdm is False
        return [self._answer(prompt, params) for prompt, params in zip(prompts, sampling_params)]

    def _answer(self, prompt, params):
        assert set(prompt) == {"prompt_token_ids"} and params.temperature == 0 and params.detokenize is False
        ids = list(prompt["prompt_token_ids"])
        found = []
        assert len(ids) + params.tokens <= self.limit
        while len(found) < params.tokens and (not found or found[-1] not in params.ends):
            with torch.no_grad():
                logits = self.model(input_ids=torch.tensor([ids + found]), use_cache=False).logits[0, -1]
            found.append(int(logits.argmax()))
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(found))])
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which it writes down what it is told. vLLM is installed, and there is a GPU."""
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "vllm.py").write_text(FAKE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    yield folder / "vllm.jsonl"
    sys.modules.pop("vllm", None)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def with_engine(context: RunContext, engine: str) -> RunContext:
    """The run as a worker opens it, which reads the file."""
    text = context.run.config.read_text()
    assert text.count("  max_new_tokens: 4\n") == 1
    context.run.config.write_text(text.replace("  max_new_tokens: 4\n", f"  max_new_tokens: 4\n  engine: {engine}\n"))
    return RunContext.open(context.run.root)


def test_what_vllm_is_told(told: Path, tiny_model: Path) -> None:
    model = load_model(tiny_model).eval()
    prompts = [[5, 6, 7], [8], [9] * 20, [5, 6]]
    wanted = answers.greedy_answers(
        model, answers_tokenizer(tiny_model), prompts, max_new_tokens=6, batch_tokens=10_000
    )
    ends = answers.end_tokens(model.generation_config, answers_tokenizer(tiny_model))
    found = answers_by_vllm(tiny_model, prompts, [6, 6, 0, 2], ends)
    assert found == [wanted[0], wanted[1], [], wanted[3][:2]]
    stop = found[0][1]
    assert answers_by_vllm(tiny_model, prompts[:1], [6], {stop}) == [found[0][: found[0].index(stop) + 1]]
    assert answers_by_vllm(tiny_model, prompts, [0] * 4, ends) == [[]] * 4
    first, second = lines(told)  # no model is loaded to be asked nothing
    del first["env"]
    assert first == {
        "model": str(tiny_model),
        "dtype": "float32",
        "load_format": "safetensors",
        "generation_config": "vllm",
        "trust_remote_code": False,
        "max_model_len": 9,
        "enforce_eager": True,
        "seed": 0,
    }
    assert second["max_model_len"] == 9


def answers_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_every_model_has_a_job_and_the_same_scores(told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = with_engine(unmeasured(tmp_path / "old"), "vllm")
    ran: list[str] = []

    def run_here(_: RunContext, jobs: Sequence[Job]) -> None:
        for job in jobs:
            assert not (context.run.evaluations / "base.json").exists(), "no model of ours is loaded before"
            job.output.parent.mkdir(parents=True, exist_ok=True)  # as whoever starts it does
            with monkeypatch.context() as patch:
                for name, value in job.env.items():
                    patch.setenv(name, value)
                assert cli(list(job.command[job.command.index("merit") + 1 :])) == 0
            assert job.done.is_file()
            ran.append(job.name)

    monkeypatch.setattr(measure, "run_jobs", run_here)
    assert len(missing(context)) == 6
    answer(context)
    assert ran == [f"answers of {label}" for label in ("base", "merit", "joint", "joint@0.5")]  # no branch
    starts = lines(told)
    assert len({start["model"] for start in starts}) == len(starts) == 4
    assert all(start["env"].items() >= {k: v for k, v in VLLM_ENVIRONMENT.items() if k[:2] in "VLHF"}.items()
               for start in starts)  # fmt: skip
    answer(context)
    assert len(ran) == 4, "what is answered is not asked again"

    asked: list[int] = []
    original = answers.greedy_answers
    monkeypatch.setattr(answers, "greedy_answers", lambda *a, **k: asked.append(len(a[2])) or original(*a, **k))
    assert measure.measure(context) == 6
    assert asked == [2], "the drift set alone"
    for subject in subjects(context):
        now, then = (ModelScores.load(run.evaluation(subject.label)) for run in (context.run, old_run(tmp_path).run))
        assert [item.exact for item in now.in_mixture] == [item.exact for item in then.in_mixture]
        assert now.fingerprint != then.fingerprint


def old_run(folder: Path) -> RunContext:
    """The same run, measured by transformers and merit's own decoding."""
    if not (folder / "before").exists():
        shutil.copytree(Path(__file__).parents[1] / "run" / "old_run", folder / "before")
    return RunContext.open(folder / "before" / "run")


def test_answers_that_are_gone_are_not_given_by_another_engine(told: Path, tmp_path: Path) -> None:
    context = with_engine(unmeasured(tmp_path / "old"), "vllm")
    with pytest.raises(StageError, match="vLLM's answers of base are gone; run again"):
        measure.measure(context)


def test_auto_is_vllm_where_it_is_installed_and_a_gpu_is_there(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = unmeasured(tmp_path / "old")
    assert context.config.evaluate.engine == "auto"
    assert picked_engine(context) == "vllm"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert picked_engine(context) == "hf"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    assert picked_engine(context) == "hf"


@pytest.mark.parametrize(
    ("environment", "installed", "message"),
    [("0", False, "vLLM is not installed (pip install vllm)"), ("", True, "vLLM needs a GPU, and there is none")],
)
def test_it_is_refused_in_one_line(
    told: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: str,
    installed: bool,
    message: str,
) -> None:
    context = with_engine(unmeasured(tmp_path / "old"), "vllm")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment)
    if not installed:
        monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    done = Command(capsys)("evaluate", context.run.root)
    assert done.code == 2
    assert f"`evaluate.engine`: {message}; use `hf`" in " ".join(done.err.split())
    assert not told.exists()


def test_a_run_that_is_evaluated_can_be_read_without_a_gpu(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merit.plan.preflight import preflight_problems

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    context = with_engine(unmeasured(tmp_path / "old"), "vllm")
    assert [problem.field for problem in preflight_problems(context)] == ["evaluate.engine"]
    context.run.table.parent.mkdir()
    context.run.table.write_text("{}")
    assert preflight_problems(context) == []


def test_what_vllm_would_answer_otherwise_is_refused(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = with_engine(unmeasured(tmp_path / "old"), "vllm")
    check_engine(context, data=True)
    mixture = Mixture.load(context.run.mixture)
    datasets = [item.model_copy(update={"images": 1}) for item in mixture.datasets]
    mixture.model_copy(update={"datasets": datasets}).save(context.run.mixture)
    with pytest.raises(InputError, match="these prompts show images"):
        check_engine(context, data=True)
    mixture.save(context.run.mixture)
    positions = SimpleNamespace(table=False, count=max(item.longest for item in mixture.datasets if item.scoring) + 3)
    monkeypatch.setattr("merit.models.loading.positions_of", lambda _: cast(Any, positions))
    with pytest.raises(InputError, match="exceed the model's"):
        check_engine(context, data=True)
    positions.count += 1
    check_engine(context, data=True)


def test_no_model_of_this_name(told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = unmeasured(tmp_path / "old")
    done = Command(capsys)("evaluate", context.run.root, "--answers", "nobody")
    assert (done.code, "`--answers`: this run has no model 'nobody'" in done.err) == (2, True)
    done = Command(capsys)("evaluate", context.run.root, "--worker", "0", "--engine", "fast")
    assert (done.code, "`--engine`: 'fast' is neither hf nor vllm" in done.err) == (2, True)
    assert "MERIT_PARENT" not in os.environ
