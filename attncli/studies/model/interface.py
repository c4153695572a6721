"""What transformers calls in place of its own attention: a call becomes a Problem.

A model whose implementation is NAME calls ``forward`` wherever its code uses AttentionInterface;
the module that calls says who listens (``LISTENERS``). Meant as in eager attention of transformers
5, which is causal by its mask alone: a bool mask keeps, a float one is added. ``is_causal`` counts
where a call says it and gives no mask; that a module has it says nothing (Splinter has it not and
sees both ways).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from importlib import import_module
from operator import and_
from typing import Any, Protocol

import numpy as np

from attncli.attention.arrays import array_of
from attncli.attention.language import masker
from attncli.attention.masks import Extent, Mask
from attncli.attention.padding import Padding, padding_text
from attncli.attention.pose import pose
from attncli.attention.problem import Family, Masker, Problem
from attncli.attention.tensors import tensor_masker
from attncli.attention.view import Labels
from attncli.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

NAME = "attncli"
STEP = 512  # rows of a mask that are looked at together

#: Keyword arguments that change nothing here, and why. Others with a value are refused.
HARMLESS: Mapping[str, str] = {
    "cache_position": "the mask and RoPE have it in them",
    "position_ids": "the mask and RoPE have them in them",
    "position_embeddings": "query and key are turned already",
    "token_type_ids": "the mask has them in it",
    "mm_token_type_ids": "the mask has them in it",
    "use_cache": "key and value hold the cache already",
    "past_key_value": "key and value hold the cache already",
    "past_key_values": "key and value hold the cache already",
    "deterministic": "how a backward pass is computed",
    "num_items_in_batch": "a divisor of the loss",
    "labels": "the loss's",
    "logits_to_keep": "the language model head's",
    "output_hidden_states": "what the model returns",
    "output_router_logits": "what the model returns",
    "return_dict": "what the model returns",
    "return_loss": "what the model returns",
    "interpolate_pos_encoding": "the embeddings'",
}

#: Keyword arguments that would change the result, and what to do.
REFUSED: Mapping[str, str] = {
    "cu_seq_lens_q": "give the sequences as a padded batch, with an attention_mask",
    "cu_seq_lens_k": "give the sequences as a padded batch, with an attention_mask",
    "max_length_q": "give the sequences as a padded batch, with an attention_mask",
    "max_length_k": "give the sequences as a padded batch, with an attention_mask",
    "indices": "sparse attention by indices is not computed here",
    "block_indices": "sparse attention by blocks is not computed here",
    "cache": "a paged cache is not read here: generate without continuous batching",
    "output_attentions": "weights are not returned here: leave it out, or use eager attention",
}


@dataclass(frozen=True, eq=False)
class Place:
    """Where in a model attention is called, and what is known of its sequences there.

    ``real_queries`` ``(B, Lq)`` and ``real_keys`` ``(B, Lk)`` are False for padding, None where
    nothing is said; ``apart``: keys come from another sequence (cross-attention).
    """

    name: str
    real_queries: Array | None = None
    real_keys: Array | None = None
    apart: bool = False
    labels: Labels = Labels()  # noqa: RUF009 - it is frozen


class Listener(Protocol):
    """Who is told of the attention calls of a module."""

    def place(self, module: Any, batch: int, queries: int, keys: int) -> Place:
        """Return where the module stands, for the call that it makes now."""

    def answer(self, module: Any, place: Place, problem: Problem) -> Array:
        """Return the output, ``(B, H, Lq, Dv)``."""


#: Who listens to a module, for as long as it is captured.
LISTENERS: dict[Any, Listener] = {}


def problem_of(
    query: Any,
    key: Any,
    value: Any,
    mask: Any,
    *,
    causal: bool,
    place: Place,
    scaling: Any = None,
    softcap: float | None = None,
    sink: Any = None,
    position_bias: Any = None,
    sliding_window: int | None = None,
) -> Problem:
    """Return what a call of attention poses.

    query ``(B, H, Lq, D)``, key ``(B, G, Lk, D)``, value ``(B, G, Lk, Dv)`` of any library; mask:
    None, or what broadcasts to ``(B, H, Lq, Lk)``, as position_bias does. ``causal`` counts without
    a mask. Raises InputError for what does not fit.
    """
    q, k, v = (array_of(tensor) for tensor in (query, key, value))
    if q.ndim != 4:
        raise InputError(
            f"{place.name} calls attention with a query {q.shape}", "expected (B, H, L, D)"
        )
    batch, heads, queries, _ = q.shape
    keys = int(k.shape[2])
    maskers: list[Masker] = []
    if mask is not None:
        extent = Extent(int(batch), int(heads), int(queries), keys)
        maskers = [*_read(mask, extent, place, sliding_window)]
    elif queries > 1:
        if sliding_window is not None and keys > sliding_window:
            raise InputError(
                f"{place.name} asks for a window of {sliding_window} keys, with {keys} keys and "
                "no mask", "this model means its window by a kernel: it is not computed here",
            )  # fmt: skip
        if causal:  # SDPA's corner, as transformers means it
            maskers = [masker("causal" if queries == keys else "causal(top_left)")]
    if position_bias is not None:
        maskers.append(tensor_masker(_four(array_of(position_bias)), name="position_bias"))
    if sink is not None and np.shape(sink) != (heads,):
        raise InputError(
            f"{place.name} has sinks of shape {tuple(sink.shape)}",
            f"expected one a head, ({heads})",
        )
    problem = pose(
        q, k, v, mask=maskers, scale="auto" if scaling is None else _number(scaling, place),
        scale_source="from the model", softcap=softcap, sink=array_of(sink), family=Family(4),
    )  # fmt: skip
    extent = replace(problem.mask.extent, apart=place.apart)
    return replace(problem, mask=replace(problem.mask, extent=extent), real=place.real_queries)


def _number(scaling: Any, place: Place) -> float:
    if np.ndim(scaling):
        raise InputError(
            f"{place.name} has a scale of shape {tuple(np.shape(scaling))}", "expected one number"
        )
    return float(scaling)


def _four(tensor: Array) -> Array:
    """Return it with leading dimensions of 1, as SDPA broadcasts it."""
    return tensor.reshape((1,) * (4 - tensor.ndim) + tensor.shape) if tensor.ndim < 4 else tensor


# -- masks --------------------------------------------------------------------------------------


def _read(mask: Any, extent: Extent, place: Place, window: int | None) -> list[Masker]:
    """Return a mask as what it is: an expression where it says just that, or itself.

    mask: what broadcasts to ``(B, H, Lq, Lk)``, or an ``asked.Asked``, which is as wide and never
    made.
    """
    real = place.real_keys
    if getattr(mask, "known", None) is not None:
        return [masker(words) for words in mask.known]
    if hasattr(mask, "asked"):
        local = mask.asked.get("local_size")
        known = window if local is None else local, None if real is None else real.tobytes()
        if known not in mask.read:  # the layers of a model share it
            mask.read[known] = _of_asked(mask, extent, real, known[0])
        return mask.read[known]  # type: ignore[no-any-return]
    told = _four(array_of(mask))
    if told.dtype != bool:
        return [tensor_masker(told, name="attention_mask")]
    if real is not None and (real.all() or (told & ~real[:, None, None]).any()):
        real = None  # there is no padding, or it is seen
    if told.shape[1] == 1:
        whole = np.broadcast_to(told, (extent.batch, 1, extent.queries, extent.keys))
        found = _said(lambda i0, i1: whole[:, 0, i0:i1], extent, real, window)
        if found is not None:
            return found
    padding = [] if real is None else [_padding(real)]
    return [tensor_masker(told, name="attention_mask"), *padding]


def _said(
    rows: Callable[[int, int], Array], extent: Extent, real: Array | None, window: int | None
) -> list[Masker] | None:
    """Return the expressions that keep just what a mask keeps, if there are such.

    rows of it, ``(B, i1 - i0, Lk)`` from i0 to i1.
    """
    padding = [] if real is None or real.all() else [_padding(real)]
    likely = [[*map(masker, words), *padding] for words in _likely(extent, window, real)]
    masks = [reduce(and_, (one(extent) for one in some), Mask(extent)) for some in likely]
    left = list(range(len(masks)))
    for i0 in range(0, extent.queries, STEP):
        told = rows(i0, i1 := min(i0 + STEP, extent.queries))
        left = [
            n for n in left
            if all(
                np.array_equal(told[b], masks[n].keep(b, 0, i0, i1, 0, extent.keys))
                for b in range(extent.batch)
            )
        ]  # fmt: skip
        if not left:
            return None
    return likely[left[0]]


def _likely(extent: Extent, window: int | None, real: Array | None) -> Sequence[tuple[str, ...]]:
    """Return the expressions that models mean most."""
    corner = "" if extent.queries == extent.keys else ", bottom_right"
    causal = f"causal({corner[2:]})" if corner else "causal"
    if window is None:
        return [(), (causal,)]
    sides = window - 1, window, window // 2  # as models count theirs
    backward = [(causal, f"window({side}{corner})") for side in sides]
    around = [(f"window({side}, {side}{corner})",) for side in sides]
    first = () if real is None else real.argmax(-1).tolist()  # Llama 4 counts from there
    chunks = [f"chunks({', '.join(map(str, (window, *some)))}{corner})" for some in ((), first)]
    return [(), (causal,), *backward, *around, *((one,) for one in chunks)]


def _of_asked(mask: Any, extent: Extent, real: Array | None, window: int | None) -> list[Masker]:
    """Return what an ``asked.Asked`` keeps: an expression, or itself and what padding it hides."""

    def rows(i0: int, i1: int) -> Array:
        return np.asarray(mask.block(i0, i1, 0, extent.keys))

    for some in (real, None):
        if (found := _said(rows, extent, some, window)) is not None:
            return found
    tiles = ((i, min(i + STEP, extent.queries)) for i in range(0, extent.queries, STEP))
    if real is None or real.all() or any((rows(*at) & ~real[:, None]).any() for at in tiles):
        return [mask.masker("attention_mask")]
    return [mask.masker("attention_mask"), _padding(real)]


def _padding(real: Array) -> Masker:
    def bind(extent: Extent) -> Mask:
        return Mask(extent, Padding(real), text=padding_text(real) or "padding")

    return bind


# -- transformers' side ---------------------------------------------------------------------------


def register() -> None:
    """Tell transformers of NAME, and what its masks are (without which there are none)."""
    transformers = import_module("transformers")
    asked_mask = import_module("attncli.studies.model.asked").asked_mask
    transformers.AttentionMaskInterface.register(NAME, asked_mask)
    transformers.AttentionInterface.register(NAME, import_module("torch").compiler.disable(forward))


def forward(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: Any = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Any = None,
    sinks: Any = None,
    position_bias: Any = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Any, None]:
    """Compute attention for transformers: the output ``(B, Lq, H, Dv)``, and no weights.

    Raises InputError for a keyword argument that would change the result and is not known.
    """
    listener = LISTENERS.get(module)
    if listener is None:
        raise InputError(
            f"{type(module).__name__} calls attncli's attention, and nobody captures its model",
            "open it: with attncli.capture(model) as seen: …",
        )
    place = listener.place(module, query.shape[0], query.shape[2], key.shape[2])
    _check(others, place)
    if dropout:
        raise InputError(
            f"{place.name} drops {100 * dropout:g} % of its weights at random",
            "what is seen would not be what the model does: model.eval()",
        )
    problem = problem_of(
        query, key, value, attention_mask, causal=bool(is_causal), place=place, scaling=scaling,
        softcap=softcap, sink=s_aux if sinks is None else sinks, position_bias=position_bias,
        sliding_window=sliding_window,
    )  # fmt: skip
    output = _tensor(listener.answer(module, place, problem), query)
    return _no_way_back(output, query, key, value).transpose(1, 2).contiguous(), None


def _check(others: Mapping[str, Any], place: Place) -> None:
    """Raise InputError for what would change the result; None and False ask for nothing."""
    for name, given in others.items():
        if given is None or given is False or name in HARMLESS:
            continue
        raise InputError(
            f"{place.name} calls attention with {name}, which is not computed here",
            REFUSED.get(name, "it might change the result, so nothing is computed without it"),
        )


def _tensor(output: Array, like: Any) -> Any:
    """Return an array as a tensor of the caller's dtype, on its device."""
    wide = output if output.dtype == np.float64 else output.astype(np.float32, copy=False)
    return import_module("torch").from_numpy(np.ascontiguousarray(wide)).to(like)


def _no_way_back(output: Any, *inputs: Any) -> Any:
    """Return the output; a backward pass through it raises in place of giving wrong gradients."""
    torch = import_module("torch")
    if not torch.is_grad_enabled() or not any(one.requires_grad for one in inputs):
        return output

    class Once(torch.autograd.Function):  # type: ignore[misc, name-defined]
        """The identity, one way."""

        @staticmethod
        def forward(_: Any, output: Any, *inputs: Any) -> Any:
            return output.clone()

        @staticmethod
        def backward(*_: Any) -> Any:
            raise InputError(
                "a captured model has no gradients: its attention was computed outside PyTorch",
                "leave the block before loss.backward()",
            )

    return Once.apply(output, *inputs)
