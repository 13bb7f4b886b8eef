"""`merit doctor`: seven comparisons of how merit computes one model's losses and gradients with a plainer way."""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merit.base.errors import InputError
from merit.base.machine import free_memory
from merit.base.progress import SILENT, Counter, Progress
from merit.compute.abilities import Abilities, takes_padding
from merit.compute.losses import example_losses
from merit.config.calibration import CalibrationConfig
from merit.config.sections import EvaluateConfig, ModelConfig
from merit.data.example import IGNORED, Encoded
from merit.doctor import checks
from merit.doctor.checks import Check, Diagnosis, Finding
from merit.evaluate.drift import general_prompts
from merit.gradients.engine import GradientEngine, Shortcuts
from merit.gradients.sketch import SketchSpec
from merit.models.loading import Precision, load_model, load_tokenizer
from merit.models.source import EMBEDDED, resolve_model

DEFAULT = f"embedded:{next(iter(EMBEDDED))}"

GROUPS = 4  # small datasets, for cosines between them
EXAMPLES = 6  # a dataset
_LINES = (1, 3, 2, 5, 1, 4)  # of text, an example
_MOST = 96  # tokens of an example
_LOSSES, _GRADIENTS = 3, 6  # passes over the material
_BACKWARD = 3  # a forward and backward pass costs about three forward ones
_SHARE = 0.5  # of the free memory that whole gradients may take
_LAYER = re.compile(r"^(.*?\.)(\d+)\.")

Rows = NDArray[np.float32]  # (datasets, numbers of the sketch)
Distance = Callable[[Rows, Rows], float]


def examine_model(path: str, progress: Progress = SILENT) -> Diagnosis:
    """Loads `path` (a Hub id, folder, .gguf file or embedded model) in fp32 and examines it.

    Raises:
        InputError: no such model, or one that cannot be loaded.
    """
    folder = resolve_model(ModelConfig(path=path), Path.cwd())
    return examine(load_model(folder.path), load_tokenizer(folder), path, progress)


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

    usual = EvaluateConfig().batch_tokens
    batched = losses(usual, "fp32")
    check = checks.BATCHED_LOSS
    if not takes_padding(model, model.device):
        check = check.without_padding()
    findings = [check.judge(float((losses(1, "fp32") - batched).abs().max()))]
    if (why := _no_bf16(model)) is not None:
        return [*findings, checks.LOW_LOSS.skip(why)]
    return [*findings, checks.LOW_LOSS.judge(float((losses(usual, "bf16") - batched).abs().max()))]


def _gradients(model: Any, gradients: Gradients) -> list[Finding]:
    """Measures each way once, and compares it with one measured before."""
    found: list[Finding] = []

    def compare(check: Check, distance: Distance, plain: Rows | None, **options: Any) -> Rows | None:
        try:
            rows = gradients.measure(**options)
        except InputError as error:
            found.append(check.broken(error.message))
            return None
        found.append(check.skip("nothing to compare with") if plain is None else check.judge(distance(plain, rows)))
        return rows

    try:
        alone = gradients.measure(batch_tokens=1, shortcuts=Shortcuts(packing=False))
    except InputError as error:
        return [checks.BATCHED_GRADIENT.broken(error.message)]
    check = checks.BATCHED_GRADIENT if gradients.pads else checks.BATCHED_GRADIENT.without_padding()
    padded = compare(check, difference, alone, shortcuts=Shortcuts(packing=False))
    if gradients.packs:
        packed = compare(checks.PACKED, difference, padded)
    else:
        found.append(checks.PACKED.skip("merit tried to pack rows for this model; the result differed, so it does not"))
        packed = padded
    if (why := _no_bf16(model)) is None:
        compare(checks.LOW_SIMILARITY, cosine_error, packed, precision="bf16")
    else:
        found.append(checks.LOW_SIMILARITY.skip(why))
    compare(checks.INTERCEPTED, difference, packed, shortcuts=Shortcuts(intercept=False))
    compare(checks.FOLDED, cosine_error, packed, sketch=SketchSpec(kind="full"))
    return found


def _no_bf16(model: Any) -> str | None:
    device = next(model.parameters()).device
    return "this device has no bf16" if device.type == "cuda" and not torch.cuda.is_bf16_supported() else None


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


class Gradients:
    """The gradients of one model's datasets in one scope, measured in different ways."""

    def __init__(self, model: Any, datasets: Sequence[Sequence[Encoded]], on_tokens: Callable[[int], None]) -> None:
        self._model, self._datasets, self._on_tokens = model, datasets, on_tokens
        self._config = CalibrationConfig()
        self._abilities = Abilities.of(model, next(model.parameters()).device)
        self.packs, self.pads = self._abilities.packed, self._abilities.padded
        self.scope = affordable_scope(model, len(datasets))

    def measure(self, sketch: SketchSpec | None = None, **options: Any) -> Rows:
        """(datasets, numbers) sketched gradient sums, as a run measures them unless an argument says otherwise.

        Args:
            sketch: default: that of `calibration`.
            options: of the gradient engine.

        Raises:
            InputError: a gradient is zero or not finite.
        """
        spec = (sketch or SketchSpec.of(self._config)).model_copy(update={"scope": self.scope})
        options.setdefault("batch_tokens", self._config.batch_tokens)
        engine = GradientEngine(self._model, spec, abilities=self._abilities, **options)
        rows = np.empty((len(self._datasets), engine.layout.width), np.float32)
        for k, examples in enumerate(self._datasets):
            np.sum(engine.measure(f"text {k}", examples, self._on_tokens).sums, axis=0, out=rows[k])
        return rows


def affordable_scope(model: Any, datasets: int) -> str:
    """All parameters ("") where whole gradients of so many datasets fit into memory, else those of a middle layer."""
    trained = [(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad]
    size = 4 * sum(count for _, count in trained)
    device = next(model.parameters()).device
    fits = (datasets + 5) * size < _SHARE * free_memory()
    if device.type == "cuda":
        fits = fits and 3 * size < _SHARE * torch.cuda.mem_get_info(device)[0]
    return "" if fits else middle_layer([name for name, _ in trained])


def middle_layer(names: Sequence[str]) -> str:
    """A regular expression for the parameters of one layer in the middle of the longest stack; "" without a stack."""
    found = [(match[1], int(match[2])) for name in names if (match := _LAYER.match(name))]
    if not found:
        return ""
    stack = collections.Counter(prefix for prefix, _ in found).most_common(1)[0][0]
    deepest = max(layer for prefix, layer in found if prefix == stack)
    return rf"^{re.escape(stack)}{deepest // 2}\."


def difference(a: Rows, b: Rows) -> float:
    """Largest ‖a_t − b_t‖ / ‖a_t‖ over datasets t."""
    return float(max(np.linalg.norm(x - y) / np.linalg.norm(x) for x, y in zip(a, b, strict=True)))


def cosine_error(a: Rows, b: Rows) -> float:
    """Largest difference of a cosine between two datasets."""
    return float(np.abs(_cosines(a) - _cosines(b)).max())


def _cosines(rows: Rows) -> NDArray[np.float64]:
    gram = np.array([[np.vdot(a, b) for b in rows] for a in rows], dtype=np.float64)
    norms = np.sqrt(gram.diagonal())
    cosines: NDArray[np.float64] = gram / np.outer(norms, norms)
    return cosines
