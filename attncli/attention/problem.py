"""What is asked, canonical: ``(B, H, L, D)`` tensors, a bound mask, a scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from attncli.attention.masks import Extent, Mask
from attncli.attention.words import FLOATS as FLOATS
from attncli.attention.words import STAGES as STAGES
from attncli.errors import InputError

if TYPE_CHECKING:
    from attncli.attention.rope import Rope


Array = np.ndarray[Any, np.dtype[Any]]
Scale = float | Literal["auto", "none"]
Masker = Callable[[Extent], Mask]


class Family(NamedTuple):
    """The shape family that came in, so that results go back in it.

    ``rank`` 2, 3 or 4; ``packed`` when heads lay side by side in the last dimension; ``blhd`` when
    the length came before the heads.
    """

    rank: int
    packed: bool = False
    blhd: bool = False

    def restore(self, array: Array) -> Array:
        """``(B, H, L, D)`` back to the family: ``(L, D)``, ``(L, H·D)``, ``(B, L, H, D)`` …"""
        if self.packed:
            array = array.swapaxes(1, 2)  # (B, L, H, D)
            array = array.reshape(*array.shape[:2], -1)  # (B, L, H·D)
            return array if self.rank == 3 else array[0]
        if self.rank == 2:
            return np.asarray(array[0, 0])
        if self.blhd:
            array = array.swapaxes(1, 2)  # (B, L, H, D)
        return array if self.rank == 4 else array[0]

    def restore_rows(self, array: Array) -> Array:
        """``(B, H, Lq, …)`` of one number a row (or a cell) without the dimensions not given.

        Heads stay a dimension of their own, also where Q came packed.
        """
        if self.rank == 2 and not self.packed:
            return np.asarray(array[0, 0])
        batched = self.rank == 4 or (self.rank == 3 and self.packed)
        return array if batched else np.asarray(array[0])


@dataclass(frozen=True, eq=False)
class Problem:
    """Attention to compute.

    query ``(B, H, Lq, D)``, key ``(B, G, Lk, D)``, value ``(B, G, Lk, Dv)``, G divides H and head
    h uses group ``h // (H // G)``. ``dtype`` is the arithmetic's type (float32 or float64),
    ``result_dtype`` what results are rounded to once. ``sink`` is ``(H,)`` or None. With ``rope``,
    query and key are turned already.
    """

    query: Array
    key: Array
    value: Array
    mask: Mask
    scale: float
    scale_source: str
    softcap: float | None
    sink: Array | None
    dtype: np.dtype[Any]
    result_dtype: np.dtype[Any]
    softmax_dtype: np.dtype[Any] | None
    family: Family
    past: int = 0
    rope: Rope | None = None
    warnings: tuple[str, ...] = ()
    cache: Family | None = None  # of past_key and past_value, where it was not the query's
    unturned: tuple[Array, Array] | None = None  # query and key before RoPE, where there is one
    real: Array | None = None  # which queries are no padding, (B, Lq), where somebody said it
    scored: bool = True  # False: only the weights are known, and query, key and value stand in
    share: object | None = None  # where it is divided among processes: ``shares.share_of``

    @property
    def caches(self) -> Family:
        """The shape family in which caches come and go."""
        return self.cache or self.family

    @property
    def batch(self) -> int:
        return int(self.query.shape[0])

    @property
    def heads(self) -> int:
        return int(self.query.shape[1])

    @property
    def kv_heads(self) -> int:
        return int(self.key.shape[1])

    @property
    def queries(self) -> int:
        return int(self.query.shape[2])

    @property
    def keys(self) -> int:
        return int(self.key.shape[2])

    @property
    def width(self) -> int:
        return int(self.query.shape[3])

    @property
    def value_width(self) -> int:
        return int(self.value.shape[3])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what is known by name, as they came in."""
        if self.scored:
            names = ("query", "key", "value")
            return {name: self.family.restore(getattr(self, name)).shape for name in names}
        whole = np.broadcast_to(0, (self.batch, self.heads, self.queries, self.keys))
        return {"weights": self.family.restore_rows(whole).shape}

    @property
    def real_rows(self) -> Array:
        """Return bool ``(B, Lq)``: False for padding, as said, or where the mask tells."""
        return np.asarray(~self.mask.padding_rows() if self.real is None else self.real)

    def group(self, head: int) -> int:
        """Return the key/value head that query head ``head`` reads."""
        return head // (self.heads // self.kv_heads)


def float_dtype(name: str) -> np.dtype[Any]:
    """Return the float dtype of that name, bfloat16 included; InputError for others."""
    if name == "bfloat16":
        import ml_dtypes

        half: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return half
    if name not in FLOATS:
        raise InputError(f"unknown dtype '{name}'", f"it must be one of {', '.join(FLOATS)}")
    return np.dtype(name)
