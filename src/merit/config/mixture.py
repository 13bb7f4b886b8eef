"""Section `mixture`: the datasets, by name."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from merit.config.section import Section

FormatName = Literal["messages", "prompt_completion", "alpaca", "sharegpt", "qa"]


class DatasetConfig(Section):
    """One dataset: a source, a weight or cap, a prompt format."""

    path: str = Field(
        min_length=1,
        description="A .jsonl, .json, .parquet or .csv file (relative to this configuration), a Hub dataset id, "
        "`reasoning_gym:NAME`, or `visual:NAME` (generated pictures).",
    )
    split: str = Field(default="train", description="Split of a Hub dataset.")
    subset: str | None = Field(default=None, description="Configuration name of a Hub dataset.")
    format: FormatName | None = Field(default=None, description="Record format; detected from the first rows if unset.")
    columns: dict[Literal["prompt", "completion", "system", "messages", "reference", "images"], str] = Field(
        default_factory=dict, description="Canonical field → column of the source, e.g. {prompt: question}."
    )
    system: str | None = Field(default=None, description="A system message put before every example without one.")
    max_examples: int | None = Field(
        default=None, ge=1, description="Use at most this many rows, chosen by content hash (not the first ones)."
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Share of the training examples used per epoch: 0.5 uses half, 2 uses each twice.",
    )
    image_folder: str | None = Field(
        default=None,
        description="What relative image paths start from, and none leaves. Default: the data file's own folder.",
    )
    image_urls: bool = Field(default=False, description="Fetch images from the web. Off unless you say so.")
    bad_images: Literal["skip", "refuse"] = Field(
        default="skip", description="An example with an image that cannot be used is left out and named, or refused."
    )
    max_pixels: int = Field(default=100_000_000, ge=1, description="An image with more pixels is bad.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of a reasoning_gym generator; `seed` among them."
    )
