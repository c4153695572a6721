"""A bundle and options as the command line gives them. Tests run in a folder of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from attncli import files
from attncli.attention.problem import Problem
from attncli.cli.given.attention import Inputs, gather
from attncli.cli.groups import Problem as Flags

Q, K, V = np.full((2, 3), 1.0), np.full((4, 3), 2.0), np.full((4, 5), 3.0)
QKV = {"query": Q.tolist(), "key": K.tolist(), "value": V.tolist()}
X = [[1.0, 0.0], [0.0, 1.0]]


def bundle(**members: Any) -> files.Bundle:
    Path("b.json").write_text(json.dumps(members))
    return files.read("b.json")


def posed(flags: Flags = Flags(), **members: Any) -> Problem:  # noqa: B008 (frozen)
    return gather(bundle(**members), flags).pose()


def labels(given: Inputs) -> tuple[Any, Any]:
    found = given.labels(given.pose())
    return found.query, found.key
