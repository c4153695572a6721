"""The registry of statistics, and how those of rows are summed up.

A decorator above a formula says all there is to say about a statistic. Tables, CSV, JSON, policy
and documentation read it here; ``evidence`` makes what the formula asks for.

    @statistic("row", unit="nats", source="Zhai et al. 2023", heading="entropy", keep=9)
    def entropy(rows: Rows) -> Array:
        '''−Σ p ln p = ln e1 − es/e1; at least 0.'''
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from attncli.files.formats.json import Plain

Array = np.ndarray[Any, np.dtype[Any]]
Formula = TypeVar("Formula", bound=Callable[..., Any])
Of = Literal["row", "key", "head", "weights"]
Kind = Literal["number", "percent", "count"]

QUANTILES = {"p05": 0.05, "median": 0.5, "p95": 0.95}
SUMMARY = ("mean", *QUANTILES, "min", "max")

#: Statistics of attention by name, and those of a layer's weights alone.
STATISTICS: dict[str, Statistic] = {}
WEIGHTS: dict[str, Statistic] = {}


class Statistic(NamedTuple):
    """What is known of one statistic.

    ``formula`` takes what its parameters name: evidence, or other statistics; those of ``spare``,
    which have the default None, only where they are known. It makes
    ``(B, H, Lq)`` of rows, ``(B, G, Lk)`` of keys, ``(B, H)`` of heads and ``(H,)`` of weights.
    ``over`` names the rows or keys that are summed up: chosen (they have a choice), real (no
    padding) or keys; ``spread`` adds the coefficient of variation. ``heading`` and ``kind`` are
    those of its column, which stays the longer in a narrow table the larger ``keep`` is.
    ``inner`` ones are judged and not told.
    """

    name: str
    of: Of
    formula: Callable[..., Any]
    needs: tuple[str, ...]
    spare: tuple[str, ...]
    unit: str
    source: str
    heading: str
    kind: Kind
    keep: int
    over: str
    spread: bool
    inner: bool

    @property
    def text(self) -> str:
        """The first line of the formula's docstring."""
        return (self.formula.__doc__ or self.name).splitlines()[0]

    @property
    def quantiles(self) -> tuple[str, ...]:
        """What it is summed up to; nothing for what is one number a head."""
        if self.of not in ("row", "key"):
            return ()
        return (*SUMMARY, "cv") if self.spread else SUMMARY


def statistic(
    of: Of,
    *,
    name: str = "",
    unit: str = "",
    source: str = "",
    heading: str = "",
    kind: Kind = "number",
    keep: int = 0,
    over: str = "chosen",
    spread: bool = False,
    inner: bool = False,
    table: dict[str, Statistic] | None = None,
) -> Callable[[Formula], Formula]:
    """Register the formula below as a statistic, by its own name unless another is given.

    ``table`` stands in for STATISTICS and WEIGHTS.
    """

    def register(formula: Formula) -> Formula:
        called = name or formula.__name__
        known = (WEIGHTS if of == "weights" else STATISTICS) if table is None else table
        assert called not in known, f"two statistics are called {called}"
        asked = signature(formula).parameters.values()
        known[called] = Statistic(
            called, of, formula, tuple(p.name for p in asked if p.default is p.empty),
            tuple(p.name for p in asked if p.default is None), unit, source,
            heading or called.replace("_", " "), kind, keep, over, spread, inner,
        )  # fmt: skip
        return formula

    return register


# -- summing up -------------------------------------------------------------------------------

#: Statistics of heads by name: quantiles, ``(B, H)`` each, or one ``(B, H)``.
Summaries = dict[str, Mapping[str, Array] | Array]


def summarize(values: Array, chosen: Array, spread: bool = False) -> dict[str, Array]:
    """Return mean, quantiles, min and max over the chosen rows, each ``(B, H)``.

    values and chosen ``(B, H, Lq)``; with ``spread`` also ``cv``, the coefficient of variation. NaN
    where no row is chosen; rows whose value is not finite are left out (they are counted as
    ``nonfinite``).
    """
    chosen = chosen & np.isfinite(values)
    shape, length = values.shape[:2], values.shape[-1]
    flat = values.reshape(shape[0] * shape[1], length)
    summary = {name: np.full(len(flat), np.nan) for name in SUMMARY}
    for heads, rows in _choices(chosen.reshape(flat.shape)):
        some = np.compress(rows, flat[heads], -1)  # (heads, rows)
        if some.size:
            with np.errstate(over="ignore"):
                mean = some.mean(-1)
            if not np.isfinite(mean).all():
                mean = np.where(np.isfinite(mean), mean, (some / some.shape[-1]).sum(-1))
            some.sort(-1)
            inner = (quantile(some, share) for share in QUANTILES.values())
            for name, one in zip(SUMMARY, (mean, *inner, some[:, 0], some[:, -1]), strict=True):
                summary[name][heads] = one
    found = {name: one.reshape(shape) for name, one in summary.items()}
    if spread:
        found["cv"] = _variation(values, chosen, found["mean"])
    return found


def _choices(chosen: Array) -> Iterator[tuple[slice, Array]]:
    """Yield heads that choose the same rows, and these, ``(L,)``; chosen: bool ``(heads, L)``."""
    if len(chosen) and (chosen == chosen[0]).all():
        yield slice(None), chosen[0]
        return
    for head, rows in enumerate(chosen):
        yield slice(head, head + 1), rows


def _variation(values: Array, chosen: Array, mean: Array) -> Array:
    """Return the standard deviation over the mean, ``(B, H)``."""
    count = np.maximum(chosen.sum(-1), 1)
    away = np.where(chosen, values - mean[..., None], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = away / np.abs(mean)[..., None]  # before it is squared, so that no unit matters
        return np.asarray(np.sqrt((share**2).sum(-1) / count) * np.sign(mean))


def quantile(ordered: Array, share: float) -> Any:
    """Return a quantile of ``(…, n)`` ascending numbers, ``(…)``, interpolated as np.quantile does.

    Which would import numpy.ma, 15 ms at the start of the program.
    """
    last = ordered.shape[-1] - 1
    at = last * share
    low = min(int(at), last)
    a, b = (np.float64(ordered[..., n]) for n in (low, min(low + 1, last)))
    t = at - low
    return a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t)


def share_of(part: Array, whole: Array) -> Array:
    """Return the share of ``whole`` rows that are ``part`` of it, ``(B, H)``; NaN of none.

    Both are bool ``(B, H, Lq)``.
    """
    count = whole.sum(-1)
    return np.where(count > 0, (part & whole).sum(-1) / np.maximum(count, 1), np.nan)


def of_batches(found: Summaries, at: slice) -> Summaries:
    """Return the statistics of the heads of some batch elements."""
    return {
        name: {quantile: one[at] for quantile, one in values.items()}
        if isinstance(values, Mapping)
        else values[at]
        for name, values in found.items()
    }


def of_head(found: Mapping[str, Any], b: int, h: int) -> dict[str, Any]:
    """Return the statistics of one head by name: quantiles, or one number."""
    return {
        name: {q: v[b, h].item() for q, v in values.items()}
        if isinstance(values, Mapping)
        else values[b, h].item()
        for name, values in found.items()
    }


def of_every_head(found: Mapping[str, Any], batch: int, heads: int) -> list[list[dict[str, Any]]]:
    """Return what ``of_head`` does of every head, ``[b][h]``."""
    return _by_head(found, batch, heads, None)


def of_heads(found: Mapping[str, Any], computed: Array) -> list[list[dict[str, Any]]]:
    """Return the statistics of every head ``[b][h]``; a number that does not exist is None.

    It does not where no row has a choice, nor a place of nothing, below 0; of heads whose numbers
    are all ``computed``, bool ``(B, H)``, NaN is what came out.
    """
    batch, heads = computed.shape
    return _by_head(found, batch, heads, computed)


def _by_head(
    found: Mapping[str, Any], batch: int, heads: int, computed: Array | None
) -> list[list[dict[str, Any]]]:
    """Return the statistics of every head ``[b][h]``; without ``computed`` none is None."""
    every = {name: (*one.values(),) if _is_many(one) else (one,) for name, one in found.items()}
    finite = {name: all(np.isfinite(one).all() for one in some) for name, some in every.items()}
    kind = Plain if all(finite.values()) else dict
    made: list[dict[str, Any]] = [kind() for _ in range(batch * heads)]
    for name, values in found.items():
        columns = [_known(one, computed) for one in every[name]]
        kind = Plain if finite[name] else dict
        if _is_many(values):
            for own, some in zip(made, zip(*columns, strict=True), strict=True):
                own[name] = kind(zip(values, some, strict=True))
        else:
            for own, number in zip(made, *columns, strict=True):
                own[name] = number
    return [made[start : start + heads] for start in range(0, len(made), heads)]


def _is_many(values: Any) -> bool:
    return isinstance(values, Mapping)


def _known(values: Array, computed: Array | None) -> list[Any]:
    """Return the numbers of all heads in order, None for those that do not exist."""
    if computed is None:
        return list(values.ravel().tolist())
    unknown = (values < 0) if values.dtype.kind == "i" else np.isnan(values)
    if unknown.any():
        values = values.astype(object)
        values[unknown & ~computed] = None
    return list(values.ravel().tolist())


def flat_names(found: Mapping[str, Any]) -> list[str]:
    """Return the names of a table of statistics: entropy_mean, entropy_p05, …, logit_max."""
    names: list[str] = []
    for name, values in found.items():
        many = isinstance(values, Mapping)
        names += [f"{name}_{quantile}" for quantile in values] if many else [name]
    return names


def flat_values(own: Mapping[str, Any]) -> list[Any]:
    """Return the numbers of one head (see ``of_head``) in the order of ``flat_names``."""
    numbers: list[Any] = []
    for value in own.values():
        numbers += value.values() if isinstance(value, Mapping) else [value]
    return numbers
