"""`train.trl`: names and values are checked before anything is trained."""

from __future__ import annotations

import pytest

from merit.base.errors import InputError
from merit.config.sections import TrainConfig
from merit.run.layout import RunDir
from merit.train import trl_arguments
from merit.train.spec import BranchSpec
from merit.train.trl_arguments import Training, check_trl, sft_config

# Defaults of merit's that a user may replace; every other argument is merit's own.
REPLACEABLE = {
    "report_to",
    "run_name",
    "project",
    "disable_tqdm",
    "gradient_checkpointing",
    "dataloader_pin_memory",
    "ddp_find_unused_parameters",
}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optimm", "adamw_torch", "did you mean `optim`"),
        ("learning_rate", 1.0, "set `train.learning_rate`"),
        ("warmup_steps", 10, "set `train.warmup_ratio`"),
        ("warmup_ratio", 0.1, "set `train.warmup_ratio`"),
        ("weight_decay", 0.1, "set `train.weight_decay`"),
        ("lr_scheduler_type", "linear", "set `train.schedule`"),
        ("logging_steps", 10, "the loss of every step"),
        ("optim", "adamm", "not a valid OptimizerNames"),
        ("adam_beta1", "x", "valid number"),
        ("max_grad_norm", float("inf"), "finite"),
        ("torch_empty_cache_steps", 0, "bigger than 0"),
        ("hub_strategy", "sometimes", "not a valid"),
        ("report_to", 3, "valid"),
        ("dataloader_num_workers", 1.5, "valid integer"),
        ("eval_accumulation_steps", [1], "valid integer"),
    ],
)
def test_what_trl_would_refuse_hours_later_is_refused_now(key, value, said) -> None:
    with pytest.raises(InputError, match=said) as caught:
        check_trl(TrainConfig(trl={key: value}))
    assert caught.value.field == f"train.trl.{key}"


def test_what_trl_takes_is_taken() -> None:
    """Whole numbers for real ones, and what only the training machine can judge."""
    check_trl(TrainConfig(trl={"optim": "adafactor", "max_grad_norm": 1, "report_to": ["tensorboard"], "tf32": True}))


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_every_argument_that_merit_passes_is_refused(tmp_path, monkeypatch, images, on_gpu) -> None:
    """Seen where they meet SFTConfig, so that an argument that is passed but not refused cannot hide."""
    monkeypatch.setattr(trl_arguments, "SFTConfig", dict)
    passed = sft_config(_training(tmp_path, TrainConfig(precision="fp32"), images=images, on_gpu=on_gpu))
    monkeypatch.undo()
    assert len(passed) > len(REPLACEABLE)
    for key in passed.keys() - REPLACEABLE:
        with pytest.raises(InputError, match="not here: ") as caught:
            check_trl(TrainConfig(trl={key: passed[key]}))
        assert caught.value.field == f"train.trl.{key}"


def test_train_trl_replaces_defaults_and_keeps_what_merit_sets(tmp_path) -> None:
    """Also in a spec.json that was written before these arguments were refused."""
    config = TrainConfig(precision="fp32", weight_decay=0.2, trl={"run_name": "mine", "weight_decay": 0.5})
    arguments = sft_config(_training(tmp_path, config, images=False, on_gpu=False))
    assert (arguments.run_name, arguments.weight_decay) == ("mine", 0.2)


def _training(folder, config: TrainConfig, *, images: bool, on_gpu: bool) -> Training:
    run = RunDir(folder)
    spec = BranchSpec.model_construct(method="merit", branch=0, seed=7, train=config)
    return Training(run, run.method("merit").branch(0), spec, on_gpu, images)
