"""What can be said of a candidate that is not within what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PASSED, EXPLAINED, AMBIGUOUS, LOCATED, UNEXPLAINED = (
    "passed", "explained", "ambiguous", "located", "unexplained",
)  # fmt: skip


@dataclass(frozen=True)
class Explanation:
    """What makes the candidate, in whole (``passed``) or in part.

    ``options`` reproduce it when they are typed in place of those that they contradict; ``words``
    say what no option says. ``max_error`` is what it leaves, None where only a sample was looked
    at; ``share`` is the part of the error that it leaves, 1 being all.
    """

    options: tuple[str, ...]
    words: str
    max_error: float | None
    passed: bool
    fault: bool = False  # not a convention: words say what is wrong
    share: float = 0.0

    @property
    def text(self) -> str:
        """The options as they are typed, quoted where a shell wants it."""
        from shlex import quote

        return " ".join(quote(one) for one in self.options)


@dataclass(frozen=True)
class Answer:
    """The verdict, what explains the candidate, and where it is wrong, in words."""

    verdict: str
    explanations: Sequence[Explanation] = ()
    located: Sequence[str] = ()
