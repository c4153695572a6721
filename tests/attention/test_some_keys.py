"""Some keys of a problem, as in a step of ring attention: what the steps give together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli import attend
from attncli.errors import InputError


def tensors(seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=(2, n, 5)) for n in (9, 12, 12))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "how",
    [
        {}, {"mask": "causal(bottom_right)"}, {"mask": "window(3, 1, top_left)"},
        {"mask": "alibi(top_left)", "softcap": 3.0},
        {"attn_mask": np.random.default_rng(1).random((2, 9, 12)) < 0.6},
        {"attn_mask": np.random.default_rng(1).normal(size=(9, 12))},
        {"mask": "padding(7)"}, {"kv_lengths": [10], "mask": "causal"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["numpy", "auto", "reference"])
def test_steps_of_a_ring_give_the_whole(how: dict[str, Any], backend: str) -> None:
    q, k, v = tensors()
    whole = attend(q, k, v, **how, want=("output", "lse"), backend=backend)
    steps = [
        attend(q, k[:, at : at + 4], v[:, at : at + 4], key_start=at, key_count=12, **how,
               want=("output", "lse"), backend=backend)
        for at in (0, 4, 8)
    ]  # fmt: skip
    lses = np.stack([step.lse for step in steps])
    lse = np.logaddexp.reduce(lses)
    np.testing.assert_allclose(lse, whole.lse, rtol=1e-10)
    with np.errstate(invalid="ignore"):
        shares = np.where(np.isneginf(lses), 0, np.exp(lses - lse))
    outputs = sum(w[..., None] * step.output for w, step in zip(shares, steps, strict=True))
    np.testing.assert_allclose(outputs, whole.output, rtol=1e-9, atol=1e-12)


def test_packed_heads_and_grouped_ones() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(9, 8)), rng.normal(size=(9, 4)), rng.normal(size=(9, 4))
    how: dict[str, Any] = dict(heads=4, kv_heads=2, mask="causal", want=("output", "lse"))
    one = attend(q, k[:4], v[:4], key_start=0, key_count=9, **how)
    whole = attend(q, k, v, **how)
    np.testing.assert_allclose(one.output[:4], whole.output[:4])
    assert one.output.shape == whole.output.shape


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"key_start": 10, "key_count": 12}, "keys 10 to 21 do not lie among 12"),
        ({"key_start": 4}, "key_start is 4 without key_count"),
        ({"key_start": -1, "key_count": 12}, "do not lie among 12"),
        ({"key_start": 0, "key_count": 14, "rope": "half"}, "rope is given with key_start"),
    ],
)
def test_what_does_not_fit(how: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        attend(*tensors(), **how)
