"""PyTorch files, read with ``weights_only=True``."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from attncli.errors import FileError, Unavailable
from attncli.files.formats.entry import Buffer, Entries, Entry, Header, dtype_named, reading

Array = np.ndarray[Any, np.dtype[Any]]


def read_torch(data: Buffer, source: str, path: str | None) -> Entries:
    """The tensors of a PyTorch file, nested names joined by dots; code in it is refused."""
    try:
        import torch
    except ImportError:
        raise Unavailable(
            f"{source} is a PyTorch file, and PyTorch is not installed",
            "pip install 'attncli[torch]', or save it as .safetensors",
        ) from None
    import pickle
    import re
    import warnings

    with reading(source, "no PyTorch file of plain tensors"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = torch.load(
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
    entries: dict[str, Entry] = {}

    def entry(tensor: Any, label: str) -> Entry:
        def load() -> Array:
            with reading(label, "a tensor that NumPy cannot hold"):
                plain = tensor.detach().cpu().resolve_conj().resolve_neg()
                name = str(plain.dtype).removeprefix("torch.")
                if name == "bfloat16" or name.startswith("float8"):
                    bits = torch.int16 if name == "bfloat16" else torch.uint8
                    array: Array = plain.view(bits).numpy().view(dtype_named(name))
                else:
                    array = plain.numpy()
                array.flags.writeable = False
                return array

        return Entry(
            load,
            lambda: Header(
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                tensor.numel() * tensor.element_size(),
            ),
        )

    def collect(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            if name in entries:
                raise FileError(f"{source} holds two tensors named '{name}'")
            entries[name] = entry(value, f"{source}::{name}")
        elif isinstance(value, dict | list | tuple):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, inner in pairs:
                collect(inner, f"{name}.{key}" if name else str(key))

    with reading(source, "no PyTorch file of plain tensors"):
        collect(loaded, "")
    return entries
