"""Go or no-go: what a pilot's figures say about a run that is not paid for yet."""

from __future__ import annotations

from collections.abc import Sequence

from merit.base.record import Record
from merit.config.sections import GateConfig
from merit.diagnose.records import Segment


class GateResult(Record):
    """`gate.json`. Losses are means over held-out examples, in nats a supervised token.

    `displacement` is ‖θ̄ − θ0‖, `branch_displacement` ‖θ_k − θ0‖, after the pilot's share of the data.
    """

    fingerprint: str
    share: float
    tokens: list[int]  # supervised, a pilot each
    base_loss: float
    branch_losses: list[float]
    merged_loss: float
    barriers: list[Segment]  # between every two pilots
    displacement: float
    branch_displacement: list[float]
    ready: bool
    advice: list[str]  # what to change; what is remarkable, where it is ready

    @property
    def worst(self) -> Segment:
        """The segment with the highest barrier."""
        return max(self.barriers, key=lambda segment: segment.barrier)


def judge(
    config: GateConfig,
    *,
    base_loss: float,
    branch_losses: Sequence[float],
    weights: Sequence[float],
    merged_loss: float,
    barriers: Sequence[Segment],
) -> tuple[bool, list[str]]:
    """Whether the branches may be trained, and what to change where they may not.

    A barrier counts when its whole interval lies above the limit: a maximum over few examples is biased upward.
    """
    advice: list[str] = []
    limit = config.max_barrier * base_loss
    high = [segment for segment in barriers if segment.peak.low > limit]
    mean = sum(w * loss for w, loss in zip(weights, branch_losses, strict=True)) / sum(weights)
    if high:
        worst = max(high, key=lambda segment: segment.barrier)
        advice.append(
            f"a barrier of {worst.barrier:.3f} nats lies between {worst.a} and {worst.b} (at most {limit:.3f} passes): "
            "lower `train.learning_rate`, use fewer groups (`split.axes`), or prepare θ0 longer"
        )
    if merged_loss > base_loss:
        if mean > base_loss:
            advice.append(
                f"the pilots themselves are worse than θ0 on held-out examples ({mean:.3f} against {base_loss:.3f}): "
                "lower `train.learning_rate`"
            )
        else:
            advice.append(
                f"the merge is worse than θ0 ({merged_loss:.3f} against {base_loss:.3f}) though its parts are not: "
                "use fewer groups, or prepare θ0 longer"
            )
    ready = not advice
    if ready and merged_loss > mean:
        advice.append(
            f"averaging costs {merged_loss - mean:.3f} nats against the parts' mean: watch it with `merit diagnose`"
        )
    return ready, advice
