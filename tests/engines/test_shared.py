"""Problems divided among processes: what all make together is what one makes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attncli.attention.problem import Problem
from attncli.attention.shares import AXES, Partial, Share
from attncli.engines import How, reference
from attncli.engines import numpy as engine_room
from attncli.engines.numpy import forward
from attncli.engines.shared import part_of_keys
from attncli.errors import InputError
from attncli.studies.attend import Result, run
from tests.support.budget import assert_within_budget, rows_are_right
from tests.support.gradients_budget import assert_gradients_within_budget
from tests.support.problems import problems, random_problem
from tests.support.ranks import together

assert engine_room
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def alike(results: list[Result]) -> None:
    """All processes hold the same, to the bit."""
    for other in results[1:]:
        np.testing.assert_array_equal(other.output, results[0].output)
        np.testing.assert_array_equal(other.lse, results[0].lse)


@pytest.mark.parametrize("axis", AXES)
@given(problem=problems(), ranks=st.integers(1, 5), backend=st.sampled_from(["numpy", "auto"]))
@quick
def test_what_all_make_is_what_one_makes(
    axis: str, problem: Problem, ranks: int, backend: str
) -> None:
    stages = ("scores", "masked", "weights") if backend == "numpy" else ()
    want = ("output", "lse", "row_statistics", *stages)
    results = together(problem, axis, ranks, lambda p: run(p, want=want, backend=backend))
    alike(results)
    assert_within_budget(replace(results[0], problem=problem), ("output", "lse", *stages))
    done = results[0].attended.rows
    assert done is not None
    rows_are_right(problem, done)


@pytest.mark.parametrize("axis", AXES)
@given(problem=problems(), ranks=st.integers(1, 4), backend=st.sampled_from(["numpy", "auto"]))
@quick
def test_gradients(axis: str, problem: Problem, ranks: int, backend: str) -> None:
    rng = np.random.default_rng(0)
    p = problem
    grad = rng.normal(size=(p.batch, p.heads, p.queries, p.value_width)).astype(p.dtype)
    want = ("output", "gradients", "grad_bias", "gradient_norms")
    results = together(problem, axis, ranks, lambda p: run(p, grad, want=want, backend=backend))
    found = results[0].derived
    assert found is not None
    if any(0 in shape for shape in (problem.query.shape, problem.key.shape)):
        return
    whole = replace(results[0], problem=problem).gradients
    assert whole is not None
    assert_gradients_within_budget(problem, grad, replace(whole, biases=found.biases))


@given(problem=problems(), data=st.data())
@quick
def test_partial_sums_merge_in_any_order_and_grouping(
    problem: Problem, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 6))
    parts = [
        part_of_keys(forward, problem, Share("keys", n, count), How())[0] for n in range(count)
    ]
    while len(parts) > 1:
        a, b = data.draw(st.permutations(range(len(parts))))[:2]
        merged = parts[a].merge(parts[b])
        parts = [part for n, part in enumerate(parts) if n not in (a, b)] + [merged]
    rows_are_right(problem, parts[0].rows)
    whole = parts[0].with_sink(problem.sink)
    right = reference.attend(problem, {"row_statistics"})
    with np.errstate(over="ignore"):
        output = whole.output.astype(problem.result_dtype)
    one = run(problem, want=("output", "lse"), backend="numpy")
    attended = right._replace(output=output, lse=whole.rows.lse.astype(problem.dtype))
    assert_within_budget(replace(one, attended=attended))
    assert isinstance(whole, Partial)


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_heads_of_a_key_head_stay_together_where_they_can(ranks: int) -> None:
    for heads, groups in ((8, 8), (8, 2), (8, 4), (8, 1), (12, 4)):
        problem = random_problem(heads, 4, 4, groups=groups)
        bounds = Share("heads", 0, ranks).bounds(problem)
        assert bounds[0] == 0
        assert bounds[-1] == heads
        assert (np.diff(bounds) >= 0).all()
        for rank in range(ranks):
            part = Share("heads", rank, ranks).part(problem)
            assert part.heads % max(part.kv_heads, 1) == 0
            start = bounds[rank]
            for h in range(part.heads):
                ours = part.key[:, part.group(h)]
                np.testing.assert_array_equal(ours, problem.key[:, problem.group(start + h)])


@given(problem=problems(), ranks=st.integers(1, 14))
@quick
def test_each_process_has_keys_where_there_are_enough(problem: Problem, ranks: int) -> None:
    bounds = Share("keys", 0, ranks).bounds(problem)
    assert bounds[0] == 0 and bounds[-1] == problem.keys and len(bounds) == ranks + 1
    assert (np.diff(bounds) >= (1 if ranks <= problem.keys else 0)).all()


def test_processes_see_about_as_many_cells_each() -> None:
    problem = random_problem(1, 4000, 4000, batch=1, width=1, value_width=1, mask="causal")
    bounds = Share("keys", 0, 4).bounds(problem)
    cells = [sum(4000 - j for j in range(a, z)) for a, z in pairwise(bounds.tolist())]
    assert max(cells) < 1.3 * min(cells)  # rows are asked 512 at a time


def test_a_part_reads_views() -> None:
    problem = random_problem(4, 6, 12)
    for axis in AXES:
        part = Share(axis, 1, 2).part(problem)
        assert np.shares_memory(part.key, problem.key)
        assert np.shares_memory(part.query, problem.query)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gradients_by_keys_need_an_engine_that_starts_from_the_lse(backend: str) -> None:
    problem = random_problem()
    grad = np.ones((2, 2, 40, 8), np.float32)
    with pytest.raises(InputError, match="no process has them") as caught:
        together(problem, "keys", 2, lambda p: run(p, grad, want=("gradients",), backend=backend))
    assert "--backend numpy" in str(caught.value.hint)


def test_a_rounded_softmax_is_not_divided_by_keys() -> None:
    problem = random_problem(softmax_dtype="bfloat16")
    with pytest.raises(InputError, match="softmax in bfloat16"):
        together(problem, "keys", 2, lambda p: run(p, backend="numpy"))
    together(problem, "heads", 2, lambda p: run(p, backend="numpy"))
