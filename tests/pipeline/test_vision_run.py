"""A whole run of a tiny vision-language model: text, one image, three images; prepared, tried out, split and merged."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from PIL import Image
from runs import merit_here as merit
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, LlavaProcessor

from merit.compute.losses import supervised_nll
from merit.data.store import EncodedDataset
from merit.evaluate.scores import ModelScores
from merit.gate.step import GateResult
from merit.models.layout import role_of
from merit.models.loading import load_model
from merit.run.layout import RunDir
from pictures import png
from vision_models import write_tiny_tower, write_tiny_vlm

RECIPE = """
model: {model}
prepare:
  mixture: {{one: {{path: one.json}}}}
  stages: [{{freeze: [vision, language], learning_rate: 1.0e-3}}, {{freeze: [vision]}}]
gate: {{share: 0.3, examples: 2, points: 3, enforce: false}}
mixture:
  one:   {{path: one.json}}
  text:  {{path: text.csv}}
  three: {{path: three.jsonl}}
held_out_fraction: 0.25
calibration: {{examples: 6}}
split: {{axes: 1}}
train: {{learning_rate: 3.0e-3, batch_tokens: 600, precision: fp32, max_length: 400}}
evaluate: {{held_out: 3, generate: 1, max_new_tokens: 3}}
"""
JOIN = """
model: {model}
prepare: {{vision_tower: {tower}}}
mixture: {{one: {{path: one.json}}}}
split: {{splitter: single}}
held_out_fraction: 0.25
train: {{epochs: 2, learning_rate: 3.0e-3, batch_tokens: 300, precision: fp32}}
"""
COLOURS = ("red", "green", "blue")


def write_data(folder, rows: int = 24) -> None:
    (folder / "img").mkdir()
    one = []
    for index in range(rows):
        (folder / "img" / f"{index}.png").write_bytes(png(20 + index % 5, 24, index))
        turns = [{"from": "human", "value": f"<image>\nwhat {index}?"}, {"from": "gpt", "value": COLOURS[index % 3]}]
        one.append({"image": f"img/{index}.png", "conversations": turns})
    (folder / "img" / "3.png").write_bytes(b"")
    (folder / "one.json").write_text(json.dumps(one))
    lines = ["question,answer", *(f"say {COLOURS[i % 3]} {i},{COLOURS[i % 3]}" for i in range(rows))]
    (folder / "text.csv").write_text("\n".join(lines) + "\n")
    with (folder / "three.jsonl").open("w") as handle:
        for index in range(rows):
            images = [f"img/{(index + step) % rows}.png" for step in (4, 5, 6)]
            row = {"question": f"<image><image> and <image>: {index}", "answer": " ".join(COLOURS), "images": images}
            handle.write(json.dumps(row) + "\n")


def test_a_mixture_of_text_one_and_three_images(warm_jobs, tmp_path):
    write_tiny_vlm("llava", tmp_path / "model")
    write_data(tmp_path)
    (tmp_path / "merit.yaml").write_text(RECIPE.format(model=tmp_path / "model"))
    merit("run", tmp_path / "merit.yaml", "-o", tmp_path / "run")
    run = RunDir(tmp_path / "run")
    counts = {
        name: {len(row.encoded.images) for row in EncodedDataset.open(run.data(name))}
        for name in ("one", "text", "three")
    }
    assert counts == {"one": {1}, "text": {0}, "three": {3}}
    gate = GateResult.load(run.gate_record)
    assert len(gate.branch_losses) == 2
    assert min(gate.merged_loss, gate.displacement) > 0
    start = dict(load_model(tmp_path / "model").named_parameters())
    prepared = [run.prepare.method().branch(k).checkpoint for k in range(2)]
    changed = []
    for folder in (*prepared, run.method().merged()):
        found = load_model(folder).named_parameters()
        changed.append({role_of(name) for name, value in found if not value.equal(start[name])})
    assert changed == [{"projector"}, {"projector", "language"}, {"projector", "language"}]
    scores = ModelScores.load(run.evaluation("merit"))
    assert [item.name for item in scores.in_mixture] == ["one", "text", "three"]
    assert all(item.exact is not None for item in scores.in_mixture)
    assert "data:image/jpeg;base64," in run.report.read_text()


def test_preparation_joins_a_tower_and_a_language_model(warm_jobs, tiny_model, tmp_path):
    tower = write_tiny_tower(tmp_path / "tower")
    write_data(tmp_path)
    (tmp_path / "merit.yaml").write_text(JOIN.format(model=tiny_model, tower=tower))
    said = json.loads(merit("prepare", tmp_path / "merit.yaml", "-o", tmp_path / "run", "--json"))
    assert said["gate"] is None  # one branch: nothing to merge
    run = RunDir(tmp_path / "run")
    prepared = Path(said["model"])
    rounds = [run.prepare.root / "init", *(run.prepare.method().branch(k).checkpoint for k in range(2))]
    assert prepared == rounds[-1]
    weights = [dict(load_model(folder).named_parameters()) for folder in rounds]
    changed = [
        {role_of(name) for name, value in after.items() if not value.equal(before[name])}
        for before, after in itertools.pairwise(weights)
    ]
    assert changed == [{"projector"}, {"projector", "language"}]
    rows = [row.encoded for row in EncodedDataset.open(run.prepare.data("one")) if not row.held_out]
    with torch.no_grad():
        losses = [float(supervised_nll(load_model(folder), rows).nll.mean()) for folder in rounds]
    assert losses == sorted(losses, reverse=True)
    # As others load it: nothing of merit, all from the folder.
    processor = LlavaProcessor(
        image_processor=AutoImageProcessor.from_pretrained(prepared, backend="pil"),
        tokenizer=AutoTokenizer.from_pretrained(prepared),
        **json.loads((prepared / "processor_config.json").read_text()),
    )
    model = AutoModelForImageTextToText.from_pretrained(prepared, dtype=torch.float32).eval()
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what 5?"}]}]
    text = processor.tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    batch = processor(text=[text], images=[Image.open(tmp_path / "img" / "5.png")], return_tensors="pt")
    assert model(**batch).logits.isfinite().all()
    with torch.no_grad():
        ours = load_model(prepared)
        torch.testing.assert_close(model(**batch).logits, ours(**batch).logits)
