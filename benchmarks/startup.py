"""How soon the command line answers (help, the schema, a mistake in a configuration), and how soon a job computes.

    python benchmarks/startup.py [--quick] [--only commands|jobs]

The jobs are those of `merit demo --quick`: from the start of a job's process to its first report, which a branch gives
before its first step, and a worker of conflict or evaluation after its first batch. With a nursery (as jobs start by
default) and without. Prints a table, and as its last line one JSON object. The promise: under half a second for a
command, three seconds for a job.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WRONG = "model: somewhere\nmixture:\n  a: {pth: a.jsonl}\n"


def seconds(command: list[str], repeats: int) -> float:
    """The best of several runs: what the program costs, not what else the machine did."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=False)
        times.append(time.perf_counter() - started)
    return min(times)


# Of a run: a job's output, which exists from its start, and its first report.
JOBS = {
    "gradients": ("gradients/jobs/*.txt", ".json"),
    "branch": ("**/branches/*/output.txt", "/../progress.json"),
    "evaluation": ("evaluation/jobs/*.txt", ".json"),
}


def job_seconds(folder: Path, env: dict[str, str]) -> dict[str, float]:
    """Kind of job → seconds from its start to its first report, the median of a run's jobs of that kind."""
    run, seen = folder / "run", dict[Path, float]()
    first: dict[str, dict[Path, float]] = {kind: {} for kind in JOBS}
    command = [sys.executable, "-m", "merit", "demo", "--quick", "--out", str(run)]
    process = subprocess.Popen(command, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        for kind, (pattern, report) in JOBS.items():
            for output in run.glob(pattern):
                started = seen.setdefault(output, time.perf_counter())
                told = Path(os.path.normpath(f"{output.with_suffix('')}{report}"))
                if output not in first[kind] and told.exists():
                    first[kind][output] = time.perf_counter() - started
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(f"`merit demo --quick` failed: exit code {process.returncode}")
    return {kind: statistics.median(times.values()) for kind, times in first.items() if times}


def measure_jobs() -> dict[str, float]:
    found: dict[str, float] = {}
    for name, env in (("warm", {}), ("cold", {"MERIT_COLD_JOBS": "1"})):
        with tempfile.TemporaryDirectory() as folder:
            found |= {
                f"{kind}_{name}_seconds": round(value, 2) for kind, value in job_seconds(Path(folder), env).items()
            }
    for name, value in found.items():
        print(f"{name:26} {value:7.2f} s")
    return found


def measure_commands(repeats: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "merit.yaml"
        file.write_text(WRONG)
        merit = [sys.executable, "-m", "merit"]
        found = {
            "python": seconds([sys.executable, "-c", "pass"], repeats),
            "help": seconds([*merit, "--help"], repeats),
            "schema": seconds([*merit, "schema"], repeats),
            "config_error": seconds([*merit, "run", str(file)], repeats),
        }
    for name, value in found.items():
        print(f"{name:14} {value:7.3f} s   {value / found['python']:5.1f} × bare Python")
    result = {f"{name}_seconds": round(value, 4) for name, value in found.items()}
    return result | {
        f"{name}_over_python": round(found[name] / found["python"], 2) for name in found if name != "python"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 repeats of every command instead of 15")
    parser.add_argument("--only", choices=("commands", "jobs"), help="measure one of the two")
    options = parser.parse_args()
    result: dict[str, float] = {}
    if options.only != "jobs":
        result |= measure_commands(3 if options.quick else 15)
    if options.only != "commands":
        result |= measure_jobs()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
