"""Views of BertViz: the JSON of their parameters becomes attention weights, a tensor a layer.

``{"attention": [{"name", "attn": [layer][head][i][j], "left_text", "right_text"}], …}`` as its
head_view and model_view write it; older ones have an object ``{"all": …, "aa": …}`` there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from attncli.errors import FileError, listed
from attncli.files.attentions import NAME
from attncli.files.bundle import Bundle, Lazy
from attncli.files.formats.entry import Entry

_ATTENTION = re.compile(r"attention\.([^.]+)\.attn")
TEXTS = {"left_text": "query_tokens", "right_text": "key_tokens"}
#: Of two sentences: cut out of the view of all, so that their rows sum to less than 1.
_CUT = re.compile(r"Sentence . -> Sentence .|[ab]{2}")
#: Parameters of the view, which say nothing of attention.
_VIEW = ("default_filter", "root_div_id", "layer", "heads", "include_layers", "include_heads",
         "display_mode", "total_heads")  # fmt: skip


def of_view(bundle: Bundle) -> Bundle:
    """The weights of a view as ``layers.3.attn_weights``, with its tokens; others as they are.

    The parts of an encoder–decoder lie below their names: ``Cross.3.attn_weights``. Raises
    FileError for attention that is not ``[layer][head][i][j]``.
    """
    parts = [part for name in bundle.tensors if (part := _ATTENTION.fullmatch(name))]
    if not parts or not all(_text(bundle, part[1], "left_text") for part in parts):
        return bundle
    said = bundle.tensors.get("include_layers")  # a list of integers
    numbers = [] if said is None else said.tolist()
    entries: dict[str, Entry] = {}
    options: dict[str, Any] = {}
    cut = []
    for part in parts:
        name = bundle.options.get(f"attention.{part[1]}.name") or part[1]
        if len(parts) > 1 and _CUT.fullmatch(str(name)):
            cut.append(str(name))
            continue
        outer = "layers" if len(parts) == 1 or str(name).lower() == "all" else str(name)
        array = bundle.tensors[part[0]]
        if array.ndim != 4:
            raise FileError(
                f"{bundle.source}: {part[0]} has shape {array.shape}",
                "expected BertViz's attention, (layers, heads, queries, keys)",
            )
        fits = len(numbers) == len(array)
        for n, number in enumerate(numbers if fits else range(len(array))):
            entries[f"{outer}.{number}.{NAME}"] = Entry(partial(array.__getitem__, n))
        for text, role in TEXTS.items():
            options[f"{outer}.{role}"] = _text(bundle, part[1], text)
    known = {*_VIEW, *(f"attention.{p[1]}.{t}" for p in parts for t in ("name", *TEXTS))}
    options |= {name: value for name, value in bundle.options.items() if name not in known}
    taken = {part[0] for part in parts}
    rest: Mapping[str, Entry] = {}
    if isinstance(bundle.tensors, Lazy):
        rest = {n: bundle.tensors.entry(n) for n in bundle.tensors if n not in {*taken, *_VIEW}}
    note = f"left out are parts of what is read: {listed(cut)}"
    return Bundle(
        bundle.source, bundle.kind, Lazy({**entries, **rest}), MappingProxyType(options),
        notes=(*bundle.notes, *([note] if cut else [])),
    )  # fmt: skip


def _text(bundle: Bundle, part: str, name: str) -> Any:
    return bundle.options.get(f"attention.{part}.{name}")
