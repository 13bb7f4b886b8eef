"""The published text benchmarks through lm-eval's Python API, with every setting pinned and returned with the score.

Scores depend by tens of points on template, shots and batch (lm-evaluation-harness#1841, #2583): compare only scores of
the same harness at the same settings. HumanEval runs code that the model wrote, so it must be asked for by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from merit.base.errors import InputError
from merit.base.record import Record

LOCAL = "merit_local"
_SEED = 1234


@dataclass(frozen=True)
class Benchmark:
    """How one benchmark is asked."""

    task: str  # lm-eval's name
    shots: int
    metric: str
    runs_code: bool = False


# The eight text benchmarks of the paper (it names them, and no harness settings: these are lm-eval's usual ones), and
# a small one that is shipped here, so that the path runs without a network.
BENCHMARKS: dict[str, Benchmark] = {
    "mmlu": Benchmark("mmlu", 5, "acc,none"),
    "gpqa": Benchmark("gpqa_main_n_shot", 0, "acc,none"),
    "hellaswag": Benchmark("hellaswag", 0, "acc_norm,none"),
    "winogrande": Benchmark("winogrande", 0, "acc,none"),
    "boolq": Benchmark("boolq", 0, "acc,none"),
    "xnli": Benchmark("xnli", 0, "acc,none"),
    "arc_challenge": Benchmark("arc_challenge", 0, "acc_norm,none"),
    "humaneval": Benchmark("humaneval", 0, "pass@1,create_test", runs_code=True),
    LOCAL: Benchmark(LOCAL, 0, "acc,none"),
}
PUBLISHED = tuple(name for name in BENCHMARKS if name != LOCAL)


class BenchmarkScore(Record):
    """One benchmark of one model."""

    name: str
    value: float
    standard_error: float | None
    examples: int
    chance: float | None  # what guessing scores, where it is known
    settings: dict[str, str]  # all of them, to be printed beside the score


def run_benchmarks(
    folder: Path, names: Sequence[str], *, limit: int | None = None, batch_size: int = 8, allow_code: bool = False
) -> list[BenchmarkScore]:
    """Scores the model in `folder`.

    Args:
        names: of `BENCHMARKS`.
        limit: at most so many examples a task; scores of other limits are not comparable.
        allow_code: lets HumanEval run what the model writes. Do this in a container.

    Raises:
        InputError: an unknown name, lm-eval is not installed, code without leave, a data set that cannot be fetched.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise InputError(f"no benchmark {name!r}; there are {', '.join(BENCHMARKS)}", field="--tasks")
        if BENCHMARKS[name].runs_code and not allow_code:
            raise InputError(
                f"{name} runs code that the model wrote; add --allow-code, in a container", field="--tasks"
            )
    try:
        from lm_eval import simple_evaluate
    except ImportError:
        raise InputError("lm-eval is not installed: pip install 'merit-tuning[benchmarks]'") from None
    with resources.as_file(resources.files("merit.evaluate").joinpath(f"{LOCAL}.jsonl")) as file:
        return [_score(simple_evaluate, file, folder, name, limit, batch_size) for name in names]


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


def _score(evaluate: Any, file: Path, folder: Path, name: str, limit: int | None, batch_size: int) -> BenchmarkScore:
    from merit.models.loading import best_device

    benchmark = BENCHMARKS[name]
    settings: dict[str, Any] = {
        "num_fewshot": benchmark.shots,
        "batch_size": batch_size,
        "apply_chat_template": False,
        "random_seed": _SEED,
        "numpy_random_seed": _SEED,
        "torch_random_seed": _SEED,
        "fewshot_random_seed": _SEED,
        "limit": limit,
    }
    arguments = {"pretrained": str(folder), "dtype": "float32", "trust_remote_code": False, "use_safetensors": True}
    try:
        found = evaluate(
            model="hf",
            model_args=arguments,
            tasks=[_local_task(file) if name == LOCAL else benchmark.task],
            device=str(best_device()),
            confirm_run_unsafe_code=benchmark.runs_code,
            log_samples=False,
            **settings,
        )
    except (OSError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{name} cannot be run: {said}", field="--tasks") from error
    scores = found["results"][benchmark.task]
    value = scores[benchmark.metric]
    error_key = benchmark.metric.replace(",", "_stderr,", 1)
    spread = scores.get(error_key)
    counted = found.get("n-samples", {})
    shown = {**settings, "metric": benchmark.metric, "task": benchmark.task, "lm-eval": metadata.version("lm-eval")}
    return BenchmarkScore(
        name=name,
        value=float(value),
        standard_error=float(spread) if isinstance(spread, int | float) else None,
        examples=sum(int(item["effective"]) for item in counted.values()),
        chance=_CHANCE.get(name),
        settings={key: str(item) for key, item in shown.items()},
    )


_CHANCE = {
    "mmlu": 0.25,
    "gpqa": 0.25,
    "hellaswag": 0.25,
    "winogrande": 0.5,
    "boolq": 0.5,
    "xnli": 1 / 3,
    "arc_challenge": 0.25,
    "humaneval": 0.0,
    LOCAL: 0.25,
}
