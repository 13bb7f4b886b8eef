"""What training costs on a CPU: rows without padding, against the same batches padded, and against TRL's own loss.

    python benchmarks/training.py [--quick] [--examples N] [--batch-tokens N]

SmolLM2-135M-Instruct on eight reasoning-gym families, the first steps of joint training, each variant from θ0 with the
same batches. Prints a table, and as its last line one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl import SFTTrainer

import merit.train.trainer as trainer
from merit.context import RunContext
from merit.data import step as mixture_stage
from merit.data.example import Encoded
from merit.run.layout import BranchDir, RunDir
from merit.split.splitter import SplitRequest, make_partition
from merit.train.branch import train_branch
from merit.train.step import branch_specs

FAMILIES = "base_conversion chain_sum family_relationships gcd number_filtering spell_backward syllogism time_intervals"
CONFIG = """
model: embedded:smollm2-135m
mixture:
{mixture}
held_out_fraction: 0.4
split: {{splitter: single}}
train: {{batch_tokens: {batch}, micro_batch_tokens: 2048, max_length: 256, learning_rate: 2e-5, precision: {precision}}}
"""
TOKENS: Counter[str] = Counter()
COLLATE = trainer.BranchTrainer._collate
SKIPPED = 2  # first steps, which allocate memory and choose kernels


def unpacked(*_: Any) -> bool:
    return False


VARIANTS: dict[str, tuple[Callable[..., bool], Callable[..., Any]]] = {
    "packed": (trainer.may_pack, trainer.BranchTrainer.compute_loss),
    "padded": (unpacked, trainer.BranchTrainer.compute_loss),
    "trl": (unpacked, SFTTrainer.compute_loss),
}


def counted(self: Any, rows: list[Encoded], pad: int) -> dict[str, Any]:
    """`BranchTrainer._collate`, with a count of the batch's tokens padded, without padding, and run."""
    batch = COLLATE(self, rows, pad)
    lengths = [len(row.input_ids) for row in rows]
    TOKENS["tokens_padded"] += max(lengths) * len(rows)
    TOKENS["tokens_own"] += sum(lengths)
    TOKENS["tokens_run"] += batch["input_ids"].numel()
    return batch


def families(examples: int) -> str:
    """The YAML of the datasets, with so many examples each."""
    return "\n".join(
        f"  {name}: {{path: 'reasoning_gym:{name}', max_examples: {examples}}}" for name in FAMILIES.split()
    )


def joint_branch(file: Path) -> tuple[RunDir, BranchDir]:
    """The branch of joint training by a configuration, ready to be trained."""
    context = RunContext.open(file)
    mixture_stage.run(context)
    method = context.methods[0]
    make_partition("single", SplitRequest(context.mixture.planned_tokens, r=1, seed=0)).save(method.dir.partition)
    (spec,) = branch_specs(context, method)
    branch = method.dir.branch(0)
    spec.save(branch.spec)
    return context.run, branch


def seconds_of(folder: Path, examples: int, batch: int, precision: str, variant: str) -> tuple[float, float]:
    """Seconds of the steps after the first, and the loss of the last one."""
    folder.mkdir()
    file = folder / "merit.yaml"
    file.write_text(CONFIG.format(mixture=families(examples), batch=batch, precision=precision))
    run, branch = joint_branch(file)
    trainer.may_pack, trainer.BranchTrainer.compute_loss = VARIANTS[variant]
    TOKENS.clear()
    trainer.BranchTrainer._collate = counted
    train_branch(run, branch, base=folder)
    log = [json.loads(line) for line in branch.log.read_text().splitlines()]
    return log[-1]["seconds"] - log[SKIPPED - 1]["seconds"], log[-1]["loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps, bfloat16 or float32 as the machine likes")
    parser.add_argument("--examples", type=int, default=24, help="of each family")
    parser.add_argument("--batch-tokens", type=int, default=800)
    options = parser.parse_args()
    examples = 12 if options.quick else options.examples
    found: dict[str, float] = {}
    for precision in ("auto",) if options.quick else ("bf16", "fp32"):
        seconds, losses = {}, {}
        for variant in VARIANTS:
            with tempfile.TemporaryDirectory() as folder:
                seconds[variant], losses[variant] = seconds_of(
                    Path(folder) / "run", examples, options.batch_tokens, precision, variant
                )
            if variant == "packed":
                found |= TOKENS  # the same in either precision
            print(f"{precision}  {variant:7} {seconds[variant]:7.1f} s   loss of the last step {losses[variant]:.4f}")
        for other in ("padded", "trl"):
            found[f"packed_over_{other}_{precision}"] = round(seconds["packed"] / seconds[other], 3)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
