"""The PyTorch engine's gradients (see ``gradients``): in tiles, on the device, never L × L.

The jobs are those of ``tiles``: some query rows of some heads. Each makes its weights anew
from a maximum and a sum of its own, walks over its tiles a second time, and adds to dK and dV in
place, as jobs follow one another. Everything is in float32 or float64, also where inputs are not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch  # noqa: TID253 (loaded only once torch is known to be there)

from attncli.attention.gradients import Gradients, float_masks
from attncli.attention.problem import Problem
from attncli.engines import ANYHOW, Attended, How
from attncli.engines.torch.device import (
    Inputs,
    dtype_of,
    find_device,
    out_of_memory,
    settings,
    to_numpy,
    to_torch,
)
from attncli.engines.torch.softcap import softcap_with_slope
from attncli.engines.torch.tiles import TILINGS, Job, Sheet, Tiling, jobs_of, plan
from attncli.resources import Progress

Array = np.ndarray[Any, np.dtype[Any]]
Tensor = torch.Tensor


def backward(
    problem: Problem,
    grad_output: Array,
    attended: Attended | None = None,
    want: Collection[str] = (),
    how: How = ANYHOW,
    tiling: Tiling | None = None,
) -> Gradients:
    """Return the gradients of a problem in the arithmetic's dtype. grad_output: ``(B, H, Lq, Dv)``.

    ``want``: any of ``biases``, ``score_norm``. ``attended`` is not used, nor is the softmax's
    dtype: rounding has no derivative. ``tiling`` None chooses the size of the tiles. Raises
    Unavailable for a device that is not there or has too little memory.
    """
    p, place = replace(problem, softmax_dtype=None), find_device(how.device)
    with settings(how.threads):
        try:
            inputs = Inputs.of(p, place)
            grad = to_torch(grad_output, place).to(dtype_of(p.dtype))
            sums = Sums.blank(p, inputs, want)
            if p.batch * p.heads * p.queries * p.keys:
                tiling = tiling or TILINGS.get(place.type, TILINGS["cuda"])
                _walk(p, inputs, grad, sums, tiling, how.progress)
            return sums.gradients(p)
        except torch.OutOfMemoryError:
            raise out_of_memory(p, place) from None


def _walk(
    p: Problem, inputs: Inputs, grad: Tensor, sums: Sums, tiling: Tiling, progress: Progress | None
) -> None:
    """Add what every job gives to the sums. grad: ``(B, H, Lq, Dv)``."""
    # dP and the softcap's slope take as much again as the scores
    jobs = list(jobs_of(p, replace(tiling, cells=tiling.cells // 2), False))
    finite = inputs.finite() and bool(grad.isfinite().all())
    sheet = Sheet.blank(p, (), inputs)
    for at, (b, groups, rows) in enumerate(jobs):
        job = Job(sheet, inputs, b, groups, rows, finite)
        Back(job, sums, inputs, grad, finite).run(tiling.keys)
        if progress:
            progress((at + 1) / len(jobs))


@dataclass
class Sums:
    """The gradients on the device, which the jobs add to: see ``Gradients`` for the shapes."""

    query: Tensor
    key: Tensor
    value: Tensor
    sink: Tensor | None
    biases: list[Tensor]
    squares: Tensor | None

    @classmethod
    def blank(cls, p: Problem, inputs: Inputs, want: Collection[str]) -> Sums:
        kind, device = dtype_of(p.dtype), inputs.query.device

        def zeros(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        whole = (p.batch, p.heads, p.queries, p.keys)
        return cls(
            query=zeros(inputs.query.shape, kind),
            key=zeros(inputs.key.shape, kind),
            value=zeros(inputs.value.shape, kind),
            sink=None if p.sink is None else zeros((p.heads,)),
            biases=[zeros(s, kind if s == whole else torch.float64) for s in float_masks(p)]
            if "biases" in want
            else [],
            squares=zeros(whole[:3]) if "score_norm" in want else None,
        )

    def gradients(self, p: Problem) -> Gradients:
        return Gradients(
            query=to_numpy(self.query, p.dtype), key=to_numpy(self.key, p.dtype),
            value=to_numpy(self.value, p.dtype),
            sink=None if self.sink is None else self.sink.cpu().numpy(),
            biases=tuple(to_numpy(bias, p.dtype) for bias in self.biases),
            score_norm=None if self.squares is None else self.squares.sqrt().cpu().numpy(),
        )  # fmt: skip


class Back:
    """The way back through a job: query rows of all heads that read some key/value heads."""

    def __init__(self, job: Job, sums: Sums, inputs: Inputs, grad: Tensor, finite: bool) -> None:
        """grad: ``(B, H, Lq, Dv)``; ``finite``: all of it and of the inputs is."""
        self.job, self.sums, self.finite = job, sums, finite
        groups = job.heads.start // (len(job.heads) // job.g)
        self.heads, self.rows = (slice(some.start, some.stop) for some in (job.heads, job.rows))
        self.at = job.b, self.heads, self.rows
        self.kv = job.b, slice(groups, groups + job.g)
        flat = job.g, len(job.heads) // job.g * job.n
        self.query = inputs.query[self.at].to(job.kind).reshape(*flat, -1)  # (g, N, D)
        self.grad = grad[self.at].reshape(*flat, -1)  # (g, N, Dv)

    def run(self, width: int) -> None:
        """Add what the job gives, with tiles of ``width`` keys."""
        job, p, sums = self.job, self.job.problem, self.sums
        top, rest, delta = self._forward(width)
        grad_query = torch.zeros_like(self.query)
        for j0, j1, mixed in plan(p.mask, job.b, job.heads, job.rows, width):
            keep = job.keep(j0, j1) if mixed else None
            s, slope = job.scores(j0, j1), None  # (h, n, c)
            if p.softcap is not None:
                slope = softcap_with_slope(s, p.softcap)
            s = job.masked(s, None, j0, j1)
            weights = _hide(s.sub_(top).sub_(rest).exp_(), keep)
            value = job.value[:, j0:j1].to(job.kind)
            dp = torch.bmm(self.grad, value.mT).view(s.shape)
            ds = _hide(dp.sub_(delta).mul_(weights), keep)
            for bias in sums.biases:
                self._add_bias(bias, ds, j0, j1)
            if slope is not None:
                ds = _hide(ds.mul_(slope), keep)
            if sums.squares is not None:
                sums.squares[self.at] += ds.square().sum(-1).double()
            grad_query += self._spread(weights, ds, keep, j0, j1)
        sums.query[self.at] = (grad_query * p.scale).view(sums.query[self.at].shape)

    def _spread(self, weights: Tensor, ds: Tensor, keep: Tensor | None, j0: int, j1: int) -> Tensor:
        """Add to dK and dV of keys j0:j1 and return dQ / scale ``(g, N, D)``.

        weights, ds: ``(h, n, c)``.
        """
        job, sums = self.job, self.sums
        seen = None if keep is None else keep.expand(ds.shape).reshape(job.g, -1, j1 - j0)
        weights, ds = (x.view(job.g, -1, j1 - j0) for x in (weights, ds))  # (g, N, c)
        part = (*self.kv, slice(j0, j1))
        back = None if seen is None else seen.mT
        sums.value[part] += self._product(weights.mT, self.grad, back)
        sums.key[part] += self._product(ds.mT, self.query, back) * job.problem.scale
        return self._product(ds, job.key[:, j0:j1].to(job.kind), seen)

    def _forward(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return maximum, log Σ exp(z − maximum) and δ ``(h, n, 1)``, and add to the sink's."""
        job, p = self.job, self.job.problem
        acc, total, top = job.walk(width, None)  # total and top in float64
        denominator = total
        if p.sink is not None:
            sink = torch.tensor(p.sink[self.heads], device=job.device)[:, None]  # (h, 1)
            # a sink far above all keys: count from there
            higher = torch.maximum(top, sink)
            shift = torch.where(total == 0, torch.where(sink.isneginf(), 0, sink), higher)
            scale = torch.where(total == 0, 0, (top - shift).exp())
            total, acc, top = total * scale, acc * scale[..., None].to(job.kind), shift
            denominator = total + (sink - top).exp()
        dead = total == 0
        rest = torch.where(denominator == 0, 0, denominator.log())
        out = acc * torch.where(dead, 0, 1 / denominator)[..., None].to(job.kind)
        grad = self.grad.view(out.shape)
        if not self.finite:
            job.mend(out, top + torch.where(dead, -torch.inf, rest))
            grad = torch.where(dead[..., None], 0, grad)  # a dead row's dO is not read
        delta = (grad.double() * out.double()).sum(-1)
        if p.sink is not None and self.sums.sink is not None:
            self.sums.sink[self.heads] -= ((sink - top - rest).exp() * delta).sum(-1)
        top, rest, delta = (x.to(job.kind)[..., None] for x in (top, rest, delta))
        return top, rest, delta

    def _add_bias(self, total: Tensor, dz: Tensor, j0: int, j1: int) -> None:
        """Add dZ ``(h, n, c)`` of keys j0:j1 to a total ``(B or 1, H or 1, Lq or 1, Lk or 1)``."""
        where: list[slice] = []
        spans = (self.heads, self.rows, slice(j0, j1))
        for axis, span in enumerate(spans):
            if total.shape[axis + 1] == 1:
                dz, span = dz.sum(axis, keepdim=True, dtype=total.dtype), slice(0, 1)
            where.append(span)
        heads, rows, keys = where
        view = total[self.job.b % total.shape[0], heads, rows, keys]
        view += dz[..., : view.shape[-1]]

    def _product(self, left: Tensor, right: Tensor, seen: Tensor | None) -> Tensor:
        """Return left ``(g, M, N)`` @ right ``(g, N, W)``; cells that are not seen are not read."""
        if self.finite:
            return torch.bmm(left, right)
        good = right.isfinite()
        total = torch.bmm(left, torch.where(good, right, 0))
        for g, n in (~good.all(-1)).nonzero().tolist():
            term = torch.where(good[g, n], 0, left[g, :, n, None] * right[g, n])
            total[g] += term if seen is None else torch.where(seen[g, :, n, None], term, 0)
        return total


def _hide(tensor: Tensor, keep: Tensor | None) -> Tensor:
    return tensor if keep is None else tensor.masked_fill_(~keep, 0)
