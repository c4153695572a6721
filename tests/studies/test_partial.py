"""Parts of a problem in files, and what they give together."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.errors import FileError, InputError
from attncli.studies import partial
from attncli.studies.attend import run
from tests.support.problems import random_problem

WANT = ("output", "lse", "row_statistics")


def saved(problem: Any, parts: int, folder: Path, suffix: str = "safetensors") -> list[str]:
    paths = []
    for part in range(1, parts + 1):
        kept, _ = partial.compute(problem, part, parts)
        paths.append(str(folder / f"p{part}.{suffix}"))
        files.write(paths[-1], kept.arrays, extra=kept.options)
    return paths


def merged(paths: Any) -> Any:
    return partial.merge([files.read(path) for path in paths])


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_any_order_gives_the_whole(tmp_path: Path, dtype: str, suffix: str) -> None:
    problem = random_problem(
        4, 30, 50, groups=2, dtype=dtype, mask="causal(bottom_right)", softcap=5.0,
        sink=np.arange(4.0),
    )  # fmt: skip
    whole = run(problem, want=WANT)
    paths = saved(problem, 3, tmp_path, suffix)
    for order in itertools.permutations(paths):
        ours = merged(order)
        assert ours.output.dtype == whole.output.dtype
        near = dict(rtol=2e-2 if dtype == "bfloat16" else 1e-5, atol=1e-6)
        np.testing.assert_allclose(ours.output.astype(float), whole.output.astype(float), **near)
        np.testing.assert_allclose(ours.lse, whole.lse, rtol=1e-5, atol=1e-6)
        for name, values in (whole.row_statistics or {}).items():
            mine = (ours.row_statistics or {})[name]
            np.testing.assert_allclose(mine, values, rtol=1e-3, atol=1e-4, err_msg=name)
        for name, found in whole.summaries.items():
            if name in ("rows", "rows_with_choice", "dead_rows"):
                np.testing.assert_array_equal(ours.summaries[name], found)


@pytest.mark.parametrize(
    "how",
    [
        dict(mask="padding(20, 30)"),
        dict(mask="window(4, 0, top_left)"),
        dict(mask="~prefix(50)"),
        dict(kv_lengths=[3, 40], mask="causal"),
        dict(mask="dilated(3, top_left) | prefix(1)"),
    ],
)
def test_masks(tmp_path: Path, how: dict[str, Any]) -> None:
    problem = random_problem(2, 30, 50, **how)
    whole, ours = run(problem, want=WANT), merged(saved(problem, 4, tmp_path))
    np.testing.assert_allclose(ours.output, whole.output, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.isneginf(ours.lse), np.isneginf(whole.lse))
    np.testing.assert_array_equal(
        ours.summaries["rows_with_choice"], whole.summaries["rows_with_choice"]
    )


def test_missing_and_overlapping_parts_are_named(tmp_path: Path) -> None:
    one, two, three = saved(random_problem(), 3, tmp_path)
    with pytest.raises(InputError, match="keys 13 to 25 of 40 are in no part"):
        merged([three, one])
    with pytest.raises(InputError, match="keys 26 to 39 of 40 are in no part"):
        merged([one, two])
    with pytest.raises(InputError, match="overlap: both hold keys from 0 on"):
        merged([one, two, three, one])


def test_parts_of_different_problems_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, _ = saved(random_problem(), 2, tmp_path / "a")
    _, two = saved(random_problem(scale=0.5), 2, tmp_path / "b")
    with pytest.raises(InputError, match=r"different problems: scale 0.3\d+ in one, scale 0.5"):
        merged([one, two])
    _, two = saved(random_problem(mask="causal"), 2, tmp_path / "b")
    with pytest.raises(InputError, match=r"mask .* in one, mask causal"):
        merged([one, two])


def test_what_is_no_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((3, 4)))
    with pytest.raises(InputError, match=r"no part of a problem") as caught:
        merged([str(path)])
    assert "--part 1/2" in str(caught.value.hint)
    (first, _) = saved(random_problem(), 2, tmp_path)
    bundle = files.read(first)
    arrays = {name: np.asarray(a) for name, a in bundle.tensors.items()}
    del arrays["partial.rest"]
    broken = str(tmp_path / "broken.safetensors")
    files.write(broken, arrays, extra=bundle.options)
    with pytest.raises(FileError, match=r"partial\.rest"):
        merged([broken])


def test_more_parts_than_keys() -> None:
    with pytest.raises(InputError, match="only 40 keys"):
        partial.compute(random_problem(), 1, 41)
