"""Processes that compute one problem together, as threads of this one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

from attncli.attention.masks import Mask
from attncli.attention.problem import Problem
from attncli.attention.shares import Arrays, Share
from attncli.measures.evidence import Evidence
from attncli.studies.attend import Result
from attncli.studies.effects import Effect
from attncli.studies.health import Examination


def _unlock(*classes: type) -> None:
    """Let threads be in one cached property at once, as processes are: Python 3.11 has a lock."""
    for one in classes:
        for found in vars(one).values():
            if hasattr(found, "lock") and isinstance(found, cached_property):
                found.lock = nullcontext()


_unlock(Evidence, Result, Effect, Examination, Mask)


class Threads:
    """What the threads of a group share."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks, timeout=20)
        self.given: list[Any] = [None] * ranks


class Exchange:
    """One of them."""

    def __init__(self, group: Threads, rank: int, ranks: int) -> None:
        self.group, self.rank, self.ranks = group, rank, ranks

    def _all(self, given: Any) -> list[Any]:
        self.group.given[self.rank] = given
        self.group.barrier.wait()
        found = list(self.group.given)
        self.group.barrier.wait()
        return found

    def merged(self, arrays: Arrays, merge: Callable[[Arrays, Arrays], Arrays]) -> Arrays:
        total, *others = self._all(arrays)
        for one in others:
            total = merge(total, one)
        return total

    def gathered(self, array: Any) -> list[Any]:
        return self._all(array)

    def texts(self, text: str) -> list[str]:
        return self._all(text)


def together(problem: Problem, axis: str, ranks: int, work: Callable[[Problem], Any]) -> list[Any]:
    """Return what each of some threads makes of a problem that they divide along ``axis``."""
    group, found, errors = Threads(ranks), [None] * ranks, []

    def run(rank: int) -> None:
        share = Share(axis, rank, ranks, Exchange(group, rank, ranks))
        try:
            found[rank] = work(replace(problem, share=share))
        except BaseException as error:
            errors.append(error)
            group.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )
    return found
