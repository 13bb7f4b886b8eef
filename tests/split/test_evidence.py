"""How many axes: planted conflict is found, noise is not."""

from __future__ import annotations

import numpy as np
import pytest

from merit.base.errors import InputError
from merit.conflict.axes import principal_axes
from merit.conflict.similarity import HalfGram, cosines, score_noise
from merit.split.evidence import AxesEvidence, AxisEvidence, _reason, captured, weigh_axes
from merit.split.splitters.pca import pca_partition

COUNT = 16
NAMES = tuple(f"d{i:02d}" for i in range(COUNT))
TOKENS = dict.fromkeys(NAMES, 10)


def halves_of(signal, noise, seed, width=500):
    """Half-sets of `signal` (T × few directions) plus a common direction and noise."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((COUNT, width))
    truth[:, 0] = 1.0
    truth[:, 1 : 1 + signal.shape[1]] = signal
    sums = truth[:, None, :] * 8 + noise * np.sqrt(8) * rng.standard_normal((COUNT, 2, width))
    products = np.einsum("ihd,jkd->ihjk", sums, sums)
    return HalfGram(NAMES, products, np.full((COUNT, 2), 8))


def planted(axes):
    index = np.arange(COUNT)
    return np.stack([0.6 / (k + 1) * (1 - 2 * ((index >> k) & 1)) for k in range(axes)], axis=1)


@pytest.mark.parametrize("centre", ["columns", "both"])
@pytest.mark.parametrize("axes", [1, 2])
def test_planted_axes_are_found(axes, centre):
    found = [weigh_axes(halves_of(planted(axes), 0.02, seed), TOKENS, centre=centre) for seed in range(2, 8)]
    assert all(item.recommended >= axes for item in found)
    right = [item for item in found if item.recommended == axes]
    assert len(right) >= 4  # chance passes for one more axis in five of a hundred
    assert f"K = {2**axes} captures" in right[0].reason
    assert "adds nothing" in right[0].reason
    assert right[0].axes[0].share > 0.5


def test_noise_is_not_split():
    wrong = sum(
        weigh_axes(halves_of(np.zeros((COUNT, 1)), 0.1, seed), TOKENS, centre="columns").recommended > 0
        for seed in range(20)
    )
    assert wrong <= 4  # one in twenty by design
    assert weigh_axes(halves_of(np.zeros((COUNT, 1)), 0.1, 0), TOKENS, centre="columns").reason.startswith(
        "do not split"
    )


def test_two_examples_are_needed():
    halves = halves_of(planted(1), 0.02, 0)
    halves.tokens[3, 1] = 0
    with pytest.raises(InputError, match="two calibration examples") as error:
        weigh_axes(halves, TOKENS, centre="columns")
    assert error.value.field == "mixture.d03"


def test_standard_errors_of_scores_and_fragile_datasets():
    signal = np.linspace(-1, 1, COUNT)[:, None] ** 3  # crowded in the middle
    draws, claimed = [], []
    for seed in range(120):
        halves = halves_of(signal, 0.02, seed)
        axes = principal_axes(NAMES, cosines(halves.means), axes=1)
        scores = np.array(axes.scores)[:, 0]
        draws.append(scores * np.sign(scores[0]))
        claimed.append(score_noise(halves, axes)[:, 0] ** 2)
    true = np.std(draws, 0).mean()
    assert np.sqrt(np.mean(claimed)) == pytest.approx(true, rel=0.25)
    noise = [[float(v) for v in row] for row in score_noise(halves, axes)]
    partition = pca_partition(axes.model_copy(update={"noise": noise}), TOKENS, r=1)
    assert partition.fragile
    assert set(partition.fragile) <= {f"d{i:02d}" for i in range(4, 12)}  # never those at the ends
    assert set(partition.cuts[0].margins) == set(NAMES)


def test_captured_by_hand():
    camp = np.array([1.0, 1, -1, -1])
    matrix = np.outer(camp, camp)
    assert captured(matrix, [[0, 1], [2, 3]], [[0, 1], [2, 3]], [1.0] * 4) == 1.0
    # Of the three ways to halve, one has spread 1 and two have 0: chance is 1/3, so 0 maps to −1/2.
    assert captured(matrix, [[0, 2], [1, 3]], [[0, 1], [2, 3]], [1.0] * 4, draws=4000) == pytest.approx(-0.5, abs=0.05)


@pytest.mark.parametrize(("recommended", "share", "said"), [(1, 1.21, True), (1, 0.9, False), (0, 1.21, True)])
def test_a_share_past_the_whole_is_called_an_estimate(recommended, share, said):
    item = AxisEvidence(axes=1, groups=2, share=share, random_share=0.1, p=0.01)
    assert ("an estimate" in _reason(recommended, [item])) is said


@pytest.mark.parametrize(("recommended", "groups", "said"), [(0, 2, True), (0, 1, False), (1, 2, False), (1, 4, False)])
def test_a_split_against_the_evidence_is_told(recommended, groups, said):
    found = AxesEvidence(recommended=recommended, axes=[], reason="why").words(groups)
    assert found == ("why" if not said else "why; this run makes 2 groups all the same, as it is set to")
