"""PyTorch files, read with ``weights_only=True``."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

from attncli.errors import FileError, Unavailable
from attncli.files.formats import HEAD, is_zip
from attncli.files.formats.entry import Array, Buffer, Entries, Entry, Header, dtype_named, reading

NOT_PLAIN = "no PyTorch file of plain tensors"


def read(data: Buffer, source: str, path: str | None) -> tuple[Entries, Mapping[str, Any]]:
    """Return the tensors, nested names joined by dots; code in the file is refused."""
    try:
        import torch
    except ImportError:
        raise Unavailable(
            f"{source} is a PyTorch file, and PyTorch is not installed",
            "pip install 'attncli[torch]', or save it as .safetensors",
        ) from None
    loaded = _loaded(data, source, path if is_zip(data[:HEAD]) else None)
    entries: Entries = {}
    with reading(source, NOT_PLAIN):
        for name, value in _leaves(loaded, ""):
            if isinstance(value, torch.Tensor):
                if name in entries:
                    raise FileError(f"{source} holds two tensors named '{name}'")
                entries[name] = _entry(value, f"{source}::{name}")
    return entries, {}


def _loaded(data: Buffer, source: str, path: str | None) -> Any:
    """What was saved; mapped from ``path``, which the format before zip files cannot be."""
    import pickle
    import re
    import warnings

    import torch

    with reading(source, NOT_PLAIN), warnings.catch_warnings():
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


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict | list | tuple):
        yield name, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))


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
