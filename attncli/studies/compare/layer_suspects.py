"""The usual suspects of a layer: norms, biases, projections, the order of heads, what is added.

What its attention may have been made to do otherwise is asked in ``suspects``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.words import ROPE_STYLES
from attncli.models.finding import labels
from attncli.models.layer import PACKINGS, Layer, Norm, Projections
from attncli.models.stages import normed
from attncli.studies.compare.layer_theory import LayerTheory, OutChange
from attncli.studies.compare.recipe import Out, Recipe
from attncli.studies.compare.suspects import NOTHING
from attncli.studies.compare.theory import Theory

Array = np.ndarray[Any, np.dtype[Any]]
Change = Callable[[Recipe], "Recipe | None"]

ROLES = ("query", "key", "value")
NEAR = 8  # other layers of the checkpoint that are tried
EPSILONS = (1e-5, 1e-6, 1e-12)  # of norms of which nothing says it
SEVERAL = "query, key and value"


class LayerSuspect(NamedTuple):
    """One answer to a question of a layer, as ``Suspect``: of what is made before or after."""

    kind: str
    words: str
    before: Change | None = None
    after: OutChange | None = None
    said: Mapping[str, str | None] = NOTHING
    pair: bool = False

    def applied(self, theory: Theory) -> Theory | None:
        """Return a theory that holds this, too; None where it does not go with it."""
        assert isinstance(theory, LayerTheory)
        made: LayerTheory | None = theory
        if self.kind in theory.kinds:
            return None
        if self.before is not None:
            recipe = self.before(theory.recipe)
            made = None if recipe is None else theory.again(recipe)
        if made is None:
            return None
        made = replace(
            made,
            said={**theory.said, **self.said},
            words=theory.words if self.said else (*theory.words, self.words),
            kinds=theory.kinds | {self.kind},
            outs=(*theory.outs, self.after) if self.after else theory.outs,
        )
        return None if made.out is None else made


def _gate(recipe: Recipe) -> Iterator[LayerSuspect]:
    if recipe.weights.gate is not None:
        off = _weights(gate=None, gate_bias=None)
        yield LayerSuspect("gate", "the heads' outputs are not gated", off, pair=True)


def _latents(recipe: Recipe) -> Iterator[LayerSuspect]:
    layer, latent = recipe.layer, recipe.layer.latent
    if layer.temperature is not None:
        yield LayerSuspect(
            "temperature", "queries are not multiplied by their temperature",
            _layer(temperature=None),
        )  # fmt: skip
    terms = layer.disentangled
    if terms is not None:
        for one in terms.terms:
            rest = tuple(term for term in terms.terms if term != one)
            left = replace(terms, terms=rest) if rest else None
            yield LayerSuspect("terms", f"{one} is left out", _layer(disentangled=left))
    if latent is None:
        return
    plain = 1 / np.sqrt(layer.head_dim)
    if not np.isclose(layer.scale, plain):
        yield LayerSuspect(
            "scale", "the scale without mscale²", _asked(scale=plain),
            said={"--scale": f"{plain:.9g}"},
        )  # fmt: skip
    for eps in EPSILONS:
        if eps != latent.norm.eps:
            queries = latent.query_norm and replace(latent.query_norm, eps=eps)
            other = replace(latent, norm=replace(latent.norm, eps=eps), query_norm=queries)
            yield LayerSuspect(
                "latent", f"the norms of latents have ε {eps:g}", _layer(latent=other)
            )


def layer_suspects(recipe: Recipe, stages: frozenset[str]) -> Iterator[LayerSuspect]:
    """Yield all that may have been done otherwise; ``stages`` are those that are judged."""
    yield from _input_norms(recipe)
    yield from _biases(recipe)
    yield from _head_norms(recipe)
    yield from _latents(recipe)
    yield from _projections(recipe)
    yield from _other_layers(recipe)
    if "output" in stages:
        yield from _gate(recipe)
        yield from _outputs(recipe)
        yield from _orders(recipe)
        yield from _ends(recipe)


def _layer(**change: Any) -> Change:
    return lambda r: replace(r, layer=replace(r.layer, **change))


def _asked(**change: Any) -> Change:
    return lambda r: replace(r, asked={**r.asked, **change})


def _weights(**change: Any) -> Change:
    return lambda r: replace(r, weights=replace(r.weights, **change))


# -- before the projections -------------------------------------------------------------------


def _input_norms(recipe: Recipe) -> Iterator[LayerSuspect]:
    norm, now = recipe.layer.input_norm, recipe.asked["input_norm"]
    if norm is None:
        return
    for other, words in (("none", "X is not normed"), ("auto", "X is normed")):
        if other != now:
            yield LayerSuspect(
                "norm", words, _asked(input_norm=other), said={"--input-norm": other}, pair=True
            )
    if now == "auto":
        yield LayerSuspect("norm", f"{norm.name} is applied to X twice", _normed_twice)
        yield LayerSuspect("norm", *_gain(norm, "input_norm"))
        if norm.weights:
            bare = replace(norm, weights=(), biases=())
            yield LayerSuspect(
                "norm", f"{norm.name} without its gain", _layer(input_norm=bare), pair=True
            )


def _normed_twice(recipe: Recipe) -> Recipe | None:
    """Norm what is projected before it is projected, which norms it."""
    norm = recipe.layer.input_norm
    if norm is None or (recipe.asked["memory"] is not None and recipe.layer.kind != "cross"):
        return None
    x = normed(recipe.asked["x"], norm, recipe.layer)
    return replace(recipe, asked={**recipe.asked, "x": x})


def _gain(norm: Norm, field: str) -> tuple[str, Change]:
    """Return the other of w and 1 + w."""
    plus = norm.kind.endswith("+1")
    other = replace(norm, kind=norm.kind.removesuffix("+1") if plus else f"{norm.kind}+1")
    words = "w, not 1 + w" if plus else "1 + w, not w"
    name = norm.name or field.replace("_", " ")
    return f"the gain of {name} is {words}", _layer(**{field: other})


# -- the projections --------------------------------------------------------------------------


def _biases(recipe: Recipe) -> Iterator[LayerSuspect]:
    there = [role for role in ROLES if getattr(recipe.weights, f"{role}_bias") is not None]
    for roles in (there, *([role] for role in there if len(there) > 1)):
        if roles:
            words = " and ".join(roles) if len(roles) < 3 else SEVERAL
            change = _weights(**{f"{role}_bias": None for role in roles})
            are = "biases" if len(roles) > 1 else "bias"
            yield LayerSuspect(
                "bias", f"the {are} of {words} left out", change, pair=len(roles) == len(there)
            )


def _head_norms(recipe: Recipe) -> Iterator[LayerSuspect]:
    layer = recipe.layer
    there = {n: getattr(layer, n) for n in ("query_norm", "key_norm") if getattr(layer, n)}
    if len(there) == 2:
        none: dict[str, Any] = dict.fromkeys(there)
        yield LayerSuspect("qk-norm", "query and key are not normed", _layer(**none), pair=True)
    for field, norm in there.items():
        name = field.removesuffix("_norm")
        yield LayerSuspect("qk-norm", f"the {name} is not normed", _layer(**{field: None}))
        yield LayerSuspect("qk-norm", *_gain(norm, field))
    if there and (layer.rope or recipe.asked["rope"]):
        order = "before RoPE, not after it" if layer.norm_after_rope else "after RoPE, not before"
        yield LayerSuspect(
            "qk-norm", f"query and key are normed {order}",
            _layer(norm_after_rope=not layer.norm_after_rope),
        )  # fmt: skip
    if layer.clip is not None:
        yield LayerSuspect("clip", "query, key and value are not clipped", _layer(clip=None))
    if layer.norm_after_rope and layer.rope is not None:  # turned before the attention is posed
        yield LayerSuspect("rope", "no RoPE", _asked(rope="none"), said={"--rope": "none"})
        for style in ROPE_STYLES:
            if style != layer.rope.style and layer.rope.cos is None:
                other = replace(layer.rope, style=style)
                yield LayerSuspect(
                    "rope", f"RoPE {style}", _asked(rope=other), said={"--rope": style}
                )


def _projections(recipe: Recipe) -> Iterator[LayerSuspect]:
    w = recipe.weights
    for one, two in (("query", "key"), ("key", "value"), ("query", "value")):
        if getattr(w, one).shape == getattr(w, two).shape:
            yield LayerSuspect(
                "weights", f"the projections of {one} and {two} are swapped",
                _weights(**_moved(w, {one: two, two: one})),
            )  # fmt: skip
    square = [role for role in ROLES if len(set(getattr(w, role).shape)) == 1]
    for roles in (square, *([role] for role in square if len(square) > 1)):
        if roles:
            words = " and ".join(roles) if len(roles) < 3 else SEVERAL
            yield LayerSuspect(
                "weights", f"the projections of {words} are transposed: x·W, not x·Wᵀ",
                _weights(**{role: getattr(w, role).T for role in roles}),
            )  # fmt: skip
    if "qkv" in recipe.layer.tensors:
        for packing in PACKINGS.values():
            if packing != recipe.layer.packing:
                yield LayerSuspect(
                    "weights", f"the fused projection is split as {packing}, not as "
                    f"{recipe.layer.packing or PACKINGS['rows']}", partial(_split, packing),
                )  # fmt: skip


def _moved(w: Projections, order: Mapping[str, str]) -> dict[str, Any]:
    ends = ("", "_bias")
    return {to + end: getattr(w, of + end) for to, of in order.items() for end in ends}


def _split(packing: str, recipe: Recipe) -> Recipe | None:
    """Split the fused weights in another way, where their shapes allow it."""
    try:
        made = replace(recipe.layer, packing=packing).projections()
    except ValueError:
        return None
    w = recipe.weights
    same = all(getattr(made, role).shape == getattr(w, role).shape for role in ROLES)
    return replace(recipe, weights=made) if same else None


def _other_layers(recipe: Recipe) -> Iterator[LayerSuspect]:
    """Yield the other layers of the checkpoint, the next ones first."""
    layer = recipe.layer
    every = layer.siblings
    if len(every) < 2:
        return
    named = labels(every)
    here = next(n for n, one in enumerate(every) if one.name == layer.name)
    for n in sorted(range(len(every)), key=lambda n: abs(n - here))[1 : NEAR + 1]:
        other = every[n]
        if (other.model_dim, other.output_dim, other.kind) == (
            layer.model_dim, layer.output_dim, layer.kind,
        ):  # fmt: skip
            yield LayerSuspect(
                "layer", f"layer {named[n]}",
                partial(_of_layer, other),
                said={"--layer": named[n]},
            )  # fmt: skip


def _of_layer(layer: Layer, recipe: Recipe) -> Recipe:
    return replace(recipe, layer=layer, weights=layer.projections())


# -- after the attention ----------------------------------------------------------------------


def _out(**change: Any) -> OutChange:
    return lambda out, recipe: replace(out, **change)


def _outputs(recipe: Recipe) -> Iterator[LayerSuspect]:
    out = recipe.out
    if out.weight is None:
        return
    if out.weight.shape[0] == out.weight.shape[1]:
        yield LayerSuspect(
            "out", "no output projection: the heads side by side",
            after=_out(weight=None, bias=None),
        )  # fmt: skip
        yield LayerSuspect(
            "out", "the output projection is transposed: x·W, not x·Wᵀ",
            after=_out(weight=out.weight.T),
        )  # fmt: skip
    if out.bias is not None:
        yield LayerSuspect(
            "out bias", "the bias of the output projection is left out",
            after=_out(bias=None), pair=True,
        )  # fmt: skip
        yield LayerSuspect(
            "out bias", "the bias of the output projection is added twice",
            after=_out(bias=2 * out.bias),
        )  # fmt: skip


def _orders(recipe: Recipe) -> Iterator[LayerSuspect]:
    """The heads side by side in another order."""
    layer = recipe.layer
    heads, width = layer.heads, layer.value_dim
    if heads < 2 or recipe.weights.output is None:
        return
    channels = np.arange(heads * width).reshape(heads, width)
    found = {
        "heads and channels are transposed before the output projection: D·H is read as H·D": (
            channels.T
        ),
        "heads and channels are transposed before the output projection: H·D is read as D·H": (
            np.arange(heads * width).reshape(width, heads).T
        ),
        "heads are in reverse order before the output projection": channels[::-1],
        "heads are moved on by one before the output projection": np.roll(channels, -1, 0),
        "heads are moved back by one before the output projection": np.roll(channels, 1, 0),
    }
    groups = layer.kv_heads
    if 1 < groups < heads:
        apart = channels.reshape(groups, heads // groups, width)
        found["heads are grouped the other way before the output projection"] = apart.swapaxes(0, 1)
    done = [channels.ravel().tolist()]
    for words, order in found.items():
        if np.ravel(order).tolist() not in done:
            done.append(np.ravel(order).tolist())
            yield LayerSuspect("out", words, after=partial(_ordered, np.ravel(order)))
    yield LayerSuspect(
        "out", "heads and rows are not transposed back: (H, L, D) is read as (L, H·D)",
        after=_out(untransposed=True),
    )  # fmt: skip


def _ordered(order: Array, out: Out, recipe: Recipe) -> Out | None:
    """Let the projection meet channel ``order[j]`` where it expects channel j."""
    if out.weight is None:
        return None
    weight = np.empty_like(out.weight)
    weight[:, order] = out.weight
    return replace(out, weight=weight)


def _ends(recipe: Recipe) -> Iterator[LayerSuspect]:
    """What follows the layer: X is added, a norm."""
    layer = recipe.layer
    adds = layer.output_dim == layer.model_dim
    if adds:
        yield LayerSuspect("end", "X is added: the residual", after=_ending(_added), pair=True)
    for name, norm in _norms(recipe):
        words = f"{name} is applied to the output"
        own = partial(_normed, norm)
        yield LayerSuspect("end", words, after=_ending(own))
        if adds:
            yield LayerSuspect("end", f"X is added, then {name}", after=_ending(_added, own))
            yield LayerSuspect("end", f"{words}, and X is added", after=_ending(own, _added))


def _ending(*ends: Any) -> OutChange:
    return lambda out, recipe: replace(out, ends=(*out.ends, *ends))


def _added(recipe: Recipe, b: int, rows: Array, output: Array) -> Array:
    return np.asarray(output + recipe.states[b, rows].astype(output.dtype))


def _normed(norm: Norm, recipe: Recipe, b: int, rows: Array, output: Array) -> Array:
    return normed(output, norm, recipe.layer)


def _norms(recipe: Recipe) -> Iterator[tuple[str, Norm]]:
    """Yield the norms of the block that are as wide as the output, with every ε in use."""
    layer = recipe.layer
    if layer.bundle is None:
        return
    number = re.match(r".*?\d+(?:\.|$)", layer.name)
    block = number[0] if number else ""
    used = layer.input_norm
    for name in layer.bundle.tensors:
        leaf = name.rpartition(".")[0].rpartition(".")[2].lower()
        if not (name.startswith(block) and name.endswith(".weight")):
            continue
        if not re.search(r"norm|(^|_)ln|layer_?norm", leaf):
            continue
        if tuple(layer.bundle.header(name).shape) != (layer.output_dim,):
            continue
        bias = name.removesuffix("weight") + "bias"
        biases = (bias,) if bias in layer.bundle.tensors else ()
        kind = used.kind if used is not None else "layer" if biases else "rms"
        epsilons = (used.eps,) if used is not None else EPSILONS
        for eps in epsilons:
            yield name.removesuffix(".weight"), Norm(kind, (name,), biases, eps)
