"""The run's model card: one that the Hub's own client reads, complete, and without power or secrets."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from synthetic import NAMES, make_run
from test_report_hostile import HOSTILE

from merit.data.mixture import Mixture
from merit.push.contents import check_card
from merit.report.card import write_run_card
from merit.run.layout import RunDir


def card_of(run: RunDir) -> ModelCard:
    write_run_card(run.root)
    assert check_card(run.card.read_text(encoding="utf-8"), run.card) is not None
    return ModelCard.load(run.card)


def set_config(run: RunDir, **values: object) -> None:
    config = yaml.safe_load(run.config.read_text(encoding="utf-8")) | values
    run.config.write_text(yaml.safe_dump(config), encoding="utf-8")


def test_metadata_as_the_hub_reads_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my-run")
    set_config(
        run,
        mixture={
            "a": {"path": "openai/gsm8k"},
            "b": {"path": "/data/b.jsonl"},
            "c": {"path": "reasoning_gym:gcd"},
            "d": {"path": "openai/gsm8k"},
        },
    )
    data = card_of(run).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.datasets == ["openai/gsm8k"]
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert {"merit", "merge"} <= set(data.tags)
    assert data.model_name == "my-run"
    found = {(item.dataset_type, item.metric_type): item.metric_value for item in data.eval_results}
    assert found == {
        ("merit-held-out", "loss"): 2.03,
        ("merit-held-out", "exact_match"): 0.22,
        ("merit-unseen", "loss"): 1.77,
    }
    assert check_card(run.card.read_text(encoding="utf-8"), run.card) == [
        "the card names no license, so nobody may use the model; give one with --license"
    ]


def test_it_is_complete(tmp_path: Path) -> None:
    text = card_of(make_run(tmp_path / "run")).text
    for heading in ("Use", "How it was made", "Training data", "Results", "Limits", "Cost", "Again"):
        assert f"## {heading}\n" in text
    for name in NAMES:
        assert name.replace("_", "\\_") in text
    assert "better than joint training" in text
    assert "One run has one seed" in text
    assert "AutoModelForCausalLM.from_pretrained(folder)" in text
    assert "transformers 5.23.0" in text
    assert "Only 16 held-out examples" in text


def test_a_model_that_sees(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    mixture = Mixture.load(run.mixture)
    first = mixture.datasets[0].model_copy(update={"images": 9})
    mixture.model_copy(update={"datasets": [first, *mixture.datasets[1:]]}).save(run.mixture)
    card = card_of(run)
    assert card.data.pipeline_tag == "image-text-to-text"
    assert "AutoModelForImageTextToText" in card.text


def test_places_on_this_machine_stay_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    set_config(run, model={"path": "/home/somebody/secret/model", "revision": None})
    mixture = Mixture.load(run.mixture)
    first = mixture.datasets[0].model_copy(update={"source": "/home/somebody/secret/data.jsonl"})
    mixture.model_copy(update={"datasets": [first, *mixture.datasets[1:]]}).save(run.mixture)
    card = card_of(run)
    assert card.data.base_model is None
    assert "somebody" not in card.content
    assert "data.jsonl" in card.text


def test_hostile_names_have_no_power(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", names=HOSTILE, text="<script>alert(1)</script>")
    card = card_of(run)
    assert "<script" not in card.text.replace("\\<script", "")
    assert "<img" not in card.text.replace("\\<img", "")
    assert card.data.library_name == "transformers"


@pytest.mark.parametrize("until", ["mixture", "split", "merge"])
def test_no_card_before_there_are_results(tmp_path: Path, until: str) -> None:
    run = make_run(tmp_path / "run", until=until)
    write_run_card(run.root)
    assert not run.card.exists()
