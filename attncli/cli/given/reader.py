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
from attncli.cli.given.names import OPTIONS
from attncli.cli.options import Group
from attncli.errors import InputError, counted
from attncli.files.bundle import Bundle

Array = np.ndarray[Any, np.dtype[Any]]


class Reader:
    """Finds tensors and options; the lists grow as it does."""

    def __init__(self, bundle: Bundle | None, flags: Group) -> None:
        self.bundle = bundle
        self.flags = flags
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.taken: set[str] = set()  # tensors of the bundle that something read
        self.sources = [bundle.source] if bundle else []
        self.options: dict[str, Any] = {}
        if bundle:
            self.options = {
                name.lower(): value
                for name, value in bundle.options.items()
                if name.lower() in OPTIONS
                and value is not None
                and (bundle.kind == "json" or name.lower() != "dtype")  # else of the file
            }
            if files.is_result(bundle):  # its heads are what each head was like
                self.options |= {"heads": bundle.options.get("num_heads")}

    def flag(self, name: str) -> Any:
        """What the command line says; None where it says nothing or has no such option."""
        return getattr(self.flags, name, None)

    def warn_of_unread(self) -> None:
        """Put what nothing has read, now that all is gathered, among the warnings."""
        if self.bundle:
            self.warnings += given_names.unread(self.bundle, self.taken)

    # -- tensors --

    def tensor(self, role: str, ref: str | None = None) -> tuple[Array, str] | None:
        """The tensor of a role and the kind of its file; ``ref`` wins over the bundle."""
        if ref is None:
            found = files.find(self.bundle, role) if self.bundle else None
            if not (found and self.bundle):
                if self.bundle and role not in ("attn_mask", "kv_lengths", "sink"):  # or options
                    files.demand_numbers(self.bundle, role)
                return None
            self.taken.add(found[0])
            return found[1], self.bundle.kind
        bundle = files.read(ref)
        self.sources.append(bundle.source)
        found = files.find(bundle, role) if len(bundle.tensors) > 1 else None
        return (found[1] if found else files.read_tensor(ref)), bundle.kind

    def floats(self, role: str) -> Array | None:
        found = self.tensor(role, self.flag(role))
        return self.noted(role, *found) if found else None

    def noted(self, role: str, array: Array, kind: str) -> Array:
        if kind == "json" and array.ndim == 1:
            raise flat(role, array)
        # JSON has one kind of number; in a binary file an integer was somebody's choice
        if array.dtype.kind == "b" or (array.dtype.kind in "iu" and kind != "json"):
            self.notes.append(f"{role} converted from {array.dtype}")
        return array

    # -- options --

    def pick(self, name: str, valid: Callable[[Any], bool], expected: str) -> Any:
        """The flag of that name, or the file's option, or None."""
        said = self.flag(name)
        return self.checked(name, valid, expected) if said is None else said

    def checked(self, name: str, valid: Callable[[Any], bool], expected: str) -> Any:
        value = self.options.get(name)
        if value is None:
            value = self.scalar(name, expected)
        if value is None:
            return None
        if not valid(value):
            assert self.bundle
            raise InputError(
                f"{self.bundle.source}: '{name}' is {_shown(value)}", f"expected {expected}"
            )
        return value

    def scalar(self, name: str, expected: str) -> Any:
        """An option that the bundle holds as a tensor, as .npz files do."""
        names = [n for n in self.bundle.tensors if n.lower() == name] if self.bundle else []
        if not (names and self.bundle):
            return None
        array = self.bundle.tensors[names[0]]
        if array.ndim == 0:
            return array.item() if array.dtype.kind in "biu" else float(array)
        if name == "heads":  # what multihead writes of each head
            return None
        raise InputError(
            f"{self.bundle.source}: '{name}' has shape {array.shape}", f"expected {expected}"
        )


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
    return isinstance(value, bool)


def _shown(value: Any) -> str:
    text = files.dumps(value).decode()
    return text if len(text) <= 40 else text[:39] + "…"
