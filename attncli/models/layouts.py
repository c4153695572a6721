"""How attention weights are named: one row a layout, recognised by sibling names under one parent.

``encoder.layer.3.attention.self.query.weight`` is the leaf ``self.query`` of the parent
``encoder.layer.3.attention``; whatever stands before the leaf (``module.``, ``bert.``) is prefix.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from attncli.errors import InputError, counted, listed
from attncli.models.layer import PLAIN


@dataclass(frozen=True)
class Layout:
    """A row: which leaf plays which role.

    ``inputs`` has the roles query, key, value; or qkv, all in one; or query and kv. ``output`` are
    the names that the output projection has. ``packing`` says how the rows of a fused weight are
    ordered, where the name alone tells: ``rows`` Q|K|V, ``groups`` [g][q…q, k, v]. ``family`` is
    the one model family with these names; ``alone`` the one taken where no config.json is there,
    '' where families with these names differ in mask or RoPE. A leaf is a module with weight and
    bias, or (``bare``) the array itself, its biases in ``biases``; ``by_hand`` names are written in
    any way.
    """

    name: str
    inputs: Mapping[str, str]
    output: tuple[str, ...]
    packing: str = ""
    family: str = ""
    alone: str = ""
    bare: bool = False
    by_hand: bool = False
    biases: Mapping[str, str] = field(default_factory=dict)

    def weight(self, leaf: str) -> str:
        """Return the tensor's name below the parent."""
        return leaf if self.bare else f"{leaf}.weight"

    def bias(self, role: str) -> str | None:
        """Return the name of the bias of a role below the parent."""
        if role in self.biases:
            return self.biases[role]
        return None if self.bare or role not in self.inputs else f"{self.inputs[role]}.bias"


def _apart(name: str, names: str, *output: str, **more: object) -> Layout:
    roles = dict(zip(("query", "key", "value"), names.split(), strict=True))
    return Layout(name, roles, output, **more)  # type: ignore[arg-type]


def _fused(name: str, leaf: str, *output: str, **more: object) -> Layout:
    return Layout(name, {"qkv": leaf}, output, **more)  # type: ignore[arg-type]


_TORCH_BIASES = {"qkv": "in_proj_bias", "output": "out_proj.bias"}

#: A tensor belongs to the first row whose inputs and output are all there.
LAYOUTS = (
    _apart("BERT", "self.query self.key self.value", "output.dense", alone="bert"),
    _apart("ViT", "attention.query attention.key attention.value", "output.dense", alone="vit"),
    _apart("ALBERT", "query key value", "dense", alone="albert"),
    _apart("OpenAI Whisper", "query key value", "out", family="openai_whisper"),
    _apart("DistilBERT", "q_lin k_lin v_lin", "out_lin", alone="distilbert"),
    _apart("DeBERTa-v2", "self.query_proj self.key_proj self.value_proj", "output.dense"),
    _apart("T5", "q k v", "o"),
    _apart("Llama", "q_proj k_proj v_proj", "o_proj"),
    _apart("BART", "q_proj k_proj v_proj", "out_proj"),
    _apart("Phi", "q_proj k_proj v_proj", "dense"),
    _apart("Meta Llama", "wq wk wv", "wo", family="meta_llama"),
    _apart("CTRL", "Wq Wk Wv", "dense", family="ctrl"),
    Layout("GPT-2 cross", {"query": "q_attn", "kv": "c_attn"}, ("c_proj",), "rows", "gpt2"),
    Layout(
        "DeepSeek-V3",
        {"down": "kv_a_proj_with_mqa", "up": "kv_b_proj", "query_down": "q_a_proj",
         "query": "q_b_proj"},
        ("o_proj",),
    ),
    Layout(
        "DeepSeek-V2", {"down": "kv_a_proj_with_mqa", "up": "kv_b_proj", "query": "q_proj"},
        ("o_proj", "dense"),
    ),
    _fused("GPT-2", "c_attn", "c_proj"),
    _fused("GPT-NeoX", "query_key_value", "dense"),
    _fused("Phi-3", "qkv_proj", "o_proj"),
    _fused("CodeGen", "qkv_proj", "out_proj"),
    _fused("ModernBERT", "Wqkv", "Wo", packing="rows"),
    _fused("MPT", "Wqkv", "out_proj", packing="rows"),
    _fused("timm", "qkv", "proj", packing="rows", alone="timm"),
    _fused("BLIP", "qkv", "projection", packing="rows"),
    _fused("DeBERTa", "self.in_proj", "output.dense", packing="groups", family="deberta"),
    Layout(
        "torch MultiheadAttention", {"qkv": "in_proj_weight"}, ("out_proj.weight",), "rows",
        "torch", bare=True, biases=_TORCH_BIASES,
    ),
    Layout(
        "torch MultiheadAttention, separate",
        {"query": "q_proj_weight", "key": "k_proj_weight", "value": "v_proj_weight"},
        ("out_proj.weight",), family="torch", bare=True, biases=_TORCH_BIASES,
    ),
    Layout(
        "arrays", {"query": "wq", "key": "wk", "value": "wv"}, ("wo",), bare=True, by_hand=True,
        biases={"query": "bq", "key": "bk", "value": "bv", "output": "bo"},
    ),
)  # fmt: skip

#: Other tensors of a layer, below its parent or beside its query.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "sinks": ("sinks",),
    "bias_k": ("bias_k",),
    "bias_v": ("bias_v",),
    "q_bias": ("q_bias",),  # timm's BEiT and EVA, DeBERTa: biases beside a fused weight
    "v_bias": ("v_bias",),
    "relative": ("relative_attention_bias.weight",),
    "grid": (
        "relative_position_bias_table",
        "relative_position_bias.relative_position_bias_table",
    ),
    "query_norm": ("q_norm", "q_layernorm", "query_layernorm"),
    "key_norm": ("k_norm", "k_layernorm", "key_layernorm"),
    "down_norm": ("kv_a_layernorm",),
    "query_down_norm": ("q_a_layernorm",),
}
NORMS = ("query_norm", "key_norm", "down_norm", "query_down_norm")

#: The norm that lies before the projections, by the layer's kind: in the attention, or beside it.
BEFORE: Mapping[str, tuple[str, ...]] = {
    "self": (
        "input_layernorm", "layernorm_before", "self_attn_layer_norm", "layer_norm1", "ln_attn",
        "ln_1", "norm1", "norm_1", "attn_norm", "attention_norm", "attention_layernorm",
        "operator_norm", "attn_ln", "layernorm1", "rms_norm1", "LayerNorm", "layer_norm",
        "norm", "ln",
    ),
    "cross": ("encoder_attn_layer_norm", "ln_cross_attn", "cross_attn_ln", "layer_norm"),
}  # fmt: skip

#: Neighbours that say nothing about the attention itself: buffers, and norms after it.
_IDLE = re.compile(
    r"(^|\.)(bias|masked_bias|inv_freq|relative_position_index|embed_positions|relative_coords_table)$"
    r"|rotary_emb|rotary_pos|(^|\.)(LayerNorm|layer_norm|layernorm|ln)\."
)

#: What makes a checkpoint unreadable, by a pattern in its names.
UNSUPPORTED = (
    (r"\.(qweight|qzeros|g_idx)$", "GPTQ or AWQ"),
    (r"\.(weight_packed|weight_scale|weight_scale_inv|input_scale)$", "quantised"),
    (r"\.(SCB|weight\.absmax|weight\.quant_map|weight_format)$|quant_state", "bitsandbytes"),
    (r"_blocks$|^blk\.\d+\.attn_q\.", "quantised or GGUF-named"),
)
ADAPTER = re.compile(r"\.lora_[AB]\.|\.lora_embedding")


#: What has no softmax and is listed, not computed: a leaf below its parent, and its name.
LINEAR = {
    "in_proj_qkvz.weight": "linear attention (gated delta rule)",
    "in_proj_qkv.weight": "linear attention (gated delta rule)",
    "A_log": "linear attention or a state space",
}

#: Tensors in an attention that say what else it is, by how they begin below it.
OTHERWISE = {
    "lambda_": "its differential attention (two softmaxes, the second times λ) is not computed",
    "indexer.": "its sparse attention (an indexer chooses the keys) is not computed",
}


def linear(names: Iterable[str]) -> dict[str, str]:
    """Return what is no softmax attention, by its parent."""
    found: dict[str, str] = {}
    for name in names:
        for leaf, what in LINEAR.items():
            parent = _parent(name, leaf)
            if parent and (leaf != "A_log" or parent not in found):
                found[parent] = what
    return found


@dataclass(frozen=True)
class Found:
    """A parent that has all inputs of a layout; ``tensors`` are whole names by role."""

    layout: Layout
    parent: str
    tensors: Mapping[str, str]
    unused: tuple[str, ...]
    norms: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]


def join(parent: str, leaf: str) -> str:
    """Return ``parent.leaf``."""
    return f"{parent}.{leaf}" if parent else leaf


def numbers(path: str) -> tuple[int, ...]:
    """Return the components of a path that are numbers: (3, 1) of ``block.3.layer.1``."""
    return tuple(int(part) for part in path.split(".") if part.isdigit())


def _parent(name: str, leaf: str) -> str | None:
    """Return what ``leaf`` was joined to, None where the name ends otherwise."""
    if name == leaf or name.endswith("." + leaf):
        return name[: -len(leaf)].rstrip(".")
    return None


def match(names: Iterable[str]) -> list[Found]:
    """Return every attention layer among the names, in the order they are met."""
    known = list(names)
    exact, folded = {name: name for name in known}, {_folded(name): name for name in known}
    children: dict[str, list[str]] = {}
    for name in known:
        parent = name
        while "." in parent:
            parent = parent.rpartition(".")[0]
            children.setdefault(parent, []).append(name)
    found = []
    for name in known:
        options = []
        for layout in LAYOUTS:
            # bare arrays are named by hand: W_q, w_q and wq are one
            seen, there = (_folded(name), folded) if layout.by_hand else (name, exact)
            first = layout.weight(next(iter(layout.inputs.values())))
            before = _parent(seen, first)
            tensors = {} if before is None else _tensors(layout, before, there)
            if before is not None and tensors:
                options.append((layout, before, tensors))
        if options:
            best = next((option for option in options if "output" in option[2]), options[0])
            found.append(_complete(*best, known if not best[1] else children.get(best[1], [])))
    return _without_shadows(found)


def _folded(name: str) -> str:
    parent, dot, leaf = name.rpartition(".")
    return f"{parent}{dot}{leaf.lower().replace('_', '')}"


def _tensors(layout: Layout, parent: str, there: Mapping[str, str]) -> dict[str, str]:
    """Return whole names by role, or nothing when an input is missing."""
    tensors: dict[str, str] = {}

    def take(role: str, leaf: str | None) -> None:
        name = None if leaf is None else there.get(join(parent, leaf))
        if name is not None:
            tensors[role] = name

    for role, leaf in layout.inputs.items():
        take(role, layout.weight(leaf))
    if len(tensors) < len(layout.inputs):
        return {}
    for role in {*layout.inputs, *("query", "key", "value", "qkv", "kv")}:
        take(f"{role}_bias", layout.bias(role))
    for leaf in layout.output:
        if "output" not in tensors:
            take("output", layout.weight(leaf))
            take("output_bias", layout.biases.get("output") if layout.bare else f"{leaf}.bias")
    return tensors


def _complete(layout: Layout, parent: str, tensors: dict[str, str], below: list[str]) -> Found:
    present = set(below)
    first = next(iter(layout.inputs.values()))
    beside = join(parent, first).rpartition(".")[0]
    places = list(dict.fromkeys((parent, beside)))
    norms: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for role, leaves in EXTRAS.items():
        for place in places:
            for leaf in leaves:
                whole = join(place, leaf)
                if role in NORMS:
                    weights = _norm(whole, "weight", present)
                    if weights:
                        norms[role] = (weights, _norm(whole, "bias", present))
                elif whole in present:
                    tensors.setdefault(role, whole)
    used = {*tensors.values(), *(n for pair in norms.values() for part in pair for n in part)}
    unused = [n for n in below if n not in used and not _IDLE.search(n[len(parent) :].lstrip("."))]
    return Found(layout, parent, tensors, tuple(unused) if parent else (), norms)


def _norm(whole: str, part: str, present: set[str]) -> tuple[str, ...]:
    """Return the tensors of a norm: one, or one a head (``norms.0``, ``norms.1``, …)."""
    if f"{whole}.{part}" in present:
        return (f"{whole}.{part}",)
    heads: list[str] = []
    while f"{whole}.norms.{len(heads)}.{part}" in present:
        heads.append(f"{whole}.norms.{len(heads)}.{part}")
    return tuple(heads)


def norm_before(parent: str, kind: str, names: Collection[str]) -> tuple[str, str, str] | None:
    """Return leaf, weight and bias ('' without one) of the norm before a layer of this kind.

    Looked for in the attention itself, then upwards to the numbered block that it is a part of; in
    what holds the attention where there are no numbers.
    """
    parts = parent.split(".")
    if len(parts) > 1 and parts[-1].isdigit():  # LongCat: two of each in a block
        for leaf in BEFORE[kind]:
            place = join(".".join(parts[:-2]), f"{leaf}.{parts[-1]}")
            if f"{place}.weight" in names:
                return leaf, f"{place}.weight", f"{place}.bias" * (f"{place}.bias" in names)
    block = max((n + 1 for n, part in enumerate(parts) if part.isdigit()), default=len(parts) - 1)
    for end in range(len(parts), block - 1, -1):
        for leaf in BEFORE[kind]:
            for gain, bias in (("weight", "bias"), ("gamma", "beta")):
                place = join(".".join(parts[:end]), leaf)
                if f"{place}.{gain}" in names:
                    return leaf, f"{place}.{gain}", f"{place}.{bias}" * (f"{place}.{bias}" in names)
    return None


def _without_shadows(found: list[Found]) -> list[Found]:
    """Leave out what another row has claimed: c_attn belongs to q_attn's layer, not to GPT-2."""
    claimed: dict[str, int] = {}
    for one in found:
        for role in one.layout.inputs:
            name = one.tensors[role]
            claimed[name] = max(claimed.get(name, 0), len(one.layout.inputs))
    return [
        one
        for one in found
        if all(claimed[one.tensors[role]] == len(one.layout.inputs) for role in one.layout.inputs)
    ]


def check_readable(names: Iterable[str], source: str) -> None:
    """Raise InputError for names that only quantised or adapter checkpoints have."""
    for name in names:
        for pattern, what in UNSUPPORTED:
            if re.search(pattern, name):
                raise InputError(
                    f"{source} holds {what} weights, which are not supported (such as '{name}')",
                    PLAIN,
                )


def nothing_found(names: Iterable[str], source: str) -> InputError:
    """Return the error that names the nearest layouts and what they lack."""
    known = list(names)
    adapter = next((n for n in known if ADAPTER.search(n)), None)
    if adapter:
        return InputError(
            f"{source} is an adapter ('{adapter}'), without the weights that it adapts",
            "merge it into its model and save that",
        )
    best: dict[str, tuple[int, str]] = {}
    for layout in LAYOUTS:
        leaves = [layout.weight(leaf) for leaf in layout.inputs.values()]
        parents: dict[str, list[str]] = {}
        for name in known:
            for leaf in leaves:
                parent = _parent(name, leaf)
                if parent is not None:
                    parents.setdefault(parent, []).append(leaf)
        for parent, have in parents.items():
            missing = [leaf for leaf in leaves if leaf not in have]
            words = (
                f"{layout.name} ('{parent}' has {', '.join(have)} but lacks {', '.join(missing)})"
            )
            if missing and len(have) > best.get(layout.name, (0, ""))[0]:
                best[layout.name] = (len(have), words)
    near = [words for _, words in sorted(best.values(), reverse=True)[:3]]
    if near:
        return InputError(
            f"{source} holds no attention layer that is known; the nearest: {'; '.join(near)}",
            "give the missing tensors, or a bundle with wq, wk, wv and wo",
        )
    some = listed([name or "unnamed" for name in known], 4)
    first = ", ".join(sorted({next(iter(row.inputs.values())) for row in LAYOUTS}))
    return InputError(
        f"{source} holds no attention layer that is known; it holds "
        f"{counted(len(known), 'tensor')} ({some})",
        f"a layer is recognised by its query or fused weight: {first}",
    )
