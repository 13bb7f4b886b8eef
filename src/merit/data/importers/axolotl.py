"""Axolotl: a YAML with `base_model` and a list of `datasets`, each with its `type`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merit.base.errors import InputError
from merit.data.draft import Dataset, Draft
from merit.data.importer import Foreign, Importer, entries, words

# Type → how merit reads it; what stands after a `.` or `:` is a variant.
_TYPES: dict[str, dict[str, Any]] = {
    "alpaca": {"format": "alpaca"},
    "alpaca_chat": {"format": "alpaca"},
    "alpaca_w_system": {"format": "alpaca"},
    "alpaca_chat.load_qa": {"format": "qa"},
    "alpaca_w_system.load_open_orca": {"format": "qa", "columns": {"prompt": "question", "completion": "response"}},
    "sharegpt": {"format": "sharegpt"},
    "chat_template": {"format": "messages"},
}
_RAW = {"completion", "pretrain", "input_output"}
_TRAIN = {
    "epochs": "num_epochs",
    "learning_rate": "learning_rate",
    "max_length": "sequence_len",
    "schedule": "lr_scheduler",
    "warmup_ratio": "warmup_ratio",
    "weight_decay": "weight_decay",
}
_CARRIED = {"path", "type", "name", "split", "data_files", "field_messages", "field_tools"}
_CARRIED |= {"message_property_mappings", "message_field_role", "message_field_content"}
_IDLE = {"ds_type", "preprocess_shards", "trust_remote_code", "strict"}  # they change no row


def _recognises(values: Mapping[str, Any]) -> bool:
    return "base_model" in values and isinstance(values.get("datasets"), list)


def _read(foreign: Foreign, draft: Draft) -> None:
    if kind := foreign.take("rl"):
        raise foreign.error(f"{kind} learns from preferences; merit only tunes on answers", "rl")
    foreign.set_model(draft, "base_model", "revision_of_model")
    _template(foreign, draft)
    for key, unseen in (("datasets", False), ("test_datasets", True)):
        for index, item in entries(foreign.take(key)):
            _add(foreign, draft, item, (key, index), unseen=unseen)
    foreign.set_train(draft, _TRAIN)
    foreign.set_held_out(draft, "val_set_size")
    foreign.set_seed(draft)
    if (adapter := foreign.take("adapter")) is not None:
        linear, modules = foreign.take("lora_target_linear"), foreign.take("lora_target_modules")
        values = {
            "r": foreign.take("lora_r"),
            "alpha": foreign.take("lora_alpha"),
            "dropout": foreign.take("lora_dropout"),
        }
        if not linear and modules:
            values["target_modules"] = modules
        foreign.set_lora(draft, values, "adapter, lora_*")
        if adapter == "qlora":
            foreign.miss("adapter: qlora: merit trains the same adapter on weights that are not quantised")
    if foreign.take("train_on_inputs"):
        foreign.miss("train_on_inputs: merit learns the answers only")


def _template(foreign: Foreign, draft: Draft) -> None:
    name, jinja = foreign.take("chat_template"), foreign.take("chat_template_jinja")
    file = foreign.find(jinja) if isinstance(jinja, str) and "{" not in jinja else None
    if file is not None and file.is_file():
        draft.set("model.chat_template", str(file), "chat_template_jinja")
    elif jinja:
        foreign.miss("chat_template_jinja: write it into a file, and name that in `model.chat_template`")
    elif name and not str(name).startswith("tokenizer_default"):
        foreign.miss(f"chat_template: {name}: the tokenizer's own is used; another goes into `model.chat_template`")


def _add(foreign: Foreign, draft: Draft, item: Mapping[str, Any], at: tuple[str, int], *, unseen: bool) -> None:
    path, where = str(item.get("path") or ""), f"{at[0]}[{at[1]}]"
    label = Path(path).stem or where
    try:
        fields = _fields(foreign, item, at)
        names = foreign.data_files(path, words(item.get("data_files")), *at)
    except InputError as error:
        draft.leave_out(label, error, unseen=unseen)
        return
    for name in names or [path]:
        known = Dataset(Path(name).stem if names else label, name, fields=fields, unseen=unseen, remark=_remark(item))
        foreign.add(draft, known, *at, "path")
    if left := [key for key, value in item.items() if value and key not in _CARRIED | _IDLE]:
        foreign.miss(f"{where}: {', '.join(left)}")


def _remark(item: Mapping[str, Any]) -> str:
    kind = item.get("type")
    if isinstance(kind, Mapping):
        return "from a `type` of its own"
    return f"from type {kind}" if _of_type(kind) else f"type {kind} is not known here: by its columns"


def _of_type(kind: Any) -> dict[str, Any]:
    name = str(kind)
    return _TYPES.get(name) or _TYPES.get(name.replace(":", ".").partition(".")[0], {})


def _fields(foreign: Foreign, item: Mapping[str, Any], at: tuple[str, int]) -> dict[str, Any]:
    """The dataset's fields here.

    Raises:
        InputError: it is raw text, or its turns have other keys than merit reads.
    """
    kind = item.get("type")
    if str(kind).partition(":")[0] in _RAW:
        raise foreign.error(f"{kind} is text without an answer; merit learns answers", *at, "type")
    fields: dict[str, Any] = {}
    if isinstance(kind, Mapping):
        columns = {
            "prompt": kind.get("field_instruction") or "instruction",
            "completion": kind.get("field_output") or "output",
            "input": kind.get("field_input"),
            "system": kind.get("field_system"),
        }
        fields |= {"format": "alpaca", "columns": {name: column for name, column in columns.items() if column}}
        if kind.get("system_prompt"):
            fields["system"] = kind["system_prompt"]
        if texts := [name for name in ("format", "no_input_format", "system_format") if kind.get(name)]:
            foreign.miss(f"{at[0]}[{at[1]}].type: {', '.join(texts)}: the chat template frames the texts here")
    else:
        fields |= _of_type(kind)
        columns = {"messages": item.get("field_messages"), "tools": item.get("field_tools")}
        if named := {name: column for name, column in columns.items() if column}:
            fields["columns"] = {**fields.get("columns", {}), **named}
        _check_turns(foreign, item, at)
    fields |= {name: item[key] for name, key in (("subset", "name"), ("split", "split")) if item.get(key)}
    return fields


def _check_turns(foreign: Foreign, item: Mapping[str, Any], at: tuple[str, int]) -> None:
    mapped = item.get("message_property_mappings")
    mapped = mapped if isinstance(mapped, Mapping) else {}
    role = mapped.get("role") or item.get("message_field_role") or "role"
    content = mapped.get("content") or item.get("message_field_content") or "content"
    if (role, content) not in (("role", "content"), ("from", "value")):
        message = f"a turn has `role` and `content`, or `from` and `value`, not {role!s:.40} and {content!s:.40}"
        raise foreign.error(message, *at, "message_property_mappings")


IMPORTER = Importer(label="Axolotl", recognises=_recognises, read=_read)
