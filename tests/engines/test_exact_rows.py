"""What the one-pass kernel of a GPU cannot hold is computed once more: here on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.engines import reference

torch = pytest.importorskip("torch")

from attncli.engines.torch.exact import SHARP, Band, mend  # noqa: E402


def test_sharp_and_tiny_rows_are_mended_and_others_left() -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 4, 70, 16)), rng.standard_normal((2, 2, 90, 16))
    q[0, :2] *= 20
    q[1, 1] *= 1e-25
    p = pose(q, k, k, mask=[masker("window(40, 3, top_left) & padding(50, 60)")])
    right = reference.attend(p, {"row_statistics"}).rows
    assert right is not None
    rows = {name: torch.tensor(np.array(a)) for name, a in vars(right).items() if name != "others"}
    odd = (rows["rest"] < SHARP) | (rows["m2"] < 1e-21)
    odd &= rows["n"] > 1
    assert 100 < int(odd.sum()) < odd.numel() - 100
    lost = ("rest", "es", "rest2", "mean", "m2")
    for name in lost:  # as float32 sums that start at 1 have them
        rows[name] = torch.where(odd, 0, rows[name])
    before = {name: rows[name].clone() for name in lost}
    limits = ([-40, -40], [3, 3], [50, 60])
    band = Band(*(torch.tensor(limit).view(2, 1, 1) for limit in limits))
    mend(rows, torch.tensor(p.query), torch.tensor(p.key), p.scale, band)
    for name in lost:
        assert bool((rows[name] == before[name])[~odd].all())
        found, truth = rows[name].numpy()[odd], getattr(right, name)[odd.numpy()]
        # scores of float32 are right up to an ulp of their terms, which are below 100
        unit = np.abs(truth) if name != "mean" else np.sqrt(right.m2[odd.numpy()])
        assert (np.abs(found - truth) <= 1e-4 * unit).all(), name
