"""The masks of a problem: expressions and a tensor, from flags and files."""

from __future__ import annotations

import ast
import os
from typing import Any

from attncli import files
from attncli.attention import language
from attncli.cli.given.reader import Reader, is_truth, is_word
from attncli.cli.groups import Mask
from attncli.errors import InputError


def maskers_of(reader: Reader, flags: Mask) -> list[Any]:
    """Return what binds each mask: expressions, those of the file if no flag says any, a tensor."""
    own = []
    if "mask" in reader.options:
        own.append(reader.checked("mask", is_word, 'a mask expression, such as "causal"'))
    if reader.checked("causal", is_truth, "true or false"):
        own.append("causal")
    texts = flags.expressions or own
    for lost in own:
        if not any(_spaceless(lost) in _spaceless(text) for text in texts):
            reader.warnings.append(
                f"-m replaces the file's mask {lost}; to keep both add -m '{lost}'"
            )
    for text in texts:
        reader.sources += files_in(text)
    maskers: list[Any] = [language.masker(text) for text in texts]
    polarity = reader.pick("mask_polarity", is_word, "keep or ignore")
    found = reader.tensor("attn_mask", reader.flag("attn_mask"))
    if found:
        text = _tensor_text(reader, polarity or "keep")
        maskers.append(language.tensor_masker(found[0], polarity or "keep", text=text))
    elif reader.flag("mask_polarity"):
        raise InputError(
            "--mask-polarity is given, but there is no mask tensor", "add --attn-mask FILE"
        )
    return maskers


def _tensor_text(reader: Reader, polarity: str) -> str | None:
    """How the mask tensor is written as an expression, when it lies in a file."""
    path, _, name = (reader.flag("attn_mask") or "").partition("::")
    if not path and reader.bundle and reader.bundle.kind != "json":
        role = files.find(reader.bundle, "attn_mask")
        path, name = reader.bundle.source, role[0] if role else ""
        name = reader.bundle.whole.get(name, name)
    if not path or path == "-" or not os.path.exists(path):
        return None
    sign = "~" if polarity == "ignore" else ""
    return f"{sign}file({path!r}, {name!r})" if name else f"{sign}file({path!r})"


def files_in(expression: str) -> list[str]:
    """Return the texts in a mask expression, which may name files."""
    try:
        nodes = ast.walk(ast.parse(expression.strip(), mode="eval"))
        return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _spaceless(text: str) -> str:
    return "".join(text.split())
