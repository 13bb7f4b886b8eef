"""Hostile values, and how they get into what was whole: strategies for hypothesis."""

from __future__ import annotations

import copy
import json
from typing import Any, Literal, get_args, get_origin

import yaml
from hypothesis import strategies as st
from pydantic import BaseModel

SECRET = "@SECRET@"  # in a case: becomes the absolute path of the canary folder

# Names, paths and texts that some program somewhere obeys, opens, expands or stumbles over.
TEXTS = (
    "", " ", ".", "..", "~", "~root/x", "/", "//", "-rf", "--help", "a" * 300, "x" * 70_000, "é", "é", "CON", "a\\b",
    "../secret/secret.jsonl", "../secret", "../../../../../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/stdin",
    f"{SECRET}/secret.jsonl", f"{SECRET}/secret.png", SECRET, f"file://{SECRET}/secret.png", "file:///etc/passwd",
    "..\\secret\\secret.jsonl", "%2e%2e/secret", "C:\\x", "//host/share", "http://127.0.0.1:9/x", "s3://nobody/x",
    "data:image/png;base64,AAAA", "data:,x", "org/../../secret", "org/name/../../secret", "reasoning_gym:../x",
    "a\x00b", "\x00", "\x1b[2J\x1b]0;owned\x07", "\x1b]8;;http://x\x07y\x1b]8;;\x07", "\u202etxt.exe", "\u2028\u2029",
    "\x07\x08\r\n\t\x7f\x9b31m", "\ufeff", "\ud800", "\udc80x", "\ud83d\ude00", "👩‍👩‍👧‍👦", "\u0301" * 200, "ﷺ" * 50,
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "{{ 7 * 7 }}", "{% for i in x %}", "${HOME}",
    "$(touch pwned)", "`id`", "'; drop table x; --", "%s%n%x", "{0.__class__}", "[red]x[/red]", "[/]", "[link=x]",
    "!!python/object/apply:os.system [id]", "=cmd|' /C x'!A0", "null", "true", "nan", "1e999", "0x41", "1_0",
    "2020-99-99", ":x:",
    "<image>", "<|im_start|>system\n", "<|im_end|>", "__metadata__", "__class__", "constructor", "merit", "base",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3.5, -0.0, 1e-320, 1e308, -1e308, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30,
    10**400, -(10**4000), 10**19 - 1, float("nan"), float("inf"), float("-inf"), True, False, None,
)  # fmt: skip

texts = st.one_of(
    st.sampled_from(TEXTS), st.text(max_size=12), st.text(st.characters(categories=("Cc", "Cf", "Cs")), max_size=4)
)
scalars = st.one_of(texts, st.sampled_from(NUMBERS), st.integers(), st.floats())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)


def nested(depth: int, leaf: Any = 0, kind: str = "list") -> Any:
    """A value `depth` levels deep."""
    for _ in range(depth):
        leaf = [leaf] if kind == "list" else {"a": leaf}
    return leaf


@st.composite
def mutated(draw: st.DrawFn, whole: Any, keys: tuple[str, ...] = ()) -> Any:
    """`whole` with one to three things changed in it: a value replaced, a key renamed, removed, added, repeated.

    Args:
        keys: words that mean something where they do not belong.
    """
    value = copy.deepcopy(draw(whole) if isinstance(whole, st.SearchStrategy) else whole)
    for _ in range(draw(st.integers(1, 3))):
        value = _changed(draw, value, keys)
    return value


def _changed(draw: st.DrawFn, value: Any, keys: tuple[str, ...]) -> Any:
    places = [(), *_places(value, ())]
    at = draw(st.sampled_from(places[1:] or places))
    if not at:
        return draw(values)
    parent = value
    for step in at[:-1]:
        parent = parent[step]
    change = draw(st.sampled_from(("replace", "replace", "replace", "remove", "rename", "add", "repeat", "deep")))
    if change == "remove":
        del parent[at[-1]]
    elif change == "rename" and isinstance(parent, dict):
        parent[draw(st.one_of(texts, st.sampled_from(keys or ("x",))))] = parent.pop(at[-1])
    elif change == "add" and isinstance(parent, dict):
        parent[draw(st.one_of(texts, st.sampled_from(keys or ("x",))))] = draw(values)
    elif change == "repeat" and isinstance(parent, list):
        parent.extend(copy.deepcopy(parent) * draw(st.integers(1, 3)))
    elif change == "deep":
        parent[at[-1]] = nested(
            draw(st.sampled_from((5, 40, 70))), parent[at[-1]], draw(st.sampled_from(["list", "dict"]))
        )
    else:
        parent[at[-1]] = draw(values)
    return value


def _places(value: Any, at: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += [(*at, key), *_places(item, (*at, key))]
    return found


@st.composite
def broken(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes that were whole: cut, flipped, doubled, filled with what no reader likes."""
    content = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        change = draw(st.sampled_from(("cut", "flip", "insert", "double", "zero")))
        if change == "cut":
            del content[place:]
        elif change == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif change == "insert":
            content[place:place] = draw(st.one_of(st.sampled_from(LUMPS), st.binary(max_size=8)))
        elif change == "double":
            content += content[place:]
        elif change == "zero":
            content[place : place + 8] = bytes(8)
        del content[2_000_000:]
    return bytes(content)


def records(kind: Any) -> st.SearchStrategy[Any]:
    """JSON that a pydantic model accepts, with anything in it that its types allow: empty, huge, of unlike lengths."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = {name: records(item.annotation) for name, item in kind.model_fields.items()}
        return st.fixed_dictionaries(fields)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (list, dict):
        inner = records(arguments[-1])
        return st.lists(inner, max_size=4) if origin is list else st.dictionaries(names, inner, max_size=4)
    if origin is tuple:
        return st.tuples(*map(records, arguments)).map(list)
    if origin is Literal:
        return st.sampled_from(arguments)
    if arguments:  # a union
        return st.one_of(*map(records, arguments))
    plain = {
        str: names,
        bool: st.booleans(),
        int: st.one_of(st.integers(0, 3), st.integers(-(2**63), 2**63 - 1)),
        float: st.one_of(st.floats(0, 1), st.sampled_from((0.0, -1.0, 1e308, -1e308, 5e-324, 1e15))),
    }
    return plain.get(kind, st.none())


names = st.one_of(st.sampled_from(("one", "two", "merit", "joint", "base", "0.5", "")), texts)
LUMPS = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3\x28", b"\xed\xa0\x80", b"\x1b[2J", b"\r", b"\n\n", b"\x0b\x0c", b'"',
    b"[" * 200_000, b'{"a":' * 100_000, b"- " * 5_000, b"1" * 5_000, b"-" * 100, b"&a [*a, *a]", b"*a", b"!!binary x",
    b"!!python/object/apply:os.system ['touch pwned']", b"<<: *a", b"? ", b"%YAML 9.9\n", b"---\n", b"\xe2\x80\xa8",
    b"\\ud800", b"NaN", b"1e999", b"{}", b"[]", b"\t", b"'", b",", b":", b"#", b"}", b"]",
)  # fmt: skip


def as_json(value: Any) -> bytes:
    """JSON as Python writes it: NaN, huge numbers and half surrogates included."""
    return json.dumps(value).encode()


def as_yaml(value: Any) -> bytes:
    """YAML of the same; JSON, which is YAML too, where it is deeper than the writer can go."""
    if max(map(len, _places(value, ())), default=0) > 60:
        return as_json(value)
    return yaml.safe_dump(value, sort_keys=False).encode("utf-8", "surrogatepass")


def texts_of(value: st.SearchStrategy[Any], write: Any) -> st.SearchStrategy[bytes]:
    """Files of structured values: as they are, and broken as text."""
    written = value.map(write)
    return st.one_of(written, written, broken(written))


def placed(content: bytes, secret: str) -> bytes:
    """`content` with the canary's real path."""
    return content.replace(SECRET.encode(), secret.encode())
