"""What is not handed over to other trainers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from merit.base.errors import InputError
from merit.config.sections import ModelConfig, TrainConfig
from merit.data.example import Encoded
from merit.data.store import StoredExample, write_store
from merit.handover.bundle import Bundle, refuse_images
from merit.run.layout import RunDir
from merit.train.spec import BranchData, BranchSpec
from pictures import png


def stored(index: int, *images: bytes) -> StoredExample:
    encoded = Encoded([5, 6, 7], [-100, 6, 7], False, images, len(images))
    ident = f"{index:032x}"
    return StoredExample(ident, encoded, held_out=False, prompt_ids=[5], prompt_text="five")


def branch_of(run: RunDir, name: str) -> BranchSpec:
    data = BranchData(name=name, data=f"data/{name}.arrow", weight=1.0, fingerprint="")
    return BranchSpec(
        method="merit", branch=1, model=ModelConfig(path="org/name"), model_fingerprint="", train=TrainConfig(),
        data=[data], max_length=64, planned_tokens=2, seed=0,
    )  # fmt: skip


def test_images_are_refused_and_text_of_the_same_mixture_is_not(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.data_folder.mkdir()
    write_store(run.data("seen"), [stored(0), stored(1, png(4, 4))], depends="", images=True)
    write_store(run.data("read"), [stored(2), stored(3)], depends="", images=True)
    said = "`merit train` trains it"
    with pytest.raises(InputError, match=rf"merit branch 1 trains on images \(seen\).*{re.escape(said)}"):
        refuse_images(run, [branch_of(run, "read"), branch_of(run, "seen")])
    text = branch_of(run, "read")
    refuse_images(run, [text])
    assert Bundle.of(run, text, "org/name").rows.column_names == ["input_ids", "labels"]
