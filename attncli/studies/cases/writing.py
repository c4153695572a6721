"""A test set into two files: NDJSON of its cases, and their tensors beside it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli import files
from attncli.errors import FileError
from attncli.files.formats import safetensors
from attncli.resources import Progress
from attncli.studies.cases import Case, cases
from attncli.studies.cases.kinds import KINDS

Array = np.ndarray[Any, np.dtype[Any]]

NAME = "cases"  # of the files in a folder
SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Written:
    """What was written: the two paths, and how many cases there are of each kind."""

    lines: str
    tensors: str
    counts: Mapping[str, int]


def paths_of(target: str) -> tuple[str, str]:
    """Return the paths of NDJSON and tensors for a FILE.jsonl or a folder, which may be new.

    Raises FileError for another suffix, and for ``-``: two files are no stream.
    """
    if target == "-":
        raise FileError(
            "a test set is two files: it cannot go to standard output",
            "name a folder, or FILE.jsonl, as in --cases tests.jsonl",
        )
    stem, suffix = os.path.splitext(target)
    if os.path.isdir(target) or not suffix or target.endswith(os.sep):
        stem, suffix = os.path.join(target, NAME), SUFFIXES[0]
    if suffix.lower() not in SUFFIXES:
        raise FileError(
            f"{target} ends in '{suffix}'", f"expected a folder, or FILE{' or FILE'.join(SUFFIXES)}"
        )
    return stem + suffix, f"{stem}.safetensors"


def write(target: str, seed: int = 0, progress: Progress | None = None) -> Written:
    """Make the test set of a seed and write it, whole or not at all.

    Raises FileError where it cannot be written.
    """
    path, beside = paths_of(target)
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder) and os.path.isdir(os.path.dirname(folder) or "."):
        os.mkdir(folder)
    counts = Counter[str]()
    arrays: dict[str, Array] = {}
    with files.atomic(path) as lines, files.atomic(beside) as tensors:
        for case in cases(seed):
            counts[case.kind.name] += 1
            lines.write(files.dumps(_line(case, os.path.basename(beside))) + b"\n")
            own = {**case.tensors, **case.expected}
            arrays |= {f"{case.id}.{name}": np.ascontiguousarray(a) for name, a in own.items()}
            if progress:
                progress(len(counts) / len(KINDS))
        safetensors.write(tensors, arrays, {})
    return Written(path, beside, counts)


def _line(case: Case, beside: str) -> dict[str, Any]:
    """Return a case as a bundle whose tensors lie in another file."""

    def named(arrays: Mapping[str, Array]) -> dict[str, str]:
        return {name: f"{beside}::{case.id}.{name}" for name in arrays}

    about = {"id": case.id, "kind": case.kind.name, "catches": case.kind.catches}
    return {**about, **named(case.tensors), **case.options, **named(case.expected)}
