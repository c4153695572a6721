"""``--report``: one page to look through in a browser. It asks for nothing and runs nothing else.

What was computed stands in it as JSON that no browser runs; script and style are let in by their
hashes, and everything else is forbidden to them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files as parts_of
from typing import Any

from attncli import files
from attncli.render.cells import escaped, legible
from attncli.render.packed import pack
from attncli.render.shades import ANCHORS
from attncli.render.told import block_of, figure_of, grid_of, heads_of
from attncli.reports.blocks import Figure, Heatmap, Picture, Report, Shaded

SCRIPTS = ("values", "heads", "map", "look", "figures", "page")  # in the order of their running
#: What would end a script element, or a line of JavaScript, spelled so that JSON reads the same.
INERT = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def made(report: Report, suffix: str = ".html") -> bytes:
    """Return the page; a report of nothing is a page that says so."""
    style, script = _part("page.css"), "\n".join(_part(f"{name}.js") for name in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    told = " · ".join(map(legible, report.headline))
    filled = {
        "policy": policy, "style": style, "script": script, "data": _inert(_data(report)),
        "title": escape(f"attncli {report.command}: {told}"[:160]),
    }  # fmt: skip
    whole = _part("page.html")
    pieces = [
        filled[piece] if n % 2 else piece for n, piece in enumerate(whole.split("@@"))
    ]  # text between two @@ is a name
    return "".join(pieces).encode()


def _part(name: str) -> str:
    return (parts_of("attncli.render") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _inert(data: Any) -> str:
    return files.dumps(data).decode().translate(INERT)


def _data(report: Report) -> dict[str, Any]:
    drawn: Sequence[Picture] = report.pictures() if report.pictures else ()
    maps = [one for one in drawn if isinstance(one, Heatmap)]
    maps += [
        one for one in report.blocks
        if isinstance(one, Heatmap) and not (maps and one.title in {m.title for m in maps})
    ]  # fmt: skip
    heads = heads_of(report.data())
    others = [
        one for one in drawn
        if isinstance(one, Shaded) and not (one.columns == "head" and heads["names"])
    ]  # fmt: skip
    packed = pack(maps, others)
    keys = {key: n for n, key in enumerate(heads.pop("keys"))}
    for one in packed.maps:
        one["head"] = keys.get(one["head"])
    gridded = {n: grid_of(one, heads) for n, one in enumerate(report.blocks)}
    heads["shown"] = next((found for found in gridded.values() if found is not None), None)
    blocks = [block_of(one) for n, one in enumerate(report.blocks) if gridded[n] is None]
    return {
        "command": report.command,
        "shades": ANCHORS,
        "headline": list(map(legible, report.headline)),
        "notes": list(map(escaped, report.notes)),
        "warnings": list(map(escaped, report.warnings)),
        "failed": bool(report.exit_code),
        "heads": heads,
        "maps": packed.maps,
        "axes": packed.axes,
        "names": packed.names,
        "kept": packed.notes,
        "figures": [figure_of(one) for one in drawn if isinstance(one, Figure)],
        "blocks": [one for one in blocks if one],
    }
