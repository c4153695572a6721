"""Breaks what is whole: bytes, documents, words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

EDGES = [
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    -(2**63),
]
ODD: list[Any] = [
    None, True, False, "", "NaN", "Infinity", 0, -0.0, 1e308, -1e-308, float("nan"), float("inf"),
    2**70, 10**400, [], [[]],
    {}, [None], [[1, 2], [3]], "causal", "\x00", "é\u202e<script>", ["a", "b"],
    {"query": [[1]]}, [[1, "x"]], [[[[[1]]]]], "a" * 300, -1, 1.5, "file('x.npy')", "x::y", "-",
]  # fmt: skip


def spoilt(rng: np.random.Generator, data: bytes, others: list[bytes]) -> bytes:
    """Return bytes with a few of them flipped, cut, doubled, or taken from another file."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if not found:
            break
        at, way = int(rng.integers(len(found))), int(rng.integers(8))
        end = min(at + int(rng.integers(1, 17)), len(found))
        if way == 0:
            found[at] ^= 1 << int(rng.integers(8))
        elif way == 1:
            found[at] = int(rng.integers(256))
        elif way == 2:
            del found[at:]
        elif way == 3:
            del found[at:end]
        elif way == 4:
            found[at:at] = found[at:end]
        elif way == 5:
            size = int(rng.choice([1, 2, 4, 8]))
            edge = EDGES[int(rng.integers(len(EDGES)))] % (1 << 8 * size)
            found[at : at + size] = edge.to_bytes(size, "little")
        elif way == 6:
            found[at:end] = bytes(rng.integers(32, 127, end - at, dtype=np.uint8))
        else:
            other = others[int(rng.integers(len(others)))]
            start = int(rng.integers(len(other)))
            found[at:end] = other[start : start + int(rng.integers(1, 40))]
    return bytes(found)


def odd_document(rng: np.random.Generator, document: Any, names: list[str]) -> Any:
    """Return a JSON document with some values odd, members added, renamed or gone."""
    if rng.random() < 0.15 or not isinstance(document, dict | list):
        return ODD[int(rng.integers(len(ODD)))]
    if isinstance(document, list):
        if not document:
            return [ODD[int(rng.integers(len(ODD)))]]
        at = int(rng.integers(len(document)))
        way = rng.random()
        if way < 0.2:
            return document[:at] + document[at + 1 :]
        if way < 0.3:
            return [*document, document[at]]
        return [*document[:at], odd_document(rng, document[at], names), *document[at + 1 :]]
    found = dict(document)
    for _ in range(int(rng.integers(1, 4))):
        way = rng.random()
        name = names[int(rng.integers(len(names)))]
        own = [*found][int(rng.integers(len(found)))] if found else name
        if way < 0.4:
            found[name] = ODD[int(rng.integers(len(ODD)))]
        elif way < 0.6:
            found[own] = odd_document(rng, found.get(own), names)
        elif way < 0.75:
            found[name] = found.pop(own, None)
        elif way < 0.85:
            found.pop(own, None)
        else:
            found[name] = (rng.normal(size=tuple(rng.integers(0, 4, rng.integers(0, 4))))).tolist()
    return found


def text_of(document: Any) -> bytes:
    """Return a document as Python writes it, NaN and all."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
