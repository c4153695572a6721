"""The torch engine on a GPU: the same promises, skipped where there is no GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from attncli.attention import definition
from attncli.attention.problem import STAGES, Problem
from attncli.attention.rows import Rows
from attncli.errors import Unavailable
from attncli.studies.attend import Result, solve
from tests.support.budget import assert_within_budget, rows_are_right
from tests.support.problems import problems, random_problem

torch = pytest.importorskip("torch")

from attncli.engines.torch import device, forward, tiles  # noqa: E402

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible to PyTorch here"),
]


def run(problem: Problem, *want: str) -> Result:
    return solve(problem, backend="torch", device="cuda", want=want or ("output",))


@given(problems())
@settings(max_examples=150, deadline=None)
def test_output_is_within_the_error_budget(problem: Problem) -> None:
    result = run(problem)
    assert result.engine.device.startswith("cuda:")
    assert_within_budget(result, ("output",))


@given(problems())
@settings(max_examples=100, deadline=None)
def test_statistics_and_stages(problem: Problem) -> None:
    assert_within_budget(run(problem, "output", "lse", *STAGES), ("output", "lse", *STAGES))
    no_sink = replace(problem, sink=None)
    result = run(no_sink, "output", "lse", "row_statistics")
    assert_within_budget(result, ("output", "lse"))
    assert result.rows is not None
    rows_are_right(no_sink, result.rows)


MASKS = [
    None, "causal(top_left)", "causal(bottom_right)", "window(130, 7, top_left)",
    "window(3, 0, bottom_right)", "padding(0, 200)", "padding(90) & causal(bottom_right)",
    "padding(0, 200) & window(20, 20, top_left)",
]  # fmt: skip
SIZES = [(150, 150, 64), (300, 150, 128), (150, 700, 80), (1, 1000, 128), (129, 257, 256)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("queries", "keys", "width"), SIZES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", [{}, {"scale": -0.2}, {"groups": 2}])
def test_the_one_pass_kernel(
    dtype: str, queries: int, keys: int, width: int, mask: str | None, options: dict[str, float]
) -> None:
    pytest.importorskip("triton")
    if mask and "200" in mask and keys < 200:
        mask = mask.replace("200", "100")
    problem = random_problem(
        heads=4, queries=queries, keys=keys, width=width, value_width=width, dtype=dtype, mask=mask,
        **options,
    )  # fmt: skip
    result = run(problem, "output", "row_statistics", "lse")
    assert result.engine.kernel.endswith("+ triton statistics")
    assert_within_budget(result, ("output", "lse"))
    assert result.rows is not None
    rows_are_right(problem, result.rows)


def test_tiles_and_the_one_pass_kernel_agree_at_length() -> None:
    pytest.importorskip("triton")
    problem = random_problem(
        heads=2, queries=4096, keys=4096, batch=1, width=128, value_width=128, dtype="bfloat16",
        mask="causal",
    )  # fmt: skip
    inputs = device.Inputs.of(problem, torch.device("cuda"))
    want = {"output", "row_statistics"}
    one, two = (
        forward.attended(problem, done, torch.device("cuda"), 0).rows
        for done in (
            forward.compute(problem, want, inputs),
            _tiles(problem, want, inputs),
        )
    )
    assert isinstance(one, Rows)
    assert isinstance(two, Rows)
    truth = definition.stages(problem, 0, 1, np.arange(0, 4096, 97))
    right = Rows.dense(truth["masked"], truth["scores"], truth["keep"])
    for rows in (one, two):
        for name in ("m", "e1", "es", "e2", "e3", "mean", "m2", "amax", "first"):
            # sums of 4096 float32 terms of size one
            np.testing.assert_allclose(
                getattr(rows, name)[0, 1, ::97], getattr(right, name), rtol=1e-4, atol=1e-4
            )
        np.testing.assert_array_equal(rows.n[0, 1, ::97], right.n)
        np.testing.assert_array_equal(rows.top_j[0, 1, ::97], right.top_j)


def _tiles(problem: Problem, want: set[str], inputs: device.Inputs) -> forward.Done:
    sheet = tiles.attend(problem, want, inputs)
    return forward.Done(sheet.output, sheet.lse, sheet.rows, {}, "tiles")


def test_an_index_that_is_not_there() -> None:
    with pytest.raises(Unavailable, match=r"cuda:99(.|\n)*there is only cuda:0"):
        solve(random_problem(), backend="torch", device="cuda:99")


def test_too_little_memory_says_so() -> None:
    problem = random_problem(heads=1, queries=64, keys=64, batch=1)
    large = random_problem(heads=1, queries=4096, keys=4096, batch=1, softcap=5.0)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(Unavailable, match=r"ran out of memory(.|\n)*--device cpu"):
            run(large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert np.isfinite(run(problem).output).all()


def test_tf32_stays_off() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        problem = random_problem(queries=64, keys=64, width=256, value_width=256, softcap=5.0)
        assert_within_budget(run(problem, "output", "lse"))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
