"""Which names of a checkpoint are those of a layout of ``layouts``, and what stands around them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from attncli.models.layouts import (
    BEFORE,
    EXTRAS,
    GAINS,
    IDLE,
    LAYOUTS,
    NO_SOFTMAX,
    NORMS,
    WITHIN,
    Layout,
)


def linear(names: Iterable[str]) -> dict[str, str]:
    """Return what is no softmax attention, by its parent."""
    found: dict[str, str] = {}
    for name in names:
        for leaf, what in NO_SOFTMAX.items():
            parent = parent_of(name, leaf)
            if parent and (leaf != "A_log" or parent not in found):
                found[parent] = what
    return found


@dataclass(frozen=True)
class Found:
    """A parent that has all inputs of a layout; ``tensors`` are whole names by role."""

    layout: Layout
    parent: str
    tensors: Mapping[str, str]
    unused: tuple[str, ...]
    norms: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]

    def names(self) -> set[str]:
        """Return the names of all its tensors."""
        norms = (n for pair in self.norms.values() for part in pair for n in part)
        return {*self.tensors.values(), *norms}


def join(parent: str, leaf: str) -> str:
    """Return ``parent.leaf``."""
    return f"{parent}.{leaf}" if parent else leaf


#: A component that is the number of a block, alone or after what Flax and torchvision call it.
_NUMBER = re.compile(r"(?:\w*(?:layer|layers|block|blocks|h)_)?(\d{1,9})")


def is_number(part: str) -> bool:
    """Return whether a component of a path numbers a block: ``3``, ``encoder_layer_3``."""
    return _NUMBER.fullmatch(part) is not None


def numbers(path: str) -> tuple[int, ...]:
    """Return the components of a path that are numbers: (3, 1) of ``block.3.layer.1``."""
    return tuple(int(n[1]) for part in path.split(".") if (n := _NUMBER.fullmatch(part)))


def dotted(name: str) -> str:
    """Return a name of a flattened tree, ``params/layer_0/query/kernel``, with dots."""
    return name.replace("/", ".").removesuffix(":0")


def parent_of(name: str, leaf: str) -> str | None:
    """Return what ``leaf`` was joined to, None where the name ends otherwise."""
    if name == leaf or name.endswith("." + leaf):
        return name[: -len(leaf)].rstrip(".")
    return None


def match(names: Iterable[str], rank: Callable[[str], int] | None = None) -> list[Found]:
    """Return every attention layer among the names, in the order they are met.

    ``rank`` says how many dimensions a tensor has, where names alone fit several layouts.
    """
    known = list(names)
    exact, folded = {name: name for name in known}, {_folded(name): name for name in known}
    children: dict[str, list[str]] = {}
    for name in known:
        parent = name
        while "." in parent:
            parent = parent.rpartition(".")[0]
            children.setdefault(parent, []).append(name)
    found = []
    for name in known:
        options = []
        for layout in LAYOUTS:
            # bare arrays are named by hand: W_q, w_q and wq are one
            seen, there = (_folded(name), folded) if layout.by_hand else (name, exact)
            first = layout.weight(next(iter(layout.inputs.values())))
            before = parent_of(seen, first)
            tensors = {} if before is None else _tensors(layout, before, there)
            if before is not None and tensors and _is_within(before, layout.within):
                options.append((layout, before, tensors))
        if options:
            if rank is not None and len(options) > 1:
                dimensions = rank(name)
                fit = [one for one in options if len(one[0].form.inputs) == dimensions]
                options = fit or options
            best = next((option for option in options if "output" in option[2]), options[0])
            found.append(_complete(*best, known if not best[1] else children.get(best[1], [])))
    return _without_shadows(found)


def _is_within(parent: str, pattern: str) -> bool:
    return not pattern or re.fullmatch(pattern, parent.rpartition(".")[2]) is not None


def _folded(name: str) -> str:
    parent, dot, leaf = name.rpartition(".")
    return f"{parent}{dot}{leaf.lower().replace('_', '')}"


def _tensors(layout: Layout, parent: str, there: Mapping[str, str]) -> dict[str, str]:
    """Return whole names by role, or nothing when an input is missing."""
    tensors: dict[str, str] = {}

    def take(role: str, leaf: str | None) -> None:
        name = None if leaf is None else there.get(join(parent, leaf))
        if name is not None:
            tensors[role] = name

    for role, leaf in layout.inputs.items():
        take(role, layout.weight(leaf))
    if len(tensors) < len(layout.inputs):
        return {}
    for role in {*layout.inputs, *("query", "key", "value", "qkv", "kv")}:
        take(f"{role}_bias", layout.bias(role))
    for leaf in layout.output:
        if "output" not in tensors:
            take("output", layout.weight(leaf))
            take("output_bias", layout.biases.get("output") if layout.bare else f"{leaf}.bias")
    return tensors


def _complete(layout: Layout, parent: str, tensors: dict[str, str], below: list[str]) -> Found:
    present = set(below)
    first = next(iter(layout.inputs.values()))
    beside = join(parent, first).rpartition(".")[0]
    places = list(dict.fromkeys((parent, beside)))
    norms: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for role, leaves in EXTRAS.items():
        for place in places:
            for leaf in layout.norms.get(role, leaves):
                whole = join(place, leaf)
                if role in NORMS:
                    weights = _norm(whole, "weight", present)
                    if weights:
                        norms[role] = (weights, _norm(whole, "bias", present))
                elif whole in present:
                    tensors.setdefault(role, whole)
    used = {*tensors.values(), *(n for pair in norms.values() for part in pair for n in part)}
    start = "".join(f"{part}." for part in (parent, _home(layout)) if part)
    unused = [
        n for n in below
        if n.startswith(start + layout.own) and n not in used and not IDLE.search(n[len(start) :])
    ]  # fmt: skip
    return Found(layout, parent, tensors, tuple(unused) if parent else (), norms)


def _home(layout: Layout) -> str:
    """Return the path below the parent that all of a layout's leaves share."""
    leaves = [leaf.split(".") for leaf in (*layout.inputs.values(), *layout.output)]
    shared = []
    for parts in zip(*(leaf[:-1] for leaf in leaves), strict=False):
        if len({*parts}) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _norm(whole: str, part: str, present: set[str]) -> tuple[str, ...]:
    """Return the tensors of a norm: one, or one a head (``norms.0``, ``norms.1``, …)."""
    for gain, bias in GAINS:
        name = f"{whole}.{gain if part == 'weight' else bias}"
        if name in present:
            return (name,)
    heads: list[str] = []
    while f"{whole}.norms.{len(heads)}.{part}" in present:
        heads.append(f"{whole}.norms.{len(heads)}.{part}")
    return tuple(heads)


def norm_before(parent: str, kind: str, names: Collection[str]) -> tuple[str, str, str] | None:
    """Return leaf, weight and bias ('' without one) of the norm before a layer of this kind.

    Looked for in the attention itself, then upwards to the numbered block that it is a part of; in
    what holds the attention where there are no numbers.
    """
    parts = parent.split(".")
    block = max((n + 1 for n, part in enumerate(parts) if is_number(part)), default=len(parts) - 1)
    if len(parts) > 1 and parts[-1].isdigit():  # LongCat: two of each in a block
        for leaf in BEFORE[kind]:
            place = join(".".join(parts[:-2]), f"{leaf}.{parts[-1]}")
            if f"{place}.weight" in names:
                return leaf, f"{place}.weight", f"{place}.bias" * (f"{place}.bias" in names)
    for end in range(len(parts), block - 1, -1):
        for leaf in BEFORE[kind]:
            for gain, bias in WITHIN.get(leaf, GAINS):
                place = join(".".join(parts[:end]), leaf)
                if f"{place}.{gain}" in names:
                    return leaf, f"{place}.{gain}", f"{place}.{bias}" * (f"{place}.{bias}" in names)
    return None


def _without_shadows(found: list[Found]) -> list[Found]:
    """Leave out what another row has claimed: c_attn belongs to q_attn's layer, not to GPT-2."""
    claimed: dict[str, int] = {}
    for one in found:
        for role in one.layout.inputs:
            name = one.tensors[role]
            claimed[name] = max(claimed.get(name, 0), len(one.layout.inputs))
    return [
        one
        for one in found
        if all(claimed[one.tensors[role]] == len(one.layout.inputs) for role in one.layout.inputs)
    ]
