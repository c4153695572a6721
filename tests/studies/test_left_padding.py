"""A batch padded on the left is as healthy as its sentences alone."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention.language import masker, tensor_masker
from attncli.attention.pose import pose
from attncli.measures.statistic import of_head
from attncli.studies import health


@pytest.mark.parametrize("way", ["expression", "tensor"])
def test_left_padding_changes_nothing(way: str) -> None:
    length, real, rng = 12, 9, np.random.default_rng(1)
    query, key, value = rng.normal(size=(3, 1, 2, length, 8))
    key[0, 0, length - real, :] = 3 * query[0, 0, -4:].mean(0)  # a sink on the first real token
    if way == "tensor":
        there = np.arange(length) >= length - real
        masks = [tensor_masker(np.tri(length, dtype=bool) & there & there[:, None], "keep")]
    else:
        masks = [masker(f"causal & padding({real}, left)")]
    tokens = ["<pad>"] * (length - real) + ["<s>", *"abcdefgh"]
    part = slice(length - real, None)
    alone = health.examine(
        pose(query[:, :, part], key[:, :, part], value[:, :, part], mask=masker("causal")),
        tokens=[tokens[part]], grad_output="ones",
    )  # fmt: skip
    padded = health.examine(
        pose(query, key, value, mask=masks), tokens=[tokens], grad_output="ones"
    )
    for one, other in zip(alone.heads, padded.heads, strict=True):
        assert one.verdict == other.verdict and one.verdict.level == "ok"
        assert [(r.name, r.token) for r in one.roles] == [(r.name, r.token) for r in other.roles]
        assert one.placed == pytest.approx(other.placed, abs=1e-12)
        for name in ("entropy", "max_weight", "offset_mass", "induction_mass", "rows", "dead_rows"):
            got, want = (of_head(e.found, 0, one.head)[name] for e in (padded, alone))
            assert got == pytest.approx(want, nan_ok=True)
