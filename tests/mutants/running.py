"""Tests run in a forked process, on a module that is not the one in the tree.

The parent has loaded what is slow to load and nothing of the program; each child loads the program,
one module of it from the text that it is given.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import _lru_cache_wrapper
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NoReturn

import pytest

PRELOADED = ("numpy", "ml_dtypes", "orjson", "rich.console", "typer", "hypothesis", "torch")
MEMORY = 12 << 30  # bytes of addresses, beyond which a mutant is killed
# hypothesis is loaded before pytest can rewrite it
QUIETLY = ("-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
LONGEST = 60.0  # seconds that a test may take of which nothing is known


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


class _Loader(SourceFileLoader):
    """Loads a module from a text, under the path of its file."""

    text: str

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.text, self.path, "exec", dont_inherit=True)


class Changed(MetaPathFinder):
    """Finds one module of the program: the changed one."""

    def __init__(self, path: Path, root: Path, text: str) -> None:
        parts = path.resolve().relative_to(root.resolve()).with_suffix("").parts
        self.package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.package else parts)
        self.path, self.text = path.resolve(), text

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        loader = _Loader(fullname, str(self.path))
        loader.text = self.text
        inside = [str(self.path.parent)] if self.package else None
        return spec_from_file_location(
            fullname, self.path, loader=loader, submodule_search_locations=inside
        )


class Chosen:
    """A plugin of pytest: runs some tests in an order, each for so many seconds at most."""

    def __init__(self, limits: Mapping[str, float] | None, seconds: float) -> None:
        self.limits, self.end = limits, time.monotonic() + seconds
        self.taken, self.killer, self.late = 0, "", False

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if _in_process(item)]
        if self.limits is not None:
            known = {item.nodeid: item for item in items}
            items[:] = [known[name] for name in self.limits if name in known]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        signal.setitimer(signal.ITIMER_REAL, (self.limits or {}).get(item.nodeid, LONGEST))
        done = yield
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.taken += 1
        if time.monotonic() > self.end:
            self.late, item.session.shouldstop = True, "no time is left"
        return done

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.killer = report.nodeid


class Traced:
    """A plugin of pytest: which lines below ``root`` each test runs, and how long it takes.

    What a fixture runs counts for the whole file, and what is cached is computed anew by each test.
    """

    def __init__(self, root: Path) -> None:
        self.prefix, self.root = f"{root.resolve()}{os.sep}", root
        self.seen: dict[CodeType, set[int]] = {}
        self.full: dict[CodeType, set[int]] = {}
        self.shared: dict[str, set[int]] = {}
        self.tests: dict[str, tuple[float, dict[str, set[int]]]] = {}
        self.failed: set[str] = set()
        self.modules, self.caches = 0, list[Any]()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if _in_process(item)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.passed:
            self.failed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        yield
        for path, lines in self._take().items():
            self.shared.setdefault(path, set()).update(lines)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        if len(sys.modules) != self.modules:
            self.modules, known = len(sys.modules), gc.get_objects()
            self.caches = [c for c in known if type(c) is _lru_cache_wrapper and _ours(c)]
        for kept in self.caches:
            kept.cache_clear()
        self._take()
        start = time.perf_counter()
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        done = yield
        sys.settrace(None)
        self.tests[item.nodeid] = time.perf_counter() - start, self._take()
        return done

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(self.prefix):
            return None
        seen = self.seen.setdefault(code, set())
        full = self.full.get(code)
        if full is None:
            full = self.full[code] = {line for _, _, line in code.co_lines() if line}
        if len(seen) == len(full):
            return None

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            seen.add(frame.f_lineno)
            return line

        return line(frame, event, arg)

    def _take(self) -> dict[str, set[int]]:
        """Return the lines that were run since it was asked last."""
        found: dict[str, set[int]] = {}
        for code, lines in self.seen.items():
            path = code.co_filename.removeprefix(self.prefix)
            found.setdefault(path, set()).update(lines)
        self.seen.clear()
        return found

    def passed(self) -> dict[str, Any]:
        """Return of each test that passes its seconds and its lines."""
        found = {}
        for name, (seconds, lines) in self.tests.items():
            if name not in self.failed:
                for path, more in self.shared.items():
                    lines.setdefault(path, set()).update(more)
                every = {path: sorted(own) for path, own in lines.items()}
                found[name] = {"seconds": seconds, "lines": every}
        return found


def _ours(cached: Any) -> bool:
    """Whether a function that is cached is the program's, or the tests'."""
    return str(getattr(cached, "__module__", "")).partition(".")[0] in ("attncli", "tests")


def _in_process(item: pytest.Item) -> bool:
    """Whether a test runs the program in its own process, and is quick."""
    return not item.get_closest_marker("slow") and "attncli" not in getattr(
        item, "fixturenames", ()
    )


def traced(file: Path, root: Path) -> dict[str, Any]:
    """Return what each test of a file runs, see ``Traced.passed``."""
    plugin = Traced(root)
    _pytest([str(file)], plugin)
    return plugin.passed()


def judged(
    changed: Changed, files: Sequence[str], limits: Mapping[str, float] | None, seconds: float
) -> dict[str, Any]:
    """Run tests on a changed module; return which failed, "" if none did, and what was run.

    ``limits`` are the tests in order, each with the seconds that it may take; all those of the
    files without it.
    """
    sys.meta_path.insert(0, changed)
    plugin = Chosen(limits, seconds)
    signal.signal(signal.SIGALRM, lambda number, frame: os._exit(1))
    code = _pytest(["-x", *files], plugin)
    loads = plugin.late or code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    killer = plugin.killer or ("" if loads else "it does not load")
    return {"killer": killer, "taken": plugin.taken, "late": plugin.late}


def _pytest(arguments: Sequence[str], plugin: Any) -> int:
    return int(pytest.main([*QUIETLY, *arguments], [plugin]))


Work = tuple[Any, Callable[[], dict[str, Any]]]  # a name, and what is to be done


def in_children(every: Iterable[Work], jobs: int) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Do each work in a forked child, ``jobs`` at once; yield its name and what it returned.

    Nothing is returned by a child that died, or that was ended for being late.
    """
    running: dict[int, tuple[Any, int]] = {}
    waiting = iter(every)
    while True:
        for name, work in itertools.islice(waiting, jobs - len(running)):
            source, sink = os.pipe()
            pid = os.fork()
            if not pid:
                _be_child(work, sink)
            os.close(sink)
            running[source] = name, pid
        if not running:
            return
        for source in select.select(running, [], [])[0]:  # what is written is small, or the end
            name, pid = running.pop(source)
            with os.fdopen(source) as read:
                text = read.read()
            os.waitpid(pid, 0)
            yield name, json.loads(text) if text else {}


def _be_child(work: Callable[[], dict[str, Any]], sink: int) -> NoReturn:
    """Do a work in silence and within limits, write what it returns, and end."""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        text = json.dumps(work()).encode()
        with os.fdopen(sink, "wb") as out:
            out.write(text)
    finally:
        os._exit(0)
