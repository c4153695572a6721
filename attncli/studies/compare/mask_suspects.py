"""The usual suspects among masks: another corner, a window off by one, a mask that is left out."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_
from typing import Any

import numpy as np

from attncli.attention import language
from attncli.attention.masks import Extent, Mask
from attncli.attention.patterns import KeysBelow
from attncli.attention.predicates import Not
from attncli.attention.problem import Problem
from attncli.attention.words import CORNERS, MASKS, SIDES
from attncli.errors import AttnError
from attncli.studies.compare.cells import Added01, HiddenAt, Times, Transposed
from attncli.studies.compare.suspects import Change, Suspect

Array = np.ndarray[Any, np.dtype[Any]]

SENTINEL = -1e4  # a lower one rounds all scores away: rows that see nothing are means
TILES = (16, 32, 64, 128, 256)
WINDOWS = (64, 128, 256, 512, 1024, 2048, 4096)  # with the query's own key


@dataclass(frozen=True, eq=False)
class Said:
    """A mask in three parts: expressions that must all hold, tensors, the lengths of a cache."""

    texts: tuple[str, ...]
    others: tuple[Mask, ...]

    @classmethod
    def of(cls, mask: Mask) -> Said:
        """Take a mask apart; what no expression says goes whole among the others."""
        texts: list[str] = []
        others: list[Mask] = []
        for part in mask.parts:
            try:
                if part.source or not part.text:
                    raise SyntaxError
                language.masker(part.text)(part.extent)
                texts += conjuncts(part.text)
            except (AttnError, SyntaxError):
                others.append(part)
        return cls(tuple(texts), tuple(others))

    @property
    def text(self) -> str:
        """The expression as one."""
        return joined(self.texts)

    def mask(self, texts: Sequence[str], extent: Extent) -> Mask:
        """Return the mask with other expressions. Raises MaskError where they do not fit."""
        parts = [language.masker(text)(extent) for text in texts]
        parts += [replace(other, extent=extent) for other in self.others]
        return reduce(and_, parts, Mask(extent))


def conjuncts(text: str) -> list[str]:
    """Return the expressions that ``&`` and ``+`` join at the top of one, each with its corner.

    A corner that is written once holds for the whole expression, and so does it for each part.
    """
    tree = ast.parse(text, mode="eval").body
    named = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in CORNERS}
    if len(named) == 1:
        tree = _Cornered(named.pop()).visit(tree)
    parts = [tree]
    while isinstance(parts[0], ast.BinOp) and isinstance(parts[0].op, ast.BitAnd | ast.Add):
        first = parts[0]
        parts = [first.left, first.right, *parts[1:]]
    return [ast.unparse(part) for part in parts]


class _Cornered(ast.NodeTransformer):
    """Writes a corner into each mask that has one and leaves it out."""

    def __init__(self, corner: str) -> None:
        self.corner = ast.Name(corner)

    def visit_Call(self, node: ast.Call) -> ast.Call:
        said = any(isinstance(a, ast.Name) and a.id in CORNERS for a in node.args)
        args = node.args if said or not _has_corner(node.func) else [*node.args, self.corner]
        return ast.Call(node.func, args, [])

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Call(node, [self.corner], []) if _has_corner(node) else node


def _has_corner(name: ast.expr) -> bool:
    word = MASKS.get(name.id) if isinstance(name, ast.Name) else None
    return word is not None and word.last == CORNERS


def joined(texts: Sequence[str]) -> str:
    """Return expressions of which all must hold as one."""
    tight = [f"({t})" if isinstance(_op(t), ast.BitOr) and len(texts) > 1 else t for t in texts]
    return " & ".join(tight)


def _op(text: str) -> ast.operator | None:
    tree = ast.parse(text, mode="eval").body
    return tree.op if isinstance(tree, ast.BinOp) else None


def mask_suspects(problem: Problem) -> Iterator[Suspect]:
    """Yield all that may have been masked otherwise."""
    said = Said.of(problem.mask)
    done = {said.text}
    for texts, words in _expressions(problem, said):
        text = joined(texts)
        if text not in done:
            done.add(text)
            yield Suspect("mask", words, _rebound(said, tuple(texts)), {"--mask": text or "none"})
    yield from _lengths(problem, said)
    yield from _tensors(problem, said)
    if not problem.mask.predicate.everything():
        yield from _altogether(problem)


def _rebound(said: Said, texts: tuple[str, ...]) -> Change:
    def change(p: Problem) -> Problem:
        e = p.mask.extent
        return replace(p, mask=said.mask(texts, e))

    return change


def _expressions(p: Problem, said: Said) -> Iterator[tuple[list[str], str]]:
    """Yield expressions in place of those that are said, and what is otherwise in them."""
    texts = list(said.texts)
    for n, text in enumerate(texts):
        others = texts[:n] + texts[n + 1 :]
        for other, words in _variants(p, text):
            yield [*texts[:n], other, *texts[n + 1 :]], words
        yield others, f"without {text}"
    for corner in CORNERS:
        everywhere = [_cornered(text, corner) for text in texts]
        yield everywhere, f"the corner {corner}"
    for tile in TILES:
        if any("causal" in text for text in texts) and tile < p.keys:
            whole = [_tiled(text, tile) for text in texts]
            yield whole, f"causal by whole tiles of {tile}: those on the diagonal hide nothing"
    sides = [re.fullmatch(r"window\((\d+)(?:, 0)?((?:, \w+)?)\)", text) for text in texts]
    for n, found in enumerate(sides):
        if found and len(texts) > 1:
            left, corner = found.groups()
            rest = [t for i, t in enumerate(texts) if i != n and not t.startswith("causal")]
            yield [*rest, f"window({left}, {left}{corner})"], "the window on both sides, not causal"
    if len(texts) > 1:
        yield [], "no mask"
    if texts and not any(_is_bias(text) for text in texts):
        yield [f"~({said.text})"], "the mask inverted"
    if not any(word in said.text for word in ("causal", "window", "chunks")):
        for corner in CORNERS if p.queries != p.keys else ("",):
            yield [*texts, f"causal({corner})" if corner else "causal"], "causal besides"
    if not any(word in said.text for word in ("window", "blocks", "chunks")):
        for size in WINDOWS:
            if size < p.keys:
                corner = _corner_of(said.text)
                yield [*texts, f"window({size - 1}, 0{corner})"], f"a window of {size} besides"


def _corner_of(text: str) -> str:
    return next((f", {corner}" for corner in CORNERS if corner in text), "")


def _cornered(text: str, corner: str) -> str:
    """Return an expression with one corner wherever there is one."""
    for other in CORNERS:
        text = text.replace(other, corner)
    return text


def _tiled(text: str, tile: int) -> str:
    """Return an expression whose causal lets the tiles on the diagonal through."""
    return re.sub(r"causal(\([a-z_]+\))?", rf"(\g<0> | blocks({tile}))", text)


def _is_bias(text: str) -> bool:
    return any(word in text for word in ("alibi", "relative"))


def _variants(p: Problem, text: str) -> Iterator[tuple[str, str]]:
    """Yield an expression with one of its masks read in another way, and what is otherwise."""
    tree = ast.parse(text, mode="eval")
    for node in ast.walk(tree):
        called = node if isinstance(node, ast.Call) else None
        name = called.func if called else node
        if not isinstance(name, ast.Name) or (called is None and _is_argument(tree, node)):
            continue
        arguments = [ast.unparse(a) for a in called.args] if called else []
        corner = arguments.pop() if arguments and arguments[-1] in CORNERS else ""
        for other, words in _readings(p, name.id, arguments, corner):
            yield _with(tree, node, other), words


def _is_argument(tree: ast.AST, node: ast.AST) -> bool:
    """Whether a name is not a mask: a function's own name, a corner, inf."""
    return any(
        isinstance(n, ast.Call) and (n.func is node or any(a is node for a in n.args))
        for n in ast.walk(tree)
    )


def _with(tree: ast.Expression, old: ast.AST, new: str) -> str:
    class Put(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return ast.parse(new, mode="eval").body if node is old else super().visit(node)

    fresh = ast.unparse(Put().visit(ast.Expression(tree.body)))
    return fresh


def _readings(p: Problem, name: str, args: list[str], corner: str) -> Iterator[tuple[str, str]]:
    """Yield what one mask may have been taken for."""
    end = f", {corner}" if corner else ""
    if name in ("causal", "window", "chunks", "blocks", "segments", "dilated", "alibi"):
        own = p.mask.extent.past is not None or p.mask.extent.lengths is not None
        for other in CORNERS:
            if other != corner and (own or p.queries != p.keys):
                inside = ", ".join([*args, other])
                yield f"{name}({inside})", f"the corner {other}"
    if name == "causal":
        alone = f"window(0, 0{end})"
        yield f"causal{f'({corner})' if corner else ''} & ~{alone}", "the own key hidden"
        yield f"window(inf, 1{end})", "one key ahead is seen"
    numbers = [_whole(a) for a in args]
    if name == "window" and numbers and None not in numbers[:2]:
        left = numbers[0]
        right = numbers[1] if len(numbers) > 1 else math.inf
        assert left is not None
        assert right is not None
        for before, after, words in _windows(left, right):
            if before >= 0 and after >= 0 and (before, after) != (left, right):
                yield f"window({_text(before)}, {_text(after)}{end})", words
        if left != math.inf:
            size = int(left) + 1
            for n in (size, size - 1):
                if n > 0:
                    yield f"chunks({n}{end})", f"chunks of {n} in place of a window"
                    yield f"blocks({n}{end})", f"blocks of {n} in place of a window"
    if name in ("blocks", "chunks", "prefix", "dilated", "global_rows") and numbers and numbers[0]:
        n = int(numbers[0])
        for near in (n - 1, n + 1):
            if near > 0:
                inside = ", ".join([str(near), *args[1:]])
                yield f"{name}({inside}{end})", f"{near} in place of {n}"
        if name in ("blocks", "chunks"):
            yield f"window({n - 1}, 0{end})", f"a window of {n} in place of {name}"
            yield f"causal{f'({corner})' if corner else ''}", f"causal in place of {name}"
    if name == "padding":
        yield from _paddings(p, args)
    if name == "segments" and len(numbers) > 1 and None not in numbers:
        for moved, words in (([*args[1:], args[-1]], "early"), ([args[0], *args[:-1]], "late")):
            yield f"segments({', '.join(moved)}{end})", f"segments begin one too {words}"
    if name == "alibi":
        from attncli.attention.biases import alibi_slopes

        slopes = [float(a) for a in args] or list(alibi_slopes(p.heads))
        negative = ", ".join(repr(-s) for s in slopes)
        yield f"alibi({negative}{end})", "alibi with the other sign"
        if len(slopes) > 1:
            backward = ", ".join(repr(s) for s in slopes[::-1])
            yield f"alibi({backward}{end})", "the slopes of alibi in reverse order"


def _paddings(p: Problem, args: list[str]) -> Iterator[tuple[str, str]]:
    sides = [a for a in args if a in SIDES]
    found = [_whole(a) for a in args if a not in SIDES]
    lengths = [int(n) for n in found if n is not None]
    if not lengths or len(lengths) < len(found):
        return
    for by in (-1, 1):
        moved = [str(min(max(n + by, 0), p.keys)) for n in lengths]
        yield f"padding({', '.join([*moved, *sides])})", f"lengths {by:+d}"
    other = [] if "left" in sides else ["left"]
    yield f"padding({', '.join([*map(str, lengths), *other])})", "padding on the other side"


def _windows(left: float, right: float) -> Iterator[tuple[float, float, str]]:
    yield left - 1, right, "the window one narrower on the left"
    yield left + 1, right, "the window one wider on the left"
    yield left, right - 1, "the window one narrower on the right"
    yield left, right + 1, "the window one wider on the right"
    yield left - 1, right - 1, "the window one narrower on both sides"
    yield left + 1, right + 1, "the window one wider on both sides"
    yield left, left, "the window on both sides"
    yield left, 0, "the window on the left alone"
    yield left, math.inf, "the window open on the right"
    yield math.inf, right, "the window open on the left"
    yield right, left, "left and right swapped"
    yield left // 2, left // 2, "half the window on each side"
    yield left // 2, right, "half the window"
    yield 2 * left, right, "twice the window"


def _whole(text: str) -> float | None:
    try:
        return math.inf if text == "inf" else float(int(text))
    except ValueError:
        return None


def _text(number: float) -> str:
    return "inf" if number == math.inf else str(int(number))


def _lengths(p: Problem, said: Said) -> Iterator[Suspect]:
    """The valid keys of a padded cache: ignored, off by one, those of the first for all."""
    lengths = p.mask.extent.lengths
    if lengths is None:
        return
    found = {
        "all keys of the cache, beyond its lengths too": [p.keys] * p.batch,
        "one key more": [min(n + 1, p.keys) for n in lengths],
        "one key less": [max(n - 1, 0) for n in lengths],
    }
    if len(set(lengths)) > 1:
        found["the lengths in reverse order"] = list(lengths)[::-1]
        found["the first length for all"] = [lengths[0]] * p.batch
        found["the longest for all"] = [max(lengths)] * p.batch
    for words, others in found.items():
        text = ",".join(map(str, others))
        yield Suspect(
            "lengths", words, _with_lengths(said, tuple(others), again=True), {"--kv-lengths": text}
        )
        if said.texts:  # the corner stays where the lengths put it
            yield Suspect(
                "lengths", f"{words} (their places as they were)",
                _with_lengths(said, tuple(others), again=False),
            )  # fmt: skip


def _with_lengths(said: Said, lengths: tuple[int, ...], *, again: bool) -> Change:
    def change(p: Problem) -> Problem:
        e = p.mask.extent
        extent = replace(e, lengths=lengths) if again else e
        others = [o for o in said.others if o.text or o.predicate.keys_below() != e.lengths]
        mask = replace(said, others=tuple(others)).mask(said.texts, extent)
        return replace(p, mask=mask & Mask(extent, KeysBelow(lengths)))

    return change


def _tensors(p: Problem, said: Said) -> Iterator[Suspect]:
    """Mask tensors: left out, inverted, with the other sign, multiplied by the scale."""
    for n, part in enumerate(said.others):
        name = part.source or part.text.partition(" ")[0]
        if not name:
            continue
        rest = (*said.others[:n], *said.others[n + 1 :])
        yield Suspect("mask", f"{name} is not applied", _instead(said, rest))
        if not part.predicate.everything():
            turned = replace(part, predicate=Not(part.predicate), text="", source="")
            flags = {} if part.biases else {"--mask-polarity": "ignore"}
            yield Suspect(
                "mask", f"{name} the other way round", _instead(said, (*rest, turned)), flags
            )
        if part.biases:
            for factor, words in (
                (-1.0, "with the other sign"), (p.scale, "multiplied by the scale, too"),
            ):  # fmt: skip
                biases = tuple(Times(bias, factor) for bias in part.biases)
                yield Suspect(
                    "mask", f"{name} {words}",
                    _instead(said, (*rest, replace(part, biases=biases, text="", source=""))),
                )  # fmt: skip


def _instead(said: Said, others: tuple[Mask, ...]) -> Change:
    return lambda p: replace(p, mask=replace(said, others=others).mask(said.texts, p.mask.extent))


def _altogether(problem: Problem) -> Iterator[Suspect]:
    """What may have been done to the mask as a whole."""

    def added(kept: float, hidden: float) -> Change:
        return lambda p: replace(
            p,
            mask=Mask(p.mask.extent, biases=(*p.mask.biases, Added01(p.mask, kept, hidden))),
        )

    yield Suspect("mask", "the mask is added to the scores as 0 and 1", added(1, 0))
    yield Suspect("mask", "the mask is added as 0 and 1, 1 where it hides", added(0, 1))
    if np.isfinite(problem.value).all():  # else it says no more than that they are read
        yield Suspect(
            "mask",
            f"hidden keys get {SENTINEL:g} added in place of −∞: rows that see nothing leak",
            added(0, SENTINEL),
        )  # fmt: skip
    yield Suspect("mask", "hidden scores are 0, not −∞: hidden keys keep a weight", _hidden_at(0.0))
    if problem.queries == problem.keys:
        yield Suspect("mask", "the mask is transposed", _transposed)
    if problem.mask.varies.batch:
        yield Suspect("mask", "the mask of the first batch element for all", _of_first)


def _hidden_at(value: float) -> Change:
    return lambda p: replace(
        p, mask=Mask(p.mask.extent, biases=(*p.mask.biases, HiddenAt(p, value)))
    )


def _transposed(p: Problem) -> Problem:
    mask = Mask(p.mask.extent, Transposed(p.mask.predicate), p.mask.biases)
    return replace(p, mask=mask)


@dataclass(frozen=True, eq=False)
class _First(Transposed):
    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return self.of.allows(0, h, i, j)


def _of_first(p: Problem) -> Problem:
    return replace(p, mask=replace(p.mask, predicate=_First(p.mask.predicate), joined=()))
