"""The rivals of actmat in studies/real, each against a dense reference of its paper's equation."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from merge_folders import read
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "studies" / "real"
NAMES = sorted(file.stem for file in (STUDY / "merit_ext" / "rules").glob("*.py"))
SOLVERS = ["two_sided", "tsv", "iso_c"]
SHAPES = [(9, 9), (12, 7), (7, 12), (40, 3), (3, 40)]
TOKENS = [5.0, 2.0, 3.0]


@pytest.fixture
def module(monkeypatch):
    """A rule's file, imported as merit imports it; conjugate gradients run to the end."""
    monkeypatch.syspath_prepend(str(STUDY))
    exact = importlib.import_module("merit_ext.rules.two_sided")
    monkeypatch.setattr(exact, "ITERATIONS", 20_000)
    monkeypatch.setattr(exact, "TOLERANCE", 1e-13)
    return lambda name: importlib.import_module(f"merit_ext.rules.{name}")


def asked(steps, shares, ridge=0.1, name="w"):
    """What the engine hands to a rule, from memory."""
    mean = sum(share * step for share, step in zip(shares, steps, strict=True))
    return SimpleNamespace(
        name=name, size=steps[0].shape, shape=steps[0].shape, shares=shares, ridge=ridge, mean=torch.tensor(mean),
        step=lambda k: steps[k].copy(), steps=[torch.tensor(step) for step in steps],
    )  # fmt: skip


def merged(rule, steps, shares, ridge=0.1):
    """The merged step, read seven rows at a time."""
    rows, outputs = rule.layer(asked(steps, shares, ridge)), len(steps[0])
    return np.concatenate([rows(first, min(first + 7, outputs)) for first in range(0, outputs, 7)])


def random_steps(shape, k, kind="random"):
    random = np.random.default_rng([*shape, k])
    steps = [random.standard_normal(shape) for _ in range(k)]
    if kind == "low rank":
        steps = [random.standard_normal((shape[0], 2)) @ random.standard_normal((2, shape[1])) for _ in range(k)]
    if kind == "one zero":
        steps[1] = np.zeros(shape)
    if kind == "alike":
        steps = [steps[0]] * k
    if kind == "all zero":
        steps = [np.zeros(shape)] * k
    return steps, list(random.dirichlet(np.ones(k)))


def error(found, wanted):
    return np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-300)


# References


def power(square, exponent):
    """Of a symmetric matrix; on its span, where the exponent is negative."""
    values, vectors = np.linalg.eigh(square)
    real = values > 1e-12 * max(values.max(), 1e-300)
    return vectors[:, real] * values[real] ** exponent @ vectors[:, real].T


def two_sided(steps, shares, ridge):
    """Σ_k B_k (Δ − Δ_k) A_k + μ (Δ − Δ̄) = 0 as one system of m n equations."""
    pairs = [(power(step @ step.T, 0.5), power(step.T @ step, 0.5)) for step in steps]
    mean = sum(share * step for share, step in zip(shares, steps, strict=True))
    level = ridge * sum(np.trace(b) * np.trace(a) for b, a in pairs) / mean.size
    if level == 0:
        return np.zeros_like(mean)
    system = sum(np.kron(b, a) for b, a in pairs) + level * np.eye(mean.size)
    pulled = sum(b @ step @ a for (b, a), step in zip(pairs, steps, strict=True)) + level * mean
    return np.linalg.solve(system, pulled.ravel()).reshape(mean.shape)


def tsv(steps, shares, ridge):
    """U (UᵀU)^-½ S (VᵀV)^-½ Vᵀ of the largest min(m, n) / K directions of each."""
    keep = max(1, min(steps[0].shape) // len(steps))
    found = [np.linalg.svd(step) for step in steps]
    u = np.concatenate([u[:, :keep] * (s[:keep] > 1e-9) for u, s, _ in found], axis=1)
    v = np.concatenate([vt[:keep].T * (s[:keep] > 1e-9) for _, s, vt in found], axis=1)
    sizes = np.concatenate([s[:keep] for _, s, _ in found])
    return u @ power(u.T @ u, -0.5) * sizes @ power(v.T @ v, -0.5) @ v.T


def iso_c(steps, shares, ridge):
    """The sum's polar factor times its nuclear norm / min(m, n)."""
    total = sum(steps)
    size = np.linalg.norm(total, "nuc") / min(total.shape)
    return size * power(total @ total.T, -0.5) @ total


def actmat(steps, shares, ridge):
    """Δ = (Σ Δ_k C_k + μ Δ̄) (Σ C_k + μ I)⁻¹."""
    covariances = [step.T @ step for step in steps]
    total = sum(covariances)
    level = ridge * np.trace(total) / len(total)
    mean = sum(share * step for share, step in zip(shares, steps, strict=True))
    pulled = sum(step @ c for step, c in zip(steps, covariances, strict=True)) + level * mean
    return pulled @ np.linalg.inv(total + level * np.eye(len(total))) if level else mean


REFERENCES = {"two_sided": two_sided, "tsv": tsv, "iso_c": iso_c}


@pytest.mark.parametrize("kind", ["random", "low rank", "one zero", "alike", "all zero"])
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_layer_is_the_papers_equation(module, name, shape, k, kind):
    steps, shares = random_steps(shape, k, kind)
    found = merged(module(name).RULE, steps, shares, 0.05)
    assert error(found, REFERENCES[name](steps, shares, 0.05)) < 1e-6


@pytest.mark.parametrize("name", SOLVERS)
def test_inputs_and_outputs_play_the_same_part(module, name):
    """A layer turned round, or seen in other orthonormal axes, gives the same merge, turned likewise."""
    steps, shares = random_steps((11, 6), 3)
    random, rule = np.random.default_rng(0), module(name).RULE
    found = merged(rule, steps, shares)
    left, right = (np.linalg.qr(random.standard_normal((n, n)))[0] for n in (11, 6))
    assert error(merged(rule, [step.T for step in steps], shares), found.T) < 1e-6
    assert error(merged(rule, [left @ step @ right for step in steps], shares), left @ found @ right) < 1e-6


def test_branches_that_share_no_direction_keep_what_they_learned(module):
    steps, _ = random_steps((4, 3), 2)
    apart = [np.zeros((8, 6)), np.zeros((8, 6))]
    apart[0][:4, :3], apart[1][4:, 3:] = steps
    assert error(merged(module("two_sided").RULE, apart, [0.9, 0.1], 1e-9), sum(apart)) < 1e-5
    assert error(merged(module("tsv").RULE, apart, [0.9, 0.1]), sum(apart)) < 1e-9


def test_two_sided_between_one_branch_and_the_average(module):
    rule = module("two_sided").RULE
    steps, shares = random_steps((12, 9), 3)
    assert error(merged(rule, [steps[0]] * 3, shares), steps[0]) < 1e-9
    mean = sum(share * step for share, step in zip(shares, steps, strict=True))
    assert error(merged(rule, steps, shares, 1e9), mean) < 1e-6


def test_few_iterations_are_enough(module, monkeypatch):
    """With sizes that fall by orders of magnitude, as those of trained layers do."""
    exact = module("two_sided")
    random = np.random.default_rng(0)
    sizes = np.geomspace(1, 1e-3, 30)
    axes = [[np.linalg.qr(random.standard_normal((n, n)))[0][:, :30] for n in (48, 32)] for _ in range(4)]
    steps = [u * sizes @ v.T for u, v in axes]
    wanted = merged(exact.RULE, steps, [0.25] * 4, 0.1)
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(STUDY))
    assert (exact.ITERATIONS, exact.TOLERANCE) == (50, 1e-5)
    assert error(merged(exact.RULE, steps, [0.25] * 4, 0.1), wanted) < 1e-3


@pytest.mark.parametrize("kind", ["random", "one zero", "all zero"])
@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_embeddings_are_solved_as_layers(module, shape, kind):
    steps, shares = random_steps(shape, 3, kind)
    rule = module("actmat_embedding").RULE
    assert error(rule.tensor(asked(steps, shares)).numpy(), actmat(steps, shares, 0.1)) < 1e-9
    stacked = [step.reshape(2, -1, shape[1]) for step in steps]
    mean = sum(share * step for share, step in zip(shares, stacked, strict=True))
    assert error(rule.tensor(asked(stacked, shares)).numpy(), mean) < 1e-12


def test_norms_are_solved_number_by_number(module):
    steps, shares = random_steps((9, 1), 3)
    steps = [step[:, 0] for step in steps]
    rule = module("actmat_norms").RULE
    level = 0.1 * sum(step**2 for step in steps).mean()
    mean = sum(share * step for share, step in zip(shares, steps, strict=True))
    wanted = [
        (sum(step[i] ** 3 for step in steps) + level * mean[i]) / (sum(step[i] ** 2 for step in steps) + level)
        for i in range(9)
    ]
    assert error(rule.tensor(asked(steps, shares)).numpy(), np.array(wanted)) < 1e-12
    assert error(rule.tensor(asked(steps, shares, name="a.bias")).numpy(), mean) < 1e-12
    assert not rule.tensor(asked([np.zeros(4)] * 2, [0.5, 0.5])).any()


# In the engine

MERGE = """
import sys
from pathlib import Path
from merit.merge.average import merge_checkpoints
from merit.merge.verify import verify_merge
root, branches = Path(sys.argv[1]), [Path(sys.argv[1]) / f"b{n}" for n in range(3)]
for name in sys.argv[2:]:
    merge_checkpoints(branches, [5.0, 2.0, 3.0], {1.0: root / name}, base=root / "base", rule=name, ridge=0.1)
    verify_merge(root / name)
"""


def write_models(folder, kind):
    """θ0 and three branches: tied, with plain linear layers or with Conv1D, biases and embeddings of positions."""
    torch.manual_seed(0)
    if kind == "llama":
        config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
                             num_key_value_heads=2, vocab_size=300, tie_word_embeddings=True)  # fmt: skip
        base = LlamaForCausalLM(config)
    else:
        base = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64, n_positions=24))
    base.save_pretrained(folder / "base")
    start = {name: value.clone() for name, value in base.state_dict().items()}
    for seed in range(3):
        base.load_state_dict(start)
        torch.manual_seed(seed + 1)
        for value in base.parameters():
            value.data += 0.02 * torch.randn_like(value)
        base.save_pretrained(folder / f"b{seed}")


def diagonal(steps, shares, ridge):
    """`actmat` of every number on its own, with one level."""
    level = ridge * sum(step**2 for step in steps).mean()
    mean = sum(share * step for share, step in zip(shares, steps, strict=True))
    return (sum(step**3 for step in steps) + level * mean) / (sum(step**2 for step in steps) + level)


def wanted_step(rule, name, steps, shares):
    """Of one tensor, by what the rule's file says of it."""
    matrix, linear = steps[0].ndim == 2, "proj" in name or ".h." in name
    if matrix and linear:
        solve = REFERENCES.get(rule, actmat)
        if ".h." in name:  # Conv1D: stored as (inputs × outputs)
            return solve([step.T for step in steps], shares, 0.1).T
        return solve(steps, shares, 0.1)
    if matrix and rule.startswith("actmat"):
        return actmat(steps, shares, 0.1)
    if rule == "actmat_norms" and not matrix and not name.endswith("bias"):
        return diagonal(steps, shares, 0.1)
    return sum(share * step for share, step in zip(shares, steps, strict=True))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_whole_models(tmp_path, kind):
    write_models(tmp_path, kind)
    path = os.pathsep.join(map(str, (STUDY, ROOT / "src")))
    command = [sys.executable, "-c", MERGE, str(tmp_path), *NAMES]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True, timeout=300)
    base = {name: value.double().numpy() for name, value in read(tmp_path / "base").items()}
    states = [read(tmp_path / f"b{n}") for n in range(3)]
    shares = [count / sum(TOKENS) for count in TOKENS]
    for rule in NAMES:
        found = read(tmp_path / rule)
        assert found.keys() == base.keys()
        limit = 1e-4 if rule == "two_sided" else 1e-6  # float32; its own iterations end before that
        for name, start in base.items():
            steps = [state[name].double().numpy() - start for state in states]
            wanted = start + wanted_step(rule, name, steps, shares)
            assert error(found[name].double().numpy(), wanted) < limit, (rule, name)
        record = json.loads((tmp_path / rule / "merit_merge.json").read_text())
        assert (record["result"]["rule"], record["result"]["ridge"]) == (rule, 0.1)
