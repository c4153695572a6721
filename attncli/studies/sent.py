"""What processes say of layers to each other: as text, so that nothing that comes in is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from attncli.measures.policy import Finding, Verdict
from attncli.measures.roles import Role
from attncli.studies.attend import Ran
from attncli.studies.health import Head
from attncli.studies.many import LayerHealth

#: What can be said besides numbers, words, lists and arrays.
CLASSES = {one.__name__: one for one in (LayerHealth, Head, Verdict, Finding, Role, Ran)}


def text_of(said: Any) -> str:
    """Return JSON from which ``said_in`` makes the same; TypeError for what is not in CLASSES."""
    return json.dumps(_plain(said))


def said_in(text: str) -> Any:
    """Return what ``text_of`` was given."""
    return _made(json.loads(text))


def _plain(said: Any) -> Any:
    if said is None or isinstance(said, bool | int | float | str):
        return said
    if isinstance(said, np.generic):
        return said.item()
    if isinstance(said, np.ndarray):
        return {"array": said.tolist(), "dtype": said.dtype.name, "shape": said.shape}
    if isinstance(said, Mapping):
        return {"map": [[_plain(name), _plain(one)] for name, one in said.items()]}
    if type(said) in (tuple, list):
        return {"tuple": [_plain(one) for one in said]}
    if type(said).__name__ not in CLASSES:
        raise TypeError(f"a {type(said).__name__} is nothing that is said of layers")
    names = [f.name for f in fields(said)] if is_dataclass(said) else said._fields
    return {"of": type(said).__name__, "with": {n: _plain(getattr(said, n)) for n in names}}


def _made(plain: Any) -> Any:
    if not isinstance(plain, dict):
        return plain
    if "array" in plain:
        return np.array(plain["array"], plain["dtype"]).reshape(plain["shape"])
    if "map" in plain:
        return {_made(name): _made(one) for name, one in plain["map"]}
    if "tuple" in plain:
        return tuple(map(_made, plain["tuple"]))
    return CLASSES[plain["of"]](**{n: _made(one) for n, one in plain["with"].items()})
