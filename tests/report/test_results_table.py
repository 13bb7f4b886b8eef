"""The results table as text."""

from __future__ import annotations

from synthetic import make_run

from merit.evaluate.scores import Table, TableRow
from merit.report.table import table_markdown, table_rows


def row(label: str, kind: str = "merge", **fields: float | None) -> TableRow:
    values = {
        "method": label.split("/")[0].split("@")[0],
        "description": "",
        "in_mixture": 1.0,
        "in_mixture_se": 0.05,
        "exact": None,
        "unseen": None,
        "unseen_se": None,
        "drift": None,
        "drift_se": None,
        "displacement": None,
        "supervised_tokens": 1_234_567,
        "train_seconds": 61,
    }
    return TableRow.model_validate({"label": label, "kind": kind, **values, **fields})


def test_columns_without_a_figure_are_left_out() -> None:
    table = Table(rows=[row("merit"), row("joint", in_mixture=2.0)], comparisons=[], notes=[])
    assert table_rows(table) == [
        ["model", "", "in-mixture loss ↓", "tokens", "training"],
        ["merit", "", "1.000 ± 0.050 ★", "1.23 M", "1 min 1 s"],
        ["joint", "", "2.000 ± 0.050", "1.23 M", "1 min 1 s"],
    ]


def test_branches_are_shown_on_demand_and_never_compete() -> None:
    rows = [row("merit"), row("joint", in_mixture=1.5), row("merit/branch-00", "branch", in_mixture=0.1)]
    table = Table(rows=rows, comparisons=[], notes=[])
    assert [line[0] for line in table_rows(table)] == ["model", "merit", "joint"]
    shown = table_rows(table, branches=True)
    assert [line[0] for line in shown] == ["model", "merit", "joint", "merit/branch-00"]
    assert "★" in shown[1][2]
    assert "★" not in shown[3][2]


def test_theta0_competes_for_loss_but_not_for_drift() -> None:
    rows = [
        row("base", "base", in_mixture=0.5, drift=0.1, drift_se=0.01, supervised_tokens=0),
        row("merit", drift=0.3, drift_se=0.01),
        row("joint", drift=0.4, drift_se=0.01),
    ]
    base, merit, joint = table_rows(Table(rows=rows, comparisons=[], notes=[]))[1:]
    assert base[2] == "0.500 ± 0.050 ★"
    assert base[4:] == ["–", "–"]
    assert merit[3] == "0.300 ± 0.010 ★"
    assert joint[3] == "0.400 ± 0.010"


def test_a_model_alone_is_not_the_best() -> None:
    assert "★" not in str(table_rows(Table(rows=[row("merit")], comparisons=[], notes=[])))


def test_where_all_are_equal_none_is_the_best() -> None:
    table = Table(rows=[row("merit", exact=0.0), row("joint", exact=0.0)], comparisons=[], notes=[])
    assert "★" not in str(table_rows(table))


def test_higher_is_better_for_exact_match() -> None:
    table = Table(rows=[row("merit", exact=0.2), row("joint", exact=0.4)], comparisons=[], notes=[])
    assert [line[3] for line in table_rows(table)] == ["exact match ↑", "0.200", "0.400 ★"]


def test_markdown_is_a_table_and_escapes() -> None:
    rows = [row("merit"), row("joint").model_copy(update={"description": "a|b <i>*x*</i>\x1b"})]
    lines = table_markdown(Table(rows=rows, comparisons=[], notes=[])).splitlines()
    assert lines[1] == "| --- | --- | ---: | ---: | ---: |"
    assert "a\\|b \\<i\\>\\*x\\*\\</i\\>\\\\x1b" in lines[3]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_the_synthetic_run_has_every_column(tmp_path) -> None:
    table = Table.load(make_run(tmp_path / "run").table)
    assert len(table_rows(table)[0]) == 9
