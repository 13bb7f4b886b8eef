"""Section `diagnose`: what is looked at in θ0, branches and merge after training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, create_model, model_serializer

from merit.base import extensions
from merit.base.errors import InputError
from merit.config.sections import Section


def _check_settings() -> type[Section]:
    """The section `diagnose.settings`: a section for each check that has settings of its own.

    Raises:
        InputError: a check's file cannot be imported, or its settings are no section of defaults.
    """
    fields: dict[str, Any] = {}
    for name, file in extensions.files("checks").items():
        # A built-in check that does not name settings has none. To import all of them takes 60 ms of every command.
        if name not in extensions.foreign("checks") and "settings=" not in file.read_text(encoding="utf-8"):
            continue
        model = getattr(extensions.load("checks", name), "settings", None)
        if model is None:
            continue
        if not (isinstance(model, type) and issubclass(model, Section)):
            raise InputError("the settings of a check are a merit.config.sections.Section", file=file)
        try:
            model()
        except ValidationError:
            raise InputError("each setting of a check needs a default that is valid", file=file) from None
        fields[name] = (model, Field(default_factory=model, description=extensions.summary("checks", name) or name))
    return create_model("CheckSettings", __base__=Section, __doc__="Settings of single checks.", **fields)


if TYPE_CHECKING:
    CheckName = str
    CheckSettings = Section
else:
    CheckName = Literal[extensions.names("checks")]
    CheckSettings = _check_settings()

Sigma = Annotated[float, Field(ge=0, le=1)]


class DiagnoseConfig(Section):
    """Checks of the basin and the theory: `merit run` runs those listed, `merit diagnose` all if none is."""

    checks: list[CheckName] = Field(default_factory=list, description="Checks that `merit run` runs after `evaluate`.")
    examples: int = Field(default=16, ge=2, description="Held-out examples per dataset, and as many training examples.")
    points: int = Field(default=21, ge=3, le=101, description="Points on each line between two models, ends included.")
    noise: list[Sigma] = Field(
        default_factory=lambda: [0.0, 0.01, 0.05, 0.1],
        min_length=2,
        description="Levels σ of filter-normalised weight noise; 0 is always added.",
    )
    noise_seeds: int = Field(default=3, ge=1, le=100, description="Random draws at each noise level.")
    matrix: Literal["hessian", "gauss_newton"] = Field(
        default="hessian",
        description="Matrix of the eigenpairs: the Hessian, or its Gauss–Newton part (the Fisher matrix), which has no "
        "negative eigenvalues.",
    )
    eigenpairs: int = Field(default=10, ge=1, le=100, description="Hessian eigenpairs at θ0.")
    lanczos_steps: int = Field(
        default=30,
        ge=2,
        le=1000,
        description="At most this many Hessian-vector products; each takes 4 bytes per parameter on disk.",
    )
    probes: int = Field(default=8, ge=2, le=1000, description="Random probes of the Hessian's trace.")
    hessian_tokens: int = Field(default=4096, ge=1, description="Training tokens that the Hessian is computed on.")
    hessian_batch_tokens: int = Field(default=1024, ge=1, description="Tokens per pass for the Hessian.")
    grid: int = Field(default=9, ge=3, le=51, description="Points per side of the loss landscape.")
    settings: CheckSettings = Field(
        default_factory=CheckSettings, description="Settings of the checks that have their own, by the check's name."
    )

    @model_serializer(mode="wrap")
    def _without_idle_settings(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A check that is installed, and neither listed nor set, changes no file and no fingerprint."""
        found: dict[str, Any] = write(self)
        kept = {
            name: value
            for name, value in found.pop("settings", {}).items()
            if name in self.checks or name in self.settings.model_fields_set
        }
        return {**found, "settings": kept} if kept else found
