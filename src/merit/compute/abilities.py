"""What a model can be asked to do, found by trying it on a dozen tokens rather than from a list of architectures."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merit.compute.attention import packed, packed_model
from merit.compute.batches import aligned_batch, counts_positions, packed_task
from merit.compute.head import Tail, find_tail
from merit.compute.packing import Packed, Segment
from merit.data.example import IGNORED, Encoded
from merit.models.loading import images_of

logger = logging.getLogger(__name__)

_SIDE = 64  # pixels of a picture that is tried out
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest logit


@dataclass(frozen=True)
class Abilities:
    """`packed`: packed rows give what examples give alone; `packed_images`: so they do with images among their tokens,
    which some models let attend in both directions, or give places of their own. `tail`: see `find_tail`."""

    packed: bool
    packed_images: bool
    tail: Tail | None

    @classmethod
    def of(cls, model: Any, device: torch.device) -> Abilities:
        """Tries the model out, in evaluation mode."""
        ids = _some_tokens(model, device)
        with _evaluating(model):
            packs = _packs(model, ids)
            abilities = cls(packs, packs and _packs_images(model, device), find_tail(model, {"input_ids": ids}))
        if not abilities.packed:
            logger.info("this model cannot take packed rows; its calibration batches are padded")
        elif images_of(model) is not None and not abilities.packed_images:
            logger.info("this model cannot take packed rows with images; such calibration batches are padded")
        if abilities.tail is None:
            logger.info("this model's output head cannot be run by itself; its logits are made a batch at a time")
        return abilities


def takes_packed_rows(model: Any, device: torch.device) -> bool:
    """`Abilities.packed`, found by itself."""
    with _evaluating(model):
        return _packs(model, _some_tokens(model, device))


def _some_tokens(model: Any, device: torch.device) -> Tensor:
    """(1, 12) int64."""
    return torch.arange(1, 13, device=device).remainder_(model.config.get_text_config().vocab_size).unsqueeze(0)


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _packs(model: Any, ids: Tensor) -> bool:
    """Compares a row of two examples with a common prefix of 3 tokens against the two alone."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or [])
    if (
        model.config._attn_implementation != "sdpa"
        or not model._can_set_attn_implementation()
        or layers - _KNOWN_LAYERS
    ):
        return False
    segments = (Segment(0, 3), Segment(3, 8, 0, 3), Segment(8, 12, 0, 3))
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6]], device=ids.device)
    with torch.no_grad():
        with packed_model(model), packed(segments, ids.device):
            together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0].float()
        first = model(input_ids=ids[:, :8], use_cache=False).logits[0].float()
        second = model(input_ids=torch.cat([ids[:, :3], ids[:, 8:]], dim=1), use_cache=False).logits[0].float()
    return _close(together, torch.cat([first, second[3:]]), model.dtype)


def _packs_images(model: Any, device: torch.device) -> bool:
    """The same of two examples that show two different images after a common text."""
    vision = images_of(model)
    if vision is None or counts_positions(model):
        return False
    tokenize = partial(vision.processor.tokenizer, add_special_tokens=False)
    picture = vision.expansions([(_SIDE, _SIDE)])[0]
    prefix, *own = (tokenize(text)["input_ids"] for text in ("a common text", f"{picture} one", f"{picture} another"))
    start, middle, stop = itertools.accumulate(len(ids) for ids in (prefix, *own))
    segments = (Segment(0, start), Segment(start, middle, 0, start), Segment(middle, stop, 0, start))
    row = Packed(
        input_ids=torch.tensor([[*prefix, *own[0], *own[1]]]),
        position_ids=torch.tensor([[*range(middle), *range(start, start + stop - middle)]]),
        segments=segments,
        keep=torch.zeros(0),
        targets=torch.zeros(0),
        owner=torch.zeros(0),
        tokens=0,
        images=tuple((_noise(seed),) for seed in range(2)),
    )
    with torch.no_grad():
        alone: list[Tensor] = []
        for ids, images in zip(own, row.images, strict=True):
            batch = aligned_batch(
                model, [Encoded([*prefix, *ids], [IGNORED] * (len(prefix) + len(ids)), images=images)]
            )
            del batch["labels"], batch["position_ids"]
            alone.append(_logits(model, batch, device)[len(alone) and start :])
        try:
            with packed_model(model), packed(segments, device):
                together = _logits(model, packed_task(row, model).inputs, device)
        except (ValueError, RuntimeError, IndexError, TypeError):
            return False  # it insists on a row an example
    return _close(together, torch.cat(alone), model.dtype)


def _logits(model: Any, inputs: dict[str, Tensor], device: torch.device) -> Tensor:
    """(tokens, vocabulary) float32 of a single row."""
    logits: Tensor = model(**{name: value.to(device) for name, value in inputs.items()}, use_cache=False).logits
    return logits[0].float()


def _close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    return float((found - wanted).abs().max()) <= _TOLERANCE.get(dtype, 1e-4) * float(wanted.abs().max())


def _noise(seed: int) -> bytes:
    """A picture, as a PNG file."""
    from PIL import Image

    out = BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()
