"""Lines of NDJSON by kind: those that are alike, and those that only look so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.program import Door

RNG = np.random.default_rng(12)


def tensors(*shapes: tuple[int, ...], **said: Any) -> dict[str, Any]:
    """Return a line: query, key and value of these shapes (as many as there are), and options."""
    names = ("query", "key", "value")
    return {n: RNG.normal(size=s).tolist() for n, s in zip(names, shapes, strict=False)} | said


def answers(
    door: Door, command: str, lines: list[Any], *options: str
) -> tuple[int, list[Any], list[str]]:
    """Return exit code, answers and warnings of a command that reads these lines."""
    Path("lines.ndjson").write_text("\n".join(map(json.dumps, lines)))
    ran = door(command, "lines.ndjson", "--format", "ndjson", *options)
    return ran.code, ran.lines, ran.err.splitlines()


def nan(line: dict[str, Any]) -> dict[str, Any]:
    """Return the line with a NaN in its first query, as JSON says it."""
    row = line["query"][0]
    return {**line, "query": [["NaN", *row[1:]], *line["query"][1:]]}


Q, K, V = (5, 4), (7, 4), (7, 3)
KINDS: dict[str, list[dict[str, Any]]] = {
    "plain": [tensors(Q, K, V) for _ in range(5)],
    "heads": [tensors((2, 3, 4), (1, 6, 4), (1, 6, 4)) for _ in range(3)],
    "batches": [tensors((2, 2, 3, 4), (2, 2, 6, 4)) for _ in range(3)],
    "packed": [tensors((3, 8), (6, 4), (6, 4), heads=4, kv_heads=2) for _ in range(3)],
    "packed batches": [tensors((2, 3, 8), (2, 6, 8), num_heads=4) for _ in range(3)],
    "blhd": [tensors((3, 2, 4), (3, 2, 4), layout="blhd") for _ in range(3)],
    "blhd flat": [tensors((3, 4), (3, 4), layout="blhd") for _ in range(3)],
    "self": [tensors((4, 3)) for _ in range(3)],
    "square": [tensors((3, 3)) for _ in range(2)] + [{"query": np.eye(3).tolist()}],
    "causal": [tensors((4, 3), (4, 3), causal=True) for _ in range(3)],
    "masks": [tensors((4, 3), (4, 3), mask=m) for m in ("causal", "window(1)", "causal", "alibi")],
    "biases": [tensors((2, 4, 3), (2, 4, 3), mask="alibi & causal") for _ in range(3)],
    "random": [tensors((6, 3), (6, 3), mask="random(0.5, 3)") for _ in range(3)],
    "padding": [tensors((1, 1, 4, 3), (1, 1, 4, 3), mask="padding(3)") for _ in range(3)],
    "lengths": [tensors((4, 3), (4, 3), kv_lengths=n) for n in (3, 3, 2, 3)],
    "two lengths": [tensors((2, 1, 4, 3), (2, 1, 4, 3), mask="padding(3, 2)") for _ in range(3)],
    "dead rows": [tensors((4, 3), (4, 3), mask="~prefix(2) & causal") for _ in range(3)],
    "one key": [tensors((4, 3), (1, 3)) for _ in range(3)],
    "options": [tensors(Q, K, V, softcap=2, scale=s, sink=0.5) for s in (1, 1.0, "none", 1, 1.0)],
    "rope": [tensors((5, 4), (5, 4), rope="half") for _ in range(3)],
    "dtypes": [tensors(Q, K, V, dtype=d) for d in ("float32", "bfloat16", "float32", "bfloat16")],
    "whole numbers": [{"query": [[1, 0]], "key": [[n, 0], [0, 1]]} for n in range(3)],
    "mixed numbers": [{"query": [[1, 0]], "key": [[n, 0], [0, 1]]} for n in (1, 1.5, 2, 2.5)],
    "mask tensors": [tensors((3, 2), (3, 2), attn_mask=[[True] * 3] * 3) for _ in range(2)],
    "past": [tensors((2, 3), (2, 3), past_key=[[0, 1, 2]], past_value=[[0, 1, 2]])] * 2,
    "tokens": [tensors((2, 3), (2, 3), tokens=t) for t in ("a b", "a b", "c d")],
    "expected": [tensors((1, 2), (1, 2), expected=[[x, 0]]) for x in (0, 1)],
    "not finite": [tensors(Q, K, V), nan(tensors(Q, K, V)), tensors(Q, K, V)],
    "unknown": [tensors(Q, K, V, colour=n) for n in range(2)],
    "wrong": [tensors(Q, (7, 3), V) for _ in range(2)] + [tensors(Q, K, V, scale="big")] * 2,
    "ragged": [tensors(Q, K, V), {"query": [[1.5], [2, 3]]}, tensors(Q, K, V)],
    "a prefix": [{"layer": tensors(Q, K, V)} for _ in range(2)],
}  # fmt: skip
