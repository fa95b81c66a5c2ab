"""Hostile inputs: values, JSON, safetensors files, cut and flipped bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

DEEP = 100_000
# More digits than Python turns into a number, and floats that no number is.
LONG_DIGITS = "9" * 5000
OTHER_FORMATS = (
    b"", b"\0", b"PK\x03\x04" + b"\0" * 60, b"\x80\x02cos\nsystem\n(S'true'\ntR.", b"<!doctype html><html></html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", b"GGUF" + b"\0" * 60, b"\xff" * 64,
    b"\xef\xbb\xbf{}", b"null", b"[]", b"5", b'""', b"{}", b"{", b"\xd8\x00",
)  # fmt: skip
RAW_JSON = (
    LONG_DIGITS, f"-{LONG_DIGITS}", "1e999", "-1e999", "NaN", "Infinity", '"\\ud800"', '"\\u0000"', '{"a":1,"a":2}',
    "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP, "1" + "0" * 400, '"' + "x" * 100_000 + '"',
)  # fmt: skip

_TEXTS = ("", " ", "\0", "a\0b", ".", "..", "../../etc/passwd", "../../kept", "/etc/passwd", "C:\\x", "\\\\host\\share",
          "a" * 300, "%2e%2e/x", "~", "file:///etc/passwd", "x" * 100_000, "\ud800", "nan", "1e400", "None", "true",
          "[output]", "con", "a\nb", "\u202e", "٣", "1_000", "0x10", "F32", "F64", "I8")  # fmt: skip
_NUMBERS = (0, 1, -1, 2, 3, 7, 8, 16, 63, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
            2**64, 2**70, -(2**63), -(2**70), 10**7, 10**18, 10**400, 0.0, -0.0, 0.5, 1.5, -1.5, 1e-300, 1e308, -1e308,
            5e-324, float("nan"), float("inf"), float("-inf"))  # fmt: skip
texts = st.one_of(st.sampled_from(_TEXTS), st.text(max_size=20))
numbers = st.one_of(st.sampled_from(_NUMBERS), st.integers(-100, 100_000), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=6,
)


class Raw:
    """JSON text that :func:`dumps` puts in as it stands."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Raw({self.text[:40]!r})"


json_values = st.one_of(values, values, st.sampled_from(RAW_JSON).map(Raw))


def dumps(content: Any) -> bytes:
    """JSON as hostile as its values: raw texts, NaN and lone surrogates are kept."""
    held: dict[str, str] = {}

    def default(value: Raw) -> str:
        held[mark := f"\x01raw{len(held)}\x01"] = value.text
        return mark

    text = json.dumps(content, default=default)
    for mark, raw in held.items():
        text = text.replace(json.dumps(mark), raw)
    return text.encode("utf-8", "surrogatepass")


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value below ``content``."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key)
        if len(path) < 4:
            yield from places(value, (*path, key))


def copied(content: Any) -> Any:
    return json.loads(json.dumps(content))


@st.composite
def changed_json(draw: Any, content: Any, at_most: int = 2) -> Any:
    """``content`` with values replaced, removed or added anywhere."""
    result = copied(content)
    for _ in range(draw(st.integers(1, at_most))):
        found = list(places(result))
        if not found:
            break
        *way, last = draw(st.sampled_from(found))
        parent = result
        for key in way:
            parent = parent[key]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename"]))
        if how == "replace":
            parent[last] = draw(json_values)
        elif how == "remove":
            del parent[last]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = parent.pop(last)
        if any(isinstance(value, Raw) for value in _leaves(result)):
            break
    return result


def _leaves(content: Any) -> Iterator[Any]:
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _leaves(value)
    else:
        yield content


@st.composite
def json_files(draw: Any, content: Any) -> bytes:
    """A JSON file that was one, mostly still is, and says something else."""
    how = draw(st.integers(0, 9))
    if how < 7:
        return dumps(draw(changed_json(content)))
    if how == 7:
        return draw(st.sampled_from([*OTHER_FORMATS, *(raw.encode() for raw in RAW_JSON)]))
    if how == 8:
        return dumps(draw(values))
    return draw(damaged(dumps(content)))


@st.composite
def damaged(draw: Any, data: bytes, first: int = 0) -> bytes:
    """``data`` cut, flipped in a bit, overwritten, repeated or continued, at or behind ``first``."""
    how = draw(st.sampled_from(["cut", "flip", "flip", "write", "insert", "remove", "append"]))
    at = draw(st.integers(first, max(first, len(data) - 1)))
    if how == "cut":
        return data[:at]
    if how == "flip" and data:
        bit = 1 << draw(st.integers(0, 7))
        return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
    extra = draw(st.binary(min_size=1, max_size=64))
    if how == "write":
        return data[:at] + extra + data[at + len(extra) :]
    if how == "remove":
        return data[:at] + data[at + len(extra) :]
    return data + extra if how == "append" else data[:at] + extra + data[at:]


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


_DTYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL", "U16", "U32",
           "U64", "F8_E8M0", "F4", "F6_E2M3", "C64", "f32", "float32", "")  # fmt: skip
_LENGTHS = (0, 1, 2, 7, 8, 2**16, 100_000_000, 100_000_001, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
_sizes = st.lists(st.one_of(numbers, scalars), max_size=6)


@st.composite
def safetensors_files(draw: Any, whole: bytes) -> bytes:
    """``whole`` with a header that lies: lengths, types, shapes, offsets, overlaps, duplicates, depth, metadata."""
    header, data = split(whole)
    how = draw(st.sampled_from(["entry", "entry", "entry", "offsets", "offsets", "length", "text", "bytes", "metadata",
                                "format"]))  # fmt: skip
    if how == "format":
        return draw(st.sampled_from(OTHER_FORMATS)) + draw(st.binary(max_size=8))
    if how == "bytes":
        return draw(damaged(whole))
    if how == "length":
        length = draw(st.one_of(st.sampled_from(_LENGTHS), st.integers(0, len(whole) + 16)))
        return joined(dumps(header), data, length)
    if how == "text":
        return joined(draw(_header_texts(header)), data)
    if how == "metadata":
        stated = header.get("__metadata__") or {"a": "b"}
        header["__metadata__"] = draw(st.one_of(changed_json(stated), json_values))
    elif how == "offsets":
        _lie_about_offsets(draw, header, len(data))
    else:
        _lie_about_entry(draw, header)
    return joined(dumps(header), data)


def _names(header: dict[str, Any]) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def _lie_about_entry(draw: Any, header: dict[str, Any]) -> None:
    name = draw(st.sampled_from(_names(header)))
    field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "new", "whole"]))
    if field == "whole":
        header[name] = draw(json_values)
    elif field == "dtype":
        header[name]["dtype"] = draw(st.one_of(st.sampled_from(_DTYPES), json_values))
    elif field == "new":
        header[draw(texts)] = header[name] | {draw(texts): draw(json_values)}
    else:
        header[name][field] = draw(st.one_of(_sizes, json_values))


def _lie_about_offsets(draw: Any, header: dict[str, Any], size: int) -> None:
    """The same length elsewhere (before the data, over another tensor, behind the end), reversed, or with a hole."""
    name, other = (draw(st.sampled_from(_names(header))) for _ in range(2))
    first, last = header[name]["data_offsets"]
    how = draw(st.sampled_from(["moved", "moved", "other", "reversed", "shape"]))
    if how == "moved":
        by = draw(st.one_of(st.integers(-64, 64), st.sampled_from([-first, size, -size, 2**40, 2**63, -(2**63)])))
        header[name]["data_offsets"] = [first + by, last + by]
    elif how == "other":
        header[name] = dict(header[other])
    elif how == "reversed":
        header[name]["data_offsets"] = [last, first]
    else:
        header[name]["shape"] = draw(st.sampled_from(_like(header[name]["shape"])))


def _like(shape: list[int]) -> list[list[Any]]:
    """Shapes of the same count, or that a careless reader takes for it."""
    whole, negative = [float(value) for value in shape], [-value for value in shape]
    return [[*shape, 1], shape[::-1], negative, [1, *shape], whole, [2**32, 2**32, *shape], [0, *shape], [True, *shape]]


@st.composite
def _header_texts(draw: Any, header: dict[str, Any]) -> bytes:
    text = json.dumps(header)
    name = draw(st.sampled_from(_names(header)))
    twice = json.dumps({name: header[name]})[1:-1]
    return draw(st.sampled_from([
        f"{{{twice},{text[1:]}", f"{text[:-1]},{twice}}}", text.replace("[", "[" * DEEP, 1), f'{{"a":{"[" * DEEP}',
        f'{{"__metadata__":{{"a":{LONG_DIGITS}}}}}', " " * 1000 + text, text + " " * 1000, text + "}", f"[{text}]",
        text.replace("0", LONG_DIGITS, 1), text.replace(",", ",\n"), text + "\0" * 9, '{"__metadata__":null}', "{}",
        text.replace('"', "'"), text.replace(":", "=", 1), f"{text[:-1]},\"__metadata__\":{{\"format\":\"x\"}}}}",
    ])).encode()  # fmt: skip
