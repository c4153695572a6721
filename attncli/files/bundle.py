"""The tensors of one file by name, and the roles that names play."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from attncli.errors import FileError, nearest, numbered
from attncli.files.formats.entry import Array, Entry, Header, header_of
from attncli.files.formats.nested import no_numbers

#: What a tensor may be called in a bundle. Case does not matter.
ROLES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "q"),
    "key": ("key", "k"),
    "value": ("value", "v"),
    "attn_mask": ("attn_mask", "mask", "attention_mask"),
    "key_padding_mask": ("key_padding_mask",),
    "hidden_states": ("hidden_states", "x"),
    "memory": ("memory", "encoder_hidden_states"),
    "memory_value": ("memory_value",),
    "past_key": ("past_key", "k_cache"),
    "past_value": ("past_value", "v_cache"),
    "kv_lengths": ("kv_lengths", "cache_seqlens"),
    "positions": ("positions", "position_ids"),
    "rope_cos": ("rope_cos", "cos"),
    "rope_sin": ("rope_sin", "sin"),
    "sink": ("sink", "sinks"),
    "weights": ("weights", "attn_weights"),
    "output": ("output", "out", "o"),
    "lse": ("lse", "softmax_lse", "logsumexp"),
    "grad_output": ("grad_output", "dout", "do"),
    "grad_query": ("grad_query", "dq"),
    "grad_key": ("grad_key", "dk"),
    "grad_value": ("grad_value", "dv"),
}


@dataclass(frozen=True)
class Bundle:
    """The tensors of one file by name; a bare array has the one name ``""``.

    ``tensors`` makes or maps an array when it is asked for: that may raise `FileError`.
    ``options`` are the members of a JSON object that are no tensors, or the metadata of a
    safetensors file.
    """

    source: str
    kind: str
    tensors: Mapping[str, Array]
    options: Mapping[str, Any] = field(default_factory=dict)

    def header(self, name: str) -> Header:
        """Shape, dtype and size of a tensor; only JSON has to read the data for it."""
        if name not in self.tensors:
            raise unknown_name(self, name)
        known = self.tensors.header(name) if isinstance(self.tensors, Lazy) else None
        return known or header_of(self.tensors[name])


class Lazy(Mapping[str, Array]):
    """Arrays by name, each made once, on its first use."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = dict(entries)
        self._made: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._made:
            self._made[name] = self._entries[name].load()
        return self._made[name]

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

    def only(self, names: list[str]) -> Lazy:
        return Lazy({name: self._entries[name] for name in names})


def find(bundle: Bundle, role: str) -> tuple[str, Array] | None:
    """The tensor that plays a role (a key of `ROLES`) under whatever name it has, or None."""
    wanted = ROLES.get(role, (role.lower(),))
    names = [name for name in bundle.tensors if name.lower() in wanted]
    if len(names) > 1:
        raise FileError(
            f"{bundle.source} holds {' and '.join(map(repr, names))}: which is the {role}?",
            f"keep one of them, or name it: {path_of(bundle)}::{names[0]}",
        )
    return (names[0], bundle.tensors[names[0]]) if names else None


def demand_numbers(bundle: Bundle, role: str) -> None:
    """Raise FileError where a member of JSON has a tensor's name but is something else."""
    for name, value in bundle.options.items() if bundle.kind == "json" else ():
        if name.lower() in ROLES[role] and value is not None:
            raise no_numbers(value, bundle.source, name)


def is_result(bundle: Bundle) -> bool:
    """Whether attncli itself wrote the bundle, as with ``--json``."""
    return str(bundle.options.get("schema")).startswith("attncli.")


STDIN = "standard input"


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
