"""Files of attention weights alone: which of their tensors these are, and of which layers.

``outputs.attentions`` of transformers, as it is saved: ``attentions.0`` … in .npz and .safetensors,
a tuple in a PyTorch file, one tensor ``(layers, batch, heads, queries, keys)``; TransformerLens's
``blocks.0.attn.hook_pattern``; matrices without a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import numpy as np

from attncli.errors import FileError, numbered
from attncli.files.bundle import Bundle, Lazy, path_of
from attncli.files.formats.entry import Array, Entry
from attncli.files.vocabulary import LEADING, PLAYED

ROLE = "weights"
NAME = "attn_weights"  # of the one tensor of a layer
WORD = "weights"  # the one of their names that other tensors have, too
LAYERS = 5  # dimensions of the weights of all layers
CLOSE = 4e-3  # of a sum to 1: half a unit in the last place of bfloat16
LARGEST = 1 << 22  # numbers that are looked at
#: Tensors that are numbered and no more: numpy's of savez(FILE, *attentions), layer_0, a tuple's.
COUNTED = re.compile(r"(?:(?:arr|layers?)[_.]?(?=\d))?(\d+(?:\.\d+)*)?")
#: Of a tensor that is read as a query, and of one that is not.
NO_QUERY = (
    "its rows are ≥ 0 and sum to 1: these look like attention weights, not like queries; attncli "
    "inspect reads them as what they are"
)
NO_ATTENTIONS = "models give their attentions with attn_implementation='eager' alone"
NOTE = (
    "no name says what it is: its rows are ≥ 0 and sum to 1, so these look like attention weights "
    "and are read as such (--header lists the tensors)"
)


def weights_in(bundle: Bundle, said: bool = False) -> dict[str, Bundle]:
    """The attention weights of each layer by its name: bundles with one tensor of them, NAME.

    What else stands beside them, or above all, goes along. {} where there is a query, or no weights
    are known by their names, or without a name by their numbers. ``said``: somebody said that these
    are weights, whatever they are called. Raises FileError where they may be one of several.
    """
    if not said and any(_plays(name, LEADING) for name in bundle.tensors):
        return {}
    named = {name: layer for name in bundle.tensors if (layer := _layer(name)) is not None}
    if not said:
        named = {
            name: layer for name, layer in named.items()
            if not _is_word(name) or looks_like_weights(bundle.tensors[name], square=False)
        }  # fmt: skip
    notes = bundle.notes
    if said and not bundle.tensors:
        raise FileError(f"{bundle.source} holds no tensor", NO_ATTENTIONS)
    if not named:
        counted = {name: COUNTED.fullmatch(name) for name in bundle.tensors}
        nameless = all(counted.values())
        looks = nameless and bundle.tensors and all(_likely(bundle))
        if not (said or looks):
            return {}
        if said and not nameless and len(bundle.tensors) > 1:
            raise FileError(
                f"{bundle.source} holds {numbered(bundle.tensors)}: which are the weights?",
                f"name them: {path_of(bundle)}::{next(iter(bundle.tensors))}",
            )
        named = {name: found[1] or "" if found else "" for name, found in counted.items()}
        notes = notes if said else (*notes, NOTE)
    others = [name for name in (*bundle.tensors, *bundle.options) if name not in named]
    found: dict[str, Bundle] = {}
    for name, layer in named.items():
        own = {other.rpartition(".")[2]: other for other in others if _goes_along(other, name)}
        alone = _alone(replace(bundle, notes=notes), name, own)
        for number, one in _split(alone, bundle.tensors[name]):
            found[".".join(filter(None, (layer, number)))] = one
    return found


def looks_like_weights(array: Array, square: bool = True) -> bool:
    """Whether ``(…, Lq, Lk)`` holds rows of a softmax; of a large one the first matrices tell.

    ``square``: Lq must be Lk.
    """
    if array.ndim < 2 or array.shape[-1] < 2 or (square and array.shape[-1] != array.shape[-2]):
        return False
    size = array.shape[-1] * array.shape[-2]
    if not array.size or array.dtype.kind == "c" or array.dtype.kind in "bU":
        return False
    first = array.reshape(-1, *array.shape[-2:])[: max(1, LARGEST // size)]
    rows = np.asarray(first[:, : max(1, LARGEST // array.shape[-1])], np.float64)
    sums = rows.sum(-1)
    return bool((rows >= 0).all() and np.allclose(sums, 1, rtol=0, atol=CLOSE))


def _likely(bundle: Bundle) -> Iterator[bool]:
    square = [*bundle.tensors] in ([""], ["arr_0"])  # a table of numbers is no more than that
    for name in bundle.tensors:
        yield looks_like_weights(bundle.tensors[name], square)


def _parts(name: str) -> list[str]:
    return name.split(".") if name else []


def _plays(name: str, roles: tuple[str, ...]) -> bool:
    return any(role in roles for role in PLAYED.get(name.rpartition(".")[2].lower(), ()))


def _layer(name: str) -> str | None:
    """Return the layer of a tensor that is called weights: 'layers.3' of 'layers.3.attn_weights'.

    'attentions.3' is one itself.
    """
    parts = _parts(name)
    numbers = next((n for n, part in enumerate(reversed(parts)) if not part.isdecimal()), 0)
    stem = parts[: len(parts) - numbers]
    if not stem or not _plays(stem[-1], (ROLE,)):
        return None
    return ".".join(parts if numbers else stem[:-1])


def _is_word(name: str) -> bool:
    return next(p for p in reversed(_parts(name)) if not p.isdecimal()).lower() == WORD


def _goes_along(name: str, weights: str) -> bool:
    """Whether a member stands beside the weights, or above them."""
    outer = name.rpartition(".")[0]
    return not outer or weights.startswith(f"{outer}.")


def _alone(bundle: Bundle, name: str, own: Mapping[str, str]) -> Bundle:
    """Return a bundle of the weights called ``name`` and what goes along, by short names."""
    assert isinstance(bundle.tensors, Lazy)
    inside = {NAME: name, **{short: other for short, other in own.items() if short != NAME}}
    tensors = {s: bundle.tensors.entry(n) for s, n in inside.items() if n in bundle.tensors}
    options = {s: bundle.options[n] for s, n in inside.items() if n in bundle.options}
    referred = {s: bundle.referred[n] for s, n in inside.items() if n in bundle.referred}
    return replace(
        bundle, tensors=Lazy(tensors), options=MappingProxyType(options),
        referred=MappingProxyType(referred),
        whole={short: bundle.whole.get(other, other) for short, other in inside.items()},
    )  # fmt: skip


def _split(bundle: Bundle, array: Array) -> Iterator[tuple[str, Bundle]]:
    """Yield the layers of weights ``(layers, B, H, Lq, Lk)`` by number; others as they are."""
    if array.ndim != LAYERS:
        yield "", bundle
        return
    assert isinstance(bundle.tensors, Lazy)
    for n in range(len(array)):
        entry = Entry(partial(array.__getitem__, n))
        yield str(n), replace(bundle, tensors=bundle.tensors.beside({NAME: entry}))
