"""The published vision-language benchmarks through lmms-eval, an optional program that merit starts and reads."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from importlib import util
from pathlib import Path

from merit.base.errors import InputError, StageError
from merit.base.files import read_json
from merit.base.machine import PYTHON
from merit.base.record import Record

# The eight of the paper → lmms-eval's tasks. LLaVA-W and MM-Vet are judged by a model behind an API: set its key.
BENCHMARKS = {
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
_MODELS = {
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "llava": "llava_hf",
    "llava_onevision": "llava_hf",
    "internvl": "internvl_hf",
}


class BenchmarkScores(Record):
    """One model's figures, and what they were made with: compare only what agrees in all of it."""

    model: str
    harness: str
    version: str
    model_class: str
    limit: int | None
    scores: dict[str, dict[str, float]]  # benchmark → metric → value


def benchmark_command(folder: Path, names: Sequence[str], output: Path, *, limit: int | None = None) -> list[str]:
    """The command that measures `folder` on the named benchmarks.

    Raises:
        InputError: a benchmark that is not known.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise InputError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    command = [*PYTHON, "-m", "lmms_eval", "--model", _model_class(folder)]
    command += ["--model_args", f"pretrained={folder}", "--tasks", ",".join(BENCHMARKS[name] for name in names)]
    command += ["--batch_size", "1", "--output_path", str(output)]
    return command + (["--limit", str(limit)] if limit is not None else [])


def run_benchmarks(folder: Path, names: Sequence[str], output: Path, *, limit: int | None = None) -> BenchmarkScores:
    """Runs lmms-eval on a checkpoint and writes `output`/scores.json.

    Args:
        limit: examples a benchmark, for a first look.

    Raises:
        InputError: lmms-eval is not installed, or a benchmark is not known.
        StageError: it failed; its own log is in `output`.
    """
    if util.find_spec("lmms_eval") is None:
        raise InputError("benchmarks need lmms-eval: pip install 'merit-tuning[benchmarks-vision]'")
    command = benchmark_command(folder, names, output, limit=limit)
    output.mkdir(parents=True, exist_ok=True)
    log = output / "lmms_eval.log"
    with log.open("w", encoding="utf-8") as handle:
        code = subprocess.run(command, stdout=handle, stderr=subprocess.STDOUT, check=False).returncode
    files = sorted(output.rglob("*results.json"), key=lambda file: file.stat().st_mtime)
    if code != 0 or not files:
        raise StageError(f"lmms-eval ended with code {code} and {len(files)} result files; see {log}")
    found = BenchmarkScores(
        model=str(folder),
        harness="lmms-eval",
        version=_version(),
        model_class=_model_class(folder),
        limit=limit,
        scores=read_scores(files[-1], names),
    )
    found.save(output / "scores.json")
    return found


def read_scores(file: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The figures in lmms-eval's results file, by the paper's names; standard errors left out.

    Raises:
        StageError: a benchmark is missing in it.
    """
    results = read_json(file)
    results = results.get("results", {}) if isinstance(results, dict) else {}
    scores: dict[str, dict[str, float]] = {}
    for name in names:
        values = results.get(BENCHMARKS[name])
        if not isinstance(values, dict):
            raise StageError(f"{file}: no result of {BENCHMARKS[name]}; it has {json.dumps(sorted(results))}")
        scores[name] = {
            key.partition(",")[0]: float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and "stderr" not in key and not isinstance(value, bool)
        }
    return scores


def _model_class(folder: Path) -> str:
    config = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    return _MODELS.get(str(kind), "huggingface")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lmms-eval")
    except PackageNotFoundError:
        return "unknown"
