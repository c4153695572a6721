"""A problem on standard input, its answer on standard output, as ``compute TESTS -- COMMAND`` asks.

In comes an .npz: query, key, value, scale, and what else the problem has. Out goes an .npz with
output and lse; an .npy of the output alone would do. In another language: any reader of .npz, which
is a zip of .npy files, neither compressed.
"""

from __future__ import annotations

import io
import sys

import numpy as np

KNOWN = {
    "query", "key", "value", "past_key", "past_value", "mask", "dense_mask", "attn_mask",
    "kv_lengths", "scale", "softcap", "sink", "dtype", "grad_output",
}  # fmt: skip


def answer(kernel):
    """Read a problem, give it to a kernel, and write what it returns: output and lse."""
    with np.load(io.BytesIO(sys.stdin.buffer.read())) as file:
        given = dict(file)
    if unknown := given.keys() - KNOWN:
        sys.exit(f"not implemented: {', '.join(sorted(unknown))}")
    key, value = given["key"], given["value"]
    if "past_key" in given:
        key = np.concatenate([given["past_key"], key], -2)
        value = np.concatenate([given["past_value"], value], -2)
    # The mask is an expression, and dense_mask the same as numbers. A kernel with a flag for causal
    # is tested by what the flag does; lengths of a cache move each sequence's corner.
    text = str(given.get("mask", ""))
    causal = text in ("causal", "causal(bottom_right)") and "kv_lengths" not in given
    output, lse = kernel(
        given["query"], key, value, causal=causal,
        mask=None if causal else given.get("dense_mask"),
        scale=given.get("scale"), softcap=given.get("softcap"), sink=given.get("sink"),
    )  # fmt: skip
    kept = io.BytesIO()
    np.savez(kept, output=output, lse=lse)
    sys.stdout.buffer.write(kept.getvalue())
