"""An attention kernel in NumPy as real ones are built, with switches for what they get wrong.

Nothing of attncli is used here: a ``Question`` says everything densely and by itself. ``Kernel()``
without a switch is honest: key tiles, online softmax, sums in float32, weights rounded to the half
type before they meet V, the result rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
INF = float("inf")
DTYPES = {
    "float64": np.dtype(np.float64), "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Turn:
    """RoPE: the positions of queries ``(Lq,)`` and keys ``(Lk,)``. At 0 nothing turns.

    Positions are divided by ``factor``; the first ``dim`` channels turn (None: all).
    """

    at_query: Array
    at_key: Array
    style: str = "half"
    theta: float = 10000.0
    dim: int | None = None
    factor: float = 1.0

    def __call__(self, x: Array, positions: Array) -> Array:
        """Turn ``(…, L, D)``, rounded once."""
        half = (self.dim or x.shape[-1]) // 2
        angle = (
            positions[:, None] / self.factor * self.theta ** (-np.arange(half) / half)
        )  # (L, D/2)
        cos, sin = np.cos(angle), np.sin(angle)
        wide, turned = x.astype(np.float64), x.astype(np.float64)
        pairs = (
            (np.s_[..., :half], np.s_[..., half : 2 * half])
            if self.style == "half"
            else (np.s_[..., 0 : 2 * half : 2], np.s_[..., 1 : 2 * half : 2])
        )
        a, b = wide[pairs[0]], wide[pairs[1]]
        turned[pairs[0]], turned[pairs[1]] = a * cos - b * sin, b * cos + a * sin
        return turned.astype(x.dtype)


@dataclass(frozen=True, eq=False)
class Question:
    """query ``(B, H, Lq, D)``, key and value ``(B, G, Lk, D)``; head h reads group h // (H/G).

    ``keep`` (bool) and ``bias`` broadcast to ``(B, H, Lq, Lk)``; ``said`` is how attncli is told of
    them: mask, attn_mask, kv_lengths … The first ``past`` keys are a cache. ``sink`` ``(H,)``.
    """

    query: Array
    key: Array
    value: Array
    said: Mapping[str, Any] = field(default_factory=dict)
    keep: Array | bool = True
    bias: Array | float = 0.0
    scale: float | None = None  # None: 1/√D
    softcap: float | None = None
    sink: Array | None = None
    rope: Turn | None = None
    past: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.value.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """``(B, H, Lq, Lk)``."""
        return (*self.query.shape[:3], self.key.shape[2])

    @property
    def factor(self) -> float:
        return 1 / math.sqrt(self.query.shape[3]) if self.scale is None else self.scale

    def turned(self) -> tuple[Array, Array]:
        if self.rope is None:
            return self.query, self.key
        return (
            self.rope(self.query, self.rope.at_query),
            self.rope(self.key, self.rope.at_key),
        )

    def wide(self, dtype: Any) -> tuple[Array, Array, Array]:
        """Query, key and value in ``dtype``, turned, each ``(B, H, L, D)``."""
        (q, k), each = self.turned(), self.query.shape[1] // self.key.shape[1]
        return (
            q.astype(dtype),
            k.astype(dtype).repeat(each, 1),
            self.value.astype(dtype).repeat(each, 1),
        )

    def hiding(self, keys: slice, rows: slice = np.s_[:]) -> Question:
        """The same without some keys."""
        keep = np.broadcast_to(self.keep, self.shape).copy()
        keep[:, :, rows, keys] = False
        return replace(self, keep=keep)

    def arguments(self) -> dict[str, Any]:
        """The arguments of ``attncli.attend``."""
        _, key = self.turned()
        found: dict[str, Any] = {
            "query": self.query, "key": self.key[:, :, self.past :],
            "value": self.value[:, :, self.past :], **self.said,
        }  # fmt: skip
        if self.past:  # a cache holds what was turned
            found |= {
                "past_key": key[:, :, : self.past],
                "past_value": self.value[:, :, : self.past],
            }
        for name in ("scale", "softcap", "sink"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if self.rope is not None:
            found["rope"] = {name: getattr(self.rope, name) for name in ("style", "theta", "dim")}
            if self.rope.factor != 1:
                found["rope"]["scaling"] = {"rope_type": "linear", "factor": self.rope.factor}
        return found


def tiles(length: int, size: int) -> Iterator[slice]:
    """Yield the ranges of a length."""
    yield from (slice(start, min(start + size, length)) for start in range(0, length, size))


@dataclass(frozen=True)
class Kernel:
    """Tile sizes and order; below them, what is wrong."""

    tile_q: int = 64
    tile_k: int = 64
    backwards: bool = False  # from the last key tile to the first
    base2: bool = False  # exp2 of logits times log2 e

    log2e: bool = True
    fill: float = -INF  # the logit of a hidden cell
    fill_added: bool = False  # added to its score instead
    softcap: str = "before mask"  # after mask, before scale
    scores: str | None = None  # the dtype that they are rounded to
    softmax: str | None = None
    accumulator: str | None = None
    subtract: bool = True
    rescale_sum: bool = True
    rescale_output: bool = True
    divide: bool = True
    dead: float = 0.0  # what a row that sees nothing is given
    drop: float = 0.0

    def __call__(self, asked: Question, rng: np.random.Generator | None = None) -> dict[str, Array]:
        """Return ``output`` ``(B, H, Lq, Dv)`` in the values' dtype and ``lse`` ``(B, H, Lq)``."""
        work = np.float64 if asked.dtype == np.float64 else np.float32
        with np.errstate(all="ignore"):
            parts = [
                self._rows(asked, rows, work, rng) for rows in tiles(asked.shape[2], self.tile_q)
            ]
            output = np.concatenate([part[0] for part in parts], 2).astype(asked.dtype)
        return {"output": output, "lse": np.concatenate([part[1] for part in parts], 2)}

    def _rows(
        self, asked: Question, rows: slice, work: Any, rng: np.random.Generator | None
    ) -> tuple[Array, Array]:
        q, k, v = asked.wide(work)
        q = q[:, :, rows]
        shape = q.shape[:3]
        top, total = np.full(shape, -np.inf, work), np.zeros(shape, work)
        sums = np.zeros((*shape, v.shape[3]), work)
        if asked.sink is not None:
            top = np.broadcast_to(asked.sink.astype(work)[None, :, None], shape)
            total = np.ones(shape, work)
        if not self.subtract:
            total = total if asked.sink is None else np.exp(top)
            top = np.zeros(shape, work)
        parts = list(tiles(k.shape[2], self.tile_k))
        for keys in reversed(parts) if self.backwards else parts:
            z = self._logits(asked, q, k[:, :, keys], rows, keys, work)
            new = np.maximum(top, z.max(-1)) if self.subtract else top
            shift = np.where(np.isneginf(new), 0, new)
            moved = self._exp(top - shift)
            p = rounded(self._exp(rounded(z - shift[..., None], self.softmax)), self.softmax)
            total = (total * moved if self.rescale_sum else total) + p.sum(-1)
            if self.drop:
                assert rng is not None
                p = p * (rng.random(p.shape) >= self.drop) / (1 - self.drop)
            p = p.astype(asked.dtype).astype(work)
            sums = sums * moved[..., None] if self.rescale_output else sums
            sums = rounded(sums + p @ v[:, :, keys], self.accumulator)
            top = new
        lse = top + np.log(total) * (1 if self.log2e else math.log(2))
        none = total == 0
        output = sums / np.where(none, 1, total)[..., None] if self.divide else sums
        return np.where(none[..., None], self.dead, output), lse.astype(work)

    def _logits(
        self, asked: Question, q: Array, k: Array, rows: slice, keys: slice, work: Any
    ) -> Array:
        def cut(x: Array | float) -> Array:
            return np.broadcast_to(x, asked.shape)[:, :, rows, keys]

        cap, scale, keep = asked.softcap, work(asked.factor), cut(asked.keep)
        z = rounded(q @ k.swapaxes(-1, -2), self.scores)
        if cap and self.softcap == "before scale":
            z = cap * np.tanh(z / cap)
        z = rounded(z * scale, self.scores)
        if cap and self.softcap == "before mask":
            z = cap * np.tanh(z / cap)
        z = z + cut(asked.bias).astype(work)
        z = z + np.where(keep, 0, self.fill) if self.fill_added else np.where(keep, z, self.fill)
        if cap and self.softcap == "after mask":
            z = cap * np.tanh(z / cap)
        return z.astype(work)

    def _exp(self, x: Array) -> Array:
        if not self.log2e:
            return np.exp2(x)
        return np.exp2(x * x.dtype.type(math.log2(math.e))) if self.base2 else np.exp(x)


def rounded(x: Array, dtype: str | None) -> Array:
    """Round to another type and come back."""
    return x if dtype is None else x.astype(DTYPES[dtype]).astype(x.dtype)


def stages(asked: Question, dtype: Any = np.float64) -> dict[str, Array]:
    """The definition, dense: scores, weights, lse and output in ``dtype``, nothing rounded."""
    q, k, v = asked.wide(dtype)
    with np.errstate(all="ignore"):
        scores = q @ k.swapaxes(-1, -2) * dtype(asked.factor)
        capped = asked.softcap * np.tanh(scores / asked.softcap) if asked.softcap else scores
        keep = np.broadcast_to(asked.keep, asked.shape)
        z = np.where(keep, capped + np.asarray(asked.bias).astype(dtype), -np.inf)
        sink = np.full(asked.shape[1], -np.inf) if asked.sink is None else asked.sink
        sink = sink.astype(dtype)[None, :, None]
        top = np.maximum(z.max(-1), sink)
        top = np.where(np.isneginf(top), 0, top)
        e = np.exp(z - top[..., None])
        total = e.sum(-1) + np.exp(sink - top)
        weights = e / np.where(total == 0, 1, total)[..., None]
        lse = top + np.log(total)
    return {"scores": scores, "weights": weights, "lse": lse, "output": weights @ v}


def gradients(
    asked: Question,
    upstream: Array,
    dtype: Any = np.float64,
    *,
    scaled: bool = True,
    delta: bool = True,
    summed: bool = True,
    capped: bool = True,
) -> dict[str, Array]:
    """dQ, dK and dV of Σ output∘upstream, as flash-attention: from the lse, dense.

    In ``dtype``; weights and score gradients are rounded to the values' type before they are
    multiplied where that is a half. The words are what is right.
    """
    q, k, v = asked.wide(dtype)
    found = stages(asked, dtype)
    p, do = found["weights"], upstream.astype(dtype)
    half = asked.dtype if asked.dtype.itemsize == 2 and dtype is not np.float64 else np.dtype(dtype)
    dp = do @ v.swapaxes(-1, -2)
    ds = p * (dp - (do * found["output"]).sum(-1)[..., None] if delta else dp)
    if asked.softcap and capped:
        ds = ds * (1 - np.tanh(found["scores"] / asked.softcap) ** 2)
    p, ds = p.astype(half).astype(dtype), ds.astype(half).astype(dtype)
    factor = dtype(asked.factor) if scaled else dtype(1)
    dk, dv = factor * (ds.swapaxes(-1, -2) @ q), p.swapaxes(-1, -2) @ do
    batch, groups, keys, _ = asked.key.shape

    def grouped(x: Array) -> Array:
        x = x.reshape(batch, groups, -1, keys, x.shape[3])
        return x.sum(2) if summed else x[:, :, 0]

    return {"grad_query": factor * (ds @ k), "grad_key": grouped(dk), "grad_value": grouped(dv)}
