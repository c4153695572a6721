"""How attention weights are named: one row a layout, recognised by sibling names under one parent.

``encoder.layer.3.attention.self.query.weight`` is the leaf ``self.query`` of the parent
``encoder.layer.3.attention``; whatever stands before the leaf (``module.``, ``bert.``) is prefix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from attncli.models.forms import CONV1D, EINSUM, HEADS_FIRST, LINEAR, Form


@dataclass(frozen=True)
class Layout:
    """A row: which leaf plays which role.

    ``inputs`` has the roles query, key, value; or qkv, all in one; or query and kv. ``output`` are
    the names that the output projection has. ``packing`` says how the rows of a fused weight are
    ordered, where the name alone tells: ``rows`` Q|K|V, ``groups`` [g][q…q, k, v]. ``family`` is
    the one model family with these names; ``alone`` the one taken where no config.json is there,
    '' where families with these names differ in mask or RoPE. A leaf is a module with weight and
    bias, or (``bare``) the array itself, its biases in ``biases``; ``by_hand`` names are written in
    any way. ``form`` is how the matrices are stored,
    ``end`` what a module calls its matrix. ``within`` is a pattern of the last component of the
    parent's path; ``inner`` a norm of the heads before the output projection: not computed.
    ``stream`` is the second stream's of joint attention, beside another layout below one parent;
    ``norms`` its own names of those of queries and keys.
    ``own`` begins the leaves of the attention where its parent holds others, too.
    """

    name: str
    inputs: Mapping[str, str]
    output: tuple[str, ...]
    packing: str = ""
    family: str = ""
    alone: str = ""
    bare: bool = False
    by_hand: bool = False
    form: Form = LINEAR
    end: str = "weight"
    within: str = ""
    inner: str = ""
    stream: str = ""
    norms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    biases: Mapping[str, str] = field(default_factory=dict)
    own: str = ""

    def weight(self, leaf: str) -> str:
        """Return the tensor's name below the parent."""
        return leaf if self.bare else f"{leaf}.{self.end}"

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


def _lens(name: str, shared: str) -> Layout:
    """TransformerLens, whose fewer key and value heads have an underscore before their names."""
    roles = {"query": "attn.W_Q", "key": f"attn.{shared}W_K", "value": f"attn.{shared}W_V"}
    biases = {role: leaf.replace("W_", "b_") for role, leaf in roles.items()}
    biases["output"] = "attn.b_O"
    return Layout(name, roles, ("attn.W_O",), bare=True, form=HEADS_FIRST, biases=biases)


_TORCH_BIASES = {"qkv": "in_proj_bias", "output": "out_proj.bias"}

_ROWS = (
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
    Layout(
        "GPT-2 cross", {"query": "q_attn", "kv": "c_attn"}, ("c_proj",), "rows", "gpt2",
        form=CONV1D,
    ),
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
    _apart("diffusers", "to_q to_k to_v", "to_out.0"),
    _apart(
        "diffusers, text", "add_q_proj add_k_proj add_v_proj", "to_add_out", stream="text",
        norms={"query_norm": ("norm_added_q",), "key_norm": ("norm_added_k",)},
    ),
    _fused("GPT-NeoX", "query_key_value", "dense"),
    _fused("Megatron", "linear_qkv", "linear_proj", packing="groups"),
    _fused("Phi-3", "qkv_proj", "o_proj"),
    _fused("CodeGen", "qkv_proj", "out_proj"),
    _fused("ModernBERT", "Wqkv", "Wo", packing="rows"),
    _fused("MPT", "Wqkv", "out_proj", packing="rows"),
    _fused("timm", "qkv", "proj", packing="rows", alone="timm", inner="norm"),
    _apart("timm EVA", "q_proj k_proj v_proj", "proj", alone="timm_eva", inner="norm"),
    _fused("BLIP", "qkv", "projection", packing="rows"),
    _fused("DeBERTa", "self.in_proj", "output.dense", packing="groups", family="deberta"),
    Layout(
        "torchvision ViT", {"qkv": "self_attention.in_proj_weight"},
        ("self_attention.out_proj.weight",), "rows", "torchvision", bare=True,
        within=r"encoder_layer_\d+",
        biases={role: f"self_attention.{leaf}" for role, leaf in _TORCH_BIASES.items()},
    ),
    Layout(
        "torch MultiheadAttention", {"qkv": "in_proj_weight"}, ("out_proj.weight",), "rows",
        "torch", bare=True, biases=_TORCH_BIASES,
    ),
    Layout(
        "torch MultiheadAttention, separate",
        {"query": "q_proj_weight", "key": "k_proj_weight", "value": "v_proj_weight"},
        ("out_proj.weight",), family="torch", bare=True, biases=_TORCH_BIASES,
    ),
    _apart("GGUF", "attn_q attn_k attn_v", "attn_output", own="attn_"),
    _fused("GGUF, fused", "attn_qkv", "attn_output", packing="rows", own="attn_"),
    _lens("TransformerLens", ""),
    _lens("TransformerLens", "_"),
    Layout(
        "arrays", {"query": "wq", "key": "wk", "value": "wv"}, ("wo",), bare=True, by_hand=True,
        biases={"query": "bq", "key": "bk", "value": "bv", "output": "bo"},
    ),
)  # fmt: skip

_KERNELS = {"end": "kernel", "form": EINSUM}
_FLAX = (
    _apart("Flax", "query key value", "out", **_KERNELS),
    _apart("Keras", "query key value", "attention_output", **_KERNELS),
)
#: A tensor belongs to the first row whose inputs and output are all there. What torch's modules
#: are called, Flax's may be, too: with a kernel, (in, out), in place of a weight.
LAYOUTS = (
    *_ROWS,
    *_FLAX,
    *(
        replace(row, name=f"{row.name} (kernels)", end="kernel", form=CONV1D)
        for row in _ROWS
        if not row.bare and row.form == LINEAR and row.family != "openai_whisper"
    ),
)

#: Other tensors of a layer, below its parent or beside its query.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "sinks": ("sinks", "attn_sinks.weight"),
    "bias_k": ("bias_k",),
    "bias_v": ("bias_v",),
    "q_bias": ("q_bias",),  # timm's BEiT and EVA, DeBERTa: biases beside a fused weight
    "v_bias": ("v_bias",),
    "relative": ("relative_attention_bias.weight",),
    "grid": (
        "relative_position_bias_table",
        "relative_position_bias.relative_position_bias_table",
    ),
    "query_norm": (
        "q_norm",
        "norm_q",
        "query_ln",
        "q_layernorm",
        "query_layernorm",
        "attn_q_norm",
    ),
    "key_norm": (
        "k_norm",
        "norm_k",
        "key_ln",
        "k_layernorm",
        "key_layernorm",
        "attn_k_norm",
    ),
    "down_norm": ("kv_a_layernorm",),
    "query_down_norm": ("q_a_layernorm",),
}
NORMS = ("query_norm", "key_norm", "down_norm", "query_down_norm")

#: The norm that lies before the projections, by the layer's kind: in the attention, or beside it.
BEFORE: Mapping[str, tuple[str, ...]] = {
    "self": (
        "input_layernorm", "layernorm_before", "self_attn_layer_norm", "layer_norm1", "ln_attn",
        "ln_1", "norm1", "norm_1", "attn_norm_2", "attn_norm", "attention_norm",
        "attention_layernorm", "operator_norm", "attn_ln", "layernorm1", "rms_norm1", "LayerNorm",
        "layer_norm", "norm", "ln", "ln1", "linear_qkv",
    ),
    "cross": ("encoder_attn_layer_norm", "ln_cross_attn", "cross_attn_ln", "layer_norm", "norm2"),
}  # fmt: skip

#: Neighbours that say nothing about the attention itself: buffers, and norms after it.
_IDLE = re.compile(
    r"(^|\.)(bias|masked_bias|mask|IGNORE|rotary_sin|rotary_cos|inv_freq|relative_position_index|embed_positions|relative_coords_table)$"
    r"|rotary_emb|rotary_pos|^attn_output_norm\.|^attn_rot_embd|(^|\.)(LayerNorm|layer_norm|layernorm|ln)\."
)

#: What has no softmax and is listed, not computed: a leaf below its parent, and its name.
NO_SOFTMAX = {
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
        for leaf, what in NO_SOFTMAX.items():
            parent = parent_of(name, leaf)
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

    def names(self) -> set[str]:
        """Return the names of all its tensors."""
        norms = (n for pair in self.norms.values() for part in pair for n in part)
        return {*self.tensors.values(), *norms}


def join(parent: str, leaf: str) -> str:
    """Return ``parent.leaf``."""
    return f"{parent}.{leaf}" if parent else leaf


#: A component that is the number of a block, alone or after what Flax and torchvision call it.
_NUMBER = re.compile(r"(?:\w*(?:layer|layers|block|blocks|h)_)?(\d+)")


def is_number(part: str) -> bool:
    """Return whether a component of a path numbers a block: ``3``, ``encoder_layer_3``."""
    return _NUMBER.fullmatch(part) is not None


def numbers(path: str) -> tuple[int, ...]:
    """Return the components of a path that are numbers: (3, 1) of ``block.3.layer.1``."""
    return tuple(int(n[1]) for part in path.split(".") if (n := _NUMBER.fullmatch(part)))


def dotted(name: str) -> str:
    """Return a name of a flattened tree, ``params/layer_0/query/kernel``, with dots."""
    return name.replace("/", ".").removesuffix(":0")


def parent_of(name: str, leaf: str) -> str | None:
    """Return what ``leaf`` was joined to, None where the name ends otherwise."""
    if name == leaf or name.endswith("." + leaf):
        return name[: -len(leaf)].rstrip(".")
    return None


def match(names: Iterable[str], rank: Callable[[str], int] | None = None) -> list[Found]:
    """Return every attention layer among the names, in the order they are met.

    ``rank`` says how many dimensions a tensor has, where names alone fit several layouts.
    """
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
            before = parent_of(seen, first)
            tensors = {} if before is None else _tensors(layout, before, there)
            if before is not None and tensors and _is_within(before, layout.within):
                options.append((layout, before, tensors))
        if options:
            if rank is not None and len(options) > 1:
                dimensions = rank(name)
                fit = [one for one in options if len(one[0].form.inputs) == dimensions]
                options = fit or options
            best = next((option for option in options if "output" in option[2]), options[0])
            found.append(_complete(*best, known if not best[1] else children.get(best[1], [])))
    return _without_shadows(found)


def _is_within(parent: str, pattern: str) -> bool:
    return not pattern or re.fullmatch(pattern, parent.rpartition(".")[2]) is not None


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
            for leaf in layout.norms.get(role, leaves):
                whole = join(place, leaf)
                if role in NORMS:
                    weights = _norm(whole, "weight", present)
                    if weights:
                        norms[role] = (weights, _norm(whole, "bias", present))
                elif whole in present:
                    tensors.setdefault(role, whole)
    used = {*tensors.values(), *(n for pair in norms.values() for part in pair for n in part)}
    start = "".join(f"{part}." for part in (parent, _home(layout)) if part)
    unused = [
        n for n in below
        if n.startswith(start + layout.own) and n not in used and not _IDLE.search(n[len(start) :])
    ]  # fmt: skip
    return Found(layout, parent, tensors, tuple(unused) if parent else (), norms)


def _home(layout: Layout) -> str:
    """Return the path below the parent that all of a layout's leaves share."""
    leaves = [leaf.split(".") for leaf in (*layout.inputs.values(), *layout.output)]
    shared = []
    for parts in zip(*(leaf[:-1] for leaf in leaves), strict=False):
        if len({*parts}) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


#: What a norm's gain and bias are called: torch, TensorFlow, TransformerLens, Flax.
GAINS = (("weight", "bias"), ("gamma", "beta"), ("w", "b"), ("scale", "bias"))
#: Within the projection that Megatron fuses it with.
WITHIN = {"linear_qkv": (("layer_norm_weight", "layer_norm_bias"),)}


def _norm(whole: str, part: str, present: set[str]) -> tuple[str, ...]:
    """Return the tensors of a norm: one, or one a head (``norms.0``, ``norms.1``, …)."""
    for gain, bias in GAINS:
        name = f"{whole}.{gain if part == 'weight' else bias}"
        if name in present:
            return (name,)
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
    block = max((n + 1 for n, part in enumerate(parts) if is_number(part)), default=len(parts) - 1)
    if len(parts) > 1 and parts[-1].isdigit():  # LongCat: two of each in a block
        for leaf in BEFORE[kind]:
            place = join(".".join(parts[:-2]), f"{leaf}.{parts[-1]}")
            if f"{place}.weight" in names:
                return leaf, f"{place}.weight", f"{place}.bias" * (f"{place}.bias" in names)
    for end in range(len(parts), block - 1, -1):
        for leaf in BEFORE[kind]:
            for gain, bias in WITHIN.get(leaf, GAINS):
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
