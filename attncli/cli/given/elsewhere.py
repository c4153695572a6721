"""Files that a file names: what came from elsewhere opens regular files beside itself alone."""

from __future__ import annotations

import ast
import os

from attncli.errors import InputError
from attncli.files.formats.entry import demand_regular
from attncli.files.references import folder_of, split


def anchored(expression: str, source: str) -> str:
    """Return a mask expression of a bundle with the files it names beside the bundle.

    Raises InputError for a path that leads elsewhere, FileError for what is no regular file. Text
    that cannot be read is returned as it is: the mask language says why.
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return expression
    moved = False
    for node in ast.walk(tree):
        given = node.args if isinstance(node, ast.Call) else []
        texts = [a for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if texts:
            path, _ = split("::".join(str(text.value) for text in texts))
            beside = _beside(path, source)
            moved = moved or beside != path
            texts[0].value = beside + str(texts[0].value).removeprefix(path)
    return ast.unparse(tree) if moved else expression


def _beside(path: str, source: str) -> str:
    """Return the path of a file beside ``source``."""
    if path in ("-", "", ".", "..") or os.path.basename(path) != path or "\0" in path:
        raise InputError(
            f"{source}: its mask names the file {path!r}",
            "a bundle's mask reads files beside the bundle alone; name others yourself: --mask",
        )
    folder = folder_of(source)
    beside = os.path.join(folder, path)
    demand_regular(beside)
    if os.path.dirname(os.path.realpath(beside)) != os.path.realpath(folder or "."):
        raise InputError(
            f"{source}: its mask names {path!r}, a link that leads elsewhere",
            "copy the file beside the bundle",
        )
    return beside
