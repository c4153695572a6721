"""What a watched attention call is like, on its own device: sums of each head, no matrix kept.

The formulas are those of ``measures.rows``, in torch, so that nothing leaves the device while a
model trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch  # noqa: TID253 (loaded only once torch is known to be there)
import torch.nn.functional as F  # noqa: TID253
from torch.overrides import TorchFunctionMode  # noqa: TID253

from attncli.attention.masks import SENTINEL
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
    """Return ``(4, H)``: largest \\|score\\|, Σ entropy, saturated rows, rows with a choice.

    query ``(B, H, Lq, D)``, key ``(B, G, Lk, D)``, G a divisor of H; masks broadcast to
    ``(B, H, Lq, Lk)``, bool ones keep and float ones are added; ``causal``: key j of query i where
    j ≤ i; sink ``(H,)``; real ``(B, Lq)`` is False for padding. Scores are in float32, or float64
    where query is. Memory is O(tile·Lk).
    """
    kind = torch.float64 if query.dtype == torch.float64 else torch.float32
    batch, groups, keys, width = key.shape
    heads, queries = query.shape[1], query.shape[2]
    query = query.expand(batch, -1, -1, -1)
    found = query.new_zeros((4, heads), dtype=kind)
    found[0] = -torch.inf
    many = max(1, CELLS // (LEAST * heads * keys))  # batch elements at a time
    with torch.autocast(query.device.type, enabled=False):
        for b in range(0, batch, many):
            k = key[b : b + many].to(kind).transpose(2, 3)
            step = max(LEAST, CELLS // (len(k) * heads * keys))
            for i in range(0, queries, step):
                q = query[b : b + many, :, i : i + step].to(kind) * scale
                rows = q.shape[2]
                s = (q.reshape(len(k), groups, -1, width) @ k).view(len(k), heads, rows, keys)
                parts = [_part(one, b, b + many, i, i + rows) for one in masks]
                if causal:
                    at = torch.arange(max(keys, i + rows), device=s.device)
                    parts.append(at[:keys] <= at[i : i + rows, None])
                own = None if real is None else real[b : b + many, None, i : i + rows]
                _add(found, s, parts, softcap, sink, own)
    return found


def _part(mask: Tensor, b0: int, b1: int, i0: int, i1: int) -> Tensor:
    """Return the part of a mask that a tile needs."""
    mask = mask[(None,) * (4 - mask.ndim)]
    mask = mask[b0:b1] if mask.shape[0] > 1 else mask
    return mask[:, :, i0:i1] if mask.shape[2] > 1 else mask


def _add(
    found: Tensor, s: Tensor, masks: Sequence[Tensor], softcap: float | None, sink: Tensor | None,
    real: Tensor | None,
) -> None:  # fmt: skip
    """Add the rows of scores ``(B, H, rows, Lk)`` to ``found``."""
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
    z = (z - highest).clamp_(min=LOWEST)
    e = z.exp()
    total, weighted = e.sum(-1), e.mul_(z).sum(-1)
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
    found[3] += chosen.sum((0, 2))


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
