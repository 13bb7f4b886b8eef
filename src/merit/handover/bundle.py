"""A branch as every trainer needs it, in terms that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.base.errors import InputError
from merit.base.files import atomic_dir, inside
from merit.base.record import Record
from merit.data.example import IGNORED
from merit.data.store import EncodedDataset
from merit.run.layout import RunDir
from merit.train.rows import Batching, branch_rows, plan_batching
from merit.train.spec import BranchSpec

DATA = "data"
OUTPUT = "output"  # where the trainer leaves the model, below the branch's folder
CONFIG = "config.yaml"
MANIFEST = "handover.json"


class Handover(Record):
    """`handover.json`: what a branch's folder was made from. `merit adopt` compares the returned branch with it."""

    trainer: str
    method: str
    branch: int
    fingerprint: str  # of the branch's spec
    model: str
    model_fingerprint: str
    examples: int  # an epoch
    supervised_tokens: int  # over all epochs: the budget


@dataclass(frozen=True)
class Bundle:
    """A branch as a trainer needs it.

    Attributes:
        rows: a `datasets.Dataset` of input_ids and labels, one epoch.
        model: θ0 as the trainer loads it: a folder or a Hub id.
        bf16: whether to compute in bfloat16.
        steps: optimizer steps in all.
    """

    spec: BranchSpec
    rows: Any
    model: str
    bf16: bool
    batching: Batching
    steps: int

    @classmethod
    def of(cls, run: RunDir, spec: BranchSpec, model: str) -> Bundle:
        """Reads the branch's rows.

        Raises:
            InputError: a file of encoded examples is missing or damaged.
        """
        train = spec.train
        rows = branch_rows(run, spec).select_columns(["input_ids", "labels"])
        lengths = [len(ids) for ids in rows["input_ids"]]
        batching = plan_batching(lengths, train.batch_tokens, train.micro_batch_tokens).unfilled
        steps = batching.steps(len(lengths), train.epochs)
        return cls(spec, rows, model, train.precision != "fp32", batching, steps)

    @property
    def supervised_tokens(self) -> int:
        """Tokens that carry loss, over all epochs."""
        epoch: int = sum(label != IGNORED for labels in self.rows["labels"] for label in labels[1:])
        return round(epoch * self.spec.train.epochs)

    @property
    def warmup_steps(self) -> int:
        return round(self.steps * self.spec.train.warmup_ratio)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Settings by the names of transformers' TrainingArguments, on which most trainers are built."""
        train = self.spec.train
        return {
            "output_dir": OUTPUT,
            "num_train_epochs": train.epochs,
            "per_device_train_batch_size": self.batching.micro,
            "gradient_accumulation_steps": self.batching.accumulation,
            "learning_rate": train.learning_rate,
            "lr_scheduler_type": train.schedule,
            "warmup_steps": self.warmup_steps,
            "weight_decay": train.weight_decay,
            "bf16": self.bf16,
            "seed": self.spec.seed % 2**31,
            "logging_steps": 1,
            "save_strategy": "epoch",
            "save_total_limit": 1,
            "report_to": "none",
        }

    @property
    def lora(self) -> dict[str, Any]:
        """Size and dropout of the adapter by the names that most trainers use; empty where all weights are trained."""
        lora = self.spec.train.lora
        return {"lora_r": lora.r, "lora_alpha": round(lora.alpha), "lora_dropout": lora.dropout} if lora else {}

    def revision(self, key: str) -> dict[str, Any]:
        """The pinned revision under the trainer's `key`; empty where θ0 is a folder, or is not pinned."""
        model = self.spec.model
        return {key: model.revision} if model.revision and self.model == model.path else {}

    def write_parquet(self, folder: Path, *, mask: bool = False) -> None:
        """Writes DATA/train.parquet: the token ids and labels that merit would train on; with `mask`, a mask too."""
        with atomic_dir(folder / DATA) as part:
            self._rows(mask).to_parquet(part / "train.parquet")

    def write_disk(self, folder: Path) -> None:
        """Writes DATA/ as `datasets.load_from_disk` reads it, with a mask."""
        from datasets import DatasetDict

        with atomic_dir(folder / DATA) as part:
            DatasetDict({"train": self._rows(mask=True)}).save_to_disk(part)

    def _rows(self, mask: bool) -> Any:
        if not mask:
            return self.rows
        return self.rows.add_column("attention_mask", [[1] * len(ids) for ids in self.rows["input_ids"]])


def refuse_images(run: RunDir, specs: Sequence[BranchSpec]) -> None:
    """Refuses branches with images. Each trainer places, resizes and tokenizes images in its own way, so it would train
    on other tokens than merit planned; and not all of them freeze the vision tower.

    Raises:
        InputError: a branch has images; or a file of encoded examples is missing or damaged.
    """
    for spec in specs:
        for item in spec.data:
            if EncodedDataset.open(inside(run.root, item.data)).has_images:
                raise InputError(
                    f"{spec.method} branch {spec.branch} trains on images ({item.name}), which are not handed over: "
                    "`merit train` trains it",
                    file=run.root,
                )
