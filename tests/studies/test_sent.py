"""What processes say to each other comes back as it was."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.measures.policy import Finding, Verdict
from attncli.studies.many import SAID, Many
from attncli.studies.sent import said_in, text_of
from tests.support.problems import random_problem


def test_a_layer_comes_back_as_it_was() -> None:
    many = Many()
    layer = many.add("layers.0", random_problem(3, 12, 12, mask="causal"))
    back = said_in(text_of([(0, layer)], SAID), SAID)[0][1]
    assert type(back) is type(layer)
    assert back.heads == layer.heads
    assert back.engine == layer.engine
    assert {*back.found} == {*layer.found}
    for name, value in layer.found.items():
        mine = back.found[name]
        for key in value if isinstance(value, dict) else [None]:
            ours, whole = (a if key is None else a[key] for a in (mine, value))
            np.testing.assert_array_equal(ours, whole)
            assert ours.dtype == np.asarray(whole).dtype


def test_odd_numbers_and_empty_arrays() -> None:
    said = {"a": np.array([np.nan, np.inf, -0.0]), "b": np.zeros((0, 3)), "c": (float("nan"), True)}
    back = said_in(text_of(said, ()), ())
    np.testing.assert_array_equal(back["a"], said["a"])
    assert np.signbit(back["a"][2])
    assert back["b"].shape == (0, 3)
    assert back["c"][1] is True


def test_only_what_is_known_is_said_and_made() -> None:
    verdict = Verdict("ok", (Finding("x", "hint", 1.0, 2.0, "it is {}", "1"),))
    with pytest.raises(TypeError, match="Verdict"):
        text_of(verdict, ())
    text = text_of(verdict, (Verdict, Finding))
    assert said_in(text, (Verdict, Finding)) == verdict
    with pytest.raises(KeyError):
        said_in(text, (Finding,))
