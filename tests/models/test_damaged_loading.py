"""A configuration, tokenizer or processor that is damaged is one line that names the folder, whatever transformers
raises at it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from merit.base.errors import InputError
from merit.models.loading import load_model, load_tokenizer
from merit.models.source import ModelFolder
from merit.models.vision import load_images
from vision_models import write_tiny_vlm


@pytest.fixture
def text_model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture(scope="module")
def whole_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_vlm("llava", tmp_path_factory.mktemp("vlm") / "llava")


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(action: Callable[[], object], folder: Path, says: str) -> None:
    with pytest.raises(InputError) as caught:
        action()
    text = str(caught.value)
    assert text.startswith(f"{folder}: {says}: ")
    assert "\n" not in text
    assert len(text) > len(f"{folder}: {says}: ")


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "wide"},
        {"hidden_size": None},
        {"hidden_size": 48},  # the tensors have 32
        {"num_attention_heads": 0},
        {"hidden_act": "no such function"},
        {"rope_parameters": {"rope_type": "no such"}},
        {"vocab_size": [1, 2]},
    ],
    ids=str,
)
def test_a_damaged_configuration(text_model: Path, values):
    change(text_model / "config.json", **values)
    refused(lambda: load_model(text_model), text_model, "cannot be loaded")


def test_weights_that_the_model_has_no_place_for_are_told(text_model: Path, caplog):
    """Of a configuration with fewer layers than the weights: transformers' own hint is off."""
    change(text_model / "config.json", num_hidden_layers=1)
    load_model(text_model)
    [message] = [record.getMessage() for record in caplog.records if record.name.startswith("merit")]
    assert message.startswith(f"{text_model}: the model has no place for 9 of its tensors (`model.layers.1.")


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": {"type": "BPE", "vocab": 3}}', '{"version": "9"}'])
def test_a_damaged_tokenizer(text_model: Path, content):
    (text_model / "tokenizer.json").write_text(content)
    folder = ModelFolder(text_model, "x", False)
    refused(lambda: load_tokenizer(folder), text_model, "no tokenizer in this folder")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("preprocessor_config.json", {"image_processor_type": "NoSuchImageProcessor"}),
        ("processor_config.json", {"patch_size": "wide", "image_processor": {"image_processor_type": 3}}),
        ("processor_config.json", {"processor_class": "LlamaModel"}),
    ],
)
def test_a_damaged_processor(whole_vlm: Path, tmp_path: Path, name: str, values):
    folder = Path(shutil.copytree(whole_vlm, tmp_path / "model"))
    tokenizer = load_tokenizer(ModelFolder(folder, "x", False))
    if (folder / name).is_file():
        change(folder / name, **values)
    else:
        (folder / name).write_text(json.dumps(values))
    refused(lambda: load_images(folder, tokenizer), folder, "its processor cannot be loaded")
