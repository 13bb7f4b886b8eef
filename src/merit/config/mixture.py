"""Section `mixture`: the datasets, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from merit.base import extensions
from merit.config.section import Section

if TYPE_CHECKING:
    FormatName = str
    FieldName = str
else:
    FormatName = Literal[extensions.names("formats")]
    _KNOWN = ("prompt", "completion", "system", "messages", "reference", "images")
    _OTHERS = [extensions.stated("formats", name, "columns") for name in extensions.foreign("formats")]
    FieldName = Literal[tuple(dict.fromkeys(field for fields in (_KNOWN, *_OTHERS) for field in fields))]


class DatasetConfig(Section):
    """One dataset: a source, a weight or cap, a prompt format."""

    path: str = Field(
        min_length=1,
        description="A .jsonl, .json, .parquet or .csv file (relative to this configuration), a Hub dataset id, "
        "`reasoning_gym:NAME`, or `visual:NAME` (generated pictures).",
    )
    split: str = Field(default="train", description="Split of a Hub dataset.")
    subset: str | None = Field(default=None, description="Configuration name of a Hub dataset.")
    format: FormatName | None = Field(
        default=None, description="Format of the rows. Default: detected from the first rows."
    )
    columns: dict[FieldName, str] = Field(
        default_factory=dict, description="merit's field → the source's column, e.g. {prompt: question}."
    )
    system: str | None = Field(default=None, description="System message for examples that have none.")
    max_examples: int | None = Field(
        default=None, ge=1, description="Use at most this many rows, chosen by content hash."
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Share of the training examples used per epoch: 0.5 uses half, 2 uses each twice.",
    )
    image_folder: str | None = Field(
        default=None,
        description="Folder that relative image paths start from and must not leave. Default: the data file's own.",
    )
    image_urls: bool = Field(default=False, description="Fetch images from the web.")
    bad_images: Literal["skip", "refuse"] = Field(
        default="skip", description="Skip and list an example whose image is unusable, or refuse the dataset."
    )
    max_pixels: int = Field(default=100_000_000, ge=1, description="Most pixels in an image.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of a reasoning_gym generator, including `seed`."
    )
