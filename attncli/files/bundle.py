"""The tensors of one file by name, and the roles that names play."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from attncli.errors import FileError, nearest, numbered
from attncli.files.formats.entry import Array, Entry, Header, header_of
from attncli.files.vocabulary import LEADING, PLAYED, ROLES, TENSOR

DUMP = "dump"  # the kind of what SGLang dumped


@dataclass(frozen=True)
class Bundle:
    """The tensors of one file by name; a bare array has the one name ``""``.

    ``tensors`` makes or maps an array when it is asked for: that may raise `FileError`.
    ``options`` are the members that are no tensors, or the metadata of a safetensors file.
    ``whole`` are the names in the file where those here are shorter (see `unwrapped`);
    ``referred`` are the references that JSON has in place of some tensors, by their names.
    ``notes`` say what was made of the file where it was written in other words.
    """

    source: str
    kind: str
    tensors: Mapping[str, Array]
    options: Mapping[str, Any] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    referred: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def header(self, name: str) -> Header:
        """Shape, dtype and size of a tensor; only JSON has to read the data for it."""
        if name not in self.tensors:
            raise unknown_name(self, name)
        return self.known_header(name) or header_of(self.tensors[name])

    def known_header(self, name: str) -> Header | None:
        """The header, where the file says it without its data."""
        return self.tensors.header(name) if isinstance(self.tensors, Lazy) else None

    def ref(self, name: str) -> str:
        """The reference that names this tensor on the command line."""
        return f"{path_of(self)}::{self.whole.get(name, name)}"

    @cached_property
    def by_role(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the tensors that may play each role: one pass, however many there are."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self.tensors:
            for role in PLAYED.get(name.lower(), ()):
                if TENSOR in ROLES[role].kinds:
                    found[role] = (*found.get(role, ()), name)
        return found


class Lazy(Mapping[str, Array]):
    """Arrays by name, each made once, on its first use, unless its entry is not kept."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = dict(entries)
        self._made: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._made:
            entry = self._entries[name]
            if not entry.kept:
                return entry.load()
            made = self._made[name] = entry.load()
            if entry.header is None:  # it was made of lists, which take more room
                self._entries[name] = Entry(lambda: made)
        return self._made[name]

    def rows(self, name: str, some: slice) -> Array:
        """Some rows of a tensor; the others are not made where its entry knows how."""
        rows = self._entries[name].rows
        return rows(some) if rows and name not in self._made else self[name][some]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def header(self, name: str) -> Header | None:
        known = self._entries[name].header
        return known() if known else None

    def entry(self, name: str) -> Entry:
        return self._entries[name]

    def beside(self, entries: Mapping[str, Entry]) -> Lazy:
        return Lazy(self._entries | {**entries})

    def only(self, names: list[str]) -> Lazy:
        return Lazy({name: self._entries[name] for name in names})

    def named(self, names: Mapping[str, str]) -> Lazy:
        """The same tensors under new names, by their old ones."""
        return Lazy({names.get(name, name): entry for name, entry in self._entries.items()})


def find(bundle: Bundle, role: str) -> tuple[str, Array] | None:
    """The tensor that plays a role (a key of `ROLES`) under whatever name it has, or None."""
    if role in ROLES:
        names = bundle.by_role.get(role, ())
    else:
        names = tuple(name for name in bundle.tensors if name.lower() == role.lower())
    if len(names) > 1:
        raise which(bundle, role, names)
    return (names[0], bundle.tensors[names[0]]) if names else None


def which(bundle: Bundle, role: str, names: tuple[str, ...]) -> FileError:
    """The error for two members that play one role."""
    name = f", or name it: {bundle.ref(names[0])}" if names[0] in bundle.tensors else ""
    return FileError(
        f"{bundle.source} holds {' and '.join(map(repr, names))}: which is the {role}?",
        f"keep one of them{name}",
    )


def is_result(bundle: Bundle) -> bool:
    """Whether attncli itself wrote the bundle, as with ``--json``."""
    return str(bundle.options.get("schema")).startswith("attncli.")


STDIN = "standard input"
TUPLE = {"0": "query", "1": "key", "2": "value"}


def path_of(bundle: Bundle) -> str:
    """The path of a bundle as references have it."""
    return "-" if bundle.source == STDIN else bundle.source


def unknown_name(bundle: Bundle, name: str) -> FileError:
    """The error for a name that no tensor has, with the nearest that exists."""
    if list(bundle.tensors) == [""]:
        return FileError(
            f"{bundle.source} is one unnamed tensor: '::{name}' names nothing",
            f"leave the name out: {path_of(bundle)}",
        )
    return FileError(
        f"{bundle.source} has no tensor '{name}'; it holds {numbered(bundle.tensors)}",
        nearest(name, bundle.tensors, "") or None,
    )


def prefixes(bundle: Bundle) -> list[str]:
    """The prefixes below which a query or hidden states lie; none where they are at the top."""
    found: dict[str, None] = {}
    for name in bundle.tensors:
        outer, _, last = name.rpartition(".")
        if any(role in LEADING for role in PLAYED.get(last.lower(), ())):
            found[outer] = None
    return [] if "" in found else list(found)


def problems_of(bundle: Bundle, fewest: int = 2) -> dict[str, Bundle]:
    """The bundles of one problem each by prefix, such as ``layers.3``; {} of fewer than that.

    What stands above a prefix, or nowhere near one, goes along with each: ``scale`` beside
    ``layers.3.query`` is that of all layers.
    """
    below = prefixes(bundle)
    if len(below) < fewest or not isinstance(bundle.tensors, Lazy):
        return {}
    own: dict[str, list[str]] = {prefix: [] for prefix in below}
    for name in (*bundle.tensors, *bundle.options):
        outer = name.rpartition(".")[0]
        home = outer
        while home and home not in own:
            home = home.rpartition(".")[0]
        inside = [prefix for prefix in below if f"{prefix}.".startswith(f"{outer}.")]
        for prefix in [home] if home else inside or below:
            own[prefix].append(name)
    return {
        prefix: replace(
            bundle,
            tensors=bundle.tensors.only([name for name in names if name in bundle.tensors]),
            options=MappingProxyType({n: bundle.options[n] for n in names if n in bundle.options}),
            referred=MappingProxyType(
                {n: bundle.referred[n] for n in names if n in bundle.referred}
            ),
        )
        for prefix, names in own.items()
    }


def unwrapped(bundle: Bundle) -> Bundle:
    """The bundle by short names, where all that leads lies below one prefix.

    ``data.query`` becomes ``query``, ``scale`` above it stays; three tensors that torch saved as
    a tuple are query, key and value. Raises FileError where a name is then said twice.
    """
    if bundle.kind == "torch" and tuple(bundle.tensors) == tuple(TUPLE):
        whole = {name: place for place, name in TUPLE.items()}
        assert isinstance(bundle.tensors, Lazy)
        return replace(bundle, tensors=bundle.tensors.named(TUPLE), whole=whole)
    below = prefixes(bundle)
    if len(below) != 1 or not isinstance(bundle.tensors, Lazy):
        return bundle
    short: dict[str, str] = {}
    for name in (*bundle.tensors, *bundle.options):
        outer, _, last = name.rpartition(".")
        if outer and f"{below[0]}.".startswith(f"{outer}."):
            short[name] = last
    whole = {last: name for name, last in short.items()}
    there = Counter(short.get(name, name) for name in (*bundle.tensors, *bundle.options))
    twice = next((name for name in whole if there[name] > 1), None)
    if twice is not None:
        raise FileError(
            f"{bundle.source} holds '{twice}' more than once above and below '{below[0]}'",
            "keep one of them",
        )
    options = {short.get(name, name): value for name, value in bundle.options.items()}
    referred = {short.get(name, name): ref for name, ref in bundle.referred.items()}
    return replace(
        bundle, tensors=bundle.tensors.named(short), options=MappingProxyType(options),
        whole=whole, referred=MappingProxyType(referred),
    )  # fmt: skip
