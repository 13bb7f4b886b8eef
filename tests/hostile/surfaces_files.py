"""What people write by hand: configurations, study files, groups, recipes."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st
from surface import Surface
from values import as_json, as_yaml, mutated, texts_of
from verdict import Escape

from merit.config import load_config
from merit.config.run import dump_config, resolve_paths
from merit.config.study import StudyConfig
from merit.config.yaml import load_section
from merit.data.build import open_readers
from merit.merge.recipe import read_mergekit
from merit.split.splitters.manual import manual_partition

CONFIG = {
    "model": {"path": "model", "revision": None, "trust_remote_code": False, "chat_template": "template.jinja"},
    "mixture": {
        "chat": {"path": "chat.jsonl", "weight": 2, "max_examples": 10, "system": "be brief"},
        "code": {"path": "org/name", "split": "train", "columns": {"prompt": "q", "completion": "a"}},
        "pictures": {"path": "p.json", "image_folder": "pictures", "format": "sharegpt"},
        "shapes": {"path": "visual:count", "options": {"seed": 1}},
    },
    "calibration": {"examples": 50, "sketch": "fold"},
    "split": {"splitter": "pca", "axes": 1},
    "baselines": {"joint": {"splitter": "single", "scales": [1.0, 0.5]}, "random": "random"},
    "train": {"epochs": 1, "learning_rate": 2e-5, "lora": {"r": 8}, "trl": {"optim": "adamw_torch"}},
    "launch": {"engine": "local"},
    "merge": {"weights": "tokens", "scales": [1.0, 0.5]},
    "evaluate": {"held_out": 64, "unseen": {"other": {"path": "other.csv"}}},
    "diagnose": {"checks": ["lmc"]},
    "seed": 3,
    "output": "out",
}
# What the configuration names, so that a whole one is accepted.
BESIDE = {"chat.jsonl": b"{}", "p.json": b"[]", "other.csv": b"a,b", "pictures/a.png": b"", "template.jinja": b""}
STUDY = {
    "name": "a study",
    "warmup": {"hidden": 32, "layers": 2},
    "mixture": {"one": {"path": "one.jsonl"}, "two": {"path": "two.jsonl"}},
    "retention": {"old": {"path": "old.jsonl"}},
    "seeds": [0, 1],
    "budgets": {"small": 0.25, "whole": 1.0},
    "methods": {"joint": {"splitter": "single"}, "merit": {"splitter": "pca", "axes": 1}},
    "reference": "joint",
}
RECIPE = {
    "merge_method": "task_arithmetic",
    "base_model": "base",
    "models": [{"model": "a", "parameters": {"weight": 0.5}}, {"model": "b", "parameters": {"weight": 0.5}}],
    "parameters": {"normalize": False, "lambda": 1.0},
    "dtype": "float32",
    "out_dtype": "bfloat16",
}
GROUPS = {"left": ["chat", "code"], "right": ["pictures", "shapes"]}
KEYS = ("path", "mixture", "trl", "output", "file", "__class__", "model", "*", "<<", "versions", "trust_remote_code")

# The same bomb in all that is YAML: a few bytes that mean a billion words.
_BOMB = "\n".join(
    ["a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
)
BOMBS = tuple(
    text.encode()
    for text in (
        _BOMB,
        f"{_BOMB}\nmerge_method: *i\nmodels: *i",
        f"{_BOMB}\nmerge_method: linear\nmodels: [{{model: *i}}]\ndtype: *i",
        f"{_BOMB}\nmerge_method: linear\nmodels: [{{model: a, parameters: {{weight: *i}}}}]",
        f"{_BOMB}\nmodel: *i\nmixture: *i",
        "merge_method: linear\nbase_model: &b [*b]\nmodels: [{model: a}]\ndtype: &d [*d]",
        "&a [*a]", "a: &a {b: *a}", "left: &l [*l]", "? &k [*k]\n: x", "{[a, b]: c}", "? {a: b}\n: c", "1: [chat]",
        "left: [chat, 2020-99-99]", "a: 2020-13-45", "a: !!int x", "a: !!float x", "a: !!binary '*'", "a: !!set {x}",
        "a: !!timestamp x", "!!python/name:os.system x", "!!python/object/apply:os.system ['touch ../secret/pwned']",
        "a: !!python/object/new:os.system [id]", "a: 0b" + "1" * 100_000, "a: 1" + ":59" * 5_000, "a: .inf",
        "a: " + "[" * 20_000, "- " * 20_000 + "x", "a: " + "{a: " * 20_000, "%TAG ! tag:x,2000:\n---\n!x y", "a: b: c",
        "a: '\\ud800'", 'a: "\\ud800"', 'a: "\\udfff\\x00"', '"\\ud800": a', "a: |\n\tb", "\ufeff\ufeffa: b",
        "a: !<tag:yaml.org,2002:int> 0x", "a: !!int 0b", "a: !!null x", "a: !!bool maybe", "<<: {a: b}", "<<: 1",
        "a: 190:20", "---\n---\n", "=: 1",
    )
)  # fmt: skip


def _files(whole: dict[str, object]) -> st.SearchStrategy[bytes]:
    value = mutated(whole, KEYS)
    return st.one_of(texts_of(value, as_yaml), texts_of(value, as_json), st.sampled_from(BOMBS), st.binary(max_size=60))


def read_config(folder: Path) -> None:
    """What every command does first; then what `merit check` opens. A configuration that is accepted replays itself."""
    file = folder / "file"
    config = load_config(file)
    resolved = resolve_paths(config, folder)
    again = folder / "again.yaml"
    again.write_text(dump_config(resolved, folder), encoding="utf-8")
    if load_config(again) != resolved:
        raise Escape("the resolved configuration is another one when it is read again")
    open_readers(resolved, folder)


def read_study(folder: Path) -> None:
    load_section(folder / "file", StudyConfig, "`mixture: …`")


def read_groups(folder: Path) -> None:
    names = dict.fromkeys(("chat", "code", "pictures", "shapes"), 10)
    partition = manual_partition(folder / "file", names)
    if sorted(name for group in partition.groups for name in group.datasets) != sorted(names):
        raise Escape("groups that are not a partition")


def read_recipe(folder: Path) -> None:
    recipe = read_mergekit(folder / "file")
    if len(recipe.models) != len(recipe.weights) or not all(isinstance(name, str) for name in recipe.models):
        raise Escape("a recipe that is none")


SURFACES = [
    Surface("configuration", _files(CONFIG), read_config, 2000, beside=BESIDE),
    Surface("study file", _files(STUDY), read_study, 800),
    Surface("groups file", _files(GROUPS), read_groups, 800),
    Surface("mergekit recipe", _files(RECIPE), read_recipe, 800),
]
