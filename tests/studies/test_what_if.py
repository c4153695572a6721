"""What if it were otherwise: the changed problem is what is computed, and slips are named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from attncli.attention.pose import pose
from attncli.errors import InputError
from attncli.measures.statistic import of_head
from attncli.studies import health, what_if
from tests.support.definitions import by_formulas
from tests.support.problems import causal_problem


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("scale=none", {"scale": "none"}),
        ("scale=0.1", {"scale": 0.1}),
        ("softcap=3", {"softcap": 3.0}),
        ("sink=0.5", {"sink": 0.5}),
        ("softcap=3, sink=0", {"softcap": 3.0, "sink": 0.0}),
    ],
)
def test_what_if_is_the_changed_problem(text: str, options: dict[str, Any]) -> None:
    before, changed = causal_problem(), causal_problem(**options)
    done = health.examine(before, what_ifs=[what_if.parse(text)])
    effect, exact = done.what_ifs[0], health.examine(changed)
    for h in range(2):
        got, want = (of_head(f, 0, h) for f in (effect.heads, exact.found))
        for name in ("entropy", "max_weight", "grad_score_norm"):
            assert got[name] == pytest.approx(want[name])
        assert got["saturated_share"] == want["saturated_share"]
        old, new = (by_formulas(p, 0, h)["output"] for p in (before, changed))
        assert effect.moved[0, h] == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old))


def test_what_if_qk_norm_and_clip() -> None:
    before = causal_problem()
    top = np.asarray(health.examine(before).found["logit_max"])
    clipped = what_if.parse("qk_clip=2").apply(before, top)
    after = health.examine(clipped).found["logit_max"]
    np.testing.assert_allclose(after, np.minimum(top, 2))
    unchanged = what_if.parse(f"qk_clip={top.max() + 1}").apply(before, top)
    np.testing.assert_array_equal(unchanged.query, before.query)
    normed = what_if.parse("qk_norm").apply(before, top)
    np.testing.assert_allclose((normed.query**2).mean(-1), 1)
    assert np.max(health.examine(normed).found["logit_max"]) <= math.sqrt(8) + 1e-9


def test_half_precision_overflow_is_found_and_counted() -> None:
    big = pose(np.full((4, 8), 200.0), np.full((4, 8), 60.0), np.ones((4, 8)))  # q·k = 96000
    effect = health.examine(
        big, what_ifs=[what_if.parse("dtype=float16"), what_if.parse("dtype=bfloat16")]
    ).what_ifs
    assert [e.over().lost for e in effect] == [4, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scal=none", "did you mean 'scale'"),
        ("frobnicate", "one of scale, softcap"),
        ("softcap", "softcap needs a value"),
        ("softcap=-1", "positive number"),
        ("scale=much", "auto or none"),
        ("qk_norm=3", "takes no value"),
        ("qk_clip=inf", "positive number"),
        ("dtype=float1", "did you mean 'float16'"),
        ("scale=1, scale=2", "twice"),
        ("", "nothing is called"),
    ],
)
def test_what_if_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        what_if.parse(text)
    assert message in str(error.value)
