"""Statistics of tensors against plain definitions: exact rationals, every dtype, any partition."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncli import files
from attncli.errors import FileError
from attncli.files.bundle import Lazy
from attncli.files.formats.entry import Entry
from attncli.measures import tensors
from attncli.measures.tensors import Moments, Statistics, header_facts, statistics_of

SMALL_FLOATS = [
    "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu",
]  # fmt: skip
DTYPES = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "float32", "float64", *SMALL_FLOATS,
]  # fmt: skip
BAND = Fraction(1, 2**46)  # 64 roundings of float64
LEAST = Fraction(1, 2**1074)  # float64's smallest number


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name) if name in SMALL_FLOATS else name)


def exact(array: np.ndarray) -> list[Any]:
    """The numbers as Python's own, which hold each of them exactly."""
    flat = array.reshape(-1)
    return [int(x) for x in flat] if flat.dtype.kind in "biu" else [float(x) for x in flat]


def check(found: Statistics, array: np.ndarray) -> None:
    """Compare with the definitions, written with exact rationals and the dtypes' own limits."""
    numbers = exact(array)
    finite = [x for x in numbers if math.isfinite(x)]
    assert found.size == len(numbers)
    assert found.nan == sum(x != x for x in numbers)
    assert found.inf == sum(x in (math.inf, -math.inf) for x in numbers)
    assert found.zeros == sum(x == 0 for x in numbers)
    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        limits = ml_dtypes.finfo(dtype)
        over, normal = float(limits.max), float(limits.smallest_normal)
        under = float(limits.smallest_subnormal)
        counts = [getattr(found, f"{name}_{what}") for what in ("overflow", "subnormal")]
        assert counts == [
            sum(abs(x) > over for x in finite), sum(0 < abs(x) < normal for x in finite)
        ], name  # fmt: skip
        assert getattr(found, f"{name}_underflow") == sum(0 < abs(x) < under for x in finite)
    if not finite:
        assert (found.min, found.max, found.mean, found.std) == (None,) * 4
        return
    assert (found.min, found.max) == (min(finite), max(finite))
    top = Fraction(max(map(abs, finite)))
    mean = sum(map(Fraction, finite)) / len(finite)
    variance = sum((Fraction(x) - mean) ** 2 for x in finite) / len(finite)
    assert found.mean is not None and found.std is not None
    assert abs(Fraction(found.mean) - mean) <= BAND * top + LEAST
    std = Fraction(found.std)
    # the condition of a variance that is merged from parts: |mean| / std (Chan et al. 1983)
    origin = numbers[0] if array.dtype.name in ("int64", "uint64") else 0
    room = BAND * (std + abs(mean - origin)) + LEAST
    assert max(std - room, Fraction(0)) ** 2 <= variance <= (std + room) ** 2


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Arrays of any dtype: any bits at all, or numbers near each other, with NaN, inf, zeros."""
    dtype = dtype_of(draw(st.sampled_from(DTYPES)))
    size = draw(st.integers(0, 40))
    if dtype.kind == "b":
        return np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)
    if draw(st.booleans()):
        data = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
        return np.frombuffer(data, dtype)
    near = draw(st.sampled_from([0, 1, 3000, 2**31 - 50, 2**53, 2**62, 2**63 + 2**40, 1e-200]))
    steps = draw(st.lists(st.integers(-3, 40), min_size=size, max_size=size))
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.array([min(max(int(near) + s, limits.min), limits.max) for s in steps], dtype)
    with np.errstate(all="ignore"):
        array = np.array([near + (near or 1) * s / 8 for s in steps]).astype(dtype)
    odd = draw(st.lists(st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf]), max_size=size))
    array[: len(odd)] = np.array(odd).astype(dtype)
    return array


@settings(max_examples=400, deadline=None)
@given(arrays(), st.integers(1, 9), st.integers(1, 30), st.integers(1, 3))
def test_any_array_in_any_pieces(array: np.ndarray, block: int, chunk: int, threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "BLOCK", block)
        check(statistics_of(array, threads=threads, chunk=chunk), array)


@settings(max_examples=100, deadline=None)
@given(arrays(), arrays(), arrays())
def test_merging_is_order_free(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    parts = [x for x in (a, b, c) if x.dtype.itemsize < 8 or x.dtype.kind == "f"]
    if len({x.dtype for x in parts}) > 1:
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            parts = [x.astype(np.float64) for x in parts]
    whole = np.concatenate(parts) if parts else np.empty(0)
    for order in (parts, parts[::-1]):
        total = Statistics()
        for part in order:
            total = total.merge(statistics_of(part))
        check(total, whole)


def test_merging_takes_any_bracket() -> None:
    numbers = np.random.default_rng(0).standard_normal(900) * 10.0 ** np.repeat([0, 160, -160], 300)
    a, b, c = (statistics_of(part) for part in numbers.reshape(3, 300))
    assert a.moments.unit != b.moments.unit != c.moments.unit
    check(a.merge(b).merge(c), numbers)
    check(c.merge(b.merge(a)), numbers)
    assert a.merge(Statistics()) == a == Statistics().merge(a)
    assert Moments().join(Moments()) == Moments()


@pytest.mark.parametrize("name", ["float16", *SMALL_FLOATS])
def test_every_bit_pattern_of_a_small_float(name: str) -> None:
    dtype = dtype_of(name)
    raw = np.uint16 if dtype.itemsize == 2 else np.uint8
    every = np.arange(256**dtype.itemsize).astype(raw).view(dtype)
    finite = every[np.isfinite(every.astype(np.float32))]
    check(statistics_of(finite), finite)  # the quick way: no NaN, no infinity
    check(statistics_of(every), every)


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "int64", "bool"])
def test_large_arrays(name: str) -> None:
    """Several chunks, several blocks a chunk, and a rest that fills neither."""
    numbers = np.random.default_rng(1).standard_normal(2_500_001) * 3 + 7
    array = (numbers > 7) if name == "bool" else numbers.astype(name)
    found = statistics_of(array)
    wide = array.astype(np.longdouble)
    assert (found.size, found.min, found.max) == (array.size, array.min(), array.max())
    assert found.zeros == np.count_nonzero(array == 0)
    assert found.mean == pytest.approx(float(wide.mean()), rel=1e-14)
    assert found.std == pytest.approx(float(wide.std()), rel=1e-13)
    assert found == statistics_of(array, threads=1)  # threads change nothing, not even rounding


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    drift = np.repeat([1e9, 1e9 + 1, -4e3], 200_000) + np.random.default_rng(2).random(600_000)
    near = 1e4 + np.random.default_rng(3).normal(size=400_000)
    for array in (
        drift, drift[:200_000], near, np.full(300_000, 0.1), np.r_[1e12, np.ones(200_000)]
    ):  # fmt: skip
        wide = array.astype(np.longdouble)
        condition = abs(float(wide.mean())) * 1e-15  # merging parts costs no more than this
        for found in (statistics_of(array, chunk=70_000), statistics_of(array, threads=1)):
            assert found.std == pytest.approx(float(wide.std()), rel=1e-13, abs=condition)


def test_sums_of_integers_do_not_overflow() -> None:
    for array in (
        np.full(1000, 2**63 - 1), np.full(1000, -(2**63)), np.full(1000, 2**64 - 1, np.uint64),
        np.array([2**62, 2**62 + 1] * 500), np.array([-(2**63), 2**63 - 1] * 500),
        np.array([0, 2**64 - 1, 2**63] * 300, np.uint64),
    ):  # fmt: skip
        check(statistics_of(array), array)
    assert statistics_of(np.array([2**62, 2**62 + 1])).std == 0.5


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x, lambda x: x.T, lambda x: x[::2, :, ::3], lambda x: x[:, ::-1],
        lambda x: x.transpose(1, 2, 0), lambda x: np.asfortranarray(x), lambda x: x[3, 2, 1],
        lambda x: np.broadcast_to(x[:1], x.shape), lambda x: x[:0], lambda x: x[..., None],
    ],
)  # fmt: skip
def test_memory_layouts(view: Any) -> None:
    array = view(np.random.default_rng(3).standard_normal((5, 6, 7)))
    for chunk in (1, 11, 1000):
        check(statistics_of(np.asarray(array), chunk=chunk), np.asarray(array))


@pytest.mark.slow
def test_the_file_stays_on_the_disk(tmp_path: Path) -> None:
    """A file of 1 GiB is looked at in far less memory than it has."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    path = tmp_path / "big.safetensors"
    count = 1 << 28
    header = b'{"x":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (count, 4 * count)
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + 4 * count)
    program = """
import sys
from attncli import files
from attncli.measures import tensors
def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
bundle = files.read(sys.argv[1])
head = tensors.header_facts(bundle, "x")
before = peak()
facts = tensors.tensor_facts(bundle, head)
print(facts.statistics.zeros, peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    zeros, grown = map(int, done.stdout.split())
    assert zeros == count
    assert grown < 100 * 1024, f"{grown} KiB more"


def test_a_tensor_that_cannot_be_read_says_why() -> None:
    def refuse() -> np.ndarray:
        raise FileError("x.npz::a is a damaged zip member: Bad CRC-32")

    entry = Entry(refuse, lambda: files.Header((2,), "float32", 8))
    bundle = files.Bundle("x.npz", "npz", Lazy({"a": entry}))
    facts = tensors.tensor_facts(bundle, header_facts(bundle, "a"))
    assert facts.reason == "a damaged zip member: Bad CRC-32"
    assert not facts.readable and facts.statistics is None
    assert facts.header == files.Header((2,), "float32", 8)


def test_an_archive_does_not_pile_up_in_memory(tmp_path: Path) -> None:
    path = str(tmp_path / "x.npz")
    np.savez(path, a=np.ones(3), b=np.ones(4))
    bundle = files.read(path)
    for name in bundle.tensors:
        tensors.tensor_facts(bundle, header_facts(bundle, name))
    assert isinstance(bundle.tensors, Lazy)
    assert not bundle.tensors._made
