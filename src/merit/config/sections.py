"""The sections of a run's configuration, in the file's order, and what all sections have in common.

`calibration`, `diagnose` and `launch` have files of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from merit.base import extensions

Location = tuple[str | int, ...]
REFUSED = "refused"  # type of the errors of checks across fields

Seed = Annotated[int, Field(ge=0, lt=2**32)]
# Strings that `resolve_paths` makes absolute: always, or only where such a file exists (else it is a Hub id).
LOCAL, LOCAL_IF_THERE = "local path", "local path if it exists"
LocalPath = Annotated[str, LOCAL]
LocalIfThere = Annotated[str, LOCAL_IF_THERE]


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys forbidden, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def refused(problems: Sequence[tuple[Location, str]]) -> PydanticCustomError:
    """The error of a check across fields, as (place, message). Validators may raise pydantic's errors only."""
    text = "; ".join(f"`{'.'.join(map(str, at))}`: {message}" for at, message in problems)
    return PydanticCustomError(REFUSED, "{text}", {"text": text, "problems": list(problems)})


Role = Literal["vision", "projector", "language"]


class ModelConfig(Section):
    """Where θ0 comes from. In YAML a plain string is short for `path`."""

    path: LocalIfThere = Field(
        min_length=1, description="Hub id, folder, .gguf file, `embedded:smollm2-135m` or `embedded:tiny-llava`."
    )
    revision: str | None = Field(default=None, description="Hub revision: a branch, tag or commit.")
    trust_remote_code: bool = Field(default=False, description="Run Python code from the model's repository.")
    freeze: list[Role] | None = Field(
        default=None,
        description="Parts of a vision-language model to freeze, from [vision, projector, language]: merit measures no "
        "gradient there, and the merge keeps their bits. Default, as published: [vision, projector].",
    )
    chat_template: LocalPath | None = Field(
        default=None, description="A Jinja file that replaces the tokenizer's chat template."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


if TYPE_CHECKING:
    FormatName = str
    FieldName = str
else:
    FormatName = Literal[extensions.names("formats")]
    _KNOWN = ("prompt", "completion", "input", "history", "choices")
    _KNOWN += ("system", "messages", "reference", "images", "tools")
    _OTHERS = [extensions.stated("formats", name, "columns") for name in extensions.foreign("formats")]
    FieldName = Literal[tuple(dict.fromkeys(field for fields in (_KNOWN, *_OTHERS) for field in fields))]


GENERATED = 500  # examples of a generator that sets no `max_examples`


class DatasetConfig(Section):
    """One dataset: a source, a weight or cap, a prompt format."""

    path: LocalIfThere = Field(
        min_length=1,
        description="A .jsonl, .json, .csv, .tsv, .parquet or .arrow file (relative to this configuration), several "
        "that are one dataset (`*` in the name), a Hub dataset id, `reasoning_gym:NAME`, or `visual:NAME` (generated "
        "pictures).",
    )
    split: str = Field(default="train", description="Split of a Hub dataset.")
    subset: str | None = Field(default=None, description="Configuration name of a Hub dataset.")
    format: FormatName | None = Field(
        default=None, description="Format of the rows. Default: detected from the first rows."
    )
    columns: dict[FieldName, str] = Field(
        default_factory=dict, description="merit's field → the source's column, e.g. {prompt: question}."
    )
    where: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="Use only the rows with these values, column by column, e.g. {source: math}: several datasets can "
        "share one file.",
    )
    system: str | None = Field(default=None, description="System message for examples that have none.")
    max_examples: int | None = Field(
        default=None,
        ge=1,
        description=f"Use at most this many rows, chosen by content hash. Default: all; {GENERATED} of a generator.",
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Share of the training examples used per epoch: 0.5 uses half, 2 uses each twice.",
    )
    on_bad_row: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="Refuse the dataset for a row that cannot be read, or leave such rows out and list them in "
        "`data/NAME.skipped.jsonl`.",
    )
    image_folder: LocalPath | None = Field(
        default=None,
        description="Folder that relative image paths start from and must not leave. Default: the data file's own.",
    )
    image_urls: bool = Field(default=False, description="Fetch images from the web.")
    bad_images: Literal["skip", "refuse"] = Field(
        default="skip", description="Skip and list an example whose image is unusable, or refuse the dataset."
    )
    max_pixels: int = Field(default=100_000_000, ge=1, description="An image with more pixels counts as bad.")
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments of a generator, including `seed`.")

    @property
    def mark(self) -> dict[str, Any]:
        """What fingerprints hold of it: what they did before `on_bad_row` and `where`, if these are not set."""
        unset = {"on_bad_row"} if self.on_bad_row == "refuse" else set()
        return self.model_dump(mode="json", exclude=unset if self.where else {*unset, "where"})


class PrepareStage(Section):
    """One round of joint training on the general mixture. Unset fields come from `train`."""

    freeze: list[Role] = Field(default_factory=list, description="Parts of the model to freeze in this round.")
    epochs: float = Field(default=1, gt=0, description="Passes over the general mixture.")
    learning_rate: float | None = Field(default=None, gt=0, description="Peak learning rate.")
    batch_tokens: int | None = Field(default=None, ge=1, description="Mean tokens per optimizer step.")


class PrepareConfig(Section):
    """Basin preparation: the LLaVA recipe for a vision-language model, a short joint warm-up for text."""

    vision_tower: LocalIfThere | None = Field(
        default=None,
        description="A CLIP or SigLIP model (folder or Hub id) to join with the language model `model` through a new "
        "projector, as in LLaVA. Unset: `model` is complete.",
    )
    mixture: dict[str, DatasetConfig] = Field(
        default_factory=dict, description="The general mixture. Default: the run's own, without its held-out rows."
    )
    stages: list[PrepareStage] | None = Field(
        default=None,
        min_length=1,
        description="Rounds, in order. Default for a vision-language model: the projector alone at 1e-3, then "
        "projector and language model; for text a tenth of an epoch.",
    )

    @property
    def mark(self) -> dict[str, Any]:
        """What fingerprints hold of it."""
        return self.model_dump(mode="json") | {"mixture": {name: item.mark for name, item in self.mixture.items()}}

    def rounds(self, *, vision: bool) -> list[PrepareStage]:
        """The stages, or their default."""
        if self.stages is not None:
            return self.stages
        if not vision:
            return [PrepareStage(epochs=0.1)]
        projector = PrepareStage(freeze=["vision", "language"], learning_rate=1e-3)
        return [projector, PrepareStage(freeze=["vision"])]


class GateConfig(Section):
    """Go or no-go: trains a pilot of every branch on a small share of its data, and merges the pilots."""

    share: float = Field(default=0.02, gt=0, le=1, description="Share of a branch's data for its pilot.")
    examples: int = Field(default=8, ge=2, description="Held-out examples per dataset to measure the pilots on.")
    points: int = Field(default=5, ge=3, le=101, description="Points on the line between two pilots.")
    max_barrier: float = Field(
        default=0.02, ge=0, description="Highest barrier between two pilots that passes, as a share of θ0's loss."
    )
    enforce: bool = Field(default=True, description="Stop the run before training if the gate says no.")


if TYPE_CHECKING:
    SplitterName = str
else:
    SplitterName = Literal[extensions.names("splitters")]

UNSPLIT: SplitterName = "single"  # the fallback when no axis is worth a cut: joint training
MAX_AXES = 10


def _axes(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_AXES):
        return value
    raise ValueError(f"use a whole number from 1 to {MAX_AXES}, or `auto`, not {value!r:.60}")


AxesCount = Annotated[int | Literal["auto"], BeforeValidator(_axes)]


Centre = Literal["columns", "both", "none"]
Balance = Literal["samples", "tokens"]


class SplitConfig(Section):
    """The splitter and its size: K = 2^axes groups."""

    splitter: SplitterName = Field(default="pca", description=extensions.summaries("splitters"))
    axes: AxesCount = Field(
        default=2,
        description="r conflict axes make K = 2^r groups (`single` has one group). `auto`: as many axes as capture "
        "more conflict than a random cut on fresh examples; with none, one group.",
    )
    centre: Centre = Field(
        default="columns",
        description="How to centre the similarity matrix before its axes are taken: `columns` as published, `both` "
        "rows and columns (a PCA of the unit gradients), or `none`.",
    )
    balance: Balance = Field(
        default="samples",
        description="What a cut halves: each dataset weighs its number of examples, as published (`samples`), or its "
        "supervised tokens (`tokens`).",
    )
    keep: bool = Field(
        default=False,
        description="Keep the groups in `split/kept/`, and place new datasets on their axes (`merit add` sets it).",
    )
    file: LocalPath | None = Field(default=None, description="JSON or YAML {group: [dataset, …]} for `manual`.")

    @property
    def mark(self) -> dict[str, Any]:
        """What fingerprints hold of it: what merit 0.1.0 would, so that its runs stay as they are."""
        left = {"balance"} if self.balance == "tokens" else set()
        return self.model_dump(mode="json", exclude=left) | {"centre": centre_mark(self.centre)}


def centre_mark(centre: Centre) -> bool | str:
    """A centring in fingerprints: merit 0.1.0 knew true (`both`) and false (`none`)."""
    return "columns" if centre == "columns" else centre == "both"


class LoraSection(Section):
    """LoRA through PEFT; unset means full fine-tuning."""

    r: int = Field(default=16, ge=1, description="Rank.")
    alpha: float = Field(default=32, gt=0, description="Scale: the update is alpha / r · B A.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    target_modules: str | list[str] = Field(default="all-linear", description="Modules to adapt.")


Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]


class OuterConfig(Section):
    """An outer optimizer over the rounds: SGD with Nesterov momentum, as in DiLoCo (0.7 and 0.9 there)."""

    rate: float = Field(default=1.0, gt=0, description="Learning rate of the step from a round's start to its merge.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Nesterov momentum, kept from round to round.")

    @property
    def is_plain(self) -> bool:
        """Whether the step ends at the merge itself."""
        return self.rate == 1 and self.momentum == 0


class TrainConfig(Section):
    """Training, run by TRL's SFTTrainer."""

    epochs: float = Field(default=1, gt=0, description="Passes over the data of a branch.")
    rounds: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Merge so many times, evenly over the training; branches go on from each merge. 1: as published.",
    )
    carry_optimizer: bool = Field(
        default=True, description="With rounds: a branch keeps its optimizer's moments over a merge."
    )
    outer: OuterConfig | None = Field(
        default=None,
        description="With rounds: a merge is the gradient of an outer optimizer, {rate, momentum}. Default: each round "
        "goes on from the merge itself, as rate 1 without momentum does.",
    )
    learning_rate: float = Field(default=2e-5, gt=0, description="Peak learning rate of AdamW.")
    batch_tokens: int = Field(
        default=16384, ge=1, description="Mean tokens per optimizer step; sets the examples per step."
    )
    micro_batch_tokens: int = Field(
        default=4096, ge=1, description="Tokens per forward pass, padding included; limits memory, changes no result."
    )
    max_length: int = Field(default=2048, ge=8, description="Truncate longer examples at the end, in tokens.")
    warmup_ratio: float = Field(
        default=0.03, ge=0, lt=1, description="Share of a run in which the learning rate rises."
    )
    schedule: Schedule = Field(default="cosine", description="Learning-rate schedule; `constant` has no warm-up.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay.")
    pull: float = Field(
        default=0.0,
        ge=0,
        description="Weight decay toward θ0 instead of zero: each step subtracts rate × pull × (θ − θ0).",
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="Autocast type; weights and optimizer stay fp32. auto: bf16 where it is fast."
    )
    lora: LoraSection | None = Field(default=None, description="LoRA settings, or null for full fine-tuning.")
    checkpoint_minutes: float = Field(
        default=10, gt=0, description="The most work that a killed branch loses, in minutes."
    )
    snapshots: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Sketches of the weights (512 kB each) to keep during training, for `merit diagnose`. Each takes "
        "about the time of a forward pass. Full fine-tuning only.",
    )
    trl: dict[str, Any] = Field(default_factory=dict, description="Further arguments of TRL's SFTConfig.")

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out rounds where there is one, so that branches that were trained before there were rounds count as
        what they are."""
        found: dict[str, Any] = serialize(self)
        left = {"rounds", "carry_optimizer"} if self.rounds == 1 else set()
        left |= {"outer"} if self.outer is None else set()
        return {key: value for key, value in found.items() if key not in left}

    @model_validator(mode="after")
    def _rounds_of_whole_weights(self) -> TrainConfig:
        if self.rounds > 1 and self.lora is not None:
            said = "an adapter cannot go on from a merge: leave out `lora`, or set it to 1"
            raise refused([(("rounds",), said)])
        if self.rounds == 1 and self.outer is not None:
            said = "one round has nothing to carry on: set `train.rounds` above 1, or leave this out"
            raise refused([(("outer",), said)])
        return self

    @property
    def outer_step(self) -> OuterConfig | None:
        """The outer optimizer, if it does anything."""
        return None if self.outer is None or self.outer.is_plain else self.outer


# Defaults of every merge: in a run, in `merit merge A B C` and from Python.
SHARD_BYTES = 5_000_000_000
MEMORY_BYTES = 512_000_000  # of all buffers together
CURVATURE_BATCH_TOKENS = 4096
GRAM_BYTES = 1_000_000_000  # of the Gram matrices that a branch measures at once; the bytes of its weights, if more
SKETCH_SHARE = 0.1  # of its checkpoint's bytes, which a branch's sketch of its inputs takes at most

DtypeName = Literal["input", "float32", "bfloat16", "float16"]
Rounding = Literal["nearest", "stochastic"]
DTYPE: DtypeName = "input"
ROUNDING: Rounding = "nearest"
Scale = Annotated[float, Field(gt=0, le=10)]
if TYPE_CHECKING:
    RuleName = str
else:
    RuleName = Literal[extensions.names("rules")]

PUBLISHED: RuleName = "tokens"  # the rule of the paper, which others are compared with


class RuleConfig(Section):
    """How else to merge the same branches. A plain string is short for `rule`."""

    rule: RuleName = Field(description="The merge rule, as `merge.weights`.")
    ridge: float | None = Field(
        default=None, gt=0, le=1e6, description="As `merge.ridge`. Default: the rule's own default."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"rule": value} if isinstance(value, str) else value


class MergeConfig(Section):
    """The weighted average θ̄, and models θ0 + β(θ̄ − θ0)."""

    weights: RuleName = Field(default=PUBLISHED, description=f"The merge rule. {extensions.summaries('rules')}")
    ridge: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Pull toward the token average (rules that solve), relative to the mean curvature of a tensor. "
        "Default: the rule's own, 0.01 for regmean and 0.1 for others.",
    )
    curvature_examples: int = Field(
        default=64, ge=2, description="Training examples used to estimate each branch's curvature (rules by curvature)."
    )
    dtype: DtypeName = Field(
        default=DTYPE, description="Data type of the merged weights; `input` keeps that of the branches."
    )
    scales: list[Scale] = Field(
        default_factory=lambda: [1.0], min_length=1, description="Write one model for each β; 1 is the merge itself."
    )
    shard_bytes: int = Field(default=SHARD_BYTES, ge=1_000_000, description="Largest safetensors shard, in bytes.")
    also: list[RuleConfig] = Field(
        default_factory=list,
        description="Further rules to merge the same branches by, e.g. [regmean]; each is a model of its own, called "
        "merit-RULE. Short for `baselines: {merit-RULE: {branches: merit, merge: RULE}}`, with this section's scales.",
    )

    @property
    def mark(self) -> dict[str, Any]:
        """What fingerprints hold of it. A further rule has a merge of its own, and changes no other."""
        found = self.model_dump(mode="json", exclude={"also"})
        rule, *imports = extensions.marks("rules", self.weights) or [None]
        found |= {"rule": rule} if rule else {}
        return found | ({"imports": tuple(imports)} if imports else {})

    def by(self, own: RuleConfig | None) -> MergeConfig:
        """The same with a method's own rule, if it has one."""
        return self if own is None else self.model_copy(update={"weights": own.rule, "ridge": own.ridge})

    def same_rule(self, other: MergeConfig) -> bool:
        """Whether both merge the same branches to the same model."""
        return (self.weights, self.effective_ridge) == (other.weights, other.effective_ridge)

    @property
    def measured_examples(self) -> int | None:
        """Training examples on which every branch measures its layers' inputs; None if no rule weighs by them."""
        needed: bool = extensions.load("rules", self.weights).needs_inputs
        return self.curvature_examples if needed else None

    @property
    def effective_ridge(self) -> float:
        """The ridge, or the rule's default."""
        default: float = extensions.load("rules", self.weights).ridge
        return default if self.ridge is None else self.ridge


class EvaluateConfig(Section):
    """Held-out loss, exact match, unseen datasets, drift."""

    held_out: int = Field(default=64, ge=1, description="At most this many held-out examples per dataset for the loss.")
    generate: int = Field(
        default=16,
        ge=0,
        description="Answers for each dataset of the mixture, by greedy decoding, for exact match. 0: none.",
    )
    max_new_tokens: int = Field(default=64, ge=1, description="Longest answer of greedy decoding, in tokens.")
    engine: Literal["auto", "hf", "vllm"] = Field(
        default="auto",
        description="What decodes: `hf`, transformers or merit's own decoding on a CPU; `vllm`, on a GPU where it is "
        "installed. `auto`: `vllm` where it can.",
    )
    unseen: dict[str, DatasetConfig] = Field(
        default_factory=dict, description="Datasets that no branch trains on; they are only evaluated."
    )
    drift: int = Field(
        default=0,
        ge=0,
        le=32,
        description="How many general prompts θ0 answers; measures the loss of every model on these answers. 0: none.",
    )
    branches: bool = Field(default=True, description="Also measure the loss of each branch of the main method.")
    batch_tokens: int = Field(default=4096, ge=1, description="Tokens per forward pass, padding included.")
