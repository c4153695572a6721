"""The mask language: expressions and tensors become masks.

An expression is read with Python's own ``ast`` and a white list; nothing in it is ever run. An
error points at the place in the expression.
"""

from __future__ import annotations

import ast
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from attncli.attention.biases import BUILDERS as BIASES
from attncli.attention.biases import Added
from attncli.attention.call import Call, point, point_at
from attncli.attention.masks import Extent, Mask
from attncli.attention.patterns import BUILDERS as PATTERNS
from attncli.attention.predicates import And, Bias, Cells, Everything, Not, Or, Predicate
from attncli.attention.problem import Masker
from attncli.attention.words import CORNERS, MASKS, POLARITIES
from attncli.errors import MaskError, nearest

Array = np.ndarray[Any, np.dtype[Any]]
Part = tuple[Predicate, tuple[Bias, ...]]

LONGEST, DEEPEST = 20_000, 100  # characters, levels of parentheses


def masker(mask: str | Mask | Masker) -> Masker:
    """Return the function that binds a mask expression, or a mask, to an Extent.

    Raises MaskError for an expression that cannot be read; the function does for one that does
    not fit.
    """
    if isinstance(mask, Mask):
        return lambda extent: _same_extent(mask, extent)
    if callable(mask):
        return mask
    text = " ".join(mask.split())
    tree = _parse(text)

    def bind(extent: Extent) -> Mask:
        predicate, biases = _Binder(text, tree, extent).part(tree)
        return Mask(extent, predicate, biases, text=text)

    return bind


def tensor_masker(
    tensor: Any, polarity: str = "keep", name: str = "attn_mask", text: str | None = None
) -> Masker:
    """Return the function that binds a mask tensor to an Extent.

    tensor: ``(Lk)``, ``(Lq, Lk)``, ``(H, Lq, Lk)`` or ``(B, H, Lq, Lk)``; dimensions of 1
    broadcast, a last one shorter than Lk masks the rest. bool (or 0/1 integers): True = keep, or
    with ``polarity="ignore"`` True = hide. float: added to the scores. ``text`` is how the mask
    would be written as an expression, if it can be.
    Raises MaskError for anything else.
    """
    if polarity not in POLARITIES:
        raise MaskError(f"unknown mask polarity '{polarity}'", "it must be keep or ignore")
    array = _mask_values(np.asanyarray(tensor), polarity, name)
    text = text or f"{name} {array.shape} {array.dtype}"
    return lambda extent: Mask(extent, *_cells(array, extent, name), text=text)


def _same_extent(mask: Mask, extent: Extent) -> Mask:
    ours, theirs = ((e.batch, e.heads, e.queries, e.keys) for e in (mask.extent, extent))
    if ours != theirs:
        raise MaskError(
            f"the mask is made for (batch, heads, queries, keys) {ours}",
            f"the problem has {theirs}",
        )
    return Mask(extent, mask.predicate, mask.biases, mask.text)


def _mask_values(array: Array, polarity: str, name: str) -> Array:
    if array.dtype.kind in "iu":
        wrong = (array != 0) & (array != 1)
        if wrong.any():
            where = tuple(int(x) for x in np.argwhere(wrong)[0])
            raise MaskError(
                f"{name} is {array.dtype} and holds {array[where]} at {where}",
                "an integer mask must be 0 and 1; a mask that is added to the scores must be float",
            )
        array = array.astype(bool)
    if array.dtype == bool:
        return ~array if polarity == "ignore" else array
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise MaskError(f"{name} has dtype {array.dtype}", "expected bool (True = keep) or float")
    if polarity == "ignore":
        raise MaskError(
            f"the mask polarity is ignore, but {name} is {array.dtype}",
            "polarity speaks of bool masks; a float mask is added to the scores as it is",
        )
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def _cells(array: Array, extent: Extent, name: str) -> Part:
    full = (extent.batch, extent.heads, extent.queries, extent.keys)
    if not 1 <= array.ndim <= 4:
        raise MaskError(
            f"{name} has {array.ndim} dimensions, {array.shape}",
            "expected (Lk), (Lq, Lk), (H, Lq, Lk) or (B, H, Lq, Lk)",
        )
    shape = (1,) * (4 - array.ndim) + array.shape
    fits = [have in (1, want) for have, want in zip(shape[:3], full[:3], strict=True)]
    if not all(fits) or shape[3] > max(full[3], 1):
        hint = f"expected what broadcasts to (batch, heads, queries, keys) {full}"
        if array.ndim == 2 and array.shape == (extent.batch, extent.keys):
            hint += f"; key padding is ({extent.batch}, 1, 1, {extent.keys})"
        elif array.ndim == 3 and array.shape[0] == extent.batch:
            hint += f"; one mask a batch element is ({extent.batch}, 1, Lq, Lk)"
        elif array.ndim >= 2 and array.shape[-2:] == (extent.keys, extent.queries):
            hint += "; it looks transposed"
        raise MaskError(f"{name} {array.shape} does not broadcast", hint)
    cells = Cells(array.reshape(shape))
    if shape[3] == 0 and extent.keys:
        return Not(Everything()), ()
    if array.dtype == bool:
        return cells, ()
    return cells, (Added(cells),)


def _parse(text: str) -> ast.expr:
    if not text:
        raise MaskError("the mask expression is empty", "write one such as causal, or window(8, 0)")
    if len(text) > LONGEST:
        raise MaskError(
            f"the mask expression has {len(text)} characters, more than {LONGEST}",
            "put long lists into a file: padding('lengths.json'), segments('ids.npy')",
        )
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        if "nested" in (error.msg or "") or "recursion" in (error.msg or ""):
            raise _too_deep() from None
        at = min(error.offset - 1, len(text)) if error.offset else len(text)
        point(text, at, at + 1, "cannot read the mask", f"{error.msg} (masks join with & | ~ +)")
    except (RecursionError, MemoryError):
        raise _too_deep() from None
    except ValueError as error:
        raise MaskError(f"cannot read the mask: {error}") from None
    if _depth(tree.body) > DEEPEST:
        raise _too_deep()
    return tree.body


def _too_deep() -> MaskError:
    return MaskError(
        f"the mask expression is nested more than {DEEPEST} levels deep",
        "leave out parentheses, or put the mask into a file: file('mask.npy')",
    )


def _depth(tree: ast.AST) -> int:
    level, depth = [tree], 0
    while level and depth <= DEEPEST:
        depth += 1
        level = [child for node in level for child in _below(node)]
    return depth


def _below(node: ast.AST) -> list[ast.AST]:
    """What stands one level deeper; a chain of one operator is a single level."""
    if isinstance(node, ast.BinOp):
        return list(_operands(node))
    return list(ast.iter_child_nodes(node))


def _operands(node: ast.BinOp) -> list[ast.expr]:
    """Return a, b, c of a & b & c."""
    found: list[ast.expr] = []
    left: ast.expr = node
    while isinstance(left, ast.BinOp) and type(left.op) is type(node.op):
        found.append(left.right)
        left = left.left
    return [left, *reversed(found)]


def _file(call: Call) -> Part:
    call.count(1, 2)
    name = "::".join(map(str, call.args))
    return _cells(_mask_values(call.load(), "keep", name), call.extent, name)


BUILDERS: dict[str, Callable[[Call], Predicate | Bias | Part]] = {
    **PATTERNS,
    **BIASES,
    "file": _file,
}


def _balanced(join: type[And] | type[Or], parts: Sequence[Predicate]) -> Predicate:
    """Join predicates as a tree of logarithmic depth: a long chain must not exhaust the stack."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return join(_balanced(join, parts[:half]), _balanced(join, parts[half:]))


class _Binder:
    """Walks a parsed expression and builds what it says for one extent."""

    def __init__(self, text: str, tree: ast.expr, extent: Extent) -> None:
        self.text = text
        self.extent = extent
        named = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in CORNERS}
        self.corner = named.pop() if len(named) == 1 else None

    def fail(self, node: ast.expr, what: str, hint: str) -> NoReturn:
        point_at(self.text, node, what, hint)

    def part(self, node: ast.expr) -> Part:
        if isinstance(node, ast.BinOp):
            return self.joined(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            return Not(self.plain(node.operand, "~")), ()
        if isinstance(node, ast.Name):
            return self.built(node, node, [])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.keywords:
                self.fail(node, "named argument", "write the arguments in order, without names")
            return self.built(node, node.func, node.args)
        if isinstance(node, ast.BoolOp | ast.UnaryOp):
            word = {ast.And: "and", ast.Or: "or", ast.Not: "not"}.get(type(node.op))
            if word:
                sign = {"and": "&", "or": "|", "not": "~"}[word]
                self.fail(node, f"'{word}'", f"write {sign} instead of {word}")
        self.fail(node, "not a mask", "masks are joined with & | ~ + and parentheses only")

    def plain(self, node: ast.expr, sign: str) -> Predicate:
        predicate, biases = self.part(node)
        if biases:
            self.fail(node, f"a bias under {sign}", "a bias is only added: join it with + or &")
        return predicate

    def joined(self, node: ast.BinOp) -> Part:
        operands = _operands(node)
        if isinstance(node.op, ast.BitOr):
            return _balanced(Or, [self.plain(operand, "|") for operand in operands]), ()
        if not isinstance(node.op, ast.BitAnd | ast.Add):
            self.fail(node, "unknown operator", "masks are joined with & | ~, biases with +")
        parts = [self.part(operand) for operand in operands]
        biases = tuple(bias for _, some in parts for bias in some)
        if isinstance(node.op, ast.Add) and not biases:
            self.fail(node, "+ without a bias", "join two masks with & (both allow) or | (either)")
        kept = [predicate for predicate, _ in parts if not predicate.everything()]
        return (_balanced(And, kept) if kept else Everything()), biases

    def built(self, node: ast.expr, name: ast.Name, args: list[ast.expr]) -> Part:
        if name.id not in MASKS:
            known = textwrap.fill(f"known: {', '.join(MASKS)}", 64)
            guess = nearest(name.id.lower(), MASKS, "", 0.6) or known
            self.fail(name, f"unknown mask '{name.id}'", f"{guess}\nall masks: attncli mask --help")
        corner = None
        if args and isinstance(args[-1], ast.Name) and args[-1].id != "inf":
            corner = args[-1].id
            if corner not in CORNERS or not MASKS[name.id].cornered:
                self.fail(args[-1], f"unknown word '{corner}'", f"expected {MASKS[name.id].forms}")
            args = args[:-1]
        literals = tuple(self.literal(arg) for arg in args)
        call = Call(
            name.id, literals, tuple(args), corner, self.corner, node, self.text, self.extent
        )
        made = BUILDERS[name.id](call)
        if isinstance(made, Predicate):
            return made, ()
        return (Everything(), (made,)) if isinstance(made, Bias) else made

    def literal(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name) and node.id == "inf":
            return math.inf
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = self.literal(node.operand)
            if isinstance(inner, int | float):
                return -inner
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, str):
            return node.value
        self.fail(node, "not a number", "arguments are numbers, inf, or file names in quotes")
