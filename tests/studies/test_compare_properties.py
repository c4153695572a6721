"""Laws of the judge: what is right passes however it was computed, and an error is where it is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attncli.attention.problem import Problem
from attncli.measures import budget
from attncli.render.cells import columns_of
from attncli.reports.expect import stages_table
from attncli.studies.attend import solve
from attncli.studies.compare import Comparison, Tolerance, compare
from attncli.studies.compare.reading import Reading, readings
from tests.support.engines import ENGINES, missing
from tests.support.problems import DTYPES, problems, random_problem

WANT = ("output", "lse", "weights")
SOURCES = ("reference", "numpy", "torch")


def times(quick: int, slow: int) -> Callable[[Any], Any]:
    """Run a law on a few problems in a quick round, on many in a slow one."""
    rounds = [
        pytest.param(quick, id=f"{quick}"), pytest.param(slow, id=f"{slow}", marks=pytest.mark.slow)
    ]  # fmt: skip
    return pytest.mark.parametrize("examples", rounds)


def hold(law: Callable[..., None], examples: int, **drawn: st.SearchStrategy[Any]) -> None:
    """Hold a law against so many drawn examples."""
    settings(max_examples=examples, deadline=None)(given(**drawn)(law))()


def results(problem: Problem, engine: str, **options: Any) -> dict[str, np.ndarray]:
    """What an engine makes of a problem, in its shape family."""
    with warnings.catch_warnings(action="ignore"):
        result = solve(problem, want=WANT, **ENGINES[engine], **options)
    found = {"output": result.output, "lse": result.lse, "weights": result.weights}
    return {name: array for name, array in found.items() if array is not None}


# -- what is right passes -----------------------------------------------------------------------


@pytest.mark.parametrize("engine", SOURCES)
@times(100, 1000)  # of each engine
def test_our_own_engines_are_right(engine: str, examples: int) -> None:
    if (reason := missing(engine)) is not None:
        pytest.skip(reason)

    def law(problem: Problem) -> None:
        found = compare(problem, results(problem, engine), explain=False)
        assert found.passed, str(found)

    hold(law, examples, problem=problems())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@times(40, 400)
def test_sdpa_of_pytorch_is_right(dtype: str, examples: int) -> None:
    """The one exception, rows that see nothing, is asked of our own engines alone."""
    torch = pytest.importorskip("torch", reason="SDPA is PyTorch's")
    from tests.support.honest import from_torch, to_torch

    def law(problem: Problem) -> None:
        keep = problem.mask.dense()
        assume(keep.any(-1).all())
        p = replace(problem, softcap=None, sink=None)
        tensors = [to_torch(a) for a in (p.query, p.key, p.value)]
        if p.mask.has_bias:
            mask = torch.from_numpy(p.mask.tensor()).to(tensors[0].dtype)
            # a bias in a half is another bias
            assume(dtype == "float32" or (mask.double().numpy() == p.mask.tensor()).all())
        else:
            mask = None if keep.all() else torch.from_numpy(keep)
        with torch.no_grad():
            found = torch.nn.functional.scaled_dot_product_attention(
                *tensors, attn_mask=mask, scale=p.scale, enable_gqa=True
            )
        judged = compare(p, {"output": from_torch(found)}, explain=False)
        assert judged.passed, str(judged)

    hold(law, examples, problem=problems((dtype,)))


# -- it does not matter how it is written -------------------------------------------------------


def told(problem: Problem, candidates: Any, **options: Any) -> Any:
    """The numbers of a comparison, without its notes."""
    data = compare(problem, candidates, explain=False, **options).data()
    data.pop("notes", None)
    return data


def wrong(problem: Problem, seed: int) -> dict[str, np.ndarray]:
    """A candidate with an error in some cells, output and weights."""
    rng = np.random.default_rng(seed)
    found = results(problem, "numpy")
    found.pop("lse")
    for name, array in found.items():
        off = rng.normal(size=array.shape) * (rng.random(array.shape) < 0.1)
        found[name] = (array + off).astype(array.dtype)
    return found


def written(reading: Reading, array: np.ndarray) -> np.ndarray:
    """A canonical array as a reading expects it."""
    places = reading.move(np.arange(array.size).reshape(reading.shape))
    flat = np.empty(array.size, array.dtype)
    flat[places.ravel()] = array.ravel()
    return flat.reshape(reading.shape)


@settings(max_examples=60, deadline=None)
@given(problem=problems(), seed=st.integers(0, 99))
def test_any_layout_that_fits_is_judged_alike(problem: Problem, seed: int) -> None:
    for name, array in wrong(problem, seed).items():
        expected = told(problem, {name: array})
        ways = list(readings(array.shape))
        for way in ways:
            other = written(way, array)
            meant = {one.move(other).tobytes() for one in ways if one.shape == way.shape}
            if len(meant) == 1:
                assert told(problem, {name: other}) == expected, way.words


@settings(max_examples=40, deadline=None)
@given(problem=problems(("float32",)), seed=st.integers(0, 99))
def test_float32_in_float64_is_float32(problem: Problem, seed: int) -> None:
    found = wrong(problem, seed)
    wide = {name: array.astype(np.float64) for name, array in found.items()}
    assert told(problem, wide) == told(problem, found)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_change_nothing(dtype: str, threads: int) -> None:
    problem = random_problem(3, 160, 150, dtype=dtype, mask="causal(bottom_right)")
    found = wrong(problem, 0)
    assert told(problem, found, threads=threads) == told(problem, found, threads=3)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), dtype=st.sampled_from(sorted(DTYPES)), order=st.permutations("012"))
def test_the_order_of_the_batch_changes_nothing(seed: int, dtype: str, order: list[str]) -> None:
    p = random_problem(2, 9, 9, batch=3, dtype=dtype, mask="causal")
    found, places = wrong(p, seed), [int(n) for n in order]
    moved = replace(p, query=p.query[places], key=p.key[places], value=p.value[places])
    one = compare(p, found, explain=False).stages
    other = compare(moved, {n: a[places] for n, a in found.items()}, explain=False).stages
    for name in found:
        np.testing.assert_array_equal(other[name].excess, one[name].excess[places])
        np.testing.assert_array_equal(other[name].cell, one[name].cell[places])


# -- an error is where it is --------------------------------------------------------------------


@times(150, 1500)
def test_three_budgets_in_one_cell_are_found_there(examples: int) -> None:
    def law(problem: Problem, data: st.DataObject) -> None:
        found = results(problem, "numpy")["output"]
        cell = tuple(data.draw(st.integers(0, n - 1)) for n in found.shape)
        b, h, row, channel = cell
        right = budget.truth(problem, b, h).arrays["output"][row, channel]
        assume(np.isfinite(found).all() and np.isfinite(right))
        found[cell] = 1e4  # off by far: what is said to be allowed is what is allowed here
        assume(abs(right) < 1e3)
        allowed = compare(problem, {"output": found}, explain=False).stages["output"].budget
        with np.errstate(over="ignore"):
            found[cell] = right + data.draw(st.sampled_from([-3, 3])) * allowed
        assume(np.isfinite(found).all())
        judged = compare(problem, {"output": found}, explain=False).stages["output"]
        assert not judged.passed
        assert tuple(judged.worst.values()) == cell
        assert np.argwhere(judged.bad).tolist() == [list(cell[:3])]
        assert judged.excess[cell[:3]] == pytest.approx(3, rel=0.5)
        off = abs(float(found[cell]) - right)
        assert min(judged.by_head()[b, h], judged.by_row()[row]) >= 0.9 * off

    hold(law, examples, problem=problems(), data=st.data())


# -- the tolerance that is named passes ---------------------------------------------------------


@times(100, 1000)
def test_the_smallest_atol_passes_and_less_does_not(examples: int) -> None:
    def law(problem: Problem, seed: int, rtol: float) -> None:
        for name, array in wrong(problem, seed).items():
            first = Tolerance(rtol, 0.0)
            start = compare(problem, {name: array}, tolerance=first, explain=False)
            atol = start.shown.smallest_atol
            assume(np.isfinite(atol) and atol > 1e-12 * start.shown.max_error)
            for size, passes in ((atol, True), (0.99 * atol, False), *reported(start)):
                held = compare(
                    problem, {name: array}, tolerance=Tolerance(rtol, size), explain=False
                )
                assert held.passed is passes, (size, held.shown.max_error)

    rtols = st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1.0])
    hold(law, examples, problem=problems(), seed=st.integers(0, 99), rtol=rtols)


def reported(one: Comparison) -> list[tuple[float, bool]]:
    """The smallest atol as sentences and tables have it: it passes when it is typed."""
    said = re.search(r"smallest atol that passes: (\S+)", str(one))
    table = stages_table(one)
    columns = zip(table.columns, columns_of(table), strict=True)
    cell = next(cells[0] for column, cells in columns if column.sub == "atol")
    return [(float(text), True) for text in (cell, *(said.groups() if said else ()))]
