"""The path through lm-eval, on the shipped offline task."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from merit.base.errors import InputError
from merit.evaluate.benchmarks import BENCHMARKS, PUBLISHED, run_benchmarks

PLACE = "merit.evaluate"


def rows():
    text = resources.files(PLACE).joinpath("merit_local.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_shipped_task_is_sound():
    found = rows()
    assert len({row["question"] for row in found}) == len(found) == 24
    assert all(len(set(row["choices"])) == 4 and row["answer"] in range(4) for row in found)
    assert sorted({row["answer"] for row in found}) == [0, 1, 2, 3]


def test_the_published_eight():
    assert len(PUBLISHED) == 8
    assert BENCHMARKS["humaneval"].runs_code


def test_offline_task_scores_as_the_model_does(tiny_model):
    """lm-eval's accuracy against the choice of least summed loss, counted here by hand."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    score = run_benchmarks(tiny_model, ["merit_local"], limit=12, batch_size=4)[0]
    assert score.examples == 12
    assert score.settings["num_fewshot"] == "0"
    assert score.settings["apply_chat_template"] == "False"
    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    right = 0
    for row in rows()[:12]:
        context = f"Question: {row['question']}\nAnswer:"
        losses = []
        for choice in row["choices"]:
            start = len(tokenizer(context)["input_ids"])
            ids = torch.tensor([tokenizer(f"{context} {choice}")["input_ids"]])
            with torch.no_grad():
                logp = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
            losses.append(-sum(float(logp[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])))
        right += int(torch.tensor(losses).argmin()) == row["answer"]
    assert score.value == pytest.approx(right / 12)


@pytest.mark.parametrize(
    ("names", "said"),
    [(["mmul"], "no benchmark 'mmul'; there are mmlu"), (["humaneval"], "runs code that the model wrote")],
)
def test_bad_names(tmp_path, names, said):
    with pytest.raises(InputError, match=said):
        run_benchmarks(tmp_path, names, batch_size=4)
