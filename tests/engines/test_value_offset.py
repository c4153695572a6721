"""Values with a mean: the error of the output is not above that of PyTorch's own kernel."""

from __future__ import annotations

import numpy as np
import pytest

import attncli
from attncli.attention import definition

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("length", [100, 1000, 4096])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("offset", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("want", [("output",), ("output", "row_statistics")])
def test_the_error_is_not_above_torchs(
    length: int, causal: bool, offset: float, want: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((length, 64)).astype(np.float32) for _ in range(3))
    v += np.float32(offset)
    got = attncli.attend(q, k, v, mask="causal" if causal else None, want=want)
    rows = np.arange(0, length, max(1, length // 128))
    weights = definition.stages(got.problem, 0, 0, rows)["weights"]
    truth = weights @ v.astype(np.float64)
    with torch.no_grad():
        theirs = torch.nn.functional.scaled_dot_product_attention(
            *(torch.from_numpy(x)[None, None] for x in (q, k, v)), is_causal=causal
        )[0, 0].numpy()
    ours, other = (np.sqrt(np.mean((x[rows] - truth) ** 2)) for x in (got.output, theirs))
    assert ours <= 1.1 * other  # which kernel a BLAS takes is worth a few percent


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("length", [100, 1000])
def test_a_hidden_value_is_not_read(poison: float, length: int) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((length, 16)).astype(np.float32) for _ in range(3))
    v += 100
    half = length // 2
    clean = attncli.attend(q, k[:half], v[:half]).output
    v[half:] = poison
    got = attncli.attend(q, k, v, mask=f"padding({half})").output
    np.testing.assert_allclose(got, clean, rtol=1e-6)
