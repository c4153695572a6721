"""A kernel's test set: what is in it, that its answers are right, and that it catches faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import attncli
from attncli import files
from attncli.attention.gradients import upstream
from attncli.errors import FileError
from attncli.studies.attend import posed
from attncli.studies.cases import Case, answers, cases
from attncli.studies.cases.kinds import KINDS
from attncli.studies.cases.tally import Failure, Tally
from attncli.studies.cases.writing import paths_of, write
from attncli.studies.compare import compare

CASES = list(cases())


def named(name: str) -> Case:
    return next(case for case in CASES if case.id == name)


def judged(case: Case, found: Mapping[str, Any]) -> bool:
    """Whether somebody's answers to a case pass."""
    given = {name: array for name, array in case.tensors.items() if name != "grad_output"}
    problem = posed(**given, **case.options)
    back = case.tensors.get("grad_output")
    by_stage = {(n.removeprefix("expected").lstrip("_") or "output"): a for n, a in found.items()}
    up = None if back is None else upstream(back, problem)
    return compare(problem, by_stage, explain=False, grad_output=up).passed


def test_there_are_cases_of_every_kind_in_three_dtypes() -> None:
    assert len({case.id for case in CASES}) == len(CASES)
    for name in KINDS:
        own = {case.dtype for case in CASES if case.kind.name == name}
        assert own == {"float32", "float16", "bfloat16"}, name
    tensors = [a for case in CASES for a in (*case.tensors.values(), *case.expected.values())]
    assert sum(a.nbytes for a in tensors) < 40e6


def test_a_case_is_made_of_its_own_dtype() -> None:
    for case in CASES:
        for name, array in {**case.tensors, **case.expected}.items():
            own = "float32" if name == "expected_lse" else case.dtype
            assert array.dtype.name == own or (name, array.dtype.name) == ("attn_mask", "bool")
        for name, array in case.tensors.items():
            finite = name == "attn_mask" or np.isfinite(array.astype(np.float64)).all()
            assert finite, case.id


@pytest.mark.parametrize("part", range(3))
def test_the_right_answers_pass(part: int) -> None:
    wrong = [c.id for c in CASES[part::9] if not judged(c, c.expected)]
    assert not wrong


def test_answers_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    sdpa = torch.nn.functional.scaled_dot_product_attention
    kinds = ("lengths", "groups", "huge_logits", "value_mean", "widths")
    checked = [c for c in CASES if c.kind.name in kinds and c.dtype == "float32"]
    assert len(checked) > 40
    for case in checked:
        q, k, v = (torch.tensor(case.tensors[n]).double() for n in ("query", "key", "value"))
        made = sdpa(q, k, v, is_causal="mask" in case.options, enable_gqa=True)
        np.testing.assert_allclose(case.expected["expected"], made, rtol=1e-6, atol=1e-6)


# -- faults: what a case's kind says that it catches -----------------------------------------


Fault = Callable[[Case], Mapping[str, Any]]


def without(*names: str) -> Fault:
    def change(case: Case) -> Mapping[str, Any]:
        tensors, options = (
            {n: x for n, x in some.items() if n not in names}
            for some in (case.tensors, case.options)
        )
        return answers(tensors, options)

    return change


def saying(**options: Any) -> Fault:
    return lambda case: answers(case.tensors, {**case.options, **options})


def tiled(case: Case) -> Mapping[str, Any]:
    """Query heads that read the groups round and round in place of one after the other."""
    times = case.tensors["query"].shape[1] // case.tensors["key"].shape[1]
    turned = {n: np.tile(case.tensors[n], (1, times, 1, 1)) for n in ("key", "value")}
    return answers({**case.tensors, **turned}, case.options)


def shorter(case: Case) -> Mapping[str, Any]:
    """The last tile of keys is skipped."""
    kept = (case.tensors["key"].shape[2] - 1) // 64 * 64
    cut = {n: case.tensors[n][:, :, :kept] for n in ("key", "value")}
    return answers({**case.tensors, **cut}, case.options)


def exponentials(case: Case, keys: slice) -> tuple[Any, Any]:
    """Exponentials of the scores of some keys below the largest of these, and their values."""
    q, k, v = (case.tensors[n].astype(np.float64) for n in ("query", "key", "value"))
    scores = q @ k[:, :, keys].swapaxes(2, 3) / np.sqrt(q.shape[-1])
    return np.exp(scores - scores.max(-1, keepdims=True)), v[:, :, keys]


def never_rescaled(case: Case) -> Mapping[str, Any]:
    """Two tiles, each below its own maximum, are added as they are."""
    half = case.tensors["key"].shape[2] // 2
    parts = [exponentials(case, keys) for keys in (slice(half), slice(half, None))]
    total = sum(e.sum(-1, keepdims=True) for e, _ in parts)
    made = sum(e @ v for e, v in parts) / total
    return {"expected": made.astype(case.expected["expected"].dtype)}


def summed_narrowly(case: Case) -> Mapping[str, Any]:
    """The weighted values are added one after the other in the dtype, or in float16."""
    own = case.expected["expected"].dtype
    narrow = own if own.itemsize == 2 else np.dtype(np.float16)
    e, v = exponentials(case, slice(None))
    made = np.zeros((*e.shape[:3], v.shape[-1]), narrow)
    for j in range(v.shape[2]):
        made = (made + (e[..., j, None] * v[:, :, None, j]).astype(narrow)).astype(narrow)
    return {"expected": (made.astype(np.float64) / e.sum(-1, keepdims=True)).astype(own)}


FAULTS = {
    "lengths.129": shorter,
    "corners.64_200_top_left": saying(mask="causal(bottom_right)"),
    "corners.130_70_bottom_right": saying(mask="causal(top_left)"),
    "past.48_after_80": saying(mask="causal(top_left)"),
    "past.4_after_60": without("past_key", "past_value"),
    "cache.4_of_80": without("kv_lengths"),
    "groups.6_over_3": tiled,
    "dead_rows.bool": without("attn_mask"),
    "huge_logits.rising": never_rescaled,
    "tiny_logits.std_1e-3": shorter,
    "ties.at_the_top": shorter,
    "windows.causal_31": saying(mask="causal & window(32)"),
    "windows.8_8": saying(mask="window(8, 7)"),
    "segments.1_63_64_5_causal": saying(mask="causal"),
    "softcap.20": without("softcap"),
    "sinks.by_head": without("sink"),
    "sentinels.smallest": without("attn_mask"),
    "mask_tensors.bool_2x33x70": saying(mask_polarity="ignore"),
    "mask_tensors.float_70": without("attn_mask"),
    "alibi.slopes": saying(mask="causal + alibi"),
    "padding.left": saying(mask="padding(70, 33, 64)"),
    "widths.3": saying(scale=0.5),
    "value_mean.plus_100": summed_narrowly,
    "scale.negative": saying(scale=0.25),
    "gradients.bottom_right": saying(mask="causal(top_left)"),
}


def test_every_kind_has_a_fault() -> None:
    assert {name.partition(".")[0] for name in FAULTS} == {*KINDS}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught(name: str, dtype: str) -> None:
    case = named(f"{name}.{dtype}")
    assert not judged(case, {"expected": FAULTS[name](case)["expected"]})


def test_another_mask_in_the_backward_pass_is_caught() -> None:
    case = named("gradients.bottom_right.float32")
    wrong = saying(mask="causal(top_left)")(case)
    backward = {n: a for n, a in wrong.items() if "grad" in n}
    assert not judged(case, {**case.expected, **backward})


# -- files -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(tmp_path: Any) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(str(tmp_path / name), seed)
    a, b, c = (
        [(tmp_path / name / f"cases{s}").read_bytes() for s in (".jsonl", ".safetensors")]
        for name in "abc"
    )
    assert a == b
    assert a[1] != c[1]


def test_lines_are_bundles_of_compute(tmp_path: Any) -> None:
    written = write(str(tmp_path / "k.ndjson"))
    assert written.tensors == str(tmp_path / "k.safetensors")
    found = files.read_many(written.lines)
    assert isinstance(found, files.Records)
    for case, bundle in zip(CASES, found, strict=True):
        assert isinstance(bundle, files.Bundle)
        assert (bundle.options["id"], bundle.options["kind"]) == (case.id, case.kind.name)
        for name, array in {**case.tensors, **case.expected}.items():
            assert bundle.header(name).dtype == array.dtype.name
        query = bundle.tensors["query"]
        np.testing.assert_array_equal(query, case.tensors["query"])
    found.close()


def test_where_it_goes(tmp_path: Any) -> None:
    assert paths_of("new") == ("new/cases.jsonl", "new/cases.safetensors")
    assert paths_of("a/k.jsonl") == ("a/k.jsonl", "a/k.safetensors")
    for target, expected in (
        ("k.json", "ends in '.json'"),
        (f"{tmp_path}/no/no/k.jsonl", "no such"),
    ):
        with pytest.raises(FileError, match=expected):
            write(target)
    assert not list(tmp_path.iterdir())


def test_one_case_is_what_attend_gives() -> None:
    case = named("sinks.dead_row.float16")
    result = attncli.attend(**case.tensors, **case.options, want=("output", "lse"))
    np.testing.assert_allclose(
        np.asarray(case.expected["expected"], float), np.asarray(result.output, float), atol=1e-3
    )


# -- sums ------------------------------------------------------------------------------------


def test_a_tally_finds_what_fails_whole() -> None:
    tally = Tally()
    for n in range(4):
        tally.add("windows", "float16", Failure(n + 2, f"w{n}", "wrong"))
        tally.add("lengths", "float32", None)
    tally.add("lengths", "float16", Failure(1, "l", "early"))
    assert tally.patterns() == {"float16": 5, "windows": 4}
    total = tally.total()
    assert (total.cases, total.passed, total.failed) == (9, 4, 5)
    assert total.first == Failure(1, "l", "early")
    assert tally.kinds["windows"].first == Failure(2, "w0", "wrong")


def test_where_all_fail_no_kind_is_named() -> None:
    tally = Tally()
    for n in range(3):
        tally.add("windows", None, Failure(n, "w", "no answer"))
    assert tally.patterns() == {}
    assert tally.dtypes == {}
