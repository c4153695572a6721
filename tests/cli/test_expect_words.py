"""``compute --expect``, ``--candidate`` and ``-- COMMAND``: what is said, counted and refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attncli
from attncli import files
from tests.support.program import Door, assert_bad

RNG = np.random.default_rng(10)
Q, K, V = RNG.normal(size=(3, 2, 20, 8)).astype(np.float32)
PROBLEM: dict[str, Any] = {"query": Q, "key": K, "value": V}
GRADIENTS = ("grad_query", "grad_key", "grad_value")


def right() -> dict[str, Any]:
    r = attncli.attend(**PROBLEM, want=("output", "lse", "gradients"), grad_output="ones")
    found = {name: getattr(r.gradients, name.removeprefix("grad_")) for name in GRADIENTS}
    return {"output": r.output, "lse": r.lse, **found}


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """qkv.npz; its right answer in good.npz, some wrong ones; cases with gradients in t.jsonl."""
    monkeypatch.chdir(tmp_path)
    good = right()
    np.savez("qkv.npz", **PROBLEM)
    np.savez("good.npz", output=good["output"], lse=good["lse"])
    np.save("lse.npy", good["lse"] + 1)
    np.save("head.npy", good["output"][0])
    np.savez("mixed.npz", output=good["output"], weights=good["output"])
    np.savez("own.npz", **PROBLEM, expected=good["output"], expected_lse=good["lse"] + 1)
    files.write("t.safetensors", {**PROBLEM, "ones": np.ones_like(Q), **good})
    tensors = {name: f"t.safetensors::{name}" for name in PROBLEM}
    expected = {f"expected_{name}": f"t.safetensors::{name}" for name in GRADIENTS}
    expected |= {"expected": "t.safetensors::output", "grad_output": "t.safetensors::ones"}
    lines = [
        {"id": "forward", "kind": "plain", **tensors},
        {"id": "both", "kind": "gradients", **tensors, **expected},
        {"id": "again", "kind": "gradients", **tensors, **expected},
    ]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Path("answers").mkdir()


def answers(**stages: Any) -> None:
    """Answer all cases, and the lone problem, with these stages."""
    for name in ("forward", "both", "again", "1"):
        np.savez(f"answers/{name}.npz", **stages)


# -- whose it is --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name"),
    [(("qkv.npz", "--expect", "good.npz"), "good.npz is right: "),
     (("qkv.npz", "--expect-lse", "lse.npy"), "lse.npy differs in lse: "),
     (("qkv.npz", "--expect", "good.npz", "--expect-lse", "lse.npy"), "lse.npy differs in lse: "),
     (("qkv.npz", "--expect", "good.npz::output"), "good.npz::output is right: "),
     (("own.npz",), "expected_lse of own.npz differs in lse: "),
     (("own.npz", "--expect-lse", "good.npz"), "what was given is right: ")],
)  # fmt: skip
def test_what_is_judged_goes_by_its_name(door: Door, call: tuple[str, ...], name: str) -> None:
    ran = door("compute", *call)
    assert ran.code == int("differs" in name), ran.err
    assert f"\n{name}" in ran.out


def test_standard_input_is_called_so(attncli: Door) -> None:
    given = Path("good.npz").read_bytes()
    ran = attncli("compute", "qkv.npz", "--expect", "-", stdin=given)
    assert ran.code == 0 and "\nstandard input is right: " in ran.out


@pytest.mark.parametrize(
    ("path", "said"),
    [("mixed.npz", "mixed.npz::weights: the weights to be judged are (2, 20, 8), but (2, "),
     ("mixed.npz", "(2, 20, 8) is how the output is: give the weights, (2, 20, 20)"),
     ("head.npy", "head.npy: the output to be judged is (20, 8), but (2, 20, 8) is "),
     ("head.npy", "(20, 8) is one head of (2, 20, 8): give all of them")],
)  # fmt: skip
def test_what_does_not_fit_is_named_with_its_file(door: Door, path: str, said: str) -> None:
    assert_bad(door, "compute", "qkv.npz", "--expect", path, expected=said)


# -- what has no use ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option", ["--expect", "--expect-weights", "--expect-lse", "--expect-grad-query"]
)
def test_one_file_is_no_answer_to_many_problems(door: Door, option: str) -> None:
    given = ("compute", "t.jsonl", option, "good.npz")
    assert_bad(door, *given, expected=f"{option} has no use in NDJSON")
    assert_bad(door, *given, expected='--candidate DIR judges many, and so does "expected" in each')


@pytest.mark.parametrize("option", [("--explain", "all"), ("--rtol", "1"), ("--atol", "1")])
def test_judging_needs_something_to_judge(door: Door, option: tuple[str, str]) -> None:
    said = f"{option[0]} has no use: nothing is judged"
    assert_bad(door, "compute", "qkv.npz", *option, expected=said)
    assert door("compute", "qkv.npz", "--expect", "good.npz", *option).code == 0


def test_a_line_that_says_what_it_expects_is_explained(door: Door) -> None:
    lines = [json.loads(line) for line in Path("t.jsonl").read_text().splitlines()[1:]]
    for line in lines:
        line["mask"] = "causal"
    Path("t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ran = door("compute", "t.jsonl", "--explain", "first")
    assert ran.code == 1
    assert [bool(x["expect"].get("explanations")) for x in ran.lines] == [True, False]


# -- JSON ---------------------------------------------------------------------------------------


def test_json_holds_ours_beside_what_is_judged_only_where_it_is_asked_for(door: Door) -> None:
    bare = door("compute", "qkv.npz", "--json").data
    judged = door("compute", "qkv.npz", "--expect", "good.npz", "--json").data
    assert {"output", "weights"} <= bare.keys()
    assert bare.keys() - judged.keys() == {"output", "weights"}
    assert judged["expect"]["passed"] and not judged["warnings"]
    asked = door("compute", "qkv.npz", "--expect", "good.npz", "--json", "--include", "output").data
    assert "weights" not in asked
    # by another engine, in float32
    np.testing.assert_allclose(asked["output"], bare["output"], atol=1e-6)


# -- a lone problem -----------------------------------------------------------------------------


def test_the_answer_to_a_lone_problem_is_reported_as_with_expect(door: Door) -> None:
    wrong = attncli.attend(**PROBLEM, mask="causal").output
    np.save("wrong.npy", wrong)
    answers(output=wrong)
    expected = door("compute", "qkv.npz", "--expect", "wrong.npy")
    ran = door("compute", "qkv.npz", "--candidate", "answers")
    assert ran.code == expected.code == 1
    assert "wrong.npy differs: " in expected.out and "reproduced" in expected.out
    path = "answers/1.npz differs: "
    assert path in ran.out and "Kind" not in ran.out
    same = [x.out.partition("reproduced")[2] for x in (ran, expected)]
    assert same[0] == same[1]
    given = ("compute", "qkv.npz", "--candidate", "answers", "--json", "--explain", "none")
    data = door(*given).data
    assert data["expect"]["verdict"] == "unexplained" and "summary" not in data
    lines = door("compute", "qkv.npz", "--candidate", "answers", "--format", "ndjson").lines
    assert lines[-1]["summary"]["failed"] == 1


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [("import sys, shutil; shutil.copyfileobj(open('good.npz', 'rb'), sys.stdout.buffer)", 0,
      "\nthe command's answer is right: "),
     ("import sys; sys.exit('CUDA error')", 1, "CUDA error")],
)  # fmt: skip
def test_a_command_on_a_lone_problem(door: Door, program: str, code: int, said: str) -> None:
    ran = door("compute", "qkv.npz", "--", sys.executable, "-c", program)
    assert ran.code == code
    assert said in ran.out + ran.err and "Kind" not in ran.out


# -- what is not answered -----------------------------------------------------------------------


def test_gradients_that_are_not_answered_are_counted(door: Door) -> None:
    good = right()
    answers(output=good["output"])
    ran = door("compute", "t.jsonl", "--candidate", "answers")
    assert ran.code == 0 and "3 passed" in ran.out
    assert "2 cases: gradients not answered" in ran.out
    *lines, last = door("compute", "t.jsonl", "--candidate", "answers", "--json").lines
    assert [x.get("unanswered") for x in lines] == [None, list(GRADIENTS), list(GRADIENTS)]
    assert last["summary"]["unanswered"] == 2
    np.savez("answers/again.npz", **good)
    ran = door("compute", "t.jsonl", "--candidate", "answers")
    assert ran.code == 0 and "1 case: gradients not answered" in ran.out
    np.savez("answers/both.npz", **good)
    assert "not answered" not in door("compute", "t.jsonl", "--candidate", "answers").out


def test_gradients_alone_are_no_answer_where_the_output_is_expected(door: Door) -> None:
    good = right()
    answers(**good)
    np.savez("answers/both.npz", **{name: good[name] for name in GRADIENTS})
    ran = door("compute", "t.jsonl", "--candidate", "answers", "--json")
    assert ran.code == 1
    error = ran.lines[1]["error"]
    assert error["code"] == "no_answer"
    assert error["message"] == "the answer holds grad_query, grad_key, grad_value alone"


def test_which_failures_are_explained_is_said_where_one_could_be(door: Door) -> None:
    (answers(output=right()["output"]), Path("answers/again.npz").unlink())
    ran = door("compute", "t.jsonl", "--candidate", "answers")
    assert ran.code == 1 and "explained:" not in ran.out
    np.savez("answers/forward.npz", output=np.zeros_like(Q))
    ran = door("compute", "t.jsonl", "--candidate", "answers")
    assert "explained: the first failure of each kind" in ran.out


@pytest.mark.parametrize("name", ["attn_out", "attn_output", "result"])
def test_beside_an_lse_the_only_other_matrix_is_the_output(door: Door, name: str) -> None:
    good = right()
    for wrong in (0, 1):
        np.savez("theirs.npz", lse=good["lse"], **{name: good["output"] + wrong})
        ran = door("compute", "qkv.npz", "--expect", "theirs.npz", "--json")
        assert ran.code == wrong
        assert ran.lines[0]["expect"]["output"]["passed"] is not bool(wrong)
    ran = door("compute", "qkv.npz", "--expect", "theirs.npz", "--explain", "none")
    assert ("'result' is judged as the output" in ran.err + ran.out) is (name == "result")


def test_of_several_unknown_matrices_it_is_asked_which_is_the_output(door: Door) -> None:
    good = right()
    Path("theirs").mkdir()
    for path in ("theirs.npz", "theirs/x.npz"):
        np.savez(path, lse=good["lse"], a=good["output"], b=good["output"] + 1)
    ran = door("compute", "qkv.npz", "--expect", "theirs.npz")
    assert ran.code == 2 and "holds a, b: which of them is the output?" in ran.err
    assert "name it: --expect theirs.npz::a" in ran.err
    ran = door("compute", "qkv.npz", "--expect", "theirs.npz::a", "--expect-lse", "theirs.npz")
    assert ran.code == 0
    Path("own.jsonl").write_text(
        json.dumps({"id": "x", **{n: f"qkv.npz::{n}" for n in PROBLEM}}) + "\n"
    )
    ran = door("compute", "own.jsonl", "--candidate", "theirs")
    assert ran.code == 1 and "which of them is the output?" in ran.err


def test_in_an_answer_to_a_case_it_is_the_output_too(door: Door) -> None:
    good = right()
    Path("theirs").mkdir()
    Path("own.jsonl").write_text(
        json.dumps({"id": "x", **{n: f"qkv.npz::{n}" for n in PROBLEM}}) + "\n"
    )
    for wrong in (0, 1):
        np.savez("theirs/x.npz", lse=good["lse"], result=good["output"] + wrong)
        assert door("compute", "own.jsonl", "--candidate", "theirs").code == wrong


def test_an_error_is_said_beside_what_is_allowed_there() -> None:
    """The largest error may lie where more is allowed: then that is no reason."""
    value = np.array([[1.0], [100.0]], np.float32)
    problem = {"query": value, "key": value, "value": value, "mask": "window(0, 0)"}
    output = value + np.array([[0.01], [0.05]], np.float32)
    found = attncli.compare(output, problem, rtol=1e-3, explain=False)
    judged = found.stages["output"]
    assert not found.passed and judged.max_error <= judged.budget
    assert judged.telling == (pytest.approx(0.01, rel=1e-4), pytest.approx(1e-3))
    assert "largest error 0.05, 0.01 where 0.001 is allowed (rtol 0.001" in found.sentence


def test_python_refuses_what_is_no_stage_and_no_mask_in_words() -> None:
    good = right()
    with pytest.raises(attncli.AttnError) as error:
        attncli.compare((good["output"], good["lse"]), PROBLEM)
    assert error.value.message == "the candidate is a tuple of 2 arrays"
    for mask in (np.ones((20, 20), bool), [np.ones((20, 20), bool)], True):
        with pytest.raises(attncli.AttnError) as error:
            attncli.attend(**PROBLEM, mask=mask)
        assert "attn_mask" in str(error.value.hint)
