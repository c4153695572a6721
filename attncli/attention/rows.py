"""Attention over keys is a monoid: the running sums of each query row, and their exact merge.

With z the masked logits of a row, s its scores, m = max z, and Σ' over all but one largest of z:

    rest = Σ' exp(z−m)    es = Σ' exp(z−m)(z−m)    rest2 = Σ' exp(2(z−m))    rest3 = Σ' exp(3(z−m))

The largest would add 1 to the sums, and take their digits: 1 − p₁ is rest/(1 + rest).
Sums over disjoint key sets merge in any order, so tiles, threads and devices are one operation and
memory is O(L), never O(L²). Rabe & Staats 2021 merge m and Σ exp; the others follow by the same
shift, and the smaller of two maxima joins the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Rows:
    """Running sums over the keys seen so far, each ``(B, H, Lq)`` but the two ``top`` ones.

    ``rest``, ``es``, ``rest2``, ``rest3`` leave out one largest logit, ``m``.
    ``n``, ``mean``, ``m2``, ``amax`` are count, mean, sum of squared deviations and largest
    magnitude of the visible scores (scaled; before softcap and bias). ``first`` is the logit of
    key 0 (−∞ when hidden). ``top_z``, ``top_j`` ``(B, H, Lq, 2)`` are the two largest logits and
    their keys (−1: a sink, or none). ``others`` counts outcomes of the softmax that are no keys
    (sinks). A row that has seen nothing has m = −∞ and zero sums.
    """

    m: Array
    rest: Array
    es: Array
    rest2: Array
    rest3: Array
    n: Array
    mean: Array
    m2: Array
    amax: Array
    first: Array
    top_z: Array
    top_j: Array
    others: Array = field(default_factory=lambda: np.zeros((), np.int64))

    def __post_init__(self) -> None:
        object.__setattr__(self, "others", np.broadcast_to(self.others, np.shape(self.n)))

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: Any = np.float64) -> Rows:
        """Return the neutral element of ``merge`` for rows of ``shape``, usually (B, H, Lq)."""
        zero, low = np.zeros(shape, dtype), np.full(shape, -np.inf, dtype)
        return cls(
            m=low, rest=zero, es=zero, rest2=zero, rest3=zero, n=np.zeros(shape, np.int64),
            mean=zero, m2=zero, amax=zero, first=low,
            top_z=np.full((*shape, 2), -np.inf, dtype), top_j=np.full((*shape, 2), -1, np.int64),
        )  # fmt: skip

    @classmethod
    def dense(cls, z: Array, s: Array, keep: Array, start: int = 0) -> Rows:
        """Return the sums of whole rows: z, s float ``(…, Lq, Lk)``, keep bool alike.

        ``start`` is the index of the first of these keys. Rows come back as ``(…, Lq)``.
        """
        s, z = np.where(keep, s, 0), np.where(keep, z, -np.inf)
        shape = z.shape[:-1]
        if not z.shape[-1]:
            return cls.empty(shape, z.dtype)
        n = keep.sum(-1)
        m = z.max(-1)
        width = min(2, z.shape[-1])
        order = np.argsort(-z, axis=-1, kind="stable")[..., :width]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore", under="ignore"):
            shifted = z - np.where(np.isneginf(m), 0, m)[..., None]
            e = np.exp(shifted.astype(np.float64))  # float32 would lose the squares of small ones
            np.put_along_axis(e, order[..., :1], 0, -1)
            es = np.where(e > 0, e * shifted, np.where(np.isnan(e), np.nan, 0)).sum(-1)
            mean = s.sum(-1, dtype=np.float64) / np.maximum(n, 1)
            m2 = np.where(keep, (s - mean[..., None]) ** 2, 0).sum(-1)
        top_z = np.full((*shape, 2), -np.inf, z.dtype)
        top_j = np.full((*shape, 2), -1, np.int64)
        top_z[..., :width] = np.take_along_axis(z, order, -1)
        top_j[..., :width] = np.where(np.isneginf(top_z[..., :width]), -1, order + start)
        return cls(
            m=m, rest=e.sum(-1), es=es, rest2=(e * e).sum(-1), rest3=(e * e * e).sum(-1), n=n,
            mean=mean, m2=m2, amax=np.abs(s).max(-1),
            first=z[..., 0] if start == 0 else np.full(shape, -np.inf, z.dtype),
            top_z=top_z, top_j=top_j,
        )  # fmt: skip

    @classmethod
    def stack(cls, parts: Sequence[Rows], shape: tuple[int, ...]) -> Rows:
        """Return rows of ``shape`` (B, H, Lq) from the rows ``(Lq,)`` of each head in order."""
        if not parts:
            return cls.empty(shape)
        stacked = {f.name: np.stack([getattr(p, f.name) for p in parts]) for f in fields(cls)}
        return cls(**{k: v.reshape(*shape, *v.shape[2:]) for k, v in stacked.items()})

    @property
    def _one(self) -> Array:
        """What the largest logit adds to a sum: 1, 0 where nothing was seen, NaN if not finite."""
        with np.errstate(invalid="ignore"):
            return np.where(np.isneginf(self.m), 0, np.exp(self.m - self.m))

    @property
    def e1(self) -> Array:
        """Σ exp(z−m), ``(B, H, Lq)``."""
        return np.asarray(self._one + self.rest)

    @property
    def e2(self) -> Array:
        """Σ exp(2(z−m)), ``(B, H, Lq)``."""
        return np.asarray(self._one + self.rest2)

    @property
    def e3(self) -> Array:
        """Σ exp(3(z−m)), ``(B, H, Lq)``."""
        return np.asarray(self._one + self.rest3)

    @property
    def lse(self) -> Array:
        """log Σ exp z, ``(B, H, Lq)``; −∞ where nothing was seen."""
        return np.asarray(self.m + np.log1p(self.rest))

    @np.errstate(invalid="ignore", over="ignore", under="ignore")  # scores may be infinite
    def merge(self, other: Rows) -> Rows:
        """Return the sums over both key sets, which must be disjoint (Chan et al. 1983 for m2)."""
        m = np.maximum(self.m, other.m)
        both = ~(np.isneginf(self.m) | np.isneginf(other.m))
        # a part that has seen nothing keeps its zero sums: its shift must not become −∞ − −∞
        ours = np.where(np.isneginf(self.m), 0, self.m - m)
        theirs = np.where(np.isneginf(other.m), 0, other.m - m)
        step = np.where(both, np.minimum(ours, theirs), 0)  # of the maximum that joins the rest
        a, b, c = np.exp(ours), np.exp(theirs), np.where(both, np.exp(step), 0)
        n = self.n + other.n
        share = other.n / np.maximum(n, 1)
        delta = other.mean - self.mean
        top_z = np.concatenate([self.top_z, other.top_z], -1)  # (B, H, Lq, 4)
        top_j = np.concatenate([self.top_j, other.top_j], -1)
        # NaN first, as max does; then by size, then by key, so that any order of merging agrees
        order = np.lexsort((top_j, np.where(np.isnan(top_z), -np.inf, -top_z)), axis=-1)[..., :2]
        return Rows(
            m=m,
            rest=a * self.rest + b * other.rest + c,
            es=_shifted(a, ours, self) + _shifted(b, theirs, other) + c * step,
            rest2=a**2 * self.rest2 + b**2 * other.rest2 + c**2,
            rest3=a**3 * self.rest3 + b**3 * other.rest3 + c**3,
            n=n,
            mean=self.mean + delta * share,
            m2=self.m2 + other.m2 + delta**2 * self.n * share,
            amax=np.maximum(self.amax, other.amax),
            first=np.maximum(self.first, other.first),
            top_z=np.take_along_axis(top_z, order, -1),
            top_j=np.take_along_axis(top_j, order, -1),
            others=self.others + other.others,
        )

    def with_sink(self, sink: Array | None) -> Rows:
        """Merge a logit per head, ``(H,)``, that has no key and no value.

        It is one more outcome of the softmax (lse, entropy, Σp²) but no key (n, scores).
        """
        if sink is None:
            return self
        z = np.broadcast_to(np.asarray(sink, self.m.dtype)[:, None], self.m.shape)
        state = Rows.empty(self.m.shape, self.m.dtype)
        seen = ~np.isneginf(z)
        top_z = state.top_z.copy()
        top_z[..., 0] = z
        values = {f.name: getattr(state, f.name) for f in fields(Rows)}
        values.update(m=z, top_z=top_z, others=seen.astype(np.int64))
        return self.merge(Rows(**values))

    def astype(self, dtype: Any) -> Rows:
        """Return the same sums in another float type; counts and keys stay integers."""
        values = {f.name: getattr(self, f.name) for f in fields(Rows)}
        return Rows(**{k: v if v.dtype.kind == "i" else v.astype(dtype) for k, v in values.items()})


def _shifted(factor: Array, shift: Array, part: Rows) -> Array:
    """Σ' exp(z−m')(z−m') for the new maximum m' = m − shift; 0 once the factor is."""
    return np.asarray(np.where(factor > 0, factor * (part.es + shift * part.rest), factor))
