"""What drift is measured on."""

from __future__ import annotations

from merit.run.record import Sealed


class DriftSet(Sealed):
    """θ0's own greedy answers. A model's loss on them is its drift: θ0's own is the lowest there can be, nearly."""

    fingerprint: str
    prompts: list[str]
    answers: list[str]
    input_ids: list[list[int]]
    labels: list[list[int]]
