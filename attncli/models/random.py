"""Random weights, for learning without a checkpoint."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from attncli.errors import InputError, TooLarge
from attncli.files.bundle import Bundle
from attncli.models.finding import find_layers
from attncli.models.layer import Layer
from attncli.resources import available_memory, readable_bytes

Array = np.ndarray[Any, np.dtype[Any]]


def random_weights(
    seed: int,
    model_dim: int,
    heads: int,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    memory_dim: int | None = None,
) -> Layer:
    """Return a layer with random weights (Glorot uniform, as in torch), for learning.

    Raises InputError where ``heads`` does not divide ``model_dim`` and no ``head_dim`` is given,
    TooLarge where the weights cannot fit into memory.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    if min(model_dim, heads, kv_heads) < 1 or heads % kv_heads:
        raise InputError(
            f"{heads} heads, {kv_heads} key/value heads and a model of width {model_dim}",
            "all are at least 1, and query heads a multiple of key/value heads",
        )
    if head_dim is None and model_dim % heads:
        raise InputError(
            f"a model of width {model_dim} does not divide into {heads} heads",
            "give --head-dim, or other --heads",
        )
    width = head_dim or model_dim // heads
    _demand_room(2 * (heads + kv_heads) * width * max(model_dim, memory_dim or 0))
    rng = np.random.default_rng(seed)

    def glorot(out: int, into: int) -> Array:
        bound = math.sqrt(6 / (out + into))
        return rng.uniform(-bound, bound, (out, into)).astype(np.float32)

    memory = memory_dim or model_dim
    count = (heads + kv_heads) * width * (model_dim + memory)  # in float64 before they are rounded
    room = available_memory()
    if room is not None and 8 * count > room:
        raise TooLarge(
            f"{heads} heads of width {width} for a model of width {model_dim} are "
            f"{readable_bytes(8 * count)} of random weights",
            f"{readable_bytes(room)} are free",
        )
    arrays = {
        "wq": glorot(heads * width, model_dim),
        "wk": glorot(kv_heads * width, memory),
        "wv": glorot(kv_heads * width, memory),
        "wo": glorot(model_dim, heads * width),
    }
    bundle = Bundle(f"random weights, seed {seed}", "arrays", arrays)
    found = find_layers(bundle, heads=heads)[0]
    return replace(found, name=f"random weights, seed {seed}", notes=(), heads_source="given")


def _demand_room(numbers: int) -> None:
    """Raise TooLarge for more weights, made in float64, than there is memory for."""
    room = available_memory()
    if room is not None and 8 * numbers > room:
        raise TooLarge(
            f"the weights need {readable_bytes(8 * numbers)}; {readable_bytes(room)} are free",
            "choose a smaller --model-dim, --heads or --head-dim",
        )
