"""Files of many problems, written one after the other: ``layers.3.query`` and so on.

What each needs besides its tensors (mask, scale, softcap, sink, labels) goes along under the same
prefix, or once for all where it is the same. `inspect` and `compute --layer` read them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, BinaryIO, Self

import numpy as np

from attncli import files
from attncli.attention.problem import Problem
from attncli.attention.view import Labels
from attncli.errors import FileError, InputError
from attncli.files.folders import index_of, shard_name
from attncli.files.formats import WRITABLE
from attncli.files.formats.entry import native, os_error
from attncli.studies.bundle import PROBLEM, carried, tokens_of

Array = np.ndarray[Any, np.dtype[Any]]

SHARD = 4 << 30  # bytes of a file, after which another one begins
SHARDED = ".safetensors"


class Capture:
    """A context that problems are added to; the file is there, whole, when it ends without error.

    ``path`` ends in .safetensors, .npz or .json; a large .safetensors becomes several files beside
    an index, ``x.safetensors.index.json``. ``include`` are some of query, key and value. What was
    added waits in a temporary file, so that memory holds one problem. ``written`` is then the path
    to read. Raises FileError where nothing can be written.
    """

    def __init__(
        self, path: str, include: Collection[str] = PROBLEM, *, format: str = "", shard: int = SHARD
    ) -> None:
        self.path, self.include, self.written = path, tuple(include), path
        self._format = format or os.path.splitext(path)[1].lower()
        self._most = shard if self._format == SHARDED and path != "-" else None
        self._stack = ExitStack()
        self._spools: list[Spool] = []
        self._options: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None:
                self._write()

    def add(self, name: str, problem: Problem, labels: Labels | None = None) -> None:
        """Keep the tensors of a problem below the prefix ``name``, which must be new."""
        if not problem.scored:
            raise InputError(
                f"attention weights alone have no {', '.join(self.include)} to save",
                "leave -o out",
            )
        along = carried(problem, self.include, past_apart=False)
        if name in self._options:
            raise FileError(f"{self.path}: two problems are called '{name}'", "rename one of them")
        said = {**along.options, **tokens_of(labels or Labels())}
        self._options[name] = said
        family = problem.family
        arrays = {one: family.restore(getattr(problem, one)) for one in self.include}
        try:
            spool = self._spool()
            for one, array in {**arrays, **along.arrays}.items():
                spool.add(f"{name}.{one}", array)
        except OSError as error:
            raise os_error(error, self.path, "write") from None

    def _spool(self) -> Spool:
        """Return what the next problem waits in."""
        last = self._spools[-1] if self._spools else None
        if last is None or (self._most is not None and last.size >= self._most):
            folder = os.path.dirname(os.path.realpath(self.path)) if self.path != "-" else None
            stream = self._stack.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
            last = Spool(stream)
            self._spools.append(last)
        return last

    def _write(self) -> None:
        if not self._spools:
            return
        common = _common([*self._options.values()])
        extra = dict(common)
        for name, own in self._options.items():
            extra |= {f"{name}.{n}": value for n, value in own.items() if n not in common}
        if len(self._spools) == 1:
            files.write(self.path, self._spools[0].arrays(), extra=extra, format=self._format)
            return
        index = index_of(self.path)
        where: dict[str, str] = {}
        for n, spool in enumerate(self._spools, 1):
            shard = shard_name(index, n, len(self._spools))
            names = {name.rpartition(".")[0] for name in spool.where}
            own = {
                name: value for name, value in extra.items()
                if name in common or name.rpartition(".")[0] in names
            }  # fmt: skip
            files.write(shard, spool.arrays(), extra=own)
            where |= dict.fromkeys(spool.where, os.path.basename(shard))
        total = sum(spool.size for spool in self._spools)
        with files.atomic(index) as stream:
            stream.write(files.dumps({"metadata": {"total_size": total}, "weight_map": where}))
        with suppress(FileNotFoundError):
            os.unlink(self.path)  # an older capture of this name, in one file
        self.written = index

    @property
    def lost(self) -> Mapping[str, Mapping[str, Any]]:
        """What the format of the file has no place for, by problem."""
        return {} if WRITABLE[self._format].options else self._options


class Spool:
    """Arrays in a temporary file, by name; ``size`` in bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.size = stream, 0
        self.where: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}

    def add(self, name: str, array: Array) -> None:
        array = native(np.asarray(array))
        self.where[name] = array.dtype, array.shape, self.size
        room = -array.nbytes % 64  # so that every array is aligned
        self._stream.write(array.reshape(-1).view(np.uint8).data)
        self._stream.write(b"\0" * room)
        self.size += array.nbytes + room

    def arrays(self) -> dict[str, Array]:
        """Return the arrays, mapped."""
        self._stream.flush()
        if not self.size:
            return {name: np.empty(shape, dtype) for name, (dtype, shape, _) in self.where.items()}
        whole = np.memmap(self._stream, np.uint8, "r")
        found = {}
        for name, (dtype, shape, start) in self.where.items():
            count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            found[name] = whole[start : start + count].view(dtype).reshape(shape)
        return found


def _common(options: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all problems say alike."""
    first, *others = options
    return {
        name: value
        for name, value in first.items()
        if all(name in own and own[name] == value for own in others)
    }
