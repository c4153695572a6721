"""Files to read, right and wrong, and what must come out of them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from attncli import files
from attncli.errors import AttnError, FileError

PLAIN = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "float32", "float64",
]  # fmt: skip
FUZZ = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def sample(dtype: str, shape: tuple[int, ...] = (2, 3, 4)) -> np.ndarray:
    numbers = np.random.default_rng(0).integers(0, 5, shape)
    if dtype.startswith(("bfloat", "float8")):
        return numbers.astype(getattr(ml_dtypes, dtype))
    return numbers.astype(dtype)


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert found.tobytes() == wanted.tobytes()


def put(path: Path, data: bytes | str) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def refused(ref: str, *fragments: str) -> FileError:
    """Reading everything at ``ref`` must fail with these fragments in the message."""
    with pytest.raises(FileError) as caught:
        list(files.read(ref).tensors.values())
    text = str(caught.value)
    assert [f for f in fragments if f not in text] == [], text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def use_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    stream = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def consume(path: str) -> None:
    """Everything that can be asked of a file; only AttnError may come out of it."""
    try:
        found = files.read_many(path)
        for item in [found] if isinstance(found, files.Bundle) else found:
            if isinstance(item, files.Bundle):
                for name in item.tensors:
                    item.header(name)
                    np.asarray(item.tensors[name]).tobytes()
    except AttnError:
        pass
