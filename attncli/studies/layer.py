"""A layer of weights applied to hidden states."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.pose import pose
from attncli.attention.problem import Family, Masker, Problem, Scale, float_dtype
from attncli.attention.rope import Rope
from attncli.attention.tensors import tensor_masker
from attncli.engines import DEFAULT
from attncli.errors import InputError, listed
from attncli.files.bundle import Bundle
from attncli.files.vocabulary import BYSTANDERS, PLAYED, RESULTS
from attncli.models.finding import load
from attncli.models.layer import Layer, Projections
from attncli.models.limits import beyond, maskers
from attncli.models.project import Heads, project
from attncli.models.stages import EXACT, Way, concat, linear
from attncli.resources import Progress
from attncli.studies.attend import Result, solve

Array = np.ndarray[Any, np.dtype[Any]]
AnyMask = str | Mask | Masker
INPUT_NORMS = ("auto", "none")
#: What may stand beside weights, as in what `multihead -o` writes, and says nothing of the layer.
_IDLE = RESULTS | {"hidden_states", "tokens", "query_tokens", "key_tokens"}


class Posed(NamedTuple):
    """A layer's queries, keys and values, and the attention that they ask for."""

    made: Heads
    problem: Problem


@dataclass(frozen=True)
class MultiheadResult:
    """What a layer made of hidden states. Without a batch dimension in x there is none here.

    ``projected`` is the output, canonical: ``(B, L, Eo)`` in x's dtype; ``attention`` is the
    attention's Result with ``stages``, ``rows`` and ``problem``. ``cross`` says whether keys and
    values came from elsewhere, ``seq_first`` that x, and so the output, is ``(L, B, E)``,
    ``normed`` that the layer's input norm, where it has one, was applied to x. ``posing`` is
    ``pose_layer`` with all that was given but the layer. ``gated`` makes of the heads' outputs what
    is projected.
    """

    layer: Layer
    projections: Projections
    attention: Result
    projected: Array
    cross: bool
    warnings: tuple[str, ...]
    posing: partial[Posed]
    seq_first: bool = False
    normed: bool = True
    gated: Callable[[Array], Array] = field(default=np.asarray, repr=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed of the layer, and what was done to x before it was projected."""
        norm, more = self.layer.input_norm, (*self.layer.asides, *self.layer.notes)
        if norm is None:
            return more
        if self.normed:
            said = f"{norm.name} applied to X first ({norm.words})"
        else:
            said = f"{norm.name} not applied: X is taken as normed"
        return (said, *more)

    @property
    def output(self) -> Array:
        """``(B, L, Eo)`` in x's order."""
        return self.projected.swapaxes(0, 1) if self.seq_first else self._unbatched(self.projected)

    @property
    def heads(self) -> Array:
        """Each head's output ``(B, H, L, Dv)``."""
        return self.attention.output

    @property
    def concat(self) -> Array:
        """The heads side by side ``(B, L, H·Dv)``: what the output projection takes."""
        return self._unbatched(concat(self.gated(self.attention.attended.output)))

    @property
    def query(self) -> Array:
        """Queries as attention sees them, normed and turned ``(B, H, L, D)``."""
        return self._unbatched(self.attention.problem.query)

    @property
    def key(self) -> Array:
        """Keys likewise ``(B, G, Lk, D)``."""
        return self._unbatched(self.attention.problem.key)

    @property
    def value(self) -> Array:
        """Values ``(B, G, Lk, Dv)``."""
        return self._unbatched(self.attention.problem.value)

    @property
    def weights(self) -> Array | None:
        """``(B, H, L, Lk)``, if wanted."""
        return self.attention.weights

    @property
    def contributions(self) -> Array:
        """The norm of what each head adds to each row of the output, ``(B, H, L)``."""
        return self._unbatched(self.added)

    @cached_property
    def added(self) -> Array:
        """``contributions``, always with a batch."""
        w, heads = self.projections.output, self.gated(self.attention.attended.output)
        if w is None:
            return np.asarray(np.linalg.norm(heads, axis=-1))
        width = self.layer.value_dim
        parts = []
        for h in range(self.layer.heads):
            own = w[:, h * width : (h + 1) * width].T.astype(heads.dtype, copy=False)  # (Dv, Eo)
            parts.append(np.linalg.norm(heads[:, h] @ own, axis=-1))
        return np.stack(parts, axis=1)

    def _unbatched(self, array: Array) -> Array:
        return array if self.attention.problem.family.rank == 4 else array[0]


def multihead(
    x: Any,
    weights: Layer | str | Bundle | Mapping[str, Any],
    *,
    config: str | Mapping[str, Any] | None = None,
    layer: int | str | None = None,
    arch: str = "auto",
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    base: str | None = None,
    memory: Any = None,
    memory_value: Any = None,
    seq_first: bool = False,
    mask: AnyMask | Sequence[AnyMask] | None = None,
    attn_mask: Any = None,
    key_padding_mask: Any = None,
    mask_polarity: str = "keep",
    add_zero_attn: bool = False,
    past_key: Any = None,
    past_value: Any = None,
    kv_lengths: Any = None,
    positions: Any = None,
    scale: Scale | None = None,
    softcap: float | None = None,
    sink: Any = None,
    rope: Rope | Mapping[str, Any] | str | None = None,
    input_norm: str = "auto",
    dtype: str | None = None,
    softmax_dtype: str | None = None,
    backend: str = DEFAULT,
    device: str = "auto",
    threads: int | None = None,
    want: Collection[str] | Callable[[Problem], Collection[str]] = ("output",),
    progress: Progress | None = None,
) -> MultiheadResult:
    """Run one attention layer on hidden states.

    x ``(L, E)`` or ``(B, L, E)``, with ``seq_first`` ``(L, B, E)``; ``memory`` likewise is what
    keys and values are made from, ``memory_value`` what the values are. ``weights`` is a Layer, or
    what ``load`` takes. ``attn_mask`` ``(Lq, Lk)``, ``(H, Lq, Lk)``, ``(B·H, Lq, Lk)`` as in
    torch, or ``(B, H, Lq, Lk)``; ``key_padding_mask`` ``(B, Lk)``: bool True = keep
    (``mask_polarity="ignore"``: the opposite, as in torch), float = added.

    What the layer says of mask, scale, softcap, sink and RoPE holds unless given here; ``mask``,
    ``scale``, ``rope`` = ``"none"``, ``softcap`` = 0 and ``sink`` = -inf switch it off.
    x is what transformers calls hidden states: the layer's ``input_norm``, where it has one, is
    applied first; ``"none"`` says that x has been through it, as the attention module gets it.
    ``want`` as in ``attend``, or a function of the posed Problem that says it. Raises AttnError
    for what does not fit together, InputError for a layer of which a part is not computed
    (``arch`` names it all the same).
    """
    if input_norm not in INPUT_NORMS:
        raise InputError(f"unknown input_norm '{input_norm}'", "it must be auto or none")
    if not isinstance(weights, Layer):
        weights = load(
            weights, config=config, layer=layer, arch=arch, heads=heads, kv_heads=kv_heads,
            head_dim=head_dim, base=base,
        )  # fmt: skip
    own = weights
    given = {"rope": rope, "mask": mask}
    missing = own.missing([name for name, value in given.items() if value is not None])
    posing = partial(
        pose_layer, x=x, memory=memory, memory_value=memory_value, seq_first=seq_first, mask=mask,
        attn_mask=attn_mask, key_padding_mask=key_padding_mask, mask_polarity=mask_polarity,
        add_zero_attn=add_zero_attn, past_key=past_key, past_value=past_value,
        kv_lengths=kv_lengths, positions=positions, scale=scale, softcap=softcap, sink=sink,
        rope=rope, input_norm=input_norm, dtype=dtype, softmax_dtype=softmax_dtype,
    )  # fmt: skip
    made, problem = posing(own)
    attention = solve(
        problem, backend=backend, device=device, threads=threads, progress=progress,
        want=want(problem) if callable(want) else want,
    )  # fmt: skip
    output = concat(made.gated(attention.attended.output))  # (B, L, H·Dv)
    if made.weights.output is not None:
        output = linear(output, made.weights.output, made.weights.output_bias, problem.dtype)
    with np.errstate(over="ignore"):
        output = output.astype(made.given_dtype, copy=False)  # (B, L, Eo)
    found = [*missing, *_overridden(own, made.cross, mask)]
    if input_norm == "none" and own.input_norm is None:
        found.append(f"input_norm none changes nothing: {own.label} has no norm before it")
    if key_padding_mask is not None:
        found += _all_padding(problem)
    warnings = (*found, *attention.warnings)
    return MultiheadResult(
        own,
        made.weights,
        attention,
        output,
        made.cross,
        warnings,
        posing,
        seq_first and made.batched,
        input_norm == "auto",
        made.gated,
    )


def pose_layer(
    layer: Layer,
    *,
    x: Any,
    memory: Any,
    memory_value: Any,
    seq_first: bool,
    mask: AnyMask | Sequence[AnyMask] | None,
    attn_mask: Any,
    key_padding_mask: Any,
    mask_polarity: str,
    add_zero_attn: bool,
    past_key: Any,
    past_value: Any,
    kv_lengths: Any,
    positions: Any,
    scale: Scale | None,
    softcap: float | None,
    sink: Any,
    rope: Rope | Mapping[str, Any] | str | None,
    input_norm: str,
    dtype: str | None,
    softmax_dtype: str | None,
    weights: Projections | None = None,
    way: Way = EXACT,
) -> Posed:
    """Project hidden states and pose the attention: the arguments of ``multihead``.

    ``weights`` in place of the layer's own, ``way`` as in ``project``.
    """
    past = 0 if past_key is None else int(np.shape(past_key)[-2])
    made = project(
        x, layer, memory, memory_value, seq_first=seq_first, rope=rope, positions=positions,
        past=past, add_zero_attn=add_zero_attn, input_norm=input_norm,
        dtype=None if dtype is None else float_dtype(dtype), weights=weights, way=way,
    )  # fmt: skip
    if made.added and past_key is not None:
        raise InputError(
            "past_key is given to a layer with bias_k or add_zero_attn",
            "torch's layer has no cache: put the past into the memory",
        )
    limits = maskers(layer, made.cross, mask, attn_mask, key_padding_mask, mask_polarity)
    if made.bias is not None:
        if past_key is not None:
            raise InputError(
                f"past_key is given but {layer.label} adds terms of content and position",
                "give the whole sequence as X",
            )
        limits.append(tensor_masker(made.bias, name="content and position"))
    problem = pose(
        made.query, made.key, made.value, family=Family(4 if made.batched else 3),
        mask=[beyond(limits, made.added)] if made.added else limits,
        past_key=past_key, past_value=past_value, kv_lengths=kv_lengths,
        scale=layer.scale if scale is None else scale,
        scale_source=layer.scale_source if scale is None else "given",
        softcap=(layer.softcap if softcap is None else softcap) or None,
        sink=layer.array("sinks") if sink is None else sink,
        rope=made.rope, softmax_dtype=softmax_dtype,
    )  # fmt: skip
    return Posed(made, problem)


def _overridden(layer: Layer, cross: bool, mask: Any) -> list[str]:
    found = _unread(layer)
    if mask is not None and layer.mask and not cross:
        found.append(f"the mask given replaces the layer's own, {layer.mask}")
    if cross and layer.kind == "self" and (layer.mask or layer.rope or layer.relative):
        found.append("keys come from memory: the layer's own mask, bias and RoPE are left out")
    return found


def _unread(layer: Layer) -> list[str]:
    """What a bundle of arrays named by hand says besides its weights: options say it."""
    bundle = layer.bundle
    if layer.layout != "arrays" or bundle is None:
        return []
    norms = [norm for norm in (layer.input_norm, layer.query_norm, layer.key_norm) if norm]
    used = {*layer.tensors.values()}
    used.update(name for norm in norms for name in (*norm.weights, *norm.biases))
    left = [
        repr(name)
        for name in (*bundle.tensors, *bundle.options)
        if name not in used
        and name.lower() not in BYSTANDERS
        and not _IDLE.issuperset(PLAYED.get(name.lower(), ("unknown",)))
    ]
    are = "are" if len(left) > 1 else "is"
    said = "say as options what the layer needs of them: --heads, --mask, --scale …"
    return [f"{bundle.source}: {listed(left)} {are} not read; {said}"] if left else []


def _all_padding(problem: Problem) -> list[str]:
    """A sequence that is nothing but padding: the attention takes no such row for a real one."""
    empty = np.flatnonzero(~problem.real_rows.any(-1)).tolist() if problem.queries else []
    if not empty:
        return []
    return [
        f"{len(empty) * problem.queries * problem.heads} of "
        f"{problem.batch * problem.queries * problem.heads} rows see no key: key_padding_mask "
        f"hides every key of batch {', '.join(map(str, empty))}. True keeps a key "
        "(--mask-polarity ignore: True hides)"
    ]
