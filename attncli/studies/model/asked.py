"""Masks that models of transformers ask for, kept as what they ask: no L×L tensor is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch  # noqa: TID253 (loaded only once torch is known to be there)
from torch.utils._pytree import tree_map  # noqa: TID253
from transformers.masking_utils import sdpa_mask  # noqa: TID253

from attncli.attention.masks import Extent, Mask
from attncli.attention.predicates import Predicate, Varies
from attncli.attention.problem import Masker

Array = np.ndarray[Any, np.dtype[Any]]

STEP = 512  # rows that are asked for together
ALWAYS = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}

#: What may be asked of a mask that is not there.
FREE = {
    getattr(torch.Tensor, name).__get__
    for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad", "is_nested")
} | {
    getattr(torch.Tensor, name)
    for name in ("size", "dim", "numel", "__len__", "is_floating_point", "get_device", "detach")
}


class Asked(torch.Tensor):
    """What stands for a bool mask ``(B, 1, Lq, Lk)``: its shape, and what it was asked for with.

    A model that hands it on to its attention never has the mask. For whatever else a model does
    with it the mask is made, dense.
    """

    asked: Mapping[str, Any]
    read: dict[Any, list[Masker]]  # what it was found to be, by whoever wants to remember
    known: tuple[str, ...] | None = None  # the expressions that it is, where that is clear
    made: Any = None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.detach:
                return args[0]
            if func not in FREE:
                args, kwargs = tree_map(_dense, (args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    def block(self, i0: int, i1: int, j0: int, j1: int) -> Array:
        """Return bool ``(B, i1 - i0, j1 - j0)``: True = the query sees the key."""
        a = self.asked
        part = {
            "q_length": i1 - i0, "q_offset": int(a.get("q_offset", 0)) + i0,
            "kv_length": j1 - j0, "kv_offset": int(a.get("kv_offset", 0)) + j0,
        }  # fmt: skip
        with torch._C.DisableTorchFunctionSubclass():
            return np.asarray(_made({**a, **part})[:, 0].cpu().numpy())

    def masker(self, name: str) -> Masker:
        """Return what binds it as it is, a function of indices."""
        batch, _, queries, keys = self.shape
        text = f"{name} {(batch, 1, queries, keys)} as the model's function gives it"

        def bind(extent: Extent) -> Mask:
            return Mask(extent, Cells(self), text=text, source=name)

        return bind


def _dense(one: Any) -> Any:
    if not isinstance(one, Asked):
        return one
    if one.made is None:
        one.made = _made(one.asked)
    return one.made


def _made(asked: Mapping[str, Any]) -> Any:
    return sdpa_mask(**{**asked, **ALWAYS})


def asked_mask(**asked: Any) -> Any:
    """Return the mask that a model asks for: what ``sdpa_mask`` takes, ``(B, 1, Lq, Lk)``.

    Never None, as in eager attention: who then calls without a mask means none.
    """
    if torch.compiler.is_compiling():
        return _made(asked)
    queries, keys = asked["q_length"], asked["kv_length"]
    real, local = asked.get("attention_mask"), asked.get("local_size")
    causal, free = asked.get("allow_is_causal_skip", True), asked.get("allow_is_bidirectional_skip")
    whole = queries == keys and not int(asked.get("q_offset", 0))
    near = local is not None and keys >= local
    device = asked.get("device", "cpu")
    one = torch.ones((), dtype=torch.bool, device=device)
    mask = torch.Tensor._make_subclass(Asked, one.expand(asked["batch_size"], 1, queries, keys))
    mask.asked, mask.read = asked, {}
    if (causal or free) and whole and not near and (real is None or bool(real.all())):
        mask.known = ("causal",) if causal else ()
    return mask


@dataclass(frozen=True, eq=False)
class Cells(Predicate):
    """What an ``Asked`` keeps."""

    mask: Asked

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        i, j = np.broadcast_arrays(i, j)
        keep, keys = np.empty(i.shape, bool), self.mask.shape[-1]
        for tile in np.unique(i // STEP).tolist():
            here = i // STEP == tile
            start, stop = int(i[here].min()), int(i[here].max()) + 1
            keep[here] = self.mask.block(start, stop, 0, keys)[b, i[here] - start, j[here]]
        return keep

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        return np.asarray(self.mask.block(i0, i1, j0, j1)[b])

    def varies(self) -> Varies:
        return Varies(head=False)
