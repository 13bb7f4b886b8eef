"""How soon the command line answers: help, the schema, and a mistake in a configuration.

    python benchmarks/startup.py [--quick]

Prints a table, and as its last line one JSON object. The promise: under half a second for each.
"""

from __future__ import annotations

import argparse
import json
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 repeats instead of 15")
    repeats = 3 if parser.parse_args().quick else 15
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
    result |= {f"{name}_over_python": round(found[name] / found["python"], 2) for name in found if name != "python"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
