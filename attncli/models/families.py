"""What a model family does beyond the names of its weights: one row a ``model_type``.

Every row was compared with transformers 5.23 layer by layer (tests/models/test_families.py), except
those marked (code), which come from reading the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from attncli.errors import InputError, closest


@dataclass(frozen=True)
class Family:
    """Defaults where config.json is silent, and rules that no config states.

    ``causal`` True, False, or the path component that makes a layer causal. ``rope`` the style,
    ``theta`` and ``partial`` its defaults, ``rope_on`` which layers turn. ``scale`` fixed, or None
    for 1/√D. ``fused`` the packing where the leaf's name does not tell; ``transposed`` for weights
    stored (in, out). ``norm`` the kind of qk-norm. ``window`` the rule where config.json has no
    layer_types: ``all``, ``upper`` (from max_window_layers on), ``every N`` (all but each Nth).
    ``bias`` what is added to the scores: ``alibi``, ``alibi scaled``, ``buckets``. ``lacks`` says
    what attncli cannot do of it.
    """

    causal: bool | str = False
    rope: str = ""
    theta: float = 10000.0
    partial: float = 1.0
    rope_on: str = ""
    norm_after_rope: bool = False
    scale: float | None = None
    fused: str = ""
    transposed: bool = False
    norm: str = ""
    window: str = ""
    bias: str = ""
    lacks: str = ""


ENCODER = Family()
DECODER = Family(causal=True)
SEQ2SEQ = Family(causal="decoder")
LLAMA = Family(causal=True, rope="half")
INTERLEAVED = replace(LLAMA, rope="interleaved")
T5 = Family(causal="decoder", scale=1.0, bias="buckets")

FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(
        (
            "bert", "roberta", "xlm_roberta", "camembert", "electra", "ernie", "layoutlm",
            "megatron_bert", "big_bird", "albert", "distilbert", "xlm", "flaubert",
            "vit", "vit_mae", "deit", "ijepa", "dinov2", "beit", "swin", "clip_vision_model",
            "siglip", "siglip_text_model", "siglip_vision_model", "blip_vision_model",
            "wav2vec2", "hubert", "timm", "torch",
        ),
        ENCODER,
    ),
    **dict.fromkeys(("opt", "biogpt", "xglm", "ctrl"), DECODER),
    **dict.fromkeys(
        (
            "bart", "mbart", "pegasus", "marian", "m2m_100", "blenderbot", "blenderbot_small",
            "whisper", "speech_to_text", "openai_whisper",
        ),
        SEQ2SEQ,
    ),
    **dict.fromkeys(("t5", "mt5", "umt5"), T5),
    "mpnet": Family(bias="buckets"),
    "longformer": Family(window="longformer", lacks="global attention (query_global …)"),
    "modernbert": Family(rope="half", theta=160000.0, window="modernbert"),
    "eurobert": Family(rope="half"),
    "nomic_bert": Family(rope="half"),
    "esm": Family(rope="half", rope_on="rotary"),
    "roformer": Family(rope="interleaved"),
    "deberta": Family(lacks="its relative position terms (c2p, p2c)"),
    "deberta_v2": Family(lacks="its relative position terms (c2p, p2c)"),
    "dinov3_vit": Family(lacks="its RoPE over image rows and columns: give --rope-cos, --rope-sin"),
    "blip_text_model": Family(causal="text_decoder"),
    "clip": Family(causal="text_model"),
    "clip_text_model": DECODER,
    "gpt2": Family(causal=True, fused="rows", transposed=True),
    "nanogpt": Family(causal=True, fused="rows"),  # (code)
    "gpt_bigcode": Family(causal=True, fused="groups"),
    "gpt_neo": Family(causal=True, scale=1.0, window="gpt_neo"),
    "gptj": INTERLEAVED,
    "codegen": replace(INTERLEAVED, fused="codegen"),
    "gpt_neox": replace(LLAMA, fused="groups", partial=0.25),
    "bloom": Family(causal=True, fused="groups", bias="alibi"),
    "mpt": Family(causal=True, bias="alibi"),
    "falcon": replace(LLAMA, fused="groups", bias="alibi scaled"),
    "persimmon": replace(LLAMA, fused="groups", theta=25000.0, partial=0.5, norm="layer"),
    **dict.fromkeys(
        (
            "llama", "granite", "olmo", "olmo2", "arcee", "seed_oss", "apertus", "qwen3_moe",
        ),
        LLAMA,
    ),
    "meta_llama": INTERLEAVED,  # (code)
    "mistral": replace(LLAMA, window="all"),
    "mixtral": replace(LLAMA, window="all", theta=1e6),
    "starcoder2": replace(LLAMA, window="all"),
    "phi3": replace(LLAMA, window="all", fused="rows"),
    "qwen2": replace(LLAMA, window="upper"),
    "qwen3": replace(LLAMA, window="upper"),
    "gemma": LLAMA,
    "gemma2": replace(LLAMA, window="every 2"),
    **dict.fromkeys(
        ("gemma3", "gemma3_text"), replace(LLAMA, window="every 6", norm="rms+1", theta=1e6)
    ),
    "gpt_oss": replace(LLAMA, window="every 2", theta=150000.0),
    "olmo3": replace(LLAMA, window="every 4"),
    "exaone4": replace(LLAMA, window="every 4", rope_on="sliding"),
    "smollm3": replace(LLAMA, window="no_rope", theta=2e6, rope_on="no_rope_layers"),
    "hunyuan_v1_dense": replace(LLAMA, norm_after_rope=True),
    "cohere": replace(INTERLEAVED, norm="layer"),
    "cohere2": replace(INTERLEAVED, window="every 4", rope_on="sliding"),
    "glm": replace(INTERLEAVED, partial=0.5),
    "glm4": replace(INTERLEAVED, partial=0.5),
    "helium": INTERLEAVED,
    "ernie4_5": replace(INTERLEAVED, theta=500000.0),
    "phi": replace(LLAMA, partial=0.5, norm="layer"),
    "stablelm": replace(LLAMA, partial=0.25, norm="layer"),
    "nemotron": replace(LLAMA, partial=0.5),
}  # fmt: skip


def family_named(arch: str) -> Family:
    """Return the family of that name; InputError for an unknown one, with the nearest."""
    name = normal(arch)
    if name not in FAMILIES:
        near = closest(name, FAMILIES, 0.5, 3)
        raise InputError(
            f"unknown architecture '{arch}'",
            (f"did you mean {' or '.join(near)}? " if near else "")
            + f"--arch takes auto or a model_type: {', '.join(sorted(FAMILIES))}",
        )
    return FAMILIES[name]


def normal(model_type: Any) -> str:
    """Return ``xlm-roberta`` as ``xlm_roberta``."""
    return str(model_type or "").lower().replace("-", "_")
