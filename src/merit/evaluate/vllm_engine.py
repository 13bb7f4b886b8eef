"""Greedy answers by vLLM, where it is installed and a GPU is there.

vLLM keeps the memory that it takes until its process ends. So every model has a process of its own, a job, which
answers and ends; losses are measured afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from merit.base.errors import InputError
from merit.base.machine import visible_gpus
from merit.context import RunContext
from merit.data.mixture import DatasetSummary
from merit.jobs.engine import engine_named

GenerationEngine = Literal["hf", "vllm"]

# Of the process that imports vLLM. With its engine in the same process, requests are scheduled in the same order every
# time, and `kill -9` leaves no second process that holds the GPU's memory.
VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def picked_engine(context: RunContext) -> GenerationEngine:
    """What generates the answers. `auto` is vLLM where nothing speaks against it."""
    engine = context.config.evaluate.engine
    if engine == "hf" or not _scored(context):
        return "hf"
    return "hf" if engine == "auto" and (missing_here() or unfit(context)) else "vllm"


def _scored(context: RunContext) -> list[DatasetSummary]:
    """The datasets of which examples are answered."""
    return context.mixture.answered if context.config.evaluate.generate else []


def check_engine(context: RunContext, *, data: bool) -> None:
    """Refuses `evaluate.engine: vllm` where vLLM cannot answer. Jobs on other machines look at theirs themselves.

    Args:
        data: look at the mixture, which exists by now.

    Raises:
        InputError: it is not installed, there is no GPU, or it is not made for this model's prompts.
    """
    if context.config.evaluate.engine != "vllm":
        return
    here = engine_named(context.config.launch.engine).on_this_machine
    why = (missing_here() if here else "") or (unfit(context) if data else "")
    if why:
        raise InputError(f"{why}; use `hf`", field="evaluate.engine")


def missing_here() -> str:
    """What this machine lacks for vLLM; empty if nothing."""
    if find_spec("vllm") is None:
        return "vLLM is not installed (pip install vllm)"
    return "" if visible_gpus() else "vLLM needs a GPU, and there is none"


def unfit(context: RunContext) -> str:
    """Why vLLM would not give this run's answers; empty if it would."""
    datasets = _scored(context)
    if any(item.images for item in datasets):
        return "merit asks vLLM about text only, and these prompts show images"
    from merit.models.loading import positions_of

    positions = positions_of(context.model)
    longest = max((item.longest for item in datasets), default=0) + context.config.evaluate.max_new_tokens
    if positions is not None and not positions.table and longest > positions.count:
        # transformers goes on beyond the positions that a model was trained with; vLLM does not.
        return f"prompts and answers of up to {longest:,} tokens exceed the model's {positions.count:,} positions"
    return ""


def answers_by_vllm(
    folder: Path,
    prompts: Sequence[Sequence[int]],
    room: Sequence[int],
    ends: Collection[int],
    *,
    trust_remote_code: bool = False,
) -> list[list[int]]:
    """The token ids of the greedy answer of the model in `folder` to each prompt (token ids), its end token included.

    It decodes as `greedy_answers` does: in float32, without sampling and penalties, whatever the model's own
    generation_config says, so that answers differ only where two tokens are almost equally likely.

    Args:
        room: the most tokens of each answer; none for 0 or less.
        ends: tokens that end an answer.

    Raises:
        InputError: vLLM is not installed, or there is no GPU.
    """
    if why := missing_here():
        raise InputError(why, field="evaluate.engine")
    from vllm import LLM, SamplingParams

    answers: list[list[int]] = [[] for _ in prompts]
    asked = [place for place, tokens in enumerate(room) if tokens > 0]
    if not asked:
        return answers
    model = LLM(
        model=str(folder),
        dtype="float32",
        load_format="safetensors",
        generation_config="vllm",  # its neutral defaults
        trust_remote_code=trust_remote_code,
        max_model_len=max(len(prompts[place]) + room[place] for place in asked),
        enforce_eager=True,  # compiling takes longer than a few hundred answers
        seed=0,
    )
    outputs = model.generate(
        [{"prompt_token_ids": list(prompts[place])} for place in asked],
        [
            SamplingParams(temperature=0.0, max_tokens=room[place], stop_token_ids=sorted(ends), detokenize=False)
            for place in asked
        ],
        use_tqdm=False,
    )
    for place, output in zip(asked, outputs, strict=True):
        answers[place] = list(output.outputs[0].token_ids)
    return answers
