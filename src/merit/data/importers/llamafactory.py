"""LLaMA-Factory: a training YAML that names datasets of a `dataset_info.json`, or that file itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merit.base.errors import InputError, did_you_mean
from merit.config.yaml import read_yaml
from merit.data.draft import Dataset, Draft
from merit.data.importer import Foreign, Importer, words

_INFO = "dataset_info.json"
_SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
_TRAIN = {
    "epochs": "num_train_epochs",
    "learning_rate": "learning_rate",
    "max_length": "cutoff_len",
    "schedule": "lr_scheduler_type",
    "warmup_ratio": "warmup_ratio",
    "weight_decay": "weight_decay",
}
# Their column → ours. Where `columns` is given, what it does not name is not read.
_ALPACA = {"prompt": "prompt", "query": "input", "response": "completion", "history": "history"}
_OF_ALL = {"system": "system", "tools": "tools", "images": "images"}
_BAD = ("chosen", "rejected", "kto_tag", "videos", "audios")


def _is_info(values: Mapping[str, Any]) -> bool:
    return bool(values) and all(
        isinstance(item, Mapping) and any(key in item for key in _SOURCES) for item in values.values()
    )


def _recognises(values: Mapping[str, Any]) -> bool:
    return _is_info(values) or ("dataset" in values and "model_name_or_path" in values)


def _read(foreign: Foreign, draft: Draft) -> None:
    if _is_info(foreign.values):
        known = _Known(foreign.values, foreign.file.parent)
        for name in foreign.values:
            foreign.take(name)
            _add(foreign, draft, known, name)
        return
    if (stage := foreign.take("stage")) not in (None, "sft"):
        raise foreign.error(f"{stage} is not supervised tuning, which is all that merit does", "stage")
    foreign.set_model(draft, "model_name_or_path", "model_revision")
    known = _find_known(foreign)
    for key, unseen in (("dataset", False), ("eval_dataset", True)):
        for name in words(foreign.take(key)):
            if name in known.entries:
                _add(foreign, draft, known, name, unseen=unseen)
            else:
                near = did_you_mean(name, known.entries, otherwise=f" in {_INFO}")
                draft.leave_out(name, foreign.error(f"there is no dataset {name!r}{near}", key), unseen=unseen)
    if template := foreign.take("template"):
        foreign.miss(f"template: {template}: the tokenizer's own is used; another goes into `model.chat_template`")
    foreign.set_train(draft, _TRAIN)
    foreign.set_held_out(draft, "val_size")
    foreign.set_seed(draft)
    kind = foreign.take("finetuning_type")
    if kind in (None, "lora"):  # theirs is LoRA where nothing is said
        _lora(foreign, draft)
    elif kind != "full":
        foreign.miss(f"finetuning_type: {kind}: here it is full, or `train.lora`")
    if foreign.take("train_on_prompt"):
        foreign.miss("train_on_prompt: merit learns the answers only")


def _lora(foreign: Foreign, draft: Draft) -> None:
    rank, targets = foreign.take("lora_rank") or 8, foreign.take("lora_target") or "all"
    values = {
        "r": rank,
        "alpha": foreign.take("lora_alpha") or (2 * rank if isinstance(rank, int) else None),
        "dropout": foreign.take("lora_dropout"),
        "target_modules": "all-linear" if targets == "all" else words(targets),
    }
    foreign.set_lora(draft, values, "finetuning_type, lora_*")


@dataclass(frozen=True)
class _Known:
    """The datasets that LLaMA-Factory knows by name.

    Attributes:
        entries: name → how to read it.
        folder: where their files are.
        limit: rows to use of each, at most.
    """

    entries: Mapping[str, Any]
    folder: Path
    limit: int | None = None


def _find_known(foreign: Foreign) -> _Known:
    """What the configuration's `dataset_dir` knows.

    Raises:
        InputError: there is no such file, or it is damaged.
    """
    folder = foreign.find(str(foreign.take("dataset_dir") or "data"))
    if folder is None or not (folder / _INFO).is_file():
        raise foreign.error(f"there is no {_INFO} in this folder, nor in `data`", "dataset_dir")
    values, _ = read_yaml(folder / _INFO)
    if not isinstance(values, Mapping):
        raise InputError("must hold a dataset by name", file=folder / _INFO)
    limit = foreign.take("max_samples")
    return _Known(values, folder, limit if isinstance(limit, int) else None)


def _add(foreign: Foreign, draft: Draft, known: _Known, name: str, *, unseen: bool = False) -> None:
    item = known.entries[name]
    try:
        path, fields = _dataset(name, item)
    except InputError as error:
        draft.leave_out(name, error, unseen=unseen)
        return
    count = [value for value in (item.get("num_samples"), known.limit) if isinstance(value, int)]
    fields |= {"max_examples": min(count)} if count else {}
    if not item.get("hf_hub_url"):
        path = str(known.folder.resolve() / path)
    remark = f"from {item.get('formatting', 'alpaca')} in {_INFO}"
    foreign.add(draft, Dataset(name, path, fields=fields, unseen=unseen, remark=remark))
    if left := [key for key in ("folder", "revision", "weight") if item.get(key)]:
        foreign.miss(f"{name}: {', '.join(left)}")


def _dataset(name: str, item: Any) -> tuple[str, dict[str, Any]]:
    """Path and fields of an entry.

    Raises:
        InputError: merit cannot read it.
    """
    if not isinstance(item, Mapping):
        raise InputError("must be a mapping", file=_INFO, field=name)
    columns, tags = item.get("columns"), item.get("tags") or {}
    for key in ("columns", "tags"):
        if not isinstance(item.get(key) or {}, Mapping):
            raise InputError("must be a mapping", file=_INFO, field=f"{name}.{key}")
    for key in ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"):
        if item.get(key) and not item.get("hf_hub_url"):
            raise InputError(
                "only files and datasets of the Hugging Face Hub are read", file=_INFO, field=f"{name}.{key}"
            )
    bad = next((key for key in _BAD if columns and columns.get(key)), None)
    if item.get("ranking") or bad:
        field = f"{name}.ranking" if item.get("ranking") else f"{name}.columns.{bad}"
        raise InputError(
            "merit learns answers to text and images, not preferences, videos or sound", file=_INFO, field=field
        )
    fields: dict[str, Any] = {"format": "alpaca"} if item.get("formatting", "alpaca") == "alpaca" else {}
    if fields:
        named = {ours: columns[key] for key, ours in _ALPACA.items() if columns and columns.get(key)}
        if columns and not {"input", "history"} & {*named}:
            fields["format"] = "prompt_completion"
    else:
        column = (columns or {}).get("messages") or "conversations"
        fields["format"] = "messages" if column == "messages" else "sharegpt"
        named = {} if column in ("messages", "conversations") else {"messages": column}
        if (tags.get("role_tag", "from"), tags.get("content_tag", "value")) not in (
            ("from", "value"),
            ("role", "content"),
        ):
            raise InputError("a turn has `role` and `content`, or `from` and `value`", file=_INFO, field=f"{name}.tags")
    named |= {ours: columns[key] for key, ours in _OF_ALL.items() if columns and columns.get(key)}
    fields |= {"columns": named} if named else {}
    fields |= {key: item[key] for key in ("subset", "split") if item.get(key)}
    return str(item.get("hf_hub_url") or item.get("file_name")), fields


IMPORTER = Importer(label="LLaMA-Factory", recognises=_recognises, read=_read)
