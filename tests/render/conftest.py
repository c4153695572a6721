"""A problem of many heads."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention import language
from attncli.attention.pose import pose
from attncli.attention.problem import Problem


@pytest.fixture
def many() -> Problem:
    rng = np.random.default_rng(3)
    query, key, value = (rng.standard_normal((3, 12, 18, 32)) for _ in range(3))
    return pose(query, key, value, mask=[language.masker("padding(18, 13, 15)")])
