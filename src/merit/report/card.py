"""RUN/README.md: the run as a model card, in the Hub's format."""

from __future__ import annotations

from pathlib import Path

import yaml

from merit.errors import printable
from merit.evaluation.scores import Table
from merit.io import write_text
from merit.report.table import table_markdown
from merit.run.layout import RunDir
from merit.split.partition import Partition

_CAPTION = (
    "Losses are nats a supervised token, unweighted means over datasets, ± one standard error over examples; "
    "★ marks the best."
)


def write_run_card(root: Path) -> None:
    """Writes the card from what the run holds; a run that is not measured yet has none.

    Raises:
        InputError: a file of the run is damaged.
    """
    run = RunDir(root)
    if not (run.table.is_file() and run.method().partition.is_file()):
        return
    table = Table.load(run.table)
    partition = Partition.load(run.method().partition)
    front = {"library_name": "transformers", "tags": ["merit", "merge", "instruction-tuning"]}
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {_plain(root.resolve().name)}", ""]
    lines += [
        f"An instruction-tuned model made with MERIT: {len(partition.groups)} branches of one init, each tuned on its",
        "own group of datasets without communication, averaged once by supervised tokens. The model is in `merged/`,",
        "the whole story in `report.html`, the configuration in `config.yaml`.",
        "",
        "## Results",
        "",
        table_markdown(table).rstrip(),
        "",
        _CAPTION,
        *(f"{_plain(note)}" for note in table.notes),
        "",
        "## Groups",
        "",
    ]
    for k, group in enumerate(partition.groups):
        names = ", ".join(_plain(name) for name in group.datasets)
        lines.append(f"- branch {k}, {group.tokens:,} supervised tokens an epoch: {names}")
    lines += ["", "## Again", "", "```", "merit run config.yaml", "```", ""]
    write_text(run.card, "\n".join(lines))


def _plain(text: str) -> str:
    """A name from outside, without power over Markdown or HTML."""
    return "".join(f"\\{char}" if char in "\\`*_|<>[]" else char for char in printable(text))
