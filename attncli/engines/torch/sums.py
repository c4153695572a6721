"""Row statistics in tiles on a torch device: the sums of ``Rows``, grown tile by tile."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch  # noqa: TID253 (loaded only once torch is known to be there)

Tensor = torch.Tensor


@dataclass
class Sums:
    """The sums of ``Rows``, each ``(h, n)`` in float64 and relative to the running maximum.

    For each tile the job calls ``scores``, ``logits``, ``decay`` and ``weights``, in this order.
    """

    m: Tensor
    e1: Tensor
    es: Tensor
    e2: Tensor
    e3: Tensor
    n: Tensor
    mean: Tensor
    m2: Tensor
    amax: Tensor
    first: Tensor
    top_z: Tensor
    top_j: Tensor

    @classmethod
    def of(cls, shape: tuple[int, ...], device: torch.device) -> Sums:
        def full(value: float, *more: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.full((*shape, *more), value, dtype=dtype, device=device)

        low, whole = -torch.inf, torch.int64
        return cls(
            m=full(low), e1=full(0), es=full(0), e2=full(0), e3=full(0),
            n=full(0, dtype=whole), mean=full(0), m2=full(0), amax=full(0), first=full(low),
            top_z=full(low, 2), top_j=full(-1, 2, dtype=whole),
        )  # fmt: skip

    def rows(self) -> dict[str, Tensor]:
        """Return the tensors by the names of ``Rows``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def scores(self, s: Tensor, keep: Tensor | None) -> None:
        """Add scores ``(h, n, c)``: count, mean, squared deviations (Chan et al. 1983), size."""
        if keep is None:
            m2, mean = torch.var_mean(s, -1, correction=0)
            n = torch.full_like(self.n, s.shape[-1])
            m2 = m2.double() * n
        else:
            s = s.masked_fill(~keep, 0)
            n = keep.sum(-1).expand(self.n.shape)
            mean = s.sum(-1) / n.clamp(min=1)
            away = (s - mean[..., None]).masked_fill_(~keep, 0)
            left = away.sum(-1).double() / n.clamp(min=1)  # what rounding left of the mean
            m2 = away.square_().sum(-1).double() - n * left**2
            mean = mean.double() + left
        low, high = s.aminmax(dim=-1)
        self.amax = torch.maximum(self.amax, torch.maximum(-low, high).double())
        total = self.n + n
        delta, share = mean.double() - self.mean, n.double() / total.clamp(min=1)
        self.m2 = self.m2 + m2 + delta**2 * self.n * share
        self.mean = self.mean + delta * share
        self.n = total

    def logits(self, z: Tensor, j0: int) -> Tensor:
        """Add logits ``(h, n, c)``, −∞ where hidden, of keys from j0 on; return their maximum."""
        if j0 == 0:
            self.first = z[..., 0].to(torch.float64, copy=True)
        one, at = z.max(-1, keepdim=True)  # the first of equals
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

    def decay(self, factor: Tensor, step: Tensor, total: Tensor) -> None:
        """The maximum grew by −step, so that all e shrink by factor; total is the old Σe."""
        self.es = factor * (self.es + torch.where(factor > 0, step, 0) * total)
        self.e2 = self.e2 * factor**2
        self.e3 = self.e3 * factor**3

    def weights(self, e: Tensor, z: Tensor) -> None:
        """Add e = exp(z) and z, relative to the maximum; both are lost."""
        lowest = torch.finfo(z.dtype).min
        self.es = self.es + z.clamp_(min=lowest).mul_(e).sum(-1)
        square = torch.mul(e, e, out=z)
        self.e2 = self.e2 + square.sum(-1)
        self.e3 = self.e3 + square.mul_(e).sum(-1)

    def whole(self, scores: Tensor, masked: Tensor, keep: Tensor | None) -> None:
        """Add whole rows at once, all ``(h, n, Lk)``."""
        self.scores(scores, keep)
        z = masked.clone()
        m = self.logits(z, 0)
        z -= torch.where(m.isneginf(), 0, m)[..., None]
        e = z.exp()
        self.e1 = e.sum(-1).double()
        self.weights(e, z)
