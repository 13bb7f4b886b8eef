"""What colleagues send: run directories whose files were made by someone else, whole as their checksums may be."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import strategies as st
from parsing import Page
from surface import Files, Surface
from synthetic import make_run
from values import as_json, broken, mutated, records, texts, texts_of
from verdict import Escape

from merit.base.files import inside, safe_name
from merit.base.record import Record
from merit.cli.console import print_table
from merit.config.sections import ModelConfig, TrainConfig
from merit.conflict.axes import AxesResult
from merit.conflict.similarity import ConflictResult
from merit.data.mixture import Mixture
from merit.diagnose.check import all_checks
from merit.evaluate.drift import DriftSet
from merit.evaluate.scores import ModelScores, Table
from merit.jobs.engines import slurm
from merit.report import page as page_builder
from merit.report.build import build_report, render_report
from merit.report.card import write_run_card
from merit.report.compare import build_comparison
from merit.report.evidence import read_evidence
from merit.run.layout import RunDir
from merit.split.partition import Partition
from merit.study.advice import advise_run, parse_trade_off
from merit.train import watch
from merit.train.spec import BranchData, BranchResult, BranchSpec

KEYS = ("files", "names", "groups", "datasets", "scores", "cuts", "margins", "rendered", "spans", "images", "tokens")
_NAMES = ("one", "two", "three", "four")


def read_tree(root: Path) -> Files:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@cache
def finished() -> Files:
    """A small finished run with a branch under way."""
    with tempfile.TemporaryDirectory() as name:
        run = make_run(Path(name) / "run", names=_NAMES, axes=1)
        data = [BranchData(name=item, data=f"data/{item}.arrow", weight=1.0, fingerprint="0") for item in _NAMES]
        spec = BranchSpec(
            method="merit", branch=1, model=ModelConfig(path="m"), model_fingerprint="0",
            train=TrainConfig(), data=data, max_length=64, planned_tokens=10, seed=0,
        )  # fmt: skip
        branch = run.method().branch(1)
        spec.save(branch.spec)
        branch.done.unlink()
        job = {
            "engine": "slurm",
            "state": "running",
            "id": "12_0",
            "where": "node",
            "attempt": 2,
            "said": "",
            "time": 1.5,
        }
        branch.job.write_bytes(as_json(job))
        branch.progress.write_bytes(as_json({"done": 1, "total": 9, "note": "loss 3"}))
        return read_tree(run.root)


def changed(draw: st.DrawFn, name: str, content: bytes) -> bytes:
    """`content` as a stranger might have left it."""
    if name.endswith(".npy"):
        return draw(st.one_of(broken(st.just(content)), st.sampled_from(_arrays())))
    if name.endswith(".jsonl"):
        lines = [json.loads(line) for line in content.splitlines() if line.endswith(b"}")]
        return b"\n".join(as_json(line) for line in _list(draw(mutated(lines, KEYS))))
    if name.endswith((".json", "DONE")):
        value = json.loads(content)
        return draw(texts_of(mutated(value, (*KEYS, *(value if isinstance(value, dict) else ()))), as_json))
    return draw(broken(st.just(content)))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@cache
def _arrays() -> tuple[bytes, ...]:
    made = []
    for array in (
        np.zeros((3, 3)),
        np.full((4, 4), np.nan),
        np.full((4, 4), 1e308),
        np.zeros((4, 4), "U9"),
        np.zeros(0),
    ):
        out = io.BytesIO()
        np.save(out, array)
        made.append(out.getvalue())
    out = io.BytesIO()
    np.save(out, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }"
    huge = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    return (*made, out.getvalue(), huge, b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00\xff\xff{")


@st.composite
def shared_runs(draw: st.DrawFn) -> Files:
    """A finished run with one or two hostile files."""
    files = dict(finished())
    names = sorted(name for name in files if name.endswith((".json", ".jsonl", ".npy", "DONE", ".yaml")))
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        kind = next((kind for end, kind in _KINDS.items() if name.endswith(end)), None)
        if kind is not None and draw(st.booleans()):
            files[name] = as_json(draw(records(kind)))
        else:
            files[name] = changed(draw, name, files[name])
    if draw(st.booleans()):
        check = draw(st.sampled_from(sorted(all_checks())))
        files[f"diagnostics/{check}.json"] = as_json(draw(records(all_checks()[check].result)))
    return files


_KINDS: dict[str, type[Record]] = {
    "mixture.json": Mixture, "partition.json": Partition, "conflict.json": ConflictResult, "axes.json": AxesResult,
    "table.json": Table, "drift-set.json": DriftSet, "evaluation/merit.json": ModelScores, "DONE": BranchResult,
    "spec.json": BranchSpec,
}  # fmt: skip


# Packing four megabytes of it takes longer than all the rest. The test process goes on to other tests afterwards.
_WITHOUT_PLOTLY = patch.object(page_builder, "_plotly", lambda: "")


def show_run(folder: Path) -> None:
    """`merit report`, the model card and `merit status` of a run that somebody sent."""
    from merit.cli.branch_commands import _rows

    with (
        _WITHOUT_PLOTLY,
        patch.object(slurm, "missing_commands", lambda: []),
        patch.object(slurm, "_call", _only_ids),
    ):
        build_report(folder)
        _no_foreign_markup(RunDir(folder).report.read_text(encoding="utf-8"))
        write_run_card(folder)
        print_table(_rows(watch.run_status(RunDir(folder))))
        watch.cancel_run(RunDir(folder))
        _no_foreign_markup(_beside_a_good_one(folder))
        advise_run(Table.load(RunDir(folder).table), parse_trade_off(None))


def _beside_a_good_one(folder: Path) -> str:
    """The page of `merit compare`."""
    good, page = folder.parent / "cache" / "good", folder / "compare.html"
    for name, content in {} if good.exists() else finished().items():
        path = good / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for rows in build_comparison([good, folder], page).tables:
        print_table(rows)
    return page.read_text(encoding="utf-8")


def _only_ids(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Stands in for Slurm, and sees what its commands would be told: fixed options, and ids."""
    for word in command[1:]:
        ids = word.removeprefix("--jobs=") if word.startswith("--jobs=") else word
        if word not in _OPTIONS and not re.fullmatch(r"[0-9,_]+", ids):
            raise Escape(f"{command[0]} is told {word!r}")
    return subprocess.CompletedProcess(command, 0, "12_0|RUNNING|None|node\n", "")


_OPTIONS = ("--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N", "--quiet")


def _no_foreign_markup(page: str) -> None:
    """The same kinds of elements as a harmless run's page, no handler, no script that is not ours."""
    found = Page(page)
    if extra := {element.tag for element in found.elements} - _tags():
        raise Escape(f"the report gets elements {sorted(extra)}")
    for element in found.elements:
        if any(name.startswith("on") for name in element.attributes):
            raise Escape("the report gets an event handler")
        for name in ("href", "src"):
            if (element.attributes.get(name) or "").lower().startswith(("javascript", "data:text", "http")):
                raise Escape(f"the report gets a link to {element.attributes[name]!r}")
    try:
        page.encode("utf-8")
    except UnicodeEncodeError:
        raise Escape("the report holds half a surrogate pair") from None


@cache
def _tags() -> set[str]:
    """What the pages of harmless runs are made of."""
    with tempfile.TemporaryDirectory() as name:
        roots = [make_run(Path(name) / run, names=_NAMES, axes=1).root for run in ("one", "two")]
        build_comparison(roots, Path(name) / "compare.html")
        pages = [render_report(read_evidence(roots[0])), (Path(name) / "compare.html").read_text(encoding="utf-8")]
    return {element.tag for page in pages for element in Page(page).elements} | {
        "img"
    }  # an example's pictures, as data


@st.composite
def hostile_texts(draw: st.DrawFn) -> tuple[list[str], str]:
    """Dataset names and an example's text: what the mixture allows, and what it does not."""
    names = draw(st.lists(texts.filter(lambda text: len(text) < 300), min_size=4, max_size=5, unique=True))
    return names, draw(texts)


def lay_texts(folder: Path, case: tuple[list[str], str]) -> None:
    """The whole run under those names."""
    names, text = case
    make_run(folder / "run", names=names, axes=1, text=text)


def show_texts(folder: Path) -> None:
    with _WITHOUT_PLOTLY:
        build_report(folder / "run")
    _no_foreign_markup(RunDir(folder / "run").report.read_text(encoding="utf-8"))
    write_run_card(folder / "run")


def name_a_file(folder: Path) -> None:
    """The names of datasets as file names: one file each, in the folder, and no two the same."""
    names = json.loads((folder / "file").read_bytes())
    found = {safe_name(name) for name in names}
    if len(found) != len(set(names)):
        raise Escape("two names share a file")
    for name in found:
        path = folder / name
        if (
            path.parent != folder
            or len(name) > 120
            or not name.isascii()
            or not name.isprintable()
            or name in (".", "..")
        ):
            raise Escape(f"{name!r} is no name of a file in the folder")
        path.write_bytes(b"")
        inside(folder, name)


SURFACES = [
    Surface("run: report, status", shared_runs(), show_run, 300),
    Surface("run: names, examples", hostile_texts(), show_texts, 100, lay=lay_texts),
    Surface("names of files", st.lists(texts, max_size=8).map(as_json), name_a_file, 800),
]
