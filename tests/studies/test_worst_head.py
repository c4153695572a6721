"""The errors of one head, cell by cell: those that judging saw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.attention import definition
from attncli.reports.blocks import Shaded
from attncli.reports.pictures import error_pictures
from attncli.studies import attend
from attncli.studies.attend import posed
from attncli.studies.compare import Comparison, compare
from attncli.studies.compare.worst import worst_head

B, H, L, S, D = 2, 3, 24, 40, 8
RNG = np.random.default_rng(0)
TENSORS = [RNG.normal(size=(B, H, n, D)).astype(np.float32) for n in (L, S, S)]
PROBLEM = posed(*TENSORS, mask="causal(bottom_right)")


def judged(name: str, change: Any, **more: Any) -> Comparison:
    result = attend.solve(PROBLEM, want=(name,))
    array = np.array(result.output if name == "output" else result.attended.stages[name])
    change(array)
    return compare(PROBLEM, {name: array}, explain=False, **more)


@pytest.mark.parametrize("name", ["output", "weights", "scores"])
@pytest.mark.parametrize("most", [512, 5])
def test_each_block_is_the_largest_error_of_its_cells(name: str, most: int) -> None:
    def change(array: Any) -> None:
        array[0, 2, 3, 4] += 0.1
        array[1, 1, 10:] += RNG.normal(size=array[1, 1, 10:].shape)

    one = judged(name, change)
    stage = one.stages[name]
    found = worst_head(one, stage, most)
    assert found is not None and (found.batch, found.head) == (1, 1)
    made = definition.stages(PROBLEM, 1, 1)
    value = PROBLEM.value[1, 1].astype(np.float64)
    right = made[name] if name != "output" else made["weights"] @ value
    error = np.abs(one.candidate.stages[name][1, 1] - right)
    if name == "scores":
        error[~made["keep"]] = 0
    for r, (i0, i1) in enumerate(zip(found.row_edges, found.row_edges[1:], strict=False)):
        for c, (j0, j1) in enumerate(zip(found.column_edges, found.column_edges[1:], strict=False)):
            assert found.values[r, c] == pytest.approx(error[i0:i1, j0:j1].max(), abs=1e-12)
    assert found.values.max() == pytest.approx(stage.error[1, 1].max())
    assert found.row_edges[-1] == L and found.column_edges[-1] == error.shape[1]


def test_what_is_no_number_is_infinitely_off() -> None:
    def change(array: Any) -> None:
        array[1, 0, 5, 6] = np.nan

    one = judged("output", change)
    found = worst_head(one, one.stages["output"], 512)
    assert found is not None and np.argwhere(np.isinf(found.values)).tolist() == [[5, 6]]


def test_a_picture_of_the_head_that_is_off_and_of_none_that_is_right() -> None:
    def change(array: Any) -> None:
        array[0, 2, :, 5] += 1

    def cells(one: Comparison) -> list[Shaded]:
        drawn = error_pictures(one, "mine.npy")
        return [p for p in drawn if isinstance(p, Shaded) and p.rows != "batch/head"]

    (drawn,) = cells(judged("output", change))
    assert drawn.title == "output error · batch 0 · head 2"
    assert (drawn.rows, drawn.columns, drawn.values.shape) == ("channel", "query", (D, L))
    assert (drawn.values[5] > 0.9).all() and (np.delete(drawn.values, 5, 0) < 1e-5).all()
    assert not cells(judged("output", lambda array: None))
    lse = attend.solve(PROBLEM, want=("lse",)).attended.lse + 1  # of which a row has one number
    assert not cells(compare(PROBLEM, {"lse": lse}, explain=False))
