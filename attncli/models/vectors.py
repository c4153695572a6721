"""What is added, scales or moves must be as long as what it meets: biases, and gains of norms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from attncli.errors import InputError
from attncli.models.layer import Layer, Norm

#: A bias of its own name, and the projection to which it is added.
BESIDE = {"q_bias": "query", "v_bias": "value"}


def check_vectors(layer: Layer) -> None:
    """Raise InputError for a bias that is no number a row, or a norm that is none a channel."""
    assert layer.bundle is not None
    for name, count, what in (*_biases(layer), *_norms(layer)):
        shape = layer.bundle.header(name).shape
        if math.prod(shape) != count or (len(shape) != 1 and not layer.form.apart):
            raise InputError(f"'{name}' is {shape}", f"expected {what}: ({count},)")


def _biases(layer: Layer) -> Iterator[tuple[str, int, str]]:
    assert layer.bundle is not None
    wide = {"query": layer.heads * layer.head_dim, "value": layer.kv_heads * layer.value_dim}
    wide["qkv"] = wide["query"] + layer.kv_heads * layer.head_dim + wide["value"]
    for role, name in layer.tensors.items():
        beside = role.removesuffix("_bias")
        if role in BESIDE:
            yield name, wide[BESIDE[role]], f"a number a row of the {BESIDE[role]}'s"
        elif role == "qkv_bias" and beside not in layer.tensors:  # torch's, of other widths
            yield name, wide[beside], "a number a row of q, k and v"
        elif role != beside and beside in layer.tensors:
            weight = layer.tensors[beside]
            count, _ = layer.form.rows_columns(beside, layer.bundle.header(weight).shape)
            yield name, count, f"a number a row of '{weight}'"
        elif role == "sinks":
            yield name, layer.heads, "a number a head"


def _norms(layer: Layer) -> Iterator[tuple[str, int, str]]:
    assert layer.bundle is not None

    def of(norm: Norm | None, count: int) -> Iterator[tuple[str, int, str]]:
        for name in (*norm.weights, *norm.biases) if norm else ():
            yield name, count, "a number a channel"

    yield from of(layer.input_norm, layer.model_dim)
    if layer.latent is not None:
        yield from of(layer.latent.norm, layer.latent.rank)
        if layer.latent.query_norm is not None:
            down = layer.bundle.header(layer.tensors["query_down"]).shape
            yield from of(layer.latent.query_norm, down[0])
    for own in filter(None, (layer.query_norm, layer.key_norm)):
        if own.weights:
            count = math.prod(layer.bundle.header(own.weights[0]).shape)
            yield from of(replace(own, weights=()), count)
