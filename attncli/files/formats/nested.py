"""Nested lists of JSON into arrays, with errors that say which item does not fit."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NoReturn

import numpy as np

from attncli.errors import FileError, counted
from attncli.files.formats.entry import Array

#: As JSON's writers say them, in any case: protobuf "-Infinity", Python "-inf", C "nan".
NON_FINITE = {
    sign + form: -number if sign == "-" else number
    for word, number in (("NaN", math.nan), ("Inf", math.inf), ("Infinity", math.inf))
    for form in (word, word.lower(), word.upper(), word.capitalize())
    for sign in ("", "-", "+")
}
NESTED_LIMIT = 32


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


def flat(members: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The members of an object; one with tensors inside gives its own, names joined by dots."""
    if not any(map(_inside, members.values())):
        return dict(members)
    found: dict[str, Any] = {}
    for key, member in members.items():
        inner = _inside(member)
        more: Iterable[tuple[str, Any]] = ((key, member),)
        if inner and holds_tensor(inner):
            more = ((f"{key}.{name}", own) for name, own in flat(inner, source).items())
        for name, own in more:
            if name in found:
                raise FileError(f"{source} has two members named '{name}'", "keep one of them")
            found[name] = own
    return found


def _inside(value: Any) -> dict[str, Any] | None:
    """An object, or a list of objects as one: its places are the names."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return {str(place): item for place, item in enumerate(value)}
    return value if isinstance(value, dict) else None


def holds_tensor(members: Mapping[str, Any]) -> bool:
    """Whether an object has nested lists of numbers somewhere inside."""
    return any(
        holds_tensor(inner) if (inner := _inside(member)) else is_tensor(member)
        for member in members.values()
    )


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
