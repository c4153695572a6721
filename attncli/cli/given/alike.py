"""Lines that are read alike: the first says how, and the others give their tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from attncli.cli.given.attention import Inputs
from attncli.errors import AttnError
from attncli.files.bundle import Bundle
from attncli.files.vocabulary import CALLED
from attncli.studies import together

if TYPE_CHECKING:
    from attncli.attention.problem import Problem


class Asking(Protocol):
    """What was given, and the problem that it poses."""

    @property
    def given(self) -> Any: ...
    @property
    def problem(self) -> Problem: ...


One = TypeVar("One", bound=Asking)
Answer = TypeVar("Answer")


class Ahead(Generic[One, Answer]):
    """Answers to lines that were read ahead, those together that one call can answer.

    ``ask`` reads a line and poses its problem; ``solve`` answers the problems of a whole, where
    the first of them was asked, or none of them.
    """

    def __init__(
        self, ask: Callable[[Bundle], One], solve: Callable[[One, Problem], Sequence[Answer]]
    ) -> None:
        self._ask = ask
        self._whole = solve
        self._alike: dict[Hashable, list[Bundle]] = {}
        self._waiting: dict[int, list[Bundle]] = {}  # for each line it and those alike, in order
        self._answers: dict[int, tuple[One, Answer]] = {}

    def hear(self, line: Bundle) -> None:
        """Take a line that will be asked for after those before it."""
        key = _likeness(line)
        if key is not None:
            some = self._alike.setdefault(key, [])
            some.append(line)
            self._waiting[id(line)] = some

    def answer(self, line: Bundle) -> tuple[One, Answer] | None:
        """Return what is asked and the answer, or None where the line has to be read by itself."""
        if id(line) not in self._answers:
            self._alike = {}  # what is heard from now on belongs to later lines
            some = self._waiting.get(id(line), [])
            answers = self._solve(some)
            done = some[: len(answers)] or some[:]
            self._answers |= zip(map(id, done), answers, strict=False)
            for one in done:
                del self._waiting[id(one)]
            del some[: len(done)]
        return self._answers.pop(id(line), None)

    def _solve(self, lines: Sequence[Bundle]) -> list[tuple[One, Answer]]:
        """Answer the lines together, as many as one call takes; none where they are not alike."""
        if len(lines) < 2:
            return []
        try:
            first = self._ask(lines[0])
            names = _tensors(lines[0], first.given)
            some = lines[: together.at_most(first.problem)]
            if names is None or len(some) < 2:
                return []
            others = [{role: one.tensors[name] for role, name in names.items()} for one in some]
            whole = together.stacked(first.problem, first.given.arguments, others)
            if whole is None:
                return []
            answers = self._whole(first, whole)
        except AttnError:  # each says it in its place
            return []
        return [(first, answer) for answer in answers]


def _likeness(line: Bundle) -> Hashable:
    """Return what lines have in common that differ in numbers of tensors alone, None of others."""
    if line.referred:
        return None  # large, perhaps
    try:
        tensors = [(name, array.shape, array.dtype.str) for name, array in line.tensors.items()]
    except AttnError:
        return None
    said = [(name, repr(value)) for name, value in line.options.items() if name not in CALLED]
    return (line.kind, line.notes, *tensors, *said)


def _tensors(line: Bundle, given: Any) -> Mapping[str, str] | None:
    """Return the names in the line of query, key and value, by role.

    None where it says more in tensors, or something that depends on their numbers.
    """
    if not isinstance(given, Inputs):
        return None
    roles = {id(given.arguments[role]): role for role in together.TENSORS}
    names = {roles.get(id(array), ""): name for name, array in line.tensors.items()}
    there = {role for role in together.TENSORS if given.arguments[role] is not None}
    shape = given.arguments["query"].shape
    square = "key" not in there and shape[-1] == shape[-2]  # it is looked at: are these weights?
    if names.keys() != there or given.warnings or given.expected or square:
        return None
    return names
