"""Attention layers in pretrained checkpoints, recognised by their names and config.json.

``find_layers`` reads names and shapes alone; a weight is read when ``Layer.projections`` asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack

import numpy as np

from attncli import files
from attncli.errors import InputError, listed
from attncli.files.bundle import Bundle, Lazy
from attncli.models import adapters, stored
from attncli.models.args import config_of
from attncli.models.beside import config_beside, read_config
from attncli.models.families import FAMILIES, family_named
from attncli.models.joint import joined, streams_apart
from attncli.models.layer import Layer, Norm, PositionBias, Projections
from attncli.models.matching import Found, dotted, linear, match, numbers
from attncli.models.missing import incomplete, nothing_found, unlike_others
from attncli.models.reading import Reading
from attncli.models.shapes import Said
from attncli.models.vectors import check_vectors

__all__ = [
    "FAMILIES", "Layer", "Norm", "PositionBias", "Projections", "choose", "config_beside",
    "find_layers", "holds_layers", "read_config",
]  # fmt: skip


def holds_layers(bundle: Bundle) -> bool:
    """Return whether some names are those of an attention layer whose weights are not packed."""
    names = bundle.tensors
    if adapters.is_adapter(names):
        return True
    layers, away = match(map(dotted, names)), stored.packed(names)
    return any(not away.keys() & {*layer.tensors.values()} for layer in layers)


class Told(TypedDict, total=False):
    """What somebody says of weights besides ``config`` and ``arch``, who wins over both.

    ``base`` is the model of an adapter, where that is not what it names.
    """

    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    base: str | None


class How(Told, total=False):
    """The same, and ``arch``, a model_type that stands in for config.json's."""

    arch: str


def find_layers(
    bundle: Bundle,
    config: Mapping[str, Any] | None = None,
    arch: str = "auto",
    *,
    skipped: list[str] | None = None,
    **said: Unpack[Told],
) -> list[Layer]:
    """Return every attention layer, from names, shapes and ``config`` alone.

    Without a ``config`` the bundle's own arguments speak, if it has any (``models.args``).

    ``arch`` is a model_type that stands in for config.json's. What is stored otherwise is made
    plain first. With ``skipped`` a layer that cannot be read leaves its error there, as long as
    another one can. Raises InputError for what fits no layout, for weights that are packed, and
    where only a flag can say what the weights mean.
    """
    if arch != "auto":
        family_named(arch)
    bundle, config = stored.plain(bundle, config, said.get("base"))
    bundle = _dotted(bundle)
    names = list(bundle.tensors)
    others = linear(names)
    every = in_order(streams_apart(match(names, lambda name: len(bundle.header(name).shape))))
    found = [one for one in every if one.parent not in others]
    apart = [f"{parent} is {what}: not computed" for parent, what in others.items()]
    if not found and apart:
        raise InputError(
            f"{bundle.source} holds no softmax attention: {listed(apart, 3)}",
            "layers that compute softmax(q·kᵀ)·v are read",
        )
    if not found:
        stored.check_plain(names, bundle.source)
        raise nothing_found(names, bundle.source)
    config = config_of(bundle, config)
    flags = Said(said.get("heads"), said.get("kv_heads"), said.get("head_dim"))
    present = frozenset(names)
    layers: list[Layer] = []
    errors: list[InputError] = []
    for one in found:
        try:
            layer = Reading(one, bundle, config, arch, flags, present).layer()
            check_vectors(layer)
            layers.append(layer)
        except InputError as error:
            errors.append(error)
    layers = joined(unlike_others(layers))
    if errors and (skipped is None or not layers):
        raise errors[0]
    if skipped is not None:
        lost = [one for one in incomplete(names, every) if one.split()[0] not in others]
        skipped += [error.message for error in errors] + lost + apart
    return layers


def _dotted(bundle: Bundle) -> Bundle:
    """Return the bundle by names with dots where they have slashes; the same where none has."""
    short = {name: dotted(name) for name in bundle.tensors if dotted(name) != name}
    if not short or {*short.values()} & {*bundle.tensors}:
        return bundle
    if not isinstance(bundle.tensors, Lazy):
        return replace(bundle, tensors={dotted(n): a for n, a in bundle.tensors.items()})
    whole = {**bundle.whole, **{new: name for name, new in short.items()}}
    return replace(bundle, tensors=bundle.tensors.named(short), whole=whole)


def in_order(found: Sequence[Found]) -> list[Found]:
    """Return layers in the order of their numbers (2 before 10), else as they came.

    What stands before the first number, such as encoder and decoder, keeps its place.
    """
    stacks = list(dict.fromkeys(_stack(one.parent) for one in found))
    return sorted(found, key=lambda one: (stacks.index(_stack(one.parent)), numbers(one.parent)))


def _stack(path: str) -> str:
    """Return what comes before the first number of a path."""
    return re.split(r"(?:^|\.)\d+(?:\.|$)", path, maxsplit=1)[0]


def labels(layers: Sequence[Layer]) -> list[str]:
    """Return a short name for each layer, none twice: the numbers in its own name.

    ``10``; ``0.1`` where the first number is that of a stage (Swin); with what tells them apart
    (``decoder.0.encoder_attn``) where several share their numbers. ``choose`` takes them.
    """
    telling = telling_parts([layer.name for layer in layers])
    ways = (
        lambda layer: f"0–{layer.shared - 1}" if layer.shared > 1 else str(layer.index),
        lambda layer: ".".join(map(str, numbers(layer.name))),
        lambda layer: telling(layer.name),
        lambda layer: layer.name,
    )
    for way in ways:
        found = [way(layer) or layer.label for layer in layers]
        if len({*found}) == len(found):
            return found
    return [f"{layer.label} ({n})" for n, layer in enumerate(layers)]


def telling_parts(names: Sequence[str]) -> Callable[[str], str]:
    """Return what leaves only the numbers of a path and the words that not all paths have."""
    paths = [name.split(".") for name in names]
    common = {part for part in paths[0] if not part.isdigit()}.intersection(*paths)
    return lambda name: ".".join(part for part in name.split(".") if part not in common)


def choose(
    layers: Sequence[Layer], which: int | str | None = None, skipped: Sequence[str] = ()
) -> Layer:
    """Return one layer by its number or (a part of) its name; InputError when that is not one.

    ``skipped`` says, for the error, why other layers cannot be read.
    """
    if which is None:
        if len(layers) == 1:
            return layers[0]
        raise InputError(
            f"there are {len(layers)} attention layers and none is chosen",
            _choices(layers, skipped),
        )
    text = str(which)
    if re.fullmatch(r"[0-9]{1,9}", text):
        number = int(text)
        hits = [a for a in layers if a.index == number or (a.shared > 1 and number < a.shared)]
    else:
        path = dotted(text).strip(".")
        named = dict(zip(labels(layers), layers, strict=True))
        hits = (
            [a for a in layers if a.name == path]
            or [named[path] for _ in range(path in named)]
            or [a for a in layers if f".{path}." in f".{a.name}."]
        )
    told = [why for why in skipped if f".{text.strip('.')}." in f".{why.split()[0]}."]
    if not hits and told:
        raise InputError(
            f"no attention layer '{text}' can be read: {told[0]}", _choices(layers, skipped)
        )
    if not hits:
        raise InputError(f"there is no attention layer '{text}'", _choices(layers, skipped))
    if len(hits) > 1:
        raise InputError(f"--layer {text} means {len(hits)} layers", _choices(hits, skipped))
    return hits[0]


def _choices(layers: Sequence[Layer], skipped: Sequence[str]) -> str:
    names = [f"{layer.name} ({layer.kind})" for layer in layers[:6]]
    more = f" and {len(layers) - 6} more (--list shows them)" if len(layers) > 6 else ""
    more += f"; {len(skipped)} more cannot be read: {skipped[0]}" if skipped else ""
    return f"choose with --layer, by number or name: {', '.join(names)}{more}"


def load(
    weights: str | Bundle | Mapping[str, Any],
    *,
    config: str | Mapping[str, Any] | None = None,
    layer: int | str | None = None,
    **how: Unpack[How],
) -> Layer:
    """Return one attention layer of a checkpoint.

    ``weights`` is a reference (file, folder, ``PATH::PREFIX``), a Bundle, or arrays by name.
    ``config`` is a file or what it holds; None looks for config.json beside the weights.
    Raises InputError or FileError where the layer is not there, or not clear.
    """
    found, skipped = every_layer(weights, config=config, **how)
    return replace(choose(found, layer, skipped), siblings=tuple(found))


def every_layer(
    weights: str | Bundle | Mapping[str, Any],
    *,
    config: str | Mapping[str, Any] | None = None,
    **how: Unpack[How],
) -> tuple[list[Layer], list[str]]:
    """Return every attention layer of a checkpoint, as ``load`` takes it, and why some are not.

    Raises InputError or FileError where there is none.
    """
    if isinstance(weights, str):
        config = config_beside(weights) if config is None else config
        bundle = files.read(weights)
    elif isinstance(weights, Bundle):
        bundle = weights
    else:
        bundle = Bundle("weights", "arrays", {n: np.asarray(a) for n, a in weights.items()})
    read = read_config(config) if isinstance(config, str) else config
    skipped: list[str] = []
    found = find_layers(bundle, read, skipped=skipped, **how)
    return found, skipped
