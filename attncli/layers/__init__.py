"""Multi-head attention: hidden states and a layer's weights → heads → output.

    q, k, v = x W_Qᵀ, m W_Kᵀ, m W_Vᵀ  (m = x, or the memory)   norm, clip, RoPE
    o_h = attention(q_h, k_g, v_g)    output = concat(o_1 … o_H) W_Oᵀ

The attention itself is ``problem.pose`` and ``run.solve``, as for ``compute``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from attncli import files
from attncli.backends import Progress
from attncli.checkpoints import (
    Layer,
    Projections,
    choose,
    config_beside,
    find_layers,
    read_config,
)
from attncli.errors import InputError
from attncli.files import Bundle
from attncli.layers.masks import beyond, maskers
from attncli.layers.project import Heads, concat, linear, project
from attncli.masks import Mask
from attncli.problem import Masker, Problem, Scale, float_dtype, pose
from attncli.rope import Rope
from attncli.run import Result, solve

Array = np.ndarray[Any, np.dtype[Any]]
AnyMask = str | Mask | Masker

__all__ = [
    "Heads", "MultiheadResult", "every_layer", "load", "multihead", "project", "random_weights",
]  # fmt: skip


@dataclass(frozen=True)
class MultiheadResult:
    """What a layer made of hidden states. Without a batch dimension in x there is none here.

    output ``(B, L, Eo)`` in x's dtype and order; concat ``(B, L, H·Dv)``, heads ``(B, H, L, Dv)``;
    ``attention`` is the attention's Result with ``stages``, ``rows`` and ``problem``. ``cross``
    says whether keys and values came from elsewhere, ``seq_first`` that the output is
    ``(L, B, Eo)``.
    """

    layer: Layer
    projections: Projections
    attention: Result
    output: Array
    cross: bool
    warnings: tuple[str, ...]
    seq_first: bool = False

    @property
    def batched_output(self) -> Array:
        """The output as ``(B, L, Eo)``, whatever came in."""
        if self.output.ndim == 2:
            return self.output[None]
        return self.output.swapaxes(0, 1) if self.seq_first else self.output

    @property
    def heads(self) -> Array:
        """Each head's output ``(B, H, L, Dv)``."""
        return self.attention.output

    @property
    def concat(self) -> Array:
        """The heads side by side ``(B, L, H·Dv)``: what the output projection takes."""
        return concat(self.heads)

    @property
    def query(self) -> Array:
        """Queries as attention sees them, normed and turned ``(B, H, L, D)``."""
        return self._unbatched(self.attention.problem.query)

    @property
    def key(self) -> Array:
        """Keys likewise ``(B, G, Lk, D)``."""
        return self._unbatched(self.attention.problem.key)

    @property
    def value(self) -> Array:
        """Values ``(B, G, Lk, Dv)``."""
        return self._unbatched(self.attention.problem.value)

    @property
    def weights(self) -> Array | None:
        """``(B, H, L, Lk)``, if wanted."""
        return self.attention.weights

    @cached_property
    def contributions(self) -> Array:
        """The norm of what each head adds to each row of the output, ``(B, H, L)``."""
        w = self.projections.output
        if w is None:
            return np.asarray(np.linalg.norm(self.heads, axis=-1))
        width = self.layer.value_dim
        parts = []
        for h in range(self.layer.heads):
            added = self.heads[..., h, :, :] @ w[:, h * width : (h + 1) * width].T.astype(
                self.heads.dtype, copy=False
            )  # (B, L, Eo)
            parts.append(np.linalg.norm(added, axis=-1))
        return np.stack(parts, axis=-2)

    def _unbatched(self, array: Array) -> Array:
        return array if self.heads.ndim == 4 else array[0]


def load(
    weights: str | Bundle | Mapping[str, Any],
    *,
    config: str | Mapping[str, Any] | None = None,
    layer: int | str | None = None,
    arch: str = "auto",
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
) -> Layer:
    """Return one attention layer of a checkpoint.

    ``weights`` is a reference (file, folder, ``PATH::PREFIX``), a Bundle, or arrays by name.
    ``config`` is a file or what it holds; None looks for config.json beside the weights.
    Raises InputError or FileError where the layer is not there, or not clear.
    """
    found, skipped = every_layer(
        weights, config=config, arch=arch, heads=heads, kv_heads=kv_heads, head_dim=head_dim
    )
    try:
        return choose(found, layer)
    except InputError as error:
        if skipped:
            error.hint = f"{error.hint}; {len(skipped)} more cannot be read: {skipped[0]}"
        raise


def every_layer(
    weights: str | Bundle | Mapping[str, Any],
    *,
    config: str | Mapping[str, Any] | None = None,
    arch: str = "auto",
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
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
    found = find_layers(
        bundle, read, arch, heads=heads, kv_heads=kv_heads, head_dim=head_dim, skipped=skipped
    )
    return found, skipped


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

    Raises InputError where ``heads`` does not divide ``model_dim`` and no ``head_dim`` is given.
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
    rng = np.random.default_rng(seed)

    def glorot(out: int, into: int) -> Array:
        bound = math.sqrt(6 / (out + into))
        return rng.uniform(-bound, bound, (out, into)).astype(np.float32)

    memory = memory_dim or model_dim
    arrays = {
        "wq": glorot(heads * width, model_dim),
        "wk": glorot(kv_heads * width, memory),
        "wv": glorot(kv_heads * width, memory),
        "wo": glorot(model_dim, heads * width),
    }
    bundle = Bundle(f"random weights, seed {seed}", "arrays", arrays)
    found = find_layers(bundle, heads=heads)[0]
    return replace(found, name=f"random weights, seed {seed}", notes=(), heads_source="given")


def multihead(
    x: Any,
    weights: Layer | str | Bundle | Mapping[str, Any],
    *,
    config: str | Mapping[str, Any] | None = None,
    layer: int | str | None = None,
    arch: str = "auto",
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    memory: Any = None,
    memory_value: Any = None,
    seq_first: bool = False,
    mask: AnyMask | Sequence[AnyMask] | None = None,
    attn_mask: Any = None,
    key_padding_mask: Any = None,
    mask_polarity: str = "keep",
    add_zero_attn: bool = False,
    past_key: Any = None,
    past_value: Any = None,
    kv_lengths: Any = None,
    positions: Any = None,
    scale: Scale | None = None,
    softcap: float | None = None,
    sink: Any = None,
    rope: Rope | Mapping[str, Any] | str | None = None,
    dtype: str | None = None,
    softmax_dtype: str | None = None,
    backend: str = "numpy",
    device: str = "auto",
    threads: int | None = None,
    want: Collection[str] | Callable[[Problem], Collection[str]] = ("output",),
    progress: Progress | None = None,
) -> MultiheadResult:
    """Run one attention layer on hidden states.

    x ``(L, E)`` or ``(B, L, E)``, with ``seq_first`` ``(L, B, E)``; ``memory`` likewise is what
    keys and values are made from, ``memory_value`` what the values are. ``weights`` is a Layer, or
    what ``load`` takes. ``attn_mask`` ``(Lq, Lk)``, ``(H, Lq, Lk)``, ``(B·H, Lq, Lk)`` as in
    torch, or ``(B, H, Lq, Lk)``; ``key_padding_mask`` ``(B, Lk)``: bool True = keep
    (``mask_polarity="ignore"``: the opposite, as in torch), float = added.

    What the layer says of mask, scale, softcap, sink and RoPE holds unless given here; ``mask``,
    ``scale``, ``rope`` = ``"none"``, ``softcap`` = 0 and ``sink`` = -inf switch it off.
    ``want`` as in ``run.attend``, or a function of the posed Problem that says it. Raises AttnError
    for what does not fit together.
    """
    if not isinstance(weights, Layer):
        weights = load(
            weights, config=config, layer=layer, arch=arch, heads=heads, kv_heads=kv_heads,
            head_dim=head_dim,
        )  # fmt: skip
    own = weights
    past = 0 if past_key is None else int(np.shape(past_key)[-2])
    made = project(
        x, own, memory, memory_value, seq_first=seq_first, rope=rope, positions=positions,
        past=past, add_zero_attn=add_zero_attn,
        dtype=None if dtype is None else float_dtype(dtype),
    )  # fmt: skip
    if made.added and past_key is not None:
        raise InputError(
            "past_key is given to a layer with bias_k or add_zero_attn",
            "torch's layer has no cache: put the past into the memory",
        )
    limits = maskers(
        own, made.cross, mask, attn_mask, key_padding_mask, mask_polarity, len(made.query)
    )
    tensors = (made.query, made.key, made.value)
    problem = pose(
        *(tensors if made.batched else (t[0] for t in tensors)),
        mask=[beyond(limits, made.added)] if made.added else limits,
        past_key=past_key, past_value=past_value, kv_lengths=kv_lengths,
        scale=own.scale if scale is None else scale,
        scale_source=own.scale_source if scale is None else "given",
        softcap=(own.softcap if softcap is None else softcap) or None,
        sink=own.array("sinks") if sink is None else sink,
        rope=made.rope, softmax_dtype=softmax_dtype,
    )  # fmt: skip
    attention = solve(
        problem, backend=backend, device=device, threads=threads, progress=progress,
        want=want(problem) if callable(want) else want,
    )  # fmt: skip
    output = concat(attention.output)  # (B, L, H·Dv)
    if made.weights.output is not None:
        output = linear(output, made.weights.output, made.weights.output_bias, problem.dtype)
    with np.errstate(over="ignore"):
        output = output.astype(made.given_dtype, copy=False)
    if seq_first and made.batched:
        output = output.swapaxes(0, 1)
    found = _overridden(own, made.cross, mask)
    if key_padding_mask is not None:
        found += _all_padding(problem)
    warnings = (*found, *attention.warnings)
    return MultiheadResult(
        own, made.weights, attention, output, made.cross, warnings, seq_first and made.batched
    )


def _overridden(layer: Layer, cross: bool, mask: Any) -> list[str]:
    found = [layer.unknown] if layer.unknown else []
    found += [f"not computed: {what}" for what in layer.lacks if "RoPE" not in what]
    if mask is not None and layer.mask and not cross:
        found.append(f"the mask given replaces the layer's own, {layer.mask}")
    if cross and layer.kind == "self" and (layer.mask or layer.rope or layer.relative):
        found.append("keys come from memory: the layer's own mask, bias and RoPE are left out")
    return found


def _all_padding(problem: Problem) -> list[str]:
    """A sequence that is nothing but padding: the attention takes no such row for a real one."""
    empty = np.flatnonzero(~problem.real_rows.any(-1)).tolist() if problem.queries else []
    if not empty:
        return []
    return [
        f"{len(empty) * problem.queries * problem.heads} of "
        f"{problem.batch * problem.queries * problem.heads} rows see no key: key_padding_mask "
        f"hides every key of batch {', '.join(map(str, empty))}. True keeps a key "
        "(--mask-polarity ignore: True hides)"
    ]
