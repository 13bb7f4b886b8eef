"""The sketch: linear, unbiased, and the same everywhere."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from merit.base.errors import InputError
from merit.config.calibration import CalibrationConfig
from merit.gradients.fold import Sketcher
from merit.gradients.sketch import SketchLayout, SketchSpec, signs_and_buckets

PARAMETERS = [("embed", [11, 8], 1), ("w", [6, 10], 1), ("conv1d", [10, 6], 0), ("norm", [8], 0), ("e", [3, 4, 5], 2)]


def layout(**spec):
    return SketchLayout.plan(SketchSpec(least=1, **spec), PARAMETERS)


def random_gradients(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float32) for name, shape, _ in PARAMETERS}


def row(sketcher, grads):
    return torch.cat([sketcher.apply(name, grads[name]) for name, _, _ in PARAMETERS]).double()


def test_layout_by_hand():
    plan = layout(kind="fold", fold=4)
    sizes = {t.name: (t.how, t.buckets, t.size) for t in plan.tensors}
    assert sizes == {
        "embed": ("fold", 2, 22),
        "w": ("fold", 3, 18),
        "conv1d": ("fold", 3, 18),
        "norm": ("whole", 0, 8),
        "e": ("fold", 2, 24),
    }
    assert [t.start for t in plan.tensors] == [0, 22, 40, 58, 66]
    assert plan.numbers == 90
    assert plan.parameters == 88 + 60 + 60 + 8 + 60


@pytest.mark.parametrize(("inputs", "buckets"), [(3, 3), (576, 16), (1600, 16), (1601, 17), (8960, 90)])
def test_small_matrices_have_sixteen_buckets_and_tiny_ones_are_whole(inputs, buckets):
    plan = SketchLayout.plan(SketchSpec(kind="fold", fold=100), [("w", [5, inputs], 1)])
    assert plan.tensors[0].buckets == buckets
    assert plan.numbers == 5 * buckets


@pytest.mark.parametrize("offset", [0, 3, 7, 100])
def test_flat_keeps_every_sth_coordinate_of_the_concatenation(offset):
    grads = random_gradients(0)
    whole = torch.cat([g.reshape(-1) for g in grads.values()])
    plan = layout(kind="flat", stride=7, offset=offset)
    assert torch.equal(row(Sketcher(plan), grads).float(), whole[offset::7])


def test_fold_by_hand():
    plan = SketchLayout.plan(SketchSpec(kind="fold", fold=2, seed=5, least=1), [("w", [1, 4], 1)])
    signs, buckets = signs_and_buckets(5, "w", 4, 2)
    grad = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    want = [sum(float(s) * 10.0**j for j, s in enumerate(signs) if buckets[j] == b) for b in range(2)]
    assert Sketcher(plan).apply("w", grad).tolist() == want


def test_conv1d_is_the_transposed_linear():
    grads = random_gradients(1)
    a = SketchLayout.plan(SketchSpec(kind="fold", fold=4, least=1), [("w", [6, 10], 1)])
    b = SketchLayout.plan(SketchSpec(kind="fold", fold=4, least=1), [("w", [10, 6], 0)])
    assert torch.equal(Sketcher(a).apply("w", grads["w"]), Sketcher(b).apply("w", grads["w"].T))


def test_convolution_kernels_fold_over_all_inputs():
    plan = SketchLayout.plan(SketchSpec(kind="fold", fold=6, least=1), [("w", [5, 3, 2, 2], 3)])
    assert plan.numbers == 5 * 2
    assert Sketcher(plan).apply("w", torch.randn(5, 3, 2, 2)).shape == (10,)


def test_linear():
    sketcher = Sketcher(layout(kind="fold", fold=4))
    a, b = random_gradients(1), random_gradients(2)
    both = row(sketcher, {name: 2 * a[name] - 3 * b[name] for name in a})
    torch.testing.assert_close(both, 2 * row(sketcher, a) - 3 * row(sketcher, b), rtol=1e-5, atol=1e-5)


def test_inner_products_are_unbiased():
    a, b = random_gradients(1), random_gradients(2)
    b = {name: b[name] + a[name] for name in a}
    true = sum(float((a[name].double() * b[name].double()).sum()) for name in a)
    values = np.array(
        [float(row(s, a) @ row(s, b)) for s in (Sketcher(layout(kind="fold", fold=4, seed=k)) for k in range(2000))]
    )
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - true) < 4 * error
    assert error < 0.02 * true


def test_signs_and_buckets_are_even_and_depend_on_seed_and_name():
    signs, buckets = signs_and_buckets(0, "w", 1000, 10)
    assert set(signs.tolist()) == {-1, 1}
    assert abs(signs.sum()) < 130
    assert np.bincount(buckets).tolist() == [100] * 10
    assert not np.array_equal(buckets, np.sort(buckets))
    assert np.array_equal(signs, signs_and_buckets(0, "w", 1000, 10)[0])
    assert not np.array_equal(signs, signs_and_buckets(1, "w", 1000, 10)[0])
    assert not np.array_equal(signs, signs_and_buckets(0, "v", 1000, 10)[0])


DIGEST = (
    "import hashlib; from merit.gradients.sketch import signs_and_buckets as f;"
    "s, b = f(7, 'model.layers.3.w', 576, 6);"
    "print(hashlib.sha256(s.tobytes() + b.astype('<i8').tobytes()).hexdigest())"
)


def test_the_same_in_another_process_and_in_years_to_come():
    signs, buckets = signs_and_buckets(7, "model.layers.3.w", 576, 6)
    here = hashlib.sha256(signs.tobytes() + buckets.astype("<i8").tobytes()).hexdigest()
    there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True).stdout.strip()
    assert here == there == "d62699b2460442e945ab9555c590ed4b51b2cf7ac8b20942ae59e348b21cee82"


def test_spec_of_config_ignores_what_its_kind_does_not_use():
    a = CalibrationConfig(sketch="flat", stride=10, seed=1, fold=3)
    b = CalibrationConfig(sketch="flat", stride=10, seed=2, fold=4)
    assert SketchSpec.of(a) == SketchSpec.of(b)
    assert str(SketchSpec.of(a)) == "flat stride 10, offset 0"
    assert str(SketchSpec.of(CalibrationConfig())) == "fold 100, seed 0"


def test_hash_is_linear_and_unbiased():
    grads = [random_gradients(1), random_gradients(2)]
    grads[1] = {name: grads[1][name] + grads[0][name] for name in grads[0]}
    values = []
    for seed in range(2000):
        plan = layout(kind="full", seed=seed)
        rows = np.stack([row(Sketcher(plan), g).numpy().astype(np.float32) for g in grads])
        hashed = plan.hash(rows, 50)
        values.append(float(hashed[0] @ hashed[1]))
    np.testing.assert_allclose(plan.hash(2 * rows[:1] - rows[1:], 50), 2 * hashed[:1] - hashed[1:], atol=1e-4)
    true = float(rows[0] @ rows[1])
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values) - true) < 4 * error
    assert error < 0.02 * true


def test_a_stride_over_whole_parameters_is_refused():
    parameters = [("w", [8, 16], 1), ("norm", [8], 0), ("temperature", [1], 0)]
    with pytest.raises(InputError, match=r"`calibration\.stride`: 9 steps over whole parameters: `norm` has 8 numbers"):
        SketchLayout.plan(SketchSpec(kind="flat", stride=9), parameters)
    assert SketchLayout.plan(SketchSpec(kind="flat", stride=8), parameters).width == 18
