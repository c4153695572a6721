"""Every engine against PyTorch's scaled_dot_product_attention, called with its own arguments.

The masks are said twice, in SDPA's words and in ours, so that a convention cannot hide. The truth
is SDPA in float64; the error budget is SDPA's own error at the result's precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import attncli
from tests.support import budget
from tests.support.engines import ENGINES, WHOLE, options_of, takes

torch = pytest.importorskip("torch", reason="SDPA is PyTorch's")

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}
DTYPES |= {"float64": np.float64}
TAKEN = [(engine, dtype) for engine in ENGINES for dtype in DTYPES if takes(engine, dtype)]


@dataclass(frozen=True)
class Call:
    """A call of SDPA: query ``(B, H, Lq, D)``, key, value ``(B, G, Lk, D or Dv)``."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    attn_mask: np.ndarray | None = None
    is_causal: bool = False
    scale: float | None = None

    def sdpa(self, dtype: str, order: np.ndarray | None = None) -> np.ndarray:
        """What PyTorch makes of it, float64 or rounded to ``dtype``; ``order`` permutes keys."""
        kind = getattr(torch, dtype)
        key, value, mask, causal = self.key, self.value, self.attn_mask, self.is_causal
        if order is not None:
            if causal:
                mask, causal = np.tri(self.query.shape[-2], self.key.shape[-2], dtype=bool), False
            key, value = key[..., order, :], value[..., order, :]
            if mask is not None and mask.shape[-1] > 1:
                mask = mask[..., order]
        tensors = [torch.tensor(a.astype(np.float64)).to(kind) for a in (self.query, key, value)]
        given = None
        if mask is not None:
            given = torch.tensor(mask.copy() if mask.dtype == bool else mask.astype(np.float64))
            given = given if mask.dtype == bool else given.to(kind)
        with torch.no_grad():
            out = torch.nn.functional.scaled_dot_product_attention(
                *tensors, attn_mask=given, is_causal=causal, scale=self.scale,
                enable_gqa=self.query.ndim == 4,
            )  # fmt: skip
        return np.asarray(out.to(torch.float64).numpy())

    def ours(self, engine: str) -> attncli.Result:
        # SDPA's causal lets query 0 stand at key 0, whatever the lengths
        return attncli.attend(
            self.query, self.key, self.value, attn_mask=self.attn_mask,
            mask="causal(top_left)" if self.is_causal else None,
            scale="auto" if self.scale is None else self.scale, **options_of(engine),
        )  # fmt: skip

    def check(self, engine: str) -> None:
        dtype = self.query.dtype.name
        result = self.ours(engine)
        assert result.output.dtype.name == dtype
        right = self.sdpa("float64")
        backwards = np.arange(self.key.shape[-2])[::-1].copy()
        plains = [self.sdpa(dtype, backwards)] + [self.sdpa(dtype)] * (dtype != "float64")
        problem = result.problem
        band = problem.family.restore(budget.truth(problem).bands["output"])
        budget.assert_close("output", result.output, right, plains, band)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    dtype = DTYPES[draw(st.sampled_from(list(DTYPES)))]
    batch, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    heads = groups * draw(st.integers(1, 3))
    queries, keys = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    width, value_width = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.3, 1.0, 8.0]))
    mask = None
    kind = draw(st.sampled_from(["none", "causal", "bool", "float"]))
    if kind in ("bool", "float"):
        full = (batch, heads, queries, keys)
        rank = draw(st.integers(2, 4))
        shape = [draw(st.sampled_from([1, n])) for n in full[4 - rank :]]
        mask = rng.random(shape) < draw(st.sampled_from([0.3, 0.8, 1.0]))
        if kind == "float":
            mask = np.where(mask, rng.normal(size=shape), -np.inf).astype(dtype)
    return Call(
        (rng.normal(size=(batch, heads, queries, width)) * spread).astype(dtype),
        rng.normal(size=(batch, groups, keys, width)).astype(dtype),
        rng.normal(size=(batch, groups, keys, value_width)).astype(dtype),
        mask,
        kind == "causal",
        # SDPA's flash kernel on the CPU gives NaN for causal with a scale of 0 or less (torch 2.13)
        draw(st.sampled_from([None, None, 1.0, 0.37, 0.6 if kind == "causal" else -0.5])),
    )


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=100, deadline=None)
@given(call=calls())
def test_engines_agree_with_sdpa(engine: str, call: Call) -> None:
    assume(takes(engine, call.query.dtype.name))
    call.check(engine)


def normal(*shape: int, dtype: Any = np.float64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize(("engine", "dtype"), TAKEN)
@pytest.mark.parametrize(
    ("mask", "causal"),
    [
        (None, False),
        (None, True),
        (np.random.default_rng(1).random((1, 2, 300, 150)) < 0.5, False),
        (np.random.default_rng(2).normal(size=(300, 150)), False),
        (np.arange(150)[None] < 77, False),
    ],
    ids=["plain", "causal", "bool", "float", "keys"],
)
def test_sizes_that_fill_tiles(
    engine: str, dtype: str, mask: np.ndarray | None, causal: bool
) -> None:
    kind = DTYPES[dtype]
    q, k, v = (
        normal(*shape, dtype=kind, seed=i)
        for i, shape in enumerate([(1, 2, 300, 20), (1, 1, 150, 20), (1, 1, 150, 6)])
    )
    if mask is not None and mask.dtype != bool:
        mask = mask.astype(kind)
    Call(q, k, v, mask, causal).check(engine)


@pytest.mark.parametrize("engine", WHOLE)
@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4)])
def test_fewer_dimensions(engine: str, shape: tuple[int, ...]) -> None:
    q, k, v = (normal(*shape, seed=i) for i in range(3))
    Call(q, k, v).check(engine)
    Call(q, k, v, is_causal=True).check(engine)
    Call(q, k, v, attn_mask=np.tri(5, dtype=bool)[::-1]).check(engine)


@pytest.mark.parametrize(("engine", "dtype"), TAKEN)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_rows_that_see_nothing_are_zero(engine: str, dtype: str, kind: str) -> None:
    q, k, v = (normal(2, 2, 4, 8, dtype=DTYPES[dtype], seed=i) for i in range(3))
    mask = np.ones((2, 1, 4, 4), bool)
    mask[0, :, 2] = False
    given = mask if kind == "bool" else np.where(mask, 0, -np.inf).astype(DTYPES[dtype])
    call = Call(q, k, v, given)
    assert (call.ours(engine).output[0, :, 2] == 0).all()
    assert (call.sdpa(dtype)[0, :, 2] == 0).all()
    call.check(engine)


@pytest.mark.parametrize("engine", WHOLE)
def test_bool_masks_keep_what_is_true_as_sdpa_and_not_as_multihead_attention(
    engine: str,
) -> None:
    q, k, v = (normal(1, 1, 3, 4, seed=i) for i in range(3))
    mask = np.array([[True, False, True], [False, True, True], [True, True, False]])
    right = Call(q, k, v, mask).sdpa("float64")
    got = attncli.attend(q, k, v, attn_mask=~mask, mask_polarity="ignore", **options_of(engine))
    np.testing.assert_allclose(got.output, right, atol=1e-14)


@pytest.mark.parametrize("engine", WHOLE)
def test_heads_of_a_group_lie_together(engine: str) -> None:
    q, k, v = (normal(1, h, 5, 4, seed=i) for i, h in enumerate((6, 2, 2)))
    whole = Call(q, k.repeat(3, 1), v.repeat(3, 1))
    assert np.abs(Call(q, k, v).ours(engine).output - whole.sdpa("float64")).max() < 1e-14
    tiled = Call(q, np.tile(k, (1, 3, 1, 1)), np.tile(v, (1, 3, 1, 1)))
    assert np.abs(Call(q, k, v).ours(engine).output - tiled.sdpa("float64")).max() > 0.1


@pytest.mark.parametrize("engine", WHOLE)
def test_scale_is_the_width_of_the_query(engine: str) -> None:
    q, k, v = normal(3, 16), normal(4, 16, seed=1), normal(4, 5, seed=2)
    default = Call(q, k, v).ours(engine).output
    assert np.abs(default - Call(q, k, v, scale=0.25).sdpa("float64")).max() < 1e-14
    for scale in (1.0, 0.0, -0.25):
        Call(q, k, v, scale=scale).check(engine)
