"""What every JSON file of a run directory has in common."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from merit.base.errors import InputError
from merit.base.files import read_json, write_json


class Record(BaseModel):
    """A frozen noun that lives in one JSON file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def save(self, path: Path) -> None:
        """Writes the record atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the record.

        Raises:
            InputError: missing, not JSON, or not of this kind; names the file and the first wrong field.
        """
        try:
            return cls.model_validate(read_json(path, parse_int=whole))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"])) or None
            raise InputError(f"damaged or from another version: {first['msg']}", file=path, field=field) from None


def whole(digits: str) -> int:
    """A whole number of a run's file. No count of ours is larger, and what is larger breaks arithmetic everywhere.

    Raises:
        ValueError: it has more than 64 bits.
    """
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"{digits[:20]}… is a number of more than 64 bits")
    return int(digits)


class Sealed(Record):
    """A record that knows when its file is damaged. A finished stage has the checksums of its files; this is for what a
    rerun keeps of a stage that was interrupted."""

    seal: str = ""  # in the file: the fingerprint of all the rest

    def save(self, path: Path) -> None:
        """Writes the record atomically, sealed."""
        Record.save(self.model_copy(update={"seal": self._fingerprint()}), path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the record.

        Raises:
            InputError: as `Record.load`, or the seal does not fit.
        """
        found = super().load(path)
        if found.seal != found._fingerprint():
            raise InputError("damaged: what it says is not what was written", file=path, field="seal")
        return found.model_copy(update={"seal": ""})

    def _fingerprint(self) -> str:
        return fingerprint(self.model_copy(update={"seal": ""}))


def fingerprint(*parts: Any) -> str:
    """16 hex digits over the canonical JSON of `parts`: JSON values and pydantic models, nested as one likes.

    Raises:
        TypeError: a part is neither.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no fingerprint")
