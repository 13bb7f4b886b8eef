"""Section `split`: how the mixture is cut into groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from merit.base import extensions
from merit.config.section import Section

if TYPE_CHECKING:
    SplitterName = str
else:
    SplitterName = Literal[extensions.names("splitters")]

UNSPLIT: SplitterName = "single"  # what is left where no axis is worth a cut: joint training
MAX_AXES = 10


def _axes(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_AXES):
        return value
    raise ValueError(f"use a whole number from 1 to {MAX_AXES}, or `auto`, not {value!r:.60}")


AxesCount = Annotated[int | Literal["auto"], BeforeValidator(_axes)]


class SplitConfig(Section):
    """The splitter and its size: K = 2^axes groups."""

    splitter: SplitterName = Field(default="pca", description=extensions.summaries("splitters"))
    axes: AxesCount = Field(
        default=2,
        description="r conflict axes make K = 2^r groups (`single` has one group). `auto`: as many axes as capture "
        "more conflict than a random cut on fresh examples; with none, one group.",
    )
    centre: bool = Field(default=True, description="Centre the similarity matrix before taking eigenvectors.")
    keep: bool = Field(
        default=False,
        description="Keep the groups in `split/kept/`, and place new datasets on their axes (`merit add` sets it).",
    )
    file: str | None = Field(default=None, description="JSON or YAML {group: [dataset, …]} for `manual`.")
