"""The error budget of gradients: as ``budget``, with what one rounding of each term can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.gradients import Gradients, float_masks
from attncli.attention.problem import Problem
from tests.support.budget import assert_close, eps

Array = np.ndarray[Any, np.dtype[Any]]

NAMES = ("query", "key", "value", "sink", "biases")


@dataclass(frozen=True)
class Slopes:
    """Gradients by name, biases as one array of all cells, and the rounding band of each."""

    arrays: dict[str, Array]
    bands: dict[str, Array]


def slopes(problem: Problem, grad: Array, dtype: Any, order: Array | None = None) -> Slopes:
    """The definition, dense, in ``dtype``; ``order`` permutes the keys before they are summed."""
    p, each = problem, problem.heads // max(problem.kv_heads, 1)
    order = np.arange(p.keys) if order is None else order
    back = np.argsort(order)
    q, do = p.query.astype(dtype), grad.astype(dtype)  # (B, H, Lq, D), (B, H, Lq, Dv)
    k, v = (np.repeat(a.astype(dtype), each, 1)[:, :, order] for a in (p.key, p.value))
    keep = p.mask.dense()[..., order]  # (B, H, Lq, Lk)
    bias = np.zeros(keep.shape, dtype)
    if p.mask.has_bias:
        for b, h in np.ndindex(p.batch, p.heads):
            bias[b, h] = p.mask.bias(b, h, 0, p.queries, 0, p.keys)[:, order]
    scale = np.dtype(dtype).type(p.scale)
    cap = None if p.softcap is None else np.dtype(dtype).type(p.softcap)
    with np.errstate(all="ignore"):
        s = scale * np.einsum("bhid,bhjd->bhij", q, k)
        reach = np.abs(scale) * np.einsum("bhid,bhjd->bhij", np.abs(q), np.abs(k))
        t = np.zeros_like(s) if cap is None else np.tanh(s / cap)
        c = s if cap is None else cap * t
        z = np.where(keep, c + bias, -np.inf)
        sink = np.full((1, p.heads, 1, 1), -np.inf, dtype)
        if p.sink is not None:
            sink[0, :, 0, 0] = p.sink
        top = np.maximum(z.max(-1, keepdims=True, initial=-np.inf), sink)
        top = np.where(np.isneginf(top), 0, top)
        e, es = np.exp(z - top), np.exp(sink - top)
        total = e.sum(-1, keepdims=True) + es
        total = np.where(total == 0, 1, total)
        w, ws = e / total, es / total
        out = np.einsum("bhij,bhjd->bhid", w, v)
        dp = np.einsum("bhid,bhjd->bhij", do, v)
        delta = (w * dp).sum(-1, keepdims=True)
        dz = w * (dp - delta)
        f = 1 - t * t if cap is not None else np.ones_like(s)
        ds = dz * f

        # First order: what a step does to each weight, product and difference, carried along.
        step, last = eps(p.dtype), eps(p.result_dtype)
        move = np.where(keep, 1 + reach + np.abs(c) + np.abs(bias) + np.abs(z - top), 0)
        far = np.abs(np.where(ws > 0, sink - top, 0))
        lean = (w * move).sum(-1, keepdims=True) + ws * (1 + far)
        w_err = step * w * (2 + move + lean)
        dp_err = step * np.einsum("bhid,bhjd->bhij", np.abs(do), np.abs(v))
        out_err = np.einsum("bhij,bhjd->bhid", w_err, np.abs(v)) + step * np.abs(out)
        delta_err = np.einsum(
            "bhid,bhid->bhi", np.abs(do), out_err + step * np.abs(out)
        )[..., None]  # fmt: skip
        dz_err = w_err * np.abs(dp - delta) + w * (dp_err + delta_err + step * np.abs(dp - delta))
        f_err = 4 * step * t * t
        if cap is not None:
            f_err = f_err + 2 * step * np.abs(t) * f * reach / cap
        ds_err = dz_err * f + np.abs(dz) * (f_err + step * f)
        size = np.abs(scale)
        arrays = {
            "query": scale * np.einsum("bhij,bhjd->bhid", ds, k),
            "key": scale * np.einsum("bhij,bhid->bhjd", ds, q)[:, :, back],
            "value": np.einsum("bhij,bhid->bhjd", w, do)[:, :, back],
            "sink": -(ws * delta).sum((0, 2, 3)),
            "biases": dz[..., back],
        }
        ds_err, w_sum = ds_err + step * np.abs(ds), w_err + step * w
        bands = {
            "query": size * np.einsum("bhij,bhjd->bhid", ds_err, np.abs(k)),
            "key": size * np.einsum("bhij,bhid->bhjd", ds_err, np.abs(q))[:, :, back],
            "value": np.einsum("bhij,bhid->bhjd", w_sum, np.abs(do))[:, :, back],
            "sink": (ws * (step * (3 + lean + far) * np.abs(delta) + delta_err)).sum((0, 2, 3)),
            "biases": dz_err[..., back],
        }  # fmt: skip
    floor = float(np.finfo(p.dtype).tiny) * 1e6
    if p.result_dtype.name == "float16":
        floor = 2.0**-24
    for name in ("key", "value"):  # the heads of a group
        shape = (p.batch, p.kv_heads, each, p.keys, -1)
        arrays[name], bands[name] = (
            x.reshape(*shape[:-1], x.shape[-1]).sum(2) for x in (arrays[name], bands[name])
        )
    return Slopes(arrays, {n: band + floor + last * np.abs(arrays[n]) for n, band in bands.items()})


def over_mask(cells: Array, shape: tuple[int, ...]) -> Array:
    """Sum cells ``(B, H, Lq, Lk)`` over what a mask tensor of that shape broadcasts."""
    axes = tuple(axis for axis, n in enumerate(shape) if n == 1)
    return cells.sum(axes, keepdims=True)[..., : shape[-1]]


def assert_gradients_within_budget(
    problem: Problem, grad: Array, found: Gradients, *, reorder: int = 1
) -> None:
    """Hold gradients in the problem's shapes ``(B, H, L, D)`` against the definition."""
    right = slopes(problem, grad, np.longdouble)
    rng = np.random.default_rng(0)
    orders = [None, *(rng.permutation(problem.keys) for _ in range(reorder))]
    plains = [slopes(problem, grad, problem.dtype, order).arrays for order in orders]
    for name in NAMES[:3]:
        with np.errstate(over="ignore"):
            rounded = [plain[name].astype(problem.result_dtype) for plain in plains]
        assert_close(
            f"grad {name}", getattr(found, name), right.arrays[name], rounded, right.bands[name]
        )
    if problem.sink is not None:
        assert found.sink is not None
        own = [plain["sink"] for plain in plains]
        assert_close("grad sink", found.sink, right.arrays["sink"], own, right.bands["sink"])
    shapes = float_masks(problem)
    assert len(found.biases) == len(shapes)
    for shape, array in zip(shapes, found.biases, strict=True):
        truth, band = (over_mask(x["biases"], shape) for x in (right.arrays, right.bands))
        own = [over_mask(plain["biases"], shape) for plain in plains]
        assert_close("grad bias", array, truth, own, band)
