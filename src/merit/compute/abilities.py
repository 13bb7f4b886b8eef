"""What a model can do, found by a trial on a dozen tokens rather than from a list of architectures."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from merit.base.errors import InputError
from merit.compute.attention import NotPackable
from merit.compute.batches import packed_task, padded, segmented
from merit.compute.head import Tail, find_tail
from merit.compute.packing import Packed, Segment
from merit.data.example import IGNORED, Encoded
from merit.models.loading import images_of

_log = logging.getLogger(__name__)

_SIDE = 64  # pixels of a test picture
_WINDOW = 4  # tokens, fewer than the trial's examples have
_ANSWER = 4  # tokens
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest logit


@dataclass(frozen=True)
class Abilities:
    """What a model can do.

    Attributes:
        padded: examples beside longer ones, padded at the right, give the same as alone. Else merit batches examples
            of one length.
        packed: packed rows give the same as separate examples.
        packed_images: they do with images, too. Some models let image tokens attend in both directions, or number
            their positions differently.
        tail: see `find_tail`.
    """

    padded: bool
    packed: bool
    packed_images: bool
    tail: Tail | None

    @classmethod
    def of(cls, model: Any, device: torch.device) -> Abilities:
        """Tests the model, in evaluation mode.

        Raises:
            InputError: as `check_causal`.
        """
        check_causal(model, device)
        ids = some_tokens(model, device)
        pads = takes_padding(model, device)
        with _evaluating(model):
            packs = _packs(model, ids)
            abilities = cls(pads, packs, packs and _packs_images(model, device), find_tail(model, {"input_ids": ids}))
        if not abilities.packed:
            _log.info("this model does not support packed rows, so merit pads its calibration batches")
        elif images_of(model) is not None and not abilities.packed_images:
            _log.info("this model does not support packed rows with images, so merit pads such calibration batches")
        if abilities.tail is None:
            _log.info("this model's output head does not run by itself, so merit computes the logits of a whole batch")
        return abilities


# Tried once per model: its weights may change later, and that must not change how its losses are computed.
_padding: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_packing: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def takes_packed_rows(model: Any, device: torch.device) -> bool:
    """`Abilities.packed`, found by itself."""
    if model not in _packing:
        with _evaluating(model):
            _packing[model] = _packs(model, some_tokens(model, device))
    return _packing[model]


def takes_padding(model: Any, device: torch.device) -> bool:
    """`Abilities.padded`, found by itself."""
    if model not in _padding:
        with _evaluating(model):
            _padding[model] = _pads(model, some_tokens(model, device))
        if not _padding[model]:
            _log.info("padding changes this model's results, so merit batches examples of one length")
    return _padding[model]


def check_causal(model: Any, device: torch.device) -> None:
    """Compares the logits of two texts that differ in their last token.

    Raises:
        InputError: a token's logits depend on later tokens, so the model would read the answers that it is to learn.
    """
    if images_of(model) is not None:  # some let a prompt's tokens attend in both directions
        return
    ids = some_tokens(model, device)
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    with _evaluating(model), torch.no_grad():
        logits, changed = (model(input_ids=x, use_cache=False).logits[0, :-1].float() for x in (ids, other))
    if bool(logits.isfinite().all()) and not close(changed, logits, model.dtype):
        raise InputError(
            f"`{model.config.model_type}`: its tokens attend to later ones, so it would read the answers that it is to "
            "learn; merit needs a causal language model (`is_decoder` or `causal` in config.json, where it has them)",
            field="model.path",
        )


def takes_prompts_of_different_lengths(model: Any, device: torch.device) -> bool:
    """Whether a prompt beside a longer one, padded at the left as `generate` asks, gets the answer that it gets alone.

    Models with a recurrent state may read the padding.
    """
    long = some_tokens(model, device)
    short = long[:, 3:8]
    rows = torch.cat([long, torch.cat([torch.zeros_like(long[:, :-5]), short], dim=1)])
    mask = torch.ones_like(rows)
    mask[1, :-5] = 0
    with _evaluating(model):
        alone, answer = _answers(model, short, torch.ones_like(short))
        try:
            beside, same = _answers(model, rows, mask)
        except (ValueError, RuntimeError, IndexError, TypeError):
            return False
    # A token that differs because two were equally likely changes what follows.
    steps = min(len(alone), len(beside))
    differs = (answer[-1, :steps] != same[-1, :steps]).nonzero()
    steps = int(differs[0]) + 1 if len(differs) else steps
    return close(beside[:steps, -1], alone[:steps, -1], model.dtype)


def _answers(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (tokens, rows, vocabulary) float32 and token ids (rows, tokens) of greedy answers."""
    config = GenerationConfig(do_sample=False, num_beams=1, max_new_tokens=_ANSWER, pad_token_id=0)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(out.logits).float(), out.sequences[:, ids.shape[1] :]


def some_tokens(model: Any, device: torch.device) -> Tensor:
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
    """Compares a row of two examples that share a prefix of 3 tokens with the two examples alone."""
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
    with torch.no_grad(), short_windows(model):
        try:
            with segmented(model, segments, ids.device):
                together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0].float()
        except NotPackable:
            return False
        first = model(input_ids=ids[:, :8], use_cache=False).logits[0].float()
        second = model(input_ids=torch.cat([ids[:, :3], ids[:, 8:]], dim=1), use_cache=False).logits[0].float()
    return close(together, torch.cat([first, second[3:]]), model.dtype)


@contextlib.contextmanager
def short_windows(model: Any) -> Iterator[None]:
    """Sliding windows are shorter than the trial's examples inside: some models tell attention of their window only by
    a mask, which packed rows have none of."""
    config = model.config.get_text_config()
    owners = [owner for owner in (config, *model.modules()) if _has_window(owner)]
    before = [owner.sliding_window for owner in owners]
    try:
        for owner in owners:
            owner.sliding_window = min(_WINDOW, owner.sliding_window)
        yield
    finally:
        for owner, window in zip(owners, before, strict=True):
            owner.sliding_window = window


def _has_window(owner: Any) -> bool:
    window = getattr(owner, "sliding_window", None)
    return isinstance(window, int) and not isinstance(window, bool) and window > 0


def _pads(model: Any, ids: Tensor) -> bool:
    """Compares five tokens beside twelve, padded at the right, with the five alone."""
    short = ids[:, 3:8]
    count = short.shape[1]
    rows = torch.cat([ids, torch.cat([short, torch.zeros_like(ids[:, count:])], dim=1)])
    mask = torch.ones_like(rows)
    mask[1, count:] = 0
    with torch.no_grad():
        alone = model(input_ids=short, attention_mask=torch.ones_like(short), use_cache=False).logits[0].float()
        try:
            beside = model(input_ids=rows, attention_mask=mask, use_cache=False).logits[1, :count].float()
        except (ValueError, RuntimeError, IndexError, TypeError):
            return False
    return close(beside, alone, model.dtype)


def _packs_images(model: Any, device: torch.device) -> bool:
    """Does the same with two examples that show two different images after a common text."""
    vision = images_of(model)
    if vision is None or _counts_positions(model):
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
            example = Encoded([*prefix, *ids], [IGNORED] * (len(prefix) + len(ids)), images=images)
            batch = padded([example], model)
            del batch["labels"]
            alone.append(_logits(model, batch, device)[len(alone) and start :])
        try:
            with segmented(model, segments, device):
                together = _logits(model, packed_task(row, model).inputs, device)
        except (ValueError, RuntimeError, IndexError, TypeError):
            return False  # it needs one row per example
    return close(together, torch.cat(alone), model.dtype)


def _counts_positions(model: Any) -> bool:
    """Whether positions are more than token counts (Qwen-VL's have three parts), so that the model must make them."""
    return hasattr(model, "get_rope_index") or hasattr(getattr(model, "model", None), "get_rope_index")


def _logits(model: Any, inputs: dict[str, Tensor], device: torch.device) -> Tensor:
    """(tokens, vocabulary) float32 of a single row."""
    logits: Tensor = model(**{name: value.to(device) for name, value in inputs.items()}, use_cache=False).logits
    return logits[0].float()


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> bool:
    return float((found - wanted).abs().max()) <= _TOLERANCE.get(dtype, 1e-4) * float(wanted.abs().max())


def _noise(seed: int) -> bytes:
    """A picture, as a PNG file."""
    from PIL import Image

    out = BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8)
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()
