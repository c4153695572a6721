"""JSON in and out: numbers into arrays and back, with errors that say where.

Read as the world writes it (non-finite numbers bare or as strings), written strictly (RFC 8259,
non-finite numbers as the strings "NaN", "Infinity", "-Infinity").
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, NoReturn

import numpy as np

from attncli.errors import FileError, InputError, counted

Array = np.ndarray[Any, np.dtype[Any]]

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
NESTED_LIMIT = 32


def parse(data: bytes, source: str) -> Any:
    """The value of a JSON text; two members of one name are an error."""
    import orjson

    with _json_errors(source, b"\n" in data.strip()):
        try:
            value = _without_gc(orjson.loads, data)
        except orjson.JSONDecodeError:
            if b"NaN" not in data and b"Infinity" not in data:
                raise
            value = _parse_bare_non_finite(data)
        # A member that was dropped leaves its colon behind.
        if data.count(b":") != _colons(value):
            import json

            json.loads(data, object_pairs_hook=lambda pairs: _unique(pairs, source))
    return value


def _without_gc(parse: Callable[[bytes], Any], data: bytes) -> Any:
    """Many new lists would set the cycle collector off again and again, for nothing."""
    import gc

    was_on = gc.isenabled()
    gc.disable()
    try:
        return parse(data)
    finally:
        if was_on:
            gc.enable()


def _parse_bare_non_finite(data: bytes) -> Any:
    import json

    import orjson

    quoted = data.replace(b"Infinity", b'"Infinity"').replace(b'-"Infinity"', b'"-Infinity"')
    if b"NaN" in data:
        quoted = quoted.replace(b"NaN", b'"NaN"')
    try:
        return _without_gc(orjson.loads, quoted)
    except orjson.JSONDecodeError:  # some of them stand in strings, where a quote is an error
        return json.loads(data)


def _colons(value: Any) -> int:
    match value:
        case str():
            return value.count(":")
        case dict():
            return sum(1 + k.count(":") + _colons(v) for k, v in value.items())
        case list() if not is_tensor(value):
            return sum(map(_colons, value))
    return 0


def _unique(pairs: list[tuple[str, Any]], source: str) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        seen: set[str] = set()
        twice = next(n for n, _ in pairs if n in seen or seen.add(n))  # type: ignore[func-returns-value]
        raise FileError(f"{source} has two members named '{twice}'", "keep one of them")
    return names


@contextmanager
def _json_errors(source: str, several_lines: bool) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise FileError(f"{source} is nested too deep; tensors have a few levels") from None
    except ValueError as error:
        import json

        where = str(error)
        if isinstance(error, UnicodeDecodeError):
            where = f"not UTF-8 at byte {error.start}"
        elif isinstance(error, json.JSONDecodeError):
            line = f"line {error.lineno} " if several_lines else ""
            where = f"{error.msg} at {line}column {error.colno}"
        raise FileError(f"{source} is no valid JSON: {where}") from None


def is_tensor(value: Any) -> bool:
    """Nested lists whose first leaf is a number, or null: a hole that deserves its error."""
    if not isinstance(value, list):
        return False
    while isinstance(value, list):
        if not value:
            return True
        value = value[0]
    return value is None or type(value) is bool or _is_number(value)


def to_array(value: list[Any], source: str, name: str) -> Array:
    """Nested lists of numbers → float64, of integers alone → int64, of bools alone → bool."""
    shape, leaves = [len(value)], value
    while leaves and type(leaves[0]) is list:
        n = len(leaves[0])
        if set(map(type, leaves)) != {list} or set(map(len, leaves)) != {n}:
            _refuse(value, source, name)
        shape.append(n)
        if len(shape) > NESTED_LIMIT:
            raise FileError(f"{source}: {name} is nested more than {NESTED_LIMIT} deep")
        leaves = list(chain.from_iterable(leaves))
    array = np.empty(len(leaves))
    kinds: set[type] = set()
    if not _pack(array, leaves):
        kinds = set(map(type, leaves))
        plain = kinds <= {float, int, bool, str}
        if not plain or not _pack(array, list(map(NON_FINITE.get, leaves, leaves))):
            _refuse(value, source, name)
    if leaves and (type(leaves[0]) is int or ((array == 0) | (array == 1)).any()):
        kinds = kinds or set(map(type, leaves))
        if kinds == {bool}:
            return array.astype(bool).reshape(shape)
        if bool in kinds:
            _refuse(value, source, name)
        if kinds == {int} and min(leaves) >= -(2**63) and max(leaves) < 2**63:
            return np.array(leaves, np.int64).reshape(shape)
    return array.reshape(shape)


def _pack(array: Array, numbers: list[Any]) -> bool:
    """Fill the array, or say that something in the list is no number that float64 can hold."""
    try:
        struct.Struct(f"{len(numbers)}d").pack_into(array.data, 0, *numbers)
    except (struct.error, OverflowError):
        return False
    return True


def _refuse(value: list[Any], source: str, name: str) -> NoReturn:
    """Raise the error that says which item does not fit."""
    shape: list[int] = []
    leaf: Any = value
    while isinstance(leaf, list) and len(shape) < NESTED_LIMIT:
        shape.append(len(leaf))
        leaf = leaf[0] if leaf else 0.0
    wants_bool = type(leaf) is bool

    def look(item: Any, at: str, first: str, depth: int) -> None:
        if depth == len(shape):
            is_bool = type(item) is bool
            if is_bool != wants_bool or not (is_bool or _is_number(item)):
                wanted = "true or false" if wants_bool else "a number"
                raise FileError(f"{source}: {at} is {described(item)}; expected {wanted}")
            return
        if not isinstance(item, list):
            raise FileError(f"{source}: {at} is {described(item)} but {first} is a list")
        if len(item) != shape[depth]:
            what = "number" if depth + 1 == len(shape) else "row"
            raise FileError(
                f"{source}: {at} has {counted(len(item), what)} but {first} has {shape[depth]} "
                "(ragged)"
            )
        for i, inner in enumerate(item):
            look(inner, f"{at}[{i}]", f"{first}[0]", depth + 1)

    look(value, name, name, 0)
    raise FileError(f"{source}: {name} holds an integer beyond float64")


def no_numbers(value: Any, source: str, name: str) -> FileError:
    """Return the error for a member that should be nested lists of numbers, and where it is not."""
    try:
        if isinstance(value, list):
            _refuse(value, source, name)
    except FileError as error:
        return error
    return FileError(
        f"{source}: {name} is {described(value)}; expected numbers", "as in [[1, 0], [0, 1]]"
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) or (type(value) is str and value in NON_FINITE)


def described(value: Any) -> str:
    """A JSON value in words: 'null', '"abc" (a string)'."""
    match value:
        case None:
            return "null"
        case bool():
            return f"{str(value).lower()} (a bool)"
        case str():
            return f'"{value if len(value) <= 20 else value[:19] + "…"}" (a string)'
        case list():
            return "a list"
        case dict():
            return "an object"
    return f"{value} (a number)"


def dumps(obj: Any, *, pretty: bool = False) -> bytes:
    """Strict JSON (RFC 8259) of anything that holds arrays; non-finite numbers become strings.

    ``pretty`` indents objects and lists; an array stays on its line.
    """
    import orjson

    layout = orjson.OPT_INDENT_2 if pretty else 0
    return orjson.dumps(_plain(obj, pretty), option=layout | orjson.OPT_SERIALIZE_NUMPY)


def _plain(value: Any, pretty: bool) -> Any:
    """``value`` in terms that orjson writes as they should be."""
    import orjson

    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, np.ndarray | np.generic):
        return _plain_array(np.asarray(value), pretty)
    if isinstance(value, float):
        return value if math.isfinite(value) else _non_finite(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else orjson.Fragment(str(value))
    if isinstance(value, Mapping):
        return {_plain(str(name), pretty): _plain(member, pretty) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, pretty) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _plain_array(array: Array, pretty: bool) -> Any:
    import orjson

    dtype = array.dtype
    if dtype.kind == "U":
        return _plain(array.tolist(), pretty)
    if dtype.name.startswith(("bfloat16", "float8")) or dtype.name == "float16":
        array = array.astype(np.float32)
    elif dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise InputError(f"JSON cannot hold {dtype.name} numbers")
    native = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    finite = native.dtype.kind != "f" or bool(np.isfinite(native).all())
    if finite and native.ndim and not pretty:
        return native
    text = orjson.dumps(native.reshape(native.shape or 1), option=orjson.OPT_SERIALIZE_NUMPY)
    if not finite:
        odd = native[~np.isfinite(native)]
        names = np.where(odd > 0, b'"Infinity"', np.where(odd < 0, b'"-Infinity"', b'"NaN"'))
        parts = text.split(b"null")  # what orjson writes for them
        pieces: list[bytes] = [b""] * (2 * len(parts) - 1)
        pieces[::2], pieces[1::2] = parts, names.tolist()
        text = b"".join(pieces)
    return orjson.Fragment(text if native.ndim else text[1:-1])


def _non_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
