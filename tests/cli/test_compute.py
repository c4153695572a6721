"""``attncli compute`` through its real door: streams, exit codes, files, and every bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import Ran, environment

Run = Callable[..., Ran]

FRUIT = {
    "query": [[1, 0]],
    "key": [[np.log(6), 0], [np.log(4), 0], [-30, 0]],
    "value": [[10], [5], [2]],
    "scale": 1,
    "query_tokens": ["fruit"],
    "key_tokens": ["apple", "banana", "chair"],
}
RNG = np.random.default_rng(7)
X = RNG.normal(size=(4, 3))


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    path = tmp_path / "fruit.json"
    path.write_text(json.dumps(FRUIT))
    return path


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@contextmanager
def running(cwd: Path, *arguments: object, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the program that does not outlive the test."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(
        [sys.executable, "-m", "attncli", *map(str, arguments)],
        cwd=cwd, env=environment(), **{**pipes, **streams},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                with suppress(BrokenPipeError):
                    stream.close()


# -- the table --------------------------------------------------------------------------------


def test_fruit(attncli: Run, fruit: Path) -> None:
    ran = attncli("compute", fruit)
    lines = ran.out.splitlines()
    assert ran.code == 0
    assert lines[0].startswith("1 query × 3 keys, width 2, values of width 1 · scale 1 (from file)")
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["Weights"] == ["apple", "banana", "chair"]
    assert [line.split()[1:] for line in lines if line.startswith("fruit")] == [
        ["0.600", "0.400", "0.000"],
        ["8.000"],
    ]
    assert "\x1b" not in ran.out


def test_everything_fits_80_columns(door: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.normal(size=(2, 12, 40, 16)))
    for options in ([], ["--heatmap"], ["--top", 3], ["--time"], ["--rows", "0:9"]):
        ran = door("compute", "x.npy", *options)
        assert (ran.code, ran.err) == (0, "")
        assert max(map(len, ran.out.splitlines())) <= 80, options
    ran = door("compute", "x.npy", "--steps", "--batch", 0, "--head", 0, "--rows", 0)
    assert ran.code == 0 or "steps" in ran.err


def test_color_only_when_asked(door: Run, fruit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" in door("compute", fruit, "--heatmap", "--color", "always").out
    for options in ([], ["--color", "auto"], ["--color", "always", "--no-color"]):
        assert "\x1b" not in door("compute", fruit, "--heatmap", *options).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in door("compute", fruit, "--heatmap").out


def test_ascii_only_terminal(attncli: Run, fruit: Path) -> None:
    ran = attncli("compute", fruit, PYTHONUTF8="0", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert ran.code == 0
    assert ran.out.startswith("1 query x 3 keys")
    ran = attncli("mask", "causal", "-l", 2, PYTHONUTF8="0", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert [line.split()[1:] for line in ran.out.splitlines()[-2:]] == [["#", "."], ["#", "#"]]


# -- options reach the mathematics ------------------------------------------------------------


def output(ran: Ran) -> Any:
    assert ran.code == 0, ran.err
    return np.array(ran.data["output"], float)


def test_the_options_change_the_result_as_they_say(door: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "mask.npy", np.tri(4, dtype=bool).T)
    scores = X @ X.T / np.sqrt(3)
    lower, upper = np.tri(4, dtype=bool), np.tri(4, dtype=bool).T

    def hidden(keep: Any) -> Any:
        return softmax(np.where(keep, scores, -np.inf)) @ X

    cases: list[tuple[list[object], Any]] = [
        ([], softmax(scores) @ X),
        (["--backend", "reference"], softmax(scores) @ X),
        (["--scale", "none"], softmax(X @ X.T) @ X),
        (["--scale", "-0.5"], softmax(-0.5 * X @ X.T) @ X),
        (["--softcap", "0.5"], softmax(0.5 * np.tanh(scores / 0.5)) @ X),
        (["--causal"], hidden(lower)),
        (["-m", "causal", "-m", "~prefix(1) | global_rows(1)"],
         hidden(lower & ((np.arange(4) >= 1) | (np.arange(4) < 1)[:, None]))),
        (["--attn-mask", "mask.npy"], hidden(upper)),
        (["--attn-mask", "mask.npy", "--mask-polarity", "ignore", "-m", "prefix(4)"],
         np.vstack([np.zeros(3), hidden(~upper | (np.arange(4) == 0)[:, None])[1:]])),
        (["--kv-lengths", "2"], hidden(np.arange(4) < 2)),
    ]  # fmt: skip
    for options, expected in cases:
        ran = door("compute", "x.npy", "--json", *options)
        np.testing.assert_allclose(output(ran), expected, rtol=0, atol=1e-12, err_msg=str(options))


def test_sink_dtype_and_heads(door: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    e = np.exp(X @ X.T / np.sqrt(3))
    weights = e / (e.sum(-1, keepdims=True) + 1)
    np.testing.assert_allclose(
        output(door("compute", "x.npy", "--json", "--sink", 0)), weights @ X, atol=1e-12
    )
    ran = door("compute", "x.npy", "--json", "--dtype", "float32")
    assert ran.data["engine"]["dtype"] == "float32"
    ran = door("compute", "x.npy", "--json", "--heads", 3)
    parts = [softmax(np.outer(c, c)) @ c for c in X.T]
    np.testing.assert_allclose(output(ran), np.stack(parts, -1), atol=1e-12)
    assert len(ran.data["heads"]) == 3


def test_past_makes_the_last_row_of_causal(door: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "step.npz", q=X[3:], k=X[3:], v=X[3:], past_key=X[:3], past_value=X[:3])
    np.save(tmp_path / "x.npy", X)
    whole = output(door("compute", "x.npy", "--causal", "--json"))
    step = output(door("compute", "step.npz", "--causal", "--json"))
    np.testing.assert_allclose(step[0], whole[3], atol=1e-12)


def test_json_has_the_skeleton_and_is_itself_a_bundle(
    door: Run, fruit: Path, tmp_path: Path
) -> None:
    ran = door("compute", fruit, "--json", "--include", "query,key,value,output")
    data = ran.data
    assert ran.err == ""
    assert data["schema"] == "attncli.compute/1"
    assert data["command"] == "compute"
    assert data["engine"]["backend"] == "numpy"
    assert data["scale"] == 1
    assert data["heads"][0]["statistics"]["max_weight"]["max"] == pytest.approx(0.6)
    (tmp_path / "again.json").write_text(ran.out)
    assert output(door("compute", "again.json", "--json")).item() == pytest.approx(8)


def test_csv_and_markdown(door: Run, fruit: Path) -> None:
    import csv

    table = list(csv.reader(door("compute", fruit, "--format", "csv").out.splitlines()))
    assert len({len(row) for row in table}) == 1
    assert len(table) > 1
    assert "| apple" in door("compute", fruit, "--format", "markdown").out


# -- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["json", "npy", "npz", "safetensors"])
def test_standard_input_by_content(attncli: Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in.{suffix}"
    writers: dict[str, Callable[[], Any]] = {
        "json": lambda: path.write_text(json.dumps({"x": X.tolist()})),
        "npy": lambda: np.save(path, X),
        "npz": lambda: np.savez(path, x=X),
        "safetensors": lambda: save_file({"x": X}, path),
    }
    writers[suffix]()
    ran = attncli("compute", "-", "--json", stdin=path.read_bytes())
    np.testing.assert_allclose(output(ran), softmax(X @ X.T / np.sqrt(3)) @ X, atol=1e-12)
    assert ran.err == ""


def test_tensors_of_standard_input_by_name(attncli: Run) -> None:
    text = json.dumps({"a": [[1.0]], "b": [[2.0]]})
    ran = attncli("compute", "-q", "-::a", "-v", "-::b", "--json", stdin=text)
    assert output(ran).tolist() == [[2.0]]


def test_ndjson_one_result_a_line_in_order(attncli: Run) -> None:
    lines = [json.dumps({"x": [[float(n)]]}) for n in range(5)]
    ran = attncli("compute", "-", stdin="\n".join(lines))
    assert ran.code == 0
    assert [line["output"] for line in ran.lines] == [[[float(n)]] for n in range(5)]
    assert [line["schema"] for line in ran.lines] == ["attncli.compute/1"] * 5


def test_a_bad_ndjson_line_is_answered_by_an_error(attncli: Run) -> None:
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


def test_ndjson_warnings_name_the_line(attncli: Run) -> None:
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_ctrl_c_ends_a_long_computation_and_leaves_the_old_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    (tmp_path / "out.npy").write_bytes(b"old")
    with running(tmp_path, "compute", "x.npy", "-o", "out.npy", "--dtype", "float64") as process:
        np.save(tmp_path / "big.npy", np.zeros((131072, 64), np.float32))
        (tmp_path / "x.npy").write_bytes((tmp_path / "big.npy").read_bytes())
        threading.Event().wait(1)  # the file is read; give the engine time to start
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr
        assert process.stderr.read() == b"interrupted\n"
    assert (tmp_path / "out.npy").read_bytes() == b"old"
    assert not list(tmp_path.glob(".attncli*"))


@pytest.mark.parametrize("options", [[], ["--json"], ["--format", "csv"], ["-o", "-"]])
def test_a_closed_pipe_ends_quietly(fruit: Path, options: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with running(fruit.parent, "compute", fruit, *options, stdout=writer) as process:
        os.close(writer)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")


def test_a_pipe_closed_after_one_line(attncli: Run, tmp_path: Path) -> None:
    lines = b'{"x": [[1, 2, 3]]}\n' * 300
    with running(tmp_path, "compute", "-") as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(lines)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())
        process.stdout.close()
        process.stdin.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


def test_a_closed_pipe_does_not_lose_the_file(fruit: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with running(fruit.parent, "compute", fruit, "-o", "out.npy", stdout=writer) as process:
        os.close(writer)
        process.communicate(timeout=60)
    assert np.load(fruit.parent / "out.npy").item() == pytest.approx(8)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("options", [[], ["--json"], ["--format", "csv"], ["-o", "-"]])
def test_a_full_disk(fruit: Path, options: list[str]) -> None:
    with (
        open("/dev/full", "wb") as full,
        running(fruit.parent, "compute", fruit, *options, stdout=full) as process,
    ):
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert err.startswith(b"error: no space left to write")
        assert b"Traceback" not in err


def test_standard_output_that_is_closed(fruit: Path) -> None:
    script = f"{sys.executable} -m attncli compute fruit.json >&-"
    done = subprocess.run(
        ["sh", "-c", script], cwd=fruit.parent, env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == b"error: standard output is closed\n"


def test_a_bug_is_called_a_bug(door: Run, fruit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attncli.studies import attend

    def broken(*arguments: Any, **more: Any) -> None:
        raise ZeroDivisionError("float division")

    monkeypatch.setattr(attend, "solve", broken)
    monkeypatch.setattr("attncli.cli._drop_stdout", lambda: None)
    ran = door("compute", fruit)
    assert ran.code == 70
    assert "ZeroDivisionError: float division" in ran.err
    assert "bug in attncli" in ran.err
    assert "Traceback" not in ran.err
    monkeypatch.setenv("ATTNCLI_TRACEBACK", "1")
    assert "Traceback" in door("compute", fruit).err


def test_out_of_memory_is_no_bug(door: Run, fruit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attncli.studies import attend

    def greedy(*arguments: Any, **more: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(attend, "solve", greedy)
    ran = door("compute", fruit, "--json")
    assert ran.code == 2
    assert ran.data["error"]["code"] == "too_large"


# -- saving -----------------------------------------------------------------------------------


def test_output_alone_unless_told(door: Run, fruit: Path, tmp_path: Path) -> None:
    ran = door("compute", fruit, "-o", "out.npz")
    assert (ran.code, ran.err) == (0, "wrote out.npz (output)\n")
    assert "Weights" in ran.out
    with np.load(tmp_path / "out.npz") as saved:
        assert list(saved) == ["output"]
        assert saved["output"].item() == pytest.approx(8)


def test_every_name_can_be_saved(door: Run, tmp_path: Path) -> None:
    from attncli.reports.words import INCLUDABLE

    np.save(tmp_path / "x.npy", X)
    every = ("--include", ",".join(INCLUDABLE), "--grad-output", "ones")
    assert door("compute", "x.npy", "-o", "all.safetensors", *every).code == 0
    saved = load_file(tmp_path / "all.safetensors")
    for name in INCLUDABLE:
        assert any(n == name or n.startswith(name + ".") for n in saved), name
    np.testing.assert_allclose(saved["scores"], X @ X.T / np.sqrt(3), atol=1e-12)
    np.testing.assert_allclose(saved["weights"].sum(-1), 1)
    np.testing.assert_allclose(saved["query"], X)


def test_standard_output_as_a_file(attncli: Run, fruit: Path, tmp_path: Path) -> None:
    import io

    ran = subprocess.run(
        [sys.executable, "-m", "attncli", "compute", str(fruit), "-o", "-.npy"],
        capture_output=True, env=environment(), check=True,
    )  # fmt: skip
    assert np.load(io.BytesIO(ran.stdout)).item() == pytest.approx(8)
    for options in (["-o", "-.json"], ["-o", "-", "--json"]):
        ran2 = attncli("compute", fruit, *options)
        assert ran2.data["output"] == [[pytest.approx(8)]]
        assert ran2.data["key_tokens"] == ["apple", "banana", "chair"]


def test_what_is_saved_can_be_read_again(door: Run, fruit: Path) -> None:
    door("compute", fruit, "-o", "again.json", "--include", "query,key,value")
    ran = door("compute", "again.json", "--scale", 1)
    assert "apple" in ran.out
    assert "8.000" in ran.out


@pytest.mark.parametrize("how", ["same", "link", "hard", "other spelling"])
def test_output_over_an_input(door: Run, fruit: Path, tmp_path: Path, how: str) -> None:
    target = tmp_path / "alias.json"
    if how == "link":
        target.symlink_to(fruit)
    elif how == "hard":
        target.hardlink_to(fruit)
    else:
        target = fruit if how == "same" else tmp_path / "." / "x" / ".." / "fruit.json"
        (tmp_path / "x").mkdir()
    before = fruit.read_bytes()
    ran = door("compute", fruit, "-o", target)
    assert ran.code == 2
    assert "would overwrite an input" in ran.err
    assert fruit.read_bytes() == before


def test_labels_and_flags_are_inputs_too(door: Run, fruit: Path, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('["a", "b", "c"]')
    np.save(tmp_path / "v.npy", np.ones((3, 1)))
    ran = door("compute", fruit, "--key-tokens", "@t.json", "-o", "t.json")
    assert "would overwrite an input" in ran.err
    ran = door("compute", fruit, "-v", "v.npy", "-o", "v.npy")
    assert "would overwrite an input" in ran.err


def test_a_bad_target_is_found_before_anything_is_read(door: Run) -> None:
    for target in ("nowhere/out.npz", "out.txt", "out", "."):
        ran = door("compute", "does-not-exist.npz", "-o", target)
        assert ran.code == 2
        assert "does-not-exist" not in ran.err, target


# -- bad input: exit 2, one clear message, as text and as JSON --------------------------------


def npy(array: Any) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    import io

    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


class Trap:
    """Unpickling it would leave a mark."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


HEADER = b'{"x":{"dtype":"F64","shape":[2,2],"data_offsets":[0,32]}}'
ONES = np.ones((2, 3))

BAD_FILES: dict[str, tuple[bytes | str, str]] = {
    "empty": (b"", "is empty"),
    "blank": (b" \n", "empty"),
    "unknown format": (b"hello world", "no known format"),
    "truncated npy": (npy(ONES)[:-8], "truncated"),
    "npy header only": (npy(ONES)[:40], "damaged"),
    "npy magic only": (b"\x93NUMPY", "damaged"),
    "truncated npz": (npz(x=ONES)[:-30], "damaged"),
    "safetensors header too long": (struct.pack("<Q", 9999) + HEADER, "truncated"),
    "safetensors data too short": (struct.pack("<Q", len(HEADER)) + HEADER + bytes(8), "truncated"),
    "safetensors data too long": (struct.pack("<Q", len(HEADER)) + HEADER + bytes(99), "99"),
    "object npy": (npy(np.array([Trap()], object)), "never loaded"),
    "pickle": (pickle.dumps([Trap()]), "never loaded"),
    "ragged": ('{"x": [[1, 2], [3]]}', "x[1] has 1 number but x[0] has 2"),
    "ragged depth": ('{"x": [[1, 2], 3]}', "x[1]"),
    "string inside": ('{"x": [[1, 2], [3, "four"]]}', "x[1][1]"),
    "null inside": ('{"x": [[1, null], [3, 4]]}', "x[0][1] is null"),
    "nested deep": ("[" * 100_000 + "]" * 100_000, "depth"),
    "broken JSON": ('{"x": [[1, 2]', "no valid JSON"),
    "number": ("3", "is JSON, but 3 (a number)"),
    "null": ("null", "is JSON, but null"),
    "string": ('"hi"', 'is JSON, but "hi" (a string)'),
    "no tensors": ('{"mask": "causal"}', "no tensors"),
    "0-d": (npy(np.float64(3)), "0 dimensions"),
    "1-d": (npy(np.ones(3)), "[[…]]"),
    "5-d": (npy(np.ones((1, 1, 1, 2, 3))), "5 dimensions"),
    "complex": (npy(np.ones((2, 3), complex)), "complex128"),
    "text": (npy(np.array([["a", "b"]])), "expected numbers"),
    "widths": (npz(q=ONES, k=np.ones((2, 4))), "key has width 4 but query has width 3"),
    "transposed key": (npz(q=np.ones((4, 3)), k=np.ones((3, 5))), "transpose it first"),
    "lengths": (npz(q=ONES, k=ONES, v=np.ones((5, 3))), "value has length 5"),
    "heads": (npz(q=np.ones((4, 2, 3)), k=np.ones((3, 2, 3))), "multiple of key/value heads"),
    "value heads": (npz(q=np.ones((4, 2, 3)), k=np.ones((2, 2, 3)), v=np.ones((4, 2, 3))), "heads"),
    "batch": (npz(q=np.ones((2, 1, 2, 3)), k=np.ones((3, 1, 2, 3))), "batch 3"),
    "ranks": (npz(q=ONES, k=np.ones((1, 2, 3))), "dimensions"),
    "two queries": (npz(q=ONES, Q=ONES), "'q' and 'Q'"),
    "no query": (npz(key=ONES, value=ONES), "no tensor named query"),
    "past without value": (npz(q=ONES, past_key=ONES), "past_value"),
    "mask too wide": (npz(q=ONES, mask=np.ones((2, 5), bool)), "does not broadcast"),
    "mask rank": (npz(q=ONES, mask=np.ones((1,) * 5, bool)), "5 dimensions"),
    "integer mask": (npz(q=ONES, mask=np.array([[0, 2], [1, 1]])), "must be 0 and 1"),
    "option type": ('{"x": [[1, 2]], "heads": "two"}', "'heads' is \"two\""),
    "mask in file": ('{"x": [[1, 2]], "mask": "causall"}', "did you mean 'causal'"),
}


def assert_bad(door: Run, *arguments: object, expected: str, code: str | None = None) -> None:
    """Exit 2 and the message: as ``error: …`` on stderr alone, and as JSON on stdout alone."""
    ran = door(*arguments)
    assert ran.code == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert expected in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) <= 4
    spoken = door(*arguments, "--json")
    assert (spoken.code, spoken.err) == (2, "")
    error = spoken.data["error"]
    assert set(error) == {"code", "message", "hint"}
    assert expected in error["message"] + "\n" + (error["hint"] or "")
    assert error["code"] == code or (code is None and error["code"] in CODES)


CODES = ("bad_file", "bad_input", "bad_mask", "too_large", "usage")


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(door: Run, tmp_path: Path, name: str) -> None:
    content, expected = BAD_FILES[name]
    (tmp_path / "bad").write_bytes(content.encode() if isinstance(content, str) else content)
    assert_bad(door, "compute", "bad", expected=expected)
    assert not (tmp_path / "unpickled").exists()


BAD_OPTIONS: list[tuple[list[object], str, str]] = [
    (["nope.json"], "no such file: nope.json", "bad_file"),
    (["x.jsn"], "did you mean x.json?", "bad_file"),
    (["nowhere/x.json"], "no such folder: nowhere", "bad_file"),
    (["."], "is a folder", "bad_file"),
    (["qkv.npz::weights"], "it holds", "bad_file"),
    (["qkv.npz", "-q", "qkv.npz::quer"], "did you mean", "bad_file"),
    ([], "no BUNDLE and no --query", "bad_input"),
    (["x.json", "y.json"], "unexpected", "usage"),
    (["x.json", "--cuasal"], "did you mean --causal?", "usage"),
    (["x.json", "--threads", "two"], "'--threads'", "usage"),
    (["x.json", "--threads", "0"], "at least 1", "bad_input"),
    (["x.json", "--top", "0"], "at least 1", "bad_input"),
    (["x.json", "--heads", "0"], "at least 1", "bad_input"),
    (["x.json", "--heads", "4"], "does not divide into 4 heads", "bad_input"),
    (["x.json", "--kv-heads", "1"], "--heads", "bad_input"),
    (["x.json", "--backend", "nunpy"], "did you mean 'numpy'?", "bad_input"),
    (["x.json", "--dtype", "float31"], "did you mean 'float32'?", "bad_input"),
    (["x.json", "--softmax-dtype", "int8"], "float64", "bad_input"),
    (["x.json", "--layout", "hbld"], "bhld, blhd", "bad_input"),
    (["x.json", "--format", "xml"], "table, json, csv, markdown", "bad_input"),
    (["x.json", "--color", "pink"], "auto, always, never", "bad_input"),
    (["x.json", "--mask-polarity", "keep"], "no mask tensor", "bad_input"),
    (["x.json", "--scale", "big"], "expected a number, auto or none", "bad_input"),
    (["x.json", "--scale", "inf"], "finite", "bad_input"),
    (["x.json", "--softcap", "0"], "positive", "bad_input"),
    (["x.json", "--softcap", "many"], "'--softcap'", "usage"),
    (["x.json", "--sink", "nan"], "not finite", "bad_input"),
    (["x.json", "--sink", "q3.npy"], "sink has shape", "bad_input"),
    (["x.json", "--kv-lengths", "9"], "there are 2 keys", "bad_input"),
    (["x.json", "--kv-lengths", "1,1"], "the batch has 1", "bad_input"),
    (["x.json", "-m", "causall"], "did you mean 'causal'?", "bad_mask"),
    (["x.json", "-m", "causal &"], "causal &", "bad_mask"),
    (["x.json", "-m", "__import__('os')"], "__import__", "bad_mask"),
    (["-q", "x.json", "-k", "q3.npy", "--causal"], "causal(bottom_right)", "bad_mask"),
    (["x.json", "--attn-mask", "q3.npy"], "does not broadcast", "bad_mask"),
    (["x.json", "--attn-mask", "qkv.npz"], "expected one tensor", "bad_file"),
    (["x.json", "--past-key", "x.json"], "without past_value", "bad_input"),
    (["x.json", "--past-key", "x.json", "--past-value", "q3.npy"], "in length", "bad_input"),
    (["x.json", "--tokens", "a b c"], "3 tokens", "bad_input"),
    (["x.json", "--tokens", "@nope"], "no such file", "bad_file"),
    (["x.json", "--rows", "2"], "out of range", "bad_input"),
    (["x.json", "--keys", "one"], "is no selection", "bad_input"),
    (["x.json", "--batch", "1"], "out of range", "bad_input"),
    (["x.json", "--head", "-2"], "out of range", "bad_input"),
    (["x.json", "--include", "wieghts"], "did you mean 'weights'?", "bad_input"),
    (["x.json", "--include", ","], "names nothing", "bad_input"),
    (["x.json", "-o", "out.txt"], ".npz, .safetensors, .json, .npy", "bad_file"),
    (["x.json", "-o", "out"], "no suffix", "bad_file"),
    (["x.json", "-o", "nowhere/out.npz"], "no such folder: nowhere", "bad_file"),
    (["x.json", "-o", "folder.npz"], "is a folder", "bad_file"),
    (["x.json", "-o", "x.json"], "would overwrite an input", "bad_file"),
    (["x.json", "-o", "o.npy", "--include", "output,lse"], "exactly one array", "bad_file"),
    (["lines.ndjson", "-o", "o.npz"], "NDJSON", "bad_input"),
    (["x.json", "-q", "lines.ndjson"], "one a line", "bad_file"),
    (["long.npy", "--include", "weights", "-o", "w.npy"], "--include", "too_large"),
    (["long.npy", "--backend", "reference"], "--backend numpy", "too_large"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected", "code"),
    BAD_OPTIONS,
    ids=[" ".join(map(str, o[0])) for o in BAD_OPTIONS],
)
def test_bad_options(
    door: Run, tmp_path: Path, arguments: list[object], expected: str, code: str
) -> None:
    (tmp_path / "x.json").write_text("[[1, 0, 2], [0, 1, 2]]")
    (tmp_path / "lines.ndjson").write_text("[[1]]\n[[2]]\n")
    (tmp_path / "folder.npz").mkdir()
    np.savez(tmp_path / "qkv.npz", query=ONES, key=ONES, value=ONES)
    np.save(tmp_path / "q3.npy", np.ones((3, 3)))
    if "long.npy" in arguments:
        np.save(tmp_path / "long.npy", np.zeros((3_000_000, 1), np.float16))
    assert_bad(door, "compute", *arguments, expected=expected, code=code)
    assert not (tmp_path / "o.npy").exists()


def test_contradicting_formats(door: Run, fruit: Path) -> None:
    ran = door("compute", fruit, "--json", "--format", "csv")
    assert ran.code == 2
    assert "contradict" in ran.data["error"]["message"]


def test_unknown_command(door: Run) -> None:
    ran = door("comptue")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean 'compute'?" in ran.err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_unwritable_output(door: Run, fruit: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert_bad(door, "compute", fruit, "-o", "locked/o.npz", expected="no permission to write")


# -- odd input that has an answer -------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(0, 3), (2, 0), (0, 0), (0, 2, 3), (2, 0, 3), (0, 1, 2, 3), (1, 0, 2, 3), (1, 1, 0, 0)],
)
def test_zero_length_dimensions(door: Run, tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", np.ones(shape))
    for options in ([], ["--causal"], ["--top", 2], ["--heatmap"], ["--format", "csv"]):
        ran = door("compute", "x.npy", *options)
        assert (ran.code, ran.err) == (0, ""), options
    ran = door("compute", "x.npy", "--json", "--include", "output")
    assert ran.code == 0
    assert np.array(ran.data["output"]).size == np.prod(shape)


def test_no_keys_at_all(door: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", q=np.ones((2, 3)), k=np.ones((0, 3)), v=np.ones((0, 4)))
    ran = door("compute", "x.npz", "--json")
    assert ran.code == 0
    assert ran.data["output"] == [[0.0] * 4] * 2
    assert len(ran.data["warnings"]) == 1


def test_non_finite_values_are_computed_counted_and_warned_about(
    attncli: Run, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text('{"x": [[1, NaN], [2, "Infinity"], [3, 4]]}')
    ran = attncli("compute", "x.json", "-m", "causal & ~prefix(2) | prefix(1) & global_rows(1)")
    assert ran.code == 0
    assert "warning: query has 2 values that are NaN or infinite" in ran.err
    ran = attncli("compute", "x.json", "--json")
    assert ran.data["output"][0] == ["NaN", "NaN"]
    assert any("NaN or infinite" in w for w in ran.data["warnings"])


def test_rows_that_see_nothing_are_warned_about_on_stderr_alone(door: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    ran = door("compute", "x.npy", "-m", "~prefix(4)")
    assert ran.code == 0
    assert ran.err.startswith("warning: 4 of 4 rows see no key")
    assert "warning" not in ran.out


def test_integers_are_announced(door: Run, tmp_path: Path) -> None:
    for dtype in (np.int32, np.uint8, bool):
        np.save(tmp_path / "x.npy", np.eye(2, dtype=dtype))
        ran = door("compute", "x.npy")
        assert ran.code == 0
        assert f"query converted from {np.dtype(dtype)}" in ran.out + ran.err


def test_time_says_what_ran(door: Run, fruit: Path) -> None:
    ran = door("compute", fruit, "--time", "--backend", "reference", "--threads", 1)
    assert ran.code == 0
    assert "GFLOP/s" in ran.out
    assert "reference" in ran.out


# -- pipes, streams, conflicts ----------------------------------------------------------------


def test_a_result_is_a_bundle_or_says_how_to_write_one(attncli: Run, fruit: Path) -> None:
    whole = attncli("compute", fruit, "--json", "--include", "query,key,value").out
    again = attncli("compute", "-", "--json", stdin=whole)
    assert (again.code, again.err) == (0, "")
    assert again.data["output"] == [[pytest.approx(8.0)]]
    again = attncli("compute", "-", stdin=attncli("compute", fruit, "--json").out)
    assert again.code == 2
    assert "it holds output, weights" in again.err
    assert "--include query,key,value" in again.err


def test_output_onto_a_file_that_a_mask_names(door: Run, tmp_path: Path) -> None:
    for name, array in (("x", X), ("lengths", np.array([4])), ("bias", np.zeros(7))):
        np.save(tmp_path / f"{name}.npy", array)
    before = (tmp_path / "lengths.npy").read_bytes()
    for expression, target in (
        ("padding('lengths.npy')", "lengths.npy"),
        ("causal & segments('bias.npy')", "./bias.npy"),
        ("file('bias.npy', '')", "bias.npy"),
    ):
        for command in (["compute", "x.npy", "-m"], ["mask", "-l", 7]):
            ran = door(*command, expression, "-o", target)
            assert ran.code == 2
    assert_bad(door, "compute", "x.npy", "-m", "padding('lengths.npy')", "-o", "lengths.npy",
               expected="would overwrite an input", code="bad_file")  # fmt: skip
    assert_bad(door, "mask", "padding('lengths.npy')", "-l", 4, "-o", "lengths.npy",
               expected="would overwrite an input", code="bad_file")  # fmt: skip
    assert (tmp_path / "lengths.npy").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="a shell's redirection")
def test_standard_error_may_be_closed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    for options, code in (("x.npy -m '~prefix(4)' -o o.npz", 0), ("nothing.npy", 2)):
        done = subprocess.run(
            ["sh", "-c", f"exec {sys.executable} -m attncli compute {options} 2>&-"],
            cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, check=False,
        )  # fmt: skip
        assert done.returncode == code
        assert b"wrote" not in done.stdout
        assert (b"Output" in done.stdout) == (code == 0)
    assert (tmp_path / "o.npz").exists()


INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = ["attncli", "compute", "x.json"]
from attncli.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "name", ["typer", "attncli.cli.compute", "numpy", "attncli.reports.compute"]
)
def test_an_interrupt_while_loading_shows_no_traceback(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.json").write_text("[[1, 0]]")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(name=name)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_the_handler_is_given_back() -> None:
    import attncli.cli  # noqa: F401

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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


def test_lines_are_counted_as_an_editor_does(attncli: Run) -> None:
    stdin = '\n{"query": [[1]]}\n\n{"query": [[1}\n3\n{"query": [[2]]}\n'
    ran = attncli("compute", "-", stdin=stdin)
    assert ran.code == 1
    assert [one["line"] for one in ran.lines] == [2, 4, 5, 6]
    assert ["error" in one for one in ran.lines] == [False, True, True, False]
    message = ran.lines[1]["error"]["message"]
    assert message.startswith("standard input, line 4 is no valid JSON: ")
    assert message.count("line") == 1
    assert "column 14" in message


def test_explicit_ndjson_takes_any_first_line_and_any_file(attncli: Run, tmp_path: Path) -> None:
    ran = attncli("compute", "-", "--format", "ndjson", stdin='garbage\n{"query": [[1]]}\n')
    assert ran.code == 1
    assert [one["line"] for one in ran.lines] == [1, 2]
    assert "no valid JSON" in ran.lines[0]["error"]["message"]
    np.save(tmp_path / "x.npy", X)
    (one,) = attncli("compute", "x.npy", "--format", "ndjson").lines
    assert one["schema"] == "attncli.compute/1"


@pytest.mark.parametrize("option", ["--format=table", "--format=csv", "--steps", "--heatmap"])
def test_what_cannot_show_ndjson_is_refused(attncli: Run, option: str) -> None:
    ran = attncli("compute", "-", option, stdin='{"query": [[1]]}\n{"query": [[2]]}\n')
    assert (ran.code, ran.out) == (2, "")
    assert f"error: {option.replace('=', ' ')} has no use in NDJSON" in ran.err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--heatmap", "--json"], "json has no place for it"),
        (["--steps", "--format", "json"], "json has no place for it"),
        (["--heatmap", "--format", "csv"], "csv has no place for it"),
        (["--steps", "--format", "ndjson"], "ndjson has no place for it"),
        (["--steps", "--heatmap"], "--steps and --heatmap are two ways"),
        (["--steps", "--top", 2], "--steps and --top are two ways"),
    ],
)
def test_ways_to_show_that_exclude_each_other(
    door: Run, fruit: Path, options: list[object], expected: str
) -> None:
    ran = door("compute", fruit, *options)
    assert ran.code == 2
    assert expected in ran.out + ran.err


def test_top_and_heatmap_are_both_shown(door: Run, fruit: Path) -> None:
    ran = door("compute", fruit, "--top", 2, "--heatmap")
    assert ran.code == 0
    assert "largest 0.600" in ran.out
    assert "Top 2 keys" in ran.out


def test_standard_output_as_json_takes_the_reports_place(door: Run, fruit: Path) -> None:
    for options in (["-o", "-", "--json"], ["-o", "-.json"]):
        ran = door("compute", fruit, *options)
        assert (ran.code, ran.err) == (0, "")
        assert {*ran.data} >= {"output", "query_tokens", "key_tokens"}
        assert "heads" not in ran.data


def test_a_selection_does_not_limit_what_is_saved(door: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    assert door("compute", "x.npy", "--rows", 0, "-o", "o.npy").code == 0
    assert np.load(tmp_path / "o.npy").shape == X.shape


@pytest.mark.skipif(os.name == "nt", reason="links and folders in use")
def test_where_output_cannot_go(attncli: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "dangling.npz").symlink_to(tmp_path / "nowhere" / "o.npz")
    for target, expected in (
        ("nodir/o.npz", "make it first: mkdir -p nodir"),
        ("dangling.npz", "dangling.npz is a link into a folder that is not there: "),
        ("/proc/o.npz", "/proc"),
    ):
        ran = attncli("compute", "x.npy", "-o", target)
        assert (ran.code, ran.out) == (2, "") or target.startswith("/proc")
        assert ran.code == 2
        assert expected in ran.err
        assert "no such file" not in ran.err
    done = subprocess.run(
        ["sh", "-c", f"mkdir gone && cd gone && rmdir ../gone && exec {sys.executable} -m attncli "
         f"compute {tmp_path}/x.npy -o o.npz"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "o.npz cannot be written: the current folder was deleted" in done.stderr


def test_csv_keeps_labels_as_they_are(door: Run, tmp_path: Path) -> None:
    tokens = ["a\nb", " c\t", "\x1b[1m"]
    x = np.eye(3).tolist()
    (tmp_path / "x.json").write_text(json.dumps({"query": x, "tokens": tokens}))
    ran = door("compute", "x.json", "--format", "csv", "--include", "output")
    rows = list(csv.DictReader(io.StringIO(ran.out, newline="")))
    assert [rows[n]["query_token"] for n in (0, 3, 6)] == ["a\nb", " c\t", "\\x1b[1m"]


def test_nothing_to_show(door: Run, tmp_path: Path) -> None:
    for shape in ((0, 2, 3), (0, 1, 2, 3)):
        np.save(tmp_path / "x.npy", np.ones(shape))
        for options in ([], ["--top", 2], ["--heatmap"]):
            assert "nothing to show" in door("compute", "x.npy", *options).out
    np.save(tmp_path / "x.npy", np.ones((0, 3)))
    stability = door("compute", "x.npy").out.splitlines()[-2].split()
    assert {*stability[2:]} == {"–"}
