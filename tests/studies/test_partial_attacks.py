"""Parts of a problem that are odd, edited or of other problems; numbers only one process has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.attention.problem import Problem
from attncli.attention.shares import AXES
from attncli.errors import FileError, InputError
from attncli.files.bundle import Bundle
from attncli.reports.arrays import saved
from attncli.reports.merged import merged_report
from attncli.studies import partial
from attncli.studies.attend import attend, posed, solve
from tests.support.ranks import together

RNG = np.random.default_rng(3)
Q, K, V = (RNG.normal(size=(2, 4, 9, 8)).astype(np.float32) for _ in range(3))


def bundle(problem: Problem, part: int, /, **edited: Any) -> Bundle:
    """Return the file of one part of two, some of what it says replaced, or left out (None)."""
    kept, _ = partial.compute(problem, part, 2)
    said = {name: one for name, one in {**kept.said, **edited}.items() if one is not ...}
    return Bundle(f"part{part}", "safetensors", dict(kept.arrays), {partial.NAME: json.dumps(said)})


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_files_of_each_format_merge(suffix: str, tmp_path: Path) -> None:
    problem = posed(Q, K, V, mask="causal", sink=0.3)
    paths = []
    for part in (1, 2):
        kept, _ = partial.compute(problem, part, 2)
        paths.append(str(tmp_path / f"part{part}{suffix}"))
        files.write(paths[-1], kept.arrays, extra=kept.options)
    merged = partial.merge([files.read(path) for path in paths])
    np.testing.assert_allclose(merged.output, solve(problem).output, atol=1e-6)


@pytest.mark.parametrize(("one", "other"), [
    ({"attn_mask": np.zeros((9, 9))}, {"attn_mask": np.eye(9)}),
    ({"attn_mask": np.tri(9) > 0}, {"attn_mask": np.tri(9, k=1) > 0}),
    ({"kv_lengths": [5, 9]}, {"kv_lengths": [4, 9]}),
])  # fmt: skip
def test_masks_of_one_name_are_told_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    query = Q[:, :, :4] if "kv_lengths" in one else Q
    with pytest.raises(InputError, match=r"different problems: mask .*checksum"):
        partial.merge(
            [bundle(posed(query, K, V, **how), part) for part, how in ((1, one), (2, other))]
        )


def test_one_number_tells_tensors_apart() -> None:
    key = K.copy()
    key[1, 2, 7, 3] += 1
    with pytest.raises(InputError, match="different problems: key float32"):
        partial.merge([bundle(posed(Q, K, V), 1), bundle(posed(Q, key, V), 2)])


@pytest.mark.parametrize(("edited", "found"), [
    ({"keys": "x"}, "'keys' in its metadata is x"),
    ({"keys": [[-5, 4]]}, "'keys'"),
    ({"keys": [[0.5, 4]]}, "'keys'"),
    ({"of": "9"}, "'of'"),
    ({"of": 4}, "'keys'|'shape'"),
    ({"shape": [2, 4]}, "'shape'"),
    ({"shape": [2, 4, 4, 8, 9, 8, 8]}, r"partial\.output is float32 \(2, 4, 9, 8\)"),
    ({"family": [1, 2, 3, 4]}, "'family'"),
    ({"problem": 5}, "'problem'"),
    ({"scale": "big"}, "'scale'"),
    ({"softcap": "x"}, "'softcap'"),
    ({"scale_source": 3}, "'scale_source'"),
    ({"past": -7}, "'past'"),
    ({"dtype": "object"}, "unknown dtype"),
    ({"mask": ...}, "its metadata lacks mask"),
])  # fmt: skip
def test_what_a_file_says_must_be_sound(edited: dict[str, Any], found: str) -> None:
    problem = posed(Q, K, V)
    with pytest.raises(FileError, match=f"part1 is no whole part of a problem: .*({found})"):
        partial.merge([bundle(problem, 1, **edited), bundle(problem, 2)])


@pytest.mark.parametrize("text", ["{", "[]", "5"])
def test_what_is_no_metadata_is_refused(text: str) -> None:
    one = bundle(posed(Q, K, V), 1)
    with pytest.raises(FileError, match="no whole part"):
        partial.merge([Bundle(one.source, one.kind, one.tensors, {partial.NAME: text})])


@pytest.mark.parametrize(("name", "shape"), [("sink", (7,)), ("partial.real", (3, 3))])
def test_tensors_must_fit(name: str, shape: tuple[int, ...]) -> None:
    one = bundle(posed(Q, K, V, sink=0.3), 1)
    odd = Bundle(one.source, one.kind, {**one.tensors, name: np.zeros(shape)}, one.options)
    with pytest.raises(FileError, match=rf"{name} is float64 \({shape[0]},"):
        partial.merge([odd])


def test_parts_that_only_say_the_same_problem_are_refused() -> None:
    problem = posed(Q, K, V)
    with pytest.raises(InputError, match="different problems: result_dtype"):
        partial.merge(
            [bundle(problem, 1), bundle(problem, 2, result_dtype="float64", checksum=...)]
        )


@pytest.mark.parametrize("name", [*(f"partial.{n}" for n in partial.NAMES), "partial.real", "sink"])
def test_one_altered_number_is_noticed(name: str) -> None:
    problem = posed(Q, K, V, sink=0.3)
    one = bundle(problem, 1)
    odd = one.tensors[name].copy()
    odd.flat[-1] = odd.flat[-1] == 0 if odd.dtype == bool else np.nextafter(odd.flat[-1], 99)
    if odd.dtype.kind in "iu":
        odd.flat[-1] = one.tensors[name].flat[-1] + 1
    altered = Bundle(one.source, one.kind, {**one.tensors, name: odd}, one.options)
    with pytest.raises(FileError, match="part1 is not as it was saved"):
        partial.merge([altered, bundle(problem, 2)])


def test_altered_words_are_noticed() -> None:
    problem = posed(Q, K, V)
    for edited in ({"scale": 0.5}, {"mask": "causal"}, {"checksum": 5}, {"checksum": "x"}):
        with pytest.raises(FileError, match="part2 is not as it was saved"):
            partial.merge([bundle(problem, 1), bundle(problem, 2, **edited)])


def test_a_part_without_a_checksum_is_merged_and_said() -> None:
    problem = posed(Q, K, V)
    merged = partial.merge([bundle(problem, 1, checksum=...), bundle(problem, 2)])
    (warning,) = merged.warnings
    assert warning.startswith("part1: no checksum (an older attncli wrote none)")
    np.testing.assert_allclose(merged.output, solve(problem).output, atol=1e-6)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_checksums_are_of_numbers_in_any_format(suffix: str, dtype: str, tmp_path: Path) -> None:
    """NaN, infinities, −0 and numbers of few bits come back as they went out."""
    key = K.copy()
    key[0, 1, 7], key[1, 1, 7] = np.nan, 1e30
    kept, _ = partial.compute(posed(Q, key, -0.0 * V, mask="causal", dtype=dtype), 1, 1)
    path = str(tmp_path / f"part{suffix}")
    files.write(path, kept.arrays, extra=kept.options)
    merged = partial.merge([files.read(path)])
    assert np.isnan(merged.output).any()


def test_rows_that_are_not_finite_are_told_of() -> None:
    key = K.copy()
    key[0, 1, 7, 3] = np.nan
    merged = partial.merge([bundle(posed(Q, key, V), part) for part in (1, 2)])
    (warning,) = merged.warnings
    assert warning.startswith("9 of 72 rows are NaN or infinite")
    assert warning.endswith("(0, 1, 0)")
    assert not partial.merge([bundle(posed(Q, K, V), part) for part in (1, 2)]).warnings


def test_a_part_warns_of_its_mask() -> None:
    kept, _ = partial.compute(posed(Q, K, V, attn_mask=np.eye(9)), 1, 2)
    (warning,) = kept.warnings
    assert warning.startswith("the float mask holds only 0 and 1")


def test_merged_row_statistics_are_saved_by_the_names_they_have_otherwise() -> None:
    problem = posed(Q, K, V)
    merged = partial.merge([bundle(problem, part) for part in (1, 2)])
    report = merged_report(merged, 2, ("lse", "row_statistics"))
    whole = attend(Q, K, V, want=("lse", "row_statistics"))
    assert report.arrays.keys() == saved(whole, ("lse", "row_statistics")).keys()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_gradients_of_numbers_that_one_process_has(axis: str, where: str) -> None:
    """The compiled engine passes on NaN; where one process sees it, all take the other."""
    tensors = {"query": Q.copy(), "key": K.copy(), "value": V.copy()}
    tensors[where][1, 3, 8, 2] = np.nan
    problem = posed(**tensors)
    want = ("output", "gradients")
    whole = solve(problem, want=want)
    for found in together(problem, axis, 2, lambda p: solve(p, want=want)):
        for name in ("query", "key", "value"):
            ours, right = (getattr(one.gradients, name) for one in (found, whole))
            np.testing.assert_allclose(ours, right, atol=1e-5)
