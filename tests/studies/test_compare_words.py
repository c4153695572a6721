"""What ``attncli.compare`` says: sentences, strips, hints, and the names that it understands."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import attncli
from attncli.reports.blocks import Table, Text
from attncli.reports.expect import expect_blocks
from attncli.studies.compare import Comparison, Explanation

RNG = np.random.default_rng(10)


def drawn(*shape: int) -> Any:
    """Query, key and value of one shape, float32."""
    return RNG.normal(size=(3, *shape)).astype(np.float32)


def page(found: Comparison) -> list[str]:
    """The lines that a reader sees, but for the table."""
    blocks = expect_blocks(found, "it")
    return [line for block in blocks if isinstance(block, Text) for line in block.lines]


def told(
    problem: dict[str, Any], said: list[Explanation], verdict: str, *located: str
) -> Comparison:
    """What is said of a wrong output that is explained in these ways."""
    output = attncli.attend(**problem).output + 1
    found = attncli.compare(output, problem, explain=False)
    return Comparison(found.problem, found.candidate, found.stages, said, located, (), verdict)


def explaining(*options: str, left: float = 0.0, passed: bool = True, words: str = "") -> Any:
    return Explanation(options, words, left if passed else None, passed, share=left)


# -- strips -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "rows"), [(1, 1), (2, 24), (12, 700), (40, 3), (128, 20000)])
def test_strips_fit_80_columns(heads: int, rows: int) -> None:
    q, k, v = drawn(heads, 4, 8)
    q = np.concatenate([q] * (rows // 4 + 1), 1)[:, :rows]
    output = attncli.attend(q, k, v).output
    output[:, -1] += 1
    strips = page(attncli.compare(output, {"query": q, "key": k, "value": v}, explain=False))
    assert max(map(len, strips)) <= 80
    by_head = "  ".join(strips[next(n for n, s in enumerate(strips) if "by head" in s) :])
    marks = re.findall(r"(\d+) [▁-█]", by_head)
    assert marks == [str(n) for n in range(heads)]
    assert any(f"error by row, {attncli.errors.counted(rows, 'row')} " in s for s in strips)
    assert any(s.endswith(f"  first bad row {rows - 1}") for s in strips)


def test_one_row_is_one_row() -> None:
    q, k, v = drawn(1, 8)
    found = attncli.compare(np.ones((1, 8)), {"query": q, "key": k, "value": v}, explain=False)
    assert "1 of 1 row, " in found.sentence


# -- the table, and notes -----------------------------------------------------------------------


def test_stages_stand_in_the_order_in_which_they_are_computed() -> None:
    q, k, v = drawn(2, 5, 8)
    r = attncli.attend(q, k, v, want=("output", "lse", "weights", "scores", "gradients"))
    assert r.gradients is not None
    given = {"grad_query": r.gradients.query, "output": r.output, "weights": r.weights}
    given |= {"lse": r.lse, "scores": r.stages["scores"]}
    problem = {"query": q, "key": k, "value": v}
    found = attncli.compare(given, problem, grad_output="ones")
    assert found.passed
    order = ["scores", "lse", "weights", "output", "grad_query"]
    assert list(found.stages) == order
    table = next(block for block in expect_blocks(found, "it") if isinstance(block, Table))
    assert list(table.labels) == order


def test_each_note_is_a_line_of_its_own() -> None:
    q, k, v = drawn(2, 5, 8)
    r = attncli.attend(q, k, v, want=("output", "weights"))
    wrong = {"output": r.output.swapaxes(0, 1) + 1, "weights": r.weights[None]}
    lines = page(attncli.compare(wrong, {"query": q, "key": k, "value": v}, explain=False))
    assert "the output (5, 2, 8) is read as (L, H, D)" in lines
    assert "the weights (1, 2, 5, 5) are read as (B, H, L, D)" in lines
    assert not any(";" in line for line in lines)


def test_a_copy_in_float64_of_float32_is_no_news() -> None:
    q, k, v = drawn(2, 9, 8)
    problem = {"query": q, "key": k, "value": v}
    found = attncli.compare(attncli.attend(**problem).output.astype(np.float64), problem)
    assert found.passed and not found.notes
    assert found.stages["output"].own == np.float32


# -- explanations -------------------------------------------------------------------------------


def test_what_cannot_be_told_apart_is_one_sentence() -> None:
    q, k, v = drawn(2, 9, 8)
    both = [explaining("--mask", "prefix(2)"), explaining("--mask", "prefix(3)")]
    said = told({"query": q, "key": k, "value": v}, both, "ambiguous").sentence
    assert said.endswith("tell them apart: --mask 'prefix(2)'; --mask 'prefix(3)'")


def test_a_long_list_is_whole_in_data_alone() -> None:
    q, k, v = drawn(70, 8)
    ids = ", ".join(map(str, np.repeat([0, 1, 2], [1, 63, 6])))
    mask = f"causal & segments({ids}) & prefix(3)"
    problem = {"query": q, "key": k, "value": v}
    found = told(problem, [explaining("--mask", mask)], "explained")
    assert found.sentence.endswith("--mask 'causal & segments(0, 1, 1, …, 2) & prefix(3)'")
    assert found.data()["explanations"][0]["options"] == ["--mask", mask]
    short = [explaining("--mask", "segments(0, 0, 0, 1, 1, 1, 2, 2)")]
    assert "segments(0, 0, 0, 1, 1, 1, 2, 2)" in told(problem, short, "explained").sentence


@pytest.mark.parametrize(
    ("left", "located", "shown"), [(0.2, (), True), (0.5, (), False), (0.2, ("row 1",), False)]
)
def test_the_nearest_is_shown_where_it_is_near(
    left: float, located: tuple[str, ...], shown: bool
) -> None:
    q, k, v = drawn(2, 9, 8)
    near = [explaining("--scale", "1", left=left, passed=False)]
    said = told({"query": q, "key": k, "value": v}, near, "located", *located).sentence
    assert ("nearest, each leaving a part: --scale 1 (leaves 20% of the error)" in said) is shown


# -- what does not fit --------------------------------------------------------------------------


def refused(candidate: Any, problem: dict[str, Any], **more: Any) -> attncli.errors.InputError:
    with pytest.raises(attncli.errors.InputError) as caught:
        attncli.compare(candidate, problem, **more)
    return caught.value


BATCHES = (3, 2, 24, 8)  # of queries; there are 40 keys, and values of width 6
HINTS = [
    ("output", (3, 24, 6), "(3, 24, 6) is one head of (3, 2, 24, 6): give all of them"),
    ("output", (2, 24, 6), "(2, 24, 6) is one batch element of (3, 2, 24, 6): give all of them"),
    ("output", (24, 6), "(24, 6) is one head of one batch element of (3, 2, 24, 6): give all of"),
    ("lse", (2, 24), "(2, 24) is one batch element of (3, 2, 24): give all of them"),
    ("weights", (3, 2, 24, 6), "(3, 2, 24, 6) is how the output is: give the weights, (3, 2, 24, "),
    ("lse", (3, 2, 24, 40), "(3, 2, 24, 40) is how the scores are: give the lse, (3, 2, 24)"),
    ("grad_key", (3, 2, 24, 8), "(3, 2, 24, 8) is how the grad_query is: give the grad_key, (3, 2"),
    ("output", (3, 2, 30, 6), "its dimension 2 is 30, not 24: is it the answer to another problem"),
    ("output", (6, 24, 2, 3), "it has as many numbers, but in an order that nothing here knows"),
    ("output", (7, 7), "give a number for each query and channel of each head, (3, 2, 24, 6)"),
    ("weights", (7, 7), "give a number for each query and key of each head, (3, 2, 24, 40)"),
]


@pytest.mark.parametrize(("stage", "shape", "hint"), HINTS)
def test_the_hint_is_of_the_stage_that_does_not_fit(
    stage: str, shape: tuple[int, ...], hint: str
) -> None:
    problem = {
        "query": RNG.normal(size=BATCHES), "key": RNG.normal(size=(3, 2, 40, 8)),
        "value": RNG.normal(size=(3, 2, 40, 6)),
    }  # fmt: skip
    error = refused({stage: np.zeros(shape)}, problem, grad_output="ones")
    assert error.hint.startswith(hint)
    be = "are" if stage == "weights" else "is"
    assert error.message.startswith(f"the {stage} to be judged {be} {shape}, but (3, 2, ")


def test_one_head_of_an_unbatched_problem() -> None:
    q, k, v = drawn(2, 24, 8)
    problem = {"query": q, "key": k, "value": v}
    output = attncli.attend(**problem).output
    assert refused(output[0], problem).hint == "(24, 8) is one head of (2, 24, 8): give all of them"


def test_a_last_dimension_of_one_is_an_lse() -> None:
    q, k, v = drawn(3, 2, 5, 8)
    lse = attncli.attend(q, k, v, want=("lse",)).lse[..., None]
    assert attncli.compare({"lse": lse}, {"query": q, "key": k, "value": v}).passed


# -- Python's words -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"),
    [("keys", "did you mean 'key'?"), ("masks", "did you mean 'mask'?"),
     ("is_causal", 'say mask="causal"'), ("causal", 'say mask="causal"'),
     ("softmax_scale", "it is called 'scale' here"), ("k", "it is called 'key' here"),
     ("enable_gqa", "leave it out: query heads share"), ("dropout_p", "leave it out: nothing"),
     ("xyzzy", "(one of query, key, value, mask, ")],
)  # fmt: skip
def test_an_unknown_argument_of_the_problem_has_a_hint(name: str, hint: str) -> None:
    q = drawn(2, 5, 8)[0]
    error = refused(q, {"query": q, name: True})
    assert error.message == f"no argument '{name}'"
    assert error.hint.startswith(hint)


def test_a_problem_without_a_query_is_told_so() -> None:
    q = drawn(2, 5, 8)[0]
    assert refused(q, {"key": q}).message == "the expected problem has no query"


def test_gradients_without_an_upstream_one_are_told_in_python() -> None:
    q, k, v = drawn(2, 5, 8)
    problem = {"query": q, "key": k, "value": v}
    error = refused({"grad_query": q}, problem)
    assert 'grad_output="ones"' in error.hint and "--" not in str(error)
    gradients = attncli.attend(**problem, want=("gradients",), grad_output="ones").gradients
    assert gradients is not None
    assert attncli.compare({"grad_query": gradients.query}, problem, grad_output="ones").passed


@pytest.mark.parametrize("style", ["half", "interleaved"])
def test_gradients_before_rope_pass_and_wrong_ones_do_not(style: str) -> None:
    q, k, v = drawn(2, 9, 8)
    problem = {"query": q, "key": k, "value": v, "rope": attncli.Rope(style=style)}
    found = attncli.attend(**problem, want=("gradients",), grad_output="ones").gradients
    assert found is not None
    right = {"grad_query": found.query, "grad_key": found.key, "grad_value": found.value}
    assert attncli.compare(right, problem, grad_output="ones").passed
    for name, array in right.items():
        wrong = array.copy()
        wrong[1, 4] *= 1 + 1e-3
        judged = attncli.compare(right | {name: wrong}, problem, grad_output="ones", explain=False)
        assert [n for n, stage in judged.stages.items() if not stage.passed] == [name]


def test_the_verdict_without_explanations() -> None:
    q, k, v = drawn(2, 5, 8)
    problem = {"query": q, "key": k, "value": v}
    output = attncli.attend(**problem).output
    assert attncli.compare(output, problem, explain=False).verdict == "passed"
    assert attncli.compare(output + 1, problem, explain=False).verdict == "unexplained"


def test_none_is_no_candidate() -> None:
    q = drawn(2, 5, 8)[0]
    assert refused(None, {"query": q}).message == "the candidate is None"
    assert refused({"lse": None}, {"query": q}).message == "the candidate's 'lse' is None"


def test_the_names_that_files_know_are_understood() -> None:
    q, k, v = drawn(2, 5, 8)
    problem = {"query": q, "key": k, "value": v}
    r = attncli.attend(**problem, want=("output", "lse", "gradients"), grad_output="ones")
    assert r.gradients is not None
    given = {
        "out": r.output,
        "softmax_lse": r.lse,
        "dq": r.gradients.query,
        "dV": r.gradients.value,
    }
    found = attncli.compare(given, problem, grad_output="ones")
    assert found.passed
    assert list(found.stages) == ["lse", "output", "grad_value", "grad_query"]
    error = refused({"out": r.output, "output": r.output}, problem)
    assert error.message == "'out' and 'output' are both the output"
