"""Gradients beside a busy process, against the same alone: does the driver leave the cores when it waits?

    python benchmarks/shared_machine.py [--quick]

A random Llama is measured by `merit run --until conflict`, whole processes, with merit's own waiting and with OpenMP's
`active`; alone, and beside a process that keeps one core busy. Prints a table, and as its last line one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = """
model: {model}
mixture:
  reverse: {{path: "reasoning_gym:spell_backward", max_examples: {rows}}}
  sums: {{path: "reasoning_gym:chain_sum", max_examples: {rows}}}
split: {{splitter: pca, axes: 1}}
calibration: {{examples: {rows}}}
"""
SIZES = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 9}
BUSY = "while True: pass"


def make_model(folder: Path) -> None:
    """A Llama of SmolLM2-135M's width with its tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from merit.config.sections import ModelConfig
    from merit.models.source import resolve_model

    embedded = resolve_model(ModelConfig(path="embedded:smollm2-135m"), Path.cwd()).path
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=3, tie_word_embeddings=True, **SIZES)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def conflict_seconds(file: Path, env: dict[str, str]) -> float:
    """Seconds of the stage `conflict`, without imports and data."""
    run = file.parent / "runs" / file.stem
    command = [sys.executable, "-m", "merit", "run", str(file), "--from", "conflict", "--until", "conflict"]
    subprocess.run(command, env=os.environ | env, check=True, capture_output=True)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return float([event["seconds"] for event in events if event.get("stage") == "conflict" and "seconds" in event][-1])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Gradients beside a busy process.")
    parser.add_argument("--quick", action="store_true", help="one repeat of few rows")
    quick = parser.parse_args().quick
    found: dict[str, float] = {}
    waits = {"passive": {}, "active": {"OMP_WAIT_POLICY": "active"}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        file = folder / "merit.yaml"
        file.write_text(CONFIG.format(model=folder / "model", rows=40 if quick else 160))
        subprocess.run([sys.executable, "-m", "merit", "run", str(file), "--until", "mixture"], check=True)
        taken: dict[str, list[float]] = {f"{wait} {where}": [] for where in ("alone", "beside") for wait in waits}
        for _ in range(1 if quick else 3):
            for where in ("alone", "beside"):
                busy = [subprocess.Popen([sys.executable, "-c", BUSY])] if where == "beside" else []
                try:
                    for wait, env in waits.items():
                        taken[f"{wait} {where}"].append(conflict_seconds(file, env))
                finally:
                    for process in busy:
                        process.kill()
        found = {key: statistics.median(values) for key, values in taken.items()}
    cores = len(os.sched_getaffinity(0))
    fair = (cores - 0.5) / cores  # one of the cores is shared by halves
    for key, seconds in found.items():
        print(f"{key:16} {seconds:7.2f} s")
    share = found["passive alone"] / found["passive beside"]
    print(
        f"beside a busy process: {share:.2f} of the speed alone, {share / fair:.2f} of the fair share on {cores} cores"
    )
    idle = found["passive alone"] / found["active alone"]
    print(f"alone, against threads that spin: {idle:.2f} of their time")
    spun = found["active alone"] / found["active beside"]
    print(f"threads that spin, beside a busy process: {spun:.2f} of their speed alone")
    keys = {"beside_over_alone": share, "of_fair_share": share / fair, "passive_over_active_alone": idle}
    print(json.dumps({key: round(value, 3) for key, value in keys.items()}))


if __name__ == "__main__":
    main()
