"""`merit plan`: reads the data and the model's headers, measures a training step, and estimates the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from merit.base.errors import InputError, Problems
from merit.base.progress import SILENT, Progress
from merit.config.sections import LoraSection, Role, TrainConfig
from merit.context import RunContext
from merit.data.check import CheckReport
from merit.data.example import IGNORED, Encoded
from merit.data.mixture import Mixture
from merit.jobs.devices import visible_gpus
from merit.models.checkpoint import Checkpoint
from merit.models.layout import FROZEN, role_of
from merit.plan.costs import ModelFacts, Plan
from merit.plan.estimate import plan
from merit.plan.preflight import check_run
from merit.split.partition import Partition

_SHAPE = ("hidden_size", "num_hidden_layers", "vocab_size")
_MEASURED_TOKENS = 1024
_REPEATS = 3


def plan_run(path: Path, tokens_per_second: float | None, progress: Progress = SILENT) -> Plan:
    """The plan of the run that `path` describes. Nothing is written.

    Args:
        tokens_per_second: speed of a training step; measured with θ0 on this machine where it is None.

    Raises:
        InputError: the configuration, θ0 or the data is wrong.
    """
    context = RunContext.open(path, progress=progress)
    freeze = context.config.model.freeze
    facts = model_facts(Checkpoint.open(context.model.path), context.config.train.lora, freeze)
    mixture = _mixture(context, check_run(path, progress))
    if tokens_per_second is None:
        tokens_per_second = measure_speed(context.model.path, context.config.train, mixture)
    launch = context.config.launch
    return plan(
        context.config,
        mixture,
        facts,
        tokens_per_second=tokens_per_second,
        partitions=_known_partitions(context),
        at_once=launch.parallel or max(1, len(visible_gpus())),
    )


def model_facts(checkpoint: Checkpoint, lora: LoraSection | None, freeze: Sequence[Role] | None = None) -> ModelFacts:
    """Size and shape of a model, from its headers and its config.json; of a vision-language model, its language part's
    shape, and only what is not frozen counts as trained."""
    parameters = checkpoint.elements
    frozen: set[Role] = set()
    if "vision_config" in checkpoint.config:
        frozen = set(FROZEN if freeze is None else freeze)
    names = [name for name in checkpoint.tensors if role_of(name) not in frozen] if frozen else [*checkpoint.tensors]
    trainable = sum(checkpoint.info(name).elements for name in names) if frozen else parameters
    if lora is not None:
        # PEFT's `all-linear`: every weight matrix but embeddings and head.
        apart = {checkpoint.embedding, checkpoint.head}
        shapes = [checkpoint.info(name).shape for name in names if name not in apart]
        trainable = sum(lora.r * (shape[0] + shape[1]) for shape in shapes if len(shape) == 2)
    text = checkpoint.config.get("text_config")
    config = text if isinstance(text, dict) and "hidden_size" not in checkpoint.config else checkpoint.config
    shape = {key: value for key in _SHAPE if isinstance(value := config.get(key), int)}
    return ModelFacts(
        parameters=parameters,
        trainable=trainable,
        bytes_per_parameter=round(checkpoint.nbytes / parameters),
        hidden=shape,
    )


def measure_speed(folder: Path, train: TrainConfig, mixture: Mixture) -> float:
    """Tokens a second of forward and backward on this machine's device: the best of three, after a warm-up."""
    import torch

    from merit.compute.nll import supervised_nll
    from merit.models.loading import autocast, load_model, pick_precision

    model = load_model(folder).train()
    precision = pick_precision(train.precision)
    counts = [item.train for item in mixture.datasets]
    length = max(2, round(sum(item.tokens for item in counts) / sum(item.examples for item in counts)))
    share = sum(item.supervised_tokens for item in counts) / sum(item.tokens for item in counts)
    supervised = max(1, round(length * share))
    ids = torch.randint(0, model.config.get_text_config().vocab_size, (length,)).tolist()
    row = Encoded(ids, [IGNORED] * (length - supervised) + ids[length - supervised :])
    rows = [row] * max(1, _MEASURED_TOKENS // length)
    best = 0.0
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        with autocast(precision):
            loss = supervised_nll(model, rows).nll.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        model.zero_grad()
        best = max(best, len(rows) * length / (time.perf_counter() - started))
    return best


def _mixture(context: RunContext, report: CheckReport) -> Mixture:
    if not report.ok:
        raise Problems([InputError(line) for line in report.problems])
    found = [(item.unseen, item.summary) for item in report.datasets if item.summary is not None]
    return Mixture(
        datasets=[summary for unseen, summary in found if not unseen],
        unseen=[summary for unseen, summary in found if unseen],
        max_length=context.config.train.max_length,
        tokenizer_fingerprint="",
    )


def _known_partitions(context: RunContext) -> dict[str, Partition]:
    """The partitions of a run that has got that far."""
    known = {}
    for method in context.methods:
        if method.dir.partition.is_file():
            known[method.name] = Partition.load(method.dir.partition)
    return known
