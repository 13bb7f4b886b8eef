"""What the estimate takes for granted, as sentences."""

from __future__ import annotations

from merit.config import RunConfig
from merit.planning.result import ModelFacts
from merit.split.splitter import find_splitter


def assumptions(
    config: RunConfig, model: ModelFacts, tokens_per_second: float | None, *, known_split: bool
) -> list[str]:
    """The sentences that belong to this plan."""
    lora = config.train.lora is not None
    lines = [
        f"FLOPs: N = {model.parameters:,} parameters; a training token costs "
        + ("4·N, since the frozen weights get no gradient (LoRA), " if lora else "6·N, ")
        + "a token of the gradient stage at most 6·N, a forward token 2·N. Attention over long contexts, and a second "
        "forward pass under gradient checkpointing, come on top.",
        "Hours are device hours: FLOPs at the speed of one device's full training step"
        + (
            f", {tokens_per_second:,.0f} tokens a second."
            if tokens_per_second is not None
            else ". No speed was given, so there are none."
        )
        + " On a CPU what prompts have in common runs once a batch, which is not counted.",
        "The time of a method on one device a branch is that of its longest branch; K devices are taken to be equal.",
        "Branches send nothing while they train. Joint training on K data-parallel workers is charged a ring "
        "all-reduce of fp32 gradients in every step, 2·(K − 1)/K·4 bytes a trained parameter and worker, and no time "
        "for it.",
        "Memory in training: "
        + (
            "the frozen weights in their own type, and 16 bytes an adapter parameter (fp32 weight, gradient, AdamW)"
            if lora
            else "16 bytes a parameter (fp32 weight, gradient and AdamW's two moments)"
        )
        + (
            f", plus activations of {config.train.micro_batch_tokens:,} tokens without recomputation."
            if {"hidden_size", "num_hidden_layers"} <= set(model.hidden)
            else "; activations are not counted, because the model's shape is not known."
        ),
        "Disk: branches are kept as fp32 checkpoints; a branch in training keeps two states of weights and moments.",
        "Merging goes at 500 MB a second, the speed of an ordinary SSD.",
        "Evaluation counts every answer at its longest, and greedy decoding at the speed of scoring, which is too fast "
        "by several times on most devices.",
    ]
    if not known_split and not find_splitter(config.split.splitter).whole_mixture:
        lines.append(
            "The split is not made yet: groups are taken to be as equal in tokens as the largest dataset allows."
        )
    if config.split.axes == "auto":
        lines.append("`axes: auto` is taken to find two axes, four groups.")
    return lines
