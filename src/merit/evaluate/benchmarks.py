"""The published benchmarks: of text through lm-eval's Python API, of images through the program lmms-eval.

Scores depend by tens of points on template, shots and batch (lm-evaluation-harness#1841, #2583), so every setting is
pinned and returned with the score: compare only scores of the same harness at the same settings.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import metadata, resources, util
from pathlib import Path
from typing import Any

from merit.base.errors import InputError, StageError
from merit.base.files import read_json
from merit.base.machine import PYTHON
from merit.base.record import Record

LOCAL = "merit_local"
_SEED = 1234


@dataclass(frozen=True)
class Benchmark:
    """How one text benchmark is asked."""

    task: str  # lm-eval's name
    shots: int
    metric: str
    chance: float  # what guessing scores
    runs_code: bool = False


# The eight text benchmarks of the paper (it names them, and no harness settings: these are lm-eval's usual ones), and
# a small one that is shipped here, so that the path runs without a network.
BENCHMARKS: dict[str, Benchmark] = {
    "mmlu": Benchmark("mmlu", 5, "acc,none", 0.25),
    "gpqa": Benchmark("gpqa_main_n_shot", 0, "acc,none", 0.25),
    "hellaswag": Benchmark("hellaswag", 0, "acc_norm,none", 0.25),
    "winogrande": Benchmark("winogrande", 0, "acc,none", 0.5),
    "boolq": Benchmark("boolq", 0, "acc,none", 0.5),
    "xnli": Benchmark("xnli", 0, "acc,none", 1 / 3),
    "arc_challenge": Benchmark("arc_challenge", 0, "acc_norm,none", 0.25),
    "humaneval": Benchmark("humaneval", 0, "pass@1,create_test", 0.0, runs_code=True),
    LOCAL: Benchmark(LOCAL, 0, "acc,none", 0.25),
}
PUBLISHED = tuple(name for name in BENCHMARKS if name != LOCAL)
# The eight of the paper → lmms-eval's tasks. LLaVA-W and MM-Vet are judged by a model behind an API: set its key.
VISION_BENCHMARKS = {
    "SeedBench": "seedbench",
    "MMBench": "mmbench_en_dev",
    "LLaVA-W": "llava_in_the_wild",
    "MM-Vet": "mmvet",
    "TextVQA": "textvqa_val",
    "AI2D": "ai2d",
    "MathVista": "mathvista_testmini",
    "MMMU": "mmmu_val",
}
# model_type → lmms-eval's class; `huggingface` takes what AutoModelForImageTextToText loads.
_VISION_CLASSES = {
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "llava": "llava_hf",
    "llava_onevision": "llava_hf",
    "internvl": "internvl_hf",
}


class BenchmarkScore(Record):
    """One text benchmark of one model."""

    name: str
    value: float
    standard_error: float | None
    examples: int
    chance: float  # what guessing scores
    settings: dict[str, str]  # all of them, to be printed beside the score


class VisionScores(Record):
    """One model's scores on vision benchmarks, and the settings behind them."""

    model: str
    harness: str
    version: str
    model_class: str
    limit: int | None
    scores: dict[str, dict[str, float]]  # benchmark → metric → value


def run_benchmarks(
    folder: Path, names: Sequence[str], *, limit: int | None = None, batch_size: int, allow_code: bool = False
) -> list[BenchmarkScore]:
    """Scores the model in `folder` on text benchmarks.

    Args:
        names: of `BENCHMARKS`.
        limit: at most so many examples a task; scores of other limits are not comparable.
        allow_code: lets HumanEval run what the model writes. Do this in a container.

    Raises:
        InputError: an unknown name, lm-eval is not installed, code without leave, a data set that cannot be fetched.
    """
    _check_names(names, BENCHMARKS)
    for name in names:
        if BENCHMARKS[name].runs_code and not allow_code:
            raise InputError(
                f"{name} runs code that the model wrote; add --allow-code, in a container", field="--tasks"
            )
    try:
        from lm_eval import simple_evaluate
    except ImportError:
        raise InputError("lm-eval is not installed: pip install 'merit-tuning[benchmarks]'") from None
    from merit.models.loading import best_device

    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "apply_chat_template": False,
        "random_seed": _SEED,
        "numpy_random_seed": _SEED,
        "torch_random_seed": _SEED,
        "fewshot_random_seed": _SEED,
        "limit": limit,
    }
    model = {"pretrained": str(folder), "dtype": "float32", "trust_remote_code": False, "use_safetensors": True}
    scores = []
    with resources.as_file(resources.files("merit.evaluate").joinpath(f"{LOCAL}.jsonl")) as file:
        for name in names:
            benchmark = BENCHMARKS[name]
            pinned = {"num_fewshot": benchmark.shots, **settings}
            try:
                found = simple_evaluate(
                    model="hf",
                    model_args=model,
                    tasks=[_local_task(file) if name == LOCAL else benchmark.task],
                    device=str(best_device()),
                    confirm_run_unsafe_code=benchmark.runs_code,
                    log_samples=False,
                    **pinned,
                )
            except (OSError, ValueError, KeyError) as error:
                said = " ".join(str(error).split())[:200]
                raise InputError(f"{name} cannot be run: {said}", field="--tasks") from error
            scores.append(_score(name, found, pinned))
    return scores


def _check_names(names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"no benchmark {name!r}; there are {', '.join(known)}", field="--tasks")


def _local_task(file: Path) -> dict[str, Any]:
    """The shipped multiple-choice set as lm-eval's task."""
    return {
        "task": LOCAL,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _score(name: str, found: dict[str, Any], settings: dict[str, Any]) -> BenchmarkScore:
    benchmark = BENCHMARKS[name]
    scores = found["results"][benchmark.task]
    spread = scores.get(benchmark.metric.replace(",", "_stderr,", 1))
    shown = {**settings, "metric": benchmark.metric, "task": benchmark.task, "lm-eval": metadata.version("lm-eval")}
    return BenchmarkScore(
        name=name,
        value=float(scores[benchmark.metric]),
        standard_error=float(spread) if isinstance(spread, int | float) else None,
        examples=sum(int(item["effective"]) for item in found.get("n-samples", {}).values()),
        chance=benchmark.chance,
        settings={key: str(item) for key, item in shown.items()},
    )


def run_vision_benchmarks(
    folder: Path, names: Sequence[str], output: Path, *, limit: int | None = None
) -> VisionScores:
    """Runs lmms-eval on the model in `folder` and writes `output`/scores.json.

    Args:
        names: of `VISION_BENCHMARKS`.
        limit: examples a benchmark, for a first look.

    Raises:
        InputError: an unknown name, or lmms-eval is not installed.
        StageError: it failed; its own log is in `output`.
    """
    _check_names(names, VISION_BENCHMARKS)
    if util.find_spec("lmms_eval") is None:
        raise InputError("benchmarks need lmms-eval: pip install 'merit-tuning[benchmarks-vision]'")
    config = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    model_class = _VISION_CLASSES.get(str(kind), "huggingface")
    tasks = ",".join(VISION_BENCHMARKS[name] for name in names)
    command = [*PYTHON, "-m", "lmms_eval", "--model", model_class, "--model_args", f"pretrained={folder}"]
    command += ["--tasks", tasks, "--batch_size", "1", "--output_path", str(output)]
    command += ["--limit", str(limit)] if limit is not None else []
    output.mkdir(parents=True, exist_ok=True)
    log = output / "lmms_eval.log"
    with log.open("w", encoding="utf-8") as handle:
        code = subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT, check=False).returncode
    files = sorted(output.rglob("*results.json"), key=lambda file: file.stat().st_mtime)
    if code != 0 or not files:
        raise StageError(f"lmms-eval ended with code {code} and {len(files)} result files; see {log}")
    try:
        version = metadata.version("lmms-eval")
    except metadata.PackageNotFoundError:
        version = "unknown"
    found = VisionScores(
        model=str(folder),
        harness="lmms-eval",
        version=version,
        model_class=model_class,
        limit=limit,
        scores=_read_scores(files[-1], names),
    )
    found.save(output / "scores.json")
    return found


def _read_scores(file: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The scores in lmms-eval's results file, by the paper's names; standard errors left out."""
    results = read_json(file)
    results = results.get("results", {}) if isinstance(results, dict) else {}
    scores: dict[str, dict[str, float]] = {}
    for name in names:
        values = results.get(VISION_BENCHMARKS[name])
        if not isinstance(values, dict):
            raise StageError(f"{file}: no result of {VISION_BENCHMARKS[name]}; it has {json.dumps(sorted(results))}")
        scores[name] = {
            key.partition(",")[0]: float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and "stderr" not in key and not isinstance(value, bool)
        }
    return scores
