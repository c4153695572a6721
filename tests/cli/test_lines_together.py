"""Lines that one call of an engine answers together: each answer is what it is alone."""

from __future__ import annotations

import json
import os
import select
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.studies import together
from tests.support.program import Door, running

RNG = np.random.default_rng(12)


def tensors(*shapes: tuple[int, ...], **said: Any) -> dict[str, Any]:
    """Return a line: query, key and value of these shapes (as many as there are), and options."""
    names = ("query", "key", "value")
    return {n: RNG.normal(size=s).tolist() for n, s in zip(names, shapes, strict=False)} | said


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


def answers(door: Door, lines: list[Any], *options: str) -> tuple[int, list[Any], list[str]]:
    """Return exit code, answers and warnings."""
    Path("lines.ndjson").write_text("\n".join(map(json.dumps, lines)))
    ran = door("compute", "lines.ndjson", "--format", "ndjson", *options)
    return ran.code, ran.lines, ran.err.splitlines()


@pytest.mark.parametrize("kind", KINDS)
def test_each_answer_is_what_it_is_alone(
    door: Door, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lines = [{"id": n, **line} for n, line in enumerate(KINDS[kind])]
    found = answers(door, lines)
    assert [one["id"] for one in found[1]] == [*range(len(lines))]
    monkeypatch.setattr(together, "CELLS", 0)
    assert found == answers(door, lines)
    monkeypatch.setattr(together, "CELLS", 100)  # several calls
    assert found == answers(door, lines)


def test_kinds_may_be_mixed(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for kind in KINDS.values() for line in kind]
    RNG.shuffle(lines)
    code, found, warned = answers(door, lines, "--threads", "1")
    assert (code, [one["line"] for one in found]) == (1, [*range(1, len(lines) + 1)])
    monkeypatch.setattr(together, "CELLS", 0)
    assert (code, found, warned) == answers(door, lines, "--threads", "1")


@pytest.mark.parametrize(
    "options",
    [
        ("--include", "weights,lse,row_statistics"),
        ("--include", "query,key,value,output", "--causal"),
        ("--rows", "0:2", "--keys", "1"),
        ("--top", "2"),
        ("--grad-output", "ones"),
        ("--backend", "reference"),
        ("--sink", "1", "--kv-lengths", "3"),
        ("--head", "7"),
    ],
)
def test_options_of_all_lines(
    door: Door, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    lines = [tensors((4, 3), (4, 3), (4, 3)) for _ in range(3)]
    found = answers(door, lines, *options)
    monkeypatch.setattr(together, "CELLS", 0)
    assert found == answers(door, lines, *options)


def test_what_is_alike_is_answered_by_one_call(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = together.run

    def counted(whole: Any, **how: Any) -> Any:
        sizes.append(whole.batch)
        return run(whole, **how)

    monkeypatch.setattr(together, "run", counted)
    code, *_ = answers(door, [*KINDS["plain"], *KINDS["causal"], *KINDS["plain"]])
    assert (code, sizes) == (0, [10, 3])


def test_an_answer_comes_as_soon_as_its_line(tmp_path: Path) -> None:
    line = json.dumps(tensors(Q, K, V)).encode() + b"\n"
    with running(tmp_path, "compute", "-", "--format", "ndjson") as process:
        assert process.stdin and process.stdout

        def ask(text: bytes) -> None:
            assert process.stdin
            process.stdin.write(text)
            process.stdin.flush()

        def numbers(count: int) -> list[int]:
            assert process.stdout
            return [json.loads(process.stdout.readline())["line"] for _ in range(count)]

        ask(line)
        assert numbers(1) == [1]
        start = time.perf_counter()
        ask(line)
        assert numbers(1) == [2]
        assert time.perf_counter() - start < 1
        ask(line + line[:10])  # the beginning of a line keeps no answer back
        assert numbers(1) == [3]
        ask(b"")
        assert not select.select([process.stdout], [], [], 0.2)[0]
        ask(line[10:] + b"\n\n" + line * 3)
        assert numbers(4) == [4, 7, 8, 9]
        process.stdin.close()
        assert process.wait(30) == 0


def test_a_named_pipe_is_answered_as_it_comes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    line = json.dumps(tensors(Q, K, V)).encode() + b"\n"
    with running(tmp_path, "compute", "pipe", "--format", "ndjson") as process:
        with open(tmp_path / "pipe", "wb", buffering=0) as pipe:
            assert process.stdout
            for number in (1, 2):
                pipe.write(line)
                assert json.loads(process.stdout.readline())["line"] == number
        assert process.wait(30) == 0
