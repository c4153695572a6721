"""Lines that one call of an engine answers together: each answer is what it is alone."""

from __future__ import annotations

import json
import os
import select
import time
from pathlib import Path
from typing import Any

import pytest

from attncli.studies import together
from tests.support.alike import KINDS, RNG, K, Q, V, answers, tensors
from tests.support.program import Door, running

COMMANDS = pytest.mark.parametrize("command", ["compute", "inspect"])


@COMMANDS
@pytest.mark.parametrize("kind", KINDS)
def test_each_answer_is_what_it_is_alone(
    door: Door, monkeypatch: pytest.MonkeyPatch, kind: str, command: str
) -> None:
    lines = [{"id": n, **line} for n, line in enumerate(KINDS[kind])]
    found = answers(door, command, lines)
    assert [one["id"] for one in found[1]] == [*range(len(lines))]
    monkeypatch.setattr(together, "CELLS", 0)
    assert found == answers(door, command, lines)
    monkeypatch.setattr(together, "CELLS", 100)  # several calls
    assert found == answers(door, command, lines)


@COMMANDS
def test_kinds_may_be_mixed(door: Door, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    lines = [line for kind in KINDS.values() for line in kind]
    RNG.shuffle(lines)
    code, found, warned = answers(door, command, lines, "--threads", "1")
    assert (code, [one["line"] for one in found]) == (1, [*range(1, len(lines) + 1)])
    monkeypatch.setattr(together, "CELLS", 0)
    assert (code, found, warned) == answers(door, command, lines, "--threads", "1")


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
    found = answers(door, "compute", lines, *options)
    monkeypatch.setattr(together, "CELLS", 0)
    assert found == answers(door, "compute", lines, *options)


def test_what_is_alike_is_answered_by_one_call(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = together.run

    def counted(whole: Any, **how: Any) -> Any:
        sizes.append(whole.batch)
        return run(whole, **how)

    monkeypatch.setattr(together, "run", counted)
    code, *_ = answers(door, "compute", [*KINDS["plain"], *KINDS["causal"], *KINDS["plain"]])
    assert (code, sizes) == (0, [10, 3])


@COMMANDS
def test_an_answer_comes_as_soon_as_its_line(tmp_path: Path, command: str) -> None:
    line = json.dumps(tensors(Q, K, V)).encode() + b"\n"
    with running(tmp_path, command, "-", "--format", "ndjson") as process:
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
