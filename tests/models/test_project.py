"""Hidden states through a layer's projections."""

from __future__ import annotations

import numpy as np

from attncli.models.finding import load
from attncli.models.project import project
from attncli.studies.layer import multihead
from tests.support.layers import LLAMA, saved, states


def test_projecting_alone_gives_what_pose_takes() -> None:
    from attncli.attention.pose import pose

    x = states(2, 5, 64)
    layer = load(saved("tiny_llama_gqa"), config=LLAMA, layer=0)
    made = project(x, layer)
    np.testing.assert_array_equal(made.value, multihead(x, layer).value)
    posed = pose(made.query, made.key, made.value, rope=made.rope)
    np.testing.assert_array_equal(posed.query, multihead(x, layer).query)
