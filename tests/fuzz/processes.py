"""Whole processes: the installed program in odd surroundings, and what it leaves behind.

``python -m tests.fuzz --processes 3000`` starts so many, each in a folder of its own with files
good and damaged; ``--processes 1 --seed N`` starts number N again.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from attncli import files
from attncli.errors import AttnError
from tests.fuzz import words
from tests.fuzz.broken import spoilt
from tests.fuzz.calls import (
    CODES,
    WRITTEN,
    Random,
    command_line,
    learn,
    sound_line,
    workplace,
    wrong,
)
from tests.fuzz.seeds import every

PROGRAM = Path(sys.executable).with_name("attncli")
SLOW = 90.0  # seconds after which a process hangs: two of them share a machine with others
#: Surroundings by variable; None takes it away.
VARIABLES: list[dict[str, str | None]] = [
    {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"TERM": "dumb"},
    {"TERM": None}, {"COLUMNS": "0"}, {"COLUMNS": "1"}, {"COLUMNS": "x"}, {"COLUMNS": "-5"},
    {"COLUMNS": "9" * 30}, {"COLUMNS": "9" * 5000}, {"LINES": "1"}, {"LINES": "9" * 5000},
    {"COLUMNS": "²"}, {"COLUMNS": None}, {"HOME": "/nonexistent"}, {"HOME": None},
    {"HOME": "/dev/null"}, {"TMPDIR": "/nonexistent"}, {"TMPDIR": "/proc"},
    {"PYTHONOPTIMIZE": "2"}, {"PYTHONUNBUFFERED": "1"}, {"PYTHONWARNINGS": "error"},
    {"PYTHONDONTWRITEBYTECODE": "1"}, {"PYTHONHASHSEED": "0"}, {"NO_COLOR": "1"},
    {"FORCE_COLOR": "1"}, {"COLORTERM": "truecolor"}, {"PATH": ""}, {"PATH": None},
    {"OMP_NUM_THREADS": "x"}, {"OPENBLAS_NUM_THREADS": "0"}, {"ATTNCLI_FUSED": "off"},
    {"ATTNCLI_FUSED": "x"}, {"ATTNCLI_FUSED": "portable"}, {"RANK": "0"}, {"WORLD_SIZE": "x"},
    {"TZ": "x"}, {"XDG_CACHE_HOME": "/proc"}, {"MPLCONFIGDIR": "/proc"}, {"MPLBACKEND": "x"},
]  # fmt: skip
#: Names that files may have, and that must not get to a terminal as they are.
NAMES = [
    "two\nlines.npz",
    "\x1b[31mred.npz",
    "\udcff.npz",
    "--help.npz",
    "a b.npz",
    "é\u202e.npz",
    "::q.npz",
]


@dataclass
class Case:
    """One process: what is typed, around what, and how it ended."""

    arguments: list[str]
    variables: dict[str, str | None]
    streams: tuple[str, str, str]  # of STREAMS
    limits: dict[str, int]
    signal: tuple[int, float] | None = None
    code: int = 0
    out: bytes = b""
    err: bytes = b""
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def shown(self) -> str:
        """The call and what is odd about it."""
        around = {k: v and v[:20] for k, v in self.variables.items()}
        typed = " ".join(map(repr, self.arguments))
        return f"attncli {typed} {around} {self.streams} {self.limits} {self.signal}"


def case_of(rng: Random) -> Case:
    """Return a random process; most have nothing odd around them."""
    line = sound_line if rng.random() < 0.7 else command_line
    arguments = line(rng, int(rng.choice([0, 1, 1, 2, 2, 3])))
    if rng.random() < 0.25:
        arguments.append("--json")
    for at, word in enumerate(arguments):
        if rng.random() < 0.03 and word.endswith((".npz", ".npy")):
            arguments[at] = words.one(rng, NAMES)
    variables: dict[str, str | None] = {}
    for _ in range(int(rng.choice([0, 0, 1, 2]))):
        variables |= VARIABLES[int(rng.integers(len(VARIABLES)))]
    odd = rng.random()
    streams, limits, sent = ("null", "pipe", "pipe"), {}, None
    if odd < 0.15:
        streams = (
            words.one(rng, ["null", "closed", "garbage", "full"]),
            words.one(rng, ["pipe", "pipe", "closed", "full", "broken", "null"]),
            words.one(rng, ["pipe", "pipe", "closed", "full", "broken"]),
        )
    elif odd < 0.22:
        limits = {"FSIZE": int(rng.choice([0, 1, 100, 4096]))}
    elif odd < 0.25:
        limits = {"NOFILE": int(rng.integers(8, 40))}
    elif odd < 0.33:
        number = int(rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]))
        sent = (number, float(rng.uniform(0.02, 0.8)))
    return Case(arguments, variables, streams, limits, sent)


def damage(rng: Random, folder: Path) -> None:
    """Spoil some files of a folder, or put something else in their place."""
    for odd in NAMES:
        shutil.copyfile(folder / "qkv.npz", folder / odd)
    if rng.random() < 0.6:
        return
    there = sorted(p for p in folder.iterdir() if p.is_file())
    for _ in range(int(rng.integers(1, 6))):
        path = there[int(rng.integers(len(there)))]
        way = rng.random()
        if not path.is_file():  # not any more
            continue
        if way < 0.6:
            path.write_bytes(spoilt(rng, path.read_bytes(), [*every().values()]))
            continue
        path.unlink()
        if way < 0.7:
            path.mkdir()
        elif way < 0.75:
            path.symlink_to(path.name)  # itself
        elif way < 0.8:
            path.symlink_to("/dev/zero")
        elif way < 0.85:
            path.write_bytes(b"")
        elif way < 0.95:
            some = [*every().values()]
            path.write_bytes(some[int(rng.integers(len(some)))])


def content(folder: Path) -> dict[str, str]:
    """Return what lies in a folder: of each file the checksum of its content."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {os.readlink(path)}"
        elif path.is_file():
            data = path.read_bytes()
            found[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return found


def attempt(template: Path, seed: int) -> Case:
    """Run one process and return how it ended, with what is wrong about that."""
    rng = np.random.default_rng([seed, 9])
    with TemporaryDirectory(prefix="fuzz-") as whole:
        folder = Path(whole) / "here"
        shutil.copytree(template, folder, symlinks=True)
        case = case_of(rng)
        damage(rng, folder)
        before = content(folder)
        _start(case, folder)
        if not case.faults:
            case.faults += [*_said(case), *_left(case, folder, before)]
    return case


def _start(case: Case, folder: Path) -> None:
    variables = {**os.environ, "COLUMNS": "80", **case.variables}
    kept: list[int] = []

    def stream(kind: str, mode: int) -> int:
        if kind in ("pipe", "closed"):
            return subprocess.PIPE if kind == "pipe" else subprocess.DEVNULL
        if kind == "broken":
            reader, writer = os.pipe()
            os.close(reader)
            kept.append(writer)
            return writer
        path = {"full": "/dev/full", "garbage": sys.executable, "null": os.devnull}[kind]
        kept.append(os.open(path, mode))
        return kept[-1]

    closed = [n for n, kind in enumerate(case.streams) if kind == "closed"]

    def prepare() -> None:
        for number in closed:
            os.close(number)
        for name, most in case.limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))

    start = time.monotonic()
    process = subprocess.Popen(
        [os.fsencode(word) for word in (str(PROGRAM), *case.arguments)],
        cwd=folder,
        env={k: v for k, v in variables.items() if v is not None},
        stdin=stream(case.streams[0], os.O_RDONLY),
        stdout=stream(case.streams[1], os.O_WRONLY),
        stderr=stream(case.streams[2], os.O_WRONLY),
        preexec_fn=prepare,
    )
    try:
        if case.signal:
            number, after = case.signal
            with suppress(subprocess.TimeoutExpired):
                process.wait(after)
            process.send_signal(number)
        out, err = process.communicate(timeout=SLOW)
    except subprocess.TimeoutExpired:
        case.faults.append(f"took more than {SLOW:g} s")
        process.kill()
        out, err = process.communicate()
    finally:
        for number in kept:
            os.close(number)
    case.out, case.err = out or b"", err or b""
    case.code, case.seconds = process.returncode, time.monotonic() - start


def _said(case: Case) -> Iterator[str]:
    """Yield what is wrong with the exit code and with what was printed."""
    told, said = (data.decode("utf-8", "replace") for data in (case.err, case.out))
    if case.signal:
        early = case.code == 1 and "attncli/cli" not in told  # Python itself was starting
        if early or case.code in (-case.signal[0], 130):
            return
    if case.streams[1:] == ("pipe", "pipe"):
        coloured = ["--color"] * ("FORCE_COLOR" in case.variables)
        yield from wrong([*case.arguments, *coloured], case.code, said, told)
    elif case.code not in CODES:
        yield f"exit code {case.code}"


def _left(case: Case, folder: Path, before: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with what lies in the folder now."""
    written = {Path(path).stem for option, path in pairwise(case.arguments) if option in WRITTEN}
    killed = case.signal and case.signal[0] == signal.SIGKILL
    now = content(folder)
    for name in sorted({name for name, _ in before.items() ^ now.items()}):
        if Path(name).name.startswith(".attncli-"):
            if not killed:
                yield f"{name} is left"
        elif name not in now or not Path(name).name.startswith(tuple(written)):
            yield f"{name} is {'changed' if name in now else 'gone'}"
        else:
            yield from _unreadable(folder / name)


def _unreadable(path: Path) -> Iterator[str]:
    """Yield why a file that was written is not whole."""
    data = path.read_bytes()
    ends = {".svg": b"</svg>", ".html": b"</html>", ".png": b"IEND\xaeB`\x82", ".pdf": b"%%EOF"}
    if path.suffix in ends:
        if not data.rstrip().endswith(ends[path.suffix]):
            yield f"{path.name} is cut short"
        return
    try:
        found = files.read_many(str(path))
        for bundle in [found] if isinstance(found, files.Bundle) else found:
            for array in getattr(bundle, "tensors", {}).values():
                np.asarray(array)
    except AttnError as error:
        yield f"{path.name} cannot be read: {error.message}"


def attack(count: int, seed: int, jobs: int = 2) -> list[str]:
    """Run processes, print sums, and return every fault with the call that it is of."""
    cases: list[Case] = []
    faults: list[str] = []

    def one(number: int) -> None:
        cases.append(case := attempt(template, number))
        for fault in case.faults:
            faults.append(f"--processes 1 --seed {number}: {fault}\n  {case.shown}\n  {case.err!r}")
            print(faults[-1][:1500], flush=True)

    with TemporaryDirectory() as place, workplace(place):
        template = Path(place)
        learn()  # which options a call takes, here: threads would be in each other's way
        for suffix, data in every().items():
            (template / f"s{suffix}").write_bytes(data)
        with ThreadPoolExecutor(jobs) as pool:
            for done in [pool.submit(one, seed + n) for n in range(count)]:
                done.result()
    codes = Counter(case.code for case in cases)
    slowest = max(case.seconds for case in cases)
    print(
        f"{len(cases):,} processes, exit codes {dict(codes)}, slowest {slowest:.1f} s", flush=True
    )
    return faults
