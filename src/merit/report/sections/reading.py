"""For a reader who has never seen a diagnosis: each check's question, how to read its figure, what was published."""

from __future__ import annotations

from dataclasses import dataclass

from merit.diagnose.records import (
    CalibrationResult,
    Check,
    CurvatureResult,
    DisplacementResult,
    GainResult,
    LandscapeResult,
    LmcResult,
    PerturbationResult,
)
from merit.diagnose.words import PUBLISHED_COSINES

UNPUBLISHED = "no figure of this kind"


@dataclass(frozen=True)
class Reading:
    """What stands around a check's figure.

    Attributes:
        question: what the check answers, as a heading.
        read: how to read the figure, one sentence.
        published: what the paper reports, as the end of "Published: …".
    """

    question: str
    read: str
    published: str


READINGS: dict[type[Check], Reading] = {
    LmcResult: Reading(
        "Is there a hill between the models?",
        "Each line walks straight from one model's weights to another's; where it stays at or below zero the way is "
        "flat and averaging is safe, and where it bulges above zero there is a barrier that a merge would land on.",
        "10 of 10 barriers are 0.0",
    ),
    DisplacementResult: Reading(
        "How far did each model move?",
        "Each line is one model's distance from θ0, part by part; the merge lies below its branches because what they "
        "disagree about cancels in the average.",
        "the merge stays 2.4–2.9 times closer to θ0 than joint training",
    ),
    GainResult: Reading(
        "Is the merge better than its parts?",
        "Further left is better; a merge left of its branches has gained from averaging, and a short way from a "
        "model's training mark to its held-out mark means little overfitting.",
        "the merge has a higher training loss than joint training, and the better held-out score",
    ),
    PerturbationResult: Reading(
        "How flat is the ground around each model?",
        "All weights are shaken at random, further to the right more strongly; the line that rises less belongs to the "
        "model in the flatter valley.",
        "the merge stays flat up to σ = 0.1, joint training climbs",
    ),
    CurvatureResult: Reading(
        "Do the conflict axes lie where the loss bends?",
        "Each mark is a direction, and the further right it is the more it lies along the sharpest bends of the loss "
        "at θ0; conflict axes to the right of single gradients mean that the split keeps apart what bends most.",
        "0.133 for conflict axes, 0.091 ± 0.023 for a dataset's gradient (z = 1.8), 5.6e-5 for a random direction",
    ),
    CalibrationResult: Reading(
        "Were enough calibration examples used?",
        "Where the solid line has flattened near 1, more examples would hardly turn a gradient; where the dashed line "
        "reaches 1, they would not change the groups.",
        f"cosine {PUBLISHED_COSINES[200]} ± 0.106 between 200 and 1,000 examples",
    ),
    LandscapeResult: Reading(
        "What does the valley look like from above?",
        "Blue is low loss and orange is high, as on a map; models inside one blue region, with no orange between "
        "them, share a basin.",
        UNPUBLISHED,
    ),
}
WAYS = Reading(
    "Which way did they go?",
    "Every path begins at θ0, and each mark is a moment of the training; branches that fan out learn different "
    "things, and the merge ends between them.",
    "joint training is 2.4–2.9 times as far from θ0 as the merge, over 1–3 epochs",
)
