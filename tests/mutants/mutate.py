"""One-line changes of a module that a test ought to notice.

Strings, annotations and what is raised stay as they are: messages are judged by eyes.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

#: What stands in place of an operator between two operands; a list is drawn from in order.
OPERATORS: dict[type[ast.AST], tuple[str, ...]] = {
    ast.Lt: ("<=", ">="), ast.LtE: ("<", ">"), ast.Gt: (">=", "<="), ast.GtE: (">", "<"),
    ast.Eq: ("!=",), ast.NotEq: ("==",), ast.Is: ("is not",), ast.IsNot: ("is",),
    ast.In: ("not in",), ast.NotIn: ("in",),
    ast.Add: ("-",), ast.Sub: ("+",), ast.Mult: ("/",), ast.Div: ("*",), ast.FloorDiv: ("*",),
    ast.Mod: ("//",), ast.Pow: ("*",), ast.BitAnd: ("|",), ast.BitOr: ("&",), ast.BitXor: ("&",),
    ast.LShift: (">>",), ast.RShift: ("<<",), ast.And: ("or",), ast.Or: ("and",),
}  # fmt: skip
SPELLED = re.compile(r"\bnot\s+in\b|\bis\s+not\b|\bin\b|\bis\b|\band\b|\bor\b|[-+*/%<>=!&|^]+")

#: Names that are called, and their opposites.
OPPOSITES = {
    "min": "max", "any": "all", "minimum": "maximum", "fmin": "fmax", "argmin": "argmax",
    "floor": "ceil", "zeros": "ones", "logical_and": "logical_or", "isnan": "isfinite",
    "tril": "triu", "cumsum": "cumprod", "sum": "max", "mean": "sum", "takewhile": "dropwhile",
    "upper": "lower", "startswith": "endswith", "nanmin": "nanmax", "searchsorted": "digitize",
}  # fmt: skip
OPPOSITES |= {there: here for here, there in OPPOSITES.items() if there not in OPPOSITES}

#: Decorators whose arguments no result depends on.
INERT = {"dataclass", "lru_cache", "cache", "overload"}


class Mutant(NamedTuple):
    """A change: characters ``start`` to ``end`` of a source become ``text``.

    ``line`` is the number of its line; ``near`` are the lines that run where it is run, and
    ``body`` those of the function that it belongs to, empty in a module's or a class's own body.
    """

    start: int
    end: int
    text: str
    line: int
    kind: str
    near: range
    body: range

    def of(self, source: str) -> str:
        """Return the source with the change."""
        return source[: self.start] + self.text + source[self.end :]

    def lines(self, source: str) -> tuple[str, str]:
        """Return its line before and after."""
        before = source.splitlines()[self.line - 1]
        return before.strip(), self.of(source).splitlines()[self.line - 1].strip()


def mutants(source: str) -> list[Mutant]:
    """Return every mutant of a module; a few are no Python."""
    found = {(m.start, m.end, m.text): m for m in _Finder(source).found(ast.parse(source))}
    return list(found.values())


def chosen(source: str, count: int, seed: int) -> list[Mutant]:
    """Return ``count`` mutants drawn at random, each in a line of its own."""
    drawn: dict[int, Mutant] = {}
    every = mutants(source)
    random.Random(seed).shuffle(every)
    for mutant in every:
        if len(drawn) < count and mutant.line not in drawn and _compiles(mutant.of(source)):
            drawn[mutant.line] = mutant
    return sorted(drawn.values(), key=lambda m: m.line)


def _compiles(text: str) -> bool:
    try:
        compile(text, "<mutant>", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


class _Finder:
    """Walks a module; knows in which statement and function it is."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.near = self.body = range(0)

    def found(self, node: ast.AST) -> Iterator[Mutant]:
        """Yield the mutants of a node and of all below it."""
        near, body = self.near, self.body
        if isinstance(node, ast.stmt):
            self.near = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # defaults and decorators run once, at import: what shows them is the function
            self.body = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
            self.near = self.body
        yield from self._own(node)
        for child in self._children(node):
            if isinstance(child, ast.expr) and isinstance(node, ast.If | ast.While):
                self.near = range(child.lineno, (child.end_lineno or child.lineno) + 1)
            yield from self.found(child)
        self.near, self.body = near, body

    def _children(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield what below a node is worth changing."""
        skipped: set[int] = set()
        if isinstance(node, ast.JoinedStr | ast.Raise):
            return
        for name in ("annotation", "returns", "msg"):
            skipped.add(id(getattr(node, name, None)))
        for word in getattr(node, "keywords", ()):
            if word.arg == "strict":  # says what holds anyway
                skipped.add(id(word))
        for decorator in getattr(node, "decorator_list", ()):
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if getattr(called, "id", getattr(called, "attr", "")) in INERT:
                skipped.add(id(decorator))
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Assign) and _is_alias(node):
            return
        yield from (c for c in ast.iter_child_nodes(node) if id(c) not in skipped)

    def _own(self, node: ast.AST) -> Iterator[Mutant]:
        """Yield the mutants of one node."""
        if isinstance(node, ast.Compare):
            pairs = zip([node.left, *node.comparators], node.ops, node.comparators, strict=False)
            for left, sign, right in pairs:
                yield from self._operator(left, sign, right)
        elif isinstance(node, ast.BinOp):
            if not (_is_text(node.left) or _is_text(node.right)):
                yield from self._operator(node.left, node.op, node.right)
        elif isinstance(node, ast.BoolOp):
            yield from self._operator(node.values[0], node.op, node.values[1])
        elif isinstance(node, ast.AugAssign):
            if not _is_text(node.value):
                yield from self._operator(node.target, node.op, node.value, "=")
            yield from self._put(node, "pass", "no assignment")
        elif isinstance(node, ast.UnaryOp):
            yield from self._put(node, f"({self._text(node.operand)})", "no operator")
        elif isinstance(node, ast.Constant):
            yield from self._constant(node)
        elif isinstance(node, ast.Call):
            yield from self._call(node)
        elif isinstance(node, ast.Slice):
            if node.upper and not isinstance(node.upper, ast.Constant):
                yield from self._put(node.upper, f"({self._text(node.upper)}) - 1", "slice")
            if node.lower and not isinstance(node.lower, ast.Constant):
                yield from self._put(node.lower, f"({self._text(node.lower)}) + 1", "slice")
        elif isinstance(node, ast.comprehension):
            for test in node.ifs:
                yield from self._put(test, "True", "no filter")
        yield from self._statement(node)

    def _statement(self, node: ast.AST) -> Iterator[Mutant]:
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            if not isinstance(node.test, ast.UnaryOp | ast.NamedExpr):
                yield from self._put(node.test, f"(not ({self._text(node.test)}))", "negated")
        elif isinstance(node, ast.Continue):
            yield from self._put(node, "break", "break")
        elif isinstance(node, ast.Break):
            yield from self._put(node, "continue", "continue")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Yield):
            yield from self._put(node, "pass", "no statement")
        elif isinstance(node, ast.Raise):
            yield from self._put(node, "pass", "no raise")
        elif isinstance(node, ast.Assign) and isinstance(
            node.targets[0], ast.Subscript | ast.Attribute
        ):
            yield from self._put(node, "pass", "no assignment")

    def _constant(self, node: ast.Constant) -> Iterator[Mutant]:
        value = node.value
        if value is True or value is False:
            yield from self._put(node, str(not value), "constant")
        elif isinstance(value, int | float):
            yield from self._put(node, f"({self._text(node)} + 1)", "constant")

    def _call(self, node: ast.Call) -> Iterator[Mutant]:
        called = node.func
        name = getattr(called, "id", getattr(called, "attr", ""))
        if name in OPPOSITES:
            end = self._at(called.end_lineno, called.end_col_offset)
            yield from self._span(end - len(name), end, OPPOSITES[name], "opposite")
        for word in node.keywords:
            if word.arg and not isinstance(word.value, ast.Constant | ast.JoinedStr):
                start = self._at(word.lineno, word.col_offset)
                end = self._at(word.end_lineno, word.end_col_offset)
                comma = re.compile(r"\s*,\s*").match(self.source, end)
                yield from self._span(start, comma.end() if comma else end, "", "no argument")

    def _operator(
        self, left: ast.expr, sign: ast.AST, right: ast.expr, tail: str = ""
    ) -> Iterator[Mutant]:
        """Yield the other operators between two operands."""
        start = self._at(left.end_lineno, left.end_col_offset)
        stop = self._at(right.lineno, right.col_offset)
        spelled = SPELLED.search(self.source, start, stop)
        if spelled:
            for other in OPERATORS.get(type(sign), ()):
                yield from self._span(*spelled.span(), other + tail, "operator")

    def _put(self, node: ast.AST, text: str, kind: str) -> Iterator[Mutant]:
        start = self._at(node.lineno, node.col_offset)  # type: ignore[attr-defined]
        end = self._at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
        yield from self._span(start, end, text, kind)

    def _span(self, start: int, end: int, text: str, kind: str) -> Iterator[Mutant]:
        """Yield a mutant, if it changes one line."""
        if "\n" not in self.source[start:end] and "\n" not in text:
            line = self.source.count("\n", 0, start) + 1
            yield Mutant(start, end, text, line, kind, self.near, self.body)

    def _at(self, line: int | None, column: int | None) -> int:
        """Return the place of a character; ``ast`` counts the bytes of a line."""
        start = self.starts[(line or 1) - 1]
        own = self.source[start : self.starts[line or 1]].encode()
        return start + len(own[:column].decode())

    def _text(self, node: ast.AST) -> str:
        return ast.get_source_segment(self.source, node) or ""


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _is_alias(node: ast.Assign) -> bool:
    """Whether it names a type: ``Array = np.ndarray[Any, np.dtype[Any]]``, a union, a Literal."""
    value, name = node.value, getattr(node.targets[0], "id", "")
    if isinstance(value, ast.Call):
        return getattr(value.func, "id", "") == "TypeVar"
    return (
        name[:1].isupper() and not name.isupper() and isinstance(value, ast.Subscript | ast.BinOp)
    )
