"""The mean gradient of one dataset: merit's sketch against `bergson build --aggregation mean`, whole processes.

    python benchmarks/conflict_bergson.py --bergson PATH/TO/bergson [--quick] [--model PATH]

bergson runs from an environment of its own, named by --bergson or $BERGSON. Both load the same model and read the same
JSONL; bergson projects each matrix to 16 × 16, ours keeps a hundredth of its columns. The two alternate, on a small and
a large dataset, so that start-up can be told from work. In bfloat16 bergson converts the model, ours keeps float32
weights and accumulators. Last line: one JSON object.
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

from conflict import BATCH_TOKENS, families, load

OURS = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conflict import FOLD, _encode, collect, load
model, tokenizer = load(sys.argv[2])
rows = [json.loads(line) for line in Path(sys.argv[3]).read_text().splitlines()]
data = [_encode(tokenizer, row["prompt"], row["completion"]) for row in rows]
collect(model, {"all": data}, FOLD, Path(sys.argv[4]), sys.argv[5])
"""
OPTIONS = [
    *("--prompt_column", "prompt", "--completion_column", "completion", "--aggregation", "mean"),
    *("--projection_dim", "16", "--token_batch_size", str(BATCH_TOKENS), "--precision"),
]


def seconds(command: list[str], log: Path) -> float:
    """How long the process took.

    Raises:
        SystemExit: it failed; shows the end of what it printed.
    """
    start = time.perf_counter()
    with log.open("w") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise SystemExit(f"{command[0]} failed:\n{log.read_text()[-2000:]}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bergson", default=os.environ.get("BERGSON"), help="bergson of another environment")
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--quick", action="store_true", help="a quarter of the examples, once")
    options = parser.parse_args()
    if not options.bergson:
        print("nothing is measured without --bergson PATH/TO/bergson or $BERGSON")
        print("{}")
        return
    model, tokenizer = load(options.model)
    each = 4 if options.quick else 16
    data = families(tokenizer, 22, each)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        theta0 = scratch / "model"
        model.save_pretrained(theta0)
        tokenizer.save_pretrained(theta0)
        del model
        import reasoning_gym

        pairs = [
            {"prompt": row["question"], "completion": str(row["answer"])}
            for name in data
            for row in reasoning_gym.create_dataset(name, size=each, seed=0)
        ]
        sizes = {"small": pairs[:: each // 2], "large": pairs}
        print(f"{sum(len(e.input_ids) for rows in data.values() for e in rows):,} tokens in the large one")
        result: dict[str, float] = {}
        for precision in ("bf16", "fp32"):
            middle = compare(options, sizes, scratch, precision)
            work = {name: middle[name, "large"] - middle[name, "small"] for name in ("merit", "bergson")}
            print(f"{precision} without start-up: merit {work['merit']:.1f} s, bergson {work['bergson']:.1f} s")
            result[f"bergson_over_merit_{precision}"] = work["bergson"] / work["merit"]
            result[f"bergson_over_merit_{precision}_process"] = middle["bergson", "large"] / middle["merit", "large"]
    print(json.dumps(result))


def compare(
    options: argparse.Namespace, sizes: dict[str, list[dict[str, str]]], scratch: Path, precision: str
) -> dict[tuple[str, str], float]:
    """(program, size) → median seconds of a process."""
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(1 if options.quick else 3):
        for size, rows in sizes.items():
            file, out = scratch / f"{size}.jsonl", str(scratch / f"{precision}-{size}-{turn}")
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            model = str(scratch / "model")
            ours = [sys.executable, "-c", OURS, str(Path(__file__).parent), model, str(file), out, precision]
            theirs = [options.bergson, "build", f"{out}-theirs", "--model", model, "--dataset", str(file)]
            for name, command in (("merit", ours), ("bergson", [*theirs, *OPTIONS, precision])):
                took = seconds(command, scratch / f"{name}.log")
                print(f"{precision} {name:8s} {size} ({len(rows)} examples): {took:6.1f} s", flush=True)
                times.setdefault((name, size), []).append(took)
    return {key: statistics.median(found) for key, found in times.items()}


if __name__ == "__main__":
    main()
