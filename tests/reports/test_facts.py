"""The first line."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from tests.support.reports import problem, reported

RNG = np.random.default_rng(7)


@pytest.mark.parametrize(
    ("asked", "facts"),
    [
        (problem(queries=1, keys=3, value_width=1), "1 query × 3 keys, width 3, values of width 1"),
        (problem(2, 12, 18, value_width=3), "2 × 12 heads, 18 queries × 18 keys, width 3"),
        (
            problem(1, 8, 4, groups=2, value_width=3),
            "8 heads (2 for keys and values), 4 queries × 4 keys, width 3",
        ),
        (problem(3, 1, 4, value_width=3), "3 × 1 head, 4 queries × 4 keys, width 3"),
        (problem(scale=0.25), "scale 0.25"),
        (problem(scale="none"), "scale 1 (no scale)"),
        (problem(scale=2.0, scale_source="from file"), "scale 2 (from file)"),
        (problem(width=32), "scale 0.1768 = 1/√32"),
        (problem(softcap=50.0), "softcap 50"),
        (problem(sink=0.0), "sink 0"),
        (problem(heads=2, sink=[1.0, 2.0]), "a sink per head"),
        (problem(mask="causal"), "mask causal"),
        (problem(dtype="bfloat16"), "reference float32 for bfloat16"),
        (problem(), "reference float64"),
    ],
)
def test_headline(asked: Problem, facts: str) -> None:
    assert facts in reported(asked).headline


def test_headline_counts_what_was_cached() -> None:
    past = RNG.standard_normal((2, 4))
    new = RNG.standard_normal((3, 4))
    asked = pose(new, past_key=past, past_value=past)
    assert reported(asked).headline[0] == "3 queries × 5 keys (2 of them past), width 4"
