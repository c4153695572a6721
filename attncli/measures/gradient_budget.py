"""The error budget of gradients: as ``budget``, with what one rounding of each term can do.

The gradients are those of Σ output∘dO before RoPE is taken back (formulas: ``gradients``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.softcap import softcapped
from attncli.measures.budget import Way, as_own, eps
from attncli.resources import Job, processors, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]

CELLS = 1 << 20  # of a matrix of which some are held at a time
TINY = 1 << 16  # multiplications of a product below which BLAS takes one thread by itself


@dataclass(frozen=True)
class Slopes:
    """Gradients by name, and the rounding band of each cell, {} where none was asked for.

    query ``(B, H, Lq, D)``, key ``(B, G, Lk, D)``, value ``(B, G, Lk, Dv)``, sink ``(H,)``;
    biases, if asked for, are those of all cells, ``(B, H, Lq, Lk)``.
    """

    arrays: dict[str, Array]
    bands: dict[str, Array]


def slopes(
    problem: Problem,
    grad: Array,
    dtype: Any,
    way: Way = Way(),  # noqa: B008  (a NamedTuple)
    *,
    own: np.dtype[Any] | None = None,
    cells: bool = False,
    threads: int | None = None,
) -> Slopes:
    """Return the definition's gradients in ``dtype``; with ``own`` their bands for that type.

    grad: dO, ``(B, H, Lq, Dv)``. A ``way`` with ``low`` rounds P, dP and dS before their products.
    """
    p = problem
    shapes = {
        "query": p.query.shape, "key": p.key.shape, "value": p.value.shape, "sink": (p.heads,)
    }  # fmt: skip
    if cells:
        shapes["biases"] = (p.batch, p.heads, p.queries, p.keys)
    arrays = {name: np.zeros(shape, dtype) for name, shape in shapes.items()}
    bands = {name: np.zeros(shape, dtype) for name, shape in shapes.items()} if own else {}
    squares = {name: np.zeros(shape, dtype) for name, shape in shapes.items()} if own else {}
    threads = threads or processors()
    step = max(1, min(p.queries, CELLS // threads // max(p.keys, 1)))

    def of_group(b: int, g: int) -> None:
        each = p.heads // p.kv_heads
        for h in range(g * each, (g + 1) * each):
            for i in range(0, p.queries, step):
                rows = np.arange(i, min(i + step, p.queries))
                part = grad[b, h, rows].astype(dtype)
                _add(p, b, h, rows, part, way, own, arrays, bands, squares)

    jobs: list[Job] = [partial(of_group, b, g) for b, g in np.ndindex(p.batch, p.kv_heads)]
    run_jobs(jobs, threads, p.queries * p.keys * p.width > TINY, None)
    if own is None:
        return Slopes(arrays, {})
    arithmetic = as_own(p, own).dtype
    floor = 2.0**-24 if own.name == "float16" else float(np.finfo(arithmetic).tiny) * 1e6
    last = eps(own)
    for name, band in bands.items():
        band += floor + last * np.abs(arrays[name])
        if own.itemsize == 2:  # many independent roundings of P and dS
            band += last * np.sqrt(squares[name])
    return Slopes(arrays, bands)


def _add(
    problem: Problem,
    b: int,
    h: int,
    rows: Array,
    do: Array,
    way: Way,
    own: np.dtype[Any] | None,
    arrays: dict[str, Array],
    bands: dict[str, Array],
    squares: dict[str, Array],
) -> None:
    """Add what some rows of one head give. do: ``(n, Dv)``."""
    p, group, dtype = problem, problem.group(h), do.dtype
    unit = dtype.type
    keys = np.arange(p.keys) if way.order is None else way.order
    channels = slice(None) if way.channels is None else way.channels
    q = p.query[b, h][rows].astype(dtype)  # (n, D)
    k, v = (a[b, group][keys].astype(dtype) for a in (p.key, p.value))  # (Lk, …)
    i, j = rows[:, None], keys[None, :]
    keep = np.broadcast_to(p.mask.predicate.allows(b, h, i, j), (len(rows), len(keys)))
    bias = np.asarray(sum((one.at(b, h, i, j) for one in p.mask.biases), np.zeros(()))).astype(
        dtype
    )
    cap = p.softcap
    sink = unit(-np.inf if p.sink is None else p.sink[h])

    def low(array: Array) -> Array:
        return array if way.low is None else array.astype(way.low).astype(dtype)

    with np.errstate(all="ignore"):
        s = unit(p.scale) * (q[:, channels] @ k[:, channels].T)  # (n, Lk)
        if way.tile is None:
            s = low(s)
        c = softcapped(s, cap)
        z = np.where(keep, c + bias, unit(-np.inf))
        top = np.maximum(z.max(-1, keepdims=True, initial=-np.inf), sink)
        top = np.where(np.isneginf(top), unit(0), top)
        e, es = np.exp(z - top), np.exp(sink - top)
        total = e.sum(-1, keepdims=True) + es
        total = np.where(total == 0, unit(1), total)
        w, ws = low(e / total), es / total
        out = w @ v
        dp = do @ v.T
        delta = (w * dp).sum(-1, keepdims=True)
        if way.low is not None:  # from the output, as fused kernels have it
            delta = (low(out) * do).sum(-1, keepdims=True)
            dp = low(dp) if way.tile is None else dp
        dz = w * (dp - delta)
        slope = 1 - (c / cap) ** 2 if cap is not None else np.ones_like(s)
        ds = low(dz * slope)
        found = {
            "query": unit(p.scale) * (ds @ k),
            "key": unit(p.scale) * (ds.T @ q),
            "value": w.T @ do,
            "sink": -(ws * delta).sum(),
            "biases": dz,
        }
        _put(arrays, found, b, h, group, rows, keys)
        if own is None:
            return

        # First order: what a step does to each weight, product and difference, carried along.
        inputs_too = own.itemsize < p.result_dtype.itemsize  # rounded before anything else
        step = unit(eps(as_own(p, own).dtype) * (3 if inputs_too else 1))
        size = unit(abs(p.scale))
        reach = size * (np.abs(q) @ np.abs(k).T)
        move = 1 + reach + np.abs(c) + np.abs(bias) + np.abs(z - top)
        move = np.where(keep & (w > 0), move, 0)  # infinite where the mask is the lowest float
        far = np.abs(np.where(ws > 0, sink - top, 0))
        lean = (w * move).sum(-1, keepdims=True) + ws * (1 + far)
        w_err = np.fmin(step * w * (2 + move + lean), 1)  # a weight is of 0 to 1
        dp_err = step * (np.abs(do) @ np.abs(v).T)
        out_err = w_err @ np.abs(v) + step * np.abs(out)
        delta_err = (np.abs(do) * (out_err + step * np.abs(out))).sum(-1, keepdims=True)
        if own.itemsize == 2:  # fused kernels make δ of the output that was rounded
            delta_err += eps(own) * np.sqrt(((do * out) ** 2).sum(-1, keepdims=True))
        dz_err = w_err * np.abs(dp - delta) + w * (dp_err + delta_err + step * np.abs(dp - delta))
        f_err = np.zeros_like(s)
        if cap is not None:
            t = c / unit(cap)
            f_err = 4 * step * t * t + 2 * step * np.abs(t) * slope * reach / unit(cap)
        ds_err = dz_err * slope + np.abs(dz) * (f_err + step * slope) + step * np.abs(ds)
        w_sum = w_err + step * w
        moved = {
            "query": size * (ds_err @ np.abs(k)),
            "key": size * (ds_err.T @ np.abs(q)),
            "value": w_sum.T @ np.abs(do),
            "sink": (ws * (step * (3 + lean + far) * np.abs(delta) + delta_err)).sum(),
            "biases": dz_err,
        }
        _put(bands, moved, b, h, group, rows, keys)
        wild = 1 + 2 * np.where(keep, s, 0) ** 2 + 2 * inputs_too * (size * reach) ** 2
        of_ds = (w * slope) ** 2 * (wild * (dp - delta) ** 2 + dp**2)
        noise = {
            "query": size**2 * (of_ds @ k**2), "key": size**2 * (of_ds.T @ q**2),
            "value": (w * w * wild).T @ do**2, "sink": (ws * delta**2 * ws).sum(), "biases": of_ds,
        }  # fmt: skip
        _put(squares, noise, b, h, group, rows, keys)


def _put(
    into: dict[str, Array],
    found: dict[str, Array],
    b: int,
    h: int,
    group: int,
    rows: Array,
    keys: Array,
) -> None:
    into["query"][b, h, rows] = found["query"]
    into["key"][b, group, keys] += found["key"]
    into["value"][b, group, keys] += found["value"]
    into["sink"][h] += found["sink"]
    if "biases" in into:
        into["biases"][b, h, rows[:, None], keys[None, :]] = found["biases"]
