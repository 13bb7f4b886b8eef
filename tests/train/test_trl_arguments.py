"""`train.trl`: names and values are checked before anything is trained."""

from __future__ import annotations

import pytest

from merit.base.errors import InputError
from merit.config.train import TrainConfig
from merit.train.trl_arguments import check_trl


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optimm", "adamw_torch", "did you mean `optim`"),
        ("learning_rate", 1.0, "set `train.learning_rate`"),
        ("optim", "adamm", "not a valid OptimizerNames"),
        ("adam_beta1", "x", "valid number"),
        ("max_grad_norm", float("inf"), "finite"),
        ("logging_steps", 0, "non-zero"),
        ("logging_strategy", "sometimes", "not a valid"),
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
