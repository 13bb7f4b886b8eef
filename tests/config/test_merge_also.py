"""Further merges in a configuration: `merge.also`, and baselines that merge another method's branches."""

from __future__ import annotations

import pytest
import yaml

from merit.base.errors import InputError, Problems
from merit.config import RunConfig, load_config
from merit.config.run import dump_config

HEAD = """model: m
mixture: {a: {path: a.jsonl}, b: {path: b.jsonl}}
split: {axes: 1}
"""


def parse(tmp_path, text: str) -> RunConfig:
    file = tmp_path / "merit.yaml"
    file.write_text(HEAD + text)
    return load_config(file)


def test_what_they_stand_for(tmp_path):
    config = parse(
        tmp_path,
        """
merge: {weights: tokens, scales: [1.0, 0.5], also: [regmean, {rule: fisher, ridge: 0.3}]}
baselines:
  random: random
  wide: {branches: random, merge: regmean}
  far: {branches: wide, scales: [2]}
""",
    )
    assert [(item.rule, item.ridge) for item in config.merge.also] == [("regmean", None), ("fisher", 0.3)]
    assert list(config.others) == ["merit-regmean", "merit-fisher", "random", "wide", "far"]
    named = config.others["merit-fisher"]
    assert (named.branches, named.splitter, named.scales) == ("merit", None, [1.0, 0.5])
    assert config.merge.by(named.merge).effective_ridge == 0.3
    assert config.merge.by(config.others["merit-regmean"].merge).effective_ridge == 0.01
    trained = {name: config.trained_by(name) for name in ("merit", *config.others)}
    assert trained == {
        **{"merit": "merit", "merit-regmean": "merit", "merit-fisher": "merit"},
        **{"random": "random", "wide": "random", "far": "random"},
    }


def test_also_is_short_for_such_baselines(tmp_path):
    short = parse(tmp_path, "merge: {scales: [1.0, 0.5], also: [{rule: regmean, ridge: 0.1}]}\n")
    long = parse(
        tmp_path,
        """
merge: {scales: [1.0, 0.5]}
baselines: {merit-regmean: {branches: merit, merge: {rule: regmean, ridge: 0.1}, scales: [1.0, 0.5]}}
""",
    )
    assert short.others == long.others


def test_a_ridge_of_the_merge_is_not_that_of_another_rule(tmp_path):
    config = parse(tmp_path, "merge: {weights: fisher, ridge: 0.7, also: [regmean]}\n")
    assert config.merge.by(config.others["merit-regmean"].merge).effective_ridge == 0.01
    assert config.merge.effective_ridge == 0.7


def test_they_survive_their_own_dump(tmp_path):
    config = parse(tmp_path, "merge: {also: [regmean]}\nbaselines: {x: {branches: merit, merge: uniform}, j: single}\n")
    (tmp_path / "config.yaml").write_text(dump_config(config, tmp_path))
    assert load_config(tmp_path / "config.yaml") == config


WRONG = {
    "merge: {also: [regmeen]}": (4, "merge.also.0.rule", "did you mean `regmean`?"),
    "merge: {also: [{rule: regmean, ridge: 0}]}": (4, "merge.also.0.ridge", "greater than 0"),
    "merge: {also: [{rule: regmean, ridge: .nan}]}": (4, "merge.also.0.ridge", "finite number"),
    "merge: {also: [{rule: regmean, rige: 1}]}": (4, "merge.also.0.rige", "did you mean `ridge`?"),
    "merge: {also: [{ridge: 1}]}": (4, "merge.also.0.rule", "missing"),
    "merge: {also: regmean}": (4, "merge.also", "list"),
    "merge:\n  also:\n  - regmean\n  - {rule: regmean, ridge: 0.1}": (
        7,
        "merge.also.1",
        "`merit-regmean` is used twice",
    ),
    "merge: {also: [tokens]}": (4, "merge.also.0", "`merge.weights` is `tokens` already"),
    "merge: {weights: regmean, also: [{rule: regmean, ridge: 0.01}]}": (4, "merge.also.0", "already"),
    "merge: {also: [fisher]}\nbaselines: {merit-fisher: random}": (4, "merge.also.0", "also the name of a baseline"),
    "baselines: {x: {branches: nobody}}": (4, "baselines.x.branches", "no method 'nobody'; there are merit"),
    "baselines: {x: {branches: merti}}": (4, "baselines.x.branches", "did you mean `merit`?"),
    "baselines: {x: {branches: x}}": (4, "baselines.x.branches", "leads back to `x`"),
    "baselines:\n  x: {branches: y}\n  y: {branches: z}\n  z: {branches: y}": (
        5,
        "baselines.x.branches",
        "back to `y`",
    ),
    "baselines: {x: {branches: merit, splitter: random}}": (4, "baselines.x.splitter", "split already"),
    "baselines: {x: {branches: merit, axes: 1}}": (4, "baselines.x.axes", "split already"),
    "baselines: {x: {branches: merit, train: {epochs: 1}}}": (4, "baselines.x.train", "unknown key"),
    "baselines: {x: {branches: merit, split: {axes: 1}}}": (4, "baselines.x.split", "unknown key"),
    "baselines: {x: {branches: merit, merge: {rule: regmean, ridge: -1}}}": (4, "baselines.x.merge.ridge", "than 0"),
    "baselines: {x: {scales: [0.5]}}": (4, "baselines.x.splitter", "missing; give this field, or `branches`"),
    "baselines: {j: {splitter: single, merge: regmean}}": (4, "baselines.j.merge", "there is nothing to merge"),
    "baselines: {j: single, k: {branches: j, merge: fisher}}": (4, "baselines.k.merge", "there is nothing to merge"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_one_line_with_its_field(text, tmp_path):
    line, field, says = WRONG[text]
    with pytest.raises(InputError) as caught:
        parse(tmp_path, text + "\n")
    problems = caught.value.problems if isinstance(caught.value, Problems) else [caught.value]
    first = problems[0]
    assert (first.line, first.field) == (line, field)
    assert says in first.message
    assert "\n" not in str(first)


def test_one_branch_has_one_merge(tmp_path):
    text = HEAD.replace("split: {axes: 1}", "split: {splitter: single}") + "merge: {also: [regmean]}\n"
    (tmp_path / "merit.yaml").write_text(text)
    with pytest.raises(InputError, match="makes one branch: there is nothing to merge") as caught:
        load_config(tmp_path / "merit.yaml")
    assert caught.value.field == "merge.also"


def test_published_may_have_further_merges(tmp_path):
    config = parse(tmp_path, "method: published\nmerge: {also: [regmean]}\n")
    assert list(config.others) == ["merit-regmean"]
    assert yaml.safe_load(dump_config(config, tmp_path))["merge"]["weights"] == "tokens"
