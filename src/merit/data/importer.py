"""An importer: how the configuration of another trainer becomes a draft. One is one file, which defines `IMPORTER`;
merit's own are in `merit.data.importers`, anyone's in `merit_ext/importers/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from merit.base import extensions
from merit.base.errors import InputError
from merit.config.sections import LoraSection, TrainConfig
from merit.config.yaml import MAX_BYTES, read_yaml
from merit.data.draft import Dataset, Draft
from merit.data.files import kind_of
from merit.data.folder import datasets_of, evaluated_of, found_file
from merit.data.hub import hub_id

_ABOVE = 3  # folders above a configuration that its paths may be relative to


@dataclass(frozen=True)
class Importer:
    """What a file of importers defines.

    Attributes:
        label: the trainer's name.
        recognises: whether a mapping is this trainer's configuration.
        read: fills the draft. Takes every value through `Foreign.take`: the others are told as not carried.
    """

    label: str
    recognises: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Foreign, Draft], None]


@dataclass
class Foreign:
    """The configuration of another trainer.

    Attributes:
        file: where it is.
        values: what it holds.
        lines: place → line.
        missed: what cannot be carried, one text each.
    """

    file: Path
    values: Mapping[str, Any]
    lines: Mapping[tuple[str | int, ...], int]
    missed: list[str] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)

    def take(self, key: str) -> Any:
        """The value of a field; None if there is none. It counts as carried."""
        self._taken.add(key)
        return self.values.get(key)

    def miss(self, text: str) -> None:
        """Says that something is not carried; `text` begins with the field."""
        self.missed.append(text)

    @property
    def left(self) -> list[str]:
        """The fields that nothing has taken, and that say something."""
        return [key for key, value in self.values.items() if key not in self._taken and value not in (None, False, "")]

    def error(self, message: str, *at: str | int) -> InputError:
        """The error of the field at this place."""
        name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).removeprefix(".")
        return InputError(message, file=self.file, line=self.lines.get(at), field=name or None)

    def find(self, text: str) -> Path | None:
        """A file or folder that the configuration names: relative to itself, to here, or to a folder above it, since
        trainers are started from the root of a project."""
        own = self.file.resolve().parent
        places = (own, Path.cwd(), *own.parents[:_ABOVE])
        found = (place / Path(text).expanduser() for place in places)
        try:
            return next((path for path in found if path.exists()), None)
        except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, the home of a user who is none
            return None

    def data_files(self, path: str, files: Sequence[str], *at: str | int) -> list[str]:
        """The paths of these files, which are in the folder `path`, or anywhere if `path` is a loader such as `json`.

        Raises:
            InputError: they are files of a dataset of the Hub.
        """
        found = self.find(path)
        if found is not None and found.is_dir():
            return [f"{path}/{file}" for file in files]
        if files and found is None and hub_id(path) == path:
            said = f"merit reads whole splits of {path} from the Hub: download these files, and name them here"
            raise self.error(said, *at, "data_files")
        return list(files)

    def add(self, draft: Draft, item: Dataset, *at: str | int) -> None:
        """Adds a dataset whose `path` is as the configuration has it: a file, a folder of files, or a Hub id. Of the
        splits in a folder those for evaluation are no training data, and the others are not evaluated."""
        found = self.find(item.path)
        if found is None:
            if hub_id(item.path) != item.path or kind_of(Path(item.path)) is not None:
                draft.leave_out(item.label, self.error(f"no such file: {item.path}", *at), unseen=item.unseen)
                return
            draft.add(replace(item, remark="; ".join(filter(None, [item.remark, "on the Hub, not looked at"]))))
            return
        fields = {key: value for key, value in item.fields.items() if key not in ("subset", "split")}
        try:
            files = datasets_of(found) if found.is_dir() else [found_file(found)]
        except InputError as error:
            draft.leave_out(item.label, error, unseen=item.unseen)
            return
        if not files:
            draft.leave_out(item.label, self.error(f"no data file in {item.path}", *at), unseen=item.unseen)
        if "[" in (split := str(item.fields.get("split", ""))):
            self.miss(f"{item.path}: split {split}: the whole of it is read; `max_examples` takes a part")
        if evaluated := evaluated_of(files):
            rest = [one.path for one in files if (one in evaluated) != item.unseen]
            files = [one for one in files if (one in evaluated) == item.unseen]
            if not item.unseen:
                self.miss(f"{item.path}: {', '.join(rest)}: a split to evaluate, not to train on")
        for one in files:
            there = one.dataset(found if found.is_dir() else found.parent)
            label = item.label if len(files) == 1 else f"{item.label}-{one.label}"
            draft.add(replace(there, label=label, fields=fields, remark=item.remark, unseen=item.unseen))

    def set_model(self, draft: Draft, path: str, revision: str) -> None:
        """Carries θ0 from the fields of these names."""
        value = self.take(path)
        if isinstance(value, str):
            found = self.find(value)
            draft.set("model.path", str(found) if found is not None and found.is_dir() else value, path)
        if isinstance(commit := self.take(revision), str):
            draft.set("model.revision", commit, revision)
        if self.take("trust_remote_code"):
            self.miss("trust_remote_code: merit runs a model's code only if you set `model.trust_remote_code`")

    def set_train(self, draft: Draft, names: Mapping[str, str]) -> None:
        """Carries settings: field of `train` → the trainer's. A value that `train` cannot have is missed."""
        for name, theirs in names.items():
            if (value := self.take(theirs)) is None:
                continue
            try:
                TrainConfig.model_validate({name: value})
            except ValidationError as error:
                self.miss(f"{theirs}: {error.errors()[0]['msg']}, not {str(value)[:40]}")
            else:
                draft.set(f"train.{name}", value, theirs)

    def set_lora(self, draft: Draft, values: Mapping[str, Any], source: str) -> None:
        """Carries an adapter; `values` are fields of `train.lora`, None where it is not said."""
        given = {name: value for name, value in values.items() if value is not None}
        try:
            LoraSection.model_validate(given)
        except ValidationError as error:
            self.miss(f"{source}: {'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}")
        else:
            draft.set("train.lora", given, source)

    def set_held_out(self, draft: Draft, theirs: str) -> None:
        """Carries the share of the rows to hold out; a number of rows is missed."""
        value = self.take(theirs)
        if isinstance(value, float) and 0 < value < 1:
            draft.set("held_out_fraction", value, theirs)
        elif value:
            self.miss(f"{theirs}: {value} rows: `held_out_fraction` is a share of each dataset")

    def set_seed(self, draft: Draft) -> None:
        """Carries the seed."""
        value = self.take("seed")
        if isinstance(value, int) and 0 <= value < 2**32:
            draft.set("seed", value, "seed")


def entries(value: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The mappings in a list, with their places; nothing for anything else."""
    for index, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, Mapping):
            yield index, item


def words(value: Any) -> list[str]:
    """A list of names, or one text with commas."""
    parts: Sequence[Any] = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else ()
    return [name for part in parts if (name := str(part).strip())]


def read_foreign(file: Path, draft: Draft) -> None:
    """Fills the draft from the configuration of another trainer.

    Raises:
        InputError: the file is not YAML or JSON; no importer knows it; it trains something that merit does not.
    """
    values, lines = read_yaml(file)
    known = {name: extensions.load("importers", name) for name in extensions.names("importers")}
    found: Importer | None = None
    if isinstance(values, dict):
        if "mixture" in values:
            raise InputError("this is a configuration of merit already: `merit check` reads it", file=file)
        found = next((item for item in known.values() if item.recognises(values)), None)
    if found is None:
        labels = ", ".join(item.label for item in known.values())
        raise InputError(f"neither a data file nor a configuration of {labels}", file=file)
    foreign = Foreign(file, values, lines)
    found.read(foreign, draft)
    if foreign.left:
        foreign.miss(f"without a counterpart here: {', '.join(foreign.left)}")
    missed = [f"not carried: {text}" for text in foreign.missed]
    draft.notes += [f"{file.name}: a configuration of {found.label}; a comment says where each value is from", *missed]
    draft.origin += [f"From {file.name}, a configuration of {found.label}.", *missed]


def knows(file: Path) -> bool:
    """Whether a JSON file is the configuration of another trainer, and no data."""
    try:
        values = json.loads(file.read_bytes()) if file.stat().st_size <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(values, dict):
        return False
    return any(extensions.load("importers", name).recognises(values) for name in extensions.names("importers"))
