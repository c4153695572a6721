"""Commands that answer a problem with anything at all, or with nothing.

``compute FILE.jsonl -- COMMAND`` says what is wrong with each answer, ends what it started, and
keeps no descriptor open.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import words
from tests.fuzz.broken import EDGES, spoilt, text_of
from tests.fuzz.calls import Broken, Random, run
from tests.fuzz.seeds import bundle, every

TIMEOUT = 1.0
#: What a command does, one after the other; what ends it or never ends comes last.
STEPS = [
    "os.close(0)", "os.read(0, 100)", "sys.stdin.buffer.read()", "os.chdir('/')", "os.close(2)",
    "os.write(2, b'\\x1b[31m\\xff\\x00 no \\n' * 3000)", "os.write(1, b'hello\\n')", "os.nice(1)",
    "os.setsid() if os.getpid() != os.getsid(0) else None", "os.environ.clear()",
    "os.set_blocking(1, False)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)",
    "os.fork()", "os.fork() or (time.sleep(0.3), os._exit(0))",
    "os.unlink('answers.jsonl') if os.path.exists('answers.jsonl') else None",
]  # fmt: skip
ENDS = [
    *["pass"] * 8, "os._exit(3)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 11)",
    "os.kill(os.getpid(), 19)", "os.abort()", "time.sleep(600)", "os.close(1); time.sleep(600)",
    "[os.write(1, bytes(1 << 20)) for _ in range(100)]", "os.close(1)",
    "[os.write(2, b'x' * 4096) for _ in iter(int, 1)]", "[os.write(1, b'1') for _ in iter(int, 1)]",
    "os.fork() or time.sleep(600)", "raise ValueError('no')", "os.execvp('cat', ['cat'])",
    "os.fork() or (os.setsid(), time.sleep(1.5))",
]  # fmt: skip
PROGRAM = "import os, signal, sys, time\n"


def candidate(rng: Random) -> None:
    """An answer of any bytes, written in any way, fails its case alone."""
    lists = {n: a.astype(float).tolist() for n, a in bundle(rng).items()}
    Path("answers.jsonl").write_bytes(text_of(lists) + b"\n" + text_of({"query": [[1.0]]}) + b"\n")
    Path("answer").write_bytes(_answer(rng, np.asarray(lists["query"])))
    count = int(rng.choice([0, 0, 1, 2]))
    steps = [words.one(rng, STEPS) for _ in range(count)]
    steps.insert(
        int(rng.integers(count + 1)),
        f"os.write(1, open({os.path.abspath('answer')!r}, 'rb').read())",
    )
    Path("candidate.py").write_text(PROGRAM + "\n".join([*steps, words.one(rng, ENDS)]))
    before, start = _open(), time.monotonic()
    call = ["compute", "answers.jsonl", "--timeout", str(TIMEOUT), "--", sys.executable, "-ISc",
            "exec(open('candidate.py').read())"]  # fmt: skip
    machine = bool(rng.integers(2))
    code, out, _ = run([*call[:2], *["--json"] * machine, *call[2:]], strict=False)
    shown = "; ".join([*steps, Path("candidate.py").read_text().rpartition("\n")[2]])
    if code not in (0, 1):
        raise Broken(f"{shown}: ended with {code}: {out[-300:]}")
    if machine and len([json.loads(line) for line in out.splitlines()]) != 3:
        raise Broken(f"{shown}: {out[:300]}")
    if not machine and "\x1b" in out:
        raise Broken(f"{shown}: an escape code is shown")
    if time.monotonic() - start > 2 * (TIMEOUT + 4) + 5:
        raise Broken(f"{shown}: took {time.monotonic() - start:.1f} s")
    if _open() > before and "setsid" not in shown:  # a grandchild that got away may hold a pipe
        raise Broken(f"{shown}: {_open() - before} descriptors stay open")


def _open() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def _answer(rng: Random, query: Any) -> bytes:
    """Return what a command writes: an array of its own, a broken one, or bytes."""
    stream = io.BytesIO()
    way = rng.random()
    array = (
        rng.normal(size=tuple(rng.integers(0, 4, rng.integers(0, 5))))
        if way < 0.3
        else query[..., :2]
    )
    kinds = ["f4", "f8", "f2", "i8", "c16", "O", "U3", "?", "M8[s]", "V3", ">f4"]
    with np.errstate(all="ignore"):
        array = np.asarray(array).astype(words.one(rng, kinds) if way < 0.6 else "f4")
    if array.dtype.kind == "f" and array.size and rng.random() < 0.3:
        array = array.copy()
        array.flat[0] = [np.nan, np.inf, -np.inf][int(rng.integers(3))]
    if rng.random() < 0.5:
        np.save(stream, array, allow_pickle=True)
    else:
        names = ["output", "lse", "weights", "grad_query", "scores", "x", ""]
        some = {words.one(rng, names): array for _ in range(int(rng.integers(0, 3)))}
        np.savez(stream, **some)  # type: ignore[arg-type]
    data = stream.getvalue()
    if rng.random() < 0.2:  # a header that says what it likes
        shape = tuple(
            int(EDGES[int(n)]) for n in rng.integers(len(EDGES), size=int(rng.integers(4)))
        )
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        data = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(16)
    elif rng.random() < 0.5:
        data = spoilt(rng, data, [*every().values()])
    return data
