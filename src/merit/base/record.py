"""Records: the JSON files of a run directory, their seals and fingerprints."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from merit.base.errors import InputError
from merit.base.files import read_json, write_json


class Record(BaseModel):
    """A frozen model that is stored in one JSON file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def save(self, path: Path) -> None:
        """Writes the record atomically."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the record.

        Raises:
            InputError: the file is missing, not JSON or another kind of record; names it and the first wrong field.
        """
        try:
            return cls.model_validate(read_json(path, parse_int=whole))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"])) or None
            raise InputError(f"damaged or from another version: {first['msg']}", file=path, field=field) from None


def whole(digits: str) -> int:
    """An integer in a run's file. No count of merit's needs more than 64 bits, and a larger one breaks arithmetic.

    Raises:
        ValueError: it has more than 64 bits.
    """
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"{digits[:20]}… is a number of more than 64 bits")
    return int(digits)


class Sealed(Record):
    """A record that detects damage to its own file. A finished stage has checksums of its files; this is for what a
    rerun keeps of an interrupted stage."""

    seal: str = ""  # in the file: the fingerprint of everything else

    def save(self, path: Path) -> None:
        """Writes the record atomically, sealed."""
        Record.save(self.model_copy(update={"seal": self._fingerprint()}), path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads the record.

        Raises:
            InputError: as `Record.load`; or the seal does not match.
        """
        found = super().load(path)
        if found.seal != found._fingerprint():
            raise InputError("damaged: its content is not what was written", file=path, field="seal")
        return found.model_copy(update={"seal": ""})

    def _fingerprint(self) -> str:
        return fingerprint(self.model_copy(update={"seal": ""}))


def fingerprint(*parts: Any) -> str:
    """16 hex digits of SHA-256 over the canonical JSON of `parts`: JSON values and pydantic models, nested at will.

    Raises:
        TypeError: a part is neither.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no fingerprint")
