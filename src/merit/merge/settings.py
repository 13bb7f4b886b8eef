"""Settings that two checkpoints of one shape may differ in, and what that means for their average."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from merit.base.errors import InputError
from merit.models.architecture import full_settings
from merit.models.checkpoint import Checkpoint

# Weights trained under one value of these compute something else under another.
_FUNCTION = re.compile(
    r"(^|\.)(rope|rotary|alibi|attn_logit|final_logit|qk_norm|use_qk|layer_types|position_embedding_type"
    r"|query_pre_attn|parallel_residual|use_parallel|norm_topk|routed_scaling|sliding_window|attention_window"
    r"|layernorm|norm_type|spatial_merge|vision_feature|scale_attn|partial_)[^.]*(\.|$)"
    r"|(^|[._])(heads?|head_dim|kv_heads|eps|epsilon|act|activation|act_fn|activation_function|softcapping|multiplier"
    r"|experts_per_tok|top_?k|scale|scaling|patch_size|groups?)(\.|$)"
)
_SILENT = re.compile(
    r"(^|\.)(_.*|transformers_version|torch_dtype|dtype|use_cache|quantization_config|architectures|auto_map|model_type"
    r"|output_.*|return_dict.*|unsloth.*|gradient_checkpointing|id2label.*|label2id.*|chunk_size_feed_forward"
    r"|initializer_.*|problem_type|pretraining_tp|tie_word_embeddings|ignore_keys.*|.*attn_implementation.*)(\.|$)"
    r"|dropout|pdrop|jitter|aux_loss"
)
# The class, and so all defaults; the meaning of a classifier's rows.
_DECIDES = re.compile(r"(^|\.)(model_type|architectures|id2label)(\.|$)")
_MOST = 4  # differences that a note names


def compare_settings(first: Checkpoint, other: Checkpoint) -> str | None:
    """Refuses settings that make an average meaningless; says which others differ, where some do.

    Raises:
        InputError: names the setting.
    """
    if _stated(first) == _stated(other):
        return None  # so are all defaults; transformers need not say which
    whole = [full_settings(one.config) for one in (first, other)]
    found = _labels(first, other, *(one.get("id2label") for one in whole))
    mine, theirs = (dict(_leaves(one)) for one in whole)
    for key in sorted(mine.keys() | theirs.keys()):
        one, two = mine.get(key), theirs.get(key)
        if one == two or _SILENT.search(key):
            continue
        if _FUNCTION.search(key):
            raise InputError(
                f"{two}, but {one} in {first.path}: weights trained under one value compute something else under the "
                "other",
                file=other.path / "config.json",
                field=key,
            )
        found.append(f"`{key}` {two} instead of {one}")
    if not found:
        return None
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return f"{other.path}/config.json has {', '.join(found[:_MOST])}{more}; the merge takes {first.path}'s"


def _labels(first: Checkpoint, other: Checkpoint, mine: Any, theirs: Any) -> list[str]:
    """What differs in the names of a classifier's rows.

    Raises:
        InputError: the same labels in another order: one row means two of them.
    """
    if not isinstance(mine, dict) or not isinstance(theirs, dict) or mine == theirs or len(mine) != len(theirs):
        return []
    if sorted(map(str, mine.values())) == sorted(map(str, theirs.values())):
        raise InputError(
            f"the labels of {first.path} in another order: one row of the head means two labels",
            file=other.path / "config.json",
            field="id2label",
        )
    return [f"`id2label` {list(theirs.values())[:_MOST]} instead of {list(mine.values())[:_MOST]}"]


def _stated(one: Checkpoint) -> dict[str, Any]:
    return {key: value for key, value in _leaves(one.config) if _DECIDES.search(key) or not _SILENT.search(key)}


def _leaves(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if key == "type" and at.rpartition("rope_")[1]:  # the former name of `rope_type`
            if "rope_type" in values:
                continue
            key = "rope_type"
        if isinstance(value, dict):
            yield from _leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", list(value) if isinstance(value, tuple) else value
