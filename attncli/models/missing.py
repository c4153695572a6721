"""What is missing: inputs without which names are no layer, and parts that other layers have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from attncli.errors import InputError, counted, listed
from attncli.models.layer import Lack, Layer
from attncli.models.layouts import LAYOUTS
from attncli.models.matching import Found, is_number, parent_of

#: Tensors that one layer holds for others, too.
SHARED = ("relative",)
NORMS = ("input_norm", "query_norm", "key_norm")
#: Families whose first block has no norm before it: its embedding is normed.
NORMED_FIRST = ("modernbert",)


def incomplete(names: Iterable[str], found: Sequence[Found]) -> list[str]:
    """Return what has some inputs of a layout that other layers have whole, and what it lacks."""
    layouts = list({one.layout.name: one.layout for one in found}.values())
    leaves = {layout.weight(leaf): None for layout in layouts for leaf in layout.inputs.values()}
    whole = {one.parent for one in found}
    there: dict[str, list[str]] = {}
    for name in names:
        for leaf in leaves:
            if name.endswith(f".{leaf}") and name.removesuffix(f".{leaf}") not in whole:
                there.setdefault(name.removesuffix(f".{leaf}"), []).append(leaf)
    told = []
    for parent, has in there.items():
        for layout in layouts:
            wanted = [layout.weight(leaf) for leaf in layout.inputs.values()]
            lost = [leaf for leaf in wanted if leaf not in has]
            if len(lost) < len(wanted) and _stack(parent) in {_stack(one) for one in whole}:
                told.append(f"{parent} has no {' and no '.join(lost)}")
                break
    return told


def unlike_others(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers, with a Lack for each part that most layers of their stack have.

    Parts are weights, biases, sinks, gates, and norms of x, of queries and of keys.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, str]]] = {}
    kinds = [(_stack(one.name), one.layout, one.kind, one.family) for one in layers]
    parts = [_parts(one) for one in layers]
    for kind, some in zip(kinds, parts, strict=True):
        groups.setdefault(kind, []).append(some)
    made = []
    for layer, kind, own in zip(layers, kinds, parts, strict=True):
        others = groups[kind]
        having = Counter(part for some in others for part in some)
        lost = [
            part for part, count in having.items() if part not in own and 2 * count > len(others)
        ]
        if layer.index == 0 and layer.family in NORMED_FIRST:
            lost = [part for part in lost if part != "input_norm"]
        lacks = [
            Lack(f"it has no {leaf}, as {having[part]} layers like it do")
            for part in lost
            for leaf in [next(some[part] for some in others if part in some)]
        ]
        sides = [role for role in ("query_norm", "key_norm") if role in own]
        if len(sides) == 1 and not lacks:
            lacks = [Lack(f"it has {own[sides[0]]}, and no norm of the other of queries and keys")]
        made.append(replace(layer, lacks=(*layer.lacks, *lacks)) if lacks else layer)
    return made


def nothing_found(names: Iterable[str], source: str) -> InputError:
    """Return the error that names the nearest layouts and what they lack."""
    known = list(names)
    best: dict[str, tuple[int, str]] = {}
    for layout in LAYOUTS:
        leaves = [layout.weight(leaf) for leaf in layout.inputs.values()]
        parents: dict[str, list[str]] = {}
        for name in known:
            for leaf in leaves:
                parent = parent_of(name, leaf)
                if parent is not None:
                    parents.setdefault(parent, []).append(leaf)
        for parent, have in parents.items():
            missing = [leaf for leaf in leaves if leaf not in have]
            words = (
                f"{layout.name} ('{parent}' has {', '.join(have)} but lacks {', '.join(missing)})"
            )
            if missing and len(have) > best.get(layout.name, (0, ""))[0]:
                best[layout.name] = (len(have), words)
    near = [words for _, words in sorted(best.values(), reverse=True)[:3]]
    if near:
        return InputError(
            f"{source} holds no attention layer that is known; the nearest: {'; '.join(near)}",
            "give the missing tensors, or a bundle with wq, wk, wv and wo",
        )
    some = listed([name or "unnamed" for name in known], 4)
    first = ", ".join(sorted({next(iter(row.inputs.values())) for row in LAYOUTS}))
    return InputError(
        f"{source} holds no attention layer that is known; it holds "
        f"{counted(len(known), 'tensor')} ({some})",
        f"by hand wq, wk, wv, wo; else it is recognised by its query or fused weight: {first}",
    )


def _parts(layer: Layer) -> dict[str, str]:
    """Return the parts of a layer, and what they are called below it."""
    found = {role: name for role, name in layer.tensors.items() if role not in SHARED}
    for role in NORMS:
        norm = getattr(layer, role)
        if norm is not None and norm.weights:
            found[role] = norm.weights[0]
    if layer.relative is not None and layer.relative.kind == "grid":
        found["grid"] = layer.relative.tensor
    inside = f"{layer.name}."
    return {
        part: name.removeprefix(inside) if name.startswith(inside) else leaf_of(name)
        for part, name in found.items()
    }


def leaf_of(name: str) -> str:
    """Return a module and its parameter: ``norm1.weight`` of ``layers.0.norm1.weight``."""
    return ".".join(name.split(".")[-2:])


def _stack(path: str) -> str:
    """Return a path without the numbers of its blocks."""
    return ".".join(part for part in path.split(".") if not is_number(part))
