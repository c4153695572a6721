"""The mask language: expressions and tensors become masks.

An expression is read with Python's own ``ast`` and a white list; nothing in it is ever run. An
error points at the place in the expression.
"""

from __future__ import annotations

import ast
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from attncli.attention.biases import BUILDERS as BIASES
from attncli.attention.call import Call, point, point_at
from attncli.attention.masks import Extent, Mask
from attncli.attention.patterns import BUILDERS as PATTERNS
from attncli.attention.predicates import And, Bias, Everything, Not, Or, Part, Predicate
from attncli.attention.problem import Masker
from attncli.attention.tensors import cells, mask_values
from attncli.attention.tensors import tensor_masker as tensor_masker
from attncli.attention.words import CORNERS, MASKS
from attncli.errors import MaskError, nearest

LONGEST, DEEPEST = 20_000, 100  # characters, levels of parentheses
#: A text in quotes, or blanks outside of one.
_BLANKS = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|\s+""")


def masker(mask: str | Mask | Masker) -> Masker:
    """Return the function that binds a mask expression, or a mask, to an Extent.

    Raises MaskError for an expression that cannot be read; the function does for one that does
    not fit.
    """
    if isinstance(mask, Mask):
        return lambda extent: _same_extent(mask, extent)
    if callable(mask):
        return mask
    text = _one_line(mask)
    tree = _parse(text)

    def bind(extent: Extent) -> Mask:
        binder = _Binder(text, tree, extent)
        predicate, biases = binder.part(tree)
        return Mask(extent, predicate, biases, text=text, notes=tuple(binder.notes))

    return bind


def maskers(mask: Any) -> list[Masker]:
    """Return what ``masker`` makes of a mask, or of several; none of None.

    Raises MaskError for a tensor, which is no expression, and for what is no mask.
    """
    if mask is None:
        return []
    alone = isinstance(mask, str | Mask) or callable(mask)
    several = [mask] if alone else mask
    if not isinstance(several, Sequence) or not all(
        isinstance(one, str | Mask) or callable(one) for one in several
    ):
        what = "an array" if hasattr(mask, "shape") else f"a {type(mask).__name__}"
        raise MaskError(
            f"mask is {what}, not an expression such as 'causal & window(8)'",
            "a mask tensor is given as attn_mask: bool, True = keep, or float, added to the scores",
        )
    return [masker(one) for one in several]


def told(text: str) -> dict[str, int]:
    """Return the sizes that lists and files in an expression speak of: batch, heads, queries, keys.

    Raises MaskError for an expression that cannot be read, FileError for a file that cannot.
    """
    text = _one_line(text)
    tree = _parse(text)
    binder = _Binder(text, tree, Extent(1, 1, 1, 1))
    found: dict[str, int] = {}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        tells = MASKS[node.func.id].tells if node.func.id in MASKS else ()
        shapes = binder.call(node, node.func, node.args).shapes() if tells else []
        for k, shape in enumerate(shapes):
            names = tells[len(shape) - 1] if 0 < len(shape) <= len(tells) else ()
            if len(shapes) == 2 and k == 0:  # of queries, and of keys
                names = tuple("queries" if name == "keys" else name for name in names)
            found |= sizes(names, shape)
    return found


def sizes(names: Sequence[str], shape: Sequence[int]) -> dict[str, int]:
    """Return what a shape says of the sizes so named; 1 broadcasts and says nothing."""
    return {name: n for name, n in zip(names, shape, strict=True) if name and n != 1}


def _same_extent(mask: Mask, extent: Extent) -> Mask:
    ours, theirs = ((e.batch, e.heads, e.queries, e.keys) for e in (mask.extent, extent))
    if ours != theirs:
        raise MaskError(
            f"the mask is made for (batch, heads, queries, keys) {ours}",
            f"the problem has {theirs}",
        )
    return replace(mask, extent=extent)


def _one_line(text: str) -> str:
    """Return an expression with single blanks in it; names of files keep their own."""
    if len(text) > LONGEST:  # it is refused as it is
        return text
    return _BLANKS.sub(lambda found: found[1] or " ", text).strip()


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
        raise MaskError(
            f"cannot read the mask: {error}",
            "expected text; a file whose name is none goes into --attn-mask",
        ) from None
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
    return cells(mask_values(call.load(), "keep", name), call.extent, name, call.notes)


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
        self.notes: list[str] = []
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
        call = self.call(node, name, args)
        made = BUILDERS[call.name](call)
        if isinstance(made, Predicate):
            return made, ()
        return (Everything(), (made,)) if isinstance(made, Bias) else made

    def call(self, node: ast.expr, name: ast.Name, args: list[ast.expr]) -> Call:
        if name.id not in MASKS:
            known = textwrap.fill(f"known: {', '.join(MASKS)}", 64)
            guess = nearest(name.id.lower(), MASKS, "", 0.6) or known
            self.fail(name, f"unknown mask '{name.id}'", f"{guess}\nall masks: attncli mask --help")
        corner = None
        if args and isinstance(args[-1], ast.Name) and args[-1].id != "inf":
            corner = args[-1].id
            if corner not in MASKS[name.id].last:
                self.fail(args[-1], f"unknown word '{corner}'", f"expected {MASKS[name.id].forms}")
            args = args[:-1]
        literals = tuple(self.literal(arg) for arg in args)
        return Call(
            name.id, literals, tuple(args), corner, self.corner, node, self.text, self.extent,
            self.notes,
        )  # fmt: skip

    def literal(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name) and node.id == "inf":
            return math.inf
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = self.literal(node.operand)
            if isinstance(inner, int | float):
                return -inner
        if isinstance(node, ast.Constant) and type(node.value) in (int, float, str):
            return node.value
        if isinstance(node, ast.Tuple | ast.List):
            return tuple(self.literal(item) for item in node.elts)
        self.fail(
            node, "not a number",
            "arguments are numbers, inf, lists of numbers, or file names in quotes",
        )  # fmt: skip
