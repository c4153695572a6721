"""A mask as code for torch's FlexAttention: ``mask_mod`` and ``score_mod``.

See ``code`` for how it is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attncli.attention.code import Code
from attncli.attention.masks import Extent, Mask
from attncli.attention.predicates import Bias, Predicate
from attncli.attention.spoken import Spoken, keep_tensor

Array = np.ndarray[Any, np.dtype[Any]]


def flex(mask: Mask) -> Spoken:
    """Return ``mask_mod`` and ``score_mod`` as code, and the tensors that they read."""
    if mask.trivial:
        return Spoken("flex", "flex_attention(q, k, v)")
    e, code, lines, arguments = mask.extent, _writer(mask.extent), [], []
    if mask.has_bias:
        total = " + ".join(["score", *(code.bias(bias) for bias in mask.biases)])
        lines += ["def score_mod(score, b, h, q_idx, kv_idx):", f"    return {total}"]
        arguments.append("score_mod=score_mod")
    if not mask.predicate.everything():
        parts = [code.allowed(part) for part in mask.conjuncts() if not part.everything()]
        body = " & ".join(f"({part})" for part in parts) if len(parts) > 1 else parts[0]
        lines += ["def mask_mod(b, h, q_idx, kv_idx):", f"    return {body}"]
        sizes = f"{e.batch}, {e.heads}, {e.queries}, {e.keys}"
        arguments.append(f"block_mask=create_block_mask(mask_mod, {sizes}, device=q.device)")
    return Spoken(
        "flex", f"flex_attention(q, k, v, {', '.join(arguments)})", code.tensors,
        notes=("tensors are torch's, on the device of q",) if code.tensors else (),
        code="\n".join(lines),
    )  # fmt: skip


def _writer(extent: Extent) -> Code:
    def keep(part: Predicate) -> Array:
        return keep_tensor(Mask(extent, part))

    def add(part: Bias) -> Array:
        return Mask(extent, biases=(part,)).compact().tensor(np.float32)

    return Code(keep, add)
