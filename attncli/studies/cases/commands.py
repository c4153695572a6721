"""Answers of a command, one run a problem.

On its standard input it reads an .npz of the problem: ``query``, ``key``, ``value``, and where the
problem has them ``past_key``, ``past_value``, ``attn_mask``, ``kv_lengths``, ``sink``,
``grad_output``; ``scale``, ``softcap``, ``heads`` and ``kv_heads`` as numbers, ``mask`` (an
expression), ``dtype``, ``softmax_dtype`` and ``layout`` as texts, both as arrays of no dimension.
``dense_mask`` says the whole mask once more, for whoever reads no expressions: what is added to the
scores, float32 ``(1 or B, 1 or H, Lq, Lk)``, −∞ where a key is hidden. Rotary positions are applied
already. NumPy's files have no bfloat16: such tensors come as float32, and ``dtype`` says what they
are.

On its standard output it writes its answer: .npy, the output, or .npz, arrays by name (see
``candidates``); .safetensors does as well.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from threading import Thread
from typing import IO, Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.errors import AttnError, Misuse, NoAnswer
from attncli.files.formats import FORMATS
from attncli.files.sniffing import read_whole
from attncli.resources import ending, held
from attncli.studies.bundle import LARGEST, PROBLEM, carried
from attncli.studies.cases.candidates import stages_of

Array = np.ndarray[Any, np.dtype[Any]]

KINDS = tuple(row.name for row in FORMATS if row.binary and row.writes)
ROOM = 1 << 20  # bytes that an answer may have beside its numbers
CHUNK = 1 << 16
TAIL = 2000  # characters of what it says on standard error that are shown


def members(problem: Problem, grad_output: Array | None = None) -> dict[str, Array]:
    """Return a problem, and dO ``(B, H, Lq, Dv)``, as the arrays that a command reads."""
    p = problem
    tensors = {"query": p.query, "key": p.key[:, :, p.past :], "value": p.value[:, :, p.past :]}
    along = carried(p, PROBLEM, past_apart=True)
    found: dict[str, Array] = {
        **{name: p.family.restore(array) for name, array in tensors.items()},
        **along.arrays,
        **{n: np.array(said) for n, said in along.options.items() if n != "rope_applied"},
    }
    e = p.mask.extent
    hides = p.mask.text or p.mask.has_bias or e.lengths is not None
    if hides and e.batch * e.heads * e.queries * e.keys <= LARGEST:
        found["dense_mask"] = _dense(p)
    if grad_output is not None:
        found["grad_output"] = p.family.restore(grad_output).astype(p.result_dtype)
    return {name: _numpy(array) for name, array in found.items()}


def _dense(problem: Problem) -> Array:
    """Return what is added to the scores, −∞ where a key is hidden."""
    mask = problem.mask.compact()
    if mask.has_bias:
        return mask.tensor(np.dtype(np.float32))
    return np.where(mask.dense(), np.float32(0), np.float32(-np.inf))


def _numpy(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


class Command:
    """A program and its arguments, run once for each problem, without a shell."""

    def __init__(self, words: Sequence[str], timeout: float) -> None:
        """Raise Misuse where there is no such program."""
        if shutil.which(words[0]) is None:
            there = os.path.exists(words[0])
            raise Misuse(
                f"{words[0]} cannot be run" if there else f"no such command: {words[0]}",
                "make it executable, or name what runs it: -- python3 PROGRAM"
                if there else "expected a program and its arguments behind --",
            )  # fmt: skip
        self.words, self.timeout = [*words], timeout

    def __call__(
        self, name: str, problem: Problem, grad_output: Array | None = None
    ) -> Mapping[str, Array]:
        """Return the command's answer to a problem, by stage.

        Raises NoAnswer, with what it said on standard error, for whatever goes wrong; Misuse
        where it cannot be run at all.
        """
        given = io.BytesIO()
        np.savez(given, **members(problem, grad_output))  # type: ignore[arg-type]
        answer, said = self._run(given.getvalue(), ROOM + 8 * _numbers(problem))
        try:
            bundle = read_whole(answer, "its output", None)
            if bundle.kind not in KINDS:
                raise NoAnswer(f"it wrote {bundle.kind.upper()}; expected .npy or .npz")
            return stages_of(bundle, problem)
        except AttnError as error:
            raise NoAnswer(error.message, said or error.hint) from None

    def whose(self, name: str) -> str:
        """Return what its answers are called in a sentence."""
        return "the command's answer"

    def _run(self, given: bytes, most: int) -> tuple[bytes, str]:
        """Return what it writes on standard output, and the end of what it says besides."""
        process: subprocess.Popen[bytes] | None = None
        with ending(lambda: _kill(process)), ExitStack() as afterwards:
            with held():  # until it is known whom to end
                process = self._start()
                assert process.stdin and process.stdout and process.stderr
                answer, said = _Kept(process.stdout, most), _Kept(process.stderr, TAIL, last=True)
                feeding = Thread(target=_feed, args=(process.stdin, given), daemon=True)
                afterwards.callback(_end, process, feeding, answer, said)
                try:
                    for thread in (answer, said, feeding):
                        thread.start()
                except RuntimeError as error:  # no room for another
                    raise Misuse(f"{self.words[0]} cannot be run: {error}") from None
            end = time.monotonic() + self.timeout
            answer.join(self.timeout)
            if not answer.is_alive() and not answer.too_much:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
            late = process.returncode is None
        tail = said.text()
        if answer.too_much:
            raise NoAnswer(f"it wrote more than {most:,} bytes; it was killed", tail or None)
        if late:
            raise NoAnswer(f"it took more than {self.timeout:g} s; it was killed", tail or None)
        if process.returncode:
            raise NoAnswer(_ended(process.returncode), tail or None)
        if not answer.data:
            raise NoAnswer("it wrote nothing on standard output", tail or None)
        return bytes(answer.data), tail

    def _start(self) -> subprocess.Popen[bytes]:
        """Return its process; raises Misuse where it is no program after all."""
        try:
            return subprocess.Popen(
                self.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise Misuse(f"{self.words[0]} cannot be run: {error.strerror or error}") from None


class _Kept(Thread):
    """Reads a pipe to its end and keeps the first, or the last, so many bytes."""

    def __init__(self, stream: IO[bytes], most: int, *, last: bool = False) -> None:
        super().__init__(daemon=True)
        self.stream, self._most, self._last = stream, most, last
        self.data = bytearray()
        self.too_much = False

    def run(self) -> None:
        with suppress(OSError, ValueError):  # closed under its hands
            while part := self.stream.read1(CHUNK):  # type: ignore[attr-defined]
                self.data += part
                if self._last:
                    del self.data[: -self._most]
                elif len(self.data) > self._most:
                    self.too_much = True
                    return

    def text(self) -> str:
        """Return the last lines."""
        return "\n".join(bytes(self.data).decode(errors="replace").strip().splitlines()[-5:])


def _feed(stream: IO[bytes], data: bytes) -> None:
    """Write all; a command need not read it."""
    with suppress(OSError, ValueError):
        stream.write(data)
    with suppress(OSError, ValueError):
        stream.close()


def _end(process: subprocess.Popen[bytes], feeding: Thread, *kept: _Kept) -> None:
    """End a process, unless it has ended, and what reads and feeds it."""
    _kill(process)
    process.wait()
    for thread in (*kept, feeding):
        if thread.ident is not None:
            thread.join(1.0)  # a grandchild may hold a pipe open
    for one in kept:
        if not one.is_alive():
            one.stream.close()
    if process.stdin and not feeding.is_alive():
        with suppress(OSError):
            process.stdin.close()


def _kill(process: subprocess.Popen[bytes] | None) -> None:
    """End a process that was not waited for, and all that it started."""
    if process is not None and process.returncode is None:
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()


def _ended(code: int) -> str:
    """Return how a process ended, in words."""
    if code > 0:
        return f"it ended with exit code {code}"
    try:
        return f"it died of {signal.Signals(-code).name}"
    except ValueError:
        return f"it died of signal {-code}"


def _numbers(problem: Problem) -> int:
    """Return how many numbers the largest answer has: all stages, in the widest type."""
    p = problem
    rows = p.batch * p.heads * p.queries
    inputs = 3 * (p.query.size + p.key.size + p.value.size)
    return rows * (p.value_width + 1 + 2 * p.keys) + inputs
