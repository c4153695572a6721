"""Everything that attncli raises on purpose.

AttnError                    a mistake in what was asked; exit code 2
├── InputError               values, shapes or options that do not fit together
│   ├── Misuse               a command, an option or its value that the command line does not know
│   ├── MaskError            a mask that cannot be read or does not fit
│   ├── Misfit               a stage to be judged that is no such stage of its problem
│   └── TooLarge             the result would not fit into memory
├── FileError                a file that cannot be read or written
├── NoAnswer                 a candidate that gives nothing to judge; exit code 1
└── Unavailable              a backend, device or optional package that is not there; exit code 3

Anything else that escapes is a bug in attncli, not a mistake of its user.
"""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from collections.abc import Iterable, Sequence


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, as messages have it: '1 key', '12,000 queries'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def listed(names: Iterable[str], most: int = 10) -> str:
    """Return names in a line, the first ``most``: 'query, key, …'."""
    names = list(names)
    return ", ".join(names[:most]) + ", …" * (len(names) > most)


def numbered(names: Iterable[str]) -> str:
    """Return how many names there are, and the first twenty: '3 (query, key, value)'."""
    names = list(names)
    return f"{len(names)} ({listed(names, 20)})" if names else "nothing"


def series(words: Sequence[str], last: str = "and") -> str:
    """Return words as a sentence has them: 'a, b and c'."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def closest(word: str, words: Iterable[str], cutoff: float = 0.6, most: int = 1) -> list[str]:
    """Return those of ``words`` that ``word`` may have meant, the likeliest first."""
    from difflib import get_close_matches  # a good start needs none

    return get_close_matches(word, list(words), most, cutoff)


def nearest(word: str, words: Iterable[str], known: str | None = None, cutoff: float = 0.6) -> str:
    """Return a hint: the nearest of ``words``, then ``known``; all of them where that is None."""
    words = list(words)
    guesses = [f"did you mean '{name}'?" for name in closest(word, words, cutoff)]
    known = f"(one of {', '.join(words)})" if known is None else known
    return " ".join([*guesses, known] if known else guesses)


class AttnError(Exception):
    """A mistake in what was asked: ``message`` says what was found, ``hint`` what to do instead."""

    code = "error"
    exit_code = 2

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class InputError(AttnError):
    """Values, shapes or options that do not fit together."""

    code = "bad_input"


class Misuse(InputError):
    """A command, an option or its value that the command line does not know."""

    code = "usage"


class MaskError(InputError):
    """A mask expression or tensor that cannot be read or does not fit."""

    code = "bad_mask"


class Misfit(InputError):
    """A stage to be judged that is no such stage of its problem; ``stage`` is its name."""

    def __init__(self, stage: str, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.stage = stage


class TooLarge(InputError):
    """The result would not fit into memory."""

    code = "too_large"


class FileError(AttnError):
    """A file that cannot be read or written."""

    code = "bad_file"


class NoAnswer(AttnError):
    """A candidate, a file or a command, that gives nothing to judge."""

    code = "no_answer"
    exit_code = 1  # what was asked is right, and the answer is wrong


class Unavailable(AttnError):
    """A backend, device or optional package that is not there."""

    code = "unavailable"
    exit_code = 3
