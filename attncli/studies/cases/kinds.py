"""The kinds of test cases of an attention kernel: what each catches, and how it is drawn.

To add a kind, write its builder, whose docstring is what it catches. All tensors are
``(B, H, L, D)``, keys and values ``(B, G, L, …)``; options are those of ``attncli.attend``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SMALLEST = "finfo.min"  # stands for the most negative number of each case's own dtype


@dataclass(frozen=True, eq=False)
class Draft:
    """A case before its numbers are rounded to a dtype; ``name`` is its own among its kind's."""

    name: str
    tensors: Mapping[str, Array]
    options: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")


class Draw:
    """Unit-normal tensors, one after the other."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def normal(self, *shape: int, std: float = 1.0) -> Array:
        return self.rng.normal(size=shape) * std

    def qkv(
        self,
        queries: int = 33,
        keys: int | None = None,
        *,
        batch: int = 1,
        heads: int = 2,
        groups: int | None = None,
        width: int = 16,
        value_width: int | None = None,
        std: float = 1.0,
    ) -> dict[str, Array]:
        """Return query, key and value; ``std`` is that of query and key."""
        n, g = keys or queries, groups or heads
        return {
            "query": self.normal(batch, heads, queries, width, std=std),
            "key": self.normal(batch, g, n, width, std=std),
            "value": self.normal(batch, g, n, value_width or width),
        }

    def past(self, length: int, *, groups: int = 2, width: int = 16) -> dict[str, Array]:
        """Return a cache."""
        return {f"past_{name}": self.normal(1, groups, length, width) for name in ("key", "value")}


@dataclass(frozen=True)
class Kind:
    """What a kind of cases catches, in one sentence, and how its drafts are drawn."""

    name: str
    catches: str
    build: Callable[[Draw], Iterator[Draft]]


#: Every kind by its name, in the order in which cases are written.
KINDS: dict[str, Kind] = {}


def kind(build: Callable[[Draw], Iterator[Draft]]) -> Kind:
    """Enter a builder into ``KINDS`` under its own name; its docstring is what it catches."""
    made = Kind(build.__name__, (build.__doc__ or "").rstrip("."), build)
    KINDS[made.name] = made
    return made


@kind
def lengths(draw: Draw) -> Iterator[Draft]:
    """A last tile that is skipped, or read past its end, at lengths around tile edges."""
    for n in (1, 2, 63, 64, 65, 127, 128, 129, 1023, 1025):
        heads = 1 if n > 1000 else 2
        yield Draft(f"{n}", draw.qkv(n, heads=heads))
        yield Draft(f"{n}_causal", draw.qkv(n, heads=heads), {"mask": "causal"})


@kind
def corners(draw: Draw) -> Iterator[Draft]:
    """Causal aligned at the wrong corner where queries and keys differ in number."""
    for queries, keys in ((5, 13), (64, 200), (65, 129), (130, 70)):
        yield Draft(f"{queries}_{keys}", draw.qkv(queries, keys))
        for corner in ("top_left", "bottom_right"):
            options = {"mask": f"causal({corner})"}
            yield Draft(f"{queries}_{keys}_{corner}", draw.qkv(queries, keys), options)


@kind
def past(draw: Draw) -> Iterator[Draft]:
    """A cache whose keys are not all read, or whose length the causal mask does not count."""
    for new, old in ((1, 1), (1, 127), (1, 128), (4, 60), (48, 80), (65, 64)):
        tensors = {**draw.qkv(new, heads=4, groups=2), **draw.past(old)}
        yield Draft(f"{new}_after_{old}", tensors, {"mask": "causal"})
    yield Draft("5_after_20_all", {**draw.qkv(5), **draw.past(20)})


@kind
def cache(draw: Draw) -> Iterator[Draft]:
    """Stale keys behind a sequence's length, or one length taken for the whole batch."""
    for new, room, valid in ((1, 128, (1, 64, 128)), (4, 80, (4, 33, 80)), (16, 70, (70, 16, 65))):
        for mask in ("", "causal"):
            tensors = draw.qkv(new, room, batch=3, heads=4, groups=2)
            for b, n in enumerate(valid):
                tensors["key"][b, :, n:] *= 30  # what another sequence left there
                tensors["value"][b, :, n:] = 1000
            options = {"kv_lengths": [*valid], **({"mask": mask} if mask else {})}
            yield Draft(f"{new}_of_{room}{'_causal' if mask else ''}", tensors, options)


@kind
def groups(draw: Draw) -> Iterator[Draft]:
    """Query heads that read the keys of another group."""
    for heads, some in ((4, 2), (6, 2), (6, 3), (4, 1), (8, 1)):
        tensors = draw.qkv(40, batch=2, heads=heads, groups=some)
        yield Draft(f"{heads}_over_{some}", tensors, {"mask": "causal"})


@kind
def dead_rows(draw: Draw) -> Iterator[Draft]:
    """NaN, or the mean of all values, in rows that see no key."""
    keep = draw.rng.random((2, 33, 33)) < 0.5
    keep[:, [0, 7, 32]] = False
    yield Draft("bool", {**draw.qkv(33), "attn_mask": keep})
    keep = np.ones((2, 1, 65), bool)
    keep[1] = False
    yield Draft("head", {**draw.qkv(65), "attn_mask": keep})
    added = np.where(draw.rng.random((33, 33)) < 0.5, draw.normal(33, 33), -np.inf)
    added[[0, 16]] = -np.inf
    yield Draft("minus_infinity", {**draw.qkv(33), "attn_mask": added})
    yield Draft("before_the_first_key", draw.qkv(70, 64), {"mask": "causal(bottom_right)"})
    yield Draft("empty_sequence", draw.qkv(4, 64, batch=2), {"kv_lengths": [0, 64]})


@kind
def huge_logits(draw: Draw) -> Iterator[Draft]:
    """A softmax that overflows, or forgets to rescale when a later tile holds the maximum."""
    for std in (8, 25):
        yield Draft(f"std_{std}", draw.qkv(130, std=std), {"mask": "causal"})
    for name, order in (("rising", 1), ("falling", -1)):
        tensors = draw.qkv(4, 200)
        ramp = np.linspace(-40, 40, 200)[::order]
        tensors["query"][..., 0], tensors["key"][..., 0] = 8, ramp
        yield Draft(name, tensors)
    negative = draw.qkv(64)
    negative["query"][..., 0], negative["key"][..., 0] = 20, -40
    yield Draft("all_negative", negative)


@kind
def tiny_logits(draw: Draw) -> Iterator[Draft]:
    """Logits that are rounded to zero before the softmax, or weights that do not sum to one."""
    yield Draft("std_1e-3", draw.qkv(130, std=1e-3))
    yield Draft("zero", {**draw.qkv(65), "query": np.zeros((1, 2, 65, 16))})


@kind
def ties(draw: Draw) -> Iterator[Draft]:
    """A running maximum that fails on equal logits."""
    alike = draw.qkv(65)
    alike["key"][:] = alike["key"][:, :, :1]
    yield Draft("all_keys", alike)
    tops = draw.qkv(8, 130)
    tops["key"][:, :, [3, 64, 129]] = 4 * tops["query"][:, :, :1]
    yield Draft("at_the_top", tops)
    yield Draft("all_values", {**draw.qkv(40), "value": np.ones((1, 2, 40, 16))})


@kind
def windows(draw: Draw) -> Iterator[Draft]:
    """A window one key too wide or too narrow, or tiles that it touches and that are skipped."""
    for size in (0, 1, 31, 32, 63, 64, 65):
        yield Draft(f"causal_{size}", draw.qkv(130), {"mask": f"causal & window({size})"})
    for left, right in ((8, 8), (3, 0), (0, 5), (64, 63)):
        options = {"mask": f"window({left}, {right})"}
        yield Draft(f"{left}_{right}", draw.qkv(130), options)
    tensors = {**draw.qkv(3), **draw.past(100)}
    yield Draft("after_past", tensors, {"mask": "causal & window(32)"})
    yield Draft("sinks", draw.qkv(130), {"mask": "causal & (window(16) | prefix(4))"})


@kind
def segments(draw: Draw) -> Iterator[Draft]:
    """Tokens that see another document of the same row."""
    for parts in ((1, 63, 64, 5), (20, 20, 20), (64, 1, 65)):
        ids = np.repeat(np.arange(len(parts)), parts)
        text = f"segments({', '.join(map(str, ids))})"
        name = "_".join(map(str, parts))
        yield Draft(name, draw.qkv(len(ids)), {"mask": text})
        yield Draft(f"{name}_causal", draw.qkv(len(ids)), {"mask": f"causal & {text}"})


@kind
def softcap(draw: Draw) -> Iterator[Draft]:
    """A softcap left out, put after the mask, or applied before the scale."""
    for cap in (2.0, 20.0):
        options = {"softcap": cap}
        yield Draft(f"{cap:g}", draw.qkv(70, std=4), options)
        yield Draft(f"{cap:g}_causal", draw.qkv(70, std=4), {**options, "mask": "causal"})
    yield Draft("with_scale", draw.qkv(40, std=2), {"softcap": 5.0, "scale": 1.0})


@kind
def sinks(draw: Draw) -> Iterator[Draft]:
    """A sink that is left out of the denominator, or scaled, or one for all heads."""
    yield Draft("softmax1", draw.qkv(65), {"sink": 0.0})
    yield Draft("by_head", draw.qkv(65, heads=4), {"sink": [-2.0, 0.0, 1.5, 5.0], "mask": "causal"})
    yield Draft("large", draw.qkv(40), {"sink": 60.0})
    keep = np.tri(33, k=-1, dtype=bool)
    yield Draft("dead_row", {**draw.qkv(33), "attn_mask": keep}, {"sink": [0.0, 2.0]})


@kind
def sentinels(draw: Draw) -> Iterator[Draft]:
    """Finite numbers in place of −∞ that leak, or overflow when they are added."""
    for name, number in (("minus_1e4", -1e4), ("smallest", SMALLEST)):
        hidden = draw.rng.random((2, 1, 1, 70)) < 0.4
        hidden[..., 5] = False
        yield Draft(name, {**draw.qkv(70, batch=2), "attn_mask": _filled(hidden, number)})
    rows = np.triu(np.ones((33, 33), bool), 1)
    rows[4] = True
    wide = ("float32", "bfloat16")  # −65504 would leave some of the score over
    yield Draft(
        "row_of_smallest", {**draw.qkv(33), "attn_mask": _filled(rows, SMALLEST)}, dtypes=wide
    )


def _filled(hidden: Array, number: float | str) -> Array:
    """Return a float mask: 0, or a number, or NaN for what ``SMALLEST`` stands for."""
    return np.where(hidden, np.nan if number == SMALLEST else float(number), 0.0)


@kind
def mask_tensors(draw: Draw) -> Iterator[Draft]:
    """A mask tensor read with the wrong polarity, shape or broadcast, or not added at all."""
    shapes: tuple[tuple[int, ...], ...] = (
        (70,), (33, 70), (2, 33, 70), (3, 1, 1, 70), (3, 2, 33, 70), (3, 1, 33, 70)
    )  # fmt: skip
    for shape in shapes:
        keep = draw.rng.random(shape) < 0.6
        keep[..., 0] = True
        name = "x".join(map(str, shape))
        yield Draft(f"bool_{name}", {**draw.qkv(33, 70, batch=3), "attn_mask": keep})
        added = np.where(keep, draw.normal(*shape), -np.inf)
        yield Draft(f"float_{name}", {**draw.qkv(33, 70, batch=3), "attn_mask": added})


@kind
def alibi(draw: Draw) -> Iterator[Draft]:
    """Slopes of the wrong heads, distances from the wrong corner, or a bias that is scaled."""
    yield Draft("causal", draw.qkv(70, heads=4), {"mask": "causal + alibi"})
    yield Draft("both_sides", draw.qkv(70, heads=4), {"mask": "alibi"})
    yield Draft("slopes", draw.qkv(65), {"mask": "causal + alibi(0.7, 0.05)"})
    tensors = {**draw.qkv(3), **draw.past(61)}
    yield Draft("after_past", tensors, {"mask": "causal + alibi(0.25, 0.5)"})


@kind
def padding(draw: Draw) -> Iterator[Draft]:
    """Padding that is seen, on either side, alone and with causal."""
    for side in ("", ", left"):
        text = f"padding(70, 33, 64{side})"
        name = "left" if side else "right"
        yield Draft(name, draw.qkv(70, batch=3), {"mask": text})
        yield Draft(f"{name}_causal", draw.qkv(70, batch=3), {"mask": f"causal & {text}"})


@kind
def widths(draw: Draw) -> Iterator[Draft]:
    """Channels past the last whole vector that are dropped, or the key's width taken for both."""
    for width in (1, 3, 40, 80, 96, 128):
        yield Draft(f"{width}", draw.qkv(33, width=width), {"mask": "causal"})
    for width, own in ((24, 8), (8, 48), (16, 1)):
        yield Draft(f"{width}_{own}", draw.qkv(33, width=width, value_width=own))


@kind
def value_mean(draw: Draw) -> Iterator[Draft]:
    """Digits of values with a large mean that are lost in partial sums."""
    for mask in ("", "causal"):
        tensors = draw.qkv(200)
        tensors["value"] = tensors["value"] + 100
        options = {"mask": mask} if mask else {}
        yield Draft(f"plus_100{'_causal' if mask else ''}", tensors, options)


@kind
def scale(draw: Draw) -> Iterator[Draft]:
    """A scale that is left out, taken twice, or taken to be positive."""
    for name, value in (("none", "none"), ("negative", -0.25), ("zero", 0.0), ("eighth", 0.125)):
        yield Draft(name, draw.qkv(65), {"scale": value, "mask": "causal"})


@kind
def gradients(draw: Draw) -> Iterator[Draft]:
    """A backward pass with another mask, scale or group than the forward pass."""
    rows: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
        ("plain", {}, {}),
        ("causal", {}, {"mask": "causal"}),
        ("bottom_right", {"keys": 90}, {"mask": "causal(bottom_right)"}),
        ("groups", {"heads": 4, "groups": 2}, {"mask": "causal"}),
        ("window", {}, {"mask": "causal & window(16)"}),
        ("softcap", {"std": 3.0}, {"softcap": 5.0}),
        ("sink", {}, {"sink": [0.0, 1.0]}),
        ("scale", {}, {"scale": 1.0}),
        ("widths", {"width": 24, "value_width": 8}, {}),
    )
    for name, shape, options in rows:
        tensors = draw.qkv(65, **shape)
        up = draw.normal(*tensors["query"].shape[:3], tensors["value"].shape[-1])
        yield Draft(name, {**tensors, "grad_output": up}, options)
