"""What people download: data files in every format and every record shape, and images."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from surface import Files, Surface
from values import TEXTS, as_json, broken, mutated, values
from verdict import Escape

from merit.base.errors import InputError
from merit.cli.setup_commands import print_report
from merit.config import RunConfig
from merit.data.check import check_mixture
from merit.data.image import ImageRef, decode, inspect, thumbnail
from merit.data.init import propose_config
from merit.data.reading import DatasetReader, chosen_rows, select
from pictures import noise, saved

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
PARTS = [{"type": "image"}, {"type": "text", "text": "what is it?"}]


def rows_of(shape: str, number: int) -> dict[str, Any]:
    """Row `number` of a dataset in that shape; no two are the same."""
    say = f"say {number}"
    turns = [{"role": "user", "content": say}, {"role": "assistant", "content": "ho"}]
    shapes: dict[str, dict[str, Any]] = {
        "messages": {"messages": [{"role": "system", "content": "x"}, *turns]},
        "sharegpt": {"conversations": [{"from": "human", "value": say}, {"from": "gpt", "value": "b"}]},
        "alpaca": {"instruction": "copy", "input": say, "output": say, "system": None},
        "prompt_completion": {"prompt": say, "completion": "b"},
        "turns": {"prompt": turns[:1], "completion": turns[1:]},
        "qa": {"question": say, "answer": "2", "system": "count"},
        "parts": {"messages": [{"role": "user", "content": [*PARTS, {"type": "text", "text": say}]}, TURNS[1]],
                  "images": ["a.png"]},
        "image": {"prompt": f"<image>\n{say}", "completion": "that", "image": {"bytes": None, "path": "a.png"}},
        "llava": {"conversations": [{"from": "human", "value": f"<image>{say}"}, {"from": "gpt", "value": "b"}],
                  "image": "a.png"},
        "tools": {"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [CALL]},
                               {"role": "tool", "name": "f", "tool_call_id": "a", "content": say},
                               {"role": "assistant", "content": "b", "reasoning_content": say, "weight": 1}],
                  "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
        "masked": {"conversations": [{"from": "human", "value": say}, {"from": "gpt", "value": "x", "train": False},
                                     {"from": "function_call", "value": json.dumps(CALL["function"])}],
                   "tools": "[]"},
        "history": {"instruction": "copy", "output": say, "history": [["a", "b"], [say, "d"]], "thinking": "hm"},
        "choices": {"question": say, "choices": {"text": ["a", say], "label": ["A", "B"]}, "answerKey": "B"},
        "exchange": {"conversation": [{"system": "s", "human": say, "assistant": "b"}], "label": True},
    }  # fmt: skip
    return shapes[shape]


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


SHAPES = ("messages", "sharegpt", "alpaca", "prompt_completion", "turns", "qa", "parts", "image", "llava", "tools",
          "masked", "history", "choices", "exchange")  # fmt: skip
KEYS = ("role", "from", "content", "value", "type", "text", "image", "images", "image_url", "url", "path", "bytes",
        "base64", "data", "tool_calls", "input", "system", "prompt", "completion", "messages", "verifier", "tools",
        "function", "name", "arguments", "reasoning_content", "weight", "train", "history", "choices", "label", "stem",
        "answerKey", "chosen", "rejected", "videos", "row", "row_idx", "rows")  # fmt: skip
LONG = "[" * 3_000_000  # deeper than any parser likes, and short enough to be read


@cache
def tokenizer() -> Any:
    """A byte-level one with a chat template. Made once; no model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    base.train_from_iterator(
        ["a b"], trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    )
    template = (
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m.reasoning_content or '') + m['content'] }}"
        "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return PreTrainedTokenizerFast(tokenizer_object=base, eos_token="<|im_end|>", chat_template=template)


def as_lines(rows: list[Any]) -> bytes:
    return b"\n".join(map(as_json, rows))


def as_csv(rows: list[Any], delimiter: str = ",") -> bytes:
    names = list(dict.fromkeys(str(key) for row in rows if isinstance(row, dict) for key in row))
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(names)
    for row in rows:
        cells = [row.get(name, "") for name in names] if isinstance(row, dict) else [row]
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
    return out.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(rows: list[Any]) -> bytes:
    out = io.BytesIO()
    pq.write_table(as_table(rows), out)
    return out.getvalue()


def as_arrow(rows: list[Any] | pa.Table) -> bytes:
    out, table = io.BytesIO(), as_table(rows) if isinstance(rows, list) else rows
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return out.getvalue()


def as_table(rows: list[Any]) -> pa.Table:
    """The rows that are objects, or a table of their text where Arrow or Parquet has no type for them."""
    try:
        table = pa.Table.from_pylist([row for row in rows if isinstance(row, dict)])
        pq.write_table(table, io.BytesIO())
        as_arrow(table)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError, AttributeError):
        return pa.table({"prompt": [repr(rows)[:1000]], "completion": [1]})
    return table


def packed(content: bytes, times: int = 1) -> bytes:
    return gzip.compress(content * times, mtime=0)


WRITERS: dict[str, Callable[[list[Any]], bytes]] = {
    "jsonl": as_lines, "json": as_json, "csv": as_csv, "tsv": partial(as_csv, delimiter="\t"), "parquet": as_parquet,
    "arrow": as_arrow, "jsonl.gz": lambda rows: packed(as_lines(rows)),
}  # fmt: skip
LUMPS: dict[str, tuple[bytes, ...]] = {
    "jsonl": (b"", b"\n", b"\xef\xbb\xbf", b"\xff\xfe\x00", LONG.encode(), b'{"prompt":' * 1_000_000, b"1" * 6_000,
              b'"' + b"x" * 3_000_000, b'{"a": NaN}', b'{"prompt": "a", "completion": "b"' + b"}" * 9, b"null\n" * 50,
              "{}\n[".encode("utf-16"), b"\xff\xfe[\x00", b'[{"a": 1}, ', b'{"data": [{"a": 1}', b"[[]]", b"[\n"),
    "json": (b"", b"[]", b"[", b"[[[", LONG.encode(), b"[1,2,", b'{"a": 1}{"a": 2}', b"[{}] x", b"\x00", b"1" * 6_000,
             b'[{"prompt": "a", "completion": ' + LONG.encode(), b'{"a": 1, "data": [{"b": 2}], "rows": [{}]}',
             b'{"data": [{"a": ' + LONG.encode(), b'{"' + b'a": 1, "' * 9_000 + b'data": [{"a": 1}]}', b"\xfe\xff\xd8"),
    "csv": (b"", b"\n\n", b'"', b'a,b\n"', b"a,a\n1,2", b"prompt,completion\n" + b'"' * 99_999, b"\x00\x00", b"a\rb\rc",
            b"prompt,completion\n" + b"," * 1_000_000, b",".join([b"x"] * 20_000),
            b"\xff\xfea\x00,\x00", b"a; b; c\n" * 9, b"; | \t ,\n" * 9, b'"a;"";b\n1', b"\xff\xfe" + b"\x00\xd8" * 999),
    "tsv": (b"\t", b"prompt\tcompletion\na\tb\tc", b"prompt\tcompletion\n\xff\t\xfe"),
    "parquet": (b"", b"PAR1", b"PAR1PAR1", b"PAR1" + b"\xff" * 4 + b"PAR1",
                b"PAR1" + b"\x00" * 64 + b"\x40\x00\x00\x00PAR1"),
    "arrow": (b"", b"ARROW1", b"ARROW1\x00\x00", b"\xff" * 99, b"\xff\xff\xff\xff\x00\x00\x00\x00", bytes(999),
              b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\xff\xff\xff\xff\x10\x00\x00\x00" + b"\xfe" * 16),
    "jsonl.gz": (b"", b"\x1f\x8b", b"{}", packed(b""), packed(b" ", 2**26 + 9), packed(b"[", 2**20),
                 packed(b"\n", 2**18), packed(b"x" * 2**20, 2**7), packed(b'{"a": 1}\n', 9) + b"\x1f\x8b",
                 packed(packed(b"{}"))),
}  # fmt: skip


@st.composite
def data_files(draw: st.DrawFn, kind: str) -> Files:
    """One file of `kind`, its rows hostile, or its bytes broken; and an image beside it."""
    shape = draw(st.sampled_from(SHAPES))
    rows = [rows_of(shape, number) for number in range(8)]
    rows = draw(
        st.one_of(mutated(rows, KEYS), st.builds(lambda bad: [*rows, bad], mutated(rows[0], KEYS)), st.just(rows))
    )
    if not isinstance(rows, list):
        rows = [rows]
    written = st.just(WRITERS[kind](rows))
    content = draw(st.one_of(written, written, broken(written), st.sampled_from(LUMPS[kind])))
    return {f"x.{kind}": content, "a.png": PICTURES[0]}


def check_data(folder: Path) -> int:
    """`merit check` of one dataset: its report on the terminal, its problems in lines."""
    file = next(path for path in folder.iterdir() if path.name.startswith("x."))
    config = RunConfig.model_validate(
        {"model": "m", "mixture": {"x": {"path": file.name}}, "split": {"splitter": "single"}, "held_out_fraction": 0.4}
    )
    # This tokenizer knows no images: such rows are read, their pictures too, but not encoded.
    report = check_mixture(config, folder, None if b"image" in file.read_bytes() else tokenizer())
    _only_text(DatasetReader.open("x", config.mixture["x"], folder))
    for line in propose_config(folder).text.splitlines():
        if not line.isprintable():
            raise Escape(f"merit init writes {line!r}")
    return 0 if print_report(report, json=False) else 2


def _only_text(reader: DatasetReader) -> None:
    """What was accepted is text that can be stored."""
    try:
        for read in chosen_rows(reader, select(reader, lambda _: None, lambda _: None)):
            if read.value is not None:
                for turn in (*read.value.prompt, *read.value.completion):
                    turn.content.encode("utf-8")
                    turn.fields.encode("utf-8")
                (read.value.tools or "").encode("utf-8")
                json.dumps([read.value.reference, read.value.verifier])
    except UnicodeEncodeError as error:
        raise Escape(f"accepted text that cannot be stored: {error}") from None
    except InputError:
        pass


def _pictures() -> tuple[bytes, ...]:
    image = noise(7, 5)
    return tuple(
        saved(item, kind)
        for item, kind in (
            (image, "PNG"), (image, "JPEG"), (image, "GIF"), (image, "WEBP"), (image, "BMP"), (image, "TIFF"),
            (image, "PPM"), (image, "ICO"), (image.convert("I;16") if False else image.convert("L"), "PNG"),
            (image.convert("RGBA"), "PNG"), (image.convert("CMYK"), "TIFF"), (image.convert("P"), "GIF"),
        )
    )  # fmt: skip


def _huge_png(width: int, height: int) -> bytes:
    """A few hundred bytes that decode to gigabytes."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99_999))) + chunk(b"IEND", b"")
    )


PICTURES = _pictures()
_ZIP = io.BytesIO()
with zipfile.ZipFile(_ZIP, "w") as _archive:
    _archive.writestr("a.png", "x")
BOMBS = (
    _huge_png(2**31 - 1, 2**31 - 1), _huge_png(100_000, 100_000), _huge_png(20_000, 5_001), _huge_png(1, 2**30),
    b"", b"GIF89a", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", b"P6 99999 99999 255\n",
    b"P3\n1 1\n" * 9,
    b"II*\x00\x08\x00\x00\x00\xff\xff", b"RIFF\xff\xff\xff\xffWEBPVP8 ", _ZIP.getvalue(), b"\x00\x00\x01\x00\xff\xff",
    b"BM" + b"\xff" * 60, b"\x80\x04cos\nsystem\n(S'touch ../secret/pwned'\ntR.", b"8BPS\x00\x01" + b"\x00" * 40,
)  # fmt: skip


def look(folder: Path) -> None:
    """An image as the check and the report see it."""
    content = (folder / "file").read_bytes()
    ref = ImageRef("file", "image", path=folder / "file")
    if ref.read() != content:
        raise Escape("other bytes than the file's")
    facts = inspect(content, 25_000_000)
    if facts.width * facts.height > 25_000_000:
        raise Escape("more pixels than allowed")
    decode(content)
    thumbnail(content)


@st.composite
def picture_paths(draw: st.DrawFn) -> Files:
    """Rows that name images where they should not: outside of the data's folder, on the web, in other schemes."""
    name = draw(st.one_of(st.sampled_from(TEXTS), values))
    form = draw(st.sampled_from(("plain", "mapping", "null bytes", "part", "url", "list")))
    row: dict[str, Any] = {"prompt": "<image> what?", "completion": "that"}
    if form in ("part", "url"):
        part = {"type": "image_url", "image_url": {"url": name}} if form == "url" else {"type": "image", "path": name}
        row = {"messages": [{"role": "user", "content": [part]}, TURNS[1]]}
    else:
        row["image"] = {"mapping": {"path": name}, "null bytes": {"bytes": None, "path": name}, "list": [name]}.get(
            form, name
        )
    return {"x.jsonl": as_lines([row, rows_of("image", 1)]), "a.png": PICTURES[0]}


SURFACES = [
    *(Surface(f"data: {kind}", data_files(kind), check_data, 100 if "." in kind else 500) for kind in WRITERS),
    Surface("image bytes", st.one_of(broken(st.sampled_from(PICTURES)), st.sampled_from(BOMBS)), look, 1500),
    Surface("image paths", picture_paths(), check_data, 500),
]
