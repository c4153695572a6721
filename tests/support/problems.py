"""Attention problems: hypothesis strategies of masks and whole problems, and plain random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from attncli.attention.language import masker, tensor_masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem

DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def normals(seed: int) -> Callable[..., np.ndarray]:
    """A source of normal numbers: arrays of the shape that it is called with."""
    rng = np.random.default_rng(seed)
    return lambda *shape: rng.normal(size=shape)


def tensors(
    shape: tuple[int, int, int, int, int, int, int], size: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return q, k, v for (B, H, G, Lq, Lk, D, Dv)."""
    b, h, g, lq, lk, d, dv = shape
    rng = np.random.default_rng(seed)
    q, k, v = (
        rng.standard_normal(s).astype(np.float32)
        for s in ((b, h, lq, d), (b, g, lk, d), (b, g, lk, dv))
    )
    return q * np.float32(size), k, v


CORNERS = st.sampled_from(["top_left", "bottom_right"])


@st.composite
def leaf_masks(draw: st.DrawFn, batch: int, queries: int, keys: int) -> str:
    """Draw one mask of the language that fits the size; of its arguments alone."""
    size = st.integers(0, max(queries, keys) + 2)

    def number(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    def side() -> str:
        return draw(st.one_of(st.just("inf"), size.map(str)))

    def lengths() -> str:
        return ", ".join(str(number(0, keys)) for _ in range(batch))

    def ids() -> str:
        found = draw(st.lists(st.integers(0, 3), min_size=keys, max_size=keys))
        return ", ".join(map(str, sorted(found) if draw(st.booleans()) else found))

    options = [
        lambda: f"causal({draw(CORNERS)})",
        lambda: f"window({side()}, {side()}, {draw(CORNERS)})",
        lambda: f"prefix({draw(size)})",
        lambda: f"padding({lengths()})",
        lambda: f"global_rows({draw(size)})",
        lambda: f"dilated({number(1, 4)}, {draw(CORNERS)})",
        lambda: f"blocks({number(1, 5)}, {draw(CORNERS)})",
        lambda: f"random({draw(st.sampled_from([0, 0.1, 0.5, 1]))}, {number(0, 9)})",
    ]
    if queries <= keys and keys:
        options.append(lambda: f"segments({ids()}, {draw(CORNERS)})")
    return options[number(0, len(options) - 1)]()


@st.composite
def mask_expressions(draw: st.DrawFn, batch: int, queries: int, keys: int, depth: int = 2) -> str:
    """Draw a mask expression with & | ~ and parentheses."""
    if depth == 0 or draw(st.booleans()):
        return draw(leaf_masks(batch, queries, keys))
    left = draw(mask_expressions(batch, queries, keys, depth - 1))
    if draw(st.integers(0, 3)) == 0:
        return f"~({left})"
    right = draw(mask_expressions(batch, queries, keys, depth - 1))
    return f"({left}) {draw(st.sampled_from('&|'))} ({right})"


@st.composite
def mask_tensors(draw: st.DrawFn, batch: int, heads: int, queries: int, keys: int) -> Any:
    """Draw a bool or float mask tensor of rank 1 to 4 that broadcasts."""
    full = (batch, heads, queries, keys)
    rank = draw(st.integers(1, 4))
    shape = [draw(st.sampled_from([1, n])) for n in full[4 - rank :]]
    if keys > 2 and draw(st.integers(0, 4)) == 0:
        shape[-1] = draw(st.integers(2, keys))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    keep = rng.random(shape) < draw(st.sampled_from([0.2, 0.7, 1.0]))
    if draw(st.booleans()):
        return keep
    return np.where(keep, rng.normal(size=shape), -np.inf)


@st.composite
def problems(
    draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPES), sparse: bool = True
) -> Problem:
    """Draw a problem: shapes, grouped heads, masks, dead rows, large logits, softcap, sink."""
    batch, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    heads = groups * draw(st.integers(1, 3))
    queries, keys = draw(st.integers(1, 12)), draw(st.integers(1, 14))
    width, value_width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    dtype = DTYPES[draw(st.sampled_from(dtypes))]
    spread = draw(st.sampled_from([0.0, 0.3, 1.0, 3.0, 30.0, 100.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    q = (rng.normal(size=(batch, heads, queries, width)) * spread).astype(dtype)
    k = (rng.normal(size=(batch, groups, keys, width)) * max(spread, 1)).astype(dtype)
    v = rng.normal(size=(batch, groups, keys, value_width)).astype(dtype)
    if draw(st.integers(0, 5)) == 0:  # one key repeated: ties
        k[:] = k[:, :, :1]
    maskers = []
    kind = draw(st.integers(0, 3)) if sparse else 0
    if kind in (1, 3):
        maskers.append(masker(draw(mask_expressions(batch, queries, keys))))
    if kind in (2, 3):
        maskers.append(tensor_masker(draw(mask_tensors(batch, heads, queries, keys))))
    return pose(
        q, k, v, mask=maskers,
        scale=draw(st.sampled_from(["auto", "auto", "none", 0.5, -1.0])),
        softcap=draw(st.sampled_from([None, None, 2.0, 50.0])),
        sink=rng.normal(size=heads) if draw(st.integers(0, 3)) == 0 else None,
    )  # fmt: skip


def random_problem(
    heads: int = 2, queries: int = 40, keys: int = 40, *, groups: int | None = None, batch: int = 2,
    width: int = 8, value_width: int = 8, dtype: str = "float32", mask: str | None = None,
    **options: Any,
) -> Problem:  # fmt: skip
    rng = np.random.default_rng(queries * 1000 + keys)

    def normal(h: int, length: int, d: int) -> np.ndarray:
        return rng.normal(size=(batch, h, length, d)).astype(DTYPES[dtype])

    g = groups or heads
    return pose(
        normal(heads, queries, width), normal(g, keys, width), normal(g, keys, value_width),
        mask=[masker(mask)] if mask else [], **options,
    )  # fmt: skip


def causal_problem(seed: int = 0, **how: Any) -> Problem:
    rng = np.random.default_rng(seed)
    return pose(*(rng.normal(size=(3, 2, 20, 8)) * 2), mask=masker("causal"), **how)
