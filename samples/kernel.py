"""An attention kernel as ``attncli compute tests.jsonl -- python3 samples/kernel.py`` runs it.

It reads one problem, .npz on standard input, and writes its answer, .npz on standard output. Put
your own kernel in place of ``attention``; what a problem may hold stands in the head of
attncli/studies/cases/commands.py.
"""

import io
import sys

import numpy as np


def attention(problem):
    """Return the output (B, H, Lq, Dv) and the log-sum-exp of each row (B, H, Lq)."""
    q, k, v = (problem[name].astype(np.float64) for name in ("query", "key", "value"))
    if "past_key" in problem:
        k = np.concatenate([problem["past_key"], k], axis=2)
        v = np.concatenate([problem["past_value"], v], axis=2)
    k, v = (np.repeat(array, q.shape[1] // array.shape[1], axis=1) for array in (k, v))
    scores = problem["scale"] * q @ k.swapaxes(2, 3)
    if "softcap" in problem:
        scores = problem["softcap"] * np.tanh(scores / problem["softcap"])
    if "dense_mask" in problem:  # or read problem["mask"], such as 'causal & window(16)'
        scores = scores + problem["dense_mask"]
    sink = problem["sink"][:, None, None] if "sink" in problem else -np.inf
    top = np.maximum(scores.max(-1, keepdims=True), sink)
    shift = np.where(np.isneginf(top), 0, top)  # a row that sees no key
    weights = np.exp(scores - shift)
    total = weights.sum(-1, keepdims=True) + np.exp(sink - shift)
    with np.errstate(divide="ignore"):
        lse = shift + np.log(total)
    return weights @ v / np.where(total == 0, 1, total), lse[..., 0]


problem = np.load(io.BytesIO(sys.stdin.buffer.read()))
output, lse = attention(problem)
dtype = str(problem["dtype"])
np.savez(
    sys.stdout.buffer,
    output=output.astype("float32" if dtype == "bfloat16" else dtype),
    lse=lse.astype(np.float32),
)
