"""Whole files, read in the format that their first bytes tell."""

from __future__ import annotations

import re
from collections.abc import Collection
from types import MappingProxyType

from attncli.errors import FileError
from attncli.files.bundle import Bundle, Lazy
from attncli.files.formats import FORMATS, HEAD, READABLE, UNREAD, Format, is_zip, json
from attncli.files.formats.entry import Buffer
from attncli.files.formats.nested import described

LONE = rb"""\s*(["\d-]|null|true|false|NaN|Infinity)"""
LONE_LIMIT = 1 << 16  # bytes in which a lone number or string of JSON ends


def read_whole(data: Buffer, source: str, path: str | None) -> Bundle:
    """Read what is no stream of JSON; ``path`` is None when there is no file behind the bytes."""
    head = data[:HEAD]
    members: Collection[str] = ()
    if is_zip(head):
        from attncli.files.formats.npz import zip_members

        members = zip_members(data, source, path)
    for row in FORMATS:
        if row.tells(head, members):
            return read_as(row, data, source, path)
    raise _unknown(data, source)


def read_as(row: Format, data: Buffer, source: str, path: str | None = None) -> Bundle:
    """Read a whole file in this format; what another program says becomes a problem of ours."""
    entries, options = row.read(data, source, path)
    found = Bundle(source, row.name, Lazy(entries), MappingProxyType(dict(options)))
    if row.name == "json" and not options.keys().isdisjoint(("workload", "op_type")):
        from attncli.files import traces

        traces.refuse_definition(options, source)
        if traces.is_workload(options):
            return traces.posed(found)
    if row.name in ("json", "html"):
        from attncli.files import bertviz

        return bertviz.of_view(found)
    if row.name == "torch":
        from attncli.files import sglang

        return sglang.of_pass(found)
    return found


def _unknown(data: Buffer, source: str) -> FileError:
    """The error for a file in no format that is read: what it may be instead."""
    head = data[:HEAD]
    if re.match(LONE, head):
        try:
            value = json.parse(bytes(data[:LONE_LIMIT]), source)
        except FileError:
            pass
        else:
            return FileError(
                f"{source} is JSON, but {described(value)}", "expected an array or an object"
            )
    for row in UNREAD:
        if head.startswith(row.begins):
            return row.error(source)
    return FileError(
        f"{source} is in no known format: it begins with {bytes(head[:12])!r}", READABLE
    )
