"""The masks of a problem: expressions and a tensor, from flags and files."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from attncli import files
from attncli.attention.problem import Masker
from attncli.cli.given.reader import Reader, is_truth, is_word
from attncli.cli.groups import Mask
from attncli.errors import InputError

NONE = "none"
TENSORS = ("attn_mask", "key_padding_mask")


def maskers_of(reader: Reader, flags: Mask) -> list[Any]:
    """Return what binds each mask: expressions, those of the file if no flag says any, a tensor."""
    own = []
    if "mask" in reader.options:
        own.append(reader.checked("mask", is_word, 'a mask expression, such as "causal"'))
    if reader.checked("causal", is_truth, "true or false"):
        own.append("causal")
    said = said_of(flags)
    texts = [text for text in said if text != NONE] if said else own
    for lost in own:
        if NONE not in said and not any(_spaceless(lost) in _spaceless(text) for text in texts):
            reader.warnings.append(
                f"-m replaces the file's mask {lost}; to keep both add -m '{lost}'"
            )
    for text in texts:
        reader.sources += files_in(text)
    maskers: list[Any] = [_written(text) for text in texts]
    polarity = reader.pick("mask_polarity", is_word, "keep or ignore")
    tensors = [made for role in TENSORS if (made := _tensor(reader, role, polarity or "keep"))]
    if not tensors and reader.flag("mask_polarity"):
        raise InputError(
            "--mask-polarity is given, but there is no mask tensor",
            "add --attn-mask FILE or --key-padding-mask FILE",
        )
    return maskers + tensors


def _written(text: str) -> Masker:
    from attncli.attention import language

    return language.masker(text)


def said_of(flags: Mask) -> list[str]:
    """Return the expressions of the command line; 'none', alone, is: no mask, whatever else says.

    Raises InputError where it stands beside another.
    """
    texts = flags.expressions
    if NONE in texts and len(set(texts)) > 1:
        other = next(text for text in texts if text != NONE)
        raise InputError(
            f"--mask none and {'--causal' if other == 'causal' else '--mask ' + other} "
            "contradict each other",
            "leave one of them out",
        )
    return texts


def _tensor(reader: Reader, role: str, polarity: str) -> Masker | None:
    """Return what binds the mask tensor of a role, if there is one."""
    found = reader.tensor(role, reader.flag(role))
    if found is None:
        return None
    path, name = _where(reader, role)
    text = None
    if role == "attn_mask" and os.path.exists(path):  # how it is written as an expression
        sign = "~" if polarity == "ignore" else ""
        text = f"{sign}file({path!r}, {name!r})" if name else f"{sign}file({path!r})"
    return reading(role, name, text)(found[0], polarity, name or role)


def reading(role: str, name: str, text: str | None = None) -> Callable[[Any, str, str], Masker]:
    """Return how a mask tensor of that role and name is read; ``text`` writes a mask tensor."""
    from attncli.attention import tensors

    if role == "key_padding_mask":
        return tensors.padding_masker
    whole = name.lower() == "attention_mask"
    read = tensors.attention_masker if whole else tensors.tensor_masker
    return partial(read, text=text)


def _where(reader: Reader, role: str) -> tuple[str, str]:
    """Return the file in which the tensor of a role lies, '' for none, and its name there."""
    flag, bundle = reader.flag(role), reader.bundle
    if flag is not None:
        path, _, name = flag.partition("::")
        return path, name
    assert bundle is not None
    found = files.find(bundle, role)
    name = found[0] if found else ""
    return "" if bundle.kind == "json" else bundle.source, bundle.whole.get(name, name)


def files_in(expression: str) -> list[str]:
    """Return the texts in a mask expression, which may name files."""
    try:
        nodes = ast.walk(ast.parse(expression.strip(), mode="eval"))
        return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _spaceless(text: str) -> str:
    return "".join(text.split())
