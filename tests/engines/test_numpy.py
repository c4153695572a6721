"""The tiled engine against the reference, for any problem and any tiling."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncli.attention.biases import Alibi
from attncli.attention.cells import Cells
from attncli.attention.masks import Extent, Mask
from attncli.attention.patterns import Band, SameSegment
from attncli.attention.pose import pose
from attncli.attention.predicates import FAR, Predicate
from attncli.attention.problem import STAGES, Problem
from attncli.attention.rows import Rows
from attncli.engines import Attended, How, reference
from attncli.engines.numpy import forward
from attncli.engines.numpy.forward import Tiling
from tests.support.problems import tensors

Array = np.ndarray[Any, np.dtype[Any]]
SMALL = Tiling(rows=32, keys=128, heads=2)
ALL = ("output", "lse", "row_statistics")


def only(predicate: Predicate) -> Any:
    """Return what binds a predicate to any extent."""
    return lambda extent: Mask(extent, predicate)


def causal(extent: Extent) -> Mask:
    return Mask(extent, Band(-FAR, 0, (extent.keys - extent.queries,) * extent.batch))


def window(extent: Extent) -> Mask:
    return Mask(extent, Band(-60, 3, (0,) * extent.batch))


def documents(extent: Extent) -> Mask:
    ids = np.sort(np.arange(max(extent.queries, extent.keys)) // 50)[None].repeat(extent.batch, 0)
    return Mask(extent, SameSegment(ids[:, : extent.queries], ids[:, : extent.keys]))


def scattered(extent: Extent) -> Mask:
    shape = extent.batch, extent.heads, extent.queries, extent.keys
    return Mask(extent, Cells(np.random.default_rng(5).random(shape) < 0.3))


def alibi(extent: Extent) -> Mask:
    slopes = tuple(2.0 ** -(h + 1) for h in range(extent.heads))
    return Mask(extent, Band(-FAR, 0, (0,) * extent.batch), (Alibi(slopes, (0,) * extent.batch),))


MASKS: dict[str, Any] = {
    "none": (), "causal": causal, "window": window, "documents": documents,
    "scattered": scattered, "alibi": alibi,
}  # fmt: skip


def dense(p: Problem) -> tuple[Array, Array, Rows]:
    """Output, lse and rows of an independent implementation in the problem's own precision."""
    dtype, groups = p.dtype, [p.group(h) for h in range(p.heads)]
    q, k, v = (np.asarray(x, dtype) for x in (p.query, p.key[:, groups], p.value[:, groups]))
    with np.errstate(all="ignore"):
        s = np.einsum("bhid,bhjd->bhij", q, k) * dtype.type(p.scale)
        z = s if p.softcap is None else dtype.type(p.softcap) * np.tanh(s / dtype.type(p.softcap))
        cells = [(b, h) for b in range(p.batch) for h in range(p.heads)]
        every = 0, p.queries, 0, p.keys
        keep = np.stack([p.mask.keep(*at, *every) for at in cells]).reshape(s.shape)
        if p.mask.has_bias:
            bias = np.stack([np.asarray(p.mask.bias(*at, *every)) for at in cells])
            z = z + bias.reshape(s.shape).astype(dtype)
        z = np.where(keep, z, -np.inf).astype(dtype)
        rows = Rows.dense(z, s, keep)
        sink = np.full(p.heads, -np.inf) if p.sink is None else p.sink
        top = np.maximum(z.max(-1, initial=-np.inf), sink[:, None].astype(dtype))
        shift = np.where(np.isneginf(top), 0, top).astype(dtype)
        e = np.exp(z - shift[..., None])
        total = e.sum(-1) + np.exp(sink[:, None].astype(dtype) - shift)
        out = np.einsum("bhij,bhjd->bhid", e, v) / np.where(total == 0, 1, total)[..., None]
        return out.astype(p.result_dtype), shift + np.log(total), rows


def facts(rows: Rows) -> dict[str, Array]:
    """What statistics are made from: free of the shift, each with a scale of its own."""
    with np.errstate(all="ignore"):
        lse = rows.lse
        return {
            "lse": lse,
            "entropy": np.log(rows.e1) - rows.es / rows.e1,
            "sum p²": rows.e2 / rows.e1**2,
            "sum p³": rows.e3 / rows.e1**3,
            "mean": rows.mean,
            "deviation": np.sqrt(rows.m2 / np.maximum(rows.n, 1)),
            "amax": rows.amax,
            "first": np.exp(rows.first - lse),
            "top": np.exp(rows.top_z - lse[..., None]),
        }


def within_budget(
    name: str, ours: Array, theirs: Array, truth: Array, precision: Any, reach: Any = 0.0
) -> None:
    """Judge by twice the error of the independent implementation and a rounding band.

    ``reach``, broadcasting, is the magnitude of a row's logits: rounding each of them once changes
    what they are exponents of by that many ulps.
    """
    ours, theirs, truth = (np.asarray(x, np.float64) for x in (ours, theirs, truth))
    with np.errstate(invalid="ignore"):
        same = (ours == truth) | (np.isnan(ours) & np.isnan(truth))
        error = np.where(same, 0, np.abs(ours - truth))
        other = np.abs(theirs - truth)[np.isfinite(theirs - truth)].max(initial=0)
    size = np.abs(truth[np.isfinite(truth)]).max(initial=1)
    band = 4 * float(np.finfo(precision).eps) * (1 + reach) * size
    assert not np.isnan(error).any(), f"{name}: NaN in one and not in the other"
    assert (error <= 2 * other + band).all(), name


def agrees(p: Problem, got: Attended) -> None:
    """Compare with the reference, and top keys wherever the logits tell them apart."""
    want = reference.attend(p, ALL)
    output, lse, rows = dense(p)
    assert got.rows is not None and want.rows is not None
    precision = np.float32 if p.dtype == np.float32 else np.float64
    coarse = p.result_dtype if p.result_dtype.kind == "f" else precision
    with np.errstate(invalid="ignore"):
        reach = np.maximum(want.rows.amax, np.where(want.rows.n > 0, np.abs(want.rows.m), 0))
        gap = np.abs(np.diff(want.rows.top_z, axis=-1)[..., 0])
    within_budget("output", got.output, output, want.output, coarse, reach[..., None])
    within_budget("lse", got.lse, lse, want.lse, precision, reach)
    np.testing.assert_array_equal(got.rows.n, want.rows.n)
    ours, theirs, truth = facts(got.rows), facts(rows), facts(want.rows)
    for name in truth:
        wide = reach[..., None] if name == "top" else reach
        within_budget(name, ours[name], theirs[name], truth[name], precision, wide)
    clear = np.isfinite(gap) & (gap > 1e-3)
    np.testing.assert_array_equal(got.rows.top_j[clear][:, 0], want.rows.top_j[clear][:, 0])
    for field in fields(Rows):
        wanted = np.int64 if field.name in ("n", "top_j", "others") else np.float64
        assert getattr(got.rows, field.name).dtype == wanted


@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1), (4, 4)]),
    lengths=st.sampled_from([(1, 1), (7, 300), (130, 130), (257, 257), (90, 33), (300, 140)]),
    widths=st.sampled_from([(4, 4), (16, 3), (1, 8), (33, 16)]),
    mask=st.sampled_from(sorted(MASKS)),
    size=st.sampled_from([0.0, 1.0, 30.0, 3000.0]),
    softcap=st.sampled_from([None, None, 5.0]),
    sink=st.sampled_from([None, None, 1.5]),
    tiling=st.sampled_from([SMALL, Tiling(64, 256), Tiling(256, 512, 4), None]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_any_problem(
    groups: tuple[int, int], lengths: tuple[int, int], widths: tuple[int, int], mask: str,
    size: float, softcap: float | None, sink: float | None, tiling: Tiling | None, dtype: str,
    seed: int,
) -> None:  # fmt: skip
    q, k, v = tensors((2, *groups, *lengths, *widths), size, seed)
    p = pose(q, k, v, mask=MASKS[mask], softcap=softcap, sink=sink, dtype=dtype)
    agrees(p, forward.attend(p, ALL, tiling=tiling))


@pytest.mark.slow
@pytest.mark.parametrize("mask", sorted(MASKS))
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_neither_tiles_nor_threads_matter(mask: str, size: float) -> None:
    p = pose(*tensors((1, 2, 1, 300, 300, 16, 8), size), mask=MASKS[mask])
    first = forward.attend(p, ALL, How(1), tiling=Tiling(128, 256))
    again = forward.attend(p, ALL, How(3), tiling=Tiling(128, 256))
    assert again.threads == 3
    np.testing.assert_array_equal(first.output, again.output)
    np.testing.assert_array_equal(first.lse, again.lse)
    for tiling in (Tiling(1, 128), Tiling(100, 384, 4), Tiling(512, 512, 2)):
        other = forward.attend(p, ALL, How(2), tiling=tiling)
        within_budget("output", other.output, first.output, first.output, np.float32)
        within_budget("lse", other.lse, first.lse, first.lse, np.float32)


@pytest.mark.parametrize("tiling", [SMALL, None])
def test_stages(tiling: Tiling | None) -> None:
    q, k, v = tensors((2, 4, 2, 40, 150, 8, 8), 3)
    p = pose(q, k, v, mask=scattered, softcap=4.0, sink=0.5)
    got, want = (f(p, STAGES) for f in (forward.attend, reference.attend))
    for name in STAGES:
        np.testing.assert_allclose(got.stages[name], want.stages[name], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tiling", [SMALL, None])
def test_half_precision_is_rounded_once(dtype: str, tiling: Tiling | None) -> None:
    p = pose(*tensors((1, 2, 2, 200, 200, 16, 16)), mask=causal, dtype=dtype)
    got, want = forward.attend(p, ALL, tiling=tiling), reference.attend(p, ALL)
    assert got.output.dtype == p.result_dtype and got.lse.dtype == np.float32
    exact = want.output.astype(np.float64)
    step = 2.0**-10 if dtype == "float16" else 2.0**-7
    assert (np.abs(got.output.astype(np.float64) - exact) <= step * np.abs(exact) + 1e-6).all()


def test_softmax_in_low_precision_is_followed() -> None:
    p = pose(*tensors((1, 2, 2, 60, 60, 16, 16)), softmax_dtype="float16")
    got, want = forward.attend(p, ALL), reference.attend(p, ALL)
    np.testing.assert_allclose(got.output, want.output, atol=2e-3)
    plain = forward.attend(replace(p, softmax_dtype=None), ALL)
    assert np.abs(plain.output - want.output).max() > 1e-6


@pytest.mark.parametrize("tiling", [SMALL, Tiling(256, 512), None])
@pytest.mark.parametrize("where", ["key", "value"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_masked_is_not_read(tiling: Tiling | None, where: str, poison: float) -> None:
    q, k, v = tensors((1, 2, 1, 200, 200, 8, 8))
    clean = pose(q, k, v, mask=causal)
    (k if where == "key" else v)[:, :, 150:] = poison
    dirty = pose(q, k, v, mask=causal)
    want = forward.attend(replace(clean, key=clean.key, value=clean.value), ALL, tiling=tiling)
    got = forward.attend(dirty, ALL, tiling=tiling)
    assert np.isfinite(got.output[:, :, :150]).all() and np.isfinite(got.lse[:, :, :150]).all()
    assert want.output.shape == got.output.shape
    seen = reference.attend(dirty, ALL)
    np.testing.assert_array_equal(np.isnan(got.output), np.isnan(seen.output))
    np.testing.assert_array_equal(np.isposinf(got.output), np.isposinf(seen.output))
    np.testing.assert_array_equal(np.isneginf(got.output), np.isneginf(seen.output))
    np.testing.assert_allclose(got.output[:, :, :150], seen.output[:, :, :150], atol=1e-5)


@pytest.mark.parametrize("tiling", [SMALL, None])
def test_infinite_values_meet_as_in_the_dense_sum(tiling: Tiling | None) -> None:
    q, k, v = tensors((1, 1, 1, 100, 100, 8, 4))
    v[0, 0, 3, 0], v[0, 0, 70, 0] = np.inf, -np.inf
    v[0, 0, 5, 1], v[0, 0, 9, 2] = np.inf, np.nan
    p = pose(q, k, v, mask=causal)
    got, want = forward.attend(p, ALL, tiling=tiling), reference.attend(p, ALL)
    np.testing.assert_allclose(got.output, want.output, atol=1e-5)
    assert np.isposinf(got.output[0, 0, 10, 0]) and np.isnan(got.output[0, 0, 80, 0])


@pytest.mark.parametrize("tiling", [SMALL, None])
@pytest.mark.parametrize("sink", [None, 2.0])
def test_dead_rows_give_zero(tiling: Tiling | None, sink: float | None) -> None:
    def nothing_for_some(extent: Extent) -> Mask:
        keep = np.ones((1, 1, extent.queries, extent.keys), bool)
        keep[:, :, 10:140] = False
        return Mask(extent, Cells(keep))

    p = pose(*tensors((1, 2, 2, 180, 180, 8, 8)), mask=nothing_for_some, sink=sink)
    got, want = forward.attend(p, ALL, tiling=tiling), reference.attend(p, ALL)
    assert not got.output[:, :, 10:140].any()
    assert (got.lse[:, :, 10:140] == (-np.inf if sink is None else sink)).all()
    assert got.rows is not None and want.rows is not None
    for field in fields(Rows):
        ours, theirs = (getattr(r.rows, field.name)[:, :, 10:140] for r in (got, want))
        np.testing.assert_array_equal(ours, theirs, field.name)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 0, 5, 4, 4), (1, 1, 1, 5, 0, 4, 4), (1, 2, 1, 5, 6, 0, 4), (1, 1, 1, 5, 6, 4, 0),
     (0, 1, 1, 5, 6, 4, 4)],
)  # fmt: skip
@pytest.mark.parametrize("sink", [None, 1.0])
@pytest.mark.parametrize("tiling", [SMALL, None])
def test_empty_dimensions(
    shape: tuple[int, int, int, int, int, int, int], sink: float | None, tiling: Tiling | None
) -> None:
    p = pose(*tensors(shape), sink=sink)
    got, want = forward.attend(p, ALL, tiling=tiling), reference.attend(p, ALL)
    np.testing.assert_allclose(got.output, want.output, atol=1e-6)
    np.testing.assert_allclose(got.lse, want.lse, rtol=1e-6)


def test_peaked_rows_keep_their_entropy() -> None:
    """Logits up to 1e4: exp underflows nearly everywhere, and nothing may be lost by it."""
    q, k, v = tensors((1, 1, 1, 300, 300, 16, 16), 2000)
    p = pose(q, k, v, scale=1.0)
    agrees(p, forward.attend(p, ALL, tiling=SMALL))


def test_strided_inputs_and_memory_maps(tmp_path: Any) -> None:
    q, k, v = tensors((1, 4, 4, 150, 150, 16, 16))
    np.save(tmp_path / "k.npy", k)
    lazy = np.load(tmp_path / "k.npy", mmap_mode="r")
    p = pose(q.swapaxes(1, 2).copy().swapaxes(1, 2), lazy, np.asfortranarray(v), mask=causal)
    agrees(p, forward.attend(p, ALL, tiling=SMALL))


def test_the_kernel_is_named_and_progress_told() -> None:
    told: list[float] = []
    p = pose(*tensors((1, 2, 2, 300, 300, 8, 8)))
    got = forward.attend(p, ("output",), How(threads=1, progress=told.append))
    assert "bounded" in got.kernel and got.rows is None
    assert told == sorted(told) and told[-1] <= 1
    steep = replace(p, scale=100.0)
    assert "online" in forward.attend(steep, ("output",)).kernel


def test_an_interrupt_stops_the_other_threads() -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    # many jobs: on a busy machine the other thread may do a few before this one does any
    p = pose(*tensors((1, 64, 64, 600, 600, 8, 8)))
    with pytest.raises(KeyboardInterrupt):
        forward.attend(p, ("output",), How(2, progress=interrupt))
    assert forward.attend(p, ("output",), How(2)).output.any()


def test_small_problems_start_nothing() -> None:
    code = (
        "import sys, numpy as np\n"
        "from attncli.attention.pose import pose\n"
        "from attncli.engines.numpy.forward import attend\n"
        "attend(pose(np.eye(4)), ('output', 'lse'))\n"
        "print([m for m in ('threadpoolctl', 'concurrent.futures') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
