"""What people download to merge or to start from: safetensors, indexes, adapters, model folders."""

from __future__ import annotations

import json
import pickle
import struct
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from surface import Files, Surface
from values import SECRET, TEXTS, as_json, broken, mutated, texts_of
from verdict import Escape

from merit.config.sections import ModelConfig
from merit.merge.inputs import open_inputs
from merit.models.adapter import Adapter
from merit.models.checkpoint import Checkpoint, read_header
from merit.models.source import resolve_model

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "dtype": "float32",
    "tie_word_embeddings": False,
}
HEADER = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]},
    "model.layers.0.q_proj.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [32, 40]},
    "lm_head.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [40, 72]},
}
ADAPTER = {
    "base_model.model.model.layers.0.q_proj.lora_A.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
    "base_model.model.model.layers.0.q_proj.lora_B.weight": {"dtype": "F32", "shape": [2, 1], "data_offsets": [8, 16]},
}
ADAPTER_CONFIG = {
    "peft_type": "LORA", "r": 1, "lora_alpha": 2, "base_model_name_or_path": "base", "target_modules": ["q_proj"],
    "alpha_pattern": {"q_proj": 4}, "rank_pattern": {}, "use_dora": False, "use_rslora": False, "fan_in_fan_out": False,
}  # fmt: skip
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Evil:
    """What a pickle may do when it is loaded."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path(SECRET, "pwned"),)


PICKLE = pickle.dumps({"model.embed_tokens.weight": Evil()}, protocol=2)


def safetensors(header: Any, data: int = 72, *, length: int | None = None) -> bytes:
    """A file with that header; `length` is what it claims to be long."""
    text = header if isinstance(header, bytes) else as_json(header)
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Files whose header lies, or is none."""
    how = draw(st.sampled_from(("mutated", "mutated", "mutated", "length", "broken", "text", "pickle")))
    if how == "pickle":
        return draw(st.sampled_from((PICKLE, b"PK\x03\x04" + PICKLE, safetensors(PICKLE))))
    if how == "length":
        return safetensors(
            HEADER, length=draw(st.sampled_from((0, 1, 2**31, 2**32, 2**63, 2**64 - 1, 99_999_999, 300)))
        )
    if how == "text":
        deep = (b"[" * 500_000, b'{"a":' * 200_000, b"{}", b"[]", b"null", b"1" * 5_000, b'{"a":1,"a":2}', b"\xff", b"")
        return safetensors(
            draw(st.one_of(st.sampled_from(deep), st.binary(max_size=40))), draw(st.sampled_from((0, 72)))
        )
    whole = safetensors(draw(mutated(HEADER, ("__metadata__", "dtype", "shape", "data_offsets"))))
    return draw(broken(st.just(whole))) if how == "broken" else whole


def open_header(folder: Path) -> None:
    """What we accept, the format's own library accepts too, with the same shapes and bytes."""
    from safetensors import SafetensorError, safe_open

    file = folder / "file"
    found = read_header(file)
    try:
        with safe_open(file, framework="np") as theirs:
            shapes = {name: tuple(theirs.get_slice(name).get_shape()) for name in theirs.keys()}  # noqa: SIM118
    except (SafetensorError, OverflowError) as error:
        raise Escape(f"accepted what safetensors refuses: {error}") from None
    if shapes != {info.name: info.shape for info in found}:
        raise Escape("other shapes than safetensors reads")


def _folder(config: bytes, files: Files) -> Files:
    return {"config.json": config, **files}


@st.composite
def checkpoints(draw: st.DrawFn) -> Files:
    """Model folders: shards, an index that lies about them, pickles in all disguises, configurations that are none."""
    config = draw(texts_of(mutated(CONFIG, ("quantization_config", "auto_map", "text_config")), as_json))
    config = draw(st.sampled_from((as_json(CONFIG), as_json(CONFIG), config)))
    how = draw(st.sampled_from(("index", "index", "shard name", "pickle", "single", "none")))
    if how == "pickle":
        name = draw(st.sampled_from(("pytorch_model.bin", SINGLE, "model-00001.safetensors", "x.pt", "x.ckpt", INDEX)))
        return _folder(config, {name: PICKLE})
    if how == "none":
        return _folder(config, {})
    if how == "single":
        return _folder(config, {SINGLE: draw(headers())})
    names = {key: "a.safetensors" for key in HEADER if key != "__metadata__"}
    index: Any = {"metadata": {"total_size": 72}, "weight_map": names}
    if how == "shard name":
        name = draw(st.one_of(st.sampled_from(TEXTS), st.just("../secret/model.safetensors"),
                              st.just(f"{SECRET}/model.safetensors"),
                              st.just("sub/../../secret/model.safetensors")))  # fmt: skip
        index["weight_map"] = dict.fromkeys(names, name)
        return _folder(config, {INDEX: as_json(index), "a.safetensors": safetensors(HEADER)})
    written = draw(texts_of(mutated(index, ("weight_map",)), as_json))
    return _folder(config, {INDEX: written, "a.safetensors": safetensors(HEADER), "b.safetensors": b"x"})


def open_checkpoint(folder: Path) -> None:
    """As a merge and as θ0. Both stay in the folder."""
    found = Checkpoint.open(folder)
    if any(info.file.resolve().parent != folder.resolve() for info in found.tensors.values()):
        raise Escape("a shard outside of the folder")
    for name in found.tensors:
        found.tensor(name)
    open_inputs([folder, folder], None)
    resolve_model(ModelConfig(path=str(folder)), folder)


def open_model(folder: Path) -> None:
    """As θ0 alone: what `merit check` does before it loads a tokenizer."""
    resolve_model(ModelConfig(path=str(folder)), folder)


@st.composite
def adapters(draw: st.DrawFn) -> Files:
    """LoRA folders beside their base."""
    settings = draw(
        st.one_of(mutated(ADAPTER_CONFIG, ("alpha_pattern", "lora_bias", "modules_to_save")), st.just(ADAPTER_CONFIG))
    )
    name = draw(st.one_of(st.just("base"), st.sampled_from(TEXTS), st.just("../secret"), st.just(SECRET)))
    if isinstance(settings, dict) and draw(st.booleans()):
        settings = settings | {"base_model_name_or_path": name}
    weights = safetensors(draw(st.one_of(mutated(ADAPTER), st.just(ADAPTER))), 16)
    file = draw(st.sampled_from(("adapter_model.safetensors",) * 4 + ("adapter_model.bin",)))
    return {
        "adapter/adapter_config.json": draw(texts_of(st.just(settings), as_json)),
        f"adapter/{file}": draw(st.sampled_from((weights, weights, weights, PICKLE))),
        "base/config.json": as_json(CONFIG),
        f"base/{SINGLE}": safetensors(HEADER),
    }


def open_adapter(folder: Path) -> None:
    base = Checkpoint.open(folder / "base")
    Adapter.open(folder / "adapter", base)
    open_inputs([folder / "adapter"], folder / "base")
    open_inputs([folder / "adapter"], None)


CODE = b"from pathlib import Path\nPath('@SECRET@/pwned').touch()\n"


@st.composite
def remote_code(draw: st.DrawFn) -> Files:
    """Models that bring code, in every file that transformers looks for `auto_map` in."""
    target = draw(
        st.sampled_from(("modeling_x.Model", "modeling_x--Model", "../secret/x.Model", "", "x/y--modeling_x.M"))
    )
    keys = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
    mapped = {
        "auto_map": draw(st.sampled_from((dict.fromkeys(keys, target), {keys[0]: [target, target]}, target, [target])))
    }
    kind = draw(st.sampled_from(("x", "llama", "../x", ["llama"], {"a": 1}, 7, None)))
    config = {**CONFIG, "model_type": kind, "architectures": ["Model"], **draw(st.sampled_from((mapped, {})))}
    tokenizer = {"tokenizer_class": draw(st.sampled_from(("Tokenizer", "PreTrainedTokenizerFast", 7, None))), **mapped}
    tokenizer["chat_template"] = draw(
        st.sampled_from(("{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}", "{% for", 7))
    )
    return {
        "config.json": as_json(config),
        SINGLE: safetensors(HEADER),
        "tokenizer_config.json": as_json(draw(st.sampled_from((tokenizer, [], "x")))),
        "processor_config.json": as_json({"processor_class": "X", **mapped}),
        "preprocessor_config.json": as_json({"image_processor_type": "X", **mapped}),
        "tokenizer.json": draw(st.sampled_from((b"{}", b"[]", b"\xff", b"", *_tokenizers()))),
        "modeling_x.py": CODE,
        "configuration_x.py": CODE,
        "conversation_template.jinja": b"{{ x",
    }


@cache
def _tokenizers() -> tuple[bytes, ...]:
    from surfaces_data import tokenizer

    whole = json.loads(tokenizer().backend_tokenizer.to_str())
    return (
        as_json(whole),
        as_json({**whole, "model": {"type": "BPE", "vocab": {}, "merges": [["a"]]}}),
        as_json({**whole, "version": 2}),
    )


def load_stranger(folder: Path) -> int:
    """Tokenizer and model as a run loads them, with no leave to run code; then the template on one conversation."""
    from merit.data.encode import Encoder
    from merit.data.example import Example, Message
    from merit.models.loading import load_model, load_tokenizer

    model = resolve_model(ModelConfig(path=str(folder)), folder)
    tokenizer = load_tokenizer(model)
    Encoder(tokenizer, 64).encode(Example((Message("user", "a"),), (Message("assistant", "b"),)))
    load_model(folder)
    return 0


SURFACES = [
    Surface("safetensors header", headers(), open_header, 3000),
    Surface("checkpoint folder", checkpoints(), open_checkpoint, 1200),
    Surface("model folder", checkpoints(), open_model, 600),
    Surface("adapter", adapters(), open_adapter, 1200),
    Surface("remote code", remote_code(), load_stranger, 120),
]
