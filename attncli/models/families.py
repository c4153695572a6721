"""What a model family does beyond the names of its weights: one row a ``model_type``.

Every row was compared with transformers 5.23 layer by layer (tests/models/test_zoo.py), or with the
library that it is of (tests/models/test_named.py). What is not here is not computed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from attncli.errors import InputError, closest


@dataclass(frozen=True)
class Family:
    """Defaults where config.json is silent, and rules that no config states.

    ``causal`` True, False, or the path components that make a layer causal. ``rope`` the style,
    ``theta`` and ``partial`` its defaults, ``rope_on`` which layers turn. ``scale`` fixed, or None
    for 1/√D. ``latent`` what latents have besides: ``mscale``, yarn's square in the scale, and
    ``gains``, √(width of the model over their own). ``gate`` the projection whose sigmoid the
    heads' outputs are multiplied by, ``query`` where it is half of the query's. ``temperature`` of
    queries by position: ``nope`` where nothing turns (Llama 4), ``beta`` (Mistral). ``fused`` the
    packing where the leaf's name does not tell; ``transposed`` for weights stored (in, out).
    ``norm`` the kind of qk-norm, ``bare`` where nothing scales it. ``window`` the rule where
    config.json has no layer_types: ``all``, ``used`` (all, if use_sliding_window), ``upper`` (from
    max_window_layers on), ``every N`` (all but each Nth), ``never``, ``chunks`` (Llama 4: where
    RoPE turns); ``shifted``: every other block hides some keys of an image's windows (Swin).
    ``bias`` what is added to the scores: ``alibi``, ``alibi scaled``, ``alibi mpt``, ``buckets``,
    ``disentangled`` (of content and position: DeBERTa).

    ``before`` is the kind of norm between hidden states and projections, '' where these take
    hidden states as they are (post-norm); ``before_if`` the member of config.json that decides,
    with ! before it where it is true unless said. ``gainless`` where nothing scales that norm;
    ``eps`` the family's, where config.json never says it,
    ``staged_eps`` that of blocks in stages (Swin). ``lacks`` says what attncli cannot do of
    it; ``only`` the members of config.json, or the component of the path, that say so, where not
    always. ``note`` is said of each of its layers. ``spare`` begins the names of tensors for other
    inputs than X (LUKE's entities). ``text_first``: of joint attention, the text's stream lies
    before the image's.
    """

    causal: bool | str = False
    rope: str = ""
    theta: float = 10000.0
    partial: float = 1.0
    rope_on: str = ""
    norm_after_rope: bool = False
    latent: str = ""
    gate: str = ""
    temperature: str = ""
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
    staged_eps: float | None = None
    lacks: str = ""
    only: str = ""
    spare: str = ""
    text_first: bool = False
    note: str = ""


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
GEMMA_3 = replace(GEMMA, window="every 6", norm="rms+1", theta=1e6)
INTERLEAVED = replace(LLAMA, rope="interleaved")
DEEPSEEK = replace(INTERLEAVED, latent="mscale")
T5 = Family(causal="decoder", scale=1.0, bias="buckets", before="rms")

FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(
        (
            "bert", "roberta", "xlm_roberta", "camembert", "electra", "ernie", "layoutlm",
            "big_bird", "albert", "distilbert",
            "rembert", "roc_bert", "splinter", "data2vec_text", "bert_generation",
            "dpr", "markuplm", "tapas", "visual_bert", "align_text_model", "altclip_text_model",
            "chinese_clip_text_model", "clap_text_model", "bridgetower_text_model",
            "torch", "keras",
        ),
        ENCODER,
    ),
    **dict.fromkeys(
        (
            "vit", "vit_mae", "vit_msn", "deit", "ijepa", "dinov2", "clip_vision_model",
            "siglip_text_model", "siglip_vision_model", "siglip2_text_model", "blip_vision_model",
            "blip_2_vision_model", "instructblip_vision_model", "instructblipvideo_vision_model",
            "altclip_vision_model", "chinese_clip_vision_model", "clipseg_vision_model",
            "metaclip_2_vision_model", "owlvit_vision_model", "owlv2_vision_model",
            "git_vision_model", "idefics2_vision", "idefics3_vision", "smolvlm_vision",
            "kosmos_2_vision_model", "dinov2_with_registers", "dpt", "flava_image_model",
            "flava_text_model", "granite_docling_vision", "pixio", "qwen2_audio_encoder",
            "tipsv2_text_model", "tipsv2_vision_model",
            "voxtral_encoder", "roberta_prelayernorm", "xlm_roberta_xl", "megatron_bert",
        ),
        PRE_ENCODER,
    ),
    **dict.fromkeys(
        ("aimv2_vision_model", "ovis2_vision"), replace(PRE_ENCODER, before="rms")
    ),
    **dict.fromkeys(("wav2vec2", "hubert"), replace(PRE_ENCODER, before_if="do_stable_layer_norm")),
    "ctrl": PRE_DECODER,
    "biogpt": PRE_DECODER,
    "xglm": PRE_DECODER,
    "opt": replace(PRE_DECODER, before_if="!do_layer_norm_before"),
    **dict.fromkeys(("bart", "marian", "plbart", "blenderbot_small"), SEQ2SEQ),
    **dict.fromkeys(
        (
            "mbart", "pegasus", "m2m_100", "blenderbot", "whisper", "speech_to_text",
            "openai_whisper", "nllb_moe",
        ),
        PRE_SEQ2SEQ,
    ),
    **dict.fromkeys(("t5", "mt5", "umt5", "switch_transformers", "pop2piano"), T5),
    **dict.fromkeys(
        ("xlm", "flaubert"),
        Family(
            lacks="its pre_norm, or its causal mask, which hides no padding, is not computed",
            only="pre_norm causal",
        ),
    ),
    **dict.fromkeys(
        ("beit", "data2vec_vision"),
        replace(
            PRE_ENCODER, lacks="its layers' common position bias is not computed",
            only="use_shared_relative_position_bias",
        ),
    ),
    "mvp": replace(SEQ2SEQ, lacks="keys of its prompts are not there", only="use_prompt"),
    "canine": Family(
        lacks="its local attention, by chunks of characters, is not computed",
        only="initial_char_encoder",
    ),
    "luke": Family(spare="self.w2e_ self.e2w_ self.e2e_"),
    "swin": replace(PRE_ENCODER, window="shifted"),
    # EVA-02 alone turns, and its names do not tell it from EVA
    "timm": replace(
        PRE_ENCODER, window="shifted", eps=1e-6, staged_eps=1e-5, rope="image beside q_bias"
    ),
    "timm_eva": replace(PRE_ENCODER, eps=1e-6, rope="image"),
    "torchvision": replace(PRE_ENCODER, eps=1e-6),
    "mpnet": Family(bias="buckets"),
    "longformer": Family(
        window="longformer", lacks="its global attention (query_global …) is not computed"
    ),
    "modernbert": Family(rope="half", theta=160000.0, window="modernbert", before="layer"),
    "eurobert": Family(rope="half", before="rms"),
    "nomic_bert": Family(rope="half"),
    "esm": Family(rope="half", rope_on="rotary", before="layer"),
    "roformer": Family(
        rope="interleaved", lacks="the RoPE of its values is not computed", only="rotary_value"
    ),
    **dict.fromkeys(
        ("deberta", "deberta_v2"), Family(bias="disentangled")
    ),
    "dinov3_vit": replace(PRE_ENCODER, rope="image"),
    "blip_text_model": Family(causal="bert"),  # the module of its language model
    "clip": Family(causal="text_model", before="layer"),
    **dict.fromkeys(
        (
            "clip_text_model", "clipseg_text_model", "groupvit_text_model", "owlvit_text_model",
            "owlv2_text_model", "metaclip_2_text_model", "xclip_text_model",
        ),
        PRE_DECODER,
    ),
    **dict.fromkeys(("gpt2", "gpt_sw3"), replace(PRE_DECODER, fused="rows", transposed=True)),
    "imagegpt": replace(PRE_DECODER, before="rms", fused="rows", transposed=True),
    "openai_gpt": replace(DECODER, fused="rows", transposed=True),
    "transformerlens": replace(PRE_DECODER, before_if="!pre_norm", gainless=True),
    "diffusers": replace(PRE_ENCODER, before_if="!pre_norm"),
    "flax": Family(norm="layer"),
    "megatron": replace(
        PRE_DECODER, causal="decoder language_model", fused="groups",
        note="the mask of GPT is taken in its decoder (an older BERT: --mask none)",
    ),
    "nanogpt": replace(PRE_DECODER, fused="rows"),
    "gpt_bigcode": replace(PRE_DECODER, fused="groups"),
    "gpt_neo": replace(PRE_DECODER, scale=1.0, window="gpt_neo"),
    "gptj": replace(INTERLEAVED, before="layer"),
    "codegen": replace(INTERLEAVED, before="layer", fused="codegen"),
    "gpt_neox": replace(LLAMA_LAYER_NORM, fused="groups", partial=0.25),
    "bloom": replace(PRE_DECODER, fused="groups", bias="alibi"),
    "mpt": replace(PRE_DECODER, bias="alibi mpt"),
    "falcon": replace(LLAMA_LAYER_NORM, fused="groups", bias="alibi scaled"),
    "persimmon": replace(
        LLAMA_LAYER_NORM, fused="groups", theta=25000.0, partial=0.5, norm="layer"
    ),
    **dict.fromkeys(
        (
            "llama", "granite", "arcee", "seed_oss", "apertus", "granitemoe",
            "granitemoeshared", "olmoe", "minimax_m2", "internlm3", "solar_open",
            "hy_v3", "cwm", "csm", "csm_depth_decoder_model", "aria_text", "emu3_text_model",
            "granite_swa", "granitemoe_swa", "granite4_vision_text", "granite_docling_text",
            "qwen3_vl_text", "iquestcoder", "hyperclovax",
        ),
        LLAMA,
    ),
    "olmo": replace(LLAMA_LAYER_NORM, gainless=True, eps=1e-5),
    "meta_llama": INTERLEAVED,
    "mistral": replace(LLAMA, window="all"),
    "mixtral": replace(LLAMA, window="all", theta=1e6),
    "ministral": replace(LLAMA, window="all"),
    "phimoe": replace(LLAMA_LAYER_NORM, window="all", theta=1e6),
    "starcoder2": replace(LLAMA_LAYER_NORM, window="all"),
    "phi3": replace(LLAMA, window="all", fused="rows"),
    **dict.fromkeys(
        ("qwen2", "qwen3", "qwen2_moe", "dots1", "qwen2_vl_text", "qwen2_5_vl_text"),
        replace(LLAMA, window="upper"),
    ),
    "qwen3_moe": replace(LLAMA, window="used"),
    "glm4_moe": replace(LLAMA, partial=0.5),
    "lfm2": replace(LLAMA, theta=1e6),
    "jais2": replace(LLAMA_LAYER_NORM, theta=500000.0),
    "nemotron_h": replace(PRE_DECODER, before="rms", window="never"),
    **dict.fromkeys(
        ("qwen3_vl_moe_text", "qwen3_omni_moe_text"), replace(LLAMA, window="never")
    ),
    "gemma": GEMMA,
    **dict.fromkeys(("gemma2", "vaultgemma"), replace(GEMMA, window="every 2")),
    "gemma3_text": GEMMA_3,
    **dict.fromkeys(
        ("gemma3", "shieldgemma2"),
        replace(
            GEMMA_3, note="tokens are taken as text: those of an image see each other (--mask)"
        ),
    ),
    "gpt_oss": replace(LLAMA, window="every 2", theta=150000.0),
    "olmo2": POST_LLAMA,
    "flex_olmo": POST_LLAMA,
    "olmo3": replace(POST_LLAMA, window="every 4"),
    "olmo_hybrid": replace(POST_LLAMA, rope_on="stated"),
    "exaone4": replace(POST_LLAMA, window="every 4", rope_on="sliding"),
    "exaone_moe": replace(LLAMA, window="every 4", rope_on="sliding"),
    "smollm3": replace(LLAMA, window="no_rope", theta=2e6, rope_on="no_rope_layers"),
    **dict.fromkeys(
        ("hunyuan_v1_dense", "hunyuan_v1_moe"), replace(LLAMA, norm_after_rope=True)
    ),
    "cohere": replace(INTERLEAVED, before="layer", norm="layer"),
    **dict.fromkeys(
        ("cohere2", "cohere2_moe"),
        replace(INTERLEAVED, before="layer", window="every 4", rope_on="sliding"),
    ),
    "glm": replace(INTERLEAVED, partial=0.5),
    "glm4": replace(INTERLEAVED, partial=0.5),
    "helium": INTERLEAVED,
    **dict.fromkeys(("ernie4_5", "ernie4_5_moe"), replace(INTERLEAVED, theta=500000.0)),
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "axk1", "glm4_moe_lite", "youtu"), DEEPSEEK
    ),
    "minicpm3": replace(DEEPSEEK, rope="half"),
    "longcat_flash": replace(DEEPSEEK, latent="mscale gains", theta=1e7),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
        replace(GEMMA, gate="query", norm="rms+1", partial=0.25),
    ),
    "minimax": replace(LLAMA, window="all"),
    "afmoe": replace(LLAMA, gate="gate_proj", rope_on="sliding", window="every 4"),
    "phi4_multimodal": replace(LLAMA, window="all", fused="rows"),
    "bailing_hybrid": replace(DEEPSEEK, gate="g_proj"),
    "mistral4": replace(DEEPSEEK, temperature="beta"),
    "ministral3": replace(LLAMA, window="all", temperature="beta"),
    "llama4_text": replace(
        INTERLEAVED, window="chunks", theta=500000.0, rope_on="no_rope_layers",
        temperature="nope", norm="bare", norm_after_rope=True,
    ),
    "kimi_linear": replace(PRE_DECODER, before="rms"),
    "phi": replace(LLAMA_LAYER_NORM, partial=0.5, norm="layer"),
    "stablelm": replace(LLAMA_LAYER_NORM, partial=0.25, norm="layer"),
    "nemotron": replace(LLAMA, before="layer+1", partial=0.5),
}  # fmt: skip


#: Models whose parts are what the parts' own model_type says, with no mask of their own.
COMPOSITES = frozenset(
    {
        "siglip", "blip", "altclip", "chinese_clip", "clipseg", "metaclip_2", "owlvit", "owlv2",
        "llava", "llava_next", "llava_next_video", "llava_onevision", "vipllava", "video_llava",
        "aya_vision", "cohere2_vision", "idefics2", "idefics3", "smolvlm", "mistral3", "internvl",
        "got_ocr2", "ovis2", "deepseek_vl", "deepseek_vl_hybrid", "lighton_ocr", "aria", "emu3",
        "qwen2_audio", "audioflamingo3", "voxtral", "glmasr", "granite_speech", "lfm2_vl",
        "blip_2", "llama4", "encoder_decoder", "exaone4_5", "kimi_k25", "qwen3_5", "qwen3_5_moe",
        "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "fuyu", "granite_docling",
        "tipsv2", "musicflamingo", "qwen3_asr",
    }
)  # fmt: skip


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


_GRANITE = {
    "granite", "granite4_vision_text", "granite_docling_text", "granite_swa", "granitemoe",
    "granitemoe_swa", "granitemoeshared",
}  # fmt: skip
_GEMMA = {"gemma2", "gemma3", "gemma3_text", "vaultgemma"}
#: Members of config.json by the families whose code reads them; the code of others does not.
READ_BY: Mapping[str, Collection[str]] = {
    "attention_multiplier": {*_GRANITE, "hyperclovax"},
    "query_pre_attn_scalar": _GEMMA,
    "attn_logit_softcapping": {*_GEMMA, "transformerlens"},
    "no_rope_layers": {"llama4_text", "smollm3"},
    "attention_chunk_size": {"llama4_text"},
    "clip_qkv": {"mpt", "olmo", "olmoe"},
    "partial_rotary_factor": {
        "glm", "glm4", "glm4_moe", "gpt_neox", "minimax_m2", "nemotron", "persimmon", "phi", "phi3",
        "solar_open", "stablelm",
    },
    "layer_types": FAMILIES.keys() - {"minimax", "mistral"},
    "rope_interleave": {"axk1", "deepseek_v3", "glm4_moe_lite", "mistral4", "youtu"},
}  # fmt: skip


def heeded(config: Mapping[str, Any], family: str) -> tuple[dict[str, Any], list[str]]:
    """Return the members of config.json that a family's code reads, and which others are said."""
    lost = [
        name for name, families in READ_BY.items()
        if family in FAMILIES and family not in families and config.get(name) not in (None, 1.0, [])
    ]  # fmt: skip
    return {name: value for name, value in config.items() if name not in lost}, lost


def normal(model_type: Any) -> str:
    """Return ``xlm-roberta`` as ``xlm_roberta``."""
    return str(model_type or "").lower().replace("-", "_")
