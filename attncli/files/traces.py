"""Workloads of FlashInfer Trace: a line of a data set becomes a bundle under attncli's own names.

The schema is flashinfer-bench's (its docs/flashinfer-trace): a definition says which inputs there
are, a line of ``workloads/OP_TYPE/NAME.jsonl`` where each comes from. Data alone is read: the
``reference`` of a definition is code and never executed, nor are its ``constraints``. Each query
stands where its sequence ends, which is what ``causal`` means there; its ``lse`` is in base 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from attncli.errors import FileError, counted, listed, nearest
from attncli.files import dataset
from attncli.files.bundle import Bundle, Lazy, unknown_name
from attncli.files.formats.entry import (
    Array,
    Entry,
    Header,
    dtype_named,
    reading,
)


class Operation(NamedTuple):
    """The inputs of one ``op_type`` that are tensors; several of them lie side by side."""

    query: tuple[str, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    paged: bool = True

    @property
    def tensors(self) -> tuple[str, ...]:
        """The inputs, each once."""
        return tuple(dict.fromkeys((*self.query, *self.key, *self.value)))


#: What is computed, by ``op_type``: q (T, H, D), k and v (T, G, D), caches (pages, page, G, D); of
#: multi-head latent attention (pages, page, D), one head for all queries.
OPERATIONS: Mapping[str, Operation] = {
    "gqa_ragged": Operation(("q",), ("k",), ("v",), paged=False),
    "mla_ragged": Operation(("q",), ("k",), ("v",), paged=False),
    "gqa_paged": Operation(("q",), ("k_cache",), ("v_cache",)),
    "mla_paged": Operation(("q_nope", "q_pe"), ("ckv_cache", "kpe_cache"), ("ckv_cache",)),
}
QUERIES, KEYS, PAGES, LAST, SCALE = (
    "qo_indptr", "kv_indptr", "kv_indices", "kv_last_page_len", "sm_scale"
)  # fmt: skip
LSE_BASE = 2  # of the answers that a data set holds


def is_workload(options: Mapping[str, Any]) -> bool:
    """Whether the members of a JSON object are those of a workload, or of a trace of one."""
    return isinstance(options.get("definition"), str) and isinstance(options.get("workload"), dict)


def refuse_definition(options: Mapping[str, Any], source: str) -> None:
    """Raise FileError for a definition itself, which holds no data."""
    if isinstance(options.get("op_type"), str) and isinstance(options.get("axes"), dict):
        raise FileError(
            f"{source} is a definition of FlashInfer Trace: it says which inputs there are, "
            "and holds none",
            "name its workloads: ROOT/workloads/OP_TYPE/NAME.jsonl",
        )


def posed(trace: Bundle) -> Bundle:
    """The problem of one workload: packed query, key and value, scale, offsets, causal or not.

    Raises FileError for an operation that is not computed, a definition that is not there and
    whatever does not fit; tensors are made when they are asked for.
    """
    with reading(trace.source, "no workload as flashinfer-bench writes it"):
        work = _workload(trace)
    entries = {
        "query": work.entry(work.operation.query, lambda: work.beside(work.operation.query)),
        "key": work.entry(work.operation.key, lambda: work.keys(work.operation.key)),
        "value": work.entry(work.operation.value, lambda: work.keys(work.operation.value)),
    }
    entries |= {
        f"cu_seqlens_{side}": _ready(starts)
        for side, starts in (("q", work.query_starts), ("k", work.key_starts))
    }
    rest = {
        name: value
        for name, value in trace.options.items()
        if name not in ("definition", "workload") and value is not None
    }
    options = {
        "id": trace.options["workload"].get("uuid"), "scale": work.scale, "causal": work.causal,
        "layout": "blhd", "lse_base": LSE_BASE, **rest,
    }  # fmt: skip
    return Bundle(
        trace.source, trace.kind, Lazy(entries), MappingProxyType(options), notes=work.notes()
    )


@dataclass
class _Workload:
    """One line of a data set beside its definition."""

    source: str
    root: str
    name: str  # of the definition
    operation: Operation
    axes: Mapping[str, int]
    specs: Mapping[str, Mapping[str, Any]]  # of the inputs, by the definition
    given: Mapping[str, Mapping[str, Any]]  # where each comes from; the others are random
    seed: int
    query_starts: Array = field(init=False)
    key_starts: Array = field(init=False)
    slots: Array | None = field(init=False)  # which (page, place) holds each key, (keys, 2)

    def __post_init__(self) -> None:
        ends = self.offsets(KEYS)
        slots = None
        if self.operation.paged:
            ends, slots = self.pages(ends)
        rows = self.shape(self.operation.query[0])[0]
        decode = QUERIES not in self.specs  # one query for each sequence
        queries = np.arange(len(ends)) if decode else self.offsets(QUERIES)
        if len(queries) != len(ends):
            raise self.error(
                f"{QUERIES} is {counted(len(queries) - 1, 'sequence')}, {KEYS} {len(ends) - 1}"
            )
        keys = None if self.operation.paged else self.shape(self.operation.key[0])[0]
        for name, last, there in ((QUERIES, queries[-1], rows), (KEYS, ends[-1], keys)):
            if there is not None and last != there:
                what = f"{KEYS}, one query a sequence," if name not in self.specs else name
                raise self.error(f"{what} ends at {last}, but there are {there}")
        self.query_starts, self.key_starts, self.slots = queries, ends, slots

    def error(self, what: str, hint: str | None = None) -> FileError:
        return FileError(f"{self.source}: {what}", hint)

    # -- what the line and its definition say --

    @property
    def causal(self) -> bool:
        """Whether the name says so, as in gqa_ragged_prefill_causal_h32_kv8_d128."""
        return "causal" in self.name.split("_")

    @property
    def scale(self) -> float | int:
        """The factor of the scores."""
        said = self.given.get(SCALE, {})
        value = said.get("value")
        if said.get("type") != "scalar" or type(value) not in (int, float):
            raise self.error(
                f"'{SCALE}' is {said.get('type', 'random')}", "expected a scalar with its value"
            )
        assert isinstance(value, int | float)
        return value

    def notes(self) -> tuple[str, ...]:
        """What was assumed, for the report."""
        drawn = [name for name in self.operation.tensors if self.is_random(name)]
        said = [f"{self.name}: its reference code is not executed"]
        if drawn:
            few = ", the pages that are read alone" if self.operation.paged else ""
            said.append(f"random: {', '.join(drawn)} (normal, seed {self.seed}{few})")
        if QUERIES in self.specs and not self.causal:
            said.append("its name does not say causal: each query sees all keys of its sequence")
        return tuple(said)

    def is_random(self, name: str) -> bool:
        return bool(self.given.get(name, {}).get("type", "random") == "random")

    def shape(self, name: str) -> tuple[int | None, ...]:
        """The shape of an input; None for an axis that nothing gives a length."""
        axes = self.specs[name].get("shape")
        if not isinstance(axes, list):
            raise self.error(f"{self.name} says that '{name}' is no tensor")
        return tuple(self.axes.get(axis) if isinstance(axis, str) else None for axis in axes)

    # -- tensors --

    def tensor(self, name: str, part: Array | None = None) -> Array:
        """An input, or a ``part`` of its first dimension: nothing else of a random one is made."""
        shape = self.shape(name)
        if self.is_random(name):
            return self.drawn(name, shape if part is None else (len(part), *shape[1:]))
        array = self.stored(name)
        fits = array.ndim == len(shape) and all(
            want in (None, there) for want, there in zip(shape, array.shape, strict=True)
        )
        wanted = self.specs[name].get("dtype")
        if not fits or array.dtype.name != wanted:
            size = ", ".join("?" if n is None else str(n) for n in shape)
            raise self.error(
                f"'{name}' is {array.dtype.name} {array.shape}",
                f"{self.name} expects {wanted} ({size})",
            )
        return array if part is None else array[part]

    def stored(self, name: str) -> Array:
        """The tensor of a safetensors file of the data set."""
        said = self.given[name]
        path, key = said.get("path"), said.get("tensor_key")
        if said["type"] != "safetensors" or not isinstance(path, str) or not isinstance(key, str):
            raise self.error(
                f"'{name}' is {said['type']}",
                "expected random, or safetensors with a path and a tensor_key",
            )
        found = dataset.tensors(self.root, path, self.source)
        if key not in found.tensors:
            raise unknown_name(found, key)
        return found.tensors[key]

    def drawn(self, name: str, shape: tuple[int | None, ...]) -> Array:
        """Normal numbers: of one line and input the same, whenever they are drawn."""
        sizes = [n for n in shape if n is not None]
        dtype = self.specs[name].get("dtype")
        if len(sizes) < len(shape) or dtype not in ("float64", "float32", "float16", "bfloat16"):
            raise self.error(f"'{name}' is random, {dtype} of the axes {self.specs[name]['shape']}")
        draw = np.random.default_rng([self.seed, crc32(name.encode())])
        with reading(f"{self.source}: '{name}'", "not to be drawn"):
            return draw.standard_normal(sizes, np.float32).astype(dtype_named(dtype))

    def integers(self, name: str) -> Array:
        """An input of offsets or page numbers, ``(n,)``; random ones would mean nothing."""
        if name not in self.specs:
            raise self.error(f"{self.name} has no input '{name}'")
        if self.is_random(name):
            raise self.error(f"'{name}' is random", "expected a file: random offsets mean nothing")
        array = self.tensor(name)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise self.error(f"'{name}' is {array.dtype} {array.shape}", "expected integers (n,)")
        return array.astype(np.int64)

    def offsets(self, name: str) -> Array:
        """Where each sequence begins and the last one ends, ``(S + 1,)``."""
        array = self.integers(name)
        if len(array) < 2 or array[0] != 0 or (np.diff(array) < 0).any():
            shown = array.tolist() if array.size < 9 else array.shape
            raise self.error(f"'{name}' is {shown}", "expected offsets, as [0, 3, 5]")
        return array

    def pages(self, starts: Array) -> tuple[Array, Array]:
        """Offsets of keys for those of pages ``(S + 1,)``, and where each key lies ``(keys, 2)``.

        All pages of a sequence are full but its last.
        """
        table = self.integers(PAGES)
        count, page = self.shape(self.operation.key[0])[:2]
        if count is None or page is None:
            raise self.error(f"nothing says how many pages '{self.operation.key[0]}' has")
        if len(table) != starts[-1]:
            raise self.error(f"{KEYS} ends at {starts[-1]}, but {PAGES} has {len(table)}")
        if ((table < 0) | (table >= count)).any():
            wrong = table[(table < 0) | (table >= count)][0]
            raise self.error(f"{PAGES} names page {wrong}", f"there are pages 0 to {count - 1}")
        some = np.diff(starts) > 0
        room = np.full(len(table), page)
        if LAST in self.specs:
            last = self.integers(LAST)
            if len(last) == len(starts):  # so in some definitions, and never read
                last = last[:-1]
            if len(last) != len(some) or ((last < 0) | (last > page))[some].any():
                raise self.error(
                    f"{LAST} is not one of 0 to {page} for {counted(len(some), 'sequence')}"
                )
            room[starts[1:][some] - 1] = last[some]
        elif page != 1:
            raise self.error(f"pages of {page} without {LAST}: how full is the last of each?")
        places = np.arange(page) < room[:, None]  # (pages, page)
        at, place = np.nonzero(places)
        before = np.concatenate([[0], np.cumsum(room)])
        return before[starts], np.stack([table[at], place], axis=-1)

    def keys(self, names: tuple[str, ...]) -> Array:
        """Keys or values of all sequences end to end, ``(keys, G, D)``, out of their pages."""
        if self.slots is None:
            return self.beside(names)
        pages, at = np.unique(self.slots[:, 0], return_inverse=True)
        found = self.beside(names, pages)[at, self.slots[:, 1]]
        return found if found.ndim == 3 else found[:, None]  # of one head for all

    def beside(self, names: tuple[str, ...], part: Array | None = None) -> Array:
        """Some inputs side by side along their width."""
        parts = [self.tensor(name, part) for name in names]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def entry(self, names: tuple[str, ...], load: Callable[[], Array]) -> Entry:
        def checked() -> Array:
            with reading(f"{self.source}: {' and '.join(names)}", "not as its definition says"):
                return load()

        return Entry(checked)


def _ready(array: Array) -> Entry:
    return Entry(lambda: array, lambda: Header(array.shape, array.dtype.name, array.nbytes))


# -- from a line to its definition ----------------------------------------------------------------


def _workload(trace: Bundle) -> _Workload:
    """Read the definition of a line, and check that what matters is there and known."""
    source, name = trace.source, trace.options["definition"]
    root, path, found = dataset.definition(source, name)
    parts = {part: dataset.objects(found, part, path) for part in ("axes", "inputs")}
    work = trace.options["workload"]
    said = {part: dataset.objects(work, part, source) for part in ("axes", "inputs")}
    kind = found.get("op_type")
    operation = OPERATIONS.get(kind) if isinstance(kind, str) else None
    if operation is None:
        raise FileError(
            f"{source}: {name} is {kind}, which attncli does not compute",
            f"computed are {', '.join(OPERATIONS)}",
        )
    known = (*operation.tensors, QUERIES, KEYS, SCALE, *((PAGES, LAST) if operation.paged else ()))
    specs, given = parts["inputs"], said["inputs"]
    for input_name in specs:
        if input_name not in known:
            raise FileError(
                f"{path}: the input '{input_name}' changes the result, and is not read",
                f"read are {', '.join(known)}",
            )
    missing = [n for n in (*operation.tensors, KEYS, SCALE) if n not in specs]
    if missing:
        raise FileError(f"{path}: {kind} without the input {listed(missing)}")
    for input_name, one in given.items():
        if input_name not in specs:
            raise FileError(
                f"{source}: {name} has no input '{input_name}'", nearest(input_name, specs)
            )
        if not isinstance(one.get("type"), str):
            raise FileError(f"{source}: '{input_name}' has no type", "random, scalar, safetensors")
    lengths = {axis: one.get("value") for axis, one in parts["axes"].items()} | said["axes"]
    axes = {axis: n for axis, n in lengths.items() if type(n) is int and n >= 0}
    wrong = [axis for axis in said["axes"] if axis not in axes]
    if wrong:
        raise FileError(f"{source}: the axis '{wrong[0]}' is {said['axes'][wrong[0]]!r}")
    seed = crc32(str(work.get("uuid")).encode())
    return _Workload(source, root, name, operation, axes, specs, given, seed)
