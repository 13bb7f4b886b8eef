"""A tower and a language model, joined."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, CLIPVisionModel

from merit.base.errors import InputError
from merit.compute.losses import supervised_nll
from merit.context import RunContext
from merit.data.encode import Encoder
from merit.data.example import Example, Message
from merit.data.image import ImageRef
from merit.models.assemble import assemble
from merit.models.loading import load_model, load_tokenizer
from merit.models.source import ModelFolder
from merit.train import prepare
from pictures import png
from vision_models import write_tiny_tower


@pytest.fixture
def tower(tmp_path):
    return write_tiny_tower(tmp_path / "tower")


def test_weights_are_copied_and_the_whole_takes_images(tiny_model, tower, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    assemble(tiny_model, tower, out)
    model = load_model(out).cpu()
    text = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    own = model.model.language_model.state_dict()
    for name, value in text.model.state_dict().items():
        assert torch.equal(own[name][: len(value)], value), name
    vision = CLIPVisionModel.from_pretrained(tower).state_dict()
    assert all(
        torch.equal(value, vision[f"vision_model.{name}" if f"vision_model.{name}" in vision else name])
        for name, value in model.model.vision_tower.state_dict().items()
    )
    tokenizer = load_tokenizer(ModelFolder(out, "", False))
    image = ImageRef("x", "image", data=png(40, 30))
    example = Example((Message("user", "what?", ((0, image),)),), (Message("assistant", "red"),))
    encoded = Encoder(tokenizer, 500).encode(example)
    assert encoded.input_ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 16
    assert bool(supervised_nll(model, [encoded]).nll.isfinite().all())
    # Servers give content in parts, and text alone as text: the template takes both, alike.
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
    plain = [{"role": "user", "content": "<image>a"}]
    assert tokenizer.apply_chat_template(parts, tokenize=False) == tokenizer.apply_chat_template(plain, tokenize=False)


def test_a_language_model_is_no_tower(tiny_model, tmp_path):
    with pytest.raises(InputError, match="a llama cannot be joined"):
        assemble(tiny_model, tiny_model, tmp_path)


def test_preparation_starts_from_the_joined_model(tiny_model, tower, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 3)
    (tmp_path / "merit.yaml").write_text(
        f"model: {tiny_model}\nprepare: {{vision_tower: {tower}}}\nmixture: {{d: {{path: d.jsonl}}}}\n"
        "split: {splitter: single}\n"
    )
    before = RunContext.open(tmp_path / "merit.yaml", output=tmp_path / "run")
    assert "<image>" in before.tokenizer.get_vocab()  # known without a weight on disk
    assert not (tmp_path / "run").exists()
    before.run.state.mkdir(parents=True)  # as the run's lock does
    folder = prepare._start(before)
    assert folder == before.run.prepare.root / "init"
    after = RunContext.open(tmp_path / "merit.yaml", output=tmp_path / "run")
    encoders = [Encoder(context.tokenizer, 100) for context in (before, after)]
    assert encoders[0].fingerprint == encoders[1].fingerprint
    assert [stage.freeze for stage in after.preparation] == [["vision", "language"], ["vision"]]
    assert load_model(
        folder, freeze=after.preparation[0].freeze
    ).model.multi_modal_projector.linear_1.weight.requires_grad
