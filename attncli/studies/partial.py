"""Parts of a problem in files: made one by one, on machines that share a disk, and merged.

A file holds the fields of ``attention.shares.Partial`` as the tensors ``partial.output``,
``partial.m``, …, which queries are no padding as ``partial.real``, a sink as ``sink``, and in its
metadata, under ``partial``, which keys it is of and the whole problem's facts.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from attncli import engines
from attncli.attention.masks import Extent, Mask
from attncli.attention.predicates import Everything
from attncli.attention.problem import Family, Problem, float_dtype
from attncli.attention.rows import Rows
from attncli.attention.shares import Partial, Share
from attncli.engines import DEFAULT, Attended, How
from attncli.engines.shared import part_of_keys
from attncli.errors import FileError, InputError
from attncli.files.bundle import Bundle
from attncli.resources import Progress
from attncli.studies.attend import Ran, Result, check_memory
from attncli.studies.warned import warnings

Array = np.ndarray[Any, np.dtype[Any]]

NAME = "partial"
NAMES = ("output", *(field.name for field in fields(Rows)))
#: What its metadata says.
MEMBERS = frozenset({
    "keys", "of", "problem", "shape", "scale", "scale_source", "softcap", "mask", "dtype",
    "result_dtype", "family", "past",
})  # fmt: skip
LOOKED = 16  # places along each dimension at which two tensors are told apart,
SMALL = 1 << 20  # unless they have so few numbers that all are looked at


class Kept(NamedTuple):
    """What a file has of a problem: tensors by name, and what is no tensor."""

    arrays: Mapping[str, Array]
    options: Mapping[str, Any]


def facts(problem: Problem) -> list[str]:
    """Return a line for each thing in which two problems may differ; few numbers are read."""
    found = [f"{name} {shape}" for name, shape in problem.shapes.items()]
    for name in ("query", "key", "value"):
        array = getattr(problem, name)
        some = array
        if array.size > SMALL:
            some = array[tuple(slice(0, n, max(1, n // LOOKED)) for n in array.shape)]
        found.append(f"{name} {array.dtype}, checksum {zlib.crc32(some.tobytes()):08x}")
    found += [f"mask {problem.mask.words}", f"scale {problem.scale}", f"softcap {problem.softcap}"]
    sink = problem.sink
    return [*found, f"sink {None if sink is None else sink.tolist()}"]


def apart(ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, str] | None:
    """Return the first facts in which two problems differ, or None."""
    pairs = zip_longest(ours, theirs, fillvalue="nothing")
    return next(((a, b) for a, b in pairs if a != b), None)


def compute(
    problem: Problem, part: int, parts: int, *, backend: str = DEFAULT, device: str = "auto",
    threads: int | None = None, progress: Progress | None = None,
) -> tuple[Kept, Ran]:  # fmt: skip
    """Return part number ``part``, from 1, of ``parts`` of a problem's keys.

    Raises InputError for more parts than keys.
    """
    p, share = problem, Share("keys", part - 1, parts)
    if parts > p.keys:
        raise InputError(
            f"--part {part}/{parts}: there are only {p.keys} keys",
            f"divide them into at most {p.keys}",
        )
    own = share.part(p)
    name, note = engines.choose(engines.there(backend, device), own, ("row_statistics",))
    check_memory(own, (), dense=engines.ENGINES[name].dense)
    found, done = part_of_keys(engines.load(name), p, share, How(threads, device, progress))
    piece = share.piece(p)
    said = {
        "keys": [[piece.first, piece.keys.stop]], "of": p.keys, "problem": facts(p),
        "shape": [p.batch, p.heads, p.kv_heads, p.queries, p.keys, p.width, p.value_width],
        "scale": p.scale, "scale_source": p.scale_source, "softcap": p.softcap,
        "mask": p.mask.text, "dtype": p.dtype.name, "result_dtype": p.result_dtype.name,
        "family": list(p.family), "past": p.past,
    }  # fmt: skip
    arrays = {f"{NAME}.{n}": a for n, a in zip(NAMES, found.arrays, strict=True)}
    arrays[f"{NAME}.real"] = p.real_rows
    if p.sink is not None:
        arrays["sink"] = p.sink
    ran = Ran(name, done.device, p.dtype.name, done.threads, done.kernel, note)
    return Kept(arrays, {NAME: said}), ran


def is_partial(bundle: Bundle) -> bool:
    """Whether a file holds a part of a problem."""
    return f"{NAME}.m" in bundle.tensors


class _Read(NamedTuple):
    """One file."""

    source: str
    said: Mapping[str, Any]
    partial: Partial
    real: Array
    sink: Array | None


def merge(bundles: Sequence[Bundle]) -> Result:
    """Return what all parts of a problem give together, in whatever order they come.

    Its problem has the sizes of the whole one, and no numbers. Raises InputError for parts of
    different problems, overlapping ones, and missing ones.
    """
    parts = [_read(bundle) for bundle in bundles]
    first = parts[0]
    for other in parts[1:]:
        differ = apart(first.said["problem"], other.said["problem"])
        if differ:
            raise InputError(
                f"{first.source} and {other.source} are parts of different problems: {differ[0]} "
                f"in one, {differ[1]} in the other",
                "merge the parts that were made of the same files, with the same options",
            )
    _demand_whole(parts)
    whole = parts[0].partial
    for part in parts[1:]:
        whole = whole.merge(part.partial)
    return _result(first, whole)


def _demand_whole(parts: Sequence[_Read]) -> None:
    """Raise InputError unless each key is in one part."""
    ranges = sorted(
        (start, stop, part.source) for part in parts for start, stop in part.said["keys"]
    )
    at, before = 0, ""
    for start, stop, source in [*ranges, (parts[0].said["of"], None, "")]:
        if start < at:
            raise InputError(
                f"{before} and {source} overlap: both hold keys from {start} on",
                "give each part once, and parts of one division",
            )
        if start > at:
            raise InputError(
                f"keys {at} to {start - 1} of {parts[0].said['of']} are in no part",
                "give the file of that part, too",
            )
        at, before = stop, source


def _read(bundle: Bundle) -> _Read:
    said = bundle.options.get(NAME)
    if isinstance(said, str):
        said = json.loads(said)
    if not is_partial(bundle) or not isinstance(said, dict):
        raise InputError(
            f"{bundle.source} is no part of a problem: it holds no '{NAME}.m'",
            "make parts with attncli compute … --part 1/2 -o part1.safetensors",
        )
    try:
        arrays = [np.asarray(bundle.tensors[f"{NAME}.{name}"]) for name in NAMES]
        real = np.asarray(bundle.tensors[f"{NAME}.real"]).astype(bool)
        b, h, _, lq, _, _, dv = said["shape"]
        shapes = {"output": (b, h, lq, dv), "top_z": (b, h, lq, 2), "top_j": (b, h, lq, 2)}
        for name, array in zip(NAMES, arrays, strict=True):
            if array.shape != shapes.get(name, (b, h, lq)):
                raise ValueError(f"{NAME}.{name} is {array.shape}")
        if not said.keys() >= MEMBERS:
            raise ValueError(f"its metadata lacks {', '.join(sorted(MEMBERS - said.keys()))}")
    except (KeyError, ValueError, TypeError) as error:
        raise FileError(
            f"{bundle.source} is no whole part of a problem: {error}",
            "make it again with attncli compute … --part",
        ) from None
    sink = bundle.tensors.get("sink")
    output, *sums = arrays
    whole = [a.astype(np.int64 if a.dtype.kind in "iu" else np.float64) for a in sums]
    partial = Partial.of([output.astype(float_dtype(said["dtype"])), *whole])
    return _Read(
        bundle.source, said, partial, real, None if sink is None else np.asarray(sink, np.float64)
    )


def _result(first: _Read, whole: Partial) -> Result:
    said = first.said
    b, h, g, lq, lk, d, dv = said["shape"]
    dtype, result = np.dtype(said["dtype"]), float_dtype(said["result_dtype"])

    def nothing(heads: int, length: int, width: int) -> Array:
        return np.broadcast_to(result.type(0), (b, heads, length, width))

    problem = Problem(
        query=nothing(h, lq, d), key=nothing(g, lk, d), value=nothing(g, lk, dv),
        mask=Mask(Extent(b, h, lq, lk), Everything(), text=said["mask"]),
        scale=said["scale"], scale_source=said["scale_source"], softcap=said["softcap"],
        sink=first.sink, dtype=dtype, result_dtype=result, softmax_dtype=None,
        family=Family(*said["family"]), past=said["past"], real=first.real,
    )  # fmt: skip
    seen = whole.with_sink(first.sink)
    with np.errstate(over="ignore"):
        output = seen.output.astype(result)
    attended = Attended(output, seen.rows.lse.astype(dtype), whole.rows, kernel="merged")
    return Result(
        problem=problem, engine=Ran("merged", "cpu", dtype.name, 1, "merged"), attended=attended,
        rows=seen.rows, warnings=tuple(warnings(problem, attended.lse, False)),
    )  # fmt: skip
