"""The mask language: expressions and tensors become masks.

An expression is read with Python's own ``ast`` and a white list; nothing in it is ever run. An
error points at the place in the expression.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from attncli.attention.masks import Extent, Mask
from attncli.attention.predicates import (
    FAR,
    Added,
    Alibi,
    And,
    Band,
    Bias,
    Blocks,
    Cells,
    Dilated,
    Everything,
    KeysBelow,
    Not,
    Or,
    Padding,
    Predicate,
    Random,
    Relative,
    RowsBelow,
    SameSegment,
    alibi_slopes,
)
from attncli.attention.words import POLARITIES
from attncli.errors import MaskError

Array = np.ndarray[Any, np.dtype[Any]]
Masker = Callable[[Extent], Mask]
Part = tuple[Predicate, tuple[Bias, ...]]

LONGEST, DEEPEST = 20_000, 100  # characters, levels of parentheses
LARGEST = 2**53
CORNERS = ("top_left", "bottom_right")


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


def _excerpt(text: str, start: int, stop: int) -> tuple[str, int, int]:
    """Return the text around start:stop in at most about 60 characters, and the new places."""
    if len(text) <= 60:
        return text, start, stop
    first, last = max(0, start - 25), min(len(text), start + 30)
    head, tail = "…" if first else "", "…" if last < len(text) else ""
    shift = len(head) - first
    return head + text[first:last] + tail, start + shift, min(stop, last) + shift


def _fail(text: str, start: int, stop: int, what: str, hint: str) -> NoReturn:
    shown, start, stop = _excerpt(text, start, max(stop, start + 1))
    message = f"{what} in: {shown}"
    # the carets stand under the place: a hint is shown below the message, at the same indent
    indent = " " * (len(message) - len(shown) + start)
    raise MaskError(message, f"{indent}{'^' * (stop - start)} {hint}")


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
        _fail(text, at, at + 1, "cannot read the mask", f"{error.msg} (masks join with & | ~ +)")
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


@dataclass(frozen=True)
class Call:
    """One mask of an expression: its literal arguments, the corner, and where it stands."""

    name: str
    args: tuple[Any, ...]
    nodes: tuple[ast.expr, ...]
    corner: str | None
    usual_corner: str | None  # the only one that the expression names anywhere
    node: ast.expr
    text: str
    extent: Extent

    def fail(self, what: str, argument: int | None = None) -> NoReturn:
        """Raise MaskError that points at this mask or at one argument."""
        node = self.node if argument is None else self.nodes[argument]
        stop = node.end_col_offset or node.col_offset + 1
        start = len(self.text.encode()[: node.col_offset].decode(errors="ignore"))
        stop = len(self.text.encode()[:stop].decode(errors="ignore"))
        _fail(self.text, start, stop, what, f"expected {FORMS[self.name]}")

    def count(self, low: int, high: int | None = None) -> None:
        """Fail unless the number of arguments lies between low and high."""
        high = low if high is None else high
        if not low <= len(self.args) <= high:
            some = str(low) if low == high else f"{low} to {high}"
            self.fail(f"{self.name} has {len(self.args)} arguments instead of {some}")

    def whole(self, k: int, low: int = 0, *, infinite: bool = False) -> int:
        """Return argument k as an integer of at least ``low``, FAR for inf."""
        value = self.args[k]
        if infinite and value == math.inf:
            return FAR
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"{self.name} needs a whole number, not {value!r},", k)
        if value < low:
            self.fail(f"{self.name} needs at least {low}, not {value},", k)
        if abs(value) > LARGEST:
            self.fail(f"{self.name} needs at most {LARGEST}, not so large a number,", k)
        return int(value)

    def numbers(self) -> list[float]:
        """Return all arguments as floats."""
        for k, value in enumerate(self.args):
            if isinstance(value, bool) or not isinstance(value, int | float):
                self.fail(f"{self.name} needs numbers, not {value!r},", k)
            if not abs(value) <= 1e300:
                self.fail(f"{self.name} needs finite numbers,", k)
        return [float(value) for value in self.args]

    def values(self) -> Array:
        """Return the numbers written out, or those of the one file that is named."""
        if any(isinstance(value, str) for value in self.args):
            self.count(1)
            return self.load()
        if not self.args:
            self.fail(f"{self.name} has no arguments")
        return np.array([self.whole(k) for k in range(len(self.args))], np.int64)

    def load(self) -> Array:
        """Return the tensor of the file that the arguments name: a path, or path and name."""
        from attncli import files

        for k, value in enumerate(self.args):
            if not isinstance(value, str):
                self.fail(f"{self.name} needs a file name in quotes, not {value!r},", k)
        return files.read_tensor("::".join(self.args))

    def integers(self, array: Array) -> Array:
        """Return the array as int64 or fail when it holds something else."""
        if array.dtype.kind == "f" and np.all(array == np.floor(array)):
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu":
            self.fail(f"{self.name} needs whole numbers, not {array.dtype},")
        return array.astype(np.int64)

    def offset(self, form: str) -> tuple[int, ...]:
        """Return the position of query 0 by the corner that is written, or by the extent."""
        try:
            return self.extent.offsets(self.corner, form)
        except MaskError:
            if self.usual_corner is None:
                raise
            return self.extent.offsets(self.usual_corner)


def _causal(call: Call) -> Predicate:
    call.count(0)
    return Band(-FAR, 0, call.offset("causal({})"))


def _window(call: Call) -> Predicate:
    call.count(1, 2)
    left = call.whole(0, infinite=True)
    right = call.whole(1, infinite=True) if len(call.args) > 1 else FAR
    sizes = ", ".join(ast.unparse(node) for node in call.nodes[: len(call.args)])
    return Band(-left, right, call.offset(f"window({sizes}, {{}})"))


def _prefix(call: Call) -> Predicate:
    call.count(1)
    return KeysBelow((call.whole(0),) * call.extent.batch)


def _padding(call: Call) -> Predicate:
    lengths = call.integers(call.values())
    extent = call.extent
    if lengths.ndim != 1 or len(lengths) not in (1, extent.batch):
        call.fail(f"padding has {lengths.size} lengths for a batch of {extent.batch}")
    wrong = (lengths < 0) | (lengths > extent.keys)
    if wrong.any():
        call.fail(f"padding has a length of {lengths[wrong][0]}, outside 0…{extent.keys},")
    return Padding(tuple(int(n) for n in np.broadcast_to(lengths, (extent.batch,))))


def _segments(call: Call) -> Predicate:
    extent = call.extent
    ids = call.integers(call.values())
    if ids.ndim not in (1, 2) or ids.shape[-1] != extent.keys:
        call.fail(f"segments has {ids.shape[-1] if ids.ndim else 0} ids for {extent.keys} keys")
    if ids.ndim == 2 and ids.shape[0] not in (1, extent.batch):
        call.fail(f"segments has {ids.shape[0]} rows for a batch of {extent.batch}")
    ids = np.broadcast_to(ids, (extent.batch, extent.keys))
    offset = call.offset("segments(…, {})")
    for o in offset:
        if o < 0 or o + extent.queries > extent.keys:
            call.fail(f"segments has no ids for queries at {o}…{o + extent.queries - 1}")
    rows = [ids[b, o : o + extent.queries] for b, o in enumerate(offset)]
    queries = np.stack(rows) if rows else np.zeros((0, extent.queries), np.int64)
    return SameSegment(queries, ids)


def _global_rows(call: Call) -> Predicate:
    call.count(1)
    return RowsBelow(call.whole(0))


def _dilated(call: Call) -> Predicate:
    call.count(1)
    return Dilated(call.whole(0, 1), call.offset(f"dilated({call.args[0]}, {{}})"))


def _blocks(call: Call) -> Predicate:
    call.count(1)
    return Blocks(call.whole(0, 1), call.offset(f"blocks({call.args[0]}, {{}})"))


def _random(call: Call) -> Predicate:
    call.count(1, 2)
    p = call.numbers()[0]
    if not 0 <= p <= 1:
        call.fail(f"random needs a probability from 0 to 1, not {p:g},", 0)
    return Random(p, call.whole(1) if len(call.args) > 1 else 0)


def _file(call: Call) -> Part:
    call.count(1, 2)
    name = "::".join(map(str, call.args))
    return _cells(_mask_values(call.load(), "keep", name), call.extent, name)


def _alibi(call: Call) -> Bias:
    heads = call.extent.heads
    slopes = tuple(call.numbers()) or alibi_slopes(heads)
    if len(slopes) == 1:
        slopes *= heads
    if len(slopes) != heads:
        call.fail(f"alibi has {len(slopes)} slopes for {heads} heads")
    return Alibi(slopes, call.offset("alibi({})"))


def _relative(call: Call) -> Bias:
    call.count(1, 2)
    table = call.load()
    if table.dtype.kind not in "fiu" and table.dtype.name != "bfloat16":
        call.fail(f"relative needs numbers, not {table.dtype},")
    table = np.atleast_2d(np.asarray(table, np.float64))
    if table.ndim != 2 or table.shape[1] % 2 == 0 or table.shape[0] not in (1, call.extent.heads):
        call.fail(
            f"relative has a table of shape {table.shape}, expected (2n + 1) or "
            f"({call.extent.heads}, 2n + 1),"
        )
    return Relative(table, call.offset("relative('…', {})"))


Builder = Callable[[Call], Predicate | Bias | Part]

# name: (how it is written, which keys j it allows for query i, builder)
MASKS: dict[str, tuple[str, str, Builder]] = {
    "causal": ("causal, causal(top_left), causal(bottom_right)", "j ≤ i + o", _causal),
    "window": ("window(left), window(left, right)", "i + o − left ≤ j ≤ i + o + right", _window),
    "prefix": ("prefix(n)", "j < n", _prefix),
    "padding": ("padding(n1, n2, …), padding('file')", "j < length", _padding),
    "segments": ("segments(id, id, …), segments('file')", "the same document id", _segments),
    "global_rows": ("global_rows(n)", "i < n", _global_rows),
    "dilated": ("dilated(step)", "j − i − o a multiple of step", _dilated),
    "blocks": ("blocks(size)", "the same block of that size", _blocks),
    "random": ("random(p), random(p, seed)", "each with probability p", _random),
    "file": ("file('path'), file('path', 'name')", "what the tensor keeps or adds", _file),
    "alibi": ("alibi, alibi(slope, …)", "all; adds −slope·|i + o − j|", _alibi),
    "relative": ("relative('file')", "all; adds table[j − i − o]", _relative),
}
FORMS = {name: form for name, (form, _, _) in MASKS.items()}
CORNERED = {"causal", "window", "segments", "dilated", "blocks", "alibi", "relative"}


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
        raw = self.text.encode()
        start = len(raw[: node.col_offset].decode(errors="ignore"))
        stop = len(raw[: node.end_col_offset].decode(errors="ignore"))
        _fail(self.text, start, stop, what, hint)

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
        kept = [predicate for predicate, _ in parts if not isinstance(predicate, Everything)]
        return (_balanced(And, kept) if kept else Everything()), biases

    def built(self, node: ast.expr, name: ast.Name, args: list[ast.expr]) -> Part:
        if name.id not in MASKS:
            import difflib

            near = difflib.get_close_matches(name.id.lower(), MASKS, 1)
            guess = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(MASKS)}"
            guess = guess if near else guess.replace(", dilated", ",\ndilated")
            self.fail(name, f"unknown mask '{name.id}'", f"{guess}\nall masks: attncli mask --help")
        corner = None
        if args and isinstance(args[-1], ast.Name) and args[-1].id != "inf":
            corner = args[-1].id
            if corner not in CORNERS or name.id not in CORNERED:
                self.fail(args[-1], f"unknown word '{corner}'", f"expected {FORMS[name.id]}")
            args = args[:-1]
        literals = tuple(self.literal(arg) for arg in args)
        call = Call(
            name.id, literals, tuple(args), corner, self.corner, node, self.text, self.extent
        )
        made = MASKS[name.id][2](call)
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
