"""What checkpoints of other libraries say of themselves, in the words of config.json.

A PyTorch file often holds the arguments that its model was made with beside the weights: a member
``dims`` or ``model_args`` of plain numbers and words. Others keep a file of their own words beside
the weights. One row a library here; what it says reaches ``models.config`` as config.json does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from attncli.errors import InputError
from attncli.files.bundle import Bundle

Config = Mapping[str, Any]
SMALL = 4096  # numbers of an argument
VERSION = "checkpoint_version"  # beside Megatron's arguments
#: Members of a config that no config.json has: where it is from, what of it is not computed, and
#: what it says of the model that else its model_type says (fields of a Family), and which
#: components of a path are self-attention there, though cross-attention elsewhere.
SOURCE, UNKNOWN, FAMILY, SELF = " source", " unknown", " family", " self"


@dataclass(frozen=True)
class Args:
    """A row: how a library's arguments are told, and what config.json calls them.

    ``members`` are the names they have in a file of tensors; ``marks`` are arguments that are
    there, and in no other library's. ``words`` are theirs → config.json's, others keep their
    names; ``more`` makes what a word alone does not say. ``idle`` are known to say nothing of
    attention: where it is given, any other argument that is set is not known, and said.
    """

    library: str
    members: tuple[str, ...]
    marks: tuple[str, ...]
    model_type: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    more: Callable[[Config], Config] | None = None
    idle: Collection[str] = ()


def _odd(what: Iterable[str]) -> list[str]:
    return [f"it was made with {one}, which is not computed" for one in what]


def _llama_scaling(said: Config) -> Config:
    """Llama 3.1's constants, which its params.json does not say."""
    if not (said.get("use_scaled_rope") or said.get("use_rope_scaling")):
        return {}
    scaling = {
        "rope_type": "llama3", "factor": said.get("rope_scaling_factor") or 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": said.get("rope_high_freq_factor") or 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    return {"rope_scaling": scaling}


def _lens(said: Config) -> Config:
    """TransformerLens' HookedTransformerConfig."""
    norm = said.get("normalization_type") or ""
    place = said.get("positional_embedding_type", "standard")
    encoder = str(said.get("original_architecture")).startswith("Bert")  # normed after attention
    family = {"before": "rms" if norm.startswith("RMS") else "layer"}
    more: dict[str, Any] = {
        FAMILY: family, "pre_norm": bool(norm) and not encoder,
        "is_causal": said.get("attention_dir", "causal") == "causal",
    }  # fmt: skip
    if place == "rotary":
        family["rope"] = "interleaved" if said.get("rotary_adjacent_pairs") else "half"
    elif place not in ("standard", "none"):
        more[UNKNOWN] = _odd([f"positional_embedding_type '{place}'"])
    if said.get("use_NTK_by_parts_rope"):
        more["rope_scaling"] = {
            "rope_type": "llama3", "factor": said.get("NTK_by_parts_factor"),
            "low_freq_factor": said.get("NTK_by_parts_low_freq_factor"),
            "high_freq_factor": said.get("NTK_by_parts_high_freq_factor"),
            "original_max_position_embeddings": said.get("NTK_original_ctx_len", 8192),
        }  # fmt: skip
    cap, over = said.get("attn_scores_soft_cap"), said.get("attn_scale")
    if cap is not None and cap > 0:
        more["attn_logit_softcapping"] = cap
    if said.get("use_attn_scale") is False:
        more["softmax_scale"] = 1.0
    elif over is not None and over > 0:
        more["softmax_scale"] = 1 / over
    if said.get("use_local_attn"):
        kinds = said.get("attn_types") or []
        local = {"local": "sliding_attention", "global": "full_attention"}
        more["layer_types"] = [local.get(kind, str(kind)) for kind in kinds]
    return more


def _megatron(said: Config) -> Config:
    """Megatron-LM's arguments, as its training saves them."""
    rms = said.get("normalization") == "RMSNorm"
    gain = "+1" if said.get("apply_layernorm_1p") else ""
    norm = f"{'rms' if rms else 'layer'}{gain}"
    place = said.get("position_embedding_type", "learned_absolute")
    family = {"before": norm, "norm": norm}
    if place == "rope":
        family["rope"] = "interleaved" if said.get("rotary_interleaved") else "half"
    odd = [
        f"{name} of Megatron"
        for name in (
            "window_size", "attention_output_gate", "rotary_seq_len_interpolation_factor",
            "no_rope_freq", "apply_residual_connection_post_layernorm",
        )
        if said.get(name)
    ]  # fmt: skip
    if place not in ("rope", "learned_absolute", "none"):
        odd.append(f"position_embedding_type '{place}'")
    if said.get("softmax_type", "vanilla") != "vanilla":
        odd.append(f"softmax_type '{said['softmax_type']}'")
    found = _odd(odd)
    parts = said.get("tensor_model_parallel_size") or 1
    if parts > 1:
        found.append(f"it is one of {parts} parts of a layer (tensor_model_parallel_size)")
    version = said.get(VERSION)
    if version is not None and version < 2:
        found.append(f"the packing of Megatron's checkpoint_version {version} is not known")
    more = {FAMILY: family, UNKNOWN: found, **_llama_scaling(said)}
    if not said.get("group_query_attention"):
        more["num_key_value_heads"] = None
    return more


#: Classes of diffusers whose attention is computed, and what some have by their code alone.
DIFFUSERS: Mapping[str, Config] = {
    "UNet2DConditionModel": {"norm_eps": 1e-5},
    "Transformer2DModel": {},
    "DiTTransformer2DModel": {},
    "PixArtTransformer2DModel": {},
    "SD3Transformer2DModel": {"pre_norm": False, SELF: ("attn2",)},
    "FluxTransformer2DModel": {
        "pre_norm": False,
        FAMILY: {"rope": "image", "text_first": True, "norm": "rms"},
    },
}


def _diffusers(said: Config) -> Config:
    """The config.json of a diffusers model: its class is its model_type."""
    name = str(said["_class_name"])
    if name not in DIFFUSERS:
        return {"model_type": name}
    more: dict[str, Any] = {"model_type": "diffusers", "hidden_size": None, **DIFFUSERS[name]}
    if name.startswith("UNet"):
        # what it calls the width of a head has always been the number of heads
        heads = said.get("num_attention_heads") or said.get("attention_head_dim") or 8
        more |= {"num_attention_heads": heads, "head_dim": None}
    if str(said.get("norm_type", "layer_norm")) != "layer_norm":
        more["pre_norm"] = False  # it moves and scales by the time step, too
    odd = ("only_cross_attention", "dual_cross_attention", "double_self_attention")
    more[UNKNOWN] = _odd(f"{member} of diffusers" for member in odd if said.get(member))
    return more


ARGS = (
    Args(
        "Megatron", ("args",), ("num_attention_heads", "kv_channels", "num_layers"), "megatron",
        {
            "num_query_groups": "num_key_value_heads", "kv_channels": "head_dim",
            "rotary_percent": "rotary_pct",
        }, _megatron,
    ),
    Args(
        "diffusers", (), ("_class_name",), words={"attention_head_dim": "head_dim"},
        more=_diffusers,
    ),
    Args(
        "TransformerLens", ("cfg", "config"), ("d_model", "d_head", "n_ctx"), "transformerlens",
        {
            "n_key_value_heads": "num_key_value_heads", "d_model": "hidden_size",
            "d_head": "head_dim", "eps": "norm_eps", "window_size": "sliding_window",
        }, _lens,
    ),
    Args(
        "openai-whisper", ("dims",), ("n_audio_state", "n_text_state"), "openai_whisper",
        {"n_audio_head": "encoder_attention_heads", "n_text_head": "decoder_attention_heads"},
    ),
    Args(
        "nanoGPT", ("model_args",), ("n_embd", "block_size"), "nanogpt",
        {"n_embd": "hidden_size"},
        idle=("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"),
    ),
    Args(
        "Meta's params.json", ("params", "model_args"), ("dim", "n_layers", "norm_eps"),
        words={"dim": "hidden_size"}, more=_llama_scaling,
    ),
)  # fmt: skip


def config_of(bundle: Bundle, beside: Config | None) -> Config | None:
    """Return what is said of a checkpoint, in config.json's words, or None.

    ``beside`` is what lies beside the weights, in any library's words, or was given; without it
    the bundle's own arguments speak.
    """
    if beside is not None:
        row = next((row for row in ARGS if _tells(row, beside)), None)
        return beside if row is None or beside.get("model_type") else _said(row, beside)
    for row in ARGS:
        for member in row.members:
            inside = _member(bundle, member)
            if VERSION in bundle.options:
                inside = {**inside, VERSION: bundle.options[VERSION]}
            if _tells(row, inside):
                return {**_said(row, inside), SOURCE: f"its own {member}"}
    return None


def _tells(row: Args, said: Config) -> bool:
    return all(said.get(mark) is not None for mark in row.marks)


def _said(row: Args, said: Config) -> Config:
    named = {row.words.get(name, name): value for name, value in said.items()}
    try:
        found = {**named, **(row.more(said) if row.more else {})}
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"the arguments of {row.library} are none that it writes: {error}",
            "say what they mean in config.json's words: --config FILE",
        ) from None
    if row.model_type:
        found["model_type"] = row.model_type
    if row.idle:
        strange = [name for name, value in said.items() if value and name not in row.idle]
        if strange:
            found[UNKNOWN] = _odd(f"{name} of {row.library}" for name in strange)
    return found


def _member(bundle: Bundle, member: str) -> dict[str, Any]:
    """Return an object of a file, whole or of dotted names; numbers in it may be small arrays."""
    whole = bundle.options.get(member)
    if isinstance(whole, dict):
        return whole
    start = f"{member}."
    found = {n.removeprefix(start): v for n, v in bundle.options.items() if n.startswith(start)}
    for name in bundle.tensors if found else ():
        if name.startswith(start) and math.prod(bundle.header(name).shape) <= SMALL:
            found[name.removeprefix(start)] = bundle.tensors[name].tolist()
    return {name: value for name, value in found.items() if "." not in name}
