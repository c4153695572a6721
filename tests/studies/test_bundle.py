"""What goes along with a problem that is written: text where text says it, else tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.studies import bundle


def test_a_mask_goes_along_as_text_where_text_says_it() -> None:
    """And as a tensor only where it does not."""
    q = np.random.default_rng(3).normal(size=(1, 2, 4, 3))

    def carried(*masks: Any, **more: Any) -> tuple[dict[str, Any], set[str]]:
        posed = pose(q, mask=masks, **more)
        found = bundle.carried(posed, ("query", "key"), past_apart=False)
        return dict(found.options), set(found.arrays)

    plain = {"scale": 1 / 3**0.5, "dtype": "float64"}
    assert carried() == (plain, set())
    said = masker("causal & window(2, 0) & alibi")
    assert carried(said) == (plain | {"mask": "causal & window(2, 0) & alibi"}, set())
    past = dict(key=q, past_key=q[:, :, :2], past_value=q[:, :, :2])
    assert carried(masker("causal"), **past) == (plain, {"attn_mask"})
    assert bundle.flags_of(plain | {"mask": "a & b", "kv_heads": 2}) == (
        f"--scale {1 / 3**0.5} --mask 'a & b' --kv-heads 2"
    )
