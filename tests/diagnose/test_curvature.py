"""The Hessian against a dense one by another way, Lanczos against `eigh`, and Theorem 1 on a real network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

from merit.base.errors import InputError, StageError
from merit.base.progress import SILENT
from merit.config.diagnose import DiagnoseConfig
from merit.conflict.axes import centre_matrix
from merit.data.example import Encoded
from merit.diagnose.check import Journal
from merit.diagnose.checks.curvature import CHECK, CurvatureResult
from merit.diagnose.hessian import Hessian, within_budget
from merit.diagnose.lanczos import Lanczos
from merit.diagnose.live import LiveModel
from merit.diagnose.models import Models


def rows(count: int, seed: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randint(1, 17, (5 + i % 4,), generator=generator).tolist() for i in range(count)]
    return [Encoded(ids, [-100, -100, *ids[2:]]) for ids in made]


DATASETS = [rows(3, seed) for seed in range(3)]


def network() -> Any:
    """544 parameters, tied."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=17,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def plain_loss(model: Any, examples: list[Encoded]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The mean loss as a function of the flat parameters, one example at a time, all logits."""
    own = dict(model.named_parameters())

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = flat.split([value.numel() for value in own.values()])
        weights = {name: part.view_as(own[name]) for name, part in zip(own, parts, strict=True)}
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        total, count = flat.new_zeros(()), 0
        for row in examples:
            inputs = {"input_ids": torch.tensor([row.input_ids]), "use_cache": False}
            logp = functional_call(model, weights, kwargs=inputs).logits[0].log_softmax(-1)
            for position, label in enumerate(row.labels):
                if label != -100:
                    total, count = total - logp[position - 1, label], count + 1
        return total / count

    return loss


def flat(model: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])


@pytest.fixture(scope="module")
def dense() -> NDArray[np.float64]:
    """(n, n) Hessian in float64, by autograd's own `hessian`."""
    model = network().double()
    examples = [row for dataset in DATASETS for row in dataset]
    with sdpa_kernel(SDPBackend.MATH):
        found = torch.autograd.functional.hessian(plain_loss(model, examples), flat(model), vectorize=True)
    return np.asarray(found)


def hessian_of(model: Any, batch_tokens: int = 20) -> Hessian:
    return Hessian(model, dict(model.named_parameters()), within_budget(DATASETS, 10**6), batch_tokens=batch_tokens)


def test_product_with_a_dense_hessian(dense: NDArray[np.float64]) -> None:
    vector = np.random.default_rng(0).standard_normal(len(dense)).astype(np.float32)
    expected = dense @ vector
    for batch_tokens in (20, 1000):  # batches do not matter
        found = hessian_of(network(), batch_tokens).product(vector)
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_gauss_newton_product_with_its_definition() -> None:
    model = network().double()
    parameters = dict(model.named_parameters())
    rows = within_budget(DATASETS, 10**6)
    vector = np.random.default_rng(0).standard_normal(len(flat(model))).astype(np.float32)
    shares = dict(
        zip(parameters, torch.from_numpy(vector).split([p.numel() for p in parameters.values()]), strict=True)
    )

    def logits(step: float) -> torch.Tensor:
        moved = {name: p + step * shares[name].view_as(p) for name, p in parameters.items()}
        return torch.cat(
            [
                torch.func.functional_call(model, moved, (), {"input_ids": torch.tensor([row.input_ids])}).logits[
                    0, :-1
                ][torch.tensor(row.labels[1:]) != -100]
                for row in rows
            ]
        ).detach()

    change = (logits(1e-5) - logits(-1e-5)) / 2e-5  # J v
    p = logits(0.0).softmax(-1)
    expected = float(((p * change**2).sum(-1) - (p * change).sum(-1) ** 2).mean())  # vᵀ G v: a variance a token
    model = network()
    hessian = Hessian(model, dict(model.named_parameters()), rows, batch_tokens=20, gauss_newton=True)
    assert float(vector @ hessian.product(vector)) == pytest.approx(expected, rel=1e-3)
    assert expected > 0


def test_gradient_and_loss() -> None:
    model = network()
    weights = flat(model).requires_grad_()
    loss = plain_loss(model, DATASETS[1])(weights)
    (expected,) = torch.autograd.grad(loss, weights)
    hessian = Hessian(model, dict(model.named_parameters()), DATASETS[1], batch_tokens=1024)
    assert hessian.loss() == pytest.approx(float(loss.detach()), rel=1e-5)
    np.testing.assert_allclose(hessian.gradient(DATASETS[1], lambda _: None), expected.numpy(), atol=1e-5)


def test_rows_within_the_budget_are_taken_in_turn() -> None:
    datasets = [[Encoded([0] * 10, [])] * 3, [Encoded([1] * 10, [])] * 3]
    assert [row.input_ids[0] for row in within_budget(datasets, 30)] == [0, 1, 0]
    assert [row.input_ids[0] for row in within_budget(datasets, 1)] == [0, 1]  # one of each at least


def symmetric(size: int, seed: int = 0) -> NDArray[np.float64]:
    matrix = np.random.default_rng(seed).standard_normal((size, size))
    return (matrix + matrix.T) / 2


def products(matrix: NDArray[np.float64]) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda vector: (matrix @ vector).astype(np.float32)


def test_lanczos_finds_the_largest_eigenpairs(tmp_path: Path, dense: NDArray[np.float64]) -> None:
    lanczos = Lanczos(tmp_path / "basis", len(dense), products(dense))
    while not lanczos.converged(6):
        lanczos.step()
    values, vectors = np.linalg.eigh(dense)
    found = lanczos.ritz(6)
    np.testing.assert_allclose(found.values, values[::-1][:6], rtol=1e-3)
    basis = np.array(lanczos.rows(lanczos.steps)).T @ found.coefficients
    for k in range(6):
        assert abs(basis[:, k] @ vectors[:, ::-1][:, k]) > 0.999
        residual = np.linalg.norm(dense @ basis[:, k] - found.values[k] * basis[:, k])
        assert residual == pytest.approx(found.residuals[k], abs=1e-3 * values[-1])
    np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-5)
    assert found.lowest == pytest.approx(values[0], rel=1e-3)
    assert lanczos.steps < 60


def test_lanczos_resumes_bit_by_bit(tmp_path: Path) -> None:
    matrix = symmetric(40)
    whole = Lanczos(tmp_path / "whole", 40, products(matrix), fingerprint="a")
    for _ in range(9):
        whole.step()
    for _ in range(4):
        Lanczos(tmp_path / "killed", 40, products(matrix), fingerprint="a").step()
    with (tmp_path / "killed" / "basis.f32").open("ab") as handle:
        handle.write(b"half a row")  # a kill between the basis and the state
    resumed = Lanczos(tmp_path / "killed", 40, products(matrix), fingerprint="a")
    assert resumed.steps == 4
    for _ in range(5):
        resumed.step()
    assert resumed.state == whole.state
    assert np.array_equal(resumed.rows(10), whole.rows(10))
    assert Lanczos(tmp_path / "killed", 40, products(matrix), fingerprint="b").steps == 0  # of something else


@pytest.mark.parametrize("name", ["basis.f32", "state.json"])
def test_a_flipped_bit_in_the_basis_is_noticed(tmp_path: Path, name: str) -> None:
    matrix = symmetric(40)
    for _ in range(4):
        Lanczos(tmp_path, 40, products(matrix)).step()
    assert Lanczos(tmp_path, 40, products(matrix)).steps == 4
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    assert Lanczos(tmp_path, 40, products(matrix)).steps == 0  # begun anew


def test_lanczos_ends_where_there_is_nothing_more(tmp_path: Path) -> None:
    lanczos = Lanczos(tmp_path / "basis", 20, products(np.diag([3.0, 3.0, *[1.0] * 18])))
    while not lanczos.exhausted:
        lanczos.step()
    assert lanczos.steps == 2  # two different eigenvalues
    np.testing.assert_allclose(lanczos.ritz(5).values, [3, 1], rtol=1e-5)


def make_models(folder: Path, scale: float) -> tuple[LiveModel, Models, NDArray[np.float64]]:
    """θ0 and three branches around it, their exact mean as the merge; the deltas as (3, n)."""
    model = network()
    start = flat(model)
    rng = torch.Generator().manual_seed(3)
    deltas = scale * torch.randn((3, len(start)), generator=rng)
    weights = [0.5, 0.3, 0.2]
    merged = torch.tensor(weights) @ deltas
    folders = []
    for index, delta in enumerate([torch.zeros_like(start), *deltas, merged]):
        torch.nn.utils.vector_to_parameters(start + delta, model.parameters())
        folders.append(folder / str(index))
        model.save_pretrained(folders[-1])
    models = Models(folders[0], folders[1:4], weights, folders[4])
    return LiveModel(model, models.folders), models, deltas.double().numpy()


def run(folder: Path, scale: float, axes: int = 1, **options: Any) -> tuple[CurvatureResult, NDArray[np.float64]]:
    live, models, deltas = make_models(folder, scale)
    similarity = np.array([[1.0, 0.2, -0.3], [0.2, 1.0, 0.4], [-0.3, 0.4, 1.0]])
    settings = {"eigenpairs": 5, "lanczos_steps": 60, "probes": 4, "hessian_tokens": 10**6, "hessian_batch_tokens": 40}
    conflict = SimpleNamespace(similarity=similarity, axes=axes, centre="both")
    bench: Any = SimpleNamespace(
        live=live,
        models=models,
        config=DiagnoseConfig().model_copy(update={**settings, **options}),
        datasets=DATASETS,
        seed=0,
        journal=Journal(),
        progress=SILENT,
        run=SimpleNamespace(diagnostic_progress=lambda _: folder / "basis.json"),
        measured_conflict=lambda _: conflict,
        calibration_examples=lambda examples, _: examples,
    )
    found = CHECK.run(bench)
    assert not (folder / "basis").exists()
    return found, deltas


def test_theorem_1_holds_in_a_network_near_its_init(tmp_path: Path, dense: NDArray[np.float64]) -> None:
    found, deltas = run(tmp_path, 3e-3)
    weights = np.array([0.5, 0.3, 0.2])
    apart = deltas - weights @ deltas
    expected = 0.5 * weights @ np.einsum("kn,nm,km->k", apart, dense, apart)
    assert found.gain_quadratic == pytest.approx(expected, rel=1e-3)
    assert found.gain_measured == pytest.approx(expected, rel=0.05)  # what is left is not quadratic
    values, vectors = np.linalg.eigh(dense)
    top = vectors[:, ::-1][:, :5]
    expected_top = 0.5 * (weights @ (apart @ top) ** 2) @ values[::-1][:5]
    assert found.gain_top == pytest.approx(expected_top, rel=0.02)


def test_alignment_with_dense_eigenvectors(tmp_path: Path, dense: NDArray[np.float64]) -> None:
    found, _ = run(tmp_path, 1e-2)
    top = np.linalg.eigh(dense)[1][:, ::-1][:, :5]
    model = network()
    gradients = []
    for examples in DATASETS:
        weights = flat(model).requires_grad_()
        (gradient,) = torch.autograd.grad(plain_loss(model, examples)(weights), weights)
        gradients.append(gradient.double().numpy())
    unit = np.array([gradient / np.linalg.norm(gradient) for gradient in gradients])
    np.testing.assert_allclose(found.tasks, np.abs(unit @ top).max(1), rtol=2e-3)
    similarity = np.array([[1.0, 0.2, -0.3], [0.2, 1.0, 0.4], [-0.3, 0.4, 1.0]])
    axis = np.linalg.eigh(centre_matrix(similarity))[1][:, -1] @ unit
    np.testing.assert_allclose(found.axes, [np.abs(axis @ top).max() / np.linalg.norm(axis)], rtol=2e-3)
    assert 0 < np.mean(found.random) < 0.2  # about √(2 ln 10 / n)
    assert found.z_tasks is not None


def test_trace_lies_within_its_error(tmp_path: Path, dense: NDArray[np.float64]) -> None:
    found, _ = run(tmp_path, 1e-2, probes=40)
    assert abs(found.trace - np.trace(dense)) < 3.5 * found.trace_error


def test_ranks_and_infinities_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"`split\.axes`: 3 axes of 3 datasets: their centred similarity has a rank of 2"
    ):
        run(tmp_path / "a", 1e-2, axes=3)
    with pytest.raises(InputError, match=r"`diagnose\.eigenpairs`: 600 eigenpairs of a model of 544 parameters"):
        run(tmp_path / "b", 1e-2, eigenpairs=600)
    model = network()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(StageError, match="not finite"):
        hessian_of(model).product(np.ones(544, np.float32))
