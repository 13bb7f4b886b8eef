"""A micro-batch as one row without padding: the same loss and gradients from fewer tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merit.compute.batches import padded
from merit.compute.head import task_nll, task_of
from merit.data.example import IGNORED, Encoded
from merit.models.loading import load_model
from merit.train.trainer import attending, collate, may_pack
from prompted import PROMPT, prompted

CPU = torch.device("cpu")
ROWS = prompted([(3, 4), (17, 2), (1, 9), (8, 0)])  # of unlike length, one of them without a supervised token


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_packed_row_has_the_loss_and_gradients_of_padded_examples(tiny_model: Path, checkpointing: bool) -> None:
    model = load_model(tiny_model).train()
    batch = padded(ROWS)
    expected = task_nll(model, task_of(batch)).sum()
    expected.backward()
    wanted = gradients(model)

    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    packed = collate(ROWS)
    assert packed is not None
    assert packed["examples"] == 3
    assert (packed["labels"][:, 1:] != IGNORED).sum() == (batch["labels"] != IGNORED).sum()
    task = task_of(packed)
    with attending(model, packed):
        loss = task_nll(model, task).sum()
        loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for name, found in gradients(model).items():
        torch.testing.assert_close(found, wanted[name], rtol=1e-5, atol=1e-6, msg=name)
    # The common prompt once, of each example its own tokens but the last, and nothing of the one without an answer.
    assert task.inputs["input_ids"].shape == (1, len(PROMPT) + 6 + 18 + 9)
    assert model.config._attn_implementation == "sdpa"


def test_rows_without_an_answer_make_no_packed_row() -> None:
    assert collate([Encoded(row.input_ids, [IGNORED] * len(row.input_ids)) for row in ROWS]) is None


def test_a_model_with_dropout_is_not_packed(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    assert may_pack(model, CPU)
    model.config.attention_dropout = 0.1
    assert not may_pack(model, CPU)
    model.config.attention_dropout = 0.0
    model.model.layers[0].mlp.act_fn = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Dropout(0.1))
    assert not may_pack(model, CPU)


def test_a_model_that_attends_otherwise_is_not_packed(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    model.set_attn_implementation("eager")
    assert not may_pack(model, CPU)
