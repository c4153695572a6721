"""Row statistics in tiles on a torch device: the sums of ``Rows``, grown tile by tile."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch  # noqa: TID253 (loaded only once torch is known to be there)

Tensor = torch.Tensor


@dataclass
class Sums:
    """The sums of ``Rows``, each ``(h, n)`` in float64 and relative to the running maximum.

    For each tile the job calls ``scores``, ``logits``, ``decay`` and ``weights``, in this order.
    """

    m: Tensor
    rest: Tensor
    es: Tensor
    rest2: Tensor
    rest3: Tensor
    n: Tensor
    mean: Tensor
    m2: Tensor
    amax: Tensor
    first: Tensor
    top_z: Tensor
    top_j: Tensor

    def __post_init__(self) -> None:
        """Of the last tile: where its largest is, and the smaller of it and the largest before."""
        self.peak_at, self.beaten = self.top_j[..., :1], self.m

    @classmethod
    def of(cls, shape: tuple[int, ...], device: torch.device) -> Sums:
        def full(value: float, *more: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.full((*shape, *more), value, dtype=dtype, device=device)

        low, whole = -torch.inf, torch.int64
        return cls(
            m=full(low), rest=full(0), es=full(0), rest2=full(0), rest3=full(0),
            n=full(0, dtype=whole), mean=full(0), m2=full(0), amax=full(0), first=full(low),
            top_z=full(low, 2), top_j=full(-1, 2, dtype=whole),
        )  # fmt: skip

    def rows(self) -> dict[str, Tensor]:
        """Return the tensors by the names of ``Rows``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def scores(self, s: Tensor, keep: Tensor | None) -> None:
        """Add scores ``(h, n, c)``: count, mean, squared deviations (Chan et al. 1983), size."""
        if keep is None:
            n = torch.full_like(self.n, s.shape[-1])
        else:
            s = s.masked_fill(~keep, 0)
            n = keep.sum(-1).expand(self.n.shape)
        many = n.clamp(min=1)
        low, high = s.aminmax(dim=-1)
        size = torch.maximum(-low, high)
        self.amax = torch.maximum(self.amax, size.double())
        # in units of the largest, so that the squares of 1e-30 are numbers
        unit = size.clamp(min=torch.finfo(s.dtype).tiny)
        mean = s.sum(-1) / many
        away = (s - mean[..., None]).div_(unit[..., None])
        if keep is not None:
            away.masked_fill_(~keep, 0)
        unit = unit.double()
        left = away.sum(-1).double() / many  # what rounding left of the mean
        m2 = (away.square_().sum(-1).double() - n * left**2) * unit**2
        mean = mean.double() + left * unit
        total = self.n + n
        delta, share = mean - self.mean, n.double() / total.clamp(min=1)
        self.m2 = self.m2 + m2 + delta**2 * self.n * share
        self.mean = self.mean + delta * share
        self.n = total

    def logits(self, z: Tensor, j0: int) -> Tensor:
        """Add logits ``(h, n, c)``, −∞ where hidden, of keys from j0 on; return their maximum."""
        if j0 == 0:
            self.first = z[..., 0].to(torch.float64, copy=True)
        one, at = z.max(-1, keepdim=True)  # the first of equals
        self.peak_at, self.beaten = at, torch.minimum(self.m, one[..., 0].double())
        self.m = torch.maximum(self.m, one[..., 0].double())
        second = self.top_z[..., 1]
        if bool((~(one[..., 0] <= second)).any()):
            z.scatter_(-1, at, -torch.inf)
            two, at_two = z.max(-1, keepdim=True)
            z.scatter_(-1, at, one)
            found = torch.cat([one, two], -1).double()
            keys = torch.cat([at, at_two], -1).add_(j0).masked_fill_(found.isneginf(), -1)
            found, keys = torch.cat([self.top_z, found], -1), torch.cat([self.top_j, keys], -1)
            found, order = found.sort(dim=-1, descending=True, stable=True)
            self.top_z = found[..., :2].clone()
            self.top_j = keys.gather(-1, order[..., :2])
        return one[..., 0]

    def decay(self, factor: Tensor, step: Tensor) -> None:
        """The maximum grew by −step, so that all e shrink by factor."""
        self.es = factor * (self.es + torch.where(factor > 0, step, 0) * self.rest)
        self.rest = self.rest * factor
        self.rest2 = self.rest2 * factor**2
        self.rest3 = self.rest3 * factor**3

    def weights(self, e: Tensor, z: Tensor, shift: Tensor) -> None:
        """Add e = exp(z) of the tile that ``logits`` has just seen, without the largest of all.

        z ``(h, n, c)``: the logits less the shift ``(h, n)``; both are lost.
        """
        e.scatter_(-1, self.peak_at, 0)
        # where all but the largest are next to nothing, the squares of exponentials would be 0
        low = self.top_z[..., 1] - shift
        far = (low < 0.45 * math.log(torch.finfo(z.dtype).tiny)) & low.isfinite()
        low = torch.where(far, low, 0)
        if bool(far.any()):
            e[far] = (z[far] - low[far][:, None].to(z.dtype)).exp_()
            e.scatter_(-1, self.peak_at, 0)
        factor = low.exp()
        step = self.beaten - shift
        one = step.exp()
        z.clamp_(min=torch.finfo(z.dtype).min)
        self.rest = self.rest + e.sum(-1) * factor + one
        self.es = self.es + z.mul_(e).sum(-1) * factor + torch.where(one > 0, step * one, one)
        square = torch.mul(e, e, out=z)
        self.rest2 = self.rest2 + square.sum(-1) * factor**2 + one**2
        self.rest3 = self.rest3 + square.mul_(e).sum(-1) * factor**3 + one**3

    def total(self) -> Tensor:
        """Return Σe, the largest included: ``(h, n)``."""
        return torch.where(self.m.isneginf(), 0, (self.m - self.m).exp()) + self.rest

    def whole(self, scores: Tensor, masked: Tensor, keep: Tensor | None) -> None:
        """Add whole rows at once, all ``(h, n, Lk)``."""
        self.scores(scores, keep)
        z = masked.clone()
        m = self.logits(z, 0)
        shift = torch.where(m.isneginf(), 0, m)
        z -= shift[..., None]
        self.weights(z.exp(), z, shift.double())
