"""NDJSON: a problem a line, an answer a line, as they come."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.support.program import Door, running

X = np.random.default_rng(7).normal(size=(4, 3))


def test_ndjson_one_result_a_line_in_order(attncli: Door) -> None:
    lines = [json.dumps({"x": [[float(n)]]}) for n in range(5)]
    ran = attncli("compute", "-", stdin="\n".join(lines))
    assert ran.code == 0
    assert [line["output"] for line in ran.lines] == [[[float(n)]] for n in range(5)]
    assert [line["schema"] for line in ran.lines] == ["attncli.compute/1"] * 5


def test_a_bad_ndjson_line_is_answered_by_an_error(attncli: Door) -> None:
    bad = ['{"x": [[1], [2, 3]]}', "{", '{"y": 3}', '{"q": [[1]], "k": [[1, 2]]}', "[]"]
    text = "\n".join(['{"x": [[1]]}', "", *bad, '{"x": [[2]]}', ""])
    ran = attncli("compute", "-", "--json", stdin=text)
    assert ran.code == 1
    first, *errors, last = ran.lines
    assert first["output"] == [[1.0]]
    assert last["output"] == [[2.0]]
    assert [e["line"] for e in errors] == [3, 4, 5, 6, 7]
    assert all(e["error"]["message"] and e["error"]["code"].startswith("bad_") for e in errors)
    assert "Traceback" not in ran.err


def test_ndjson_warnings_name_the_line(attncli: Door) -> None:
    text = '{"x": [[1]]}\n{"x": [[1]], "scale": 0}\n'
    ran = attncli("compute", "-", stdin=text)
    assert ran.code == 0
    assert ran.err.startswith("warning: line 2: the scale is 0")
    assert len(ran.err.splitlines()) == 1


def test_ndjson_answers_as_it_comes_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    with running(tmp_path, "compute", "-") as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(b'{"x": [[1]]}\n{"x": [[2]]}\n')
        process.stdin.flush()
        for expected in ([[1.0]], [[2.0]]):
            assert json.loads(process.stdout.readline())["output"] == expected
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b"interrupted\n"
        assert process.stdout.read() == b""


def test_explicit_ndjson_answers_the_first_line_at_once(tmp_path: Path) -> None:
    with running(tmp_path, "compute", "-", "--format", "ndjson") as process:
        assert process.stdin
        assert process.stdout
        for n in (1, 2):
            process.stdin.write(b'{"query": [[1, 0]]}\n')
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())  # and the pipe stays open
            assert (answer["line"], answer["output"]) == (n, [[1.0, 0.0]])
        process.stdin.close()
        assert process.wait() == 0


def test_lines_are_counted_as_an_editor_does(attncli: Door) -> None:
    stdin = '\n{"query": [[1]]}\n\n{"query": [[1}\n3\n{"query": [[2]]}\n'
    ran = attncli("compute", "-", stdin=stdin)
    assert ran.code == 1
    assert [one["line"] for one in ran.lines] == [2, 4, 5, 6]
    assert ["error" in one for one in ran.lines] == [False, True, True, False]
    message = ran.lines[1]["error"]["message"]
    assert message.startswith("standard input, line 4 is no valid JSON: ")
    assert message.count("line") == 1
    assert "column 14" in message


def test_explicit_ndjson_takes_any_first_line_and_any_file(attncli: Door, tmp_path: Path) -> None:
    ran = attncli("compute", "-", "--format", "ndjson", stdin='garbage\n{"query": [[1]]}\n')
    assert ran.code == 1
    assert [one["line"] for one in ran.lines] == [1, 2]
    assert "no valid JSON" in ran.lines[0]["error"]["message"]
    np.save(tmp_path / "x.npy", X)
    (one,) = attncli("compute", "x.npy", "--format", "ndjson").lines
    assert one["schema"] == "attncli.compute/1"


@pytest.mark.parametrize("option", ["--format=table", "--format=csv", "--steps", "--heatmap"])
def test_what_cannot_show_ndjson_is_refused(attncli: Door, option: str) -> None:
    ran = attncli("compute", "-", option, stdin='{"query": [[1]]}\n{"query": [[2]]}\n')
    assert (ran.code, ran.out) == (2, "")
    assert f"error: {option.replace('=', ' ')} has no use in NDJSON" in ran.err


def test_the_id_of_a_line_comes_back_with_its_answer(attncli: Door) -> None:
    ids = ["a", 2, None, {"run": 1}]
    lines = [json.dumps({"id": one, "q": [[1, 0]]}) for one in ids]
    lines.append('{"id": "bad", "q": [[1, 0]], "scale": "big"}')
    ran = attncli("compute", "-", stdin="\n".join(lines))
    assert [line["id"] for line in ran.lines] == [*ids, "bad"]
    assert ran.code == 1 and "error" in ran.lines[-1]
