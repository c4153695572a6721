"""All row statistics of plain attention in one pass on a GPU: a Triton kernel beside SDPA's own.

Scores come from the tensor cores in tiles, accumulated in float32, and never leave the chip. Each
row keeps its running maximum and sums (Milakov & Gimelshein 2018), and the two best *groups* of 16
keys; a second kernel looks into these two groups for the two best keys.
Masks: keys below a stop and one diagonal band, which covers causal, windows, past and padding.
"""

from __future__ import annotations

# Triton has no types, and its kernels are no Python functions.
# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"
import functools
import math
import subprocess
from collections.abc import Callable

import torch  # noqa: TID253 (loaded only once torch is known to be there)
import triton
import triton.language as tl

from attncli.attention.problem import Problem
from attncli.engines.torch.device import Inputs
from attncli.engines.torch.exact import Band, mend

Tensor = torch.Tensor
Shape = tuple[int, int, int, int]  # rows, keys of a tile, warps, stages of the pipeline
Plan = Callable[[Inputs], tuple[Tensor, dict[str, Tensor]]]

GROUP = 16  # keys of a group, one in every TILE / 16
FAR = 1 << 30
NARROW: Shape = 64, 128, 4, 2  # heads up to 128 wide
WIDE: Shape = 128, 64, 8, 2
FIELDS = 9  # m, e1, es, e2, e3, Σ(s−c), Σ(s−c)², largest and smallest s


@functools.cache
def missing() -> str | None:
    """Return why Triton does not work here, or None: it is tried once, on very little."""
    query = torch.ones((1, 1, 1, 16), dtype=torch.float16, device="cuda")
    try:
        row_sums(query, query, 1.0, [0], [0], [1])
    except (RuntimeError, OSError, subprocess.SubprocessError, triton.TritonError) as error:
        return f"Triton does not work here: {type(error).__name__}"  # without a C compiler, say
    return None


def plan(problem: Problem) -> Plan | None:
    """Return what computes lse ``(B, H, Lq)`` and the arrays of ``Rows``; None: it cannot."""
    p, mask = problem, problem.mask
    if p.softcap is not None or p.sink is not None or mask.biases or p.scale == 0:
        return None
    if p.result_dtype.itemsize != 2 or not 0 < p.width <= 256:
        return None  # tensor cores would round float32 to TF32
    low, high, stop = [-FAR] * p.batch, [FAR] * p.batch, [p.keys] * p.batch
    bands = 0
    for part in mask.conjuncts():
        band, below = part.band(), part.keys_below()
        if band is not None:
            bands += 1
            low = [max(-FAR, band.low + o) for o in band.offset]
            high = [min(FAR, band.high + o) for o in band.offset]
        elif below is not None:
            stop = [max(0, min(old, new)) for old, new in zip(stop, below, strict=True)]
        elif not part.everything():
            return None
    if bands > 1:
        return None
    return lambda inputs: row_sums(inputs.query, inputs.key, p.scale, low, high, stop)


def row_sums(
    query: Tensor, key: Tensor, scale: float, low: list[int], high: list[int], stop: list[int],
    shape: Shape | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Return lse and the sums of ``Rows``, ``(B, H, Lq)`` in float64.

    query ``(B, H, Lq, D)``, key ``(B, G, Lk, D)``, finite, float16 or bfloat16.
    Query i of batch element b sees the keys low[b] ≤ j − i ≤ high[b] with j < stop[b].
    """
    batch, heads, queries, width = query.shape
    keys, each, device = key.shape[2], heads // key.shape[1], query.device
    if scale < 0:
        query, scale = -query, -scale  # so that the largest product is the largest score
    limits = torch.tensor([low, high, stop], dtype=torch.int32, device=device)  # (3, B)
    # Deviations are counted from the mean over all keys: near the truth, and linear in q.
    centre = key.mean(2, dtype=torch.float32).repeat_interleave(each, 1)  # (B, H, D)
    centre = (query.float() @ centre[..., None])[..., 0].contiguous()  # (B, H, Lq)
    sums = torch.empty((FIELDS, batch, heads, queries), dtype=torch.float32, device=device)
    best = torch.empty((2, batch, heads, queries), dtype=torch.int32, device=device)
    top_z = torch.empty((2, batch, heads, queries), dtype=torch.float32, device=device)
    top_j = torch.empty((2, batch, heads, queries), dtype=torch.int32, device=device)
    block = max(16, triton.next_power_of_2(width))
    rows, tile, warps, stages = shape or (WIDE if block > 128 else NARROW)
    shared = (query, key, limits, best)
    sizes = (batch, heads, each, queries, keys, width)
    strides = (*query.stride(), *key.stride())
    _sweep[(triton.cdiv(queries, rows), batch * heads)](
        *shared, centre, sums, *sizes, *strides, scale * math.log2(math.e),
        ROWS=rows, TILE=tile, WIDTH=block, GROUP=GROUP,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    few = max(1, 4096 // block)
    _pick[(triton.cdiv(queries, few), batch * heads)](
        *shared, top_z, top_j, *sizes, *strides,
        ROWS=few, TILE=tile, WIDTH=block, GROUP=GROUP, num_warps=4,
    )  # fmt: skip
    return _rows(query, key, scale, limits, sums.double(), centre.double(), top_z, top_j)


def _rows(
    query: Tensor, key: Tensor, scale: float, limits: Tensor, sums: Tensor, centre: Tensor,
    top_z: Tensor, top_j: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Bring the kernels' sums, in base 2 and unscaled, into the units of ``Rows``."""
    low, high, stop = (limit.long()[:, None, None] for limit in limits)  # (B, 1, 1)
    m, e1, es, e2, e3, first_moment, second_moment, largest, smallest = sums
    i = torch.arange(query.shape[2], device=query.device)
    n = (torch.minimum(stop, i + high + 1) - (i + low).clamp(min=0)).clamp(min=0).expand_as(m)
    seen, many = n > 0, n.clamp(min=1)
    ln2 = math.log(2)
    heads = query.shape[1]
    key0 = key[:, :, 0].repeat_interleave(heads // key.shape[1], 1).float()  # (B, H, D)
    first = (query.float() @ key0[..., None])[..., 0].double() * scale
    sees_first = (i + low <= 0) & (i + high >= 0) & (stop > 0)
    m = m * ln2
    best, second = top_z.double() * scale
    none = top_j < 0
    best = torch.where(none[0], -torch.inf, m)
    second = torch.where(none[1], -torch.inf, torch.minimum(second, m))
    rows = {
        "m": m, "rest": (e1 - 1).clamp(min=0), "es": es * ln2, "rest2": (e2 - 1).clamp(min=0),
        "rest3": (e3 - 1).clamp(min=0), "n": n.contiguous(),
        "mean": torch.where(seen, (centre + first_moment / many) * scale, 0),
        "m2": (second_moment - first_moment**2 / many).clamp(min=0) * scale**2,
        "amax": torch.where(seen, torch.maximum(largest, -smallest), 0) * scale,
        "first": torch.where(sees_first, first, -torch.inf),
        "top_z": torch.stack([best, second], -1),
        "top_j": top_j.long().permute(1, 2, 3, 0).contiguous(),
    }  # fmt: skip
    lse = m + e1.log()
    mend(rows, query, key, scale, Band(low, high, stop))
    return lse, rows


@triton.jit
def _sweep(
    query, key, limits, best, centre, sums,
    batch, heads, each, queries, keys, width,
    qb, qh, qi, qd, kb, kh, kj, kd, unit,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Sums of ROWS query rows of one head. unit: what one of q·k is worth as a power of 2."""
    i0 = (tl.num_programs(0) - 1 - tl.program_id(0)) * ROWS  # the longest causal rows first
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    i, d = i0 + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    query += b.to(tl.int64) * qb + h.to(tl.int64) * qh
    key += b.to(tl.int64) * kb + (h // each).to(tl.int64) * kh
    rows, wide = i < queries, d < width
    q = tl.load(
        query + i[:, None].to(tl.int64) * qi + d[None, :] * qd, rows[:, None] & wide[None, :], 0.0
    )  # (ROWS, WIDTH)
    here = tl.program_id(1).to(tl.int64) * queries + i
    c = tl.load(centre + here, rows, 0.0)
    low, high = tl.load(limits + b), tl.load(limits + batch + b)
    stop = tl.load(limits + 2 * batch + b)

    # keys that some row sees, and among them the tiles that all rows see
    i1 = tl.minimum(i0 + ROWS, queries) - 1
    start = tl.maximum(i0 + low, 0) // TILE * TILE
    end = tl.minimum(stop, i1 + high + 1)
    full = tl.maximum(tl.cdiv(tl.maximum(i1 + low, 0), TILE) * TILE, start)
    full = tl.minimum(full, tl.maximum(tl.cdiv(end, TILE) * TILE, start))
    done = tl.maximum(tl.maximum(tl.minimum(stop, i0 + high + 1), 0) // TILE * TILE, full)

    zero = tl.zeros([ROWS], tl.float32)
    low_ = zero - float("inf")
    none = tl.zeros([ROWS], tl.int32) - 1
    state = (low_, zero, zero, zero, zero, zero, zero, low_, -low_, low_, low_, none, none)
    for j0 in range(start, full, TILE):
        state = _tile(
            state, q, key, c, i, j0, low, high, stop, keys, width, kj, kd, unit,
            True, TILE, WIDTH, GROUP,
        )  # fmt: skip
    for j0 in range(full, done, TILE):
        state = _tile(
            state, q, key, c, i, j0, low, high, stop, keys, width, kj, kd, unit,
            False, TILE, WIDTH, GROUP,
        )  # fmt: skip
    for j0 in range(done, end, TILE):
        state = _tile(
            state, q, key, c, i, j0, low, high, stop, keys, width, kj, kd, unit,
            True, TILE, WIDTH, GROUP,
        )  # fmt: skip
    m, e1, es, e2, e3, s1, s2, largest, smallest, _, _, one, two = state
    plane = tl.full([], 1, tl.int64) * batch * heads * queries  # a size of 1 is a constant here
    tl.store(sums + here, m, rows)
    tl.store(sums + plane + here, e1, rows)
    tl.store(sums + 2 * plane + here, es, rows)
    tl.store(sums + 3 * plane + here, e2, rows)
    tl.store(sums + 4 * plane + here, e3, rows)
    tl.store(sums + 5 * plane + here, s1, rows)
    tl.store(sums + 6 * plane + here, s2, rows)
    tl.store(sums + 7 * plane + here, largest, rows)
    tl.store(sums + 8 * plane + here, smallest, rows)
    tl.store(best + here, one, rows)
    tl.store(best + plane + here, two, rows)


@triton.jit
def _tile(
    state, q, key, c, i, j0, low, high, stop, keys, width, kj, kd, unit,
    MIXED: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Add keys j0:j0+TILE to the state of the rows."""
    m, e1, es, e2, e3, s1, s2, largest, smallest, z1, z2, g1, g2 = state
    ROWS: tl.constexpr = q.shape[0]
    COLUMNS: tl.constexpr = TILE // GROUP
    j, d = j0 + tl.arange(0, TILE), tl.arange(0, WIDTH)
    there = (d < width)[:, None] & (j < keys)[None, :]
    k = tl.load(key + d[:, None] * kd + j[None, :].to(tl.int64) * kj, there, 0.0)  # (WIDTH, TILE)
    s = tl.dot(q, k)  # (ROWS, TILE), float32
    away = s - c[:, None]
    if MIXED:
        distance = j[None, :] - i[:, None]
        keep = (distance >= low) & (distance <= high) & (j < stop)[None, :]
        away = tl.where(keep, away, 0.0)
        smallest = tl.minimum(smallest, tl.min(tl.where(keep, s, float("inf")), 1))
        s = tl.where(keep, s, float("-inf"))
    else:
        smallest = tl.minimum(smallest, tl.min(s, 1))
    s1 += tl.sum(away, 1)
    s2 += tl.sum(away * away, 1)

    # the two best groups, keys j0 + column + COLUMNS * (0 … 15)
    groups = tl.max(tl.reshape(s, [ROWS, GROUP, COLUMNS]), 1)  # (ROWS, COLUMNS)
    columns = tl.arange(0, COLUMNS)[None, :]
    top, at = tl.max(groups, 1, return_indices=True)
    groups = tl.where(columns == at[:, None], float("-inf"), groups)
    next_, at_next = tl.max(groups, 1, return_indices=True)
    name, name_next = j0 // GROUP + at, j0 // GROUP + at_next
    beats = top > z1
    follows = tl.where(beats, next_ > z1, top > z2)
    challenger = tl.where(beats, next_, top)
    z2 = tl.where(follows, challenger, tl.where(beats, z1, z2))
    g2 = tl.where(follows, tl.where(beats, name_next, name), tl.where(beats, g1, g2))
    z1, g1 = tl.where(beats, top, z1), tl.where(beats, name, g1)
    largest = tl.maximum(largest, top)

    new = largest * unit
    shift = tl.where(new == float("-inf"), 0.0, new)
    first = m == float("-inf")
    step = tl.where(first, 0.0, m - shift)
    factor = tl.where(first, 0.0, tl.exp2(step))
    t = s * unit - shift[:, None]
    if MIXED:
        t = tl.where(s == float("-inf"), -200.0, t)  # 2^-200 is 0 in float32
    p = tl.exp2(t)
    square = p * p
    es = factor * (es + step * e1) + tl.sum(p * t, 1)
    e1 = factor * e1 + tl.sum(p, 1)
    e2 = factor * factor * e2 + tl.sum(square, 1)
    e3 = factor * factor * factor * e3 + tl.sum(square * p, 1)
    return new, e1, es, e2, e3, s1, s2, largest, smallest, z1, z2, g1, g2


@triton.jit
def _pick(
    query, key, limits, best, top_z, top_j,
    batch, heads, each, queries, keys, width,
    qb, qh, qi, qd, kb, kh, kj, kd,
    ROWS: tl.constexpr, TILE: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Find the two largest q·k of each row among its two groups; of equals the first key."""
    i, d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    b, h = tl.program_id(1) // heads, tl.program_id(1) % heads
    query += b.to(tl.int64) * qb + h.to(tl.int64) * qh
    key += b.to(tl.int64) * kb + (h // each).to(tl.int64) * kh
    rows, wide = i < queries, d < width
    q = tl.load(
        query + i[:, None].to(tl.int64) * qi + d[None, :] * qd, rows[:, None] & wide[None, :], 0.0
    ).to(tl.float32)  # (ROWS, WIDTH)
    here = tl.program_id(1).to(tl.int64) * queries + i
    plane = tl.full([], 1, tl.int64) * batch * heads * queries  # a size of 1 is a constant here
    low, high = tl.load(limits + b), tl.load(limits + batch + b)
    stop = tl.load(limits + 2 * batch + b)
    z1 = tl.zeros([ROWS], tl.float32) - float("inf")
    z2 = z1
    j1 = tl.zeros([ROWS], tl.int32) - 1
    j2 = j1
    COLUMNS: tl.constexpr = TILE // GROUP
    for at in range(2 * GROUP):
        name = tl.load(best + (at // GROUP) * plane + here, rows, -1)
        # a group's name is its tile's first key / 16, plus its column
        j = name // COLUMNS * TILE + name % COLUMNS + at % GROUP * COLUMNS
        sees = (name >= 0) & (j - i >= low) & (j - i <= high) & (j < stop) & rows
        k = tl.load(
            key + j[:, None].to(tl.int64) * kj + d[None, :] * kd,
            sees[:, None] & wide[None, :], 0.0,
        ).to(tl.float32)  # fmt: skip
        s = tl.where(sees, tl.sum(q * k, 1), float("-inf"))
        over = sees & ((s > z1) | ((s == z1) & (j < j1)))
        under = sees & ((s > z2) | ((s == z2) & (j < j2)))
        z2, j2 = (
            tl.where(over, z1, tl.where(under, s, z2)),
            tl.where(over, j1, tl.where(under, j, j2)),
        )
        z1, j1 = tl.where(over, s, z1), tl.where(over, j, j1)
    tl.store(top_z + here, z1, rows)
    tl.store(top_z + plane + here, z2, rows)
    tl.store(top_j + here, j1, rows)
    tl.store(top_j + plane + here, j2, rows)
