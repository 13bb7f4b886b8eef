"""The checks, their tolerances, and what each finds.

The same sums in another order differ by rounding: 1e-6 to 1e-5 in fp32, and every `ok` for fp32 leaves room for that.
A real fault (packed examples that see each other, positions that count padding) moves a loss by tenths. bf16 keeps 8
bits, so its tolerances are those of a figure that is read to two digits.
"""

from __future__ import annotations

import math
from typing import Literal

from merit.base.record import Record

Status = Literal["ok", "warn", "fail", "skipped"]


class Measured(Record):
    """What a check compares, and its tolerances."""

    check: str
    measured: str  # what the figure is, with its unit
    ok: float  # up to here all is well
    fail: float  # beyond here the results cannot be trusted


class Finding(Measured):
    """One comparison. `figure` is None where the check could not be made, or was not finite."""

    figure: float | None
    status: Status
    advice: str  # what it means, or what to do


class Diagnosis(Record):
    """A model's self-check on one machine."""

    model: str
    device: str
    parameters: int
    scope: str  # of the sketch checks: a regular expression on parameter names; empty: all of them
    findings: list[Finding]

    @property
    def failed(self) -> bool:
        """Whether anything cannot be trusted."""
        return any(finding.status == "fail" for finding in self.findings)


class Check(Measured):
    """A check before it is made, and what to say of it.

    `warn` and `fail` share a sentence: they differ in degree.
    """

    fine: str
    otherwise: str

    def judge(self, figure: float) -> Finding:
        """The finding for `figure`; one that is not finite has failed."""
        if not math.isfinite(figure):
            return self._finding(None, "fail", self.otherwise)
        status: Status = "ok" if figure <= self.ok else "warn" if figure <= self.fail else "fail"
        return self._finding(figure, status, self.fine if status == "ok" else self.otherwise)

    def without_padding(self) -> Check:
        """This check of a model whose results padding changes."""
        fine = "padding changes this model's results: merit batches examples of one length, and trains one at a time"
        return self.model_copy(update={"fine": fine})

    def skip(self, why: str) -> Finding:
        """The finding of a check that does not apply here."""
        return self._finding(None, "skipped", why)

    def broken(self, why: str) -> Finding:
        """The finding of a check that could not be made: as bad as a failure."""
        return self._finding(None, "fail", why)

    def _finding(self, figure: float | None, status: Status, advice: str) -> Finding:
        own = self.model_dump(exclude={"fine", "otherwise"})
        return Finding(**own, figure=figure, status=status, advice=advice)


_LOSS = "largest difference of an example's loss, nats a token"
_COSINE = "largest error of a cosine between datasets"


def _of_gradients(check: str, *, fine: str, otherwise: str) -> Check:
    measured = "largest relative difference of a mean gradient's sketch"
    return Check(check=check, measured=measured, ok=1e-3, fail=5e-2, fine=fine, otherwise=otherwise)


BATCHED_LOSS = Check(
    check="loss: alone | batched, padded",
    measured=_LOSS,
    ok=1e-4,
    fail=1e-2,
    fine="padding changes no loss",
    otherwise="padding changes this model's results: train and evaluate with batches of one "
    "(`train.micro_batch_tokens: 1`, `evaluate.batch_tokens: 1`), and report the architecture",
)
BATCHED_GRADIENT = _of_gradients(
    "gradient: alone | batched, padded",
    fine="padding changes no gradient",
    otherwise="padding changes this model's results: measure conflict one example at a time "
    "(`calibration.batch_tokens: 1`), and report the architecture",
)
PACKED = _of_gradients(
    "gradient: padded | packed",
    fine="packed examples do not see each other",
    otherwise="packed examples see each other: update torch and transformers, measure no conflict until this is ok, "
    "and report it with `merit env`",
)
INTERCEPTED = _of_gradients(
    "gradient: in full | never formed",
    fine="the sketch made during the backward pass equals that of the full gradient",
    otherwise="a layer of this model does not compute what its class suggests: use `calibration.sketch: full`, and "
    "report the architecture with `merit env`",
)
FOLDED = Check(
    check="similarity: full | folded",
    measured=_COSINE,
    ok=0.06,
    fail=0.2,
    fine="the fold keeps the cosines of full gradients",
    otherwise="the fold blurs this model's cosines: lower `calibration.fold`, or keep gradients whole "
    "(`calibration.sketch: full`)",
)
LOW_LOSS = Check(
    check="loss: fp32 | bf16",
    measured=_LOSS,
    ok=0.05,
    fail=0.5,
    fine="bf16 gives the losses of fp32 to two digits",
    otherwise="bf16 is too coarse for this model: set `train.precision: fp32`",
)
LOW_SIMILARITY = Check(
    check="similarity: fp32 | bf16",
    measured=_COSINE,
    ok=0.05,
    fail=0.2,
    fine="bf16 finds the conflict that fp32 finds",
    otherwise="bf16 blurs this model's cosines: set `train.precision: fp32`",
)
