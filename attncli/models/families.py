"""What a model family does beyond the names of its weights: one row a ``model_type``.

Every row was compared with transformers 5.23 layer by layer (tests/models/test_finding.py), except
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
    ``bias`` what is added to the scores: ``alibi``, ``alibi scaled``, ``buckets``.

    ``before`` is the kind of norm between hidden states and projections, '' where these take
    hidden states as they are (post-norm); ``before_if`` the member of config.json that decides,
    with ! before it where it is true unless said. ``gainless`` where nothing scales that norm;
    ``eps`` the family's, where config.json never says it. ``lacks`` says what attncli cannot do of
    it; ``only`` the member of config.json that says so, where not always.
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
    before: str = ""
    before_if: str = ""
    gainless: bool = False
    eps: float | None = None
    lacks: str = ""
    only: str = ""


ENCODER = Family()
PRE_ENCODER = Family(before="layer")  # ViT and kin: Dosovitskiy et al. 2021
DECODER = Family(causal=True)
PRE_DECODER = Family(causal=True, before="layer")
SEQ2SEQ = Family(causal="decoder")
PRE_SEQ2SEQ = Family(causal="decoder", before="layer")
POST_LLAMA = Family(causal=True, rope="half")  # OLMo 2 and kin: normed after attention
LLAMA = replace(POST_LLAMA, before="rms")
LLAMA_LAYER_NORM = replace(LLAMA, before="layer")
GEMMA = replace(LLAMA, before="rms+1")
INTERLEAVED = replace(LLAMA, rope="interleaved")
T5 = Family(causal="decoder", scale=1.0, bias="buckets", before="rms")

FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(
        (
            "bert", "roberta", "xlm_roberta", "camembert", "electra", "ernie", "layoutlm",
            "megatron_bert", "big_bird", "albert", "distilbert", "xlm", "flaubert",
            "rembert", "luke", "roc_bert", "canine", "splinter", "data2vec_text",
            "swin", "timm", "torch",
        ),
        ENCODER,
    ),
    **dict.fromkeys(
        (
            "vit", "vit_mae", "vit_msn", "deit", "ijepa", "dinov2", "beit", "clip_vision_model",
            "siglip", "siglip_text_model", "siglip_vision_model", "blip_vision_model",
        ),
        PRE_ENCODER,
    ),
    **dict.fromkeys(("wav2vec2", "hubert"), replace(PRE_ENCODER, before_if="do_stable_layer_norm")),
    "ctrl": PRE_DECODER,
    "biogpt": PRE_DECODER,
    "xglm": PRE_DECODER,
    "opt": replace(PRE_DECODER, before_if="!do_layer_norm_before"),
    **dict.fromkeys(("bart", "marian"), SEQ2SEQ),
    **dict.fromkeys(
        (
            "mbart", "pegasus", "m2m_100", "blenderbot", "whisper", "speech_to_text",
            "openai_whisper",
        ),
        PRE_SEQ2SEQ,
    ),
    "blenderbot_small": SEQ2SEQ,
    **dict.fromkeys(("t5", "mt5", "umt5"), T5),
    "mpnet": Family(bias="buckets"),
    "longformer": Family(window="longformer", lacks="global attention (query_global …)"),
    "modernbert": Family(rope="half", theta=160000.0, window="modernbert", before="layer"),
    "eurobert": Family(rope="half", before="rms"),
    "nomic_bert": Family(rope="half"),
    "esm": Family(rope="half", rope_on="rotary", before="layer"),
    "roformer": Family(rope="interleaved"),
    **dict.fromkeys(
        ("deberta", "deberta_v2"),
        Family(lacks="its relative position terms (c2p, p2c)", only="relative_attention"),
    ),
    "dinov3_vit": replace(PRE_ENCODER, rope="image"),
    "blip_text_model": Family(causal="text_decoder"),
    "clip": Family(causal="text_model", before="layer"),
    "clip_text_model": PRE_DECODER,
    "gpt2": replace(PRE_DECODER, fused="rows", transposed=True),
    "nanogpt": replace(PRE_DECODER, fused="rows"),  # (code)
    "gpt_bigcode": replace(PRE_DECODER, fused="groups"),
    "gpt_neo": replace(PRE_DECODER, scale=1.0, window="gpt_neo"),
    "gptj": replace(INTERLEAVED, before="layer"),
    "codegen": replace(INTERLEAVED, before="layer", fused="codegen"),
    "gpt_neox": replace(LLAMA_LAYER_NORM, fused="groups", partial=0.25),
    "bloom": replace(PRE_DECODER, fused="groups", bias="alibi"),
    "mpt": replace(PRE_DECODER, bias="alibi"),
    "falcon": replace(LLAMA_LAYER_NORM, fused="groups", bias="alibi scaled"),
    "persimmon": replace(
        LLAMA_LAYER_NORM, fused="groups", theta=25000.0, partial=0.5, norm="layer"
    ),
    **dict.fromkeys(
        (
            "llama", "granite", "arcee", "seed_oss", "apertus", "qwen3_moe", "granitemoe",
            "granitemoeshared", "olmoe", "minimax_m2", "internlm3", "solar_open",
            "hy_v3", "cwm", "csm", "csm_depth_decoder_model",
        ),
        LLAMA,
    ),
    "olmo": replace(LLAMA_LAYER_NORM, gainless=True, eps=1e-5),
    "meta_llama": INTERLEAVED,  # (code)
    "mistral": replace(LLAMA, window="all"),
    "mixtral": replace(LLAMA, window="all", theta=1e6),
    "ministral": replace(LLAMA, window="all"),
    "phimoe": replace(LLAMA_LAYER_NORM, window="all", theta=1e6),
    "starcoder2": replace(LLAMA_LAYER_NORM, window="all"),
    "phi3": replace(LLAMA, window="all", fused="rows"),
    **dict.fromkeys(("qwen2", "qwen3", "qwen2_moe", "dots1"), replace(LLAMA, window="upper")),
    "glm4_moe": replace(LLAMA, partial=0.5),
    "lfm2": replace(LLAMA, theta=1e6),
    "jais2": replace(LLAMA_LAYER_NORM, theta=500000.0),
    "nemotron_h": replace(PRE_DECODER, before="rms"),
    "gemma": GEMMA,
    **dict.fromkeys(("gemma2", "vaultgemma"), replace(GEMMA, window="every 2")),
    **dict.fromkeys(
        ("gemma3", "gemma3_text"), replace(GEMMA, window="every 6", norm="rms+1", theta=1e6)
    ),
    "gpt_oss": replace(LLAMA, window="every 2", theta=150000.0),
    "olmo2": POST_LLAMA,
    "flex_olmo": POST_LLAMA,
    "olmo3": replace(POST_LLAMA, window="every 4"),
    "olmo_hybrid": POST_LLAMA,
    "exaone4": replace(POST_LLAMA, window="every 4", rope_on="sliding"),
    "smollm3": replace(LLAMA, window="no_rope", theta=2e6, rope_on="no_rope_layers"),
    **dict.fromkeys(
        ("hunyuan_v1_dense", "hunyuan_v1_moe"), replace(LLAMA, norm_after_rope=True)
    ),
    "cohere": replace(INTERLEAVED, before="layer", norm="layer"),
    "cohere2": replace(INTERLEAVED, before="layer", window="every 4", rope_on="sliding"),
    "glm": replace(INTERLEAVED, partial=0.5),
    "glm4": replace(INTERLEAVED, partial=0.5),
    "helium": INTERLEAVED,
    **dict.fromkeys(("ernie4_5", "ernie4_5_moe"), replace(INTERLEAVED, theta=500000.0)),
    "phi": replace(LLAMA_LAYER_NORM, partial=0.5, norm="layer"),
    "stablelm": replace(LLAMA_LAYER_NORM, partial=0.25, norm="layer"),
    "nemotron": replace(LLAMA, before="layer+1", partial=0.5),
}  # fmt: skip


#: Models whose parts are what the parts' own model_type says, with no mask of their own.
COMPOSITES = frozenset({"siglip", "blip"})


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
