"""``attention.softcap`` on tensors, in place."""

from __future__ import annotations

import torch  # noqa: TID253 (loaded only once torch is known to be there)


def softcapped(s: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Turn s into cap·tanh(s/cap) and return it; s itself without a cap."""
    return s if cap is None else s.div_(cap).tanh_().mul_(cap)


def softcap_with_slope(s: torch.Tensor, cap: float) -> torch.Tensor:
    """Turn s into cap·tanh(s/cap) and return the derivative, 1 − tanh²(s/cap)."""
    s.div_(cap).tanh_()
    slope = 1 - s * s
    s.mul_(cap)
    return slope
