"""What a configuration means: defaults, short forms, YAML's numbers, resolved paths, and its way back from disk."""

from __future__ import annotations

import json
import subprocess

import pytest
import yaml
from pydantic import ValidationError

from merit.base.errors import InputError
from merit.config import RunConfig, load_config
from merit.config.run import dump_config, resolve_paths, versions

SMALL = {"model": "m", "mixture": {"a": {"path": "a.jsonl"}, "b": {"path": "b.jsonl"}}, "split": {"axes": 1}}


def parse(tmp_path, text: str) -> RunConfig:
    file = tmp_path / "merit.yaml"
    file.write_text(text)
    return load_config(file)


def yaml_of(**more: object) -> str:
    return yaml.safe_dump({**SMALL, **more}, sort_keys=False)


def test_defaults(tmp_path):
    config = parse(tmp_path, yaml_of())
    assert config == RunConfig.model_validate(SMALL)
    assert (config.split.splitter, config.split.centre, config.train.epochs, config.seed) == ("pca", "columns", 1, 0)
    assert (config.held_out_fraction, config.merge.weights, config.launch.engine) == (0.1, "tokens", "local")
    assert config.merge.scales == [1.0]
    assert config.baselines == {}
    assert config.train.lora is None


def test_short_forms(tmp_path):
    config = parse(tmp_path, yaml_of(baselines={"joint": "single", "rnd": {"splitter": "random", "axes": 1}}))
    assert config.model.path == "m"
    assert config.baselines["joint"].splitter == "single"
    assert config.baselines["joint"].axes is None
    assert config.baselines["rnd"].axes == 1


def test_order_of_datasets_is_the_files(tmp_path):
    names = ["z", "a", "m", "1", "on", "null"]
    mixture = {name: {"path": f"{name}.jsonl"} for name in names}
    text = "model: m\nmixture:\n" + "".join(f"  {name}: {json.dumps(item)}\n" for name, item in mixture.items())
    assert list(parse(tmp_path, text).mixture) == names


@pytest.mark.parametrize(
    ("written", "value"),
    [("2e-5", 2e-5), ("2.0e-5", 2e-5), ("1E-3", 1e-3), ("+1e-3", 1e-3), (".5", 0.5), ("1", 1.0), ("1_000e-6", 1e-3)],
)
def test_numbers(written, value, tmp_path):
    """YAML 1.1 reads `2e-5` as text."""
    assert parse(tmp_path, yaml_of() + f"train: {{learning_rate: {written}}}\n").train.learning_rate == value


@pytest.mark.parametrize("written", ['"2e-5"', "'1'"])
def test_quoted_text_stays_text_where_text_is_wanted(written, tmp_path):
    config = parse(tmp_path, yaml_of() + f"output: {written}\n")
    assert config.output == written.strip("\"'")


def test_names_may_be_in_any_script(tmp_path):
    names = ["数学", "café", "a.b", "a b", "x" * 200, "🙂"]
    config = parse(
        tmp_path, yaml.safe_dump({**SMALL, "mixture": {n: {"path": "p"} for n in names}}, allow_unicode=True)
    )
    assert sorted(config.mixture) == sorted(names)


@pytest.mark.parametrize(
    "name", ["/", "a/b", "..", ".", "a\\b", "a\x00", "a\nb", "\x1b[31m", "\u202ea", " ", "", "x" * 201]
)
def test_names_that_could_be_mistaken(name):
    with pytest.raises(ValidationError, match="a name must"):
        RunConfig.model_validate(SMALL | {"mixture": {name: {"path": "a"}, "b": {"path": "b"}}})


@pytest.mark.parametrize(
    ("datasets", "axes", "fits"), [(2, 1, True), (3, 1, True), (3, 2, False), (4, 2, True), (7, 3, False), (8, 3, True)]
)
def test_axes_need_a_dataset_a_group(datasets, axes, fits):
    values = SMALL | {"mixture": {str(i): {"path": "p"} for i in range(datasets)}, "split": {"axes": axes}}
    if fits:
        assert RunConfig.model_validate(values).split.axes == axes
    else:
        with pytest.raises(ValidationError, match=f"{axes} axes make {2**axes} groups, but the mixture has {datasets}"):
            RunConfig.model_validate(values)


@pytest.mark.parametrize("splitter", ["single", "replicate"])
def test_one_dataset_needs_a_splitter_without_conflict(splitter):
    one = SMALL | {"mixture": {"a": {"path": "a"}}}
    assert RunConfig.model_validate(one | {"split": {"splitter": splitter}}).split.splitter == splitter
    with pytest.raises(ValidationError, match="one dataset cannot conflict with another"):
        RunConfig.model_validate(one)


def test_nothing_can_be_changed_afterwards():
    config = RunConfig.model_validate(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_paths_become_absolute_where_a_file_is_meant(tmp_path):
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "m").mkdir()
    config = RunConfig.model_validate(
        SMALL
        | {
            "model": {"path": "m", "chat_template": "t.jinja"},
            "mixture": {
                "a": {"path": "a.jsonl"},
                "gone": {"path": "gone.jsonl"},
                "hub": {"path": "org/name"},
                "gym": {"path": "reasoning_gym:gcd"},
                "long": {"path": "x" * 5000},
                "nul": {"path": "a\0b"},
            },
            "split": {"splitter": "manual", "file": "groups.yaml"},
            "baselines": {"mine": {"splitter": "manual", "file": "/other.yaml"}},
            "evaluate": {"unseen": {"u": {"path": "./a.jsonl"}}},
        }
    )
    resolved = resolve_paths(config, tmp_path)
    assert resolved.model.path == str(tmp_path / "m")
    assert resolved.model.chat_template == str(tmp_path / "t.jinja")
    assert resolved.mixture["a"].path == str(tmp_path / "a.jsonl")
    for name in ("gone", "hub", "gym", "long", "nul"):
        assert resolved.mixture[name] == config.mixture[name]
    assert resolved.split.file == str(tmp_path / "groups.yaml")
    assert resolved.baselines["mine"].file == "/other.yaml"
    assert resolved.evaluate.unseen["u"].path == str(tmp_path / "a.jsonl")
    # Doing it twice changes nothing.
    assert resolve_paths(resolved, tmp_path / "elsewhere") == resolved


def test_a_store_is_a_folder_or_a_url(tmp_path):
    for written, meant in (("kept", str(tmp_path / "kept")), ("s3://bucket/x", "s3://bucket/x"), ("/x", "/x")):
        config = RunConfig.model_validate(SMALL | {"launch": {"store": written}})
        assert resolve_paths(config, tmp_path).launch.store == meant


def test_a_run_replays_its_own_configuration(tmp_path):
    config = RunConfig.model_validate(
        SMALL
        | {
            "mixture": {"数学": {"path": "a: b #c"}, "no": {"path": "'\"\\"}},
            "train": {"learning_rate": 1e-7, "lora": {"r": 4}, "trl": {"optim": "adamw_torch"}},
            "merge": {"scales": [1, 0.5]},
        }
    )
    text = dump_config(config, tmp_path)
    assert parse(tmp_path, text) == config
    written = yaml.safe_load(text)
    assert written["versions"]["python"].startswith("3.")
    assert set(RunConfig.model_fields) == set(written) - {"versions"}


def test_versions_hold_the_commit_of_the_configurations_folder(tmp_path):
    assert "git_commit" not in versions(tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert versions(tmp_path)["git_commit"] == head


def test_a_key_goes_by_its_old_name_for_one_version(tmp_path, caplog):
    text = yaml_of() + "launch:\n  retries: 2\n  losses: 7\n"
    config = parse(tmp_path, text)
    assert (config.launch.retries, config.launch.preemption_retries) == (2, 7)
    line = text.splitlines().index("  losses: 7") + 1
    assert caplog.messages == [
        f"{tmp_path}/merit.yaml:{line}: `launch.losses`: is now called `launch.preemption_retries`; the next version "
        "refuses the old name"
    ]
    caplog.clear()
    assert parse(tmp_path, dump_config(config, tmp_path)) == config
    assert not caplog.messages  # what is written has the new name


def test_a_mistake_below_an_old_name_has_its_line(tmp_path):
    text = yaml_of() + "launch:\n  losses: -1\n"
    with pytest.raises(InputError) as caught:
        parse(tmp_path, text)
    assert (caught.value.line, caught.value.field) == (len(text.splitlines()), "launch.preemption_retries")


def test_the_old_name_beside_the_new_is_an_unknown_key(tmp_path):
    with pytest.raises(InputError, match=r"`launch\.losses`: unknown key"):
        parse(tmp_path, yaml_of(launch={"losses": 1, "preemption_retries": 2}))


def test_the_schema_describes_every_field():
    schema = RunConfig.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    fields = [(section["title"], name, field) for section in sections for name, field in section["properties"].items()]
    assert len(fields) > 50
    assert not [(title, name) for title, name, field in fields if not field.get("description")]
    assert all(section["additionalProperties"] is False for section in sections)


PUBLISHED = """
method: published
model: m
mixture: {a: {path: a.jsonl}, b: {path: b.jsonl}}
"""


def test_published_sets_everything_and_survives_its_own_dump(tmp_path):
    file = tmp_path / "merit.yaml"
    file.write_text(PUBLISHED + "split: {axes: 1}\ncalibration: {stride: 5}\n")
    config = load_config(file)
    calibration, split = config.calibration, config.split
    assert (calibration.examples, calibration.sketch, calibration.stride) == (200, "flat", 5)
    assert (split.splitter, split.axes, split.centre, split.balance) == ("pca", 1, "columns", "samples")
    assert (config.merge.weights, config.merge.scales, config.diagnose.points) == ("tokens", [1.0], 21)
    file.write_text(dump_config(config, tmp_path))
    assert "stride: 5" in file.read_text()
    assert load_config(file) == config


@pytest.mark.parametrize(
    ("lines", "field", "says"),
    [
        ("calibration: {sketch: fold}", "calibration.sketch", "which sets flat"),
        ("calibration:\n  examples: auto", "calibration.examples", "which sets 200"),
        ("split: {axes: 4}", "split.axes", "which has 1, 2 or 3 axes"),
        ("split: {balance: tokens}", "split.balance", "which sets samples"),
        ("merge: {scales: [0.5]}", "merge.scales", r"which sets \[1.0\]"),
        ("train: {pull: 1.0}", "train.pull", "which sets 0.0"),
    ],
)
def test_a_key_that_contradicts_published_is_one_line(tmp_path, lines, field, says):
    file = tmp_path / "merit.yaml"
    file.write_text(PUBLISHED + lines + "\n")
    with pytest.raises(InputError, match=rf"contradicts `method: published`, {says}") as error:
        load_config(file)
    assert error.value.field == field
    assert error.value.line == PUBLISHED.count("\n") + 1 + lines.count("\n")


def test_balance_needs_two_datasets_and_a_run_of_one_is_read_again(tmp_path):
    file = tmp_path / "merit.yaml"
    file.write_text("model: m\nmixture: {a: {path: a.jsonl}}\nsplit: {splitter: single, balance: tokens}\n")
    with pytest.raises(InputError, match=r"`split\.balance`: one dataset leaves nothing to balance"):
        load_config(file)
    file.write_text("model: m\nmixture: {a: {path: a.jsonl}}\nsplit: {splitter: single}\n")
    file.write_text(dump_config(load_config(file), tmp_path))
    assert load_config(file).split.splitter == "single"


def test_what_the_first_version_wrote_means_what_it_meant(tmp_path, caplog):
    file = tmp_path / "config.yaml"
    text = "model: m\nmixture: {a: {path: a.jsonl}, b: {path: b.jsonl}}\nsplit:\n  centre: true\n  axes: 1\n"
    file.write_text(text + "versions: {merit: 0.1.0}\n")
    split = load_config(file).split
    assert (split.centre, split.balance) == ("both", "tokens")
    assert f"{file}:4: `split.centre`: `true` is now called `both`" in caplog.text
    file.write_text(text)  # a user's own file, which follows the defaults
    assert load_config(file).split.balance == "samples"


def test_published_freezes_tower_and_projector(tmp_path):
    file = tmp_path / "merit.yaml"
    rest = "mixture: {a: {path: a.jsonl}, b: {path: b.jsonl}}\nsplit: {axes: 1}\nmethod: published\n"
    file.write_text(f"model: {{path: m, freeze: [vision]}}\n{rest}")
    with pytest.raises(InputError, match=r"`model\.freeze`: contradicts `method: published`"):
        load_config(file)
    file.write_text(f"model: {{path: m, freeze: [vision, projector]}}\n{rest}")
    assert load_config(file).model.freeze == ["vision", "projector"]
