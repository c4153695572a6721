"""Models of transformers as GGUF files, as llama.cpp's converters (conversion/*.py) write them.

Names are those of the package gguf (``get_tensor_name_map``), files are written by its GGUFWriter,
blocks are made by its ``quants.quantize``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

#: model_type of transformers → general.architecture.
ARCHS = {
    **{
        name: name
        for name in (
            "llama", "granite", "granitemoe", "arcee", "smollm3", "olmo", "qwen2", "qwen3", "phi3",
            "gpt2", "bloom", "mpt", "falcon", "starcoder2", "stablelm", "cohere2", "olmo2", "olmoe",
            "glm4", "seed_oss", "apertus", "dots1", "ernie4_5", "bert", "gemma", "gemma2",
            "nemotron",
        )
    },
    "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "phi": "phi2", "gpt_neox": "gptneox",
    "gpt_bigcode": "starcoder", "cohere": "command-r", "ernie4_5_moe": "ernie4_5-moe",
    "glm4_moe": "glm4moe", "gpt_oss": "gpt-oss", "gemma3_text": "gemma3", "olmo3": "olmo2",
}  # fmt: skip
PERMUTED = ("llama", "granite", "granitemoe", "arcee", "smollm3", "olmo")
SHIFTED = ("gemma", "gemma2", "gemma3_text", "nemotron")
FUSED = ("query_key_value", "c_attn", "qkv_proj", "Wqkv")


def write(model: Any, path: str, kind: str = "F32", whole: bool = False) -> None:
    """Write the attention and norms of a model; weights of attention in blocks of ``kind``.

    ``whole``: the embedding, the last norm and what makes logits, too.
    """
    import gguf

    config = getattr(model.config, "text_config", model.config)
    arch = ARCHS[config.model_type]
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    writer = gguf.GGUFWriter(path, arch)
    layers = _first(config, "num_hidden_layers", "n_layer", "n_layers")
    _write_keys(writer, config, layers)
    names = gguf.get_tensor_name_map(number, layers)
    for name, array in _tensors(model, config).items():
        stem, _, part = name.rpartition(".")
        whole = (names.get_name(wrap + stem) for wrap in ("", "model.", "transformer."))
        known = next(filter(None, whole), None)
        outside = known is not None and not known.startswith("blk.") and not whole
        mlp = known is not None and (".ffn" in known or "exps" in known)
        if known is None or outside or mlp:
            continue
        if name.endswith("weight") and array.ndim == 2 and "norm" not in known:
            quantised = gguf.GGMLQuantizationType[kind]
            data = gguf.quants.quantize(np.ascontiguousarray(array), quantised)
            writer.add_tensor(f"{known}.{part}", data, raw_dtype=quantised)
        else:
            writer.add_tensor(f"{known}.{part}", np.ascontiguousarray(array))
    if _rope(config).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _first(config: Any, *names: str) -> Any:
    return next((v for name in names if (v := getattr(config, name, None)) is not None), None)


def _rope(config: Any) -> dict[str, Any]:
    said = dict(getattr(config, "rope_parameters", None) or {})
    return dict(said.get("full_attention") or said)


def _heads(config: Any) -> tuple[int, int]:
    heads = _first(config, "num_attention_heads", "n_head", "n_heads")
    one = config.model_type == "gpt_bigcode" and config.multi_query
    one = one or (config.model_type == "falcon" and config.multi_query)
    if config.model_type == "falcon" and config.new_decoder_architecture:
        return heads, config.num_kv_heads
    return heads, 1 if one else _first(config, "num_key_value_heads") or heads


def _write_keys(writer: Any, config: Any, layers: int) -> None:
    import gguf

    kind, rope = config.model_type, _rope(config)
    heads, kv_heads = _heads(config)
    hidden = _first(config, "hidden_size", "n_embd", "d_model")
    width = _first(config, "head_dim") or hidden // heads
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    if width * heads != hidden:
        writer.add_key_length(width)
        writer.add_value_length(width)
    rms = _first(config, "rms_norm_eps")
    if rms is not None:
        writer.add_layer_norm_rms_eps(rms)
    layer = _first(
        config, "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"
    )  # fmt: skip
    if layer is not None or kind == "mpt":
        writer.add_layer_norm_eps(1e-5 if layer is None else layer)
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
        part = rope.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(width * part))
        factor = rope.get("factor")
        if rope.get("rope_type") == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(factor)
        if rope.get("rope_type") == "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(factor)
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            if "attention_factor" in rope:
                writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
            if "beta_fast" in rope:
                writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    window = _first(config, "sliding_window")
    if window and kind in ("gemma2", "gemma3_text", "cohere2", "gpt_oss", "phi3", "olmo3"):
        writer.add_sliding_window(window)
    if kind in ("cohere2", "olmo3"):
        writer.add_sliding_window_pattern([k == "sliding_attention" for k in config.layer_types])
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if kind.startswith("granite"):
        writer.add_attention_scale(config.attention_multiplier)
    if kind == "mpt":
        writer.add_max_alibi_bias(config.attn_config.alibi_bias_max)
    if kind in ("olmo", "olmoe") and config.clip_qkv:
        writer.add_clamp_kqv(config.clip_qkv)
    if kind == "bert":
        writer.add_causal_attention(False)


def _tensors(model: Any, config: Any) -> dict[str, Array]:
    """Return the model's tensors as the converters change them."""
    kind = config.model_type
    heads, kv_heads = _heads(config)
    found: dict[str, Array] = {}
    norms: dict[str, list[Array]] = {}
    for name, tensor in model.state_dict().items():
        array = tensor.detach().float().numpy()
        if kind in PERMUTED and ("q_proj." in name or "k_proj." in name):
            array = _permuted(array, heads if "q_proj." in name else kv_heads)
        if kind in SHIFTED and name.endswith("norm.weight"):
            array = array + 1
        if kind == "nemotron" and name.endswith("layernorm.weight"):
            array = tensor.numpy() + 1
        if kind == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            array = array.T
        if kind in ("gpt_neox", "bloom", "falcon") and "query_key_value" in name:
            groups = array.reshape(kv_heads, heads // kv_heads + 2, -1, *array.shape[1:])
            parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
            array = np.concatenate([part.reshape(-1, *array.shape[1:]) for part in parts])
        if "_layernorm.norms." in name:  # StableLM's, one a head
            norms.setdefault(name.partition(".norms.")[0] + ".weight", []).append(array)
            continue
        found[name + ".weight" * name.endswith("sinks")] = array
    return found | {name: np.stack(some) for name, some in norms.items()}


def _permuted(array: Array, heads: int) -> Array:
    """LlamaModel.permute of conversion/llama.py."""
    halves = array.reshape(heads, 2, -1, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _llama3(config: Any) -> Array:
    """generate_extra_tensors of conversion/llama.py."""
    rope = _rope(config)
    width = _first(config, "head_dim") or config.hidden_size // config.num_attention_heads
    freqs = 1 / rope["rope_theta"] ** (np.arange(0, width, 2) / width)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    length, factor = rope["original_max_position_embeddings"], rope["factor"]
    waves = 2 * np.pi / freqs
    smooth = (length / waves - low) / (high - low)
    middle = 1 / ((1 - smooth) / factor + smooth)
    found = np.where(waves < length / high, 1, np.where(waves > length / low, factor, middle))
    return found.astype(np.float32)
