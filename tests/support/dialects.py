"""What other libraries make of a mask: run where they are here, else by their documentation.

Scores are 0 and values the unit matrix, so that an output is the weights themselves. torch, onnx
and transformers run the very call that is printed. flash-attention, FlashInfer and xFormers need a
GPU and are not here: ``heard`` says what their documentation and kernels say of the arguments
(causal and window from the bottom right corner of each sequence, both sides of a window inclusive).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.spoken import Spoken

Array = np.ndarray[Any, np.dtype[Any]]


def expected(mask: Mask) -> Array:
    """Return a mask's weights by definition in float64, ``(B, H, Lq, Lk)``; 0 in blind rows."""
    z = mask.tensor(np.float64)
    e = np.exp(z - np.maximum(z.max(-1, keepdims=True, initial=-np.inf), -1e300))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total, total, 1)


def sdpa(said: Spoken, mask: Mask) -> Array:
    """Run the printed call of scaled_dot_product_attention."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (torch.from_numpy(x) for x in _tensors(mask, np.float32))
    names = {n: _torch(t) for n, t in said.tensors.items()} | {"q": q, "k": k, "v": v}
    run = {"scaled_dot_product_attention": scaled_dot_product_attention}
    return np.asarray(eval(said.call, run, names))


def mha(said: Spoken, mask: Mask) -> Array:
    """Run the printed call of MultiheadAttention, its projections of queries and keys 0."""
    import torch

    e = mask.extent
    layer = torch.nn.MultiheadAttention(2 * e.heads, e.heads, batch_first=True)
    torch.nn.init.zeros_(layer.in_proj_weight)

    def run(q: Any, k: Any, v: Any, **given: Any) -> Array:
        with torch.no_grad():
            weights = layer(q, k, v, average_attn_weights=False, **given)[1].numpy()
        return np.nan_to_num(weights)  # NaN where a row sees nothing

    q, k = (torch.zeros(e.batch, n, 2 * e.heads) for n in (e.queries, e.keys))
    names = {n: _torch(t) for n, t in said.tensors.items()} | {"q": q, "k": k, "v": k}
    return np.asarray(eval(said.call, {"mha": run}, names))


def onnx(said: Spoken, mask: Mask) -> Array:
    """Run the printed Attention node in onnx's reference evaluator, the past given apart."""
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    past = mask.extent.past or 0
    q, k, v = _tensors(mask, np.float32)
    given = {"Q": q, "K": k[:, :, past:], "V": v[:, :, past:], "past_key": k[:, :, :past]}
    given |= {"past_value": v[:, :, :past], **said.tensors}

    def run(*inputs: str, **attributes: Any) -> Array:
        node = helper.make_node("Attention", inputs, ["Y"], **attributes)
        info = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in inputs if n]
        out = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
        graph = helper.make_graph([node], "g", info, [out])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
        feeds = {n: np.ascontiguousarray(given[n]) for n in inputs if n}
        return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])

    return np.asarray(eval(said.call, {"Attention": run}, {name: name for name in given}))


def flex(said: Spoken, mask: Mask) -> tuple[Array, Array]:
    """Return what torch's create_mask makes of the printed code: kept cells, and added scores."""
    import torch
    from torch.nn.attention.flex_attention import create_mask

    e, names = mask.extent, {n: _torch(t) for n, t in said.tensors.items()}
    exec(said.code, names)
    keep, added = np.ones((e.batch, e.heads, e.queries, e.keys), bool), np.zeros(())
    if "mask_mod" in names:
        keep = create_mask(names["mask_mod"], e.batch, e.heads, e.queries, e.keys, "cpu").numpy()
    if "score_mod" in names:
        zero, sizes = torch.zeros(()), (e.batch, e.heads, e.queries, e.keys)
        cells = [
            names["score_mod"](zero, *(torch.tensor(n) for n in cell)) for cell in np.ndindex(sizes)
        ]
        added = np.asarray(cells).reshape(sizes)
    return keep, added


def heard(said: Spoken, mask: Mask) -> tuple[Array, Array]:
    """Return kept cells ``(B, H, Lq, Lk)`` and the rows that are computed, ``(B, Lq)``.

    flash-attention: README and ``flash_attn_interface.py``; FlashInfer: ``prefill`` and
    ``variants.cuh``; xFormers: ``fmha/attn_bias.py``.
    """
    e, arguments = mask.extent, dict(said.arguments)
    sizes, tensors = (e.batch, e.heads, e.queries, e.keys), said.tensors
    if said.dialect == "xformers":
        if "attn_bias" in tensors:
            return tensors["attn_bias"] > -np.inf, np.ones((e.batch, e.queries), bool)
        arguments, tensors = _attn_bias(arguments.get("attn_bias"))
    if "custom_mask" in tensors:
        keep = tensors["custom_mask"].reshape(e.batch, 1, e.queries, e.keys)
        return np.broadcast_to(keep, sizes), np.ones((e.batch, e.queries), bool)
    starts = [t for n, t in tensors.items() if n.startswith("cu_") or n.endswith("_indptr")]
    rows, keys = np.ones((e.batch, e.queries), bool), np.ones((e.batch, e.keys), bool)
    counts = [np.diff(t) for t in starts] or [
        np.full(e.batch, e.queries), tensors.get("cache_seqlens", np.full(e.batch, e.keys))
    ]  # fmt: skip
    if counts[0].sum() < rows.sum():
        rows = ~mask.padding_rows()
    if counts[1].sum() < keys.sum():
        keys = ~mask.padding()
        if mask.said_real is None and e.lengths is not None:
            keys = np.arange(e.keys) < np.asarray(e.lengths)[:, None]
    assert (rows.sum(), keys.sum()) == (counts[0].sum(), counts[1].sum())
    i, j = np.argwhere(rows), np.argwhere(keys)
    keep, q0, k0 = np.zeros(sizes, bool), 0, 0
    for nq, nk in zip(*counts, strict=True):
        block = _block(int(nq), int(nk), arguments)
        for (a, row), seen in zip(i[q0 : q0 + nq], block, strict=True):
            for (b, key), yes in zip(j[k0 : k0 + nk], seen, strict=True):
                assert a == b
                keep[a, :, row, key] = yes
        q0, k0 = q0 + nq, k0 + nk
    return keep, rows


def _block(queries: int, keys: int, arguments: dict[str, Any]) -> Array:
    """Return the kept cells of one sequence, ``(queries, keys)``."""
    left, right = arguments.get("window_size", (arguments.get("window_left", -1), -1))
    corner = 0 if arguments.get("top_left") else keys - queries
    distance = np.arange(keys) - np.arange(queries)[:, None] - corner
    keep = np.ones((queries, keys), bool)
    keep &= (distance >= -left) | (left < 0)
    keep &= (distance <= right) | (right < 0)
    return keep & (distance <= 0) if arguments.get("causal") else keep


def _attn_bias(text: str | None) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return what a class of xFormers says, in the words of ``_block``."""

    class Blocks:
        def __init__(self, **said: Any) -> None:
            self.said = said

        def from_seqlens(self, q_seqlen: list[int], kv_seqlen: list[int]) -> Any:
            if self.said:  # "num_keys < num_queries" is a ValueError there
                assert all(k >= q for q, k in zip(q_seqlen, kv_seqlen, strict=True))
            cut = {f"cu_{n}": np.cumsum([0, *x]) for n, x in (("q", q_seqlen), ("k", kv_seqlen))}
            return self.said, cut

    def local(window_left: int, window_right: int) -> Any:
        return {"window_size": (window_left, window_right)}, {}

    if text is None:
        return {}, {}
    known = {
        "LowerTriangularMask": lambda: ({"causal": True, "top_left": True}, {}),
        "LowerTriangularFromBottomRightMask": lambda: ({"causal": True}, {}),
        "LocalAttentionFromBottomRightMask": local,
        "BlockDiagonalMask": Blocks(),
        "BlockDiagonalCausalFromBottomRightMask": Blocks(causal=True),
    }
    found: tuple[dict[str, Any], dict[str, Array]] = eval(text, known)
    return found


def _tensors(mask: Mask, dtype: Any) -> tuple[Array, Array, Array]:
    """Return queries and keys of 0, and values whose rows are the unit vectors."""
    e = mask.extent
    q, k = (np.zeros((e.batch, e.heads, n, 4), dtype) for n in (e.queries, e.keys))
    v = np.broadcast_to(np.eye(e.keys, dtype=dtype), (e.batch, e.heads, e.keys, e.keys))
    return q, k, np.ascontiguousarray(v)


def _torch(array: Array) -> Any:
    import torch

    return torch.from_numpy(np.array(array))
