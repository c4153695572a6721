"""With the lse beside the output a fault is found as well as without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import attncli
from tests.support.faults import ask, case
from tests.support.faults_kernel import Kernel, Question

LATE = np.s_[:70]  # more than the first tile


def asked(seed: int = 5) -> Question:
    """2 batch elements, 4 heads, 96 queries, 150 keys, float32."""
    shape = {"batch": 2, "heads": 4, "queries": 96, "keys": 150}
    return ask(np.random.default_rng(seed), np.float32, **shape)


def hiding(keys: slice, rows: slice) -> Question:
    """The question with a mask tensor that hides some keys from some rows."""
    question = asked().hiding(keys, rows)
    keep = np.broadcast_to(question.keep, question.shape)
    return replace(question, said={**question.said, "attn_mask": keep})


def told(question: Question, made: dict[str, Any]) -> str:
    """What is said of an answer, in a line; without the lse the same is said."""
    arguments = case(question).arguments
    found = attncli.compare(made, arguments)
    assert found.verdict in ("located", "explained"), found.sentence
    alone = attncli.compare(made["output"], arguments)
    words = [one.words for one in alone.explanations if one.passed]
    assert alone.passed or any(one.words in (*words, "") for one in found.explanations), (
        found.sentence,
        alone.sentence,
    )
    return found.sentence


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        (Kernel(rescale_sum=False), "the denominator is"),
        (Kernel(rescale_output=False), "the accumulator is"),
        (Kernel(rescale_sum=False, rescale_output=False), "the accumulator and denominator is"),
    ],
    ids=["denominator", "accumulator", "both"],
)
def test_a_sum_that_is_not_rescaled(kernel: Kernel, what: str) -> None:
    said = told(asked(), kernel(asked()))
    assert f"missing rescale: {what}" in said
    assert "tile of 64 keys" in said


def test_an_lse_alone_of_a_denominator_that_is_not_rescaled() -> None:
    made = Kernel(rescale_sum=False)(asked())
    found = attncli.compare({"lse": made["lse"]}, case(asked()).arguments)
    assert "missing rescale: the denominator is" in found.sentence


def test_a_denominator_that_is_not_rescaled_beside_an_lse_that_is_right() -> None:
    made = Kernel(rescale_sum=False)(asked()) | {"lse": Kernel()(asked())["lse"]}
    found = attncli.compare(made, case(asked()).arguments)
    assert found.stages["lse"].passed
    assert "missing rescale: the denominator" in found.sentence


@pytest.mark.parametrize("stage", ["output", "lse"])
def test_one_stage_lies_otherwise(stage: str) -> None:
    made = Kernel()(asked())
    array = made[stage]
    made[stage] = np.ascontiguousarray(array.swapaxes(1, 2)).reshape(array.shape)
    found = attncli.compare(made, case(asked()).arguments)
    assert "heads and rows are transposed" in found.sentence
    assert f"(the {stage} alone)" in found.sentence
    assert "is reproduced" in found.sentence


def test_all_stages_lie_otherwise() -> None:
    made = {
        name: np.ascontiguousarray(array.swapaxes(1, 2)).reshape(array.shape)
        for name, array in Kernel()(asked()).items()
    }
    found = attncli.compare(made, case(asked()).arguments)
    assert "heads and rows are transposed" in found.sentence
    assert "alone" not in found.sentence


@pytest.mark.parametrize("fill", [-1e9, -1e30], ids=["-1e9", "-1e30"])
def test_a_finite_number_in_place_of_minus_infinity(fill: float) -> None:
    question = hiding(np.s_[:], np.s_[:20])  # these rows see nothing
    found = attncli.compare(Kernel(fill=fill)(question), case(question).arguments)
    assert "is reproduced" in found.sentence
    assert "the lse of rows that see nothing is −1e" in found.sentence
    assert "rows that see nothing are the mean of all values" in found.sentence


@pytest.mark.parametrize("stages", [("output",), ("lse",), ("output", "lse")], ids=str)
def test_a_first_tile_that_is_hidden(stages: tuple[str, ...]) -> None:
    question = hiding(LATE, np.s_[:48])  # the first 48 rows see keys from 70 on
    made = Kernel()(question)
    for array in made.values():
        array[:, :, :48] = np.nan
    found = attncli.compare({name: made[name] for name in stages}, case(question).arguments)
    assert "rows that see no key of the first tile are NaN" in found.sentence


def test_rows_that_see_nothing_at_all_are_called_so() -> None:
    question = hiding(np.s_[:], np.s_[:20])
    made = Kernel(dead=np.nan)(question)["output"]
    found = attncli.compare(made, case(question).arguments)
    assert found.verdict == "located"
    assert "rows that see nothing are NaN, not 0" in found.sentence


@pytest.mark.parametrize("part", ["window(16)", "alibi", "segments(0, 0, 1, 1)", "~window(2, 2)"])
def test_a_corner_that_is_said_once_holds_for_each_part(part: str) -> None:
    """Parts are left out and put back one by one: none may lose its corner."""
    rng = np.random.default_rng(2)
    text = "segments" in part
    queries, keys = (2, 4) if text else (24, 40)
    q, k, v = (rng.normal(size=(2, n, 8)).astype(np.float32) for n in (queries, keys, keys))
    problem = {"query": q, "key": k, "value": v, "mask": f"causal(bottom_right) & {part}"}
    made = attncli.attend(**problem, softcap=2.0).output
    found = attncli.compare(made, problem)
    assert any("--softcap" in one.options for one in found.explanations), found.sentence


def test_a_window_off_by_one_beside_a_corner_that_is_said_once() -> None:
    rng = np.random.default_rng(3)
    q, k, v = (rng.normal(size=(2, n, 8)).astype(np.float32) for n in (24, 40, 40))
    problem = {"query": q, "key": k, "value": v}
    made = attncli.attend(**problem, mask="causal(bottom_right) & window(9)").output
    found = attncli.compare(made, {**problem, "mask": "causal(bottom_right) & window(8)"})
    option = found.explanations[0].options
    assert found.verdict == "explained"
    again = attncli.attend(**problem, mask=option[option.index("--mask") + 1]).output
    np.testing.assert_array_equal(again, made)
