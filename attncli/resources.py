"""Processors, memory, jobs in threads with BLAS held to one thread each, signals that end.

Nothing is imported until jobs run.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from concurrent.futures import Future
    from queue import SimpleQueue

    from threadpoolctl import ThreadpoolController

Job = Callable[[], None]
Progress = Callable[[float], None]  # takes the share done, 0 to 1

#: Signals that end a process.
ENDING = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]

_workers: _Workers | None = None
_blas: ThreadpoolController | None = None
_beside = 1  # processes that share the processors


class _Workers:
    """Threads that are kept.

    They are daemons: one whose start Ctrl-C cut short is known to nobody, and must not keep the
    process alive, as it does in a ThreadPoolExecutor.
    """

    def __init__(self) -> None:
        from queue import SimpleQueue

        self._count = 0
        self._waiting: SimpleQueue[tuple[Future[None], Job]] = SimpleQueue()

    def submit(self, work: Job, times: int) -> list[Future[None]]:
        """Do some work in so many threads at once, or in as many as the system allows."""
        from concurrent.futures import Future
        from threading import Thread

        with suppress(RuntimeError):  # no room for another
            while self._count < times:
                Thread(target=self._run, name="attncli", daemon=True).start()
                self._count += 1
        found: list[Future[None]] = [Future() for _ in range(min(times, self._count))]
        for future in found:
            self._waiting.put((future, work))
        return found

    def _run(self) -> None:
        while True:
            future, work = self._waiting.get()
            try:
                work()
            except BaseException as error:  # it is raised where the result is asked for
                future.set_exception(error)
            else:
                future.set_result(None)
            del future, work


def _forget_workers() -> None:
    global _workers
    _workers = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


def divide(processes: int) -> None:
    """Share the processors of this machine with others that do the same work."""
    global _beside
    _beside = max(1, processes)


def processors() -> int:
    """Return how many processors this process may use."""
    try:
        return max(1, len(os.sched_getaffinity(0)) // _beside)
    except AttributeError:
        return max(1, (os.cpu_count() or 1) // _beside)


def run_jobs(
    jobs: list[Job], threads: int | None, tiny: bool, progress: Progress | None, blas: bool = True
) -> int:
    """Run jobs in order in so many threads, this one included; return how many were used.

    That is this one alone where all is ``tiny``. ``threads`` None: one for each processor.
    ``blas``: jobs call BLAS, which is held to one thread. What a job raises, or ``progress``, ends
    all of them.
    """
    global _workers
    import numpy as np

    threads = 1 if tiny else max(1, min(threads or processors(), len(jobs)))
    queue, total = deque(jobs), len(jobs)

    def work(report: Progress | None = None) -> None:
        with np.errstate(all="ignore"):
            while queue:
                try:
                    job = queue.popleft()
                except IndexError:
                    return
                job()
                if report:
                    report(1 - len(queue) / total)

    if threads > 1 and _workers is None:
        _workers = _Workers()
    with one_blas_thread() if blas and not tiny else nullcontext():
        others = _workers.submit(work, threads - 1) if _workers and threads > 1 else []
        try:
            work(progress)
            for other in others:
                other.result()
        finally:
            queue.clear()
            for other in others:
                other.exception()
    return len(others) + 1


@contextmanager
def uncollected(stay: bool = False) -> Iterator[None]:
    """Keep the cycle collector away while many objects are made, none of them in vain.

    It would look at all of them again and again. ``stay``: they live as long as the process, and
    it never looks at them.
    """
    import gc

    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if stay:
            gc.freeze()
        if was_on:
            gc.enable()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread: threads that wait for small products cost more than they save."""
    global _blas
    if _blas is None:
        from threadpoolctl import ThreadpoolController

        _blas = ThreadpoolController().select(user_api="blas")
    with _blas.limit(limits=1):
        yield


def available_memory() -> int | None:
    """Return the bytes that can still be had, or None where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def peak_memory() -> int | None:
    """Return the most memory this process has had, or None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def readable_bytes(count: float) -> str:
    """Return 1536 as '1.5 KiB'."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"


def stages(progress: Progress | None, weights: Iterable[float]) -> Iterator[Progress | None]:
    """Yield the progress of one stage of a work after the other.

    Each runs from 0 to 1 and is that part of the whole which its weight is of all weights. A stage
    that says nothing leaves its part to the next. None is passed on.
    """
    weights = list(weights)
    total, before = sum(weights) or 1.0, 0.0
    for weight in weights:
        yield progress and partial(_within, progress, before / total, weight / total)
        before += weight


def _within(progress: Progress, start: float, length: float, share: float) -> None:
    progress(start + length * share)


@contextmanager
def ending(act: Callable[[], None]) -> Iterator[None]:
    """Call ``act`` when a signal ends the process inside the block; its own handler comes after.

    Outside the main thread signals are left alone.
    """
    before: dict[int, Any] = {}

    def end(number: int, frame: Any) -> None:
        act()
        if callable(before[number]):
            before[number](number, frame)
        else:  # as it would have been
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    with _handled(end, before):
        yield


@contextmanager
def held() -> Iterator[None]:
    """Put off signals that end the process until the block is left: what it begins is known then.

    Outside the main thread signals are left alone.
    """
    came: list[int] = []
    try:
        with _handled(lambda number, frame: came.append(number), {}):
            yield
    finally:
        for number in came:
            os.kill(os.getpid(), number)


@contextmanager
def _handled(handler: Callable[[int, Any], None], before: dict[int, Any]) -> Iterator[None]:
    """Let a handler have the signals that are not ignored; ``before`` takes those that had them."""
    try:
        with suppress(ValueError):  # no main thread
            for number in ENDING:
                before[number] = signal.getsignal(number)
                if before[number] not in (signal.SIG_IGN, None):
                    signal.signal(number, handler)
        yield
    finally:
        with suppress(ValueError):
            for number, old in before.items():
                if signal.getsignal(number) is handler:
                    signal.signal(number, old)
