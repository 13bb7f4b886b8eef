"""What every section of the configuration has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Location = tuple[str | int, ...]
REFUSED = "refused"  # type of the errors of checks across fields

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys forbidden, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def refused(problems: Sequence[tuple[Location, str]]) -> PydanticCustomError:
    """The error of a check across fields: what is wrong where. A validator of a section must raise pydantic's own."""
    text = "; ".join(f"`{'.'.join(map(str, at))}`: {message}" for at, message in problems)
    return PydanticCustomError(REFUSED, "{text}", {"text": text, "problems": list(problems)})
