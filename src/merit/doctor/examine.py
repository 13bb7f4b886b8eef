"""The whole self-check: one model, seven comparisons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from merit.base.errors import InputError
from merit.base.progress import SILENT, Counter, Progress
from merit.compute.losses import example_losses
from merit.data.example import IGNORED, Encoded
from merit.doctor import checks
from merit.doctor.finding import Check, Diagnosis, Finding
from merit.doctor.gradients import Gradients, Rows, cosine_error, difference
from merit.evaluate.drift import general_prompts
from merit.models.loading import Precision

Figure = Callable[[Rows, Rows], float]

_BATCH = 4096  # tokens
_LOSSES, _GRADIENTS = 3, 6  # passes over the material
_BACKWARD = 3  # a forward and backward pass costs about three forward ones


def examine(model: Any, tokenizer: Any, name: str, progress: Progress = SILENT) -> Diagnosis:
    """Compares every way in which merit computes losses and gradients of `model` with a plainer one.

    Args:
        name: what to call the model.

    Raises:
        InputError: the tokenizer makes nothing of English text.
    """
    datasets = material(tokenizer)
    model.eval()
    tokens = sum(len(example.input_ids) for examples in datasets for example in examples)
    with progress.bar("doctor", total=(_LOSSES + _BACKWARD * _GRADIENTS) * tokens, unit="tok") as bar:
        counter = Counter(bar)
        counter.note("losses")
        findings = _losses(model, datasets, counter)
        gradients = Gradients(model, datasets, lambda count: counter(_BACKWARD * count))
        counter.note("gradients")
        findings += _gradients(model, gradients)
    device = next(model.parameters()).device
    return Diagnosis(
        model=name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        scope=gradients.scope,
        findings=findings,
    )


def _losses(model: Any, datasets: Sequence[Sequence[Encoded]], advance: Callable[[int], None]) -> list[Finding]:
    rows = [example for examples in datasets for example in examples]
    mean = sum(len(row.input_ids) for row in rows) / len(rows)

    def losses(batch_tokens: int, precision: Precision) -> torch.Tensor:
        found, _ = example_losses(
            model,
            rows,
            batch_tokens=batch_tokens,
            precision=precision,
            advance=lambda n: advance(round(mean * n)),
            packing=False,
        )
        return torch.tensor(found, dtype=torch.float64)

    batched = losses(_BATCH, "fp32")
    findings = [checks.BATCHED_LOSS.judge(float((losses(1, "fp32") - batched).abs().max()))]
    if (why := _no_bf16(model)) is not None:
        return [*findings, checks.LOW_LOSS.skip(why)]
    return [*findings, checks.LOW_LOSS.judge(float((losses(_BATCH, "bf16") - batched).abs().max()))]


def _gradients(model: Any, gradients: Gradients) -> list[Finding]:
    """Each way is measured once; what it is compared with is measured before it."""
    found: list[Finding] = []

    def compare(check: Check, figure: Figure, plain: Rows | None, way: Callable[[], Rows]) -> Rows | None:
        try:
            rows = way()
        except InputError as error:
            found.append(check.broken(error.message))
            return None
        found.append(check.skip("nothing to compare with") if plain is None else check.judge(figure(plain, rows)))
        return rows

    try:
        alone = gradients.alone()
    except InputError as error:
        return [checks.BATCHED_GRADIENT.broken(error.message)]
    padded = compare(checks.BATCHED_GRADIENT, difference, alone, gradients.padded)
    if gradients.packs:
        packed = compare(checks.PACKED, difference, padded, gradients.packed)
    else:
        found.append(checks.PACKED.skip("merit does not pack for this model: it tried, and the result was another"))
        packed = padded
    if (why := _no_bf16(model)) is None:
        compare(checks.LOW_SIMILARITY, cosine_error, packed, gradients.packed_in_bf16)
    else:
        found.append(checks.LOW_SIMILARITY.skip(why))
    compare(checks.INTERCEPTED, difference, packed, gradients.formed)
    compare(checks.FOLDED, cosine_error, packed, gradients.whole)
    return found


def _no_bf16(model: Any) -> str | None:
    device = next(model.parameters()).device
    return "this device has no bf16" if device.type == "cuda" and not torch.cuda.is_bf16_supported() else None


GROUPS = 4  # small datasets, for cosines between them
EXAMPLES = 6  # a dataset
_LINES = (1, 3, 2, 5, 1, 4)  # of text, an example
_MOST = 96  # tokens


def material(tokenizer: Any) -> list[list[Encoded]]:
    """`GROUPS` datasets of `EXAMPLES` examples; the second half of each is supervised.

    Raises:
        InputError: the tokenizer makes nothing of English text.
    """
    lines = itertools.cycle(general_prompts())
    groups = []
    for _ in range(GROUPS):
        texts = ["\n".join(itertools.islice(lines, _LINES[k])) for k in range(EXAMPLES)]
        groups.append([_encode(tokenizer, item) for item in texts])
    return groups


def _encode(tokenizer: Any, text: str) -> Encoded:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])[:_MOST]
    if len(ids) < 2:
        raise InputError("this tokenizer makes fewer than two tokens of an English sentence", field="--model")
    prompt = len(ids) // 2
    return Encoded(ids, [IGNORED] * prompt + ids[prompt:])
