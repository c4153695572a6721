"""What kernels get wrong is found, and nothing certain that is said of it is wrong."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import pytest

import attncli
from tests.support import matrix
from tests.support.faults import VISIBLE, Fault, distance, table

FAULTS = table()
HALVES = ("float16", "bfloat16")
every_fault = pytest.mark.parametrize("row", FAULTS, ids=lambda row: row.name)


def test_every_row_has_a_name_of_its_own() -> None:
    assert len({row.name for row in FAULTS}) == len(FAULTS) >= 120


@every_fault
def test_a_fault_is_visible_and_the_question_is_said_as_it_is_meant(row: Fault) -> None:
    """By a truth that shares nothing with attncli, and agrees with it."""
    for dtype in matrix.DTYPES:
        assert row.seeded(0, dtype).ratio() >= VISIBLE or dtype in row.hidden, dtype
    case = row.seeded(0, "float32")
    with warnings.catch_warnings(action="ignore"):
        found = attncli.attend(**case.arguments).output
    if case.packed:
        found = found.reshape(*found.shape[:2], case.asked.shape[1], -1).swapaxes(1, 2)
    right = case.right()["output"]
    assert distance(found, right) <= 3 * distance(case.honest()["output"], right)


@every_fault
def test_a_fault_is_found_and_what_is_said_of_it_is_right(row: Fault) -> None:
    outcome = matrix.judged(row, "float32", 0)
    assert outcome.kind not in ("wrong", "missed"), outcome.said


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("row", FAULTS[::6], ids=lambda row: row.name)
def test_so_it_is_in_half_precision(row: Fault, dtype: str) -> None:
    outcome = matrix.judged(row, dtype, 0)
    assert outcome.kind not in ("wrong", "missed"), outcome.said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "seed"), [("float32", 1), ("float32", 2), ("float16", 1), ("bfloat16", 2)]
)
@every_fault
def test_so_it_is_with_other_numbers(row: Fault, dtype: str, seed: int) -> None:
    outcome = matrix.judged(row, dtype, seed)
    assert outcome.kind not in ("wrong", "missed"), outcome.said


HONEST = ("float64", *matrix.DTYPES)


def failures(every: int, seeds: int = 1, dtypes: tuple[str, ...] = HONEST) -> tuple[int, list[str]]:
    tried, failed = 0, []
    for one, found in matrix.alarms("", dtypes, seeds, every):
        tried += 1
        if not found.passed and not one.strained:
            failed.append(f"{one.name}: {found.sentence}")
    return tried, failed


def test_right_answers_pass() -> None:
    tried, failed = failures(every=17)
    assert tried >= 100
    assert not failed, "\n".join(failed)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", HONEST)
def test_all_right_answers_pass(dtype: str) -> None:
    tried, failed = failures(every=1, seeds=2, dtypes=(dtype,))
    assert tried >= 500
    assert not failed, "\n".join(failed)


def test_a_diagnosis_is_read_for_what_it_says() -> None:
    """The table's own judgement can fail: another answer is not taken for a right one."""
    right = {row.name: row.right for row in FAULTS}
    corner = right["causal top-left for bottom-right"]
    assert corner("--mask causal(top_left) | the other corner")
    assert not corner("--mask causal(bottom_right) | ")
    assert right["scale 1/D"]("--scale 0.0208333 | ")
    assert not right["scale 1/D"]("--scale 0.144 | ")
    both = right["no scale and the wrong corner"]
    assert both("--scale none --mask causal(top_left) | ")
    assert not both("--scale none | ")
    assert matrix.kind_of("explained", [True], "") == "named"
    assert matrix.kind_of("explained", [False], "") == "wrong"
    assert matrix.kind_of("ambiguous", [False, False], "") == "wrong"
    assert matrix.kind_of("located", [False], "only rows from 40 on are wrong") == "vague"
    assert matrix.kind_of("located", [False], "dropout was left on") == "wrong"
    assert matrix.kind_of("passed", [], "") == "missed"


def test_options_that_explain_are_typed_and_give_the_candidate() -> None:
    row = next(row for row in FAULTS if row.name == "scale none")
    case = row.seeded(0, "float32")

    class Said(NamedTuple):
        options: tuple[str, ...]
        words: str = ""
        max_error: float = 1e-5

    assert matrix.repeated(case, Said(("--scale", "none"))) is True
    assert matrix.repeated(case, Said(("--scale", "0.9"))) is False
    assert matrix.repeated(case, Said(("--scale", "0.9"), "and a tile is skipped")) is None


def test_the_kernel_computes_what_numpy_does() -> None:
    """The table's truth, once more, from loops."""
    case = next(row for row in FAULTS if row.name == "another softcap").seeded(0, "float32")
    asked, right = case.asked, case.right()
    b, h, i = 1, 2, 77
    z = [
        50 * np.tanh(float(asked.query[b, h, i] @ asked.key[b, h, j]) * asked.factor / 50)
        for j in range(i + 1)
    ]
    p = np.exp(np.array(z) - max(z))
    np.testing.assert_allclose(
        right["output"][b, h, i], p @ asked.value[b, h, : i + 1] / p.sum(), rtol=1e-4, atol=1e-5
    )
