"""Tensors in and out of files: one table of formats, told by content and never by name.

What is named here is loaded when it is used, so that the table can be read without NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attncli.files.bundle import Bundle as Bundle
    from attncli.files.bundle import find as find
    from attncli.files.bundle import is_result as is_result
    from attncli.files.bundle import problems_of as problems_of
    from attncli.files.bundle import unwrapped as unwrapped
    from attncli.files.folders import captures_in as captures_in
    from attncli.files.formats.entry import Header as Header
    from attncli.files.formats.json import dumps as dumps
    from attncli.files.reading import read as read
    from attncli.files.reading import read_many as read_many
    from attncli.files.reading import read_tensor as read_tensor
    from attncli.files.stream import Records as Records
    from attncli.files.stream import read_lines as read_lines
    from attncli.files.vocabulary import ROLES as ROLES
    from attncli.files.writing import atomic as atomic
    from attncli.files.writing import write as write

_HOMES = {
    "ROLES": "vocabulary",
    "Bundle": "bundle",
    "Header": "formats.entry",
    "Records": "stream",
    "atomic": "writing",
    "captures_in": "folders",
    "dumps": "formats.json",
    "find": "bundle",
    "is_result": "bundle",
    "problems_of": "bundle",
    "read": "reading",
    "read_lines": "stream",
    "read_many": "reading",
    "read_tensor": "reading",
    "unwrapped": "bundle",
    "write": "writing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attncli.files' has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f"attncli.files.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return list(_HOMES)
