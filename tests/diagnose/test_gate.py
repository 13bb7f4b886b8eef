"""Go or no-go: what each pattern of figures is answered with."""

from __future__ import annotations

import pytest

from merit.config.sections import GateConfig
from merit.diagnose.records import Estimate, Segment
from merit.gate.step import GateResult, judge


def segment(barrier: float, low: float) -> Segment:
    peak = Estimate(value=barrier, low=low, high=barrier + 0.1)
    return Segment(a="pilot 0", b="pilot 1", t=[0, 0.5, 1], loss=[1, 1, 1], chord=[1, 1, 1], peak=peak, at=0.5)


@pytest.mark.parametrize(
    ("branches", "merged", "barrier", "ready", "advice"),
    [
        ([1.8, 1.9], 1.7, segment(-0.2, -0.3), True, None),
        ([1.8, 1.9], 1.7, segment(0.3, 0.2), False, "barrier of 0.300"),
        ([1.8, 1.9], 1.7, segment(0.3, 0.0), True, None),  # an interval that reaches below the limit is no barrier
        ([2.3, 2.4], 2.2, segment(0, 0), False, "lower `train.learning_rate`"),
        ([1.8, 1.9], 2.2, segment(0, 0), False, "fewer groups"),
        ([1.6, 1.7], 1.8, segment(0, 0), True, "averaging costs 0.133"),
    ],
)
def test_the_answer(branches, merged, barrier, ready, advice):
    result = GateResult(
        fingerprint="",
        share=0.1,
        tokens=[1, 2],
        base_loss=2.0,
        branch_losses=branches,
        merged_loss=merged,
        barriers=[barrier],
        displacement=0,
        branch_displacement=[0, 0],
        ready=False,
        advice=[],
    )
    found, lines = judge(result, GateConfig().max_barrier)
    assert found == ready
    assert bool(lines) == (advice is not None)
    assert advice is None or advice in lines[0]
