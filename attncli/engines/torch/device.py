"""Devices of PyTorch, and tensors on their way there and back."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch  # noqa: TID253 (loaded only once torch is known to be there)

from attncli.attention.problem import Problem
from attncli.engines import DEVICE
from attncli.errors import InputError, Unavailable
from attncli.resources import processors

Array = np.ndarray[Any, np.dtype[Any]]


# --- devices ------------------------------------------------------------------------------------


def find_device(name: str) -> torch.device:
    """Return the device of that name; InputError: no such name, Unavailable: no such device."""
    match = re.fullmatch(DEVICE, name)
    if not match:
        raise InputError(f"unknown device '{name}'", "it must be auto, cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if count else torch.device("cpu")
    if not count:
        built = torch.version.cuda or torch.version.hip
        raise Unavailable(
            f"device '{name}' was asked for, but "
            + (
                "no GPU is visible to PyTorch here"
                if built
                else f"this PyTorch ({torch.__version__}) is built without CUDA"
            ),
            "use --device cpu"
            + (" (nvidia-smi says what the driver sees)" if built else "")
            + ("" if built else ", or install a CUDA build: https://pytorch.org/get-started"),
        )
    index = torch.cuda.current_device() if match[1] is None else int(match[1])
    if index >= count:
        there = ", ".join(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(count))
        raise Unavailable(
            f"device '{name}' was asked for, but there is only {there}",
            "use one of these with --device, or --device cpu",
        )
    return torch.device("cuda", index)


def describe(device: torch.device) -> str:
    """Return 'cpu' or 'cuda:0 NVIDIA H100 80GB HBM3'."""
    if device.type == "cpu":
        return "cpu"
    return f"{device} {torch.cuda.get_device_name(device)}"


def wait(device: torch.device) -> None:
    """Wait for what was sent to a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def out_of_memory(problem: Problem, device: torch.device) -> Unavailable:
    """Return the error that says how much a device has and what would need less."""
    free, total = torch.cuda.mem_get_info(device)
    p = problem
    size = f"{p.batch} × {p.heads} heads, {p.queries} × {p.keys}, {p.result_dtype}"
    return Unavailable(
        f"{describe(device)} ran out of memory for {size}: {free / 2**30:.1f} of "
        f"{total / 2**30:.1f} GiB are free",
        "compute fewer heads at a time, end what else runs on the device, or use --device cpu",
    )


@contextmanager
def settings(threads: int | None) -> Iterator[None]:
    """Float32 products in float32 (no TF32), no gradients, so many threads; put back afterwards."""
    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        if threads is not None:
            torch.set_num_threads(min(threads, processors()))  # a million crash it
        torch.set_float32_matmul_precision("highest")
        with torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(before)


# --- arrays and tensors -------------------------------------------------------------------------


def to_torch(array: Array, device: torch.device) -> torch.Tensor:
    """Return a tensor of the same numbers; on the CPU a view where NumPy's memory allows it."""
    half = array.dtype.name == "bfloat16"
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(step < 0 or step % array.itemsize for step in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():  # a read-only array: nothing here writes into inputs
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array.view(np.int16) if half else array)
    return (tensor.view(torch.bfloat16) if half else tensor).to(device)


def to_numpy(tensor: torch.Tensor, dtype: np.dtype[Any]) -> Array:
    """Return an array of ``dtype``, rounded once."""
    kind = dtype_of(dtype)
    tensor = tensor.to(kind).cpu()
    return tensor.view(torch.int16).numpy().view(dtype) if dtype.name == "bfloat16" else (
        tensor.numpy()
    )  # fmt: skip


def dtype_of(dtype: np.dtype[Any]) -> torch.dtype:
    """Return torch's dtype of that name."""
    found = getattr(torch, dtype.name)
    assert isinstance(found, torch.dtype)
    return found


@dataclass(frozen=True)
class Inputs:
    """Query ``(B, H, Lq, D)``, key ``(B, G, Lk, D)`` and value ``(B, G, Lk, Dv)`` on a device."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    @classmethod
    def of(cls, problem: Problem, device: torch.device) -> Inputs:
        kind = dtype_of(problem.result_dtype)
        arrays = problem.query, problem.key, problem.value
        return cls(*(to_torch(array, device).to(kind) for array in arrays))

    def finite(self) -> bool:
        """Whether every number is."""
        return all(map(finite, (self.query, self.key, self.value)))


def finite(tensor: torch.Tensor) -> bool:
    """Whether every number is; a sum is, unless it overflows: then each is looked at."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
