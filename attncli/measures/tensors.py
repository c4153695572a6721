"""What the numbers of any tensor are like: range, moments, zeros, NaN, room in half precision.

One pass over pieces that fit a cache, in threads, and an exact merge: a tensor of any size takes a
few MiB. Pages of a memory-mapped file are given back as soon as they are read.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import numpy as np

from attncli.errors import AttnError, Unavailable
from attncli.files.bundle import Bundle
from attncli.files.formats.entry import Header
from attncli.resources import Job, Progress, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]
Number = int | float

CHUNK = 1 << 20  # numbers a job takes
BLOCK = 1 << 17  # numbers of it that stay in the cache; fewer cost threads their turns

FLOAT16_MAX = 65504.0
FLOAT16_NORMAL, FLOAT16_LEAST = 2.0**-14, 2.0**-24  # the smallest normal and subnormal numbers
BFLOAT16_MAX = (2 - 2.0**-7) * 2.0**127
BFLOAT16_NORMAL, BFLOAT16_LEAST = 2.0**-126, 2.0**-133

#: Small floats whose bits, moved to where float32 has its own, are the value / 2**bias: raw type,
#: places to move, bias, and from where on a value would be NaN or infinite. NumPy is 5× slower.
WIDENED: dict[str, tuple[Any, int, int, float]] = {
    "float16": (np.int16, 13, 112, 65536.0),
    "float8_e5m2": (np.int8, 21, 112, 65536.0),
    "float8_e4m3fn": (np.int8, 20, 120, 480.0),
}


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of x·unit; ``join`` those of disjoint parts.

    ``unit`` is a power of two that keeps the squares of huge and tiny float64 numbers in range.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    unit: float = 1.0

    def join(self, other: Moments) -> Moments:
        """Return the moments of both parts (Chan et al. 1983)."""
        if not self.count:
            return other
        if not other.count:
            return self
        count = self.count + other.count
        unit = min(self.unit, other.unit)
        ours, theirs = unit / self.unit, unit / other.unit
        share = other.count / count
        delta = other.mean * theirs - self.mean * ours
        m2 = self.m2 * ours * ours + other.m2 * theirs * theirs
        return Moments(
            count, self.mean * ours + delta * share, m2 + delta * delta * self.count * share, unit
        )


NOTHING = Moments()

COUNTS = (
    "size", "nan", "inf", "zeros",
    "float16_overflow", "float16_subnormal", "float16_underflow",
    "bfloat16_overflow", "bfloat16_subnormal", "bfloat16_underflow",
)  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """Statistics of a tensor or a part of it; ``merge`` joins those of disjoint parts.

    ``min``, ``max``, ``mean`` and ``std`` are of the finite numbers, None when there are none; std
    is the population's, as NumPy's. ``zeros`` counts 0 of both signs. For float16 and bfloat16,
    counts of finite numbers: ``overflow`` beyond the largest finite one (65504; 3.39e38),
    ``subnormal`` not 0 but below the smallest normal one (6.10e-5; 1.18e-38), where digits are
    lost, and of these ``underflow`` below the smallest of all (5.96e-8; 9.18e-41).
    ``moments`` are those of x − ``origin``.
    """

    size: int = 0
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    min: Number | None = None
    max: Number | None = None
    origin: int = 0
    moments: Moments = NOTHING
    float16_overflow: int = 0
    float16_subnormal: int = 0
    float16_underflow: int = 0
    bfloat16_overflow: int = 0
    bfloat16_subnormal: int = 0
    bfloat16_underflow: int = 0

    @property
    def mean(self) -> float | None:
        m = self.moments
        return self.origin + m.mean / m.unit if m.count else None

    @property
    def std(self) -> float | None:
        m = self.moments
        return math.sqrt(m.m2 / m.count) / m.unit if m.count else None

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both parts, which must share their origin."""
        low = [part.min for part in (self, other) if part.min is not None]
        high = [part.max for part in (self, other) if part.max is not None]
        return Statistics(
            **{name: getattr(self, name) + getattr(other, name) for name in COUNTS},
            min=min(low, default=None), max=max(high, default=None),
            origin=self.origin, moments=self.moments.join(other.moments),
        )  # fmt: skip


@dataclass(frozen=True)
class TensorFacts:
    """One tensor of a file. What could not be read is None, and ``reason`` says why.

    ``readable`` is False where the file is at fault, True also for what has no statistics (complex
    numbers). ``statistics`` are None as well when only headers were read.
    """

    source: str
    name: str
    header: Header | None
    statistics: Statistics | None = None
    reason: str | None = None
    readable: bool = True

    @property
    def size(self) -> int | None:
        return None if self.header is None else math.prod(self.header.shape)


def header_facts(bundle: Bundle, name: str) -> TensorFacts:
    """Return shape, dtype and bytes of one tensor; the data are not read (but JSON's)."""
    facts = TensorFacts(bundle.source, name, None)
    try:
        return replace(facts, header=bundle.header(name))
    except AttnError as error:
        return replace(facts, reason=_reason(error, bundle, name), readable=False)


def tensor_facts(
    bundle: Bundle,
    head: TensorFacts,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> TensorFacts:
    """Return what ``header_facts`` said with the statistics, which a ``reason`` there keeps away.

    Never raises for a bad tensor.
    """
    name = head.name
    if head.header is None:
        return head
    if head.reason:
        return head
    try:
        array = _load(bundle, name)
    except Unavailable as error:
        return replace(head, reason=f"{_reason(error, bundle, name)} ({error.hint})")
    except (AttnError, MemoryError) as error:
        return replace(head, reason=_reason(error, bundle, name), readable=False)
    if array.dtype.kind == "c":
        return replace(head, reason="complex numbers have no order: take real, imag or abs")
    return replace(head, statistics=statistics_of(array, threads=threads, progress=progress))


def _load(bundle: Bundle, name: str) -> Array:
    """The tensor, without making the bundle keep it: else a whole .npz would stay in memory."""
    entry = getattr(bundle.tensors, "entry", None)
    if entry is None or entry(name).header is None:  # JSON has it in memory anyway
        return bundle.tensors[name]
    array: Array = entry(name).load()
    return array


def _reason(error: BaseException, bundle: Bundle, name: str) -> str:
    text = error.message if isinstance(error, AttnError) else "does not fit into memory"
    return text.removeprefix(f"{bundle.source}::{name}").removeprefix(" is ").strip()


def statistics_of(
    array: Array,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    chunk: int = CHUNK,
) -> Statistics:
    """Return the statistics of a real, integer or bool array of any shape and memory layout.

    ``chunk`` numbers at a time are looked at by each of ``threads`` (default: all processors).
    """
    array = array.view(np.uint8) if array.dtype.kind == "b" else array
    origin = int(array.flat[0]) if _is_wide(array.dtype) and array.size else 0
    pages = _Pages(array)
    views = list(_pieces(array, chunk))
    found = [Statistics(origin=origin)] * len(views)

    def work(k: int) -> None:
        found[k] = _Chunk(views[k].ravel(), origin).statistics()
        pages.give_back(views[k])

    jobs: list[Job] = [partial(work, k) for k in range(len(views))]
    run_jobs(jobs, threads, False, progress)
    return reduce(Statistics.merge, found, Statistics(origin=origin))


def _is_wide(dtype: np.dtype[Any]) -> bool:
    """Integers that float64 may not hold: their moments are taken around the first of them."""
    return dtype.kind in "iu" and dtype.itemsize == 8


def _pieces(array: Array, size: int) -> Iterator[Array]:
    """Views of at most ``size`` numbers that together are the array, in memory order."""
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    array = array.transpose(order)
    if array.flags.c_contiguous:
        flat = array.reshape(-1)
        yield from (flat[start : start + size] for start in range(0, flat.size, size))
    elif array.size <= size:
        yield array
    else:
        axis = int(np.argmax(array.shape))
        for half in np.array_split(array, 2, axis):
            yield from _pieces(half, size)


class _Pages:
    """Gives pages of a file mapped read-only back to the system; does nothing for other memory."""

    def __init__(self, array: Array) -> None:
        base: Any = array
        while isinstance(base, np.ndarray | memoryview):
            base = base.base if isinstance(base, np.ndarray) else base.obj
        self._map: mmap.mmap | None = None
        if isinstance(base, mmap.mmap) and hasattr(base, "madvise") and not array.flags.writeable:
            self._map = base
            self._start = _address(np.frombuffer(base, np.uint8))

    def give_back(self, piece: Array) -> None:
        if self._map is None or not piece.flags.c_contiguous:
            return
        start = _address(piece) - self._start
        stop = start + piece.nbytes
        start -= start % mmap.PAGESIZE  # a neighbour that shares the page only reads it again
        self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


# -- one chunk --------------------------------------------------------------------------------


class _Chunk:
    """One contiguous piece ``(n,)``, looked at block by block: each is read from memory once."""

    def __init__(self, flat: Array, origin: int) -> None:
        size = min(BLOCK, flat.size)
        self._flat, self._origin = flat, origin
        self._wide = np.empty(size)
        self._narrow = np.empty(size, np.float32)
        self._flags = np.empty(size, bool)
        self._counts = dict.fromkeys(COUNTS, 0) | {"size": flat.size}
        self._low, self._high = math.inf, -math.inf
        self._moments = NOTHING

    def statistics(self) -> Statistics:
        examine = self._integers if self._flat.dtype.kind in "iu" else self._floats
        for start in range(0, self._flat.size, BLOCK):
            examine(self._flat[start : start + BLOCK])
        seen = self._moments.count
        return Statistics(
            **self._counts, min=self._low if seen else None, max=self._high if seen else None,
            origin=self._origin, moments=self._moments,
        )  # fmt: skip

    def _floats(self, block: Array) -> None:
        values, low, high = self._widened(block)
        if not (math.isfinite(low) and math.isfinite(high)):
            nan = int(np.count_nonzero(np.isnan(values)))
            values = values[np.isfinite(values)]
            self._counts["nan"] += nan
            self._counts["inf"] += len(block) - nan - len(values)
            if not len(values):
                return
            low, high = float(values.min()), float(values.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        top = max(-low, high)
        unit, wide = 1.0, self._wide[: len(values)]
        if values.dtype.itemsize < 8:
            np.copyto(wide, values)
        elif 1e-140 < top < 1e140:
            wide = values
        else:
            unit = 2.0**-600 if top > 1 else 2.0**600
            np.multiply(values, unit, out=wide)
        self._take(wide, unit)
        self._count_extremes(values, top)

    def _widened(self, block: Array) -> tuple[Array, float, float]:
        """The block as float32 or float64, its minimum and maximum (NaN if there is any)."""
        values = self._narrow[: len(block)]
        bits = WIDENED.get(block.dtype.name)
        if block.dtype.itemsize >= 4:
            values = block
        elif bits:
            raw, places, bias, limit = bits
            ints = values.view(np.int32)
            np.copyto(ints, block.view(raw))
            np.left_shift(ints, places, out=ints)
            below = 8 * block.dtype.itemsize - 1 + places  # the sign stays, its copies go
            np.bitwise_and(ints, -(2**31) + 2**below - 1, out=ints)
            np.multiply(values, np.float32(2.0**bias), out=values)
            low, high = float(values.min()), float(values.max())
            if max(-low, high) < limit:
                return values, low, high
            np.copyto(values, block, casting="unsafe")
        else:
            np.copyto(values, block, casting="unsafe")
        return values, float(values.min()), float(values.max())

    def _integers(self, block: Array) -> None:
        low, high = int(block.min()), int(block.max())
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._counts["zeros"] += len(block) - int(np.count_nonzero(block))
        if max(-low, high) > FLOAT16_MAX:
            limit = int(FLOAT16_MAX)
            self._counts["float16_overflow"] += int(np.count_nonzero(block > limit))
            if low < -limit:
                self._counts["float16_overflow"] += int(np.count_nonzero(block < -limit))
        wide = self._wide[: len(block)]
        origin = self._origin
        if not _is_wide(block.dtype):
            np.copyto(wide, block)
        elif low - origin >= -(2**63) and high - origin < 2**63:  # else the difference wraps
            start = np.int64(origin - 2**64 if origin >= 2**63 else origin)
            np.copyto(wide, block.view(np.int64) - start)
        else:
            np.subtract(block, float(origin), out=wide)
        self._take(wide, 1.0)

    def _take(self, wide: Array, unit: float) -> None:
        """Join the moments of float64 ``(n,)``, which may be overwritten if it is a buffer."""
        before, n = self._moments, len(wide)
        if before.count and before.unit == unit:
            # Near the mean so far nothing cancels that matters; 0 is near enough to a mean below
            # the standard deviation and costs nothing.
            center = before.mean
            if center * center * before.count <= before.m2:
                center = 0.0
        else:
            center = float(np.add.reduce(wide)) / n
        if center:
            wide = np.subtract(wide, center, out=self._wide[:n])
        shift = float(np.add.reduce(wide)) / n
        m2 = max(float(np.dot(wide, wide)) - n * shift * shift, 0.0)
        self._moments = before.join(Moments(n, center + shift, m2, unit))

    def _count_extremes(self, values: Array, top: float) -> None:
        """Count zeros and what float16 and bfloat16 cannot hold; overwrites the buffers."""
        n, counts = len(values), self._counts
        buffer = self._wide if values.dtype.itemsize == 8 else self._narrow
        sizes = np.abs(values, out=buffer[:n])
        if top > FLOAT16_MAX:
            counts["float16_overflow"] += int(np.count_nonzero(sizes > FLOAT16_MAX))
            counts["bfloat16_overflow"] += int(np.count_nonzero(sizes > BFLOAT16_MAX))
        flags = np.less(sizes, FLOAT16_NORMAL, out=self._flags[:n])
        small = int(np.count_nonzero(flags))
        if not small:
            return
        if 8 * small < n:  # usually few: what follows is about them alone
            sizes = sizes[flags]
        zeros = int(np.count_nonzero(sizes == 0))
        counts["zeros"] += zeros
        counts["float16_subnormal"] += small - zeros
        for name, limit in (
            ("float16_underflow", FLOAT16_LEAST),
            ("bfloat16_subnormal", BFLOAT16_NORMAL),
            ("bfloat16_underflow", BFLOAT16_LEAST),
        ):
            below = int(np.count_nonzero(sizes < limit)) - zeros
            if not below:
                break
            counts[name] += below
