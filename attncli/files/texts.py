"""Files of plain text that options name: labels, a policy, a config.json."""

from __future__ import annotations

from attncli.errors import FileError
from attncli.files.formats.entry import demand_end, reading


def read_text(path: str, expected: str) -> str:
    """Return the text of a file or a pipe, UTF-8 with or without a byte order mark.

    Raises FileError where nothing can be read or it is no text, with what was ``expected``.
    """
    with reading(path):
        demand_end(path)
        with open(path, "rb") as stream:
            data = stream.read()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise FileError(f"{path} is no UTF-8 text", f"expected {expected}") from None
