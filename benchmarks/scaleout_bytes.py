"""Bytes between machines, counted where they pass: at the store of a real run, on the network of a joint one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SIZE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "vocab_size": 32768}  # 13M parameters
SMALL = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "vocab_size": 8192}
K = 2
STEPS = 8

COUNTING = """
import os
from pathlib import Path
import fsspec
from fsspec.implementations.local import LocalFileSystem

class Counted(LocalFileSystem):
    protocol = "counted"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("counted://"))

    def put_file(self, source, target, *args, **kwargs):
        super().put_file(source, target, *args, **kwargs)
        self._count("put", target, Path(source).stat().st_size)

    def get_file(self, source, target, *args, **kwargs):
        super().get_file(source, target, *args, **kwargs)
        self._count("get", source, Path(target).stat().st_size)

    def _count(self, what, name, size):
        with open(os.environ["COUNTED"], "a") as log:
            log.write(f"{what} {size} {name}\\n")

fsspec.register_implementation("counted", Counted, clobber=True)
"""

RECIPE = """
model: {model}
mixture:
{mixture}
held_out_fraction: 0.1
calibration: {{examples: 4}}
split: {{splitter: random, axes: 1}}
train: {{batch_tokens: 4096, max_length: 128, precision: fp32}}
launch: {{parallel: 1, store: "counted://{store}"}}
"""

JOINT = """
import os, sys
import torch
from torch import distributed, nn
distributed.init_process_group("gloo")
size, steps = int(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
model = nn.parallel.DistributedDataParallel(nn.Linear(size, size, bias=False))
def lo():
    for line in open("/proc/net/dev"):
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[0])
distributed.barrier()
before = lo()
for _ in range(steps):
    model(torch.randn(4, size)).sum().backward()
distributed.barrier()
if distributed.get_rank() == 0:
    print(lo() - before)
"""


def count_branch_bytes(quick: bool) -> dict[str, float]:
    """One run with a store. A machine a branch: each fetches θ0 and its data, and sends its checkpoint, once."""
    from merit.context import RunContext
    from merit.models.checkpoint import Checkpoint
    from merit.pipeline import run_pipeline
    from merit.plan.costs import model_facts
    from merit.plan.estimate import Estimate

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "sitecustomize.py").write_text(COUNTING)
        sys.path.insert(0, str(work))
        exec(COUNTING, {})
        os.environ |= {"COUNTED": str(work / "log"), "PYTHONPATH": f"{work}:{os.environ.get('PYTHONPATH', '')}"}
        model = _model(work / "model", SMALL if quick else SIZE)
        names = [f"d{index}" for index in range(4)]
        for data in names:
            rows = [{"prompt": f"{data} {i}", "completion": "yes " * 20} for i in range(100)]
            (work / f"{data}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        mixture = "\n".join(f"  {data}: {{path: {data}.jsonl}}" for data in names)
        (work / "merit.yaml").write_text(RECIPE.format(model=model, mixture=mixture, store=work / "store"))
        context = RunContext.open(work / "merit.yaml")
        # Every branch on a machine of its own: nothing that one fetched is there for the other.
        os.environ["MERIT_SCRATCH"] = str(work / "scratch")
        run_pipeline(context, until="train")
        lines = [line.split(" ", 2) for line in (work / "log").read_text().splitlines()]
        theta0 = sum(int(size) for what, size, name in lines if what == "get" and "/theta0/" in name)
        other = sum(int(size) for what, size, name in lines if what == "get" and "/theta0/" not in name)
        counted = K * theta0 + other  # one machine here kept θ0 for the second branch
        facts = model_facts(Checkpoint.open(model), None)
        traffic = Estimate(context.config, context.mixture, facts).plan.traffic
        if traffic is None:
            raise SystemExit("the plan has no traffic")
        return {
            "branch_bytes": counted,
            "plan_bytes_error": abs(traffic.total - counted) / counted,
            "joint_over_branch_bytes": traffic.joint_total / traffic.total,
        }


def count_joint_bytes(quick: bool) -> dict[str, float]:
    """Two processes average the gradients of one matrix; the loopback device counts."""
    from merit.plan.costs import ModelFacts
    from merit.plan.estimate import Exchange, traffic

    size = 512 if quick else 2048
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "joint.py"
        script.write_text(JOINT)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={K}"]
        env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        out = subprocess.run(
            [*command, str(script), str(size), str(STEPS)], env=env, capture_output=True, text=True, check=True
        )
        counted = int(out.stdout.split()[-1])
    facts = ModelFacts(parameters=size**2, trainable=size**2, bytes_per_parameter=4, hidden={})
    expected = traffic(facts, Exchange(K), STEPS).joint_total
    return {"joint_bytes": counted, "joint_bytes_error": abs(expected - counted) / counted}


def _model(folder: Path, size: dict[str, int]) -> Path:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|end|>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", chat_template=template
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(**size, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
                         tie_word_embeddings=True)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
