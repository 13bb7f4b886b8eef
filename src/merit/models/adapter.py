"""Adapter: a LoRA folder as PEFT writes it, seen through its header and matched with the tensors of its base."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merit.base.errors import InputError
from merit.base.files import read_json
from merit.models.architecture import architecture_of
from merit.models.checkpoint import (
    EMBEDDINGS,
    HEADS,
    Checkpoint,
    TensorInfo,
    read_header,
    unwrapped,
)
from merit.models.layout import find_layout, role_of
from merit.models.plain_decoders import plain_tensors

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_OUTER = ("model.", "transformer.", "gpt_neox.", "base_model.")  # what a bare model's names lack
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COPIES = re.compile(r"(-unsloth)?-(bnb-4bit|4bit|8bit|gptq.*|awq.*|fp8)$")
_FACTORS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}
# Settings whose update is not scale · B A on the unchanged base: merging them as if it were would be silently wrong.
_REFUSED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
_LARGEST = 1e6  # α of any use is far below
_LONGEST = 300  # characters of a pattern
_SLOW = re.compile(r"[*+}].*\)[*+{]")  # a repeat in a group that is repeated: matching can double with each character
_KNOWN_INITS = (True, False, "gaussian", "eva", "orthogonal", None)  # others change the base before training


@dataclass(frozen=True)
class LowRank:
    """The update of one matrix W (rows, columns): scale · B A, transposed where W is stored as (inputs, outputs).

    `a` is (r, inputs), `b` (outputs, r). With DoRA, W becomes m · (W + update) / ‖W + update‖ row by row.
    """

    a: TensorInfo
    b: TensorInfo
    scale: float  # α/r, or α/√r with rsLoRA
    transposed: bool
    magnitude: TensorInfo | None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True)
class Adapter:
    """What one adapter changes, by the base's own tensor names."""

    path: Path
    config: Mapping[str, Any]
    updates: Mapping[str, LowRank]
    full: Mapping[str, TensorInfo]  # modules_to_save and trained biases: whole tensors that replace the base's
    modules: Mapping[str, str]  # base's tensor name → the module's name inside the adapter's file
    notes: tuple[str, ...]  # what the configuration names and the file lacks

    @classmethod
    def open(cls, path: Path, base: Checkpoint) -> Adapter:
        """Reads configuration and header, and finds the base's tensor for each update.

        Raises:
            InputError: pickled or damaged, a kind of adapter that is not plain LoRA, rsLoRA or DoRA, or a tensor that
                `base` does not have in that shape. Names the file and the tensor or setting.
        """
        config = _config(path)
        if others := sorted(file.name for file in path.glob("*.safetensors") if file.name != WEIGHTS):
            raise InputError(
                f"an adapter, and beside it {others[0]}, which would not be read; which is meant? Move the other to a "
                "folder of its own",
                file=path,
            )
        if not (path / WEIGHTS).is_file():
            why = f"there is no {WEIGHTS} in it"
            if (path / "adapter_model.bin").is_file():
                why = "the adapter is pickled, which can run code when loaded; save it as safetensors"
            raise InputError(why, file=path)
        parts: dict[str, dict[str, TensorInfo]] = {}
        whole: dict[str, TensorInfo] = {}
        for info in read_header(path / WEIGHTS):
            name = unwrapped(info.name).removeprefix(_PREFIX).replace(".default.", ".")
            name = name.replace(".modules_to_save.", ".").removesuffix(".default")
            for ending, role in _FACTORS.items():
                if name.endswith(ending):
                    parts.setdefault(name.removesuffix(ending).removesuffix(".weight"), {})[role] = info
                    break
            else:
                whole[name.replace(".base_layer.", ".")] = info
        if not parts and not whole:
            raise InputError("no tensors in it: DeepSpeed ZeRO-3 did not gather the adapter before it was saved?",
                             file=path / WEIGHTS)  # fmt: skip
        spelled = _spelled(base)

        def own(name: str, info: TensorInfo) -> str:
            """The base's name of a tensor."""
            if name not in spelled and (prefixed := next((p for p in _OUTER if p + name in spelled), None)):
                name = prefixed + name
            if name not in spelled and any(name.startswith(p) and name.removeprefix(p) in spelled for p in _OUTER):
                name = name.split(".", 1)[1]
            if name not in spelled:
                raise InputError(f"the base {base.path} has no `{name}`", file=path / WEIGHTS, field=info.name)
            return spelled[name]

        transposed = _transposed(base, spelled)
        updates, modules = {}, {}
        for module, factors in parts.items():
            if base.tied and f"{module}.weight".endswith(HEADS) and _same_update(parts, factors):
                continue  # the embeddings' own update, which the head shares
            name = own(f"{module}.weight", next(iter(factors.values())))
            turned = transposed if transposed is None else name in transposed
            updates[name] = _low_rank(path, config, module, factors, _Target(base.info(name), turned))
            modules[name] = module
        full = _full(path, whole, base, own)
        _check_full(path, full, base)
        _check_tied(path, config, {*updates, *full}, base)
        saved = {spelled.get(name, name) for name in whole}
        notes = tuple(_untrained(path, config, {*updates, *saved, *full}, base))
        return cls(path, config, updates, full, modules, notes)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter instead of a whole model."""
    return (path / CONFIG).is_file()


def base_of(path: Path) -> str | None:
    """The base that the adapter's configuration names. Do not trust it: a stranger's adapter may name any folder."""
    name = _config(path).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def _config(path: Path) -> dict[str, Any]:
    file = path / CONFIG
    config = read_json(file)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise InputError(f"adapters of type {kind} cannot be averaged; only LoRA", file=file, field="peft_type")
    for key in _REFUSED:
        if config.get(key):
            raise InputError("adapters with this setting cannot be averaged", file=file, field=key)
    if config.get("init_lora_weights", True) not in _KNOWN_INITS:
        raise InputError(
            f"{config['init_lora_weights']!r} changed the base before training; convert the adapter to plain LoRA",
            file=file,
            field="init_lora_weights",
        )
    return config


@dataclass(frozen=True)
class _Target:
    """The weight that an update is added to."""

    weight: TensorInfo
    transposed: bool | None  # stored as (inputs, outputs); None where its layer's class is not known


def _low_rank(
    path: Path, config: Mapping[str, Any], module: str, factors: Mapping[str, TensorInfo], target: _Target
) -> LowRank:
    weight, turned = target.weight, target.transposed
    file = path / WEIGHTS
    if not {"a", "b"} <= factors.keys():
        raise InputError("one of the factors A and B is missing", file=file, field=module)
    a, b = factors["a"], factors["b"]
    embedding = "lora_embedding" in a.name
    transposed = embedding or (bool(config.get("fan_in_fan_out")) if turned is None else turned)
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
        raise InputError(f"A {list(a.shape)} and B {list(b.shape)} do not fit together", file=file, field=module)
    shape = (b.shape[0], a.shape[1])
    if weight.shape != (shape[::-1] if transposed else shape):
        raise InputError(
            f"the update is {list(shape)}, but {weight.name} of the base is {list(weight.shape)}",
            file=file,
            field=module,
        )
    magnitude = factors.get("magnitude")
    if bool(config.get("use_dora")) != (magnitude is not None):
        raise InputError("`use_dora` and the magnitude vectors do not agree", file=file, field=module)
    if magnitude is not None and (transposed or magnitude.elements != shape[0]):
        raise InputError("DoRA on embeddings or Conv1D cannot be averaged", file=file, field=module)
    alpha = _pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not -_LARGEST < alpha < _LARGEST:
        raise InputError(f"{alpha!r} is not a number", file=path / CONFIG, field="lora_alpha")
    rank = a.shape[0]
    stated = _pattern(config, "rank_pattern", module, config.get("r", rank))
    if stated != rank:
        raise InputError(
            f"{stated!r}, but the factors of {module} have rank {rank}: α / r would be another scale than in training",
            file=path / CONFIG,
            field="r",
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(a, b, scale, transposed, magnitude)


def _pattern(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """As PEFT looks a module up: the first pattern that matches the end of its name."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise InputError("must be an object of patterns", field=key)
    for pattern, value in patterns.items():
        if len(pattern) > _LONGEST or _SLOW.search(pattern):
            raise InputError("matching this pattern may never end; write it without nested repeats", field=key)
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(f"not a regular expression: {error}", field=f"{key}.{pattern}") from error
    return default


def check_bases(paths: Sequence[Path]) -> list[str]:
    """Compares the bases that adapters name; the notes are names that differ and may yet mean one model.

    Raises:
        InputError: two adapters name different models of the Hub.
    """
    named = [(path, name) for path in paths if (name := base_of(path)) is not None]
    for path, name in named[1:]:
        first, other = named[0]
        if model_name(name) != model_name(other) and all(HUB_ID.fullmatch(one) for one in (name, other)):
            raise InputError(
                f"{name!r}, but {first} was trained on {other!r}: their updates do not belong to one model; if the two "
                "are the same, correct this field",
                file=path / CONFIG,
                field="base_model_name_or_path",
            )
        if name != other:
            return [f"{path} names its base {name!r}, {first} {other!r}: merged as adapters of one model"]
    return []


def model_name(name: str) -> str:
    """A model's name without its owner and without a quantised copy's ending."""
    return _COPIES.sub("", name.rstrip("/").rsplit("/", 1)[-1].lower())


def _spelled(base: Checkpoint) -> dict[str, str]:
    """Every spelling of the base's tensors → its own: also that of transformers before 4.52. A text model and the
    language model of its vision-language generation have each other's names."""
    names = {**find_layout(base.tensors).names, **{name: name for name in base.tensors}}
    text = not any("language_model." in name for name in names)
    for name, own in list(names.items()):
        if text and name.startswith("model."):
            names[f"model.language_model.{name.removeprefix('model.')}"] = own
        elif name.startswith("model.language_model."):
            short = name.removeprefix("model.language_model.")
            names.setdefault(f"model.{short}", own)
            names.setdefault(f"language_model.model.{short}", own)
        elif name.startswith("lm_head."):
            names.setdefault(f"language_model.{name}", own)
    return names


def _untrained(path: Path, config: Mapping[str, Any], changed: set[str], base: Checkpoint) -> Iterator[str]:
    """What the configuration says was trained, and the file lacks. Patterns are not asked, and fused experts are not
    the modules of their tensors."""

    def named(key: str) -> tuple[str, ...]:
        value = config.get(key)
        return tuple(str(item) for item in value) if isinstance(value, list) else ()

    def modules(names: tuple[str, ...], dimensions: int) -> list[str]:
        found = [name for name, info in base.tensors.items() if len(info.shape) >= dimensions]
        found = [name for name in found if f".{name}".endswith(tuple(f".{one}.weight" for one in names))]
        return [name for name in found if role_of(name) in roles and not {"experts", "mtp"} & {*name.split(".")}]

    roles = {role_of(name) for name in changed}
    if config.get("layers_to_transform") is None and not config.get("exclude_modules"):
        wanted = modules(named("target_modules"), 2)
        if lost := [name for name in wanted if name not in changed and not (base.tied and name == base.head)]:
            yield (
                f"{path}: {len(lost)} of the {len(wanted)} layers that `target_modules` names have no update in "
                f"{WEIGHTS} (`{lost[0]}` …): they stay as in the base"
            )
    kept = modules(named("modules_to_save"), 1)
    if lost := [name for name in kept if name not in changed and not (base.tied and name == base.head)]:
        module = lost[0].removesuffix(".weight")
        yield f"{path}: `modules_to_save` names {module}, but {WEIGHTS} lacks it: it stays as in the base"


def _transposed(base: Checkpoint, spelled: Mapping[str, str]) -> frozenset[str] | None:
    """The base's tensors that are stored as (inputs, outputs); None where its class is not known."""
    if plain_tensors(base.config) is not None:
        return frozenset()
    known = architecture_of(base.config)
    if known is None:
        return None
    short = {name: name.split(".", 1)[-1] for name in known.transposed}
    return frozenset(spelled.get(name, spelled.get(short[name], name)) for name in known.transposed)


def _full(
    path: Path, whole: Mapping[str, TensorInfo], base: Checkpoint, own: Callable[[str, TensorInfo], str]
) -> dict[str, TensorInfo]:
    """The whole tensors that change the base: PEFT also saves embeddings that nobody trained, and a tied head twice."""
    head = next((name for name in whole if name.endswith(HEADS)), None)
    found = {}
    for name, info in whole.items():
        if name == head and base.tied and base.head is None:
            embedding = next((value for key, value in whole.items() if key.endswith(EMBEDDINGS)), None)
            same = embedding if embedding is not None else base.info(base.embedding or name)
            if not same_values(info, same):
                raise InputError("a head of its own, but the base ties it to the embeddings", file=path / WEIGHTS,
                                 field=info.name)  # fmt: skip
            continue
        found[own(name, info)] = info
    if not base.tied:
        return found
    ends = (base.embedding, base.head)
    return {name: i for name, i in found.items() if name not in ends or not same_values(i, base.info(name))}


def _same_update(parts: Mapping[str, Mapping[str, TensorInfo]], head: Mapping[str, TensorInfo]) -> bool:
    """Whether the head's update is the embeddings', transposed: so PEFT's `ensure_weight_tying` saves it."""
    ends = [factors for module, factors in parts.items() if f"{module}.weight".endswith(EMBEDDINGS)]
    if len(ends) != 1 or not all({"a", "b"} <= factors.keys() for factors in (head, ends[0])):
        return False
    import torch

    pairs = ((head["a"], ends[0]["b"]), (head["b"], ends[0]["a"]))
    return all(torch.equal(_value(one), _value(two).T) for one, two in pairs)


def _value(info: TensorInfo) -> torch.Tensor:
    return Checkpoint(info.file.parent, {info.name: info}, {}).tensor(info.name)


def same_values(one: TensorInfo, two: TensorInfo) -> bool:
    """Whether two stored tensors hold the same numbers, in whatever types."""
    if one.shape != two.shape:
        return False
    import torch

    return bool(torch.equal(*(_value(info).double() for info in (one, two))))


def _check_full(path: Path, full: Mapping[str, TensorInfo], base: Checkpoint) -> None:
    for name, info in full.items():
        if info.shape != base.info(name).shape:
            grown = info.shape[1:] == base.info(name).shape[1:] and name in (base.embedding, base.head)
            how = "; its vocabulary was resized before training: resize the base's, save it, and merge over that"
            raise InputError(
                f"shape {list(info.shape)}, but {list(base.info(name).shape)} in the base{how if grown else ''}",
                file=path / WEIGHTS,
                field=info.name,
            )


def _check_tied(path: Path, config: Mapping[str, Any], changed: set[str], base: Checkpoint) -> None:
    if not base.tied or config.get("ensure_weight_tying"):
        return
    if base.embedding in changed and base.head in changed:
        return
    for name in (base.embedding, base.head):
        if name in changed:
            raise InputError(
                f"{name} is tied to the other end of the model in the base, but the adapter changes one end alone; "
                "save the base with a head of its own and `tie_word_embeddings: false`, and merge over that",
                file=path / WEIGHTS,
                field=name,
            )
