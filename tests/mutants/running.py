"""Suite run in forked processes, on a program of which one module has changed.

One process loads the program and collects the tests; each child is a copy of it that puts a changed
module's functions in place of the ones loaded, and runs tests. What is run when a module is loaded
cannot be changed so: a child that has not loaded the program loads it with the changed module.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import _lru_cache_wrapper, partial
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from inspect import CO_NEWLOCALS
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NoReturn

import pytest

PRELOADED = ("numpy", "ml_dtypes", "orjson", "rich.console", "typer", "hypothesis", "torch")
MEMORY = 12 << 30  # bytes of addresses, beyond which a mutant is killed
# hypothesis is loaded before pytest can rewrite it
QUIETLY = (
    "-qq", "-s", "--no-header", "--no-summary", "-p", "no:cacheprovider",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",
)  # fmt: skip


def preload() -> None:
    """Load what no mutant changes, once for all children."""
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            import_module(name)
    from hypothesis import HealthCheck, Phase, settings

    settings.register_profile(
        "mutants", derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), phases=(Phase.explicit, Phase.generate),
    )  # fmt: skip
    settings.load_profile("mutants")
    gc.freeze()


# -- a changed module -------------------------------------------------------------------------


class Changed:
    """A module of a program, the folder ``program``, with another text."""

    def __init__(self, path: Path, program: Path, text: str) -> None:
        parts = path.relative_to(program.parent).with_suffix("").parts
        self.package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.package else parts)
        self.path, self.text = str(path), text

    def code(self) -> CodeType:
        """Return the module's code."""
        return compile(self.text, self.path, "exec", dont_inherit=True)

    def put(self, tests: Suite) -> None:
        """Put its functions in place of the loaded ones.

        Raises ValueError where what has changed was run while the program was loaded.
        """
        with tests.loads():
            import_module(self.name)
        old = compile(Path(self.path).read_text(), self.path, "exec", dont_inherit=True)
        pairs = list(zip(_codes(old), _codes(self.code()), strict=True))
        for one, other in pairs:
            if _own(one) != _own(other) and (_is_body(one) or _called(one) in tests.loading):
                raise ValueError(f"{one.co_qualname} was run")
        new = {one: other for one, other in pairs if one != other}
        for known in gc.get_objects():
            if type(known) is FunctionType and known.__code__.co_filename == self.path:
                known.__code__ = new.get(known.__code__, known.__code__)
        for cached in caches():
            cached.cache_clear()


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield a code and every one below it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


def _own(code: CodeType) -> tuple[Any, ...]:
    """Return what a code does itself, wherever it stands."""
    numbers = [repr(const) for const in code.co_consts if not isinstance(const, CodeType)]
    return code.co_code, numbers, code.co_names, code.co_varnames, code.co_freevars


def _is_body(code: CodeType) -> bool:
    """Whether it is a module's, or a class's own."""
    return not code.co_flags & CO_NEWLOCALS


def _called(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


class _Loader(SourceFileLoader):
    changed: Changed

    def get_code(self, fullname: str) -> CodeType:
        return self.changed.code()


class Finder(MetaPathFinder):
    """Finds one module of the program: the changed one."""

    def __init__(self, changed: Changed) -> None:
        self.changed = changed

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        own = self.changed
        if fullname != own.name:
            return None
        loader = _Loader(fullname, own.path)
        loader.changed = own
        inside = [str(Path(own.path).parent)] if own.package else None
        return spec_from_file_location(
            fullname, own.path, loader=loader, submodule_search_locations=inside
        )


def caches() -> list[Any]:
    """Return the cached functions of the program and of its tests."""
    known = (one for one in gc.get_objects() if type(one) is _lru_cache_wrapper)
    mine = ("attncli", "tests", "toys")
    return [c for c in known if str(getattr(c, "__module__", "")).partition(".")[0] in mine]


# -- tests ------------------------------------------------------------------------------------


class Suite:
    """A plugin of pytest: collects tests, and leaves to ``work`` how they are run.

    ``loading`` are the functions of the program that were called until then, by file, name and
    line: to change these would be too late. ``shares``, if there is one, is called after a test's
    fixtures were made.
    """

    def __init__(self, program: Path, work: Callable[[Suite], Any]) -> None:
        self.prefix, self.work = f"{program}{os.sep}", work
        self.items: dict[str, pytest.Item] = {}
        self.loading: set[tuple[str, str, int]] = set()
        self.failed, self.made = "", None
        self.shares: Callable[[], None] | None = None

    def collect(self, files: Iterable[str]) -> Any:
        """Collect the tests of files; return what the work makes, None where they do not load."""
        with self.loads():
            pytest.main([*QUIETLY, *files], [self])
        return self.made

    @contextlib.contextmanager
    def loads(self) -> Iterator[None]:
        """Note what is called meanwhile, and before a test runs."""
        sys.settrace(self._note)
        yield
        sys.settrace(None)

    def run(self, names: Iterable[str]) -> Iterator[tuple[str, Callable[[], bool]]]:
        """Yield the name of each test that was collected, and what runs it: whether it passes."""
        items = [self.items[name] for name in names if name in self.items]
        for item, following in itertools.zip_longest(items, items[1:]):
            yield item.nodeid, partial(self._passes, item, following)

    def _passes(self, item: pytest.Item, following: pytest.Item | None) -> bool:
        self.failed = ""
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        return not self.failed

    def _note(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(self.prefix):
            self.loading.add(_called(frame.f_code))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        sys.settrace(None)
        self.items = {item.nodeid: item for item in session.items if _in_process(item)}
        if not session.testsfailed:
            self.made = self.work(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        yield
        if self.shares:
            self.shares()


def _in_process(item: pytest.Item) -> bool:
    """Whether a test runs the program in its own process, and is quick."""
    mark, fixtures = item.get_closest_marker("slow"), getattr(item, "fixturenames", ())
    return mark is None and "attncli" not in fixtures


def judged(tests: Suite, limits: Mapping[str, float], seconds: float) -> dict[str, Any]:
    """Run tests, each for its limit and together for about ``seconds``, of a processor.

    Return which failed, "" if none did, how many were run and whether there was no time for more.
    """
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, lambda number, frame: os._exit(1))
    end, taken = time.process_time() + seconds, 0
    for name, passes in tests.run(limits):
        if time.process_time() > end:
            return {"killer": "", "taken": taken, "late": True}
        signal.setitimer(signal.ITIMER_PROF, limits[name])
        signal.setitimer(signal.ITIMER_REAL, 20 * limits[name])  # of one that waits for ever
        if not passes():
            return {"killer": name, "taken": taken, "late": False}
        signal.setitimer(signal.ITIMER_PROF, 0)
        taken += 1
    return {"killer": "", "taken": taken, "late": False}


def anew(
    changed: Changed, program: Path, limits: Mapping[str, float], seconds: float
) -> dict[str, Any]:
    """Load the program with a changed module, and return what its tests say as ``judged`` does."""
    sys.meta_path.insert(0, Finder(changed))
    tests = Suite(program, lambda tests: judged(tests, limits, seconds))
    found = tests.collect(sorted({name.partition("::")[0] for name in limits}))
    return found or {"killer": "it does not load", "taken": 0, "late": False}


class Traced:
    """Which lines of a program each test runs, and for how long.

    What a fixture runs counts for the whole file, and what is cached is computed anew by each test.
    """

    def __init__(self, tests: Suite) -> None:
        self.prefix, self.tests = tests.prefix, tests
        self.seen: dict[CodeType, set[int]] = {}
        self.full: dict[CodeType, set[int]] = {}
        self.shared: dict[str, set[int]] = {}
        tests.shares = self._share

    def of(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the seconds of each test that passes, and its lines by module."""
        found: dict[str, Any] = {}
        for name, passes in self.tests.run(names):
            for cached in caches():
                cached.cache_clear()
            self.seen.clear()
            start = time.process_time()
            threading.settrace(self._enter)
            sys.settrace(self._enter)
            passed = passes()
            sys.settrace(None)
            if passed:
                found[name] = {"seconds": time.process_time() - start, "lines": self._lines()}
        for test in found.values():
            for path, lines in self.shared.items():
                test["lines"].setdefault(path, set()).update(lines)
            test["lines"] = {path: sorted(lines) for path, lines in test["lines"].items()}
        return found

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(self.prefix):
            return None
        seen = self.seen.setdefault(code, set())
        if code not in self.full:
            self.full[code] = {line for _, _, line in code.co_lines() if line}
        if len(seen) == len(self.full[code]):
            return None

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            seen.add(frame.f_lineno)
            return line

        return line(frame, event, arg)

    def _share(self) -> None:
        for path, lines in self._lines().items():
            self.shared.setdefault(path, set()).update(lines)

    def _lines(self) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for code, lines in list(self.seen.items()):
            found.setdefault(code.co_filename.removeprefix(self.prefix), set()).update(lines)
        return found


# -- processes --------------------------------------------------------------------------------

Work = tuple[Any, Callable[[], Any]]  # a name, and what is to be done


def in_children(every: Iterable[Work], jobs: int, loud: bool = False) -> Iterator[tuple[Any, Any]]:
    """Do each work in a forked child, ``jobs`` at once; yield its name and what it returned.

    That is None of a child that died, or was ended for being late.
    """
    running: dict[int, tuple[Any, int]] = {}
    waiting = iter(every)
    while True:
        for name, work in itertools.islice(waiting, jobs - len(running)):
            source, sink = os.pipe()
            sys.stdout.flush()
            pid = os.fork()
            if not pid:
                _be_child(work, sink, loud)
            os.close(sink)
            running[source] = name, pid
        if not running:
            return
        for source in select.select(running, [], [])[0]:
            name, pid = running.pop(source)
            with os.fdopen(source) as read:
                text = read.read()
            os.waitpid(pid, 0)
            yield name, json.loads(text) if text else None


def _be_child(work: Callable[[], Any], sink: int, loud: bool) -> NoReturn:
    """Do a work within limits, write what it returns, and end."""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0,) if loud else (0, 1, 2):
            os.dup2(nothing, stream)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        text = json.dumps(work()).encode()
        with os.fdopen(sink, "wb") as out:
            out.write(text)
    except BaseException:
        if loud:
            traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)
