"""benchmarks/gpu.py: all of it runs on a processor, and what it compares computes the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from merit.config.sections import ModelConfig
from merit.models.source import resolve_model

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu
from conflict_scaling import examples

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the benchmark itself runs on this machine's GPU")


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err) == (2, "", "--device cuda: no CUDA GPU is here\n")


def test_all_parts_run_on_a_processor(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--quick", "--device", "cpu"])
    gpu.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for size in ("1b", "3b"):
        for key in ("sketch_over_plain", "sums_over_flat", "packed_over_trl_padded", "packed_over_trl_flash"):
            assert found[f"{key}_{size}"] > 0
    for rule in ("actmat", "regmean"):
        assert found[f"{rule}_card_over_{rule}"] > 0
        assert found[f"{rule}_card_over_average"] > 0
    assert 0 < found["actmat_unlike"] < 1e-3  # float64 throughout; the processor multiplies 16 bits in float32
    assert found["regmean_unlike"] == 0
    assert not [key for key in found if "peak" in key]


def test_packed_rows_and_trl_have_the_same_gradient(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "pick_precision", lambda _: "fp32")
    rows = examples(4)
    rows[0] = type(rows[0])(rows[0].input_ids[40:], rows[0].labels[40:])  # one is shorter
    folder = resolve_model(ModelConfig(path="embedded:smollm2-135m"), tmp_path).path
    bench = gpu.Bench("cpu", 1, ((1024,), (4,)), AutoTokenizer.from_pretrained(folder), rows, tmp_path)
    model = gpu.random_model(gpu.QUICK, "cpu").train()
    gradients = []
    model.model.layers[0].self_attn.q_proj.weight.register_post_accumulate_grad_hook(
        lambda weight: gradients.append(weight.grad.clone())
    )
    gpu.packed_pass(model, rows, 1024)
    for packing in (False, True):
        model.set_attn_implementation("sdpa")
        trainer = gpu.trl_of(bench, model, 1024 if packing else 4, packing=packing, liger=False)
        gpu.trl_pass(trainer, list(trainer.get_train_dataloader()))
    ours, *theirs = gradients
    assert len(theirs) == 2
    for other in theirs:
        assert (ours - other).abs().max() < 1e-4 * ours.abs().max()
