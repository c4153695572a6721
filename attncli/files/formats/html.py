"""HTML that a view of BertViz has written: the JSON of its parameters, cut out of the script.

Nothing else of the page is read, and nothing of it is run.
"""

from __future__ import annotations

import json as python_json
import re
from collections.abc import Mapping
from typing import Any

from attncli.errors import FileError
from attncli.files.formats import json
from attncli.files.formats.entry import Buffer, Entries, reading

_PARAMETERS = re.compile(r"\bparams\s*=\s*(?=\{)")


def read(data: Buffer, source: str, path: str | None) -> tuple[Entries, Mapping[str, Any]]:
    """Return what the JSON holds, as of a file of it alone; FileError where there is no such view,
    or more than one.
    """
    with reading(source, "no HTML in UTF-8"):
        text = bytes(data).decode("utf-8-sig")
    starts = [found.end() for found in _PARAMETERS.finditer(text)]
    if len(starts) != 1:
        views = "a view" if not starts else f"{len(starts)} views"
        raise FileError(
            f"{source} is HTML {'without' if not starts else 'with'} {views} of BertViz",
            "expected what head_view(…, html_action='return').data holds",
        )
    try:
        _, end = python_json.JSONDecoder().raw_decode(text, starts[0])
    except (ValueError, RecursionError) as error:
        raise FileError(f"{source}: the parameters of its view are no JSON: {error}") from None
    return json.read(text[starts[0] : end].encode(), source, path)
