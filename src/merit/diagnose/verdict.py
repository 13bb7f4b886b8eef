"""Merge-ready or not, and why, in words that a user can act on."""

from __future__ import annotations

from collections.abc import Mapping

from merit.base.record import Record
from merit.diagnose.checks.displacement import DisplacementResult
from merit.diagnose.checks.gain import GainResult
from merit.diagnose.checks.lmc import LmcResult, barriers
from merit.diagnose.records import CheckResult, Segment, with_interval

FAR = 0.5  # ‖δ‖ ÷ ‖θ0‖ beyond which a branch is hardly a tuned θ0


class Verdict(Record):
    """The conclusion of a diagnosis. `ready` is None if neither `lmc` nor `gain` was measured."""

    ready: bool | None
    headline: str
    reasons: list[str]


def verdict(results: Mapping[str, CheckResult]) -> Verdict:
    """What `lmc`, `gain` and `displacement` say together; the other checks do not decide."""
    against, in_favour, advice = [], [], []
    lmc, gain, moved = results.get("lmc"), results.get("gain"), results.get("displacement")
    if isinstance(lmc, LmcResult):
        bad = barriers(lmc.held_out)
        against += [_hill(segment) for segment in bad]
        if bad:
            advice.append(
                "Lower the learning rate or train for fewer steps; if the hill stays, θ0 is not merge-ready: "
                "tune it on the whole mixture for a short while first."
            )
        else:
            in_favour.append(f"No barrier on {len(lmc.held_out)} segments.")
    if isinstance(gain, GainResult):
        found = gain.held_out
        if found.gain.high < 0:
            against.append(
                f"The merge is worse than its branches are on average (gain {with_interval(found.gain)}): the average "
                "has left their basin."
            )
        elif found.gain.low > 0:
            in_favour.append(
                f"The merge is better than its branches are on average (gain {with_interval(found.gain)})."
            )
        else:
            in_favour.append(
                f"Whether the merge gains cannot be told from these examples ({with_interval(found.gain)})."
            )
        if found.merge_minus_base.low > 0:
            against.append(
                f"The merge has a higher held-out loss than θ0 itself ({with_interval(found.merge_minus_base)}): "
                "averaging, or a learning rate too high, has undone the training."
            )
    if isinstance(moved, DisplacementResult):
        far = [item.model for item in moved.models if item.total > FAR * moved.base_norm]
        if far:
            against.append(
                f"{', '.join(far)}: ‖θ − θ0‖ is more than half of ‖θ0‖. Were they tuned from this θ0, at a sane "
                "learning rate?"
            )
    if not (isinstance(lmc, LmcResult) or isinstance(gain, GainResult)):
        return Verdict(ready=None, headline="No verdict: it needs the check lmc or gain.", reasons=against)
    if against:
        return Verdict(ready=False, headline="Not merge-ready.", reasons=[*against, *advice])
    return Verdict(ready=True, headline="Merge-ready: the branches share one basin with θ0.", reasons=in_favour)


def _hill(segment: Segment) -> str:
    return (
        f"A barrier of {with_interval(segment.peak)} nats between {segment.a} and {segment.b}, highest at "
        f"t = {segment.at:.2f}."
    )
