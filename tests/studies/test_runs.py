"""A run in half precision rounds every stage."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncli.attention.gradients import upstream
from attncli.studies import runs
from tests.support.definitions import by_formulas
from tests.support.problems import causal_problem


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_what_if_half_precision_rounds_every_stage(name: str) -> None:
    kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[name]
    problem = causal_problem(softcap=5.0)
    done = runs.run_rounded(problem, name, upstream("random:0", problem))
    for h in range(2):
        q, k, v = (getattr(problem, n)[0, h].astype(kind) for n in ("query", "key", "value"))

        def once(x: Any) -> Any:
            return np.asarray(x, np.float32).astype(kind).astype(np.float32)

        s = once(once(q.astype(np.float32) @ k.astype(np.float32).T) * np.float32(8**-0.5))
        z = once(once(np.tanh(once(s / 5))) * 5)
        z = np.where(np.tri(20, dtype=bool), z, -np.inf)
        p = np.exp(z - z.max(1, keepdims=True))
        weights = once(p / p.sum(1, keepdims=True))
        out = once(weights @ v.astype(np.float32))
        step = float(ml_dtypes.finfo(kind).eps)
        np.testing.assert_allclose(done.output[0, h], out, rtol=2 * step, atol=step)
        exact = by_formulas(problem, 0, h)["output"]
        assert np.abs(done.output[0, h] - exact).max() < 40 * step
