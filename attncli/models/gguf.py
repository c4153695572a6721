"""GGUF checkpoints in the words of config.json, their tensors as their families have them.

What llama.cpp's converters (conversion/*.py) change on the way is undone: rows of q and k that they
permute for interleaved RoPE, and the 1 that they add to norms which scale by 1 + weight. Fused
weights come out of all of them as Q|K|V rows, whatever the family's own order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from attncli.errors import InputError, closest
from attncli.files.bundle import Bundle
from attncli.files.formats.entry import Array
from attncli.files.formats.gguf import QUANTISED
from attncli.models.lazily import AS_IT_IS, Change, changed, with_entries


@dataclass(frozen=True)
class Arch:
    """A row: the model_type, what the converter changes, and members that the keys do not say.

    ``permuted``: rows of q and k. ``shifted``: norms have 1 added. ``wide`` is the number of blocks
    of the one model whose scale is 1/√(hidden/heads), as llama.cpp tells it by. ``note`` says what
    the format has no place for.
    """

    family: str
    permuted: bool = False
    shifted: bool = False
    wide: int = 0
    members: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


_WINDOW = "GGUF of this architecture has no sliding window: one of {} is lost (--mask)"

#: general.architecture of those that are read.
ARCHS: Mapping[str, Arch] = {
    **{
        name: Arch(name, permuted=True)
        for name in ("granite", "granitemoe", "arcee", "smollm3", "olmo")
    },
    "llama": Arch("llama", permuted=True, note=_WINDOW.format("Mistral")),
    **{
        name: Arch(name)
        for name in (
            "qwen2", "qwen3", "phi3", "gpt2", "bloom", "mpt", "falcon", "stablelm",
            "cohere2", "olmo2", "olmoe", "glm4", "seed_oss", "apertus", "dots1", "ernie4_5", "bert",
        )
    },
    "starcoder2": Arch("starcoder2", note=_WINDOW.format("StarCoder2")),
    "qwen2moe": Arch("qwen2_moe"),
    "qwen3moe": Arch("qwen3_moe"),
    "phi2": Arch("phi"),
    "gptneox": Arch("gpt_neox"),
    "starcoder": Arch("gpt_bigcode"),
    "command-r": Arch("cohere"),
    "ernie4_5-moe": Arch("ernie4_5_moe"),
    "glm4moe": Arch("glm4_moe"),
    "gpt-oss": Arch("gpt_oss", members={"truncate": False}),
    "gemma": Arch("gemma", shifted=True),
    "gemma2": Arch("gemma2", shifted=True, wide=46),
    "gemma3": Arch("gemma3_text", shifted=True, wide=62, members={"rope_local_base_freq": 10000.0}),
    "nemotron": Arch("nemotron", shifted=True),
}  # fmt: skip

#: Keys, below the architecture's name, and the members of config.json that say the same.
KEYS: Mapping[str, str] = {
    "embedding_length": "hidden_size",
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.sliding_window_pattern": "sliding_window_pattern",
    "attention.scale": "attention_multiplier",
    "attention.clamp_kqv": "clip_qkv",
    "attention.causal": "is_causal",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "rope.dimension_count": "rotary_dim",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}
#: The same of how RoPE is scaled, below ``rope.scaling``.
SCALING: Mapping[str, str] = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
THETA = 10000.0  # llama.cpp's, where no key says it
#: Tensors of a factor a pair of channels: for short texts, and for long ones.
FACTORS = (("rope_freqs", "rope_freqs"), ("rope_factors_short", "rope_factors_long"))


def plain(bundle: Bundle) -> tuple[Bundle, dict[str, Any]]:
    """Return the tensors as the family has them, and what config.json would say.

    Raises InputError for an architecture that is not in the table.
    """
    arch = bundle.options.get("general.architecture")
    row = ARCHS.get(str(arch))
    if bundle.options.get("split.no"):
        raise InputError(
            f"{bundle.source} is a later part of a GGUF file",
            "name the first, x-00001-of-0000N.gguf: it brings the others",
        )
    if row is None:
        near = closest(str(arch), ARCHS, 0.6, 3)
        raise InputError(
            f"{bundle.source}: architecture '{arch}' is not in the table of those that are read",
            (f"the nearest: {', '.join(near)}; " if near else "")
            + f"known are {', '.join(sorted(ARCHS))}",
        )
    config = _config(bundle, str(arch), row)
    notes = [f"config.json's members are those of the keys of GGUF's {arch}"]
    notes += [row.note] if row.note else []
    types = Counter(bundle.header(name).dtype for name in bundle.tensors)
    some = {name: count for name, count in types.items() if name in QUANTISED}
    if some:
        notes.append(f"dequantised: {', '.join(f'{n} × {some[n]}' for n in some)} (tensors)")
    changes: dict[str, Change] = {}
    for name in bundle.tensors:
        part = re.fullmatch(r"blk\.\d+\.attn_([qk])\.(weight|bias)", name)
        if row.permuted and part:
            heads = _heads(config, part[1], bundle, name)
            changes[name] = partial(_unpermuted, heads=heads)
        elif row.shifted and name.endswith("norm.weight"):
            changes[name] = _unshifted
        elif bundle.header(name).dtype in QUANTISED:
            changes[name] = AS_IT_IS
    if row.permuted:
        notes.append("rows of q and k are put back where llama.cpp's converter took them from")
    other = [  # where there are two norms, as in Falcon, the first is the MLP's alone
        name.replace(".attn_norm_2.", ".attn_norm.")
        for name in bundle.tensors
        if ".attn_norm_2." in name
    ]
    return with_entries(changed(bundle, changes, notes), {}, other), config


def _heads(config: Mapping[str, Any], part: str, bundle: Bundle, name: str) -> int:
    """Return how many heads the rows of q or k are; InputError where they cannot be so many."""
    member = "num_attention_heads" if part == "q" else "num_key_value_heads"
    heads = config.get(member, config.get("num_attention_heads"))
    rows = bundle.header(name).shape[0]
    if type(heads) is not int or heads < 1 or rows % (2 * heads):
        raise InputError(
            f"'{name}' has {rows} rows, which are no {heads!r} heads whose channels turn in pairs",
            "the keys attention.head_count and head_count_kv of the file say how many heads it has",
        )
    return heads


def _unpermuted(array: Array, heads: int) -> Array:
    """Return rows ``(H·D, …)`` of pairs 2j, 2j + 1 as rows of pairs j, j + D/2."""
    pairs = array.reshape(heads, -1, 2, *array.shape[1:])  # (H, D/2, 2, …)
    return np.asarray(pairs.swapaxes(1, 2).reshape(array.shape))


def _unshifted(array: Array) -> Array:
    return array.astype(np.float64) - 1  # in float32 a gain near 0 would lose its digits


def _config(bundle: Bundle, arch: str, row: Arch) -> dict[str, Any]:
    """Return the members of config.json that the keys say."""
    keys = bundle.options
    config: dict[str, Any] = {"model_type": row.family, "rope_theta": THETA, **row.members}
    for key, member in KEYS.items():
        value = keys.get(f"{arch}.{key}")
        if (value is not None and value != 0) or value is False:
            config[member] = value
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, list):
        del config["sliding_window_pattern"]
        config["layer_types"] = [
            "sliding_attention" if slides else "full_attention" for slides in pattern
        ]
    for member in ("num_attention_heads", "num_key_value_heads"):
        if isinstance(config.get(member), list):  # one a layer: the weights tell
            alike = set(config[member])
            del config[member]
            if len(alike) == 1:
                config[member] = alike.pop()
    if arch == "olmo2" and "sliding_window" in config:
        config["model_type"] = "olmo3"
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if type(heads) is int and type(hidden) is int and heads:
        config.setdefault("rotary_dim", config.get("head_dim", hidden // heads))
        if row.wide:
            wide = config.get("num_hidden_layers") == row.wide
            width = hidden // heads if wide else config.get("head_dim", hidden // heads)
            config["query_pre_attn_scalar"] = width
    if arch == "mpt":
        most = keys.get("mpt.attention.max_alibi_bias") or 0
        config["attn_config"] = {"alibi": most > 0, "alibi_bias_max": most or None}
    scaling = _scaling(bundle, arch)
    if scaling:
        truncate = config.pop("truncate", None)
        config["rope_scaling"] = scaling | ({} if truncate is None else {"truncate": truncate})
    return config


def _scaling(bundle: Bundle, arch: str) -> dict[str, Any]:
    """Return rope_scaling: of the keys, or of the tensors with a factor a pair of channels."""
    prefix = f"{arch}.rope.scaling."
    said = {
        member: bundle.options[prefix + key]
        for key, member in SCALING.items()
        if prefix + key in bundle.options
    }
    for short, long in FACTORS:
        lists = [_factors(bundle, name) for name in (short, long)]
        if lists[0] and lists[1]:
            attention = bundle.options.get(prefix + "attn_factor", 1.0)
            return {
                **said, "rope_type": "longrope", "short_factor": lists[0], "long_factor": lists[1],
                "attention_factor": attention,
            }  # fmt: skip
    older = bundle.options.get(f"{arch}.rope.scale_linear")
    if older:
        return {"rope_type": "linear", "factor": older}
    kind = str(bundle.options.get(prefix + "type", "none"))
    if prefix + "yarn_log_multiplier" in bundle.options:
        kind += " with a log multiplier"
    return {} if kind == "none" else {**said, "rope_type": kind}


def _factors(bundle: Bundle, name: str) -> list[float] | None:
    """Return the factors of a tensor that all blocks share, or the first block's."""
    for whole in (f"{name}.weight", f"blk.0.{name}.weight"):
        if whole in bundle.tensors:
            return [float(number) for number in np.asarray(bundle.tensors[whole]).ravel()]
    return None
