"""One bundle and what the command line says: tensors by role, options by name.

A flag wins over the file. Nothing here knows a command's options by their spelling but for its
messages, nor computes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attncli import files
from attncli.cli.given import names as given_names
from attncli.cli.given.elsewhere import anchored
from attncli.cli.options import Group
from attncli.errors import InputError, counted
from attncli.files.bundle import Bundle, which
from attncli.files.formats.nested import NON_FINITE, no_numbers
from attncli.files.references import sources_of
from attncli.files.vocabulary import (
    NUMBER,
    OBJECT,
    PLAYED,
    RESULTS,
    ROLES,
    TENSOR,
    TEXT,
    TRUTH,
    WORDS,
    expected_of,
    role_of,
)

Array = np.ndarray[Any, np.dtype[Any]]


class Reader:
    """Finds tensors and options; the lists grow as it does.

    ``options`` are the numbers, words and truth values of the file, by role. Raises InputError or
    FileError for a known name that has something else than it should.
    """

    def __init__(self, bundle: Bundle | None, flags: Group) -> None:
        self.bundle = files.unwrapped(bundle) if bundle else None
        self.flags = flags
        self.notes = list(bundle.notes) if bundle else []
        self.warnings: list[str] = []
        self.taken: set[str] = set()  # members of the bundle that something read
        self.sources = sources_of(bundle) if bundle else []
        self.spelt: dict[str, str] = {}  # the name in the file, by role
        self.options: dict[str, Any] = {}
        if self.bundle:
            for name, kind, value in _known(self.bundle):
                self.speak(name, kind, value)

    def speak(self, name: str, kind: str, value: Any) -> None:
        """Take a known member of the file: an option, or a tensor that waits to be asked for."""
        assert self.bundle
        if kind == TEXT and role_of(name, kind) is None and value in NON_FINITE:
            kind, value = NUMBER, NON_FINITE[value]
        role = role_of(name, kind)
        hint = next((ROLES[r].hint for r in PLAYED[name.lower()] if ROLES[r].hint), "")
        if hint and value is not None and value is not False:
            raise InputError(
                f"{self.bundle.source}: '{name}' changes the result, and is not read", hint
            )
        if role is None:
            if files.is_result(self.bundle) or hint:
                return  # our own: it says what came out, or: it says that there is none
            raise self.wrong(name, value)
        if role in self.spelt and role not in RESULTS:
            raise which(self.bundle, role, (self.spelt[role], name))
        self.spelt[role] = name
        of_file = self.bundle.kind == "safetensors" and role == "dtype"  # in its metadata
        if kind != TENSOR and not of_file:
            self.options[role] = value

    def wrong(self, name: str, value: Any) -> Exception:
        """Return the error for a known name that has something else than it should."""
        assert self.bundle
        if all(ROLES[role].kinds == (TENSOR,) for role in PLAYED[name.lower()]):
            return no_numbers(value, self.bundle.source, name)
        shown = f"is {_shown(value)}"
        if value is TENSOR:
            shown = f"has shape {self.bundle.header(name).shape}"
        return InputError(
            f"{self.bundle.source}: '{name}' {shown}", f"expected {expected_of(name)}"
        )

    def flag(self, name: str) -> Any:
        """What the command line says; None where it says nothing or has no such option."""
        return getattr(self.flags, name, None)

    def says(self, *names: str) -> bool:
        """Whether the file has a member of one of these names, in any case."""
        return any(name.lower() in names for name in self.spelt.values())

    def warn_of_unread(self) -> None:
        """Put what nothing has read, now that all is gathered, among the warnings."""
        if self.bundle:
            self.warnings += given_names.unread(self.bundle, self.taken, self.flag)

    # -- tensors --

    def tensor(self, role: str, ref: str | None = None) -> tuple[Array, str] | None:
        """The tensor of a role and the kind of its file; ``ref`` wins over the bundle."""
        if ref is None:
            found = files.find(self.bundle, role) if self.bundle else None
            if not (found and self.bundle):
                return None
            self.taken.add(found[0])
            return found[1], "" if found[0] in self.bundle.referred else self.bundle.kind
        bundle = files.unwrapped(files.read(ref))
        self.sources += sources_of(bundle)
        self.notes += bundle.notes
        found = files.find(bundle, role) if len(bundle.tensors) > 1 else None
        return (found[1] if found else files.read_tensor(ref)), bundle.kind

    def floats(self, role: str) -> Array | None:
        found = self.tensor(role, self.flag(role))
        return self.noted(role, *found) if found else None

    def noted(self, role: str, array: Array, kind: str) -> Array:
        if kind == "json" and array.ndim == 1:
            raise flat(role, array)
        if array.dtype == np.uint16 and (array > LARGEST_COUNT).any():
            import ml_dtypes

            self.notes.append(f"{role}: uint16 is read as the bits of bfloat16")
            return array.view(ml_dtypes.bfloat16)
        # JSON has one kind of number; in a binary file an integer was somebody's choice
        if array.dtype.kind == "b" or (array.dtype.kind in "iu" and kind != "json"):
            self.notes.append(f"{role} converted from {array.dtype}")
        return array

    # -- options --

    def pick(self, name: str, valid: Callable[[Any], bool], expected: str = "") -> Any:
        """The flag of that name, or the file's option, or None."""
        said = self.flag(name)
        return self.checked(name, valid, expected) if said is None else said

    def checked(self, name: str, valid: Callable[[Any], bool], expected: str = "") -> Any:
        """The file's option, or None; InputError says what was ``expected`` if it is not valid."""
        value = self.options.get(name)
        if value is None:
            return None
        assert self.bundle
        self.taken.add(self.spelt[name])
        if not valid(value):
            raise InputError(
                f"{self.bundle.source}: '{self.spelt[name]}' is {_shown(value)}",
                f"expected {expected or ROLES[name].expected}",
            )
        if name == "mask" and isinstance(value, str):
            return anchored(value, self.bundle.source)
        return value


#: Above this a 16-bit number is no count: as bfloat16 it is 2^-63 at least, or negative.
LARGEST_COUNT = 0x2000


def _known(bundle: Bundle) -> list[tuple[str, str, Any]]:
    """Return the known members with their kinds; scalars with their values."""
    found: list[tuple[str, str, Any]] = []
    for name in bundle.tensors:
        roles = PLAYED.get(name.lower(), ())
        if roles:
            header = bundle.known_header(name)
            whole = [role for role in roles if ROLES[role].kinds != (TENSOR,)]
            if header is not None and header.shape == () and whole:
                value = bundle.tensors[name].item()
                found.append((name, kind_of(value), value))
            else:
                found.append((name, TENSOR, TENSOR))
    for name, value in bundle.options.items():
        if value is not None and name.lower() in PLAYED:
            found.append((name, kind_of(value), value))
    return found


def kind_of(value: Any) -> str:
    """Return what a member that is no tensor is."""
    kinds = {bool: TRUTH, int: NUMBER, float: NUMBER, str: TEXT, list: WORDS}
    return kinds.get(type(value), OBJECT)


def flat(role: str, array: Array) -> InputError:
    """Return what to say to a list of numbers where rows of them are expected."""
    if not len(array):
        return InputError(f"{role} is an empty list", "expected rows of numbers: [[1, 0], [0, 1]]")
    shown = array[:3].tolist()
    more = ", …" if len(array) > 3 else ""
    rows = f"{shown}{more}"
    if role.endswith("value"):
        rows = ", ".join(f"[{x}]" for x in shown) + more
    return InputError(
        f"{role} is a list of {counted(len(array), 'number')}; expected rows",
        f"write [{rows}], one row a {'query' if role == 'query' else 'key'}",
    )


def numbers(text: str | None) -> list[float] | None:
    """Return the numbers that an option lists, or None when it names something else."""
    try:
        return [float(part) for part in (text or "").replace(",", " ").split()] or None
    except ValueError:
        return None


def is_number(value: Any) -> bool:
    """Return whether an option of a file is a number."""
    return type(value) in (int, float)


def is_count(value: Any) -> bool:
    """Return whether an option of a file is a positive integer."""
    return type(value) is int and value > 0


def is_word(value: Any) -> bool:
    """Return whether an option of a file is text."""
    return isinstance(value, str)


def is_truth(value: Any) -> bool:
    """Return whether an option of a file is true or false."""
    return isinstance(value, bool) or (type(value) is int and value in (0, 1))


def _shown(value: Any) -> str:
    text = files.dumps(value).decode()
    return text if len(text) <= 40 else text[:39] + "…"
