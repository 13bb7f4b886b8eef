"""actmat: a dense float64 reference of its closed form, on random steps and on whole checkpoints of every kind."""

from __future__ import annotations

import copy
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from merge_folders import read
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import warm
from merit.base.errors import InputError
from merit.base.files import sha256_file
from merit.cli.main import run
from merit.cli.merge_command import Merging, merge_models, verify_models
from merit.merge import stream
from merit.merge.average import merge_checkpoints
from merit.merge.record import load_record
from merit.merge.rules import actmat

WEIGHTS = [5.0, 2.0, 3.0]
SIZES = {
    "hidden_size": 32, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip


def reference(steps, shares, ridge):
    """Δ = (Σ Δ_k C_k + μ Δ̄) (Σ C_k + μ I)⁻¹, as the paper of the method has it, by a general inverse."""
    steps = [np.asarray(step, np.float64) for step in steps]
    covariances = [step.T @ step for step in steps]
    total = sum(covariances)
    level = ridge * np.trace(total) / len(total)
    mean = sum(share * step for share, step in zip(shares, steps, strict=True))
    if level == 0:
        return np.zeros_like(mean)
    pulled = sum(step @ c for step, c in zip(steps, covariances, strict=True)) + level * mean
    return pulled @ np.linalg.inv(total + level * np.eye(len(total)))


def asked(steps, shares, ridge, *, factors=None, short=False):
    """What the engine hands to the rule, from memory."""
    return SimpleNamespace(
        name="w", size=steps[0].shape, shares=shares, ridge=ridge, short=short,
        step=lambda k: steps[k].copy(), rows=lambda k, a, b: steps[k][a:b].copy(),
        factors=lambda k: None if factors is None else factors[k],
    )  # fmt: skip


def error(found, wanted):
    return np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-300)


@pytest.mark.parametrize("kind", ["random", "low rank", "ties", "one zero", "tiny", "all zero"])
@pytest.mark.parametrize("ridge", [1e-4, 0.1, 10.0])
@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("shape", [(24, 24), (40, 24), (60, 20), (24, 40), (12, 90), (210, 12)])
def test_every_form_is_the_closed_form(shape, k, ridge, kind):
    random = np.random.default_rng([*shape, k])
    steps = [random.standard_normal(shape) for _ in range(k)]
    if kind == "low rank":
        steps = [random.standard_normal((shape[0], 3)) @ random.standard_normal((3, shape[1])) for _ in range(k)]
    if kind == "ties":
        steps = [steps[0]] * k
    if kind == "one zero":
        steps[1] = np.zeros(shape)
    if kind == "tiny":
        steps = [step * 1e-9 for step in steps]
    if kind == "all zero":
        steps = [np.zeros(shape)] * k
    shares = list(random.dirichlet(np.ones(k)))
    rows = actmat.solve(asked(steps, shares, ridge))
    parts = [rows(first, min(first + 7, shape[0])) for first in range(0, shape[0], 7)]
    assert error(np.concatenate(parts), reference(steps, shares, ridge)) < 1e-9


@pytest.mark.parametrize("short", [False, True])
def test_a_ridge_too_small_for_float64_is_one_line(short):
    steps = [np.ones((9, 8)), np.ones((9, 8))]
    with pytest.raises(InputError, match=r"1e-40 is too small for `w`: its system cannot be solved"):
        actmat.solve(asked(steps, [0.5, 0.5], 1e-40, short=short))


def test_each_form_is_reached(monkeypatch):
    taken = []
    for name in ("_dual", "_by_rows", "_divide"):
        real = getattr(actmat, name)
        monkeypatch.setattr(actmat, name, lambda *a, _real=real, _name=name: (taken.append(_name), _real(*a))[1])
    for shape, form in [((12, 90), "_dual"), ((210, 12), "_by_rows"), ((24, 40), "_divide")]:
        taken.clear()
        actmat.solve(asked([np.random.default_rng(k).standard_normal(shape) for k in range(2)], [0.5, 0.5], 0.1))
        assert taken[0] == form


@pytest.mark.parametrize("ranks", [(3, 3), (2, 5, 1), (4, 0), (20, 20)])
def test_factors_give_what_their_products_give(ranks):
    random = np.random.default_rng(sum(ranks))
    factors = [(random.standard_normal((30, r)), random.standard_normal((r, 22))) for r in ranks]
    steps = [b @ a for b, a in factors]
    shares = list(random.dirichlet(np.ones(len(ranks))))
    rows = actmat.solve(asked(steps, shares, 0.1, factors=factors))
    assert error(rows(0, 30), reference(steps, shares, 0.1)) < 1e-9


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (100, 500), (900, 60)])
def test_16_bit_branches_are_multiplied_in_float32(shape):
    random = np.random.default_rng(0)
    steps = [(random.standard_normal(shape) * 2.0**-6).astype("f2").astype("f8") for _ in range(4)]
    rows = actmat.solve(asked(steps, [0.25] * 4, 0.1, short=True))
    assert 0 < error(rows(0, shape[0]), reference(steps, [0.25] * 4, 0.1)) < 1e-5


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("shape", [(24, 24), (60, 20), (24, 40), (210, 12)])
def test_a_device_of_torch_solves_the_same(shape, zero):
    random = np.random.default_rng(sum(shape))
    steps = [random.standard_normal(shape) * (not zero) for _ in range(3)]
    rows = actmat.solve_on(asked(steps, [0.5, 0.2, 0.3], 0.1, short=True), "cpu")
    parts = [rows(first, min(first + 7, shape[0])) for first in range(0, shape[0], 7)]
    by_rows = shape == (210, 12)  # on the processor, where 16-bit weights are multiplied in float32
    assert error(np.concatenate(parts), reference(steps, [0.5, 0.2, 0.3], 0.1)) < (1e-5 if by_rows else 1e-12)


def test_a_ridge_too_small_for_the_device_is_one_line():
    with pytest.raises(InputError, match=r"1e-40 is too small for `w`: its system cannot be solved"):
        actmat.solve_on(asked([np.ones((9, 8))] * 2, [0.5, 0.5], 1e-40), "cpu")


def test_one_branch_alone_and_a_huge_ridge_are_the_average():
    random = np.random.default_rng(0)
    steps = [random.standard_normal((20, 30)) for _ in range(3)]
    assert error(actmat.solve(asked(steps[:1], [1.0], 0.1))(0, 20), steps[0]) < 1e-12
    mean = sum(share * step for share, step in zip([0.5, 0.2, 0.3], steps, strict=True))
    assert error(actmat.solve(asked(steps, [0.5, 0.2, 0.3], 1e9))(0, 20), mean) < 1e-6


# In the engine


def tuned(folder, base, seed, dtype):
    torch.manual_seed(seed)
    model = copy.deepcopy(base)
    for value in model.parameters():
        value.data += 0.02 * torch.randn_like(value)
    model.to(dtype).save_pretrained(folder)
    return folder


@pytest.fixture
def models(tmp_path):
    """θ0 and three branches, untied, in float32."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES))
    base.save_pretrained(tmp_path / "base")
    for seed in range(3):
        tuned(tmp_path / f"b{seed}", base, seed, torch.float32)
    return tmp_path


def branches(root):
    return [root / f"b{n}" for n in range(3)]


def wanted(root, *, ridge=0.1, turned=(), linear=("proj", "lm_head")):
    """Every tensor of the merge, float64."""
    base = {name: value.double().numpy() for name, value in read(root / "base").items()}
    states = [read(folder) for folder in branches(root)]
    shares = [weight / sum(WEIGHTS) for weight in WEIGHTS]
    found = {}
    for name, start in base.items():
        steps = [state[name].double().numpy() - start for state in states]
        if any(part in name for part in linear) and start.ndim == 2:
            flip = name in turned
            step = reference([step.T if flip else step for step in steps], shares, ridge)
            step = step.T if flip else step
        else:
            step = sum(share * step for share, step in zip(shares, steps, strict=True))
        found[name] = start + step
    return found


def close(folder, expected, tolerance=1e-6):
    found = read(folder)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert error(value.double().numpy(), expected[name]) < tolerance, name


def test_a_whole_model(models):
    scales = {1.0: models / "out", 0.5: models / "half"}
    result = merge_checkpoints(branches(models), WEIGHTS, scales, base=models / "base", rule="actmat", ridge=0.2)
    expected = wanted(models, ridge=0.2)
    close(models / "out", expected)
    base = read(models / "base")
    close(models / "half", {n: (v + base[n].double().numpy()) / 2 for n, v in expected.items()})
    assert (result.rule, result.ridge, result.solved, result.tensors) == ("actmat", 0.2, 15, 21)
    moved = [
        sum(float((state[n].double() - base[n].double()).square().sum()) for n in base) ** 0.5
        for state in map(read, branches(models))
    ]
    assert result.branch_displacement == pytest.approx(moved, rel=1e-9)
    card = (models / "out" / "README.md").read_text()
    assert "The actmat merge of 3 fine-tuned checkpoints" in card
    assert "15 of 21 tensors" in card
    assert "mergekit" not in card
    LlamaForCausalLM.from_pretrained(models / "out")


def test_a_small_memory_changes_nothing(models):
    merge_checkpoints(
        branches(models), WEIGHTS, {1.0: models / "out"}, base=models / "base", rule="actmat", memory_bytes=4_000_000
    )
    close(models / "out", wanted(models))


def test_a_merge_on_a_device_is_the_same_merge(models):
    calm = {"base": models / "base", "rule": "actmat"}
    merge_checkpoints(branches(models), WEIGHTS, {1.0: models / "plain"}, **calm)
    merge_checkpoints(branches(models), WEIGHTS, {1.0: models / "out"}, **calm, device="cpu")
    close(models / "out", wanted(models))
    verify_models([str(models / "out")], None)  # by the processor's arithmetic
    marks = [load_record(models / name).result.mark for name in ("plain", "out")]
    assert marks[0] != marks[1]  # a killed merge does not go on elsewhere


def test_tensors_side_by_side_or_one_by_one(models, monkeypatch):
    """On a core each, or on all cores: the same merge, and the same bits where threads are the same."""
    for name, limit in (("out", 1 << 22), ("again", 1 << 22), ("alone", 0)):
        monkeypatch.setattr(stream, "_SIDE_BY_SIDE", limit)
        merge_checkpoints(branches(models), WEIGHTS, {1.0: models / name}, base=models / "base", rule="actmat")
        close(models / name, wanted(models))
    assert sha256_file(models / "out/model.safetensors") == sha256_file(models / "again/model.safetensors")


def test_what_is_solved_side_by_side():
    def plan(*sizes, on_one_core=True):
        tensors = [SimpleNamespace(solved=solved, elements=elements) for solved, elements in sizes]
        return SimpleNamespace(tensors=tensors, solver=SimpleNamespace(rule=SimpleNamespace(on_one_core=on_one_core)))

    small, large, averaged = (True, 1 << 20), (True, 1 << 22), (False, 1 << 30)
    assert stream.side_by_side(plan(small, averaged), 4)
    assert not stream.side_by_side(plan(small, averaged), 8)
    assert not stream.side_by_side(plan(small, large), 2)
    assert not stream.side_by_side(plan(small, on_one_core=False), 2)
    assert not stream.side_by_side(SimpleNamespace(solver=None), 2)


def test_bfloat16(models, tmp_path):
    for folder in [*branches(models), models / "base"]:
        LlamaForCausalLM.from_pretrained(folder).to(torch.bfloat16).save_pretrained(folder)
    merge_checkpoints(branches(models), WEIGHTS, {1.0: models / "out"}, base=models / "base", rule="actmat")
    found, expected = read(models / "out"), wanted(models)
    for name, value in found.items():
        assert value.dtype == torch.bfloat16
        assert (np.abs(value.double().numpy() - expected[name]) <= 2.0**-8 * np.abs(expected[name]) + 1e-7).all(), name


def test_lora_branches_from_their_factors(tmp_path, monkeypatch):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES))
    base.save_pretrained(tmp_path / "base")
    kinds = [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]},
        {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        {"r": 3, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
    ]
    for number, kind in enumerate(kinds):
        model = get_peft_model(copy.deepcopy(base), LoraConfig(**kind))
        for name, value in model.named_parameters():
            if value.requires_grad:
                torch.nn.init.normal_(value, std=0.05) if "magnitude" not in name else value.data.mul_(1.1)
        model.save_pretrained(tmp_path / f"a{number}")
        model.merge_and_unload().save_pretrained(tmp_path / f"b{number}")
    adapters = [tmp_path / f"a{n}" for n in range(3)]
    merge_checkpoints(adapters, WEIGHTS, {1.0: tmp_path / "out"}, base=tmp_path / "base", rule="actmat")
    close(tmp_path / "out", wanted(tmp_path), 1e-5)
    # Two plain adapters never become whole matrices.
    monkeypatch.setattr("merit.merge.steps.TensorSteps.step", lambda *_: pytest.fail("a whole matrix was read"))
    merge_checkpoints(adapters[:2], [1, 1], {1.0: tmp_path / "two"}, base=tmp_path / "base", rule="actmat")


def test_conv1d_is_stored_the_other_way_round(tmp_path):
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32))
    base.save_pretrained(tmp_path / "base")
    for seed in range(3):
        tuned(tmp_path / f"b{seed}", base, seed, torch.float32)
    merge_checkpoints(branches(tmp_path), WEIGHTS, {1.0: tmp_path / "out"}, base=tmp_path / "base", rule="actmat")
    turned = [n for n, v in read(tmp_path / "base").items() if ".h." in n and v.ndim == 2]
    assert len(turned) == 8
    close(tmp_path / "out", wanted(tmp_path, turned=turned, linear=(".h.",)))


def test_experts_one_by_one(tmp_path):
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen2MoeConfig(
        hidden_size=16, intermediate_size=24, moe_intermediate_size=20, shared_expert_intermediate_size=20,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=32, num_experts=4,
    )  # fmt: skip
    base = Qwen2MoeForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    assert any(".experts.0." in name for name in read(tmp_path / "base"))
    for seed in range(3):
        tuned(tmp_path / f"b{seed}", base, seed, torch.float32)
    merge_checkpoints(branches(tmp_path), WEIGHTS, {1.0: tmp_path / "out"}, base=tmp_path / "base", rule="actmat")
    expected = wanted(tmp_path, linear=("proj", "lm_head", "shared_expert_gate"))
    close(tmp_path / "out", expected)


KILLED = """
import sys, time
from pathlib import Path
from merit.merge import stream
from merit.merge.average import merge_checkpoints
stream.JOURNAL_SECONDS = 0.01
work = stream.BlockStream._block
def slow(self, *args):
    time.sleep(0.05)
    work(self, *args)
stream.BlockStream._block = slow
root = Path(sys.argv[1])
print("start", flush=True)
merge_checkpoints([root / "b0", root / "b1", root / "b2"], [5.0, 2.0, 3.0], {1.0: root / "out"}, base=root / "base",
                  rule="actmat")
"""


def test_killed_it_goes_on_to_the_same_bits(models):
    merge_checkpoints(branches(models), WEIGHTS, {1.0: models / "calm"}, base=models / "base", rule="actmat")
    wait, kills = 0.15, 0
    while not (models / "out").exists():
        process = warm.Popen([warm.sys.executable, "-c", KILLED, str(models)], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        wait *= 1.3
    assert kills >= 2
    assert sha256_file(models / "out/model.safetensors") == sha256_file(models / "calm/model.safetensors")
    assert not [path for path in models.iterdir() if path.name.startswith(".")]


def test_verify_solves_random_layers_again(models):
    merge_checkpoints(branches(models), WEIGHTS, {1.0: models / "out"}, base=models / "base", rule="actmat")
    assert "random blocks" in verify_models([str(models / "out")], None).lines[0]
    file = models / "out" / "model.safetensors"
    state = read(models / "out")
    for name, value in state.items():
        if "proj" in name:
            value[3, 5] += 1e-3
    save_file(state, file, metadata={"format": "pt"})
    record = load_record(models / "out")
    record.result.checksums["1"][file.name] = sha256_file(file)
    record.save(models / "out" / "merit_merge.json")
    with pytest.raises(InputError, match="is not what its inputs give"):
        verify_models([str(models / "out")], None)


def test_bad_input(models, capsys):
    def said(*arguments):
        assert run(["merge", *map(str, arguments)]) == 2
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return " ".join(text.split())

    base, out = models / "base", models / "out"
    three = branches(models)
    rule = ["-o", out, "--rule", "actmat"]
    assert "name it with --base" in said(*three, *rule)
    assert "`ridge`: 0 is not a positive number" in said(*three, *rule, "--base", base, "--ridge", "0")
    assert "`ridge`: nan is not a positive number" in said(*three, *rule, "--base", base, "--ridge", "nan")
    assert "nothing to merge it with" in said(three[0], *rule, "--base", base)
    assert "name one with --rule" in said(*three, "-o", out, "--ridge", "0.1")
    assert "`device`: 'abacus' cannot solve" in said(*three, *rule, "--base", base, "--device", "abacus")
    assert "`device`: 'cuda:99' cannot solve" in said(*three, *rule, "--base", base, "--device", "cuda:99")
    assert "name one with --rule" in said(*three, "-o", out, "--device", "cuda")
    assert "neither ridge nor device" in said(*three, "-o", out, "--rule", "uniform", "--device", "cuda")
    assert "nothing was trained" in said(*three[:2], base, *rule, "--base", base)
    assert "leave this out" in said(*three, *rule, "--base", base, "--keep-sums", models / "sums")
    assert "no rule 'actmatt'" in said(*three, "-o", out, "--rule", "actmatt", "--base", base)
    torch.manual_seed(1)
    other = SIZES | {"intermediate_size": 96}
    LlamaForCausalLM(LlamaConfig(**other)).save_pretrained(models / "other")
    said_of_shapes = said(*three, *rule, "--base", models / "other")
    assert "mlp.down_proj.weight" in said_of_shapes
    assert "shape [32, 96], but [32, 112]" in said_of_shapes
    state = read(three[1])
    state["model.layers.0.mlp.up_proj.weight"][2, 3] = float("nan")
    save_file(state, three[1] / "model.safetensors", metadata={"format": "pt"})
    answer = said(*three, *rule, "--base", base)
    assert "nan at element 67 of" in answer
    assert "up_proj" in answer
    assert not out.exists()
    assert not [path for path in models.iterdir() if path.name.startswith(".")]


def test_branches_that_did_not_move(models):
    """Same values in another file layout: only the sums of squares tell."""
    state = read(models / "base")
    for folder in branches(models):
        save_file(dict(reversed(state.items())), folder / "model.safetensors", metadata={"format": "pt", "x": "y"})
    with pytest.raises(InputError, match="nothing was trained"):
        merge_checkpoints(branches(models), WEIGHTS, {1.0: models / "out"}, base=models / "base", rule="actmat")
    assert not (models / "out").exists()


def test_options_on_the_command_line(models):
    wanted_options = Merging(models / "out", rule="actmat", base=str(models / "base"), weights="5,2,3")
    answer = merge_models([str(b) for b in branches(models)], wanted_options)
    assert "15 of 21 tensors by actmat, the rest averaged" in answer.lines[0]
    close(models / "out", wanted(models))
