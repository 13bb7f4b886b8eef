"""Section `model`: θ0, the shared init."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from merit.config.section import Section

Role = Literal["vision", "projector", "language"]


class ModelConfig(Section):
    """Where θ0 comes from. In YAML a plain string is short for `path`."""

    path: str = Field(min_length=1, description="Hub id, folder, .gguf file, or `embedded:smollm2-135m`.")
    revision: str | None = Field(default=None, description="Hub revision: a branch, tag or commit.")
    trust_remote_code: bool = Field(default=False, description="Run Python code from the model's repository.")
    freeze: list[Role] | None = Field(
        default=None,
        description="Parts of a vision-language model to freeze, from [vision, projector, language]: merit measures no "
        "gradient there, and the merge keeps their bits. Default, as published: [vision].",
    )
    chat_template: str | None = Field(
        default=None, description="A Jinja file that replaces the tokenizer's chat template."
    )
