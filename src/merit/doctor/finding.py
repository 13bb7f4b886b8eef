"""What one check found, held against its tolerances."""

from __future__ import annotations

import math
from typing import Literal

from merit.base.record import Record

Status = Literal["ok", "warn", "fail", "skipped"]


class Finding(Record):
    """One comparison. `figure` is None where the check could not be made, or was not finite."""

    check: str
    measured: str  # what the figure is, with its unit
    figure: float | None
    ok: float  # up to here all is well
    fail: float  # beyond here the results cannot be trusted
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


class Check(Record):
    """A check before it is made: its name, its tolerances, and what to say.

    `warn` and `fail` share a sentence: they differ in degree.
    """

    check: str
    measured: str
    ok: float
    fail: float
    fine: str
    otherwise: str

    def judge(self, figure: float) -> Finding:
        """The finding for `figure`; one that is not finite has failed."""
        if not math.isfinite(figure):
            return self._finding(None, "fail", self.otherwise)
        status: Status = "ok" if figure <= self.ok else "warn" if figure <= self.fail else "fail"
        return self._finding(figure, status, self.fine if status == "ok" else self.otherwise)

    def skip(self, why: str) -> Finding:
        """It does not apply here."""
        return self._finding(None, "skipped", why)

    def broken(self, why: str) -> Finding:
        """It could not be made, which is as bad as a failure."""
        return self._finding(None, "fail", why)

    def _finding(self, figure: float | None, status: Status, advice: str) -> Finding:
        return Finding(
            check=self.check,
            measured=self.measured,
            figure=figure,
            ok=self.ok,
            fail=self.fail,
            status=status,
            advice=advice,
        )
