"""PyTorch files, read with ``weights_only=True``."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from attncli.errors import FileError, Unavailable
from attncli.files.formats import HEAD, is_zip
from attncli.files.formats.entry import (
    Array,
    Buffer,
    Entries,
    Entry,
    Header,
    dtype_named,
    header_of,
    is_numeric,
    native,
    reading,
)
from attncli.files.formats.nested import is_tensor, to_array
from attncli.files.formats.npz import expect_unpacked

NOT_PLAIN = "no PyTorch file of plain tensors"


def read(data: Buffer, source: str, path: str | None) -> tuple[Entries, Mapping[str, Any]]:
    """Return tensors and NumPy arrays, nested names joined by dots, and what else is plain.

    A list of numbers is an array. Code in the file is refused.
    """
    try:
        import torch
    except ImportError:
        raise Unavailable(
            f"{source} is a PyTorch file, and PyTorch is not installed",
            "pip install 'attncli[torch]', or save it as .safetensors",
        ) from None
    if is_zip(data[:HEAD]):
        expect_unpacked(data, source, path)
    loaded = _loaded(data, source, path if is_zip(data[:HEAD]) else None)
    entries: Entries = {}
    options: dict[str, Any] = {}
    with reading(source, NOT_PLAIN):
        for name, value in _leaves(loaded, ""):
            if name in entries or name in options:
                raise FileError(f"{source} holds two tensors named '{name}'")
            label = f"{source}::{name}"
            if isinstance(value, torch.Tensor):
                entries[name] = _entry(value, label)
            elif isinstance(value, np.ndarray | np.generic) or is_tensor(value):
                entries[name] = _array_entry(value, label)
            elif isinstance(value, torch.dtype):
                options[name] = str(value).removeprefix("torch.")
            elif name:
                options[name] = value
    return entries, options


def _loaded(data: Buffer, source: str, path: str | None) -> Any:
    """What was saved; mapped from ``path``, which the format before zip files cannot be."""
    import pickle
    import re
    import warnings

    import torch

    with (
        reading(source, NOT_PLAIN),
        warnings.catch_warnings(),
        # a Namespace, as training scripts save their arguments, holds names and values alone
        torch.serialization.safe_globals([*_numpy_globals(), argparse.Namespace]),
    ):
        warnings.simplefilter("ignore")
        try:
            return torch.load(
                path if path is not None else io.BytesIO(data),
                map_location="cpu",
                weights_only=True,
                mmap=path is not None,
            )
        except pickle.UnpicklingError as error:  # its own advice is to load the code
            wish = re.search(r"GLOBAL (\S+)", str(error))
            raise FileError(
                f"{source} holds more than plain tensors"
                + (f": it asks for {wish[1].rstrip('.,`')}" if wish else ""),
                "code in a file is never run; save the tensors alone, as .safetensors",
            ) from None


def _numpy_globals() -> list[Any]:
    """What a pickled NumPy array of numbers is made with, which torch does not know by itself."""
    import torch

    if torch.__version__ < "2.6":  # earlier ones take no names, and NumPy has moved its own
        return []
    makers: list[Any] = [array.__reduce__()[0] for array in (np.empty(0), np.float64(0))]
    homes = ("numpy.core.multiarray", "numpy._core.multiarray")
    return [
        np.ndarray,
        np.dtype,
        *{type(np.dtype(kind)) for kind in "?bhilqBHILQefdFD"},
        *((make, f"{home}.{make.__name__}") for make in makers for home in homes),
    ]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    plain = isinstance(value, list | tuple) and _is_plain(value)
    if plain or not isinstance(value, dict | list | tuple):
        yield name, _listed(value)
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))


def _is_plain(values: Any) -> bool:
    """Whether nested lists hold numbers or words alone, no tensors."""
    return bool(values) and all(
        _is_plain(item) if isinstance(item, list | tuple) else isinstance(item, str | int | float)
        for item in values
    )


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _array_entry(value: Any, label: str) -> Entry:
    if isinstance(value, list):
        return Entry(lambda: to_array(value, label, "the list"))
    array = np.asarray(value)
    if not is_numeric(array.dtype):
        raise FileError(f"{label} holds {array.dtype}; expected numbers")
    return Entry(lambda: native(array), lambda: header_of(array))


def _entry(tensor: Any, label: str) -> Entry:
    dtype = str(tensor.dtype).removeprefix("torch.")

    def load() -> Array:
        import torch

        with reading(label, "a tensor that NumPy cannot hold"):
            plain = tensor.detach().cpu().resolve_conj().resolve_neg()
            if dtype == "bfloat16" or dtype.startswith("float8"):
                bits = torch.int16 if dtype == "bfloat16" else torch.uint8
                array: Array = plain.view(bits).numpy().view(dtype_named(dtype))
            else:
                array = plain.numpy()
            array.flags.writeable = False
            return array

    def header() -> Header:
        return Header(tuple(tensor.shape), dtype, tensor.numel() * tensor.element_size())

    return Entry(load, header)
