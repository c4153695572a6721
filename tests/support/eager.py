"""Eager attention of transformers, watched: its own weights and gradients, and what they say.

Every statistic is written down here once more, dense and in float64, from weights that attncli has
no part in. Formulas are the plainest there are, and share no line with those of the package.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from torch.overrides import TorchFunctionMode

Array = np.ndarray[Any, np.dtype[Any]]

FLOAT16_MOST, HALF_OF_FLOAT16_LEAST = 65504.0, 2.0**-24


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a module's own eager attention: what it was given, and what it gave.

    query ``(B, H, Lq, D)``, key and value ``(B, G, Lk, …)``; weights ``(B, H, Lq, Lk)`` and output
    ``(B, H, Lq, Dv)`` in float64, as float32 made them.
    """

    function: Any
    module: Any
    query: Any
    key: Any
    value: Any
    mask: Any
    others: Mapping[str, Any]
    weights: Array
    output: Array

    @property
    def scale(self) -> float:
        """What the scores are multiplied by."""
        scale = self.others.get("scaling")
        return float(self.query.shape[-1] ** -0.5 if scale is None else scale)

    def sink(self) -> Array | None:
        """The share of a sink, ``(B, H, Lq, 1)``: that of the first key, times how likelier it is.

        1 − Σp would have only the digits that float32 keeps of 1.
        """
        logit = self.others.get("s_aux")
        if logit is None:
            return None
        first = self.visible.argmax(-1)[..., None]
        score, p = (np.take_along_axis(x, first, -1) for x in (self.scores(), self.weights))
        return np.asarray(p * np.exp(logit.detach().double().numpy()[:, None, None] - score))

    @property
    def visible(self) -> Array:
        """Which keys a query sees, ``(B, H, Lq, Lk)``: eager masks add the lowest number there."""
        shape = self.weights.shape
        seen = np.ones(shape, bool)
        for one in (self.mask, self.others.get("position_bias")):
            if one is not None:
                keep = one if one.dtype == torch.bool else one > -1e30
                seen &= np.broadcast_to(keep.numpy(), shape)
        return seen

    def scores(self) -> Array:
        """Scaled, before softcap and mask, ``(B, H, Lq, Lk)``."""
        times = self.query.shape[1] // self.key.shape[1]
        key = self.key.double().repeat_interleave(times, 1)
        return np.asarray(torch.einsum("bhid,bhjd->bhij", self.query.double(), key) * self.scale)

    def gradients(self, upward: Array, scale: float | None = None) -> dict[str, Array]:
        """Norms of the gradients of Σ output∘upward, by autograd through this very function.

        ``(B, H, Lq)`` of scores and queries, ``(B, G, Lk)`` of keys and values. The gradient of the
        masked scores is that of a mask; a softcap's derivative comes on top.
        """
        scale = self.scale if scale is None else scale
        mask = torch.zeros(self.weights.shape, dtype=torch.float64)
        if self.mask is not None:
            mask = mask + self.mask
        leaves = [one.double().requires_grad_() for one in (self.query, self.key, self.value, mask)]
        with torch.enable_grad(), InDouble():
            others = {**self.others, "scaling": scale}
            out, _ = self.function(self.module, *leaves, **others)
            (out.transpose(1, 2) * torch.from_numpy(upward)).sum().backward()
        query, key, value, scores = (one.grad for one in leaves)
        softcap = self.others.get("softcap")
        if softcap is not None:
            raw = torch.from_numpy(self.scores() * scale / self.scale)
            scores = scores / torch.cosh(raw / softcap) ** 2
        made = {"score": scores, "query": query, "key": key, "value": value}
        return {f"grad_{name}_norm": one.norm(dim=-1).numpy() for name, one in made.items()}


class InDouble(TorchFunctionMode):
    """Keeps eager attention from going down to float32 for its softmax."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        if func is torch.Tensor.float:
            return args[0]
        return func(*args, **kwargs)


@contextmanager
def eager_calls(outputs: Sequence[Any] = ()) -> Iterator[list[Call]]:
    """List every call of eager attention that transformers' interface gives out meanwhile.

    ``outputs`` ``(B, Lq, H, Dv)`` are what the model gets of them in order, in place of their own:
    with those of another run, every layer has its inputs to the last bit.
    """
    kind, calls = transformers.AttentionInterface, list[Call]()
    before = kind.get_interface

    def get_interface(self: Any, implementation: str, default: Any) -> Any:
        function = before(self, implementation, default)

        def spied(module: Any, query: Any, key: Any, value: Any, mask: Any, **others: Any) -> Any:
            out, weights = function(module, query, key, value, mask, **others)
            calls.append(
                Call(function, module, query, key, value, mask, others,
                     weights.double().numpy(), out.transpose(1, 2).double().numpy())
            )  # fmt: skip
            return outputs[len(calls) - 1] if outputs else out, weights

        return spied

    kind.get_interface = get_interface
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield calls
    finally:
        kind.get_interface = before


# -- statistics, dense ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of a call by its weights: by name ``(B, H, Lq)``, ``(B, G, Lk)``, ``(B, H)``.

    ``over`` are the rows or keys that are summed up, of each name that is one of rows or keys.
    """

    rows: dict[str, Array]
    heads: dict[str, Array]
    over: dict[str, Array]


def truth(
    call: Call, real: Array, real_keys: Array, ids: Array | None, self_attention: bool, seed: int
) -> Truth:
    """Return every statistic of a call.

    real ``(B, Lq)`` and real_keys ``(B, Lk)``: no padding; ids ``(B, L)``, where they are known, of
    self-attention; seed of the random gradient of the output.
    """
    p, s = call.weights, call.scores()
    batch, heads, groups = *p.shape[:2], call.key.shape[1]
    real = np.broadcast_to(real[:, None], p.shape[:-1])
    see = call.visible | ~real[..., None]  # rows of padding count nowhere, whatever they see
    n = see.sum(-1)
    choice = real & (n >= 2)
    sink = call.sink()
    whole = p if sink is None else np.concatenate([p, sink], -1)
    total = whole.sum(-1, keepdims=True)  # 0 where all lies on a sink, which is no key's
    whole = whole / np.where(total > 0, total, 1)
    rows, found, first = _of_weights(whole), {}, real_keys.argmax(-1)
    raw = np.where(see, s, np.nan)
    rows |= {
        "normalized_entropy": rows["entropy"] / np.log(np.maximum(n + (sink is not None), 2)),
        "max_weight": p.max(-1),
        "first_key_mass": np.stack([one[..., at] for one, at in zip(p, first, strict=True)]),
        "logit_std_ratio": np.nanstd(raw, -1) / np.sqrt(2 * np.log(np.maximum(n, 2))),
        "output_norm": np.sqrt((call.output**2).sum(-1)),
    }
    over = dict.fromkeys(rows, choice) | {"output_norm": real}
    every = np.where(real[..., None], raw, np.nan).reshape(batch, heads, -1)
    logit = np.nanmax(np.abs(every), -1)
    nothing = np.zeros((batch, heads), int)
    found |= {
        "saturated_share": _share(p.max(-1) > 0.99, choice),
        "logit_max": logit, "logit_std": np.nanstd(every, -1),
        "rows": real.sum(-1), "rows_with_choice": choice.sum(-1),
        "dead_rows": nothing, "nonfinite": nothing,
        "nonfinite_outputs": nothing, "nonfinite_scores": nothing,
        "overflow_room": FLOAT16_MOST / (logit / abs(call.scale)),
        "underflow_share": _share(p < HALF_OF_FLOAT16_LEAST, see & choice[..., None], (-2, -1)),
    }  # fmt: skip
    received = np.where(choice[..., None], p, 0).sum(-2)  # (B, H, Lk)
    found |= {
        "sink_key": received.argmax(-1), "sink_mass": received.max(-1) / choice.sum(-1),
    }  # fmt: skip
    found |= _alike(whole, choice)
    found |= {name: np.empty((batch, heads)) for name in ("effective_rank", "rank_residual")}
    for at in np.ndindex(batch, heads):
        x = call.output[at][real[at]]
        values = np.sqrt(np.maximum(np.linalg.eigvalsh(x.T @ x), 0))
        share = values[values > 1e-9 * values.max()] / values.sum()
        found["effective_rank"][at] = np.exp(-(share * np.log(share)).sum())
        away = x - x.mean(0, keepdims=True)
        found["rank_residual"][at] = np.sqrt((away**2).sum() / (x**2).sum())
    upward = np.random.default_rng(seed).standard_normal(call.output.shape) * real[..., None]
    grads = call.gradients(upward)
    keys = np.broadcast_to(real_keys[:, None], (batch, groups, p.shape[-1]))
    over |= {name: choice if "score" in name or "query" in name else keys for name in grads}
    usual = call.gradients(upward, call.query.shape[-1] ** -0.5)["grad_score_norm"]
    floor = np.nanquantile(np.where(choice, usual, np.nan), 0.5, axis=-1, keepdims=True) / 1000
    found["vanishing_share"] = _share(grads["grad_score_norm"] < floor, choice)
    rows |= grads
    if self_attention:
        more = _of_places(p, choice)
        rows |= more[0]
        found |= more[1]
        over |= dict.fromkeys(more[0], choice)
    if self_attention and ids is not None:
        told, shown = _of_repeats(p, see, ids)
        rows |= told
        over |= {name: choice & some for name, some in shown.items()}
    return Truth(rows, found, over)


def _share(part: Array, whole: Array, axis: Any = -1) -> Array:
    return np.asarray((part & whole).sum(axis) / whole.sum(axis))


def _of_weights(p: Array) -> dict[str, Array]:
    """Statistics of distributions ``(…, n)``: entropy, and the Jacobian diag(p) − ppᵀ."""
    other = 1 - np.eye(p.shape[-1])
    rest = p @ other  # 1 − p_j, small ones too
    log = np.where(p < 0.5, np.log(np.maximum(p, 1e-300)), np.log1p(-np.minimum(rest, 0.5)))
    entropy = -(p * log).sum(-1)
    jacobian = -p[..., :, None] * p[..., None, :] * other  # (…, n, n)
    jacobian += (p * rest)[..., None] * np.eye(p.shape[-1])
    first, second = np.moveaxis(np.sort(p, -1)[..., :-3:-1], -1, 0)
    left = np.where(p == first[..., None], rest, 2).min(-1)  # 1 − p₁
    return {
        "entropy": entropy,
        "effective_keys": np.exp(entropy),
        "jacobian_trace": np.trace(jacobian, axis1=-2, axis2=-1),
        "jacobian_frobenius": np.sqrt((jacobian**2).sum((-2, -1))),
        "jacobian_spectral": np.linalg.eigvalsh(jacobian)[..., -1],
        "jacobian_spectral_low": second,
        "jacobian_spectral_high": np.minimum(0.5, first * (left + second)),
    }


def _alike(p: Array, choice: Array) -> dict[str, Array]:
    """The mean Jensen–Shannon distance to the nearest other head, and which that is."""
    batch, heads = p.shape[:2]
    apart = np.full((batch, heads, heads), np.inf)
    for b, h, g in np.ndindex(apart.shape):
        rows = choice[b, h] & choice[b, g]
        if h != g and rows.any():
            a, c = p[b, h][rows], p[b, g][rows]
            middle = (a + c) / 2
            apart[b, h, g] = np.sqrt((_kl(a, middle) + _kl(c, middle)) / 2).mean()
    nearest = apart.min(-1)
    lonely = np.isinf(nearest)
    return {
        "head_similarity": np.where(lonely, np.nan, nearest),
        "similar_head": np.where(lonely, -1, apart.argmin(-1)),
    }


def _kl(p: Array, q: Array) -> Array:
    """In bits, of rows ``(n, k)``."""
    ratio = np.where(p > 0, p / np.where(q > 0, q, 1), 1)
    return np.asarray(np.maximum((p * np.log2(ratio)).sum(-1), 0))


def _of_places(p: Array, choice: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """What lies at which offset, of self-attention: rows ``(B, H, L)``, heads ``(B, H)``."""
    length = p.shape[-1]
    away = np.arange(length)[None, :] - np.arange(length)[:, None]  # j − i
    rows = {
        "mean_distance": (p * np.abs(away)).sum(-1),
        "diagonal_mass": (p * (away == 0)).sum(-1),
        "previous_mass": (p * (away == -1)).sum(-1),
        "next_mass": (p * (away == 1)).sum(-1),
        "local_mass": (p * (np.abs(away) <= 4)).sum(-1),
    }
    chosen = np.where(choice[..., None], p, 0)
    offsets = np.arange(1 - length, length)
    mass = np.stack([(chosen * (away == d)).sum((-2, -1)) for d in offsets], -1)
    return rows, {
        "top_offset": offsets[mass.argmax(-1)], "offset_mass": mass.max(-1) / choice.sum(-1),
    }  # fmt: skip


def _of_repeats(p: Array, see: Array, ids: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """What goes where in rows whose token occurs again, and in which rows that can show."""
    length = p.shape[-1]
    earlier = np.arange(length)[None, :] < np.arange(length)[:, None]
    others = ~np.eye(length, dtype=bool)
    same = (ids[:, :, None] == ids[:, None, :])[:, None]  # (B, 1, L, L)
    after = np.zeros_like(same)
    after[..., 1:] = same[..., :-1]
    after &= earlier  # earlier keys behind a place of the row's token
    repeated = (same & others & see).any(-1)
    told = {
        "induction_mass": (p * after).sum(-1),
        "duplicate_mass": (p * (same & others)).sum(-1),
        "repeat_previous_mass": (p * np.eye(length, k=-1)).sum(-1),
    }
    return told, dict.fromkeys(told, repeated) | {"induction_mass": (after & see).any(-1)}


QUANTILES = {"mean": np.nanmean, "min": np.nanmin, "max": np.nanmax} | {
    name: lambda values, axis, q=q: np.nanquantile(values, q, axis=axis)
    for name, q in (("p05", 0.05), ("median", 0.5), ("p95", 0.95))
}


def summaries(found: Truth, groups: Array) -> dict[str, dict[str, Array]]:
    """Return quantiles of rows and keys, ``(B, H)``; groups: the key head of each head."""
    told = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rows that are not there have no quantiles
        for name, values in found.rows.items():
            values = np.where(found.over[name], values, np.nan)
            values = values[:, groups] if values.shape[1] != len(groups) else values
            told[name] = {quantile: of(values, axis=-1) for quantile, of in QUANTILES.items()}
            if name.startswith("grad_"):
                told[name]["cv"] = np.nanstd(values, -1) / np.nanmean(values, -1)
    return told
