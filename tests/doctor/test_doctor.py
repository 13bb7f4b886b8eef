"""`merit doctor`: a sound model passes; one that is broken on purpose fails where it is broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from merit.cli.main import run as merit
from merit.doctor import examine as computed
from merit.doctor.checks import BATCHED_LOSS, Diagnosis
from merit.doctor.examine import EXAMPLES, GROUPS, examine, material
from merit.models.loading import load_model, load_tokenizer
from merit.models.source import ModelFolder

BATCHED = ("loss: alone | batched, padded", "gradient: alone | batched, padded")


@pytest.fixture
def sound(tiny_model: Path) -> tuple[Any, Any]:
    """A random model with weights large enough that a wrong mask shows, and its tokenizer."""
    model = load_model(tiny_model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                parameter.mul_(8)
    return model, load_tokenizer(ModelFolder(tiny_model, "", False))


def statuses(found: Diagnosis) -> dict[str, str]:
    return {item.check: item.status for item in found.findings}


def test_a_sound_model(sound: tuple[Any, Any]):
    found = examine(*sound, "tiny")
    assert len(found.findings) == 7
    exact = {item.check: item for item in found.findings if "bf16" not in item.check and "fold" not in item.check}
    assert {item.status for item in exact.values()} == {"ok"}
    assert all(0 <= (item.figure or 0.0) < 1e-4 for item in exact.values())
    assert statuses(found)["loss: fp32 | bf16"] != "fail"
    assert not found.scope


def count_padding(model: Any, monkeypatch: pytest.MonkeyPatch, shortest: int) -> None:
    """Positions of batches longer than `shortest` tokens depend on their width."""
    plain = type(model).forward

    def forward(self: Any, input_ids: torch.Tensor, position_ids: Any = None, **rest: Any) -> Any:
        width = input_ids.shape[1]
        if width > shortest:
            position_ids = width * torch.arange(width)[None]
        return plain(self, input_ids=input_ids, position_ids=position_ids, **rest)

    monkeypatch.setattr(type(model), "forward", forward)


def test_a_model_whose_positions_count_padding_is_run_without(sound: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch):
    count_padding(sound[0], monkeypatch, 0)
    found = examine(*sound, "stretched")
    by_name = {item.check: item for item in found.findings}
    for check in BATCHED:
        assert by_name[check].status == "ok"
        assert "merit batches examples of one length" in by_name[check].advice


def test_a_model_whose_long_positions_count_padding(sound: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch):
    """More than the trial sees."""
    count_padding(sound[0], monkeypatch, 20)
    found = examine(*sound, "stretched")
    assert found.failed
    assert statuses(found)[BATCHED[0]] == "fail"
    advice = next(item.advice for item in found.findings if item.check == BATCHED[0])
    assert "train.micro_batch_tokens: 1" in advice


def test_a_model_that_is_too_fine_for_bf16_fails_with_exit_code_1(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Logits of hundreds: rounding them to 8 bits moves losses by whole nats."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 3000
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert merit(["doctor", "--model", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["failed"]
    by_name = {item["check"]: item for item in found["findings"]}
    assert by_name["loss: fp32 | bf16"]["status"] == "fail"
    assert by_name["loss: fp32 | bf16"]["figure"] > by_name["loss: fp32 | bf16"]["fail"]
    assert "train.precision: fp32" in by_name["loss: fp32 | bf16"]["advice"]


def test_weights_that_are_not_finite(sound: tuple[Any, Any]):
    model, tokenizer = sound
    with torch.no_grad():
        next(model.parameters())[0, 0] = torch.nan
        next(model.parameters())[:] *= torch.inf
    found = examine(model, tokenizer, "nan")
    assert {item.status for item in found.findings} == {"fail"}
    assert any("are the model's weights finite?" in item.advice for item in found.findings)


def test_in_words(tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    assert merit(["doctor", "--model", str(tiny_model)]) in (0, 1)
    out = capsys.readouterr().out
    assert "gradient: padded | packed" in out
    assert "ok: loss: alone | batched, padded: padding changes no loss" in out


def test_no_such_model(capsys: pytest.CaptureFixture[str]):
    assert merit(["doctor", "--model", "embedded:nothing"]) == 2
    assert "no embedded model 'nothing'" in capsys.readouterr().err


def test_tolerances():
    assert [BATCHED_LOSS.judge(figure).status for figure in (0.0, 1e-4, 2e-4, 1e-2, 1.1e-2)] == [
        *("ok", "ok", "warn", "warn", "fail")
    ]
    for figure in (float("nan"), float("inf")):
        broken = BATCHED_LOSS.judge(figure)
        assert (broken.status, broken.figure) == ("fail", None)


def test_the_material_is_padded_when_batched(sound: tuple[Any, Any]):
    groups = material(sound[1])
    assert (len(groups), {len(group) for group in groups}) == (GROUPS, {EXAMPLES})
    assert all(example.supervised for group in groups for example in group)
    lengths = {len(example.input_ids) for example in groups[0]}
    assert len(lengths) > 1


def test_figures():
    a = np.array([[3.0, 4.0], [0.0, 1.0]], np.float32)
    b = np.array([[3.0, 4.0], [0.1, 1.0]], np.float32)
    assert computed.difference(a, b) == pytest.approx(0.1)
    # cos((3, 4), (0, 1)) = 0.8; with (0.1, 1) it is 4.3 / (5 √1.01)
    assert computed.cosine_error(a, b) == pytest.approx(4.3 / (5 * 1.01**0.5) - 0.8, abs=1e-6)


def test_a_model_too_large_for_whole_gradients(sound: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(computed, "_SHARE", 0.0)
    found = examine(*sound, "tiny")
    assert found.scope == r"^model\.layers\.0\."
    assert len(found.findings) == 7
    assert computed.middle_layer(["a", "x.0.w", "x.1.w", "x.2.w", "y.7.w"]) == r"^x\.1\."
    assert computed.middle_layer(["a", "b"]) == ""
