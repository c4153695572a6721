"""``compute FILE.jsonl -- COMMAND``: problems for a program, its answers judged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from textwrap import dedent
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import pytest

from attncli.errors import Misuse
from attncli.studies.attend import posed
from attncli.studies.cases.commands import Command, members
from attncli.studies.cases.writing import write
from tests.support.program import ROOT, Door, Ran, running

RNG = np.random.default_rng(4)
X = RNG.normal(size=(1, 2, 5, 4))

KERNEL = """
    import io, sys
    import numpy as np
    p = np.load(io.BytesIO(sys.stdin.buffer.read()))
    q, k, v = (p[n].astype(float) for n in ("query", "key", "value"))
    s = p["scale"] * q @ k.swapaxes(-1, -2) + (p["dense_mask"] if "dense_mask" in p else 0)
    e = np.exp(s - s.max(-1, keepdims=True))
    o = e @ v / e.sum(-1, keepdims=True)
"""


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    lines = [
        {"id": "a", "query": X.tolist(), "dtype": "float32"},
        {"id": "b", "query": X.tolist(), "dtype": "float32", "mask": "causal", "scale": 1.5},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def answering(door: Door, folder: Path, program: str, *options: object) -> Ran:
    """Judge a small program that may call what KERNEL says."""
    (folder / "kernel.py").write_text(dedent(program))
    return door("compute", "t.jsonl", *options, "--", sys.executable, "kernel.py")


@pytest.mark.parametrize(
    "end",
    ["np.save(sys.stdout.buffer, o.astype('f4'))",
     "np.savez(sys.stdout.buffer, output=o.astype('f4'))",
     "np.savez(sys.stdout.buffer, o.astype('f4'))",
     "np.savez(sys.stdout.buffer, out=o.astype('f4'), "
     "softmax_lse=(np.log(e.sum(-1)) + s.max(-1)).astype('f4'))"],
)  # fmt: skip
def test_a_command_that_is_right(door: Door, problems: Path, end: str) -> None:
    ran = answering(door, problems, f"{KERNEL}    {end}\n", "--json")
    assert (ran.code, ran.err) == (0, ""), ran.out
    *lines, last = ran.lines
    assert [x["id"] for x in lines] == ["a", "b"]
    assert last["summary"]["passed"] == 2
    assert all(("lse" in x["expect"]) == ("lse" in end) for x in lines)


def test_the_sample_passes(door: Door, tmp_path: Path) -> None:
    lines = Path(write(str(tmp_path / "k.jsonl")).lines).read_text().splitlines()[7::30]
    (tmp_path / "k.jsonl").write_text("\n".join(lines))
    ran = door("compute", "k.jsonl", "--", sys.executable, ROOT / "samples/kernels/tiled.py")
    assert ran.code == 0, ran.out
    assert f"{len(lines)} passed" in ran.out


def test_a_command_that_forgets_the_mask_is_told_so(door: Door, problems: Path) -> None:
    program = KERNEL.replace('(p["dense_mask"] if "dense_mask" in p else 0)', "0")
    ran = answering(door, problems, f"{program}    np.save(sys.stdout.buffer, o)\n")
    assert ran.code == 1
    assert "2 cases · 1 passed · 1 failed" in ran.out
    assert "b (line 2): " in ran.out and "--mask none" in ran.out


@pytest.mark.parametrize(
    ("program", "expected"),
    [("pass", "it wrote nothing on standard output"),
     ("print('hello')", "in no known format: it begins with b'hello"),
     ("print('1.5, 2.5')", "it wrote CSV; expected .npy or .npz"),
     ("print('[[1, 2]]')", "it wrote JSON; expected .npy or .npz"),
     ("import sys; sys.stdout.buffer.write(b'PK' + bytes(range(256)))", "in no known format"),
     ("import sys; sys.stdout.buffer.write(b'PK\\3\\4' + bytes(99))", "damaged zip"),
     ("import sys; sys.stdout.buffer.write(b'\\x93NUMPY' + bytes(99))", "its output"),
     ("import sys; sys.exit(3)", "it ended with exit code 3"),
     ("import os; os.kill(os.getpid(), 11)", "it died of SIGSEGV"),
     ("import os; os.abort()", "it died of SIGABRT"),
     ("raise ValueError('no such head')", "it ended with exit code 1"),
     ("import sys\nwhile True: sys.stdout.buffer.write(bytes(1 << 20))", "it wrote more than"),
     ("import numpy, sys; numpy.save(sys.stdout.buffer, numpy.zeros(3))", "(3,)"),
     ("import numpy, sys; numpy.savez(sys.stdout.buffer, a=[1.0], b=[2.0])", "expected the output"),
     ("import numpy, sys; numpy.save(sys.stdout.buffer, numpy.array([{}]))", "pickled")],
)  # fmt: skip
def test_whatever_goes_wrong_fails_the_case(
    door: Door, problems: Path, program: str, expected: str
) -> None:
    ran = answering(door, problems, program, "--json")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    *lines, last = ran.lines
    assert last["summary"]["failed"] == 2
    for line in lines:
        assert expected in line["error"]["message"], line


def test_what_it_says_on_standard_error_is_shown_when_it_fails(door: Door, problems: Path) -> None:
    program = "import sys\nfor n in range(99): print('line', n, file=sys.stderr)\nsys.exit(1)"
    (first, *_) = answering(door, problems, program, "--json").lines
    assert first["error"]["hint"] == "\n".join(f"line {n}" for n in range(94, 99))
    assert "it ended with exit code 1: line 98" in answering(door, problems, program).out


def members_of(group: int) -> list[str]:
    """The processes of a group that run; what is dead may wait to be noticed by its parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, own = path.read_text().rpartition(")")[2].split()[:3]
            found += [path.parent.name] if own == str(group) and state not in "ZX" else []
    return found


def is_gone(group: int) -> bool:
    """Whether all processes of a group end: one that was killed takes a moment to die."""
    end = time.monotonic() + 60
    while members_of(group) and time.monotonic() < end:
        time.sleep(0.01)
    return not members_of(group)


class Noted(subprocess.Popen[bytes]):
    """A process that is known here from its first moment on, before it runs a line."""

    pids: ClassVar[list[int]]

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **how)
        self.pids.append(self.pid)


@pytest.fixture
def pids(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Those of the processes that this one starts."""
    monkeypatch.setattr(Noted, "pids", [], raising=False)
    monkeypatch.setattr(subprocess, "Popen", Noted)
    return Noted.pids


@pytest.mark.parametrize(
    "program",
    ["import time; time.sleep(600)",
     "import os, time; os.close(1); time.sleep(600)",
     "import subprocess; subprocess.run(['sleep', '600'])"],
)  # fmt: skip
def test_what_hangs_is_killed_with_all_that_it_started(
    door: Door, problems: Path, pids: list[int], program: str
) -> None:
    start = time.monotonic()
    ran = answering(door, problems, program, "--timeout", "0.7", "--json")
    assert ran.code == 1
    assert ran.lines[0]["error"]["message"] == "it took more than 0.7 s; it was killed"
    assert time.monotonic() - start < 60
    assert len(pids) == 2
    assert all(map(is_gone, pids))


def test_an_interrupt_while_a_command_starts_ends_it(
    monkeypatch: pytest.MonkeyPatch, pids: list[int]
) -> None:
    class Interrupted(Noted):
        def __init__(self, *arguments: Any, **how: Any) -> None:
            super().__init__(*arguments, **how)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        Command(["sleep", "600"], 60)("a", posed(X))
    assert len(pids) == 1 and is_gone(pids[0])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_command_that_nobody_can_read_from_is_ended(
    monkeypatch: pytest.MonkeyPatch, pids: list[int]
) -> None:
    def start(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Thread, "start", start)
    with pytest.raises(Misuse, match="sleep cannot be run: can't start new thread"):
        Command(["sleep", "600"], 60)("a", posed(X))
    assert len(pids) == 1 and is_gone(pids[0])


def test_a_big_problem_and_a_command_that_reads_none_of_it(door: Door, tmp_path: Path) -> None:
    big = np.ones((1, 1, 3000, 64), np.float32)
    np.save(tmp_path / "q.npy", big)
    np.save(tmp_path / "o.npy", big)
    (tmp_path / "t.json").write_text('{"query": "q.npy"}')
    ran = door("compute", "t.json", "--", "cat", "o.npy")
    assert (ran.code, ran.err) == (0, ""), ran.out


def test_ctrl_c_ends_the_command_too(problems: Path) -> None:
    (problems / "kernel.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    with running(problems, "compute", "t.jsonl", "--", sys.executable, "kernel.py") as process:
        pid = problems / "pid"
        for _ in range(600):
            if pid.exists() and pid.read_text():
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr and process.stderr.read() == b"interrupted\n"
    assert is_gone(int(pid.read_text()))


@pytest.mark.parametrize(
    ("typed", "expected"),
    [(["t.jsonl", "--", "no-such-program"], "no such command: no-such-program"),
     (["t.jsonl", "--", "./t.jsonl"], "./t.jsonl cannot be run"),
     (["t.jsonl", "--"], "there is no COMMAND after --"),
     (["--", "cat"], "there is no BUNDLE before --"),
     (["--", "cat", "x"], "there is no BUNDLE before --"),
     (["t.jsonl", "u.jsonl"], "unexpected extra argument (u.jsonl)"),
     (["t.jsonl", "./kernel"], "a command to be judged: behind --"),
     (["t.jsonl", "u.jsonl", "--", "cat"], "unexpected extra argument (u.jsonl)"),
     (["t.jsonl", "--timeout", "0", "--", "cat"], "--timeout is 0"),
     (["t.jsonl", "--candidate", ".", "--", "cat"], "--candidate has no use in"),
     (["t.jsonl", "--tokens", "a", "--", "cat"], "--tokens has no use in")],
)  # fmt: skip
def test_what_cannot_be_run_is_one_error(
    door: Door, problems: Path, typed: list[str], expected: str
) -> None:
    ran = door("compute", *typed)
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err and len(ran.err.splitlines()) <= 2


def test_a_file_that_cannot_be_executed_is_one_error(door: Door, problems: Path) -> None:
    (problems / "kernel").write_bytes(b"\x7fnothing\n")
    (problems / "kernel").chmod(0o755)
    ran = door("compute", "t.jsonl", "--", "./kernel")
    assert (ran.code, ran.out) == (2, "")
    assert "./kernel cannot be run" in ran.err


def test_options_of_a_command_are_its_own(door: Door, problems: Path) -> None:
    (problems / "k.py").write_text("import sys; sys.exit(sys.argv[1:] != ['--json', '--', '-x'])")
    ran = door("compute", "t.jsonl", "--", sys.executable, "k.py", "--json", "--", "-x")
    assert "it wrote nothing" in ran.out


# -- what it is given ------------------------------------------------------------------------


def given(**more: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"query": X, "key": X[:, :1], "value": X[:, :1], **more}
    return members(posed(**arguments))


def test_a_problem_is_given_by_canonical_names() -> None:
    found = given(mask="causal & window(2)", softcap=5.0, sink=[0.0, 1.0], dtype="bfloat16")
    assert {n: a.shape for n, a in found.items()} == {
        "query": (1, 2, 5, 4), "key": (1, 1, 5, 4), "value": (1, 1, 5, 4), "sink": (2,),
        "mask": (), "scale": (), "softcap": (), "dtype": (), "dense_mask": (1, 1, 5, 5),
    }  # fmt: skip
    assert found["query"].dtype == np.float32  # NumPy has no bfloat16
    assert str(found["dtype"]) == "bfloat16"
    assert str(found["mask"]) == "causal & window(2)"
    assert (float(found["scale"]), float(found["softcap"])) == (0.5, 5.0)
    hidden = np.isneginf(found["dense_mask"][0, 0])
    i, j = np.indices((5, 5))
    np.testing.assert_array_equal(hidden, (j > i) | (j < i - 2))


def test_a_cache_comes_apart_and_a_mask_tensor_as_it_is() -> None:
    past = RNG.normal(size=(1, 1, 3, 4))
    found = given(past_key=past, past_value=2 * past, mask="causal")
    np.testing.assert_array_equal(found["past_value"], 2 * past)
    assert found["key"].shape == (1, 1, 5, 4)
    assert np.isneginf(found["dense_mask"]).sum() == 10
    bias = RNG.normal(size=(5, 5)).astype(np.float32)
    found = given(attn_mask=bias)
    np.testing.assert_array_equal(found["dense_mask"].reshape(5, 5), bias)
    np.testing.assert_array_equal(found["attn_mask"].reshape(5, 5), bias)
    assert "dense_mask" not in given()
    assert np.isneginf(given(kv_lengths=[3])["dense_mask"]).all(0)[0, 0].sum() == 2
