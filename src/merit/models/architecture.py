"""What transformers knows of a configuration: which parameters are tied, and which tensors a loader expects.

The model is built without weights, and given a checkpoint's names and shapes to load: so merit judges names as a loader
does, with its renamings, prefixes and ties. None of this is known of a model that brings its own code.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from merit.models.layout import find_layout, same_names
from merit.models.plain_decoders import plain_tensors

Shapes = Mapping[str, tuple[int, ...]]
# Buffers that trainers of some time have saved and that every loader computes by itself, or does not know any more.
_COMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|rotary_emb\.(cos|sin)_cached|attn\.(masked_)?bias|attention\.(masked_)?bias"
    r"|position_ids|num_batches_tracked)$"
)
_COUNTS = re.compile(r'(?:layer|block|expert|depth)s?\w*": *(\d{1,18})')
_MOST_MODULES = 4096  # of one kind; a damaged configuration would keep us building
_SIZES = ("vocab_size", "hidden_size", "n_embd", "d_model", "vision_config", "text_config")


def is_computed(name: str) -> bool:
    """Whether the name is one of a buffer that loaders compute by themselves."""
    return _COMPUTED.search(name) is not None


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the output head shares the input embeddings' weights.

    A configuration that does not say so has the default of its class: Gemma's are tied, Llama's are not.
    """
    if "tie_word_embeddings" in config:
        return bool(config["tie_word_embeddings"])
    if (known := architecture_of(config)) is not None:
        return known.tied
    text = config.get("text_config")
    if isinstance(text, dict) and "tie_word_embeddings" in text:
        return bool(text["tie_word_embeddings"])
    return bool(getattr(_resolved(_key(config)), "tie_word_embeddings", False))


def find_end(which: str, endings: tuple[str, ...], names: Collection[str], config: Mapping[str, Any]) -> str | None:
    """The name among `names` of the model's `embedding` or `head`: by the usual `endings`, or else by its class."""
    usual = next((name for name in names if name.endswith(endings)), None)
    if usual is not None or plain_tensors(config) is not None:
        return usual
    name = getattr(architecture_of(config), which, None)
    return name if name in names else None


def full_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting, with the defaults of the configuration's class; what config.json says where there is no class."""
    resolved = _resolved(_key(config))
    return dict(config) if resolved is None else resolved.to_dict()


@dataclass(frozen=True)
class Loading:
    """What a loader says to a checkpoint's names."""

    missing: tuple[str, ...]  # drawn at random, in the loader's spelling
    spare: frozenset[str]  # ignored, in the checkpoint's own spelling
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # name, shape there, shape expected


@dataclass(frozen=True)
class Architecture:
    """One model class with its sizes.

    `saved` is what a trained model's checkpoint will hold; `ties` the parameter that each tied one is a copy of;
    `fused` the first parameter that is saved under another name or shape, as experts are that loading stacks;
    `embedding` and `head` the weights at both ends.
    """

    name: str
    tied: bool
    generates: bool
    transposed: frozenset[str]  # weights that are stored as (inputs, outputs): of Conv1D layers
    saved: Shapes
    ties: Mapping[str, str]
    fused: str | None
    embedding: str | None
    head: str | None
    _kind: Any = field(repr=False, compare=False)
    _config: Any = field(repr=False, compare=False)
    _answers: dict[frozenset[tuple[str, tuple[int, ...]]], Loading | None] = field(
        default_factory=dict, repr=False, compare=False
    )

    def loading(self, shapes: Shapes) -> Loading | None:
        """Lets transformers load tensors of these names and shapes; None where it cannot say.

        A model loads what it saves itself: then there is nothing to ask, which would take 10 s with 45,000 experts.
        """
        if shapes == self.saved:
            return Loading((), frozenset(), ())
        asked = frozenset(shapes.items())
        if asked not in self._answers:
            self._answers[asked] = self._ask(shapes)
        return self._answers[asked]

    def _ask(self, shapes: Shapes) -> Loading | None:
        import torch

        with _quiet(), _one_thread():
            try:
                state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
                kind: Any = type(self._kind.__name__, (self._kind,), {"_keys_to_ignore_on_load_unexpected": None})
                kind.__module__ = self._kind.__module__
                _, info = kind.from_pretrained(
                    None,
                    config=self._config,
                    state_dict=state,
                    device_map="meta",
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                )
            except MemoryError:
                raise
            except Exception:  # transformers raises what it likes; a real load will tell
                return None
        unknown, prefix = set(info["unexpected_keys"]), f"{self._kind.base_model_prefix}."
        spare = {name for name in shapes if name in unknown or prefix + name in unknown}
        spare |= {name for name in shapes if is_computed(name) and name not in self.saved}
        misshapen = tuple(sorted((str(n), tuple(a), tuple(b)) for n, a, b in info["mismatched_keys"]))
        return Loading(tuple(sorted(map(str, info["missing_keys"]))), frozenset(spare), misshapen)


def architecture_of(config: Mapping[str, Any]) -> Architecture | None:
    """The class that a configuration describes; None where transformers has none, or config.json states no sizes."""
    if not any(key in config for key in _SIZES):
        return None
    return _built(_key(config))


@lru_cache(maxsize=64)
def _built(key: str) -> Architecture | None:
    config = _resolved(key)
    if config is None:
        return None
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    with _quiet():
        try:
            named = next(iter(config.architectures or ()), "")
            kind: Any = getattr(transformers, str(named), None)
            if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
                kind = next(
                    auto._model_mapping[type(config)] for auto in _autos() if type(config) in auto._model_mapping
                )
            with torch.device("meta"):
                model = kind(config)
            model.tie_weights()
            saved = saved_shapes(model)
            outer = model.get_output_embeddings()
            inner = model.get_input_embeddings()
        except Exception:  # transformers raises what it likes at a configuration that is damaged
            return None
    tied = outer is not None and inner is not None and outer.weight is inner.weight
    conv = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)}
    ties = {str(name): str(source) for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items()}
    fused = _fused(saved, {name: tuple(value.shape) for name, value in model.named_parameters()})
    first, last = (next((f"{n}.weight" for n, m in model.named_modules() if m is end), None) for end in (inner, outer))
    generates = bool(kind.can_generate())
    return Architecture(
        kind.__name__, tied, generates, frozenset(conv), saved, ties, fused, first, last, kind, config
    )  # fmt: skip


def _fused(saved: Shapes, parameters: Shapes) -> str | None:
    stored, mine = find_layout(saved).names, find_layout(parameters).names
    same = same_names(stored, mine)
    for common, name in mine.items():
        if common not in same or saved[stored[same[common]]] != parameters[name]:
            return name
    return None


def _autos() -> tuple[Any, ...]:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    return AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM


def saved_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes that `save_pretrained` writes: tied parameters once, experts apart where they were so."""
    from transformers.core_model_loading import revert_weight_conversion

    state = dict(model.state_dict())
    for name in getattr(model, "all_tied_weights_keys", None) or {}:
        state.pop(name, None)
    return {name: tuple(value.shape) for name, value in revert_weight_conversion(model, state).items()}


@lru_cache(maxsize=64)
def _resolved(key: str) -> Any:
    """The configuration as its class reads it; None where transformers has no class for it."""
    values = json.loads(key)
    kind = values.pop("model_type", None)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if not isinstance(kind, str) or kind not in CONFIG_MAPPING_NAMES:
        return None
    if any(int(count) > _MOST_MODULES for count in _COUNTS.findall(key)):
        return None
    from transformers import AutoConfig

    with _quiet():
        try:
            return type(AutoConfig.for_model(kind)).from_dict(values)
        except Exception:  # transformers raises what it likes at a configuration that is damaged
            return None


def _key(config: Mapping[str, Any]) -> str:
    ignored = ("_name_or_path", "transformers_version", "quantization_config", "dtype", "torch_dtype")
    return json.dumps({name: value for name, value in config.items() if name not in ignored}, sort_keys=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps transformers from loading in threads: a thread that gets no memory as it starts is waited for for ever."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from speaking of a model that nobody uses."""
    from transformers.utils import logging as theirs

    bar = theirs.is_progress_bar_enabled()
    verbosity = theirs.get_verbosity()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if bar:
            theirs.enable_progress_bar()
