"""A candidate that was written with a few decimals is told so; one that is wrong is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import attncli
from attncli.studies import layer
from attncli.studies.compare.layers import compare_layer

RNG = np.random.default_rng(11)
QKV = dict(zip(("query", "key", "value"), RNG.normal(size=(3, 6, 4)), strict=True))
RIGHT = attncli.attend(**QKV)


def judged(output: Any) -> Any:
    return attncli.compare(output, RIGHT)


@pytest.mark.parametrize("places", [2, 3, 5])
def test_rounded_numbers_are_right_to_so_many_decimals(places: int) -> None:
    given = RIGHT.output.round(places)
    said = judged(given)
    assert said.verdict == "located" and not said.passed
    atol = 0.5 * 10.0**-places
    assert said.located == [f"output is right to {places} decimals: --atol {atol:g} passes it"]
    assert attncli.compare(given, RIGHT, atol=atol).passed


def test_numbers_that_are_cut_are_off_by_one_in_the_last() -> None:
    given = np.trunc(RIGHT.output * 1000) / 1000
    (said,) = judged(given).located
    assert said.startswith("output is right to 3 decimals, but for one in the last: --atol 0.0009")


def test_wrong_numbers_with_few_decimals_are_explained_as_others_are() -> None:
    causal = attncli.attend(**QKV, mask="causal").output.round(3)
    assert not any("decimals" in one for one in judged(causal).located)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_coarse_type_is_no_rounding_to_decimals(dtype: str) -> None:
    given = (RIGHT.output * (1 + 3e-4)).astype(dtype)
    assert not any("decimals" in one for one in judged(given).located)


def test_so_it_is_of_a_layer() -> None:
    weights = {name: RNG.normal(size=(4, 4)) for name in ("wq", "wk", "wv", "wo")}
    made = layer.multihead(QKV["query"], weights, heads=2)
    said = compare_layer(made, {"output": made.output.round(3)})
    assert said.located == ["output is right to 3 decimals: --atol 0.0005 passes it"]
