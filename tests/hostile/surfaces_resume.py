"""Runs to go on with: what somebody sent is resumed, with hostile records, results and links in it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from surface import Files, Surface
from surfaces_run import KEYS, changed, read_tree
from values import SECRET, TEXTS, as_json, mutated, texts_of

from four_files import write_four_files
from merit.base.files import inside
from merit.cli.main import app


@cache
def split_run() -> Files:
    """A real run up to `split`, with its data and its configuration; the model lies in a folder that stays."""
    from merit.cli.main import run as command

    folder = Path(tempfile.mkdtemp(prefix="merit-hostile-run-"))
    _made.append(folder)
    write_four_files(folder)
    tiny_model(folder / "model")
    text = "\n".join(
        ["model: model", "mixture:", "  chat: {path: chat.jsonl}", "  copy: {path: copy.json}",
         "  shout: {path: shout.parquet}", "  last: {path: last.csv}", "split: {axes: 1}", "train: {max_length: 128}"]
    )  # fmt: skip
    (folder / "merit.yaml").write_text(text, encoding="utf-8")
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        code = command(["run", str(folder / "merit.yaml"), "--until", "split", "-o", str(folder / "run")])
    if code:
        raise RuntimeError(f"the whole run must be whole: {shown.getvalue()}")
    return read_tree(folder / "run")


_made: list[Path] = []


def remove_made() -> None:
    """Removes what `split_run` keeps on disk."""
    for folder in _made:
        shutil.rmtree(folder, ignore_errors=True)


def tiny_model(folder: Path) -> None:
    """A random two-layer Llama with a byte-level tokenizer."""
    import torch
    from surfaces_data import tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer()), num_key_value_heads=2, max_position_embeddings=256, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@st.composite
def resumed_runs(draw: st.DrawFn) -> Files:
    """A run to go on with: a hostile file whose checksum the stage records have right, or a hostile stage record."""
    files = dict(split_run())
    records = sorted(name for name in files if name.startswith(".merit/") and name.endswith(".json"))
    results = sorted(name for name in files if name.endswith((".json", ".npy", ".jsonl")) and name not in records)
    if draw(st.booleans()):
        name = draw(st.sampled_from(records))
        record = json.loads(files[name])
        target = draw(st.sampled_from((*TEXTS[:14], "../secret", f"{SECRET}", ".", "branches", "../case", "data")))
        record["files"] = {target: "0"} | draw(st.sampled_from(({}, record["files"])))
        files[name] = draw(st.one_of(st.just(as_json(record)), texts_of(mutated(record, KEYS), as_json)))
        return files
    name = draw(st.sampled_from(results))
    files[name] = changed(draw, name, files[name])
    for record_name in records:
        record = json.loads(files[record_name])
        if name in record["files"]:
            record["files"][name] = hashlib.sha256(files[name]).hexdigest()
            files[record_name] = as_json(record)
    return files


def resume(folder: Path) -> Any:
    """`merit run RUN --until split`, then the branches as `merit train` would plan them."""
    from merit.context import RunContext
    from merit.train.step import branch_specs

    code = app(["run", str(folder), "--until", "split"], prog_name="merit", standalone_mode=False)
    context = RunContext.open(folder)
    for method in context.methods:
        for spec in branch_specs(context, method):
            for item in spec.data:
                inside(folder, item.data)
    return code


@st.composite
def linked_runs(draw: st.DrawFn) -> tuple[str, str]:
    """A place in a run, and where a link that stands there leads."""
    places = ("branches", "data", "conflict", "split", ".merit", "merged", "mixture.json", "report.html", "branches/00",
              "config.yaml", "events.jsonl", ".merit/lock", "data/chat.arrow", "branches/00/checkpoint",
              "README.md")  # fmt: skip
    leads = ("../secret", SECRET, f"{SECRET}/secret.json", "../../secret", "/etc", "/dev/zero", "x", ".", "..", "/")
    return draw(st.sampled_from(places)), draw(st.sampled_from(leads))


def lay_link(folder: Path, case: tuple[str, str]) -> None:
    place, target = case
    for name, content in split_run().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    path = folder / place
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target.replace(SECRET, str(folder.parent / "secret")), path)


def resume_linked(folder: Path) -> Any:
    return app(["run", str(folder), "--until", "split"], prog_name="merit", standalone_mode=False)


SURFACES = [
    Surface("run: resumed", resumed_runs(), resume, 60),
    Surface("run: links", linked_runs(), resume_linked, 40, lay=lay_link),
]
