"""Parts of a problem in files: made one by one, on machines that share a disk, and merged.

A file holds the fields of ``attention.shares.Partial`` as the tensors ``partial.output``,
``partial.m``, …, which queries are no padding as ``partial.real``, a sink as ``sink``, and in its
metadata, under ``partial`` as JSON, which keys it is of, the whole problem's facts and a checksum
of all this.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest
from types import UnionType
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
from attncli.errors import FileError, InputError, listed
from attncli.files.bundle import Bundle
from attncli.resources import Progress
from attncli.studies.attend import Ran, Result, check_memory
from attncli.studies.warned import of_mask, warnings

Array = np.ndarray[Any, np.dtype[Any]]

NAME, CHECKSUM = "partial", "checksum"
NAMES = ("output", *(field.name for field in fields(Rows)))
#: What its metadata says, and as what.
MEMBERS: Mapping[str, type | UnionType] = {
    "of": int, "keys": list, "problem": list, "shape": list, "scale": float | int,
    "scale_source": str, "softcap": float | int | None, "mask": str, "dtype": str,
    "result_dtype": str, "family": list, "past": int,
}  # fmt: skip
LOOKED = 16  # places along each dimension at which two tensors are told apart,
CELLS = 64  # and two masks,
SMALL = 1 << 20  # unless they have so few numbers that all are looked at


class Kept(NamedTuple):
    """What a file has of a problem: tensors by name, and what its metadata ``said``."""

    arrays: Mapping[str, Array]
    said: Mapping[str, Any]
    warnings: Sequence[str]

    @property
    def options(self) -> Mapping[str, str]:
        """What is no tensor as a file holds it: one text, in whatever format."""
        return {NAME: json.dumps(self.said, ensure_ascii=False)}


def facts(problem: Problem) -> list[str]:
    """Return a line for each thing in which two problems may differ; few numbers are read."""
    found = [f"{name} {shape}" for name, shape in problem.shapes.items()]
    for name in ("query", "key", "value"):
        array = getattr(problem, name)
        some = array
        if array.size > SMALL:
            some = array[tuple(slice(0, n, max(1, n // LOOKED)) for n in array.shape)]
        found.append(f"{name} {array.dtype}, checksum {zlib.crc32(some.tobytes()):08x}")
    mask = f"mask {problem.mask.words}, checksum {_checksum(problem.mask):08x}"
    found += [mask, f"scale {problem.scale}", f"softcap {problem.softcap}"]
    sink = problem.sink
    return [*found, f"sink {None if sink is None else sink.tolist()}"]


def _checksum(mask: Mask) -> int:
    """Return that of some cells of a mask: words name a file, not what it holds."""
    size, found = mask.extent, 0
    i, j = (np.arange(0, n, max(1, n // CELLS)) for n in (size.queries, size.keys))
    varies = mask.varies
    batch, heads = size.batch if varies.batch else 1, size.heads if varies.head else 1
    for b in range(0, batch, max(1, batch // LOOKED)):
        for h in range(0, heads, max(1, heads // LOOKED)):
            cells = b, h, i[:, None], j
            found = zlib.crc32(np.asarray(mask.predicate.allows(*cells), bool).tobytes(), found)
            for bias in mask.biases:
                found = zlib.crc32(np.asarray(bias.at(*cells), np.float32).tobytes(), found)
    return found


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
    said[CHECKSUM] = _summed(said, found, p.real_rows, p.sink)
    ran = Ran(name, done.device, p.dtype.name, done.threads, done.kernel, note)
    return Kept(arrays, said, [*p.warnings, *of_mask(p)]), ran


def _summed(said: Mapping[str, Any], part: Partial, real: Array, sink: Array | None) -> int:
    """Return the checksum of a part; its numbers count as ``_read`` has them, in any format."""
    plain = {name: value for name, value in said.items() if name != CHECKSUM}
    found = zlib.crc32(json.dumps(plain, sort_keys=True).encode())
    output, *sums = part.arrays
    arrays = [output.astype(np.dtype(said["dtype"])), *map(_wide, sums), real.astype(bool)]
    for array in [*arrays, *([] if sink is None else [_wide(sink)])]:
        if array.dtype.kind == "f":  # a NaN is a NaN, whatever its bits
            array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
        found = zlib.crc32(np.ascontiguousarray(array).data, found)
    return found


def _wide(array: Array) -> Array:
    return array.astype(np.int64 if array.dtype.kind in "iu" else np.float64)


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

    @property
    def altered(self) -> bool:
        """Whether it is not what was saved; False where it says no checksum."""
        made = _summed(self.said, self.partial, self.real, self.sink)
        return bool(self.said.get(CHECKSUM, made) != made)

    @property
    def facts(self) -> list[str]:
        """What all parts of a problem must have alike."""
        own = ("problem", "keys")
        others = [f"{name} {self.said[name]}" for name in MEMBERS if name not in own]
        sink = None if self.sink is None else self.sink.tolist()
        return [*self.said["problem"], *others, f"sink {sink}"]


def merge(bundles: Sequence[Bundle]) -> Result:
    """Return what all parts of a problem give together, in whatever order they come.

    Its problem has the sizes of the whole one, and no numbers. Raises InputError for parts of
    different problems, overlapping ones, and missing ones; FileError for altered ones.
    """
    parts = [_read(bundle) for bundle in bundles]
    for part in parts:
        if part.altered:
            raise FileError(
                f"{part.source} is not as it was saved: its checksum is another",
                "make it again with attncli compute … --part",
            )
    first = parts[0]
    for other in parts[1:]:
        differ = apart(first.facts, other.facts)
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
    without = [part.source for part in parts if CHECKSUM not in part.said]
    return _result(first, whole, _unchecked(without))


def _unchecked(without: Sequence[str]) -> list[str]:
    """Return a line on files that say no checksum, as those of older versions."""
    if not without:
        return []
    return [
        f"{listed(without, 3)}: no checksum (an older attncli wrote none): nothing would tell that "
        "numbers were changed"
    ]


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
    text = bundle.options.get(NAME)
    if not is_partial(bundle) or text is None:
        raise InputError(
            f"{bundle.source} is no part of a problem: it holds no '{NAME}.m'",
            "make parts with attncli compute … --part 1/2 -o part1.safetensors",
        )
    try:
        said = _said(json.loads(text) if isinstance(text, str) else text)
        b, h, _, lq, _, _, dv = said["shape"]
        dtype, _ = float_dtype(said["dtype"]), float_dtype(said["result_dtype"])
        shapes = {"output": (b, h, lq, dv), "top_z": (b, h, lq, 2), "top_j": (b, h, lq, 2)}
        arrays = [_of(bundle, f"{NAME}.{n}", shapes.get(n, (b, h, lq))) for n in NAMES]
        real = _of(bundle, f"{NAME}.real", (b, lq)).astype(bool)
        sink = _of(bundle, "sink", (h,)).astype(np.float64) if "sink" in bundle.tensors else None
    except (InputError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise FileError(
            f"{bundle.source} is no whole part of a problem: {str(error).splitlines()[0]}",
            "make it again with attncli compute … --part",
        ) from None
    output, *sums = arrays
    whole = [output.astype(dtype), *map(_wide, sums)]
    return _Read(bundle.source, said, Partial.of(whole), real, sink)


def _said(said: Any) -> Mapping[str, Any]:
    """Return what a file says, or raise ValueError where it cannot be meant."""
    if not isinstance(said, dict):
        raise ValueError(f"its metadata '{NAME}' is no object")
    lacking = [name for name in MEMBERS if name not in said]
    if lacking:
        raise ValueError(f"its metadata lacks {', '.join(lacking)}")
    shape, of, family = said["shape"], said["of"], said["family"]
    sound: dict[str, Callable[[], bool]] = {
        "shape": lambda: len(shape) == 7 and all(_counts(shape)) and shape[4] == of,
        "keys": lambda: all(
            len(one) == 2 and all(_counts(one)) and one[0] < one[1] <= of for one in said["keys"]
        ),
        "problem": lambda: all(isinstance(line, str) for line in said["problem"]),
        "family": lambda: len(family) == 3 and family[0] in (2, 3, 4),
        "past": lambda: 0 <= said["past"] <= of,
    }
    for name, kind in MEMBERS.items():
        if not (isinstance(said[name], kind) and sound.get(name, lambda: True)()):
            raise ValueError(f"'{name}' in its metadata is {str(said[name])[:40]}")
    return said


def _counts(numbers: Sequence[Any]) -> list[bool]:
    return [type(one) is int and one >= 0 for one in numbers]


def _of(bundle: Bundle, name: str, shape: tuple[int, ...]) -> Array:
    """Return a tensor of a file, or raise ValueError where it is none of this shape."""
    if name not in bundle.tensors:
        raise ValueError(f"it holds no {name}")
    array = np.asarray(bundle.tensors[name])
    if array.shape != shape or array.dtype.kind not in "fiub":
        raise ValueError(f"{name} is {array.dtype} {array.shape}, not {shape}")
    return array


def _result(first: _Read, whole: Partial, unchecked: Sequence[str]) -> Result:
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
    said_odd = [*unchecked, *warnings(problem, attended.lse, False), *_not_finite(attended)]
    return Result(
        problem=problem, engine=Ran("merged", "cpu", dtype.name, 1, "merged"), attended=attended,
        rows=seen.rows, warnings=tuple(said_odd),
    )  # fmt: skip


def _not_finite(attended: Attended) -> list[str]:
    """Return a line on rows that are not finite; which numbers are the cause no part says."""
    with np.errstate(invalid="ignore"):
        odd = ~np.isfinite(attended.output).all(-1) | np.isnan(attended.lse)
    if not odd.any():
        return []
    first = tuple(np.argwhere(odd)[0].tolist())
    return [
        f"{int(odd.sum())} of {odd.size} rows are NaN or infinite: numbers that they see are, or "
        f"they overflow. The first is (batch, head, query) {first}"
    ]
