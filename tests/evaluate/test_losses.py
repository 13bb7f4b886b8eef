"""Held-out losses, example by example: the same without padding as alone, and in the order asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from merit.compute import losses
from merit.compute.losses import example_losses, example_scores
from merit.data.example import IGNORED, Encoded
from merit.models.loading import load_model
from prompted import PROMPT, prompted

# Of unlike length; the third has nothing supervised, the last no common prompt.
ROWS = [*prompted([(3, 4), (30, 2), (8, 0), (1, 9), (5, 1)]), Encoded([7, 8, 9], [7, 8, 9])]


def alone(model, row) -> tuple[float, int]:
    """transformers' own loss of one example."""
    ids, labels = row.input_ids, row.labels
    count = sum(label != IGNORED for label in labels[1:])
    if not count:
        return 0.0, 0
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss), count


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_losses_are_those_of_examples_alone(tiny_model: Path, packing: bool, batch_tokens: int) -> None:
    model = load_model(tiny_model).eval()
    seen: list[int] = []
    found, tokens = example_losses(
        model, ROWS, batch_tokens=batch_tokens, precision="fp32", advance=seen.append, packing=packing
    )
    wanted = [alone(model, row) for row in ROWS]
    assert tokens == [count for _, count in wanted]
    torch.testing.assert_close(found, [value for value, _ in wanted], rtol=1e-6, atol=1e-6)
    assert sum(seen) == len(ROWS)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shares_add_up_to_the_same_bits(tiny_model: Path, packing: bool, precision) -> None:
    model = load_model(tiny_model).eval()
    how = {"batch_tokens": 60, "precision": precision, "packing": packing}
    losses, tokens, _ = example_scores(model, ROWS, **how)
    seen: list[int] = []
    shares = [example_scores(model, ROWS, **how, advance=seen.append, share=(k, 2)) for k in range(2)]
    assert [sum(values) for values in zip(*(share[0] for share in shares), strict=True)] == losses
    assert [sum(values) for values in zip(*(share[1] for share in shares), strict=True)] == tokens
    assert all(0 < sum(share[1]) < sum(tokens) for share in shares)
    assert sum(seen) == len(ROWS)


@pytest.mark.parametrize("packing", [True, False])
def test_exact_is_what_greedy_decoding_would_write(tiny_model: Path, packing: bool) -> None:
    model = load_model(tiny_model).eval()
    prompts = [PROMPT, [*PROMPT, 50], [60, 61, 62]]
    written = []
    for prompt in prompts:
        out = model.generate(torch.tensor([prompt]), max_new_tokens=3, min_new_tokens=3, do_sample=False)[0].tolist()
        written.append(Encoded(out, [IGNORED] * len(prompt) + out[len(prompt) :]))
    ids, labels = written[1].input_ids, written[1].labels
    last = (ids[-1] + 1) % 300
    written[1] = Encoded([*ids[:-1], last], [*labels[:-1], last])
    _, _, exact = example_scores(model, written, batch_tokens=10_000, precision="fp32", packing=packing)
    assert exact == [1.0, 0.0, 1.0]


def test_padding_is_spared_where_the_model_allows(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    original = losses.task_logits
    monkeypatch.setattr(
        losses, "task_logits", lambda m, task: ran.append(task.inputs["input_ids"].numel()) or original(m, task)
    )
    model = load_model(tiny_model).eval()
    example_losses(model, ROWS, batch_tokens=10_000, precision="fp32")
    # The common prompt once; of each example with an answer its own tokens but the last.
    assert ran == [len(PROMPT) + 6 + 31 + 9 + 5 + 2]
    other = load_model(tiny_model).eval()
    other.set_attn_implementation("eager")
    example_losses(other, ROWS, batch_tokens=10_000, precision="fp32")
    assert ran[1] > ran[0]
