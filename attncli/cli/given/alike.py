"""Lines that are read alike: the first says how, and the others give their tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from attncli.errors import AttnError
from attncli.files.bundle import Bundle
from attncli.files.vocabulary import CALLED
from attncli.studies import together

if TYPE_CHECKING:
    import numpy as np

    from attncli.attention.problem import Problem
    from attncli.cli.given.attention import Inputs
    from attncli.studies.attend import Result

    Array = np.ndarray[Any, np.dtype[Any]]


class Asking(Protocol):
    """A problem and what is wanted of it."""

    @property
    def given(self) -> Inputs: ...
    @property
    def problem(self) -> Problem: ...
    @property
    def want(self) -> set[str]: ...


One = TypeVar("One", bound=Asking)


class Ahead(Generic[One]):
    """Answers to lines that were read ahead, those together that one call can answer.

    ``ask`` reads a line and poses its problem; ``how`` are the engine, the device and the threads.
    """

    def __init__(self, ask: Callable[[Bundle], One], **how: Any) -> None:
        self._ask = ask
        self._how = how
        self._groups: dict[int, tuple[list[Bundle], int]] = {}
        self._answers: dict[int, tuple[One, Result]] = {}

    def look(self, lines: Sequence[Bundle]) -> None:
        """Hear which lines come next."""
        found: dict[Hashable, list[Bundle]] = {}
        for line in lines if len(lines) > 1 else ():
            key = _likeness(line)
            if key is not None:
                found.setdefault(key, []).append(line)
        self._answers = {}
        self._groups = {
            id(line): (some, at) for some in found.values() for at, line in enumerate(some)
        }

    def answer(self, line: Bundle) -> tuple[One, Result] | None:
        """Return what is asked and the answer, or None where the line has to be read by itself."""
        if id(line) not in self._answers:
            some, at = self._groups.get(id(line), ((), 0))
            self._solve(some[at:])
        return self._answers.pop(id(line), None)

    def _solve(self, lines: Sequence[Bundle]) -> None:
        """Answer as many of the lines as one call takes, if they are alike; what fails waits."""
        if len(lines) < 2:
            return
        try:
            first = self._ask(lines[0])
            names = _tensors(lines[0], first.given)
            some = lines[: together.at_most(first.problem)]
            if names is None or len(some) < 2 or not together.WANTED.issuperset(first.want):
                return self._forget(lines)
            others = [{role: one.tensors[name] for role, name in names.items()} for one in some]
            whole = together.stacked(first.problem, first.given.arguments, others)
            if whole is None:
                return self._forget(lines)
            answers = together.solve(first.problem, whole, want=first.want, **self._how)
        except AttnError:  # each says it in its place
            return self._forget(lines)
        self._answers |= {
            id(line): (first, answer) for line, answer in zip(some, answers, strict=True)
        }

    def _forget(self, lines: Sequence[Bundle]) -> None:
        for line in lines:
            self._groups.pop(id(line), None)


def _likeness(line: Bundle) -> Hashable:
    """Return what lines have in common that differ in numbers of tensors alone, None of others."""
    if line.referred:
        return None  # large, perhaps
    try:
        tensors = [(name, array.shape, array.dtype.str) for name, array in line.tensors.items()]
    except AttnError:
        return None
    said = [(name, repr(value)) for name, value in line.options.items() if name not in CALLED]
    return (*tensors, *said)


def _tensors(line: Bundle, given: Inputs) -> Mapping[str, str] | None:
    """Return the names in the line of query, key and value, by role.

    None where it says more in tensors, or something that depends on their numbers.
    """
    roles = {id(given.arguments[role]): role for role in together.TENSORS}
    names = {roles.get(id(array), ""): name for name, array in line.tensors.items()}
    there = {role for role in together.TENSORS if given.arguments[role] is not None}
    shape = given.arguments["query"].shape
    square = "key" not in there and shape[-1] == shape[-2]  # it is looked at: are these weights?
    if names.keys() != there or given.warnings or given.expected or square:
        return None
    return names
