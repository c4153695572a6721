"""CSV and TSV of numbers: one matrix, a row a line."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from attncli.errors import FileError
from attncli.files.formats.entry import Array, Buffer, Entries, Entry, reading


def read(data: Buffer, source: str, path: str | None) -> tuple[Entries, Mapping[str, Any]]:
    """Return the one matrix ``(rows, columns)`` under the name ``""``, as float64.

    Columns are parted by commas, semicolons, tabs or blanks, as the first line has them.
    Raises FileError for lines that are no numbers or not alike in length.
    """
    with reading(source, "no CSV of numbers"):
        text = bytes(data).decode("utf-8-sig")
    first = text.lstrip("\r\n").split("\n", 1)[0]
    mark = next((mark for mark in ",;\t" if mark in first), None)

    def load() -> Array:
        try:
            return np.loadtxt(io.StringIO(text), delimiter=mark, ndmin=2, comments=None)
        except ValueError as error:
            why = str(error).partition(";")[0]  # what follows is advice to a programmer
            raise FileError(f"{source} is no CSV of numbers: {why}") from None

    return {"": Entry(load)}, {}
