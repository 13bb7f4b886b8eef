"""What every section of the configuration has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Location = tuple[str | int, ...]
REFUSED = "refused"  # type of the errors of checks across fields

# Old name → new name of keys that were renamed in 0.1.0. The next version refuses the old names.
RENAMED: dict[Location, Location] = {("launch", "losses"): ("launch", "preemption_retries")}

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys forbidden, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def refused(problems: Sequence[tuple[Location, str]]) -> PydanticCustomError:
    """The error of a check across fields: what is wrong where. A validator of a section must raise pydantic's own."""
    text = "; ".join(f"`{'.'.join(map(str, at))}`: {message}" for at, message in problems)
    return PydanticCustomError(REFUSED, "{text}", {"text": text, "problems": list(problems)})


def rename_keys(value: dict[str, Any]) -> list[tuple[Location, Location]]:
    """Gives the keys of a configuration, in place, their present names.

    Returns:
        The old and the new place of each key that was renamed. A key whose new name is there as well keeps its old
        one, which is then unknown.
    """
    done = []
    for old, new in RENAMED.items():
        source, target = _parent(value, old), _parent(value, new)
        if source is not None and target is not None and old[-1] in source and new[-1] not in target:
            target[str(new[-1])] = source.pop(str(old[-1]))
            done.append((old, new))
    return done


def _parent(value: Any, at: Location) -> dict[str, Any] | None:
    for part in at[:-1]:
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else None
