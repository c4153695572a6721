"""The usual suspects, but for masks: what another program may have done, as changes of a problem.

A suspect is one question (its ``kind``) answered in another way. Most are options, and are told as
such; the others are told in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from attncli.attention.problem import Problem, float_dtype
from attncli.attention.rope import Rope
from attncli.attention.words import ROPE_STYLES
from attncli.studies.compare.theory import After, Theory, View
from attncli.studies.compare.theory import Change as Change

Array = np.ndarray[Any, np.dtype[Any]]

NOTHING: Mapping[str, str | None] = MappingProxyType({})
THETAS = (10000.0, 500000.0, 1000000.0, 100000.0)  # GPT-NeoX and Llama 2, Llama 3, Qwen 2
CAPS = (50.0, 30.0, 20.0)  # Gemma 2, Grok and Gemma 2's last, others
ROUNDED = "softmax"  # the kind of suspects that are roundings
PAGES = (16, 32, 64, 128, 256)


class Question(Protocol):
    """What may have been done otherwise: see ``Suspect``."""

    @property
    def kind(self) -> str: ...
    @property
    def pair(self) -> bool: ...
    def applied(self, theory: Theory) -> Theory | None: ...


class Suspect(NamedTuple):
    """One answer to the question ``kind``: options, or words where no option says it.

    ``pair``: worth trying along with others. ``also``: further questions that it answers; what
    explains as much and answers fewer stands for it.
    """

    kind: str
    words: str
    change: Change | None = None
    said: Mapping[str, str | None] = NOTHING
    after: After | None = None
    view: View | None = None
    pair: bool = True
    also: tuple[str, ...] = ()

    def applied(self, theory: Theory) -> Theory | None:
        """Return a theory that holds this, too; None where it does not go with it."""
        if self.kind in theory.kinds or (self.view and theory.view):
            return None
        made = theory if self.change is None else theory.changed(self.change)
        if made is None:
            return None
        return replace(
            made,
            said={**theory.said, **self.said},
            words=theory.words if self.said else (*theory.words, self.words),
            kinds=theory.kinds | {self.kind, *self.also},
            after=(*theory.after, self.after) if self.after else theory.after,
            view=self.view or theory.view,
        )


def suspects(problem: Problem) -> Iterator[Suspect]:
    """Yield all that may have been done otherwise, but for masks."""
    yield from _scales(problem)
    yield from _softcaps(problem)
    yield from _sinks(problem)
    yield from _ropes(problem)
    yield from _heads(problem)
    yield from _tensors(problem)
    for name in ("bfloat16", "float16"):
        if problem.softmax_dtype != float_dtype(name):
            yield Suspect(
                ROUNDED, f"the softmax in {name}", _softmax(name), {"--softmax-dtype": name},
                pair=False,
            )  # fmt: skip


def _softmax(name: str) -> Change:
    return lambda p: replace(p, softmax_dtype=float_dtype(name))


def number(value: float) -> str:
    """Return a number as an option has it: exact, and short where it is."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(float(value))


def scaled(scale: float) -> Change:
    """Return the change to another scale."""
    return lambda p: replace(p, scale=scale)


def _scales(p: Problem) -> Iterator[Suspect]:
    d, now = max(p.width, 1), p.scale
    named = {
        "none": 1.0, "auto": 1 / math.sqrt(d), "1/D": 1 / d,
        "1/√ of the model's width": 1 / math.sqrt(d * p.heads), "√D": math.sqrt(d),
        "the scale twice": now * now,
        "1/√ of the value's width": 1 / math.sqrt(max(p.value_width, 1)),
        "exp in place of exp2": now * math.log(2), "exp2 in place of exp": now / math.log(2),
        "D": float(d), "the scale doubled": 2 * now, "half the scale": now / 2,
        "1/√ of the heads": 1 / math.sqrt(max(p.heads, 1)),
    }  # fmt: skip
    done = {now}
    for words, scale in named.items():
        if any(math.isclose(scale, other, rel_tol=1e-12) for other in done):
            continue
        done.add(scale)
        text = words if words in ("none", "auto") else number(scale)
        yield Suspect("scale", words, scaled(scale), {"--scale": text})


def capped(cap: float | None) -> Change:
    """Return the change to another softcap."""
    return lambda p: replace(p, softcap=cap)


def _softcaps(p: Problem) -> Iterator[Suspect]:
    if p.softcap is None:
        for cap in CAPS:
            yield Suspect("softcap", "a softcap", capped(cap), {"--softcap": number(cap)})
        return
    yield Suspect("softcap", "no softcap", capped(None), {"--softcap": "0"})
    before = p.softcap * p.scale
    if before > 0 and p.scale != 1:
        yield Suspect(
            "softcap", "the softcap before the scale", capped(before),
            {"--softcap": number(before)},
        )  # fmt: skip
        after = p.softcap / p.scale
        yield Suspect("softcap", "another softcap", capped(after), {"--softcap": number(after)})
    yield Suspect("softcap", "the softcap after the mask: hidden keys keep a weight", _cap_last)


def _cap_last(p: Problem) -> Problem:
    """Softcap what is masked, too: −∞ becomes −cap, and nothing is hidden."""
    from attncli.attention.masks import Mask
    from attncli.studies.compare.cells import HiddenAt

    assert p.softcap is not None
    hidden = HiddenAt(p, -p.softcap)
    return replace(p, mask=Mask(p.mask.extent, biases=(*p.mask.biases, hidden)))


def sunk(sink: Array | None) -> Change:
    """Return the change to other sinks, ``(H,)``."""
    return lambda p: replace(p, sink=sink)


def _sinks(p: Problem) -> Iterator[Suspect]:
    zero = np.zeros(p.heads)
    if p.sink is None:
        yield Suspect("sink", "softmax1", sunk(zero), {"--sink": "0"})
        return
    yield Suspect("sink", "no sink", sunk(None), {"--sink": "-inf"})
    yield Suspect("sink", "the sinks multiplied by the scale", sunk(p.sink * p.scale))
    if p.sink.any():
        yield Suspect("sink", "softmax1", sunk(zero), {"--sink": "0"})
        yield Suspect("sink", "the sinks of the heads in reverse order", sunk(p.sink[::-1]))


def turned(rope: Rope | None) -> Change:
    """Return the change to another RoPE, or none."""

    def change(p: Problem) -> Problem:
        from attncli.attention.pose import turn

        q, k = p.unturned if p.unturned is not None else (p.query, p.key)
        unturned = (q, k)
        if rope is not None:
            q, k = turn(rope, q, k, p.mask, p.past, p.dtype)
        return replace(p, query=q, key=k, rope=rope, unturned=None if rope is None else unturned)

    return change


def _ropes(p: Problem) -> Iterator[Suspect]:
    now = p.rope
    if now is None:
        if p.width >= 2 and p.width % 2 == 0:
            yield from _styles(None)
        return
    yield Suspect("rope", "no RoPE", turned(None), {"--rope": "none"})
    if now.cos is None:
        yield from _styles(now)
        for dim in (None, p.width // 2, p.width // 4, (now.dim or 0) // 2):
            if now.start or dim == now.dim:
                continue
            if dim is None or (dim >= 2 and dim % 2 == 0 and dim != p.width):
                yield Suspect(
                    "rope", "another number of channels that turn", turned(replace(now, dim=dim)),
                    {"--rope-dim": str(dim or p.width)},
                )  # fmt: skip
        if now.scaling is not None:
            yield Suspect("rope", "RoPE without its scaling", turned(replace(now, scaling=None)))
        new = p.keys - p.past
        if p.past or now.positions is not None:
            start = replace(now, positions=np.arange(new))
            yield Suspect(
                "rope", "RoPE positions of the new keys begin at 0, not after the cache",
                turned(start),
            )  # fmt: skip
        follow = np.arange(p.past, p.keys)
        shifted = follow if now.positions is None else np.asarray(now.positions)
        yield Suspect(
            "rope", "RoPE positions begin at 1", turned(replace(now, positions=shifted + 1)),
            pair=False,
        )  # fmt: skip
    yield Suspect("rope", "RoPE the other way round (the sign of the sine)", _turned_wrongly)
    yield Suspect("rope", "RoPE of the queries alone", _one_turned(0), pair=False)
    yield Suspect("rope", "RoPE of the keys alone", _one_turned(1), pair=False)
    if p.past:
        yield Suspect("rope", "RoPE once more for the cached keys", _cache_turned)
        yield Suspect(
            "rope", "the cached keys are read as if they were not turned", _cache_unturned
        )


def _styles(now: Rope | None) -> Iterator[Suspect]:
    """Yield the styles, each with its own θ and others."""
    base = now or Rope()
    for style in ROPE_STYLES:
        for theta in dict.fromkeys((base.theta, *THETAS)):
            said = {} if now and style == now.style else {"--rope": style}
            said |= {} if theta == base.theta else {"--rope-theta": number(theta)}
            if said:
                words = ", ".join(
                    [f"RoPE {style}"] * ("--rope" in said)
                    + [f"θ {theta:g}"] * ("--rope-theta" in said)
                )
                made = turned(replace(base, style=style, theta=theta))
                yield Suspect("rope", words, made, said, pair=len(said) == 1)


def _turned_wrongly(p: Problem) -> Problem | None:
    if p.rope is None or p.unturned is None or p.rope.cos is not None:
        return None
    from attncli.attention.gradients import turned_back

    q, k = p.unturned
    q, k = turned_back(p.rope, q, k, p)
    return replace(p, query=q, key=k)


def _one_turned(which: int) -> Change:
    def change(p: Problem) -> Problem | None:
        if p.unturned is None:
            return None
        q, k = p.unturned
        return replace(p, key=k) if which == 0 else replace(p, query=q)

    return change


def _cache_turned(p: Problem) -> Problem | None:
    return _cache(p, backward=False)


def _cache_unturned(p: Problem) -> Problem | None:
    return _cache(p, backward=True)


def _cache(p: Problem, *, backward: bool) -> Problem | None:
    """Turn the cached keys by their places 0, 1, …, or back."""
    if p.rope is None or p.rope.cos is not None:
        return None
    from attncli.attention.rope import rotate
    from attncli.attention.rope_scaling import frequencies

    dim = p.width if p.rope.dim is None else p.rope.dim
    inverse, factor = frequencies(dim, p.rope.theta, p.rope.scaling, p.keys)
    angle = np.arange(p.past)[:, None] * inverse  # (past, dim/2)
    sine = -np.sin(angle) if backward else np.sin(angle)
    wide = p.key[:, :, : p.past].astype(np.float64)
    cached = rotate(wide, np.cos(angle) * factor, sine * factor, p.rope.style, p.rope.start)
    key = np.concatenate([cached, p.key[:, :, p.past :].astype(np.float64)], axis=2)
    return replace(p, key=key)


def _heads(p: Problem) -> Iterator[Suspect]:
    if 1 < p.kv_heads < p.heads:
        tiled = [h % p.kv_heads for h in range(p.heads)]
        yield Suspect(
            "heads",
            f"query head h reads key/value head h mod {p.kv_heads} (tiled) in place of "
            f"h // {p.heads // p.kv_heads} (repeated)",
            _groups(tiled),
        )
        yield Suspect(
            "heads", "every query head reads key/value head 0", _groups([0] * p.heads), pair=False
        )
    for name, axis in (("batch elements", 0), ("heads", 1)):
        if (p.batch, p.heads)[axis] > 1:
            yield from _orders(p, name, axis)


def _groups(groups: list[int]) -> Change:
    return lambda p: (
        replace(p, key=p.key[:, groups], value=p.value[:, groups])
        if len(groups) == p.heads and p.kv_heads > max(groups)
        else None
    )


def _orders(p: Problem, name: str, axis: int) -> Iterator[Suspect]:
    """Heads or batch elements of the candidate in another order."""
    n = (p.batch, p.heads)[axis]
    found: dict[str, list[int]] = {f"{name} in reverse order": list(range(n))[::-1]}
    if n > 2:
        found[f"{name} moved on by one"] = [*range(1, n), 0]
        found[f"{name} moved back by one"] = [n - 1, *range(n - 1)]
    for first in range(2, n):
        if n % first == 0 and n // first > 1:
            order = np.arange(n).reshape(first, -1).T.ravel().tolist()
            found[
                f"{name} grouped as {n // first} × {first} in place of {first} × {n // first}"
            ] = order
    for words, order in found.items():
        yield Suspect("layout", words, view=_taken(order, axis), pair=False)


def _taken(order: list[int], axis: int) -> View:
    def view(name: str, array: Array) -> Array | None:
        return array.take(order, axis) if array.shape[axis] == len(order) else None

    return view


def _tensors(p: Problem) -> Iterator[Suspect]:
    if p.width == p.value_width:
        yield Suspect("tensors", "keys and values are swapped", _keys_for_values)
        yield Suspect("tensors", "the values are the keys", lambda p: replace(p, value=p.key))
    if p.queries == p.keys and p.heads == p.kv_heads:
        yield Suspect(
            "tensors", "queries and keys are swapped",
            lambda p: replace(p, query=p.key, key=p.query),
        )  # fmt: skip
    if p.past:
        yield Suspect("past", "the cache is not read: past keys are left out", _without_past)
    for way in (1, -1):
        side = "early" if way > 0 else "late"
        yield Suspect(
            "tensors", f"values stand one key too {side}", _values_rolled(-way), pair=False
        )
    for page in (1, *PAGES):
        if page < p.keys:
            what = "key" if page == 1 else "page"
            for way in (1, -1):
                yield Suspect(
                    "tensors",
                    f"keys and values stand {page} too {'early' if way > 0 else 'late'}: off by "
                    f"one {what}" + ("" if page == 1 else f" of {page}"),
                    _rolled(-way * page), pair=False,
                )  # fmt: skip
    for width in (8, 16, 32, 48, 64, 80, 96, 128):
        if width < p.width:
            yield Suspect(
                "channels", f"channels from {width} on are left out of the dot product",
                _narrow(width), pair=False,
            )  # fmt: skip
    for left in (8, 16, 32):
        if p.width > left and p.width - left not in (8, 16, 32, 48, 64, 80, 96, 128):
            yield Suspect(
                "channels",
                f"channels from {p.width - left} on are left out of the dot product",
                _narrow(p.width - left), pair=False,
            )  # fmt: skip


def _keys_for_values(p: Problem) -> Problem:
    return replace(p, key=p.value, value=p.key)


def _without_past(p: Problem) -> Problem:
    from attncli.attention.masks import Mask
    from attncli.attention.patterns import KeysBelow
    from attncli.attention.predicates import Not

    hidden = Not(KeysBelow((p.past,) * p.batch))
    return replace(p, mask=p.mask & Mask(p.mask.extent, hidden))


def _values_rolled(by: int) -> Change:
    return lambda p: replace(p, value=np.roll(p.value, by, 2))


def _rolled(by: int) -> Change:
    return lambda p: replace(p, key=np.roll(p.key, by, 2), value=np.roll(p.value, by, 2))


def _narrow(width: int) -> Change:
    def change(p: Problem) -> Problem:
        query = p.query.copy()
        query[..., width:] = 0
        return replace(p, query=query)

    return change
