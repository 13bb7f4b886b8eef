"""TRL: the YAML of its `sft` script, with `dataset_name` or a list of `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merit.base.errors import InputError
from merit.data.draft import Dataset, Draft
from merit.data.folder import datasets_of, evaluated_of
from merit.data.importer import Foreign, Importer, entries, words

_TRAIN = {
    "epochs": "num_train_epochs",
    "learning_rate": "learning_rate",
    "max_length": "max_length",
    "schedule": "lr_scheduler_type",
    "warmup_ratio": "warmup_ratio",
    "weight_decay": "weight_decay",
}
_DROPOUT = 0.05  # TRL's, where it is not said
_CARRIED = {"path", "name", "data_dir", "data_files", "split"}


def _recognises(values: Mapping[str, Any]) -> bool:
    return "model_name_or_path" in values and ("dataset_name" in values or "datasets" in values)


def _read(foreign: Foreign, draft: Draft) -> None:
    foreign.set_model(draft, "model_name_or_path", "model_revision")
    name, subset = foreign.take("dataset_name"), foreign.take("dataset_config")
    train, test = foreign.take("dataset_train_split"), foreign.take("dataset_test_split")
    listed = list(entries(foreign.take("datasets")))
    for index, item in listed:
        _add(foreign, draft, item, index)
    if name and not listed:
        fields = {key: value for key, value in (("subset", subset), ("split", train)) if value}
        foreign.add(draft, Dataset(Path(str(name)).stem, str(name), fields=fields), "dataset_name")
        found = foreign.find(str(name))
        if test and (found is None or (found.is_dir() and evaluated_of(datasets_of(found)))):
            unseen = {**fields, "split": test}
            foreign.add(draft, Dataset(f"{Path(str(name)).stem}-{test}", str(name), fields=unseen, unseen=True))
    elif name:
        foreign.miss("dataset_name: TRL itself ignores it beside `datasets`")
    if (template := foreign.take("chat_template_path")) is not None:
        file = foreign.find(str(template))
        if file is not None and file.is_file() and file.suffix != ".json":
            draft.set("model.chat_template", str(file), "chat_template_path")
        else:
            foreign.miss(f"chat_template_path: {template}: name a Jinja file in `model.chat_template`")
    foreign.set_train(draft, _TRAIN)
    foreign.set_held_out(draft, "test_split_size")
    foreign.set_seed(draft)
    if foreign.take("use_peft"):
        _lora(foreign, draft)
    for key in ("completion_only_loss", "assistant_only_loss"):
        if foreign.values.get(key) is False:
            foreign.miss(f"{key}: false: merit learns the answers only")
        foreign.take(key)


def _lora(foreign: Foreign, draft: Draft) -> None:
    dropout, targets = foreign.take("lora_dropout"), foreign.take("lora_target_modules")
    if targets is None:
        foreign.miss("lora_target_modules: not set, so PEFT chooses some by the kind of model; here it is all-linear")
    values = {
        "r": foreign.take("lora_r"),
        "alpha": foreign.take("lora_alpha"),
        "dropout": _DROPOUT if dropout is None else dropout,
        "target_modules": targets[0] if isinstance(targets, list) and len(targets) == 1 else targets,  # as theirs does
    }
    foreign.set_lora(draft, values, "use_peft, lora_*")


def _add(foreign: Foreign, draft: Draft, item: Mapping[str, Any], index: int) -> None:
    path, files = str(item.get("path") or ""), item.get("data_files")
    fields = {ours: item[key] for ours, key in (("subset", "name"), ("split", "split")) if item.get(key)}
    if isinstance(files, Mapping):
        files = files.get(item.get("split") or "train")
    folder = _folder(foreign, path, item.get("data_dir"), index)
    try:
        names = foreign.data_files(folder, words(files), "datasets", index)
    except InputError as error:
        draft.leave_out(Path(path).stem, error)
        return
    for name in names or [folder]:
        foreign.add(draft, Dataset(Path(name).stem, name, fields=fields), "datasets", index, "path")
    if left := [key for key, value in item.items() if value and key not in _CARRIED]:
        foreign.miss(f"datasets[{index}]: {', '.join(left)}")


def _folder(foreign: Foreign, path: str, below: Any, index: int) -> str:
    """What is read of `path`: its folder `data_dir`, if that is here."""
    if not below:
        return path
    places = (f"{path}/{below}", *([] if "/" in path else [str(below)]))  # of `json` and its like, beside what is here
    found = next((place for place in places if foreign.find(place) is not None), None)
    if found is None:
        foreign.miss(f"datasets[{index}]: data_dir: {below}: it is not here, and {path} is read as a whole")
    return found or path


IMPORTER = Importer(label="TRL", recognises=_recognises, read=_read)
