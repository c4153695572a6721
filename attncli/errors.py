"""Everything that attncli raises on purpose.

AttnError                    a mistake in what was asked; exit code 2
├── InputError               values, shapes or options that do not fit together
│   ├── MaskError            a mask that cannot be read or does not fit
│   └── TooLarge             the result would not fit into memory
├── FileError                a file that cannot be read or written
└── Unavailable              a backend, device or optional package that is not there; exit code 3

Anything else that escapes is a bug in attncli, not a mistake of its user.
"""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from collections.abc import Collection
from difflib import get_close_matches


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun, as messages have it: '1 key', '12,000 queries'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


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


class MaskError(InputError):
    """A mask expression or tensor that cannot be read or does not fit."""

    code = "bad_mask"


class TooLarge(InputError):
    """The result would not fit into memory."""

    code = "too_large"


class FileError(AttnError):
    """A file that cannot be read or written."""

    code = "bad_file"


class Unavailable(AttnError):
    """A backend, device or optional package that is not there."""

    code = "unavailable"
    exit_code = 3


def nearest(word: str, words: Collection[str]) -> str:
    """Return a hint that names the nearest of ``words``, or all of them."""
    near = get_close_matches(word, words, 1, 0.5)
    return (f"did you mean '{near[0]}'? " if near else "") + f"(one of {', '.join(words)})"
