"""Tensors of any library as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from attncli.errors import InputError


def array_of(value: Any) -> Any:
    """Return a tensor of any library as an array; what is none stays as it is.

    bfloat16 of PyTorch becomes ``ml_dtypes.bfloat16``, bit for bit. Raises InputError for a tensor
    of PyTorch that is no strided array: sparse, nested, quantized or without data.
    """
    if value is None or isinstance(value, np.ndarray | str | int | float | Mapping | list | tuple):
        return value
    if hasattr(value, "detach"):  # PyTorch: no import, whoever has one has it loaded
        odd = value.is_nested or value.is_quantized or value.is_meta
        if odd or str(value.layout) != "torch.strided":
            kind = next(
                (n for n in ("nested", "quantized", "meta") if getattr(value, f"is_{n}")), "sparse"
            )
            raise InputError(f"a {kind} tensor is no array", "give a dense one, of numbers")
        value = value.detach().cpu().resolve_conj().resolve_neg()
        if str(value.dtype) == "torch.bfloat16":
            import ml_dtypes

            bits = value.contiguous().view(_short(value)).numpy()
            return bits.view(ml_dtypes.bfloat16)
        return value.numpy()
    if hasattr(value, "__array__"):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    return value


def _short(tensor: Any) -> Any:
    """Return torch.int16 without importing torch."""
    from importlib import import_module

    return import_module("torch").int16
