"""Attention in tiles on a torch device: what SDPA cannot say, and all statistics. Never L × L.

A job is some query rows of some heads of one batch element. It walks over the tiles of keys that
these rows see with a running maximum (Milakov & Gimelshein 2018), in float32 or float64; sums over
tiles are kept in float64.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch  # noqa: TID253 (loaded only once torch is known to be there)

from attncli.attention.masks import Mask
from attncli.attention.predicates import EMPTY, FULL, MIXED
from attncli.attention.problem import STAGES, Problem
from attncli.engines.torch.device import Inputs, dtype_of
from attncli.engines.torch.softcap import softcapped
from attncli.engines.torch.sums import Sums
from attncli.resources import Progress

Array = np.ndarray[Any, np.dtype[Any]]
Tensor = torch.Tensor

GRAIN = 128  # keys: the grid on which masks are asked


@dataclass(frozen=True)
class Tiling:
    """Rows of a job, keys of a tile, and about how many scores a tile holds over all its heads."""

    rows: int
    keys: int
    cells: int


TILINGS = {"cpu": Tiling(256, 512, 1 << 19), "cuda": Tiling(1024, 2048, 1 << 25)}


def attend(
    problem: Problem,
    want: Collection[str],
    inputs: Inputs,
    *,
    tiling: Tiling | None = None,
    progress: Progress | None = None,
) -> Sheet:
    """Compute everything wanted on the device of the inputs; the output too."""
    p = problem
    sheet = Sheet.blank(p, want, inputs)
    if not (p.batch * p.heads * p.queries * p.keys):
        if p.sink is not None:
            sheet.lse[:] = torch.tensor(p.sink)[:, None].to(sheet.lse)
        return sheet
    whole = bool(sheet.stages) or p.softmax_dtype is not None
    tiling = tiling or TILINGS.get(inputs.query.device.type, TILINGS["cuda"])
    jobs = list(jobs_of(p, tiling, whole))
    finite = bool(inputs.value.isfinite().all())
    for at, (b, groups, rows) in enumerate(jobs):
        Job(sheet, inputs, b, groups, rows, finite).run(p.keys if whole else tiling.keys, whole)
        if progress:
            progress((at + 1) / len(jobs))
    return sheet


def jobs_of(p: Problem, tiling: Tiling, whole: bool) -> Iterator[tuple[int, range, range]]:
    """Yield batch element, key/value heads and query rows of each job."""
    each = p.heads // p.kv_heads  # query heads of a key/value head
    keys = p.keys if whole else min(tiling.keys, p.keys)
    rows = min(tiling.rows, p.queries, max(1, tiling.cells // (each * keys)))
    groups = min(p.kv_heads, max(1, tiling.cells // (each * keys * rows)))
    for b in range(p.batch):
        for g in range(0, p.kv_heads, groups):
            for i in range(0, p.queries, rows):
                yield b, range(g, min(g + groups, p.kv_heads)), range(i, min(i + rows, p.queries))


@dataclass
class Sheet:
    """The results, filled job by job: tensors on the device, stages as arrays.

    output ``(B, H, Lq, Dv)`` and lse ``(B, H, Lq)`` in the arithmetic's dtype; rows, the arrays of
    ``Rows`` without the sink, in float64.
    """

    problem: Problem
    output: Tensor
    lse: Tensor
    rows: dict[str, Tensor]
    stages: dict[str, Array]

    @classmethod
    def blank(cls, p: Problem, want: Collection[str], inputs: Inputs) -> Sheet:
        shape, device = (p.batch, p.heads, p.queries), inputs.query.device
        kind = dtype_of(p.dtype)
        rows = Sums.of(shape, device).rows() if "row_statistics" in want else {}
        return cls(
            problem=p,
            output=torch.zeros((*shape, p.value_width), dtype=kind, device=device),
            lse=torch.full(shape, -torch.inf, dtype=kind, device=device),
            rows=rows,
            stages={n: np.zeros((*shape, p.keys), p.result_dtype) for n in STAGES if n in want},
        )


def plan(
    mask: Mask, b: int, heads: range, rows: range, width: int
) -> Iterator[tuple[int, int, bool]]:
    """Yield (j0, j1, mixed) of the tiles that some of the heads see in these rows."""
    keys = mask.extent.keys
    if mask.trivial:
        for j in range(0, keys, width):
            yield j, min(j + width, keys), False
        return
    some = _different(mask, heads)
    spans = sorted(span for h in some for span in mask.spans(b, h, rows.start, rows.stop))
    end = 0
    for start, stop in spans:
        start = max(start, end)
        if start >= stop:
            continue
        end = stop
        inner = np.arange(start - start % GRAIN + GRAIN, stop, GRAIN)
        edges = np.concatenate([[start], inner, [stop]])
        states = np.stack([mask.tiles(b, h, rows.start, rows.stop, edges) for h in some])
        state = np.where(
            (states == FULL).all(0), FULL, np.where((states == EMPTY).all(0), EMPTY, MIXED)
        )
        at = 0
        while at < len(state):
            to = at + 1
            while to < len(state) and state[to] == state[at] and edges[to + 1] - edges[at] <= width:
                to += 1
            if state[at] != EMPTY:
                yield int(edges[at]), int(edges[to]), bool(state[at] == MIXED)
            at = to


def _different(mask: Mask, heads: range) -> list[int]:
    """Heads whose predicate may differ; the first alone where all are alike."""
    return list(heads) if mask.keep_varies.head else [heads[0]]


class Job:
    """Query rows of all heads that read some key/value heads of a batch element."""

    def __init__(
        self, sheet: Sheet, inputs: Inputs, b: int, groups: range, rows: range, finite: bool
    ) -> None:
        """``finite``: all values are."""
        p, self.finite = sheet.problem, finite
        self.sheet, self.problem, self.b, self.rows = sheet, p, b, rows
        each = p.heads // p.kv_heads
        self.heads = range(groups.start * each, groups.stop * each)
        self.kind = dtype_of(p.dtype)
        self.device = inputs.query.device
        self.g, self.n = len(groups), len(rows)
        query = inputs.query[b, self.heads.start : self.heads.stop, rows.start : rows.stop]
        query = query.to(self.kind) * p.scale  # (h, n, D)
        self.query = query.reshape(self.g, each * self.n, p.width)
        self.key = inputs.key[b, groups.start : groups.stop]  # (g, Lk, D)
        self.value = inputs.value[b, groups.start : groups.stop]  # (g, Lk, Dv)
        self.shape = len(self.heads), self.n

    def run(self, width: int, whole: bool) -> None:
        """Compute the job with tiles of ``width`` keys, or with whole rows."""
        p, sheet = self.problem, self.sheet
        heads, rows = (slice(some.start, some.stop) for some in (self.heads, self.rows))
        at = self.b, heads, rows
        sums = Sums.of(self.shape, self.device) if sheet.rows else None
        acc, total, shift = self._whole(sums) if whole else self.walk(width, sums)
        lse = shift + total.log()
        denominator = total
        if p.sink is not None:
            sink = torch.tensor(p.sink[heads], device=self.device)[:, None]  # (h, 1)
            denominator, lse = total + (sink - shift).exp(), torch.logaddexp(lse, sink)
        if not whole:
            acc *= torch.where(total == 0, 0, 1 / denominator)[..., None].to(self.kind)
        if not self.finite:
            self.mend(acc, lse)
        sheet.output[at], sheet.lse[at] = acc, lse.to(self.kind)
        if sums:
            for name, tensor in sums.rows().items():
                sheet.rows[name][at] = tensor

    def scores(self, j0: int, j1: int) -> Tensor:
        """Return scale · q·k, ``(h, n, c)``."""
        key = self.key[:, j0:j1].to(self.kind)
        return torch.bmm(self.query, key.mT).view(*self.shape, j1 - j0)

    def blend(self, weights: Tensor, j0: int, j1: int) -> Tensor:
        """Return Σ weights · values ``(h, n, Dv)``; values that are not finite count 0 here."""
        value = self.value[:, j0:j1].to(self.kind)
        if not self.finite:
            value = torch.where(value.isfinite(), value, 0)
        flat = weights.view(self.g, -1, j1 - j0)
        return torch.bmm(flat, value).view(*self.shape, value.shape[-1])

    def masked(self, s: Tensor, keep: Tensor | None, j0: int, j1: int) -> Tensor:
        """Add the biases to capped scores and hide what is not kept, in place."""
        mask, i0, i1 = self.problem.mask, self.rows.start, self.rows.stop
        if mask.biases:
            some = self.heads if mask.bias_varies.head else self.heads[:1]
            bias = np.stack([np.asarray(mask.bias(self.b, h, i0, i1, j0, j1)) for h in some])
            with np.errstate(over="ignore"):
                bias = bias.astype(self.problem.dtype)
            s += torch.from_numpy(bias).to(self.device)
        return s if keep is None else s.masked_fill_(~keep, -torch.inf)

    def keep(self, j0: int, j1: int) -> Tensor:
        """Return bool ``(h or 1, n, c)``."""
        mask, i0, i1 = self.problem.mask, self.rows.start, self.rows.stop
        some = _different(mask, self.heads)
        keep = np.stack([mask.keep(self.b, h, i0, i1, j0, j1) for h in some])
        return torch.from_numpy(keep).to(self.device)

    def walk(self, width: int, sums: Sums | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return Σ exp(z−m)·v ``(h, n, Dv)``, Σ exp(z−m) and the shift m ``(h, n)``."""
        p = self.problem
        acc = torch.zeros((*self.shape, p.value_width), dtype=self.kind, device=self.device)
        total = torch.zeros(self.shape, dtype=torch.float64, device=self.device)
        m = torch.full(self.shape, -torch.inf, dtype=self.kind, device=self.device)
        shift = torch.zeros_like(m)
        for j0, j1, mixed in plan(p.mask, self.b, self.heads, self.rows, width):
            s = self.scores(j0, j1)
            keep = self.keep(j0, j1) if mixed else None
            if sums:
                sums.scores(s, keep)
            s = self.masked(softcapped(s, p.softcap), keep, j0, j1)
            peak = sums.logits(s, j0).to(self.kind) if sums else s.amax(-1)
            new = torch.maximum(m, peak)
            moved = torch.where(new.isneginf(), 0, new)
            step = torch.where(m.isneginf(), -torch.inf, shift.double() - moved.double())
            factor = step.exp()
            if sums:
                sums.decay(factor, step)
            total *= factor
            acc *= factor[..., None].to(self.kind)
            m, shift = new, moved
            s -= shift[..., None]
            e = s.exp() if sums else s.exp_()
            acc += self.blend(e, j0, j1)
            if sums:
                sums.weights(e, s, shift.double())
            else:
                total += e.sum(-1)
        return acc, sums.total() if sums else total, shift.double()

    def _whole(self, sums: Sums | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output ``(h, n, Dv)``, Σ exp(z−m) and the shift m, and keep the stages."""
        p, keys = self.problem, self.problem.keys
        scores = self.scores(0, keys)
        keep = None if p.mask.trivial else self.keep(0, keys)
        capped = softcapped(scores.clone(), p.softcap)
        z = masked = self.masked(capped.clone(), keep, 0, keys)
        rounded = None if p.softmax_dtype is None else dtype_of(p.softmax_dtype)
        if rounded:
            z = z.to(rounded).to(self.kind)
        top = z.amax(-1)
        sink = None
        if p.sink is not None:
            sink = torch.tensor(p.sink[self.heads.start : self.heads.stop], device=self.device)
            top = torch.maximum(top, sink.to(self.kind)[:, None])
        shift = torch.where(top.isneginf(), 0, top)
        e = (z - shift[..., None]).exp()
        total = e.sum(-1).double()
        denominator = total if sink is None else total + (sink[:, None] - shift).exp()
        weights = e / torch.where(denominator == 0, 1, denominator)[..., None].to(self.kind)
        if rounded:
            weights = weights.to(rounded).to(self.kind)
        output = self.blend(weights, 0, keys)
        if sums:
            sums.whole(scores, masked, keep)
        made = {"scores": scores, "softcapped": capped, "masked": masked, "weights": weights}
        for name, stage in self.sheet.stages.items():
            part = made[name].cpu().numpy()
            with np.errstate(over="ignore"):
                stage[
                    self.b, self.heads.start : self.heads.stop, self.rows.start : self.rows.stop
                ] = part.astype(stage.dtype)
        return output, total, shift.double()

    def mend(self, out: Tensor, lse: Tensor) -> None:
        """Add to out ``(h, n, Dv)`` what visible values that are not finite do."""
        each = len(self.heads) // self.g
        for g in range(self.g):
            odd = (~self.value[g].isfinite()).any(-1).nonzero()[:, 0]
            for some in torch.split(odd, 256):
                for x in range(g * each, (g + 1) * each):
                    self._mend_head(out[x], lse[x], x, g, some)

    def _mend_head(self, out: Tensor, lse: Tensor, x: int, g: int, some: Tensor) -> None:
        """Add what values of the keys ``some`` do. out ``(n, Dv)``, lse ``(n,)``: of the x-th head.

        p > 0 times ∞ is ∞, p = 0 times ∞ is NaN, ∞ − ∞ is NaN, as in the dense sum.
        """
        p, value = self.problem, self.value[g][some].double()  # (c, Dv)
        i, j = np.arange(self.rows.start, self.rows.stop)[:, None], some.cpu().numpy()[None]
        at = self.b, self.heads[x], i, j
        query = self.query.view(*self.shape, -1)[x].double()
        z = softcapped(query @ self.key[g][some].double().mT, p.softcap)  # (n, c)
        for bias in p.mask.biases:
            z += torch.as_tensor(np.asarray(bias.at(*at), float)).to(z)
        allowed = np.broadcast_to(p.mask.predicate.allows(*at), z.shape)
        sees = torch.from_numpy(allowed.copy()).to(z.device)
        weighs = sees & ((z - lse.double()[:, None]).exp() > 0)
        hits, losses = weighs.double(), (sees & ~weighs).double()
        for one in (torch.inf, -torch.inf):
            there = (value == one).double()
            out += torch.where(hits @ there > 0, one, 0.0)
            out.masked_fill_(losses @ there > 0, torch.nan)
        out.masked_fill_(sees.double() @ value.isnan().double() > 0, torch.nan)
