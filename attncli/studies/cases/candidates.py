"""Somebody else's answers to cases: which arrays of a file are which stage, and a folder of them.

An answer is a lone array, the output, or arrays by name: output, lse, weights, scores, grad_query,
grad_key, grad_value, under any name that the vocabulary has for them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from attncli import files
from attncli.attention.problem import Problem
from attncli.errors import FileError, InputError, NoAnswer, listed, numbered
from attncli.files.bundle import Bundle
from attncli.files.formats import SUFFIXES
from attncli.files.formats.entry import demand_regular, reading
from attncli.files.vocabulary import strangers

Array = np.ndarray[Any, np.dtype[Any]]

STAGES = ("output", "lse", "weights", "scores", "grad_query", "grad_key", "grad_value")
#: Kinds of files whose numbers can be bfloat16, and those that say no type at all.
BFLOAT16, UNTYPED = ("safetensors", "torch", "onnx"), ("json", "csv")


def stages_of(bundle: Bundle, problem: Problem) -> dict[str, Array]:
    """Return the arrays of an answer by stage, in the type that they stand for.

    Raises NoAnswer where none is there, or which is the output is not clear; FileError for two of
    one stage, or damaged ones.
    """
    named = {stage: some for stage in STAGES if (some := files.find(bundle, stage))}
    found = {stage: array for stage, (_, array) in named.items()}
    if found and "output" not in found:
        shapes = {name: np.shape(array) for name, array in bundle.tensors.items()}
        others = strangers(shapes, [name for name, _ in named.values()])
        if len(others) > 1:
            raise NoAnswer(
                f"{bundle.source} holds {listed(map(repr, others))}: which of them is the output?",
                f"names that are judged: {', '.join(STAGES)}",
            )
        if others:
            found["output"] = bundle.tensors[others[0]]
    if not found and len(bundle.tensors) == 1:
        found = {"output": next(iter(bundle.tensors.values()))}
    if not found:
        raise NoAnswer(
            f"{bundle.source} holds {numbered(bundle.tensors)}; expected the output",
            f"names that are judged: {', '.join(STAGES)}",
        )
    return {stage: _typed(stage, array, bundle.kind, problem) for stage, array in found.items()}


def _typed(stage: str, array: Array, kind: str, problem: Problem) -> Array:
    """Return an array in the problem's own type, where its file could not say that type."""
    own = problem.result_dtype
    if stage == "lse":
        own = np.dtype(np.float64 if own.itemsize > 4 else np.float32)
    wide = array.dtype.kind == "f" and array.dtype.itemsize > own.itemsize
    unsaid = kind in UNTYPED or (kind not in BFLOAT16 and own.name == "bfloat16")
    if wide and unsaid:
        with np.errstate(over="ignore"):
            return array.astype(own)
    return array


class Folder:
    """Answers in files that are called by the names of their cases."""

    def __init__(self, path: str) -> None:
        """Raise FileError unless there is such a folder."""
        if not os.path.isdir(path):
            raise FileError(
                f"{path} is no folder" if os.path.exists(path) else f"no such folder: {path}",
                "--candidate names a folder with an answer for each case: DIR/ID.npy",
            )
        self.path = path
        self.files: dict[str, list[str]] = {}
        with reading(path):
            names = sorted(os.listdir(path))
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in SUFFIXES:
                self.files.setdefault(stem, []).append(name)
        self._claimed: set[str] = set()

    def __call__(
        self, name: str, problem: Problem, grad_output: Array | None = None
    ) -> Mapping[str, Array]:
        """Return the answer to the case of that name, by stage.

        Raises NoAnswer where none lies there, InputError where two do.
        """
        own = self.files.get(name, [])
        if not own:
            raise NoAnswer(
                f"{self.path} has no answer to {name}", f"expected {name}.npy, .npz or the like"
            )
        self._claimed.add(name)
        if len(own) > 1:
            raise InputError(f"{self.path} has {len(own)} answers to {name}: {listed(own)}")
        path = os.path.join(self.path, own[0])
        demand_regular(path)
        return stages_of(files.read(path), problem)

    def whose(self, name: str) -> str:
        """Return what the answer to the case of that name is called in a sentence."""
        return os.path.join(self.path, self.files[name][0])

    def unclaimed(self) -> list[str]:
        """Return the names of the files that no case asked for."""
        return [n for stem, own in self.files.items() if stem not in self._claimed for n in own]
