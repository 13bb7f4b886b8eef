"""Mistakes in the configuration: each a line with file, line and field, before anything is imported or written."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from command import Command, tree

BASE = """\
model: somewhere
mixture:
  a: {path: a.jsonl}
  b: {path: b.jsonl}
split: {axes: 1}
"""
NAMES = f"""\
model: somewhere
mixture:
  a/b: {{path: a.jsonl}}
  ..: {{path: b.jsonl}}
  {"n" * 300}: {{path: c.jsonl}}
split: {{axes: 1}}
"""

CASES: dict[str, tuple[str, list[str]]] = {
    "empty": ("", [": the file is empty; `merit init FOLDER` writes a filled one"]),
    "no mapping": ("- a\n", [":1: the file must hold a mapping such as `model: …`, `mixture: …`"]),
    "not YAML": ("model: [\n", [":2: not valid YAML: expected the node content, but found '<stream end>'"]),
    "two documents": ("model: a\n---\nmodel: b\n", [":2: not valid YAML: but found another document"]),
    "a control character": ("model: \x07\n", [": not valid YAML: unacceptable character #x0007: special characters "]),
    "no mixture": ("model: a\n", [":1: `mixture`: missing; this field is required"]),
    "empty mixture": ("model: a\nmixture: {}\n", [":2: `mixture`: must not be empty"]),
    "duplicate name": (BASE.replace("  b:", "  a:"),
        [":4: `mixture.a`: the name is used twice (first in line 3); rename one"]),
    "names": (NAMES,
        [":3: `mixture.a/b`: a name must not hold / or \\ or control characters, or be a path",
         ":4: `mixture...`: a name must not hold / or \\ or control characters, or be a path",
         f":5: `mixture.{'n' * 60}…`: a name must have 1 to 200 characters, not 300"]),
    "a name with an escape": (BASE.replace("  b:", '  "\\e[2Jb":'),
        [":4: `mixture.\\x1b[2Jb`: a name must not hold / or \\ or control characters, or be a path"]),
    "an empty name": (BASE.replace("  b:", '  "":'), [":4: `mixture.`: a name must have 1 to 200 characters, not 0"]),
    "axes": (BASE.replace("axes: 1", "axes: 2"),
        [":5: `split.axes`: 2 axes make 4 groups, but the mixture has 2 datasets; use at most 1"]),
    "axes of a baseline": (BASE + "baselines:\n  r: {splitter: random, axes: 3}\n",
        [":7: `baselines.r.axes`: 3 axes make 8 groups, but the mixture has 2 datasets; use at most 1"]),
    "one dataset": (BASE.replace("  b: {path: b.jsonl}\n", ""),
        [":4: `split.splitter`: one dataset cannot conflict with another; add a dataset, or use `splitter: single`"]),
    "unknown format": (BASE.replace("b.jsonl", "b.jsonl, format: alpacca"),
        [":4: `mixture.b.format`: Input should be 'alpaca', 'messages', 'multiple_choice', 'prompt_completion', "
         "'qa' or 'sharegpt', not 'alpacca'; did you mean `alpaca`?"]),
    "unknown column": (BASE.replace("b.jsonl", "b.jsonl, columns: {promt: q}"),
        [":4: `mixture.b.columns.promt`: Input should be 'prompt', 'completion', 'input', 'history', 'choices', "
         "'system', 'messages', 'reference', 'images' or 'tools', not 'promt'; did you mean `prompt`?"]),
    "weights": (BASE.replace("a.jsonl", "a.jsonl, weight: .nan").replace("b.jsonl", "b.jsonl, weight: -.inf"),
        [":3: `mixture.a.weight`: Input should be a finite number, not 'nan'",
         ":4: `mixture.b.weight`: Input should be a finite number, not '-inf'"]),
    "an outer step": (BASE + "train: {rounds: 2, outer: {rate: 0, momentum: 1}}\n",
        [":6: `train.outer.rate`: Input should be greater than 0, not '0'",
         ":6: `train.outer.momentum`: Input should be less than 1, not '1'"]),
    "an outer step of no number": (BASE + "train: {rounds: 2, outer: {rate: .inf, momentum: .nan}}\n",
        [":6: `train.outer.rate`: Input should be a finite number, not 'inf'",
         ":6: `train.outer.momentum`: Input should be a finite number, not 'nan'"]),
    "an outer step backwards": (BASE + "train: {rounds: 2, outer: {momentum: -0.1}}\n",
        [":6: `train.outer.momentum`: Input should be greater than or equal to 0, not '-0.1'"]),
    "an outer step of one round": (BASE + "train: {outer: {rate: 0.7}}\n",
        [":6: `train.outer`: one round has nothing to carry on: set `train.rounds` above 1, or leave this out"]),
    "a huge float": (BASE + "train: {learning_rate: 1e999}\n",
        [":6: `train.learning_rate`: Input should be a finite number, not 'inf'"]),
    "a huge number": (BASE + f"seed: {'9' * 5000}\n", [":6: `seed`: a number of more than 18 digits"]),
    "a large number": (BASE + f"train: {{batch_tokens: {10**18}}}\n",
        [":6: `train.batch_tokens`: a number of more than 18 digits"]),
    "bomb": (BASE + "a: &a [x, x]\nb: &b [*a, *a]\n",
        [":7: YAML aliases (*name) are not supported; write the value out"]),
    "deep": ("[" * 50_000, [":1: nested too deeply"]),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(200)), [":31: nested too deeply"]),
    "a tag": (BASE + "seed: !!python/object:os.system 1\n",
        [":6: `seed`: cannot read this value: could not determine a "]),
    "a list as key": (BASE + "? [a]\n: 1\n", [":6: a key must be a plain name"]),
    # Misspelt keys at every level.
    "key of the root": (BASE.replace("split", "splitt"), [":5: `splitt`: unknown key; did you mean `split`?"]),
    "key of the model": (BASE.replace("somewhere", "{pth: somewhere}"),
        [":1: `model.pth`: unknown key; did you mean `path`?"]),
    "key of a dataset": (BASE.replace("b.jsonl", "b.jsonl, wieght: 2"),
        [":4: `mixture.b.wieght`: unknown key; did you mean `weight`?"]),
    "key of a section": (BASE.replace("axes", "axis"), [":5: `split.axis`: unknown key; did you mean `axes`?"]),
    "key of a section of a section": (BASE + "train:\n  lora:\n    dropuot: 0\n",
        [":8: `train.lora.dropuot`: unknown key; did you mean `dropout`?"]),
    "key of a baseline": (BASE + "baselines: {j: {spliter: single}}\n",
        [":6: `baselines.j.spliter`: unknown key; did you mean `splitter`?"]),
    "key of an unseen dataset": (BASE + "evaluate:\n  unseen:\n    u: {pathh: u.jsonl}\n",
        [":8: `evaluate.unseen.u.pathh`: unknown key; did you mean `path`?"]),
    "a key like no other": (BASE + "merge: {zzz: 1}\n",
        [":6: `merge.zzz`: unknown key; known here: weights, ridge, curvature_examples, dtype, scales"]),
    "several": (BASE.replace("axes: 1", "axes: one") + "seed: -1\nheld_out_fraction: 2\n",
        [":5: `split.axes`: use a whole number from 1 to 10, or `auto`, not 'one'",
         ":6: `seed`: Input should be greater than or equal to 0, not '-1'",
         ":7: `held_out_fraction`: Input should be less than 1, not '2'"]),
    "manual without a file": (BASE.replace("axes: 1", "splitter: manual"),
        [":5: `split.file`: the manual splitter needs a file that names the groups"]),
    "names of baselines": (BASE + "baselines: {merit: single, Up: single}\n",
        [":6: `baselines.merit`: merit uses this name itself; choose another",
         ":6: `baselines.Up`: use lower-case letters, digits, - and _ (40 at most)"]),
    "seen and unseen": (BASE + "evaluate: {unseen: {a: {path: a.jsonl}}}\n",
        [":6: `evaluate.unseen.a`: this is also the name of a dataset in `mixture`; rename one"]),
}  # fmt: skip


@pytest.fixture
def merit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_mistake(case, command, merit: Command, tmp_path):
    text, expected = CASES[case]
    file = tmp_path / "merit.yaml"
    file.write_text(text)
    outcome = merit(command, file)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.lines) == len(expected), outcome.err
    for line, wanted in zip(outcome.lines, expected, strict=True):
        assert line.startswith(f"{file}{wanted}")
    assert list(tree(tmp_path)) == ["merit.yaml"]


def test_files_that_are_no_configuration(merit: Command, tmp_path):
    missing, folder, binary, large = (tmp_path / name for name in ("a.yaml", "folder", "b.yaml", "c.yaml"))
    folder.mkdir()
    binary.write_bytes(b"model: a\nmix: \xff\n")
    large.write_bytes(b"# " + b"a" * 5_000_000)
    (tmp_path / "folder" / "mine.yaml").touch()
    assert merit("run", missing).lines == [f"{missing}: no such file; `merit init FOLDER` writes one"]
    hint = f"did you mean {folder}/mine.yaml?"
    assert merit("run", folder).lines == [f"{folder}: not a run directory: there is no config.yaml in it; {hint}"]
    assert merit("run", binary).lines == [f"{binary}:2: not valid UTF-8"]
    assert merit("run", large).lines == [f"{large}: larger than 4,000,000 bytes, so this is no configuration"]
    assert merit("run", "/dev/zero").lines == ["/dev/zero: larger than 4,000,000 bytes, so this is no configuration"]
    assert merit("run", "x" * 5000).lines == ["x" * 5000 + ": File name too long"]
    assert {merit("run", path).code for path in (missing, folder, binary, large, "x" * 5000)} == {2}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["schema"], ["run", "bad.yaml"], ["env"]])
def test_the_answer_needs_no_torch(arguments, tmp_path):
    """What takes seconds to import must not stand between a mistake and its message."""
    (tmp_path / "bad.yaml").write_text(BASE + "seeed: 1\n")
    program = (
        "import sys, json\nfrom merit.cli.main import run\ncode = run(sys.argv[1:])\n"
        "sys.stderr.write(json.dumps([code, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=tmp_path)
    code, modules = json.loads(done.stderr.splitlines()[-1])
    assert code == (2 if "bad.yaml" in arguments else 0)
    heavy = {"torch", "transformers", "trl", "datasets", "sklearn", "scipy", "pandas", "pyarrow", "plotly", "numpy"}
    assert heavy.isdisjoint(modules)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu"], "merit: No such command 'rnu'. Did you mean 'run'?; see `merit --help`"),
        (["run"], "merit run: Missing argument 'FILE|RUN'.; see `merit run --help`"),
        (["run", "a.yaml", "--form", "split"], "merit run: No such option: --form"),
        (["run", "a.yaml", "b.yaml"], "merit run: Got unexpected extra argument(s) (b.yaml); see `merit run --help`"),
        (["run", "a.yaml", "--until"], "merit: Option '--until' requires an argument.; see `merit --help`"),
        (["train", "a.yaml", "--branch", "x"], "merit train: Invalid value for '--branch': "),
        (["train", "a.yaml", "--branch", "-1"], "merit train: Invalid value for '--branch': "),
        (["run", "\x1b[2J.yaml"], "\\x1b[2J.yaml: no such file"),
        (["\x1b[2J"], "merit: No such command '\\x1b[2J'"),
    ],
)
def test_wrong_options(arguments, expected, merit: Command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = merit(*arguments)
    assert (outcome.code, len(outcome.lines)) == (2, 1), outcome
    assert outcome.lines[0].startswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_without_arguments_comes_the_help(merit: Command):
    outcome = merit()
    assert outcome.code == 0
    assert "Usage: merit" in outcome.out
