"""``compute --cases`` and ``compute FILE.jsonl --candidate DIR`` through the door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attncli
from attncli import files
from tests.support.program import Door, Ran

RNG = np.random.default_rng(3)
Q, K, V = RNG.normal(size=(3, 1, 2, 70, 16)).astype(np.float32)
#: Some problems of two kinds: what they say beside query, key and value.
PROBLEMS: dict[str, dict[str, Any]] = {
    "plain.1": {"kind": "plain"},
    "plain.2": {"kind": "plain", "scale": 0.5},
    "windows.1": {"kind": "windows", "mask": "causal & window(8)"},
    "windows.2": {"kind": "windows", "mask": "window(3, 3)"},
}


def right(name: str, **more: Any) -> dict[str, Any]:
    """The right answers to a problem."""
    options = {n: x for n, x in {**PROBLEMS[name], **more}.items() if n != "kind"}
    result = attncli.attend(Q, K, V, **options, want=("output", "lse"))
    return {"output": result.output, "lse": result.lse.astype(np.float32)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Problems as NDJSON, tensors beside it, and the right outputs in answers/."""
    files.write(str(tmp_path / "t.safetensors"), {"q": Q, "k": K, "v": V})
    tensors = {n: f"t.safetensors::{n[0]}" for n in ("query", "key", "value")}
    lines = [{"id": name, **tensors, **said} for name, said in PROBLEMS.items()]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "answers").mkdir()
    for name in PROBLEMS:
        np.save(tmp_path / "answers" / f"{name}.npy", right(name)["output"])
    return tmp_path


def judging(door: Door, *options: object) -> Ran:
    return door("compute", "t.jsonl", "--candidate", "answers", *options)


def test_right_answers_pass(door: Door, folder: Path) -> None:
    ran = judging(door)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("4 cases · 4 passed · 0 failed\n")
    *lines, last = judging(door, "--json").lines
    assert [(x["line"], x["id"], x["kind"]) for x in lines] == [
        (n, name, name.split(".")[0]) for n, name in enumerate(PROBLEMS, 1)
    ]
    assert all(x["expect"]["passed"] and x["expect"]["verdict"] == "passed" for x in lines)
    assert {n: last["summary"][n] for n in ("cases", "passed", "failed")} == {
        "cases": 4, "passed": 4, "failed": 0,
    }  # fmt: skip


def test_wrong_answers_are_counted_by_kind_and_the_first_is_explained(
    door: Door, folder: Path
) -> None:
    for name, mask in (("windows.1", "causal & window(9)"), ("windows.2", "window(3, 2)")):
        np.save(folder / "answers" / f"{name}.npy", right(name, mask=mask)["output"])
    ran = judging(door)
    assert ran.code == 1
    assert "4 cases · 2 passed · 2 failed" in ran.out
    assert "explained: the first failure of each kind" in ran.out
    assert "All cases fail of windows (2)." in " ".join(ran.out.split())
    assert "windows.1 (line 3): " in ran.out and "window(9" in ran.out
    assert "windows.2" not in ran.out
    *lines, last = judging(door, "--json").lines
    assert [x["expect"]["passed"] for x in lines] == [True, True, False, False]
    assert [bool(x["expect"].get("explanations")) for x in lines] == [False, False, True, False]
    kinds = {row["kind"]: row for row in last["summary"]["kinds"]}
    assert (kinds["windows"]["failed"], kinds["windows"]["first"]["line"]) == (2, 3)
    assert last["summary"]["all_fail"] == ["windows"]


@pytest.mark.parametrize(("which", "count"), [("all", 2), ("first", 1), ("none", 0)])
def test_which_failures_are_explained(door: Door, folder: Path, which: str, count: int) -> None:
    for name, mask in (("windows.1", "causal & window(9)"), ("windows.2", "window(3, 2)")):
        np.save(folder / "answers" / f"{name}.npy", right(name, mask=mask)["output"])
    *lines, last = judging(door, "--explain", which, "--json").lines
    assert sum(bool(x["expect"].get("explanations")) for x in lines) == count
    assert last["summary"]["explained"]
    out = judging(door, "--explain", which).out
    assert "windows.1 (line 3): " in out
    assert ("windows.2 (line 4): " in out) == (which == "all")


def test_a_missing_answer_fails_its_case_and_a_file_too_many_is_said(
    door: Door, folder: Path
) -> None:
    (folder / "answers" / "plain.2.npy").rename(folder / "answers" / "plain.3.npy")
    ran = judging(door, "--json")
    assert ran.code == 1
    assert ran.err == "warning: 1 file belongs to no case: plain.3.npy\n"
    error = ran.lines[1]
    assert (error["line"], error["id"], error["error"]["code"]) == (2, "plain.2", "no_answer")
    assert error["error"]["message"] == "answers has no answer to plain.2"
    assert ran.lines[-1]["summary"]["unclaimed"] == 1


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".json", ".pt"])
def test_an_answer_in_any_format_may_hold_other_stages(
    door: Door, folder: Path, suffix: str
) -> None:
    for wrong in (False, True):
        for name in PROBLEMS:
            (folder / "answers" / f"{name}.npy").unlink(missing_ok=True)
            own = right(name)
            own["lse"] = own["lse"] + wrong
            path = folder / "answers" / f"{name}{suffix}"
            if suffix == ".pt":
                torch = pytest.importorskip("torch")
                torch.save({n: torch.tensor(a) for n, a in own.items()}, path)
            else:
                files.write(str(path), own)
        ran = judging(door, "--json")
        assert ran.code == int(wrong), ran.err
        assert [x["expect"]["stage"] for x in ran.lines[:-1]] == ["lse" if wrong else None] * 4
        assert all("output" in x["expect"] for x in ran.lines[:-1])


def test_bfloat16_may_come_as_float32(door: Door, folder: Path) -> None:
    (line,) = [x for x in (folder / "t.jsonl").read_text().splitlines() if '"plain.1"' in x]
    (folder / "t.jsonl").write_text(json.dumps({**json.loads(line), "dtype": "bfloat16"}))
    half = np.asarray(right("plain.1", dtype="bfloat16")["output"])
    for name, array in (("x.npy", half.astype(np.float32)), ("x.safetensors", half)):
        for old in (folder / "answers").iterdir():
            old.unlink()
        files.write(str(folder / "answers" / f"plain.1{Path(name).suffix}"), {"output": array})
        ran = judging(door)
        assert ran.code == 0, ran.out
    np.save(folder / "answers" / "plain.1.npy", half.astype(np.float32) * np.float32(1.05))
    (folder / "answers" / "plain.1.safetensors").unlink()
    assert judging(door, "--explain", "none").code == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "is empty"), (b"garbage", "in no known format"), (b"PK\x03\x04", "damaged zip"),
     (b'{"heads": 3}', "expected the output")],
)  # fmt: skip
def test_what_is_no_answer_fails_its_case(
    door: Door, folder: Path, content: bytes, expected: str
) -> None:
    (folder / "answers" / "plain.1.npy").write_bytes(content)
    ran = judging(door, "--json")
    assert ran.code == 1
    assert expected in ran.lines[0]["error"]["message"]
    assert [x["expect"]["passed"] for x in ran.lines[1:-1]] == [True] * 3


def test_an_answer_of_another_shape_fails_its_case(door: Door, folder: Path) -> None:
    np.save(folder / "answers" / "plain.1.npy", Q[..., :3])
    ran = judging(door, "--json")
    assert ran.code == 1
    assert "(1, 2, 70, 3)" in ran.lines[0]["error"]["message"]


def test_two_answers_and_two_cases_of_one_name(door: Door, folder: Path) -> None:
    np.savez(folder / "answers" / "plain.1.npz", output=right("plain.1")["output"])
    first = (folder / "t.jsonl").read_text().splitlines()[1]
    with (folder / "t.jsonl").open("a") as stream:
        stream.write("\n" + first)
    ran = judging(door, "--json")
    assert "has 2 answers to plain.1: plain.1.npy, plain.1.npz" in ran.lines[0]["error"]["message"]
    assert ran.lines[4]["error"]["message"] == "'plain.2' is the name of line 2, too"


def test_a_name_that_leads_elsewhere_is_looked_for_in_the_folder(door: Door, folder: Path) -> None:
    np.save(folder / "x.npy", right("plain.1")["output"])
    line = json.loads((folder / "t.jsonl").read_text().splitlines()[0])
    (folder / "t.jsonl").write_text(json.dumps({**line, "id": "../x"}))
    ran = judging(door, "--json")
    assert ran.lines[0]["error"]["code"] == "no_answer"


def test_names_and_numbers_of_lines_name_answers(door: Door, folder: Path) -> None:
    line = json.loads((folder / "t.jsonl").read_text().splitlines()[0])
    del line["id"]
    own = [line, {**line, "name": "third"}, {**line, "id": 7}]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, own)))
    for name in ("1", "third", "7"):
        np.save(folder / "answers" / f"{name}.npy", right("plain.1")["output"])
    assert judging(door).code == 0


def test_a_bad_line_fails_and_the_others_are_judged(door: Door, folder: Path) -> None:
    with (folder / "t.jsonl").open("a") as stream:
        stream.write("\n{\n")
    *lines, last = judging(door, "--json").lines
    assert (lines[4]["line"], lines[4]["error"]["code"]) == (5, "bad_file")
    assert (last["summary"]["passed"], last["summary"]["failed"]) == (4, 1)


def test_options_are_those_of_every_problem(door: Door, folder: Path) -> None:
    assert judging(door, "--scale", "0.25", "--explain", "none", "--json").code == 1
    wrong = judging(door, "--grad-output", "ones", "--json").lines[0]["error"]["message"]
    assert wrong == "--grad-output is given, but the answer holds no gradient"


def test_csv_is_a_row_a_kind(door: Door, folder: Path) -> None:
    assert judging(door, "--format", "csv").out.splitlines() == [
        "kind,cases,passed,failed,first_failure,words", "plain,2,2,0,,", "windows,2,2,0,,",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [(["t.jsonl", "--candidate", "none"], "no such folder: none"),
     (["t.jsonl", "--candidate", "t.jsonl"], "t.jsonl is no folder"),
     (["--candidate", "answers"], "there are no cases to judge"),
     (["t.jsonl", "--candidate", "answers", "--heatmap"], "--heatmap has no use in"),
     (["t.jsonl", "--candidate", "answers", "-o", "x.npz"], "--output has no use in"),
     (["t.jsonl", "--timeout", "3"], "--timeout has no use in"),
     (["t.jsonl", "--cases", "x.jsonl"], "BUNDLE has no use in a test set"),
     (["--cases", "x.jsonl", "--causal"], "--causal has no use in a test set"),
     (["--cases", "x.npz"], "x.npz ends in '.npz'"),
     (["--cases", "none/none/x.jsonl"], "no such folder: none/none")],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(
    door: Door, folder: Path, options: list[str], expected: str
) -> None:
    ran = door("compute", *options)
    assert (ran.code, ran.out) == (2, "")
    assert expected in ran.err


def test_a_test_set_is_written_and_read_back(door: Door, tmp_path: Path) -> None:
    ran = door("compute", "--cases", "new", "--seed", "5")
    assert ran.code == 0
    assert "windows" in ran.out and "A window one key too wide" in ran.out
    assert ran.err == "wrote new/cases.jsonl (cases)\nwrote new/cases.safetensors (their tensors)\n"
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"cases.jsonl", "cases.safetensors"}
    path = tmp_path / "new" / "cases.jsonl"
    whole = path.read_text().splitlines()
    said = door("compute", "--cases", path, "--seed", "5", "--json").data
    assert (said["cases"], said["seed"]) == (len(whole), 5)
    assert path.read_text().splitlines() == whole
    path.write_text("\n".join(whole[::17]))
    ran = door("compute", path, "--json", "--include", "output")
    assert ran.code == 0
    tensors = files.read(str(tmp_path / "new" / "cases.safetensors")).tensors
    for answer in ran.lines:
        wanted = np.asarray(tensors[f"{answer['id']}.expected"], np.float64)
        np.testing.assert_allclose(answer["output"], wanted, rtol=2e-2, atol=2e-2)
