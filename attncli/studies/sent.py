"""What processes say to each other besides arrays: as text, and nothing that comes in is run."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def text_of(said: Any, classes: Collection[type]) -> str:
    """Return JSON from which ``said_in`` makes the same.

    Numbers, words, sequences, which become tuples, mappings, arrays, and what is of ``classes``,
    dataclasses or NamedTuples; TypeError for anything else.
    """
    return json.dumps(_plain(said, {one.__name__ for one in classes}))


def said_in(text: str, classes: Collection[type]) -> Any:
    """Return what ``text_of`` was given."""
    return _made(json.loads(text), {one.__name__: one for one in classes})


def _plain(said: Any, known: Collection[str]) -> Any:
    if said is None or isinstance(said, bool | int | float | str):
        return said
    if isinstance(said, np.generic):
        return said.item()
    if isinstance(said, np.ndarray):
        return {"array": said.tolist(), "dtype": said.dtype.name, "shape": said.shape}
    if isinstance(said, Mapping):
        return {"map": [[_plain(name, known), _plain(one, known)] for name, one in said.items()]}
    if type(said) in (tuple, list):
        return {"tuple": [_plain(one, known) for one in said]}
    name = type(said).__name__
    if name not in known:
        raise TypeError(f"a {name} is nothing that is said")
    names = [f.name for f in fields(said)] if is_dataclass(said) else said._fields
    return {"of": name, "with": {n: _plain(getattr(said, n), known) for n in names}}


def _made(plain: Any, known: Mapping[str, type]) -> Any:
    if not isinstance(plain, dict):
        return plain
    if "array" in plain:
        return np.array(plain["array"], plain["dtype"]).reshape(plain["shape"])
    if "map" in plain:
        return {_made(name, known): _made(one, known) for name, one in plain["map"]}
    if "tuple" in plain:
        return tuple(_made(one, known) for one in plain["tuple"])
    return known[plain["of"]](**{n: _made(one, known) for n, one in plain["with"].items()})
