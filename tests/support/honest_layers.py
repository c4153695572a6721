"""Layers that are right: what PyTorch and transformers return, for the judge to pass."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.arrays import array_of
from attncli.studies.layer import MultiheadResult, multihead

Array = np.ndarray[Any, np.dtype[Any]]

B, L, LK, E, H = 2, 33, 21, 48, 4
DTYPES = ("float64", "float32", "float16", "bfloat16")
QUESTIONS = ("plain", "causal", "bool", "float", "padding", "cross", "bias_kv", "fast")


@dataclass(frozen=True)
class HonestLayer:
    """A right answer to a layer."""

    name: str
    made: MultiheadResult
    candidate: Mapping[str, Array]


def of_torch(question: str, dtype: str, seed: int = 0) -> HonestLayer:
    """What torch.nn.MultiheadAttention returns in a type."""
    import torch

    kind = getattr(torch, dtype)
    torch.manual_seed(seed)
    layer = torch.nn.MultiheadAttention(
        E, H, batch_first=True, add_bias_kv=question == "bias_kv", kdim=E, vdim=E
    ).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    layer = layer.to(kind)
    x = torch.randn(B, L, E).to(kind)
    memory = torch.randn(B, LK, E).to(kind) if question == "cross" else x
    theirs: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    if question == "causal":
        theirs["attn_mask"], ours["mask"] = torch.ones(L, L, dtype=torch.bool).triu(1), "causal"
    if question == "bool":
        hidden = torch.rand(L, L) < 0.6
        hidden[:, 0] = False
        theirs["attn_mask"], ours["attn_mask"] = hidden, hidden.numpy()
    if question == "float":
        added = torch.randn(L, L).to(kind)
        theirs["attn_mask"], ours["attn_mask"] = added, array_of(added)
    if question == "padding":
        padded = torch.arange(L) >= torch.tensor([[L], [L - 9]])
        theirs["key_padding_mask"], ours["key_padding_mask"] = padded, padded.numpy()
    fast = question == "fast"  # its own fused kernel: without weights, and no gradient wanted
    with torch.no_grad():
        out, weights = layer(
            x, memory, memory, need_weights=not fast, average_attn_weights=False, **theirs
        )
    tensors = {name: array_of(tensor) for name, tensor in layer.state_dict().items()}
    made = multihead(
        array_of(x), tensors, heads=H, memory=array_of(memory) if question == "cross" else None,
        mask_polarity="ignore", **ours,
    )  # fmt: skip
    found = {"output": array_of(out)}
    if weights is not None:
        found["weights"] = array_of(weights)
    return HonestLayer(f"torch, {question}, {dtype}", made, found)


def of_transformers(key: str, dtype: str) -> Iterator[HonestLayer]:
    """What each layer of a tiny model returns in a type, and the weights where it shows them."""
    import torch

    from attncli import files
    from attncli.models.finding import config_beside, find_layers, load
    from tests.support.families import L as LENGTH
    from tests.support.families import Watched, build, inputs, used

    model = build(key).to(getattr(torch, dtype))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        layers = find_layers(files.read(folder), config_beside(folder))
        layers = [layer for layer in layers if used(key, layer)]
        feed = inputs(key, model, LENGTH)
        feed = {n: t.to(model.dtype) if t.is_floating_point() else t for n, t in feed.items()}
        watched = Watched(copy.deepcopy(model).float(), layers)  # weights are found by value
        for layer, seen in zip(layers, watched.run(model, feed), strict=True):
            memory = array_of(seen.key_input) if layer.kind == "cross" else None
            made = multihead(
                array_of(seen.query_input), load(folder, layer=layer.name), memory=memory,
                input_norm="none",
            )  # fmt: skip
            found = {"output": array_of(seen.output).reshape(made.output.shape)}
            if seen.weights is not None:
                found["weights"] = array_of(seen.weights)
            yield HonestLayer(f"{key}, {layer.name}, {dtype}", made, found)
