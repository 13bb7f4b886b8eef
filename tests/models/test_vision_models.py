"""Every named vision-language architecture, tiny and random: encoding, gradients, training, merging, loading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from merit.base.errors import InputError
from merit.compute.abilities import Abilities
from merit.compute.losses import supervised_nll
from merit.config.calibration import CalibrationConfig
from merit.config.sections import LoraSection, ModelConfig, TrainConfig
from merit.data.encode import Encoder
from merit.data.example import Encoded, Example, Message
from merit.data.image import ImageRef, decode
from merit.data.store import StoredExample, write_store
from merit.gradients.engine import GradientEngine
from merit.gradients.fold import Sketcher
from merit.gradients.sketch import SketchSpec
from merit.merge.average import merge_checkpoints
from merit.models.layout import role_of
from merit.models.loading import images_of, load_model, load_tokenizer
from merit.models.source import ModelFolder, resolve_model
from merit.run.layout import RunDir
from merit.train.branch import train_branch
from merit.train.spec import BranchData, BranchSpec
from pictures import png
from vision_models import KINDS, write_tiny_vlm


def ref(width: int, height: int, seed: int = 0) -> ImageRef:
    return ImageRef("x", "image", data=png(width, height, seed))


EXAMPLES = (
    Example((Message("user", "what?", ((0, ref(40, 70)),)),), (Message("assistant", "blue dog"),)),
    Example((Message("user", "say two"),), (Message("assistant", "two"),)),
    Example(
        (Message("user", "a b c", ((0, ref(50, 30, 1)), (2, ref(64, 64, 2)), (5, ref(33, 80, 3)))),),
        (Message("assistant", "three"), Message("user", "now?"), Message("assistant", "sun moon")),
    ),
)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_vlm(request.param, tmp_path_factory.mktemp("vlm") / request.param)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder(load_tokenizer(ModelFolder(folder, "x", False)), 1000)


@pytest.fixture(scope="module")
def encoded(encoder: Encoder) -> list[Encoded]:
    return [encoder.encode(example) for example in EXAMPLES]


def test_tokens_are_those_of_the_models_own_processor(encoder, encoded):
    processor = images_of(encoder.tokenizer).processor
    for example, item in zip(EXAMPLES, encoded, strict=True):
        pictures = [decode(image.read()) for image in example.images]
        text = encoder._plain_layout(example).text
        own = processor(text=[text], images=[pictures] if pictures else None)
        assert list(own["input_ids"][0]) == item.input_ids
        learned = [label for label in item.labels if label != -100]
        answers = "".join(f"{m.content}<|im_end|>" for m in example.completion if m.role == "assistant")
        assert encoder.tokenizer.decode(learned) == answers


def test_every_parameter_has_a_role_and_batches_change_no_loss(folder, encoded):
    model = load_model(folder)
    frozen = {role_of(name) for name, p in model.named_parameters() if not p.requires_grad}
    trained = {role_of(name) for name, p in model.named_parameters() if p.requires_grad}
    assert (frozen, trained) == ({"vision", "projector"}, {"language"})
    together = supervised_nll(model, encoded)
    for index, row in enumerate(encoded):
        alone = supervised_nll(model, [row]).nll
        torch.testing.assert_close(together.nll[together.row == index], alone, rtol=1e-4, atol=1e-5)


def test_packing_with_images_is_found_by_trial(folder):
    # Gemma 3 lets an image's tokens attend in both directions, Qwen-VL gives them places in two dimensions.
    model = load_model(folder)
    found = Abilities.of(model, model.device)
    assert found.packed
    assert found.packed_images == (folder.name not in ("gemma3", "qwen2_5_vl", "qwen3_vl"))


@pytest.mark.parametrize("freeze", [None, []], ids=["as published", "all trained"])
def test_sketches_are_those_of_plain_gradients(folder, encoded, encoder, freeze):
    model = load_model(folder, freeze=freeze)
    engine = GradientEngine(model, SketchSpec.of(CalibrationConfig(fold=4)), batch_tokens=600)
    encoded = [*encoded, encoder.encode(replace(EXAMPLES[0], completion=EXAMPLES[1].completion))]
    found = engine.measure("d", encoded)
    model.eval()
    for row in encoded:
        supervised_nll(model, [row]).nll.sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert {role_of(name) for name in grads} == (
        {"language"} if freeze is None else {"vision", "projector", "language"}
    )
    sketcher, parts = Sketcher(engine.layout), []
    for tensor in engine.layout.tensors:
        grad = grads.get(tensor.name)
        parts.append(
            np.zeros(tensor.size, np.float32) if grad is None else sketcher.apply(tensor.name, grad).cpu().numpy()
        )
    want = np.concatenate(parts)
    np.testing.assert_allclose(found.sums.sum(axis=0), want, atol=2e-6 * float(np.abs(want).max()))


def write_branch(run: RunDir, k: int, folder: Path, encoded: list[Encoded], lora: LoraSection | None = None) -> None:
    path = run.data(f"d{k}")
    stored = [
        StoredExample(f"{number:032x}", item, held_out=False, prompt_ids=[1], prompt_text="")
        for number, item in enumerate(encoded)
    ]
    write_store(path, stored, images=True)
    theta0 = resolve_model(ModelConfig(path=str(folder)), run.root)
    BranchSpec(
        method="merit",
        branch=k,
        model=ModelConfig(path=str(folder)),
        model_fingerprint=theta0.fingerprint,
        train=TrainConfig(learning_rate=1e-2, batch_tokens=150, precision="fp32", lora=lora),
        data=[BranchData(name="d", data=f"data/d{k}.arrow", weight=2, fingerprint="x")],
        max_length=1000,
        planned_tokens=1,
        seed=0,
    ).save(run.method().branch(k).spec)


def logits(folder: Path, batch: dict[str, Any]) -> torch.Tensor:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits
    return found


def test_train_merge_load(folder, encoder, encoded, tmp_path):
    run = RunDir(tmp_path)
    for k, part in enumerate((encoded, [encoded[2], encoded[1]])):
        write_branch(run, k, folder, part)
        result = train_branch(run, run.method().branch(k), base=tmp_path)
        assert result.supervised_tokens == 2 * sum(item.supervised for item in part)
    inputs = [run.method().branch(k).checkpoint for k in range(2)]
    out = tmp_path / "merged"
    merge_checkpoints(inputs, [2, 1], {1.0: out}, base=folder)
    processor = images_of(encoder.tokenizer).processor
    batch = dict(
        processor(
            text=[encoder._plain_layout(EXAMPLES[2]).text],
            images=[[decode(image.read()) for image in EXAMPLES[2].images]],
            return_tensors="pt",
        )
    )
    # By hand: the average of both checkpoints, in a model of transformers' own.
    models = [AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32) for path in inputs]
    theta0 = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    start = dict(theta0.named_parameters())
    other = dict(models[1].named_parameters())
    with torch.no_grad():
        for name, parameter in models[0].named_parameters():
            if role_of(name) == "vision":
                assert torch.equal(parameter, start[name]), name
            parameter.copy_(((2 * parameter.double() + other[name].double()) / 3).float())
        want = models[0].eval()(**batch).logits
    torch.testing.assert_close(logits(out, batch), want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(want, logits(folder, batch), atol=1e-3)
    merged = load_model(out)
    assert images_of(merged) is not None
    for name, parameter in merged.named_parameters():
        if role_of(name) == "vision":
            assert torch.equal(parameter, start[name]), name


def test_lora_leaves_the_frozen_tower_alone(tmp_path):
    folder = write_tiny_vlm("llava", tmp_path / "model")
    encoder = Encoder(load_tokenizer(ModelFolder(folder, "x", False)), 1000)
    run = RunDir(tmp_path / "run")
    write_branch(run, 0, folder, [encoder.encode(example) for example in EXAMPLES], LoraSection(r=2))
    train_branch(run, run.method().branch(0), base=tmp_path)
    before = dict(load_model(folder).named_parameters())
    for name, after in load_model(run.method().branch(0).checkpoint).named_parameters():
        if role_of(name) == "vision":
            assert torch.equal(after, before[name])
    assert any(not torch.equal(after, before[name]) for name, after in load_model(
        run.method().branch(0).checkpoint).named_parameters())  # fmt: skip


def test_a_folder_without_its_processor_is_refused(tmp_path):
    folder = write_tiny_vlm("llava", tmp_path / "model")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="without an image processor"):
        load_model(folder)


def test_everything_frozen_is_refused(tmp_path):
    folder = write_tiny_vlm("llava", tmp_path / "model")
    with pytest.raises(InputError, match="nothing to train"):
        load_model(folder, freeze=["vision", "projector", "language"])
