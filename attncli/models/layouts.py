"""How attention weights are named: one row a layout, recognised by sibling names under one parent.

``encoder.layer.3.attention.self.query.weight`` is the leaf ``self.query`` of the parent
``encoder.layer.3.attention``; whatever stands before the leaf (``module.``, ``bert.``) is prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
    Layout(
        "arrays", {"query": "wquery", "key": "wkey", "value": "wvalue"},
        ("wo", "wout", "woutput"), bare=True, by_hand=True,
        biases={"query": "bquery", "key": "bkey", "value": "bvalue", "output": "bo"},
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

#: What a norm's gain and bias are called: torch, TensorFlow, TransformerLens, Flax.
GAINS = (("weight", "bias"), ("gamma", "beta"), ("w", "b"), ("scale", "bias"))
#: Within the projection that Megatron fuses it with.
WITHIN = {"linear_qkv": (("layer_norm_weight", "layer_norm_bias"),)}

#: Neighbours that say nothing about the attention itself: buffers, and norms after it.
IDLE = re.compile(
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
