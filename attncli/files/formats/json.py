"""JSON in and out: numbers into arrays and back, with errors that say where.

Read as the world writes it (non-finite numbers bare or as strings), written strictly (RFC 8259,
non-finite numbers as the strings "NaN", "Infinity", "-Infinity").
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from attncli.errors import FileError, InputError
from attncli.files.formats.entry import Array, Buffer, Entries, Entry
from attncli.files.formats.nested import described, flat, is_tensor, to_array
from attncli.resources import uncollected

#: A string, and the colon after it where it names a member.
STRINGS = rb'"(?:[^"\\]|\\.)*+"(?:\s*+(:))?'

UNUSUAL = r"[^\x00-\x7e]"
USUAL = bytes([*b"\n", *range(0x20, 0x7F)])
DELETE = b"\x7f"


def read(data: Buffer, source: str, path: str | None) -> tuple[Entries, Mapping[str, Any]]:
    """Return the members that are tensors, or the one array under ``""``, and the other members."""
    value = parse(bytes(data), source)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {str(place): item for place, item in enumerate(value)}
    if isinstance(value, list):
        return {"": _entry(value, source, "")}, {}
    if not isinstance(value, dict):
        raise FileError(f"{source} is {described(value)}; expected an array or an object")
    ours = str(value.get("schema")).startswith("attncli.")  # its empty lists are no tensors
    if not ours:
        with _json_errors(source):
            value = flat(value, source)
    entries = {
        name: _entry(member, source, name)
        for name, member in value.items()
        if is_tensor(member) and not (ours and member == [])
    }
    return entries, {name: member for name, member in value.items() if name not in entries}


def _entry(value: list[Any], source: str, name: str) -> Entry:
    return Entry(lambda: to_array(value, source, name))


def write(stream: BinaryIO, arrays: Mapping[str, Array], extra: Mapping[str, Any]) -> None:
    """Write an object of the arrays and ``extra``; a lone unnamed array without it stays bare."""
    bare = list(arrays) == [""] and not extra
    stream.write(dumps(arrays[""] if bare else {**extra, **arrays}))
    stream.write(b"\n")


def parse(data: bytes, source: str) -> Any:
    """The value of a JSON text; two members of one name are an error."""
    import orjson

    with _json_errors(source, data):
        try:
            with uncollected():
                value = orjson.loads(data)
        except orjson.JSONDecodeError:
            if b"NaN" not in data and b"Infinity" not in data:
                raise
            value = _parse_bare_non_finite(data)
        refuse_twins(data, value, source)
    return value


def _parse_bare_non_finite(data: bytes) -> Any:
    import json

    import orjson

    quoted = data.replace(b"Infinity", b'"Infinity"').replace(b'-"Infinity"', b'"-Infinity"')
    if b"NaN" in data:
        quoted = quoted.replace(b"NaN", b'"NaN"')
    try:
        with uncollected():
            return orjson.loads(quoted)
    except orjson.JSONDecodeError:  # some of them stand in strings, where a quote is an error
        return json.loads(data)


def refuse_twins(data: bytes, value: Any, source: str) -> None:
    """Raise FileError for two members of one name, of which orjson keeps the last.

    Each member that is written has a colon of its own, so as many colons as members prove that none
    was lost; only where strings hold colons too are the members in the text counted.
    """
    if isinstance(value, dict) and not _has_more_colons(data, len(value)):
        return
    kept = _members(value)
    if data.count(b":") > kept and re.findall(STRINGS, data).count(b":") > kept:
        import json

        json.loads(data, object_pairs_hook=lambda pairs: _unique(pairs, source))


def _has_more_colons(data: bytes, number: int) -> bool:
    """Whether there are more than so many; ``find`` passes over numbers faster than ``count``."""
    place = -1
    for _ in range(number + 1):
        place = data.find(b":", place + 1)
        if place < 0:
            return False
    return True


def _members(value: Any) -> int:
    """How many members all objects in a value have; those inside a tensor, an error, left out."""
    if isinstance(value, dict):
        return len(value) + sum(map(_members, value.values()))
    if isinstance(value, list) and not is_tensor(value):
        return sum(map(_members, value))
    return 0


def _unique(pairs: list[tuple[str, Any]], source: str) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        seen: set[str] = set()
        twice = next(n for n, _ in pairs if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        raise FileError(f"{source} has two members named '{twice}'", "keep one of them")
    return names


@contextmanager
def _json_errors(source: str, data: bytes = b"") -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise FileError(f"{source} is nested too deep; tensors have a few levels") from None
    except ValueError as error:
        import json

        from attncli.files.formats.broken import advice

        where, hint = str(error), None
        if isinstance(error, UnicodeDecodeError):
            where = f"not UTF-8 at byte {error.start}"
        elif isinstance(error, json.JSONDecodeError):
            line = f"line {error.lineno} " if b"\n" in data.strip() else ""
            where = f"{error.msg} at {line}column {error.colno}"
            hint = advice(error.doc, error.pos, error.msg)
        raise FileError(f"{source} is no valid JSON: {where}", hint) from None


class Plain(dict[str, Any]):
    """An object that is written as it is: no name in it is unusual, no number not finite."""


AS_IS = frozenset({bool, type(None), Plain})


def dumps(obj: Any, *, pretty: bool = False) -> bytes:
    """Strict JSON (RFC 8259) of anything that holds arrays; non-finite numbers become strings.

    Control characters of every kind, bidirectional ones too, are escaped. ``pretty`` indents
    objects and lists; an array stays on its line.
    """
    import orjson

    layout = orjson.OPT_INDENT_2 if pretty else 0
    text = orjson.dumps(_plain(obj, pretty), option=layout | orjson.OPT_SERIALIZE_NUMPY)
    if text.isascii() and DELETE not in text:  # other controls of ASCII are escaped already
        return text
    if text.translate(None, USUAL).decode().isprintable():
        return text
    return re.sub(UNUSUAL, _escaped, text.decode()).encode()


def _escaped(found: re.Match[str]) -> str:
    """Spell out what a terminal would act on; beyond ASCII there is nothing but strings."""
    import json

    return found[0] if found[0].isprintable() else json.dumps(found[0]).strip('"')


def _plain(value: Any, pretty: bool) -> Any:
    """``value`` in terms that orjson writes as they should be."""
    kind = type(value)
    if kind is dict:
        made = {}
        for name, member in value.items():
            if type(name) is not str or not name.isascii():
                name = _plain(str(name), pretty)
            kind = type(member)
            if kind not in AS_IS and not (kind is str and member.isascii()):
                member = _plain(member, pretty)
            made[name] = member
        return made
    if kind in AS_IS:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else _non_finite(value)
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, np.ndarray | np.generic):
        return _plain_array(np.asarray(value), pretty)
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else _fragment(str(value))
    if isinstance(value, Mapping):
        return _plain(dict(value), pretty)
    if isinstance(value, list | tuple):
        return [_plain(item, pretty) for item in value]
    raise TypeError(f"{kind.__name__} has no JSON form")


def _fragment(text: str | bytes) -> Any:
    """What orjson writes as it is."""
    import orjson

    return orjson.Fragment(text)


def _plain_array(array: Array, pretty: bool) -> Any:
    dtype = array.dtype
    if dtype.kind == "U":
        return _plain(array.tolist(), pretty)
    if dtype.char not in "fd" and dtype.kind not in "biu":
        if dtype.name.startswith(("bfloat16", "float8")) or dtype.name == "float16":
            array = array.astype(np.float32)
        elif dtype.kind != "f" or dtype.itemsize > 8:
            raise InputError(f"JSON cannot hold {dtype.name} numbers")
    native = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    finite = native.dtype.kind != "f" or bool(np.isfinite(native).all())
    if finite and native.ndim and not pretty:
        return native
    import orjson

    text = orjson.dumps(native.reshape(native.shape or 1), option=orjson.OPT_SERIALIZE_NUMPY)
    if not finite:
        odd = native[~np.isfinite(native)]
        names = np.where(odd > 0, b'"Infinity"', np.where(odd < 0, b'"-Infinity"', b'"NaN"'))
        parts = text.split(b"null")  # what orjson writes for them
        pieces: list[bytes] = [b""] * (2 * len(parts) - 1)
        pieces[::2], pieces[1::2] = parts, names.tolist()
        text = b"".join(pieces)
    return _fragment(text if native.ndim else text[1:-1])


def _non_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
