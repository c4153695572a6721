"""Tensors in and out of files: one table of formats, told by content and never by name."""

from attncli.files.bundle import ROLES, Bundle, demand_numbers, find, is_result
from attncli.files.formats.entry import Header
from attncli.files.formats.json import dumps
from attncli.files.reading import Records, read, read_lines, read_many, read_tensor
from attncli.files.writing import atomic, write

__all__ = [
    "ROLES",
    "Bundle",
    "Header",
    "Records",
    "atomic",
    "demand_numbers",
    "dumps",
    "find",
    "is_result",
    "read",
    "read_lines",
    "read_many",
    "read_tensor",
    "write",
]
