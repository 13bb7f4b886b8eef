"""What a model can be asked to do, found by trying it on a dozen tokens rather than from a list of architectures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merit.gradients.attention import packed, packed_model
from merit.gradients.head import Tail, find_tail
from merit.gradients.packing import Segment
from merit.logging import get_logger

logger = get_logger(__name__)

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest logit


@dataclass(frozen=True)
class Abilities:
    """`packed`: packed rows give what examples give alone. `tail`: see `find_tail`."""

    packed: bool
    tail: Tail | None

    @classmethod
    def of(cls, model: Any, device: torch.device) -> Abilities:
        """Tries the model out, in evaluation mode."""
        ids = torch.arange(1, 13, device=device).remainder_(model.config.get_text_config().vocab_size).unsqueeze(0)
        was_training = model.training
        model.eval()
        try:
            abilities = cls(_packs(model, ids), find_tail(model, {"input_ids": ids}))
        finally:
            model.train(was_training)
        if not abilities.packed:
            logger.info("this model cannot take packed rows; its calibration batches are padded")
        if abilities.tail is None:
            logger.info("this model's output head cannot be run by itself; its logits are made a batch at a time")
        return abilities


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
    alone = torch.cat([first, second[3:]])
    tolerance = _TOLERANCE.get(model.dtype, 1e-4) * float(alone.abs().max())
    return float((together - alone).abs().max()) <= tolerance
