"""Which engine runs when none is named, what is said of it, and what a named one says."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import attncli
from attncli import engines
from attncli.attention.gradients import upstream
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.attention.tensors import tensor_masker
from attncli.engines import AUTO, DEFAULT, ENGINES, fused
from attncli.errors import InputError, Unavailable
from attncli.studies.attend import SMALL, run, solve
from tests.support.budget import assert_within_budget
from tests.support.builds import needs_fused
from tests.support.gradients_budget import assert_gradients_within_budget
from tests.support.problems import problems
from tests.support.program import Door


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the compiled engine were there; to choose it, not to run it."""
    monkeypatch.setattr(fused, "missing", lambda: None)


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not."""
    monkeypatch.setenv(fused.VARIABLE, fused.OFF)


def posed(dtype: str = "float32", length: int = 3, width: int = 2, **options: Any) -> Problem:
    x = np.random.default_rng(0).normal(size=(length, width))
    return pose(x.astype(dtype), **options)


def chosen(problem: Problem, *want: str) -> tuple[str, str]:
    return engines.choose(engines.there(DEFAULT), problem, want or ("output",))


def chosen_backward(problem: Problem, *want: str) -> str:
    upward = upstream("ones", problem)
    return engines.choose_backward(engines.there(DEFAULT), problem, upward, want)


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("length", [1, 3, 300])
def test_what_the_compiled_engine_can_compute_it_computes(dtype: str, length: int) -> None:
    problem = posed(dtype, length, softcap=3.0, sink=[1.0])
    assert chosen(problem, "output", "lse", "row_statistics") == ("fused", "")


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize(
    ("problem", "want", "why"),
    [
        (posed("float64"), "output", "fused: it computes in float32 only"),
        (posed(dtype="float32", softmax_dtype="float16"), "output", "fused: .*float16"),
        (posed(), "weights", "fused: it makes no matrix of weights"),
        (posed(), "masked", "fused: it makes no matrix of masked"),
    ],
)
def test_what_it_cannot_compute_goes_to_numpy(problem: Problem, want: str, why: str) -> None:
    name, note = chosen(problem, want)
    assert name == "numpy"
    assert re.fullmatch(why, note)


@pytest.mark.usefixtures("hidden")
def test_where_it_is_not_there_nothing_is_said() -> None:
    assert chosen(posed()) == ("numpy", "")
    result = attncli.attend(np.ones((700, 10), np.float32))
    assert (result.engine.backend, result.engine.note) == ("numpy", "")


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_named_is_taken_or_refused(name: str) -> None:
    assert engines.choose((name,), posed(), ("output",)) == (name, "")
    for problem, want in ((posed("float64"), "output"), (posed(), "weights")):
        if ENGINES[name].partial:
            with pytest.raises(Unavailable, match=f"'{name}' cannot do this(.|\n)*--backend numpy"):
                engines.choose((name,), problem, (want,))
        else:
            assert engines.choose((name,), problem, (want,)) == (name, "")


def test_the_last_choice_can_compute_everything() -> None:
    assert set(AUTO) <= set(ENGINES)
    assert ENGINES[AUTO[-1]].backward is not None
    assert engines.missing(AUTO[-1]) is None
    assert not ENGINES[AUTO[-1]].partial


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_whether_it_is_there_is_asked_once(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    asked: list[str] = []
    ask = fused.missing
    monkeypatch.setattr(fused, "missing", lambda: asked.append("fused") or ask())
    x = np.ones((3, 2), np.float32)
    with suppress(Unavailable):
        attncli.attend(x, want=("output", "gradients"), backend=backend)
    assert asked == ["fused"]


@pytest.mark.usefixtures("there")
def test_gradients_come_from_an_engine_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "fused", ENGINES["fused"]._replace(backward=None))
    assert chosen(posed(), "output", "gradients") == ("fused", "")
    assert chosen_backward(posed()) == "numpy"
    monkeypatch.setitem(ENGINES, "fused", ENGINES["fused"]._replace(backward="fused.backward"))
    assert chosen_backward(posed()) == "fused"
    assert chosen_backward(posed("float64")) == "numpy"
    biased = posed(mask=tensor_masker(np.zeros((3, 3), np.float32)))
    assert (chosen_backward(biased), chosen_backward(biased, "biases")) == ("fused", "numpy")


@needs_fused
def test_which_engine_made_the_gradients_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "fused", ENGINES["fused"]._replace(backward=None))
    engine = solve(posed(), want=("output", "gradients")).engine
    assert (engine.backend, engine.note) == ("fused", "gradients by numpy")
    with pytest.raises(Unavailable, match="'fused' has no gradients") as caught:
        solve(posed(), want=("output", "gradients"), backend="fused")
    others = str(caught.value.hint).partition(": ")[2].split(", ")
    assert all(ENGINES[name].backward for name in others)  # what the hint says works


@needs_fused
@given(problems())
@settings(max_examples=60, deadline=None)
def test_results_and_gradients_are_right_whichever_runs(problem: Problem) -> None:
    assert_within_budget(solve(problem, want=("output", "lse", "row_statistics")))
    row = ENGINES["fused"]
    ENGINES["fused"] = row._replace(backward=None)  # numpy's, from what fused computed
    try:
        upward = upstream("random:0", problem)
        result = run(problem, upward, want=("output", "gradients", "grad_bias", "gradient_norms"))
    finally:
        ENGINES["fused"] = row
    assert result.derived is not None
    assert_gradients_within_budget(problem, upward, result.derived)


@needs_fused
def test_why_another_ran_is_said_where_it_takes_its_time() -> None:
    small, large = (np.ones((n, 8)) for n in (8, 800))
    assert 8 * 8 * 8 < SMALL < 800 * 800 * 8
    assert attncli.attend(small).engine.note == ""
    engine = attncli.attend(large).engine
    assert (engine.backend, engine.note) == ("numpy", "fused: it computes in float32 only")
    assert attncli.attend(large, backend="numpy").engine.note == ""


def test_an_unknown_name_and_another_device_are_refused() -> None:
    with pytest.raises(InputError, match=r"'fusde'(.|\n)*auto, reference, numpy, fused"):
        attncli.attend([[1.0]], backend="fusde")
    with pytest.raises(Unavailable, match=r"fused and numpy run on the CPU(.|\n)*--backend torch"):
        attncli.attend([[1.0]], device="cuda")


# -- through the door -------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Queries at float32 and at float64, large enough that the engine matters."""
    x = np.random.default_rng(0).normal(size=(600, 16))
    np.savez(tmp_path / "single.npz", query=x.astype(np.float32))
    np.savez(tmp_path / "double.npz", query=x)
    return tmp_path


def engine_of(door: Door, *arguments: str) -> dict[str, Any]:
    ran = door("compute", *arguments, "--json")
    assert ran.code == 0, ran.err
    engine: dict[str, Any] = json.loads(ran.out)["engine"]
    return engine


@needs_fused
@pytest.mark.usefixtures("saved")
def test_the_answer_says_which_ran(door: Door) -> None:
    single = engine_of(door, "single.npz")
    assert single["backend"] == "fused" and "note" not in single
    assert engine_of(door, "single.npz", "--backend", "numpy")["backend"] == "numpy"
    double = engine_of(door, "double.npz", "--backend", "auto")
    assert (double["backend"], double["note"]) == ("numpy", "fused: it computes in float32 only")
    assert "fused float32" in door("compute", "single.npz").out
    shown = " ".join(door("compute", "double.npz", "--threads", "1").out.split())
    assert "numpy float64 (fused: it computes in float32 only)" in shown
    many = door("inspect", "single.npz", "single.npz", "--json")
    assert '"backend":"numpy"' in many.out  # few enough cells for float64


@pytest.mark.usefixtures("saved", "hidden")
def test_without_it_the_same_commands_run(door: Door) -> None:
    for name in ("single.npz", "double.npz"):
        engine = engine_of(door, name)
        assert engine["backend"] == "numpy" and "note" not in engine


@pytest.mark.usefixtures("saved", "hidden")
def test_where_it_is_named_and_not_there_the_hint_works(door: Door) -> None:
    ran = door("compute", "single.npz", "--backend", "fused")
    assert (ran.code, ran.out) == (3, "")
    assert "'fused' cannot run here" in ran.err and "--backend auto" in ran.err
    assert door("compute", "single.npz", "--backend", "auto").code == 0


@needs_fused
@pytest.mark.usefixtures("saved")
def test_where_it_is_named_and_cannot_the_hint_works(door: Door) -> None:
    ran = door("compute", "double.npz", "--backend", "fused")
    assert (ran.code, ran.out) == (3, "")
    assert "it computes in float32 only" in ran.err and "--backend numpy" in ran.err
    assert door("compute", "double.npz", "--backend", "numpy").code == 0


@needs_fused
@pytest.mark.usefixtures("saved")
def test_a_build_that_does_not_run_here_is_no_silent_numpy(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fused.VARIABLE, "mmx")
    ran = door("compute", "single.npz")
    assert (ran.code, ran.out) == (3, "")
    assert "ATTNCLI_FUSED is 'mmx'" in ran.err and "portable, off" in ran.err


def test_help_says_what_the_default_is(door: Door) -> None:
    for command in ("compute", "inspect", "multihead"):
        shown = " ".join(door(command, "--help").out.split())
        assert f"--backend auto|{'|'.join(ENGINES)}" in shown
        assert f"default: auto, the first of {', '.join(AUTO)} that can" in shown
