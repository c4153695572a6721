"""Engines on a problem that is divided among processes (``attention.shares``).

Each process computes its own part with the engine as it is; the results are those of the whole,
for all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from attncli.attention.problem import STAGES, Problem
from attncli.attention.rows import Rows
from attncli.attention.shares import Partial, Share, merged
from attncli.engines import AUTO, ENGINES, Attended, How, choose, load
from attncli.errors import InputError

if TYPE_CHECKING:
    from attncli.attention.gradients import Gradients, WeightSums

Array = np.ndarray[Any, np.dtype[Any]]


def for_all(share: Share | None, name: str, note: str = "") -> tuple[str, str]:
    """Return the engine that all processes take, and why: that of the part that fewest can do.

    Parts may hold different numbers (NaN), and machines different engines; what processes send each
    other must not differ.
    """
    if share is None:
        return name, note
    said = [text.split("\n", 1) for text in share.others.texts(f"{name}\n{note}")]
    order = [*AUTO, *ENGINES]
    last, why = max(said, key=lambda one: order.index(one[0]))
    return last, why


def attend(
    engine: ModuleType, problem: Problem, share: Share, want: Collection[str], how: How
) -> Attended:
    """Return what the engine's ``attend`` would of the whole problem."""
    p = problem
    if share.axis == "keys":
        return _by_keys(engine, p, share, want, how)
    done: Attended = engine.attend(share.part(p), want, how)
    rows = done.rows
    if rows is not None:
        rows = Rows(**{f.name: share.joined(getattr(rows, f.name)) for f in fields(Rows)})
    return done._replace(
        output=_rounded(share.joined(done.output), p), lse=share.joined(done.lse), rows=rows,
        stages={name: _rounded(share.joined(done.stages[name]), p) for name in _stages(want)},
    )  # fmt: skip


def part_of_keys(
    engine: ModuleType, problem: Problem, share: Share, how: How, stages: Collection[str] = ()
) -> tuple[Partial, Attended]:
    """Return what the own keys of a problem give, and all that the engine returned.

    Raises InputError where a row of weights is rounded as a whole.
    """
    if problem.softmax_dtype is not None:
        raise InputError(
            f"a softmax in {problem.softmax_dtype} rounds whole rows of weights, and no process "
            "has them",
            "divide heads or batch elements in place of keys, or leave --softmax-dtype out",
        )
    done = engine.attend(share.part(problem), frozenset({"row_statistics", *stages}), how)
    return share.partial(problem, done.output, done.rows), done


def _by_keys(
    engine: ModuleType, p: Problem, share: Share, want: Collection[str], how: How
) -> Attended:
    ours, done = part_of_keys(engine, p, share, how, _stages(want))
    own, arrays = ours.rows, ours.arrays
    done = done._replace(output=done.output[:0], rows=None)
    del ours  # its output is not kept beside that of all
    whole = Partial.of(share.others.merged(arrays, merged))
    del arrays
    seen = whole.with_sink(p.sink)
    stages = {}
    for name in _stages(want):
        part = done.stages[name]
        if name == "weights":
            with np.errstate(invalid="ignore", under="ignore"):
                less = np.where(np.isneginf(own.m), 0, own.lse - seen.rows.lse)
                part = (part * np.exp(less)[..., None]).astype(part.dtype)
        stages[name] = _rounded(share.joined(part, -1), p)
    with np.errstate(over="ignore"):
        lse = seen.rows.lse.astype(done.lse.dtype)
    output = _rounded(seen.output, p)
    return done._replace(output=output, lse=lse, stages=stages, rows=whole.rows)


def backward(
    engine: ModuleType,
    problem: Problem,
    share: Share,
    grad_output: Array,
    attended: Attended,
    want: Collection[str],
    how: How,
    names: Sequence[str],
) -> Gradients:
    """Return what the engine's ``backward`` would of the whole problem.

    ``names`` are of engines, of which one may have to attend once more, in another arithmetic.
    Raises InputError for keys that are divided where it does not start from the lse that it is
    given (``FROM_LSE``, in whose arithmetic it does).
    """
    p = problem
    grad = share.of_rows(p, grad_output)
    if share.axis != "keys":
        ours = _part(attended, p, share)
        return _beside(engine.backward(share.part(p), grad, ours, want, how), p, share)
    exact = _from_lse(engine, p)
    if attended.rows is None or attended.output.dtype != exact.dtype:
        able, _ = choose(names, share.part(exact), ("row_statistics",))
        attended = attend(load(able), exact, share, frozenset({"row_statistics"}), how)
    assert attended.rows is not None
    # to its own keys, a sink is what the others are: part of the sums
    known = attended._replace(rows=attended.rows.with_sink(p.sink))
    part = share.part(exact)
    found: Gradients = engine.backward(part, grad.astype(exact.dtype), known, want, how)
    return _of_keys(found, p, share, grad_output, attended)


def _part(attended: Attended, p: Problem, share: Share) -> Attended:
    """Return the own heads, or batch elements, of results."""
    rows = attended.rows
    if rows is not None:
        rows = Rows(**{f.name: share.of_rows(p, getattr(rows, f.name)) for f in fields(Rows)})
    output, lse = (share.of_rows(p, a) for a in (attended.output, attended.lse))
    return attended._replace(output=output, lse=lse, rows=rows, stages={})


def _from_lse(engine: ModuleType, p: Problem) -> Problem:
    """Return the problem in the arithmetic in which an engine keeps to the lse it is given."""
    kept = getattr(engine, "FROM_LSE", None)
    if kept is None:
        raise InputError(
            "this engine makes gradients from whole rows of weights, and no process has them",
            "add --backend numpy, or divide heads or batch elements in place of keys",
        )
    dtype = p.dtype if p.dtype.name in kept else np.dtype(kept[0])
    return replace(p, dtype=dtype, result_dtype=dtype)


def _beside(found: Gradients, p: Problem, share: Share) -> Gradients:
    """Return the gradients of all heads or batch elements."""

    def joined(array: Array | None) -> Array | None:
        return None if array is None else share.joined(array)

    sums = found.sums and type(found.sums)(
        **{name: share.joined(one) for name, one in vars(found.sums).items()}
    )
    by_heads = share.axis == "heads"
    each = p.heads // max(p.kv_heads, 1)
    key, value = (_of_groups(a, p, share, each) if by_heads else joined(a)
                  for a in (found.key, found.value))  # fmt: skip
    sink = found.sink
    if sink is not None:
        sink = share.joined(sink, 0) if by_heads else share.summed(sink)[0]
    axis = 1 if by_heads else 0
    biases = tuple(
        share.summed(one)[0] if whole[axis] == 1 else share.joined(one)
        for one, whole in zip(found.biases, _float_masks(p, found), strict=True)
    )
    return replace(
        found, query=joined(found.query), key=key, value=value, sink=sink, biases=biases,
        score_norm=joined(found.score_norm), sums=sums,
    )  # fmt: skip


def _of_groups(array: Array | None, p: Problem, share: Share, each: int) -> Array | None:
    """Return ``(B, G, Lk, …)`` of all groups; what processes have of one group is summed."""
    if array is None:
        return None
    parts = share.others.gathered(array)
    firsts = share.bounds(p)[:-1] // max(each, 1)
    shape = (p.batch, p.kv_heads, *array.shape[2:])
    whole = np.zeros(shape, array.dtype)
    for first, part in zip(firsts.tolist(), parts, strict=True):
        if part.shape[1]:
            whole[:, first : first + part.shape[1]] += part
    return whole


def _of_keys(
    found: Gradients, p: Problem, share: Share, grad_output: Array, attended: Attended
) -> Gradients:
    """Return the gradients of all keys."""
    query, norm, sums = found.query, found.score_norm, found.sums
    if query is not None:
        query = share.summed(query)[0]
    if norm is not None:
        norm = share.others.merged([norm], lambda a, b: [np.hypot(a[0], b[0])])[0]
    biases = tuple(
        share.summed(one)[0] if whole[-1] == 1 else share.joined(one, -1)
        for one, whole in zip(found.biases, _float_masks(p, found), strict=True)
    )
    key, value = (None if a is None else share.joined(a, 2) for a in (found.key, found.value))

    def typed(array: Array | None) -> Array | None:
        with np.errstate(over="ignore"):
            return None if array is None else array.astype(p.dtype, copy=False)

    return replace(
        found, query=typed(query), key=typed(key), value=typed(value),
        biases=tuple(one.astype(p.dtype, copy=False) for one in biases),
        sink=_sink(p, grad_output, attended), score_norm=norm,
        sums=None if sums is None else _sums(sums, p, share),
    )  # fmt: skip


def _sink(p: Problem, grad_output: Array, attended: Attended) -> Array | None:
    """Return −Σ_i p_sink,i·δ_i, ``(H,)`` (see ``attention.gradients``)."""
    if p.sink is None:
        return None
    delta = np.vecdot(grad_output, attended.output).astype(np.float64)  # (B, H, Lq)
    lse = np.where(np.isneginf(attended.lse), np.inf, attended.lse.astype(np.float64))
    return np.asarray(-(np.exp(p.sink[:, None] - lse) * delta).sum((0, 2)))


def _sums(sums: WeightSums, p: Problem, share: Share) -> WeightSums:
    first = share.piece(p).first
    diagonals = np.zeros((p.batch, p.heads, max(p.queries + p.keys - 1, 0)))
    diagonals[..., first : first + sums.diagonals.shape[-1]] = sums.diagonals
    counted = share.summed(diagonals, sums.distance, sums.tiny)  # cells are those of the rows
    names = ("diagonals", "distance", "tiny")
    return replace(
        sums, received=share.joined(sums.received, 2), **dict(zip(names, counted, strict=True))
    )


def _float_masks(p: Problem, found: Gradients) -> list[tuple[int, ...]]:
    from attncli.attention.gradients import float_masks

    return float_masks(p) if found.biases else []


def _rounded(array: Array, p: Problem) -> Array:
    with np.errstate(over="ignore"):
        return array.astype(p.result_dtype, copy=False)


def _stages(want: Collection[str]) -> list[str]:
    return [name for name in STAGES if name in want]
