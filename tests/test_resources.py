"""Progress: a long work tells its share in one growing line, whatever its stages tell."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from attncli import resources
from attncli.attention.pose import pose
from attncli.resources import run_jobs, stages
from attncli.studies.health import examine
from attncli.studies.what_if import parse
from attncli.studies.widths import sweep_dim


def test_stages_share_a_work_by_their_weights() -> None:
    told: list[float] = []
    for stage in stages(told.append, (1, 3)):
        assert stage
        stage(0.5)
        stage(1)
    assert told == [0.125, 0.25, 0.625, 1]


def test_stages_of_stages() -> None:
    told: list[float] = []
    first, _ = stages(told.append, (1, 1))
    for stage in stages(first, (1, 1)):
        assert stage
        stage(1)
    assert told == [0.25, 0.5]


def test_nobody_listens() -> None:
    assert list(stages(None, (1, 2))) == [None, None]
    assert list(stages([].append, ())) == []


def test_progress_of_sweep_dim_grows_to_one() -> None:
    told: list[float] = []
    assert len(list(sweep_dim((8, 16), progress=told.append, threads=1))) == 2
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_progress_of_an_examination_grows_to_one() -> None:
    told: list[float] = []
    x = [[1.0, 0.5], [0.0, 1.0], [2.0, 1.0]]
    what_ifs = [parse("scale=2"), parse("dtype=float16")]
    examine(pose(x, x, x, scale=3.0), what_ifs=what_ifs, progress=told.append, threads=1)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_work_is_done_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[threading.Thread] = []
    real = threading.Thread.start

    def one_alone(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    monkeypatch.setattr(resources, "_workers", None)
    monkeypatch.setattr(threading.Thread, "start", one_alone)
    done: list[int] = []
    jobs: list[Callable[[], None]] = [lambda n=n: done.append(n) for n in range(20)]  # type: ignore[misc]
    assert run_jobs(jobs, 4, False, None) == 2
    assert sorted(done) == list(range(20))
