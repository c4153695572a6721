"""Rows whose sums float32 cannot hold, computed once more from their scores."""

from __future__ import annotations

from typing import NamedTuple

import torch  # noqa: TID253 (loaded only once torch is known to be there)

from attncli.engines.torch.sums import Sums

Tensor = torch.Tensor

SHARP = 0.125  # Σ exp(z−m) without the largest: a float32 sum that starts at 1 loses its digits
SMALL, LARGE = 1e-20, 1e20  # sums of squares outside have lost some to underflow or overflow
CELLS = 1 << 24  # scores at once


class Band(NamedTuple):
    """Query i of batch element b sees the keys low ≤ j − i ≤ high, j < stop: each ``(B, 1, 1)``."""

    low: Tensor
    high: Tensor
    stop: Tensor


def mend(rows: dict[str, Tensor], query: Tensor, key: Tensor, scale: float, band: Band) -> None:
    """Replace the sums of some rows of ``Rows``, each ``(B, H, Lq)`` in float64, in place.

    Those with p₁ near 1, where Σ exp − 1 has no digits left, and those whose squared deviations
    are too small or too large for float32. query ``(B, H, Lq, D)``, key ``(B, G, Lk, D)``.
    """
    spread = rows["m2"] / scale**2  # as the kernel sums it
    odd = (rows["rest"] < SHARP) | ~((spread > SMALL) & (spread < LARGE))
    each = query.shape[1] // key.shape[1]
    for b, h in torch.argwhere((odd & (rows["n"] > 1)).any(-1)).tolist():
        limits = Band(*(limit[b, 0, 0] for limit in band))
        found = (odd[b, h] & (rows["n"][b, h] > 1)).nonzero()[:, 0]
        keys = key[b, h // each]
        for i in torch.split(found, max(1, CELLS // keys.shape[0])):
            whole = _sums(query[b, h, i], keys, scale, i, limits).rows()
            for name in ("rest", "es", "rest2", "rest3", "mean", "m2"):
                rows[name][b, h, i] = whole[name][0]


def _sums(query: Tensor, key: Tensor, scale: float, i: Tensor, band: Band) -> Sums:
    """Return the sums of rows i ``(n,)``: query ``(n, D)``, key ``(Lk, D)`` → ``(1, n)``."""
    away = torch.arange(key.shape[0], device=key.device) - i[:, None]  # (n, Lk)
    keep = (away >= band.low) & (away <= band.high) & (away + i[:, None] < band.stop)
    s = ((query.float() @ key.float().mT) * scale)[None]  # (1, n, Lk)
    sums = Sums.of(s.shape[:2], s.device)
    sums.whole(s, s.masked_fill(~keep, -torch.inf), keep)
    return sums
