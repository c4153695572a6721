"""Processes that torchrun started, and what they send each other: arrays, never objects.

Results move along a binary tree to process 0 and from there to all, so that all hold the same to
the bit: each sends what it has once, and receives the whole once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np

from attncli import resources
from attncli.attention.shares import Arrays
from attncli.errors import InputError, Unavailable, counted

Array = np.ndarray[Any, np.dtype[Any]]

SILENCE = timedelta(minutes=60)  # of a process that computes longer than the others
HEADER = 10  # numbers before each array: its type, its rank, its shape
TORCHRUN = "torchrun --nproc-per-node 2 -m attncli"
RUN = "TORCHELASTIC_RUN_ID"  # a variable of torchrun alone


def started() -> bool:
    """Whether torchrun, or what sets the same variables, started this process with others."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def launched() -> int:
    """Return how many processes torchrun itself started; 1 where it did not.

    What else sets ``started``'s variables may have set them for a shell in which one command runs.
    """
    try:
        return int(os.environ["WORLD_SIZE"]) if RUN in os.environ and started() else 1
    except ValueError:
        return 1


def demand_division(values: Mapping[str, Any]) -> None:
    """Raise InputError where torchrun started several processes that would all do the same.

    Each would print, and write the same file. ``values`` are a command's options by name.
    """
    if launched() == 1 or any(values.get(name) for name in ("shard", "part", "merge")):
        return
    once = "start it once: env -u WORLD_SIZE attncli …"
    raise InputError(
        f"torchrun started {launched()} processes, and each would do the same",
        f"divide it: --shard keys; or {once}" if "shard" in values else once,
    )


class Ranks:
    """The exchange of all processes of a run (see ``shares.Exchange``).

    On GPUs by nccl, else by gloo. Raises InputError where torchrun did not start this process,
    Unavailable without torch or where the others cannot be reached; and Unavailable from each
    of its methods when another process has ended.
    """

    def __init__(self, device: str = "auto") -> None:
        if not started():
            raise InputError(
                "--shard divides the work among processes, and there is only this one",
                f"start them with {TORCHRUN} … --shard …, or compute by hand: --part 1/2",
            )
        try:
            import torch
            from torch import distributed
        except ImportError as error:
            raise Unavailable(
                f"--shard needs PyTorch, which cannot be imported here: {error}",
                "pip install 'attncli[torch]'",
            ) from None
        self.torch, self.group = torch, distributed
        self.rank, self.ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        here = int(os.environ.get("LOCAL_RANK", 0))
        resources.divide(int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        on_gpu = device.startswith("cuda") and distributed.is_nccl_available()
        self.device = torch.device("cuda", here) if on_gpu else torch.device("cpu")
        if torch.cuda.is_available():  # "cuda" is that of each process
            torch.cuda.set_device(here % torch.cuda.device_count())
        self._try(
            lambda: distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=SILENCE)
        )

    def merged(self, arrays: Arrays, merge: Callable[[Arrays, Arrays], Arrays]) -> Arrays:
        """Return the arrays of all, merged in the order of ranks: to the bit the same for all."""
        step, count = 1, len(arrays)
        while step < self.ranks:
            if self.rank % (2 * step):
                for array in arrays:
                    self._send(array, self.rank - step)
                break
            if self.rank + step < self.ranks:
                arrays = merge(arrays, [self._receive(self.rank + step) for _ in range(count)])
            step *= 2
        return [self._from(0, array) for array in arrays]

    def gathered(self, array: Array) -> list[Array]:
        """Return the array of each, in the order of ranks; they may differ in shape."""
        return [self._from(rank, array) for rank in range(self.ranks)]

    def texts(self, text: str) -> list[str]:
        """Return what each has to say."""
        found = self.gathered(np.frombuffer(text.encode(), np.uint8))
        return [array.tobytes().decode() for array in found]

    def _send(self, array: Array, to: int) -> None:
        for part in self._parts(array):
            self._try(partial(self.group.send, part, to))

    def _receive(self, rank: int) -> Array:
        return self._taken(lambda part: self.group.recv(part, rank))

    def _from(self, rank: int, array: Array) -> Array:
        """Return the array of one process, which gives it to all."""
        if rank != self.rank:
            return self._taken(lambda part: self.group.broadcast(part, rank))
        for part in self._parts(array):
            self._try(partial(self.group.broadcast, part, rank))
        return array

    def _parts(self, array: Array) -> list[Any]:
        """Return what is sent: the header, and the bytes, if any."""
        array = np.ascontiguousarray(array)
        header = np.zeros(HEADER, np.int64)
        name = array.dtype.name.encode().ljust(16)
        header[:2], header[2], header[3 : 3 + array.ndim] = (
            np.frombuffer(name, np.int64), array.ndim, array.shape,
        )  # fmt: skip
        parts = [header] + [array.reshape(-1).view(np.uint8)] * bool(array.size)
        return [self._shared(part).to(self.device) for part in parts]

    def _shared(self, array: Array) -> Any:
        """Return a tensor on the array's own memory, or on a copy where that is not to be written.

        torch warns of the latter.
        """
        return self.torch.from_numpy(array if array.flags.writeable else array.copy())

    def _taken(self, take: Callable[[Any], Any]) -> Array:
        from attncli.attention.problem import float_dtype

        header = self.torch.zeros(HEADER, dtype=self.torch.int64, device=self.device)
        self._try(lambda: take(header))
        numbers = header.cpu().numpy()
        name = numbers[:2].tobytes().decode().strip()
        shape = tuple(numbers[3 : 3 + int(numbers[2])].tolist())
        dtype = float_dtype(name) if name == "bfloat16" else np.dtype(name)
        found = np.empty(shape, dtype)
        if found.size:
            own = self._shared(found.reshape(-1).view(np.uint8))
            into = own.to(self.device)
            self._try(lambda: take(into))
            if into is not own:
                own.copy_(into)
        return found

    def _try(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except (RuntimeError, ValueError, OSError) as error:  # as gloo and the store say it
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise Lost(
                f"process {self.rank} of {counted(self.ranks, 'process', 'processes')} has lost "
                f"the others: one has ended, or cannot be reached ({lines[0][:160]})",
                "what the one that ended said stands above; nothing was written",
            ) from None


class Lost(Unavailable):
    """Another process of a run has ended."""
