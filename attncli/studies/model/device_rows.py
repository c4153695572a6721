"""What a watched attention call is like, on its own device: sums of each head, no matrix kept.

The formulas are those of ``measures.rows``, in torch, so that nothing leaves the device while a
model trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch  # noqa: TID253 (loaded only once torch is known to be there)
import torch.nn.functional as F  # noqa: TID253
from torch.overrides import TorchFunctionMode  # noqa: TID253

from attncli.attention.masks import SENTINEL
from attncli.measures.cells import NEAR
from attncli.measures.roles import LIFT, REST
from attncli.measures.rows import SATURATED

Tensor = torch.Tensor

CELLS = 1 << 22  # scores at a time
LEAST = 8  # rows at a time, however many keys there are
LOWEST = -200.0  # exp of it is nothing beside the largest score's 1


@torch.no_grad()
def head_sums(
    query: Tensor,
    key: Tensor,
    *,
    scale: float,
    causal: bool = False,
    masks: Sequence[Tensor] = (),
    softcap: float | None = None,
    sink: Tensor | None = None,
    real: Tensor | None = None,
) -> Tensor:
    """Return ``(5, H)``: largest magnitude, Σ entropy, saturated rows, Σ mass at places, rows.

    Rows with a choice; places are keys of a text, and offsets up to NEAR, that take REST of its
    mass and well more than equal weights would give (``measures.roles`` looks closer).
    query ``(B, H, Lq, D)``, key ``(B, G, Lk, D)``, G a divisor of H; masks broadcast to
    ``(B, H, Lq, Lk)``, bool ones keep and float ones are added; ``causal``: key j of query i where
    j ≤ i; sink ``(H,)``; real ``(B, Lq)`` is False for padding. Scores are in float32, or float64
    where query is. Memory is O(tile·Lk).
    """
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    batch, groups, keys, width = key.shape
    heads, queries = query.shape[1], query.shape[2]
    query = query.expand(batch, -1, -1, -1)
    found = query.new_zeros((5, heads), dtype=kind)
    found[0] = -torch.inf
    along = query.new_zeros((2 * NEAR + 1 if queries == keys else 0, heads), dtype=kind)
    least = max(REST, 2 * LIFT / max(keys, 1))  # a causal row sees half of the keys
    many = max(1, CELLS // (LEAST * heads * keys))  # batch elements at a time
    with torch.autocast(query.device.type, enabled=False):
        for b in range(0, batch, many):
            k = key[b : b + many].to(kind).transpose(2, 3)
            step = max(LEAST, CELLS // (len(k) * heads * keys))
            received, seen = k.new_zeros((len(k), heads, keys)), k.new_zeros((len(k), heads))
            places = _Places(received, seen, along)
            for i in range(0, queries, step):
                q = query[b : b + many, :, i : i + step].to(kind) * scale
                rows = q.shape[2]
                s = (q.reshape(len(k), groups, -1, width) @ k).view(len(k), heads, rows, keys)
                parts = [_part(one, b, b + many, i, i + rows) for one in masks]
                if causal:
                    at = torch.arange(max(keys, i + rows), device=s.device)
                    parts.append(at[:keys] <= at[i : i + rows, None])
                own = None if real is None else real[b : b + many, None, i : i + rows]
                _add(found, s, parts, softcap, sink, own, places, i)
            found[3] += places.on_keys(least)
    found[3] += torch.where(along >= least * found[4], along, 0).sum(0)
    return found


@dataclass
class _Places:
    """Where the mass of some batch elements goes: to which key, and along which diagonal."""

    received: Tensor  # (B, H, Lk)
    rows: Tensor  # (B, H)
    along: Tensor  # (offsets, H), of all batch elements

    def add(self, e: Tensor, share: Tensor, start: int) -> None:
        """Add rows from ``start`` on: their weights are e ``(B, H, rows, Lk)`` times share."""
        self.received += (share[:, :, None] @ e)[:, :, 0]
        self.rows += (share > 0).sum(-1)
        for n in range(len(self.along)):
            first = start + n - NEAR  # the key of row 0
            line = e.diagonal(first, -2, -1)
            own = share[..., max(-first, 0) :][..., : line.shape[-1]]
            self.along[n] += (line * own).sum((0, 2))

    def on_keys(self, least: float) -> Tensor:
        """Return the mass on keys that take this share of it or more, ``(H,)``."""
        most = self.received >= least * self.rows[..., None]
        return torch.where(most, self.received, 0).sum((0, 2))


def _part(mask: Tensor, b0: int, b1: int, i0: int, i1: int) -> Tensor:
    """Return the part of a mask that a tile needs."""
    mask = mask[(None,) * (4 - mask.ndim)]
    mask = mask[b0:b1] if mask.shape[0] > 1 else mask
    return mask[:, :, i0:i1] if mask.shape[2] > 1 else mask


def _add(
    found: Tensor, s: Tensor, masks: Sequence[Tensor], softcap: float | None, sink: Tensor | None,
    real: Tensor | None, places: _Places, start: int,
) -> None:  # fmt: skip
    """Add the rows from ``start`` on of scores ``(B, H, rows, Lk)`` to ``found``."""
    z = s if softcap is None else softcap * torch.tanh(s / softcap)
    keep = None
    for mask in masks:
        seen = mask
        if mask.dtype != torch.bool:
            z, seen = z + mask, mask > SENTINEL
        keep = seen if keep is None else keep & seen
    if keep is None:
        size, seen_keys = s.abs().amax(-1), s.new_full((), s.shape[-1])
    else:
        size, seen_keys = torch.where(keep, s, 0).abs_().amax(-1), keep.sum(-1)
        z = torch.where(keep, z, -torch.inf)
    highest = top = z.amax(-1, keepdim=True)
    if sink is not None:
        sink = sink.detach().to(z)[:, None, None]
        highest = torch.maximum(top, sink)
    highest = torch.where(highest == -torch.inf, 0, highest)  # a row that sees nothing
    z = (z - highest).clamp_(min=LOWEST)
    e = z.exp()
    total, weighted = e.sum(-1), z.mul_(e).sum(-1)
    if sink is not None:  # one more outcome, and no key
        away = (sink - highest).clamp_(min=LOWEST)[..., 0]
        total, weighted = total + away.exp(), weighted + away.exp() * away
    entropy = total.log() - weighted / total
    weight = (top - highest)[..., 0].exp() / total
    there = seen_keys >= 1 if real is None else (seen_keys >= 1) & real
    chosen = there & (seen_keys >= 2) & torch.isfinite(entropy)
    found[0] = torch.maximum(found[0], torch.where(there, size, -torch.inf).amax((0, 2)))
    found[1] += torch.where(chosen, entropy, 0).sum((0, 2))
    found[2] += (chosen & (weight > SATURATED)).sum((0, 2))
    found[4] += chosen.sum((0, 2))
    places.add(e, torch.where(chosen, 1 / total, 0), start)


# -- models that call PyTorch themselves ----------------------------------------------------------

SDPA = F.scaled_dot_product_attention


class SdpaCalls(TorchFunctionMode):
    """Tells ``see(query, key, …)`` of every scaled_dot_product_attention, which runs as it is."""

    def __init__(self, see: Callable[..., None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is SDPA:
            self.see(*args, **kwargs)
        elif func is F.multi_head_attention_forward:  # what it calls inside, no mode is told of
            return self._inside(func, args, kwargs)
        return func(*args, **kwargs)

    def _inside(self, func: Any, args: Any, kwargs: Any) -> Any:
        def told(*args: Any, **kwargs: Any) -> Tensor:
            self.see(*args, **kwargs)
            return SDPA(*args, **kwargs)

        F.scaled_dot_product_attention = told
        try:
            return func(*args, **kwargs)
        finally:
            F.scaled_dot_product_attention = SDPA
