"""A problem on standard input, its answer on standard output, as ``compute TESTS -- COMMAND`` asks.

In comes an .npz: query, key, value, scale, and what else the problem has. Out goes an .npz with
output and lse; an .npy of the output alone would do. For other languages: an .npz is a zip of .npy
files, here uncompressed.
"""

from __future__ import annotations

import io
import sys

import numpy as np

KNOWN = {
    "query", "key", "value", "past_key", "past_value", "mask", "dense_mask", "attn_mask",
    "kv_lengths", "scale", "softcap", "sink", "dtype", "grad_output",
}  # fmt: skip


def arguments(given):
    """Return a problem as the arguments of the kernels here; exit where they cannot say it."""
    if unknown := set(given) - KNOWN:
        sys.exit(f"not implemented: {', '.join(sorted(unknown))}")
    key, value = given["key"], given["value"]
    if "past_key" in given:
        key = np.concatenate([given["past_key"], key], -2)
        value = np.concatenate([given["past_value"], value], -2)
    # mask is an expression, dense_mask the same in numbers. A kernel that has a flag for causal is
    # tested with its flag; lengths of a cache would move the corner of each sequence.
    text = str(given.get("mask", ""))
    causal = text in ("causal", "causal(bottom_right)") and "kv_lengths" not in given
    return {
        "query": given["query"], "key": key, "value": value,
        "causal": causal, "mask": None if causal else given.get("dense_mask"),
        "scale": given.get("scale"), "softcap": given.get("softcap"), "sink": given.get("sink"),
    }  # fmt: skip


def answer(kernel):
    """Read a problem, give it to a kernel, and write what it returns: output and lse."""
    with np.load(io.BytesIO(sys.stdin.buffer.read())) as file:
        output, lse = kernel(**arguments(dict(file)))
    kept = io.BytesIO()  # standard output cannot seek
    np.savez(kept, output=output, lse=lse)
    sys.stdout.buffer.write(kept.getvalue())
