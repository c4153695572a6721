"""Where keys and values come from: x itself, elsewhere (cross-attention), or both.

Of joint attention the streams of image and text have projections of their own, and one softmax.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from attncli.models.layer import Joint, Layer
from attncli.models.layouts import LAYOUTS
from attncli.models.matching import Found

#: Components of a path that say: keys and values come from elsewhere.
CROSS = (
    "encoder_attn", "encoder_attention", "EncDecAttention", "crossattention", "cross_attn",
    "cross_attention", "multihead_attn", "cross_attn_mha", "attn2",
)  # fmt: skip
STREAMS = {row.name: row.stream for row in LAYOUTS if row.stream}


def is_cross(path: str, names: Collection[str], own: Collection[str] = ()) -> bool:
    """Return whether a layer's keys and values come from elsewhere, as its path says.

    ``own`` are components that say so in other models and not in this one.
    """
    parts = path.split(".")
    if "multihead_attn" in parts:  # nn.TransformerDecoder's, beside its self_attn
        beside = ".".join([*parts[: parts.index("multihead_attn")], "self_attn"])
        return any(name.startswith(beside.lstrip(".") + ".") for name in names)
    return any(part in CROSS and part not in own for part in parts)


def streams_apart(found: Sequence[Found]) -> list[Found]:
    """Take the tensors of a second stream from the unused ones of the first, and its of its."""
    theirs: dict[str, set[str]] = {}
    for one in found:
        theirs.setdefault(one.parent, set()).update(one.names())
    two = {one.parent for one in found if one.layout.stream}
    return [
        replace(one, unused=tuple(n for n in one.unused if n not in theirs[one.parent]))
        if one.parent in two
        else one
        for one in found
    ]


def joined(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers, those of two streams told of each other; a second's name ends in it."""
    firsts = {one.name: one for one in layers if one.layout not in STREAMS}
    seconds = {one.name: one for one in layers if one.layout in STREAMS and one.name in firsts}

    def told(one: Layer) -> Layer:
        if one.name not in seconds:
            return one
        own, other = firsts[one.name], seconds[one.name]
        first = own.joint_first
        if one.layout not in STREAMS:
            note = f"joint attention: --memory is the {STREAMS[other.layout]} stream"
            return replace(one, kind="joint", joint=Joint(other, first), notes=(*one.notes, note))
        note = "joint attention: --memory is the image stream"
        name = f"{one.name}.{STREAMS[one.layout]}"
        return replace(
            one, name=name, kind="joint", joint=Joint(own, not first), notes=(*one.notes, note)
        )

    return [told(one) for one in layers]
