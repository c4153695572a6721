"""Small files of every format, whole, from which broken ones are made."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np

from attncli import files
from attncli.files.formats import WRITABLE


def bundle(rng: np.random.Generator) -> dict[str, Any]:
    """Return query, key and value of a problem, small and odd."""
    h, g, lq, lk, d = 2, 1, *rng.integers(1, 5, 2), int(rng.integers(1, 4))
    shapes = {"query": (h, lq, d), "key": (g, lk, d), "value": (g, lk, 2)}
    kinds = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64]
    kind = kinds[int(rng.integers(len(kinds)))]
    return {name: (rng.normal(size=shape) * 2).astype(kind) for name, shape in shapes.items()}


@cache
def every() -> dict[str, bytes]:
    """Return the bytes of a file of each format by the name of its suffix."""
    rng = np.random.default_rng(0)
    found: dict[str, bytes] = {}
    with TemporaryDirectory() as folder:
        for suffix, row in WRITABLE.items():
            arrays = {n: np.asarray(a, np.float32) for n, a in bundle(rng).items()}
            some = arrays if row.many else {"": arrays["query"]}
            path = f"{folder}/x{suffix}"
            options = {"mask": "causal(top_left)", "scale": 0.5, "tokens": ["a", "b"]}
            files.write(path, some, extra=options if row.options else {})
            found[suffix] = Path(path).read_bytes()
        if find_spec("torch"):
            import torch

            tensors = {n: torch.from_numpy(a) for n, a in arrays.items()}
            torch.save({**tensors, "heads": 2, "nested": {"mask": "causal"}}, f"{folder}/x.pt")
            found[".pt"] = Path(f"{folder}/x.pt").read_bytes()
        if find_spec("gguf"):
            import gguf

            writer = gguf.GGUFWriter(f"{folder}/x.gguf", "llama")
            writer.add_head_count(2)
            writer.add_embedding_length(4)
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                writer.add_tensor(f"blk.0.{name}.weight", rng.normal(size=(4, 4)).astype("f4"))
            for step in ("header", "kv_data", "tensors"):
                getattr(writer, f"write_{step}_to_file")()
            writer.close()
            found[".gguf"] = Path(f"{folder}/x.gguf").read_bytes()
        if find_spec("onnx"):
            import onnx.numpy_helper

            tensor = onnx.numpy_helper.from_array(arrays["query"], "query")
            found[".pb"] = tensor.SerializeToString()
    lines = [json.dumps({n: a.tolist() for n, a in bundle(rng).items()}) for _ in range(3)]
    found[".ndjson"] = "\n".join(lines).encode()
    found[".csv"] = b"0.5,0.5,0\n1,0,0\n0.25,0.25,0.5\n"
    view = {"name": None, "attn": np.full((2, 2, 3, 3), 0.5).tolist(),
            "left_text": ["a", "b", "c"], "right_text": ["a", "b", "c"]}  # fmt: skip
    params = json.dumps({"attention": [view], "default_filter": "0", "include_layers": [0, 1]})
    found[".html"] = f"<script>const params = {params}; draw(params)</script>".encode()
    return found
