"""How model types of transformers are made tiny: the sizes of all, and what single ones need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOO_MANY = 40_000_000  # parameters of a model that is not tiny

#: What a member of a config becomes, by its name.
SIZES: Mapping[str, int] = {
    name: size
    for size, names in (
        (40, "hidden_size d_model n_embd dim embed_dim emb_dim model_dim"),
        (5, "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads "
            "decoder_attention_heads"),
        (1, "num_key_value_heads n_kv_heads num_kv_heads kv_n_heads decoder_num_key_value_heads "
            "encoder_num_key_value_heads num_experts_per_tok n_shared_experts n_group topk_group "
            "num_experts_per_token moe_k moe_topk num_shared_experts bos_token_id"),
        (12, "head_dim d_kv attention_head_dim attention_head_size"),
        (24, "intermediate_size ffn_dim d_ff hidden_dim n_inner encoder_ffn_dim decoder_ffn_dim "
             "d_inner dff moe_intermediate_size shared_expert_intermediate_size "
             "moe_shared_expert_intermediate_size ffn_hidden_size mlp_dim intermediate_dim "
             "dense_intermediate_size shared_intermediate_size"),
        (64, "vocab_size max_position_embeddings n_positions n_ctx max_seq_len decoder_vocab_size "
             "max_source_positions max_target_positions"),
        (2, "num_local_experts num_experts n_routed_experts moe_num_experts eos_token_id "
            "decoder_start_token_id"),
        (4, "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
            "num_decoder_layers num_encoder_layers patch_size"),
        (3, "sliding_window window_size attention_window image_token_id image_token_index "
            "video_token_id audio_token_id audio_token_index vision_start_token_id "
            "vision_end_token_id boi_token_id eoi_token_id"),
        (16, "image_size"),
        (0, "pad_token_id"),
    )
    for name in names.split()
}  # fmt: skip

#: Those that are set also where a model type leaves them open.
LENGTHS = ("head_dim", "num_key_value_heads", "sliding_window")

#: Sequence lengths other than 9.
LONGEST: Mapping[str, int] = {"longformer": 12}

#: How models are made, the first way that works.
AUTO = (
    "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForPreTraining",
    "AutoModelForSpeechSeq2Seq", "AutoModelForObjectDetection", "AutoModelForDepthEstimation",
    "AutoBackbone", "AutoModelForUniversalSegmentation",
)  # fmt: skip

#: Models that take texts and images together.
PAIRS = (
    "clip", "siglip", "siglip2", "blip", "blip-2", "altclip", "chinese_clip", "clipseg", "align",
    "flava", "owlvit", "owlv2", "xclip", "metaclip_2", "groupvit",
)  # fmt: skip

#: Models that cut what their norm gives into windows before they project it.
REARRANGED = ("swin",)

LEFT_OUT = object()  # a member that is left to the config's own default
_SPEECH = dict(
    conv_dim=[16, 16], conv_stride=[5, 2], conv_kernel=[10, 3], num_feat_extract_layers=2,
    num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
)  # fmt: skip
_MROPE = {"mrope_section": [2, 2, 2], "rope_type": "default", "rope_theta": 1e4}
_MROPE_8 = {**_MROPE, "mrope_section": [1, 1, 2]}
_QWEN_VL = dict(text_config=dict(
    vocab_size=64, hidden_size=40, intermediate_size=24, num_hidden_layers=4,
    num_attention_heads=5, num_key_value_heads=1, max_position_embeddings=64, sliding_window=3,
    use_sliding_window=True, max_window_layers=2, rope_parameters=_MROPE_8, pad_token_id=0,
))  # fmt: skip

_YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "mscale": 0.9, "mscale_all_dim": 1.3,
    "original_max_position_embeddings": 4, "beta_fast": 32, "beta_slow": 1,
}  # fmt: skip
_BETA = {**_YARN, "llama_4_scaling_beta": 0.4, "mscale": 1.0, "mscale_all_dim": 1.0}
_LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.1, 1.5, 2.0],
    "long_factor": [1.5, 4.0, 8.0],
}  # fmt: skip
_LATENT = dict(  # of all that MLA needs; the norms of latents have an ε of their own
    num_key_value_heads=5, q_lora_rank=14, kv_lora_rank=18, qk_rope_head_dim=6, v_head_dim=7,
    qk_nope_head_dim=10, rms_norm_eps=0.03, head_dim=LEFT_OUT, attention_bias=True,
)  # fmt: skip
_DEBERTA = dict(
    relative_attention=True, pos_att_type="p2c|c2p", max_relative_positions=7, layer_norm_eps=0.01,
)  # fmt: skip
_LINEAR = dict(
    layer_types=["linear_attention", "full_attention"] * 2, linear_num_key_heads=2, head_dim=16,
    linear_num_value_heads=4, linear_key_head_dim=4, linear_value_head_dim=6, rms_norm_eps=0.03,
)  # fmt: skip
_TEXT = dict(
    vocab_size=64, hidden_size=40, intermediate_size=24, num_hidden_layers=4,
    num_attention_heads=5, num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0,
    moe_intermediate_size=24, shared_expert_intermediate_size=24, num_experts=2,
    num_experts_per_tok=1,
)  # fmt: skip
_QWEN_35 = {"text_config": {**_TEXT, **_LINEAR}}

#: What a model type needs besides, or in place of, ``SIZES``.
MEMBERS: Mapping[str, Mapping[str, Any]] = {
    "codegen": dict(n_head=8, n_embd=64, rotary_dim=4),
    "deberta": _DEBERTA,
    "deberta-v2": {**_DEBERTA, "position_buckets": 4, "norm_rel_ebd": "layer_norm",
                   "share_att_key": True},
    **dict.fromkeys(("axk1", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu"), _LATENT),
    "deepseek_v2": {**_LATENT, "first_k_dense_replace": 4},
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _LINEAR),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), _QWEN_35),
    "bailing_hybrid": {
        **_LATENT, "layer_types": ["linear_attention", "full_attention"] * 2, "head_dim": 8,
        "attention_bias": LEFT_OUT,
    },
    "kimi_linear": {
        **_LATENT, "linear_head_dim": 8, "linear_num_heads": 4, "q_lora_rank": None,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "longcat_flash": {
        **_LATENT, "head_dim": 6, "ffn_hidden_size": 24, "expert_ffn_hidden_size": 24,
        "zero_expert_num": 2, "moe_topk": 2, "n_routed_experts": 4, "num_layers": 2,
        "num_hidden_layers": LEFT_OUT,
    },
    "llama4_text": dict(attention_chunk_size=4, attn_scale=0.3, floor_scale=3),
    "kimi_k25": dict(text_config={
        **_TEXT, **{name: value for name, value in _LATENT.items() if value is not LEFT_OUT},
        "n_routed_experts": 2,
    }),
    "llama4": dict(text_config=dict(
        vocab_size=64, hidden_size=40, intermediate_size=24, intermediate_size_mlp=24,
        num_hidden_layers=4, num_attention_heads=5, num_key_value_heads=1, head_dim=12,
        max_position_embeddings=64, attention_chunk_size=4, floor_scale=3, num_local_experts=2,
        num_experts_per_tok=1, pad_token_id=0,
    )),
    "ministral3": dict(rope_parameters=_BETA),
    "mistral4": _LATENT | {"rope_parameters": _BETA},
    "dots1": dict(first_k_dense_replace=4),
    "esm": dict(
        vocab_size=64, position_embedding_type="rotary", mask_token_id=3, token_dropout=False,
        emb_layer_norm_before=False, pad_token_id=0,
    ),
    "granite_docling": dict(
        text_config=_TEXT,
        vision_config=dict(
            hidden_size=40, intermediate_size=24, num_hidden_layers=4, num_attention_heads=5,
            out_hidden_size=40, deepstack_visual_indexes=[0, 1, 2],
        ),
    ),
    "gpt_neo": dict(num_layers=2, attention_types=[[["global", "local"], 1]]),
    "gptj": dict(rotary_dim=4),
    "helium": dict(head_dim=8),
    "hubert": _SPEECH,
    "longformer": dict(attention_window=4),
    "luke": dict(entity_vocab_size=8, entity_emb_size=8),
    "qwen2_5_vl": _QWEN_VL,
    "qwen2_5_vl_text": dict(
        rope_parameters=_MROPE_8, use_sliding_window=True, max_window_layers=2
    ),
    "qwen2_vl": _QWEN_VL,
    "qwen2_vl_text": dict(rope_parameters=_MROPE_8),
    "roc_bert": dict(pronunciation_vocab_size=8, shape_vocab_size=8),
    "speech_to_text": dict(
        num_conv_layers=2, conv_kernel_sizes=[3, 3], conv_channels=16, input_feat_per_channel=8,
        num_mel_bins=8,
    ),
    "swin": dict(
        image_size=32, embed_dim=20, depths=[2, 1], num_heads=[5, 5], window_size=4,
        hidden_size=LEFT_OUT, num_layers=LEFT_OUT,
    ),
    "wav2vec2": {**_SPEECH, "do_stable_layer_norm": True},
}  # fmt: skip

#: ``model_type!variant``: members that change what the attention does, or where its norm lies.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "bert!decoder": dict(is_decoder=True),
    "cohere!qk": dict(use_qk_norm=True),
    "falcon!grouped": dict(new_decoder_architecture=True, num_kv_heads=1),
    "deberta!clipped": dict(max_relative_positions=3, pos_att_type="c2p"),
    "deberta!plain": dict(relative_attention=False),
    "deberta-v2!apart": dict(share_att_key=False, position_buckets=-1, norm_rel_ebd="none"),
    "deberta-v2!buckets": dict(share_att_key=False, pos_att_type=["p2c"]),
    "deepseek_v2!plain": dict(q_lora_rank=None, rope_parameters=_YARN),
    "deepseek_v3!half": dict(rope_interleave=False, q_lora_rank=None, attention_bias=False),
    "deepseek_v3!yarn": dict(rope_parameters=_YARN),
    "gemma3_text!both": dict(use_bidirectional_attention=True),
    "glm4_moe!qk": dict(use_qk_norm=True),
    "gpt2!layers": dict(scale_attn_by_inverse_layer_idx=True),
    "gpt_bigcode!mha": dict(multi_query=False),
    "granitemoe!multiplier": dict(attention_multiplier=0.37),
    "hyperclovax!multiplier": dict(attention_multiplier=0.37),
    "llama4_text!plain": dict(
        use_qk_norm=False, attn_temperature_tuning=False, no_rope_layers=[0, 1, 1, 0]
    ),
    "olmo_hybrid!nope": dict(rope_parameters=None),
    "olmoe!clip": dict(clip_qkv=1.0),
    "opt!post": dict(do_layer_norm_before=False),
    "phi3!long": dict(
        rope_parameters=_LONG,
        original_max_position_embeddings=6,
        head_dim=LEFT_OUT,
        partial_rotary_factor=0.75,
    ),
    "phi3!short": dict(
        rope_parameters=_LONG | {"attention_factor": 1.3},
        original_max_position_embeddings=9,
        partial_rotary_factor=0.75,
        head_dim=LEFT_OUT,
    ),
    "phi!qk": dict(qk_layernorm=True),
    "qwen2!window": dict(use_sliding_window=True, max_window_layers=2),
    "qwen3_moe!window": dict(use_sliding_window=True),
    "stablelm!qk": dict(qk_layernorm=True, use_qkv_bias=True),
    "wav2vec2!post": dict(do_stable_layer_norm=False),
}

#: Model types that are not built, and why: they are refused by their names alone.
NOT_BUILT: Mapping[str, str] = {
    name: why
    for why, names in (
        (
            "40 million parameters and more with these sizes",
            "align align_vision_model blt dac deepseek_v32 efficientnet emu3_vqgan florence2 "
            "florence_vision gemma4 gemma4_text glm5_next_vision glm_moe_dsa inkling_audio "
            "janus janus_vqgan muse_glimmer muse_spark_audio perceiver "
            "qwen2_5_omni_bigvgan qwen2_5_omni_token2wav rag tvp vibevoice "
            "vibevoice_acoustic_tokenizer vibevoice_acoustic_tokenizer_decoder "
            "vibevoice_acoustic_tokenizer_encoder vibevoice_asr",
        ),
        (
            "its config does not go with these sizes",
            "autoformer bamba bridgetower bridgetower_vision_model chameleon cohere_compass "
            "cohere_compass_text cosmos3_edge cosmos3_edge_text d_fine data2vec-audio dbrx "
            "deepseek_ocr2 deepseek_ocr2_text deimv2 diffllama diffusion_gemma "
            "diffusion_gemma_text donut-swin dots3_note dots3_note_audio_encoder "
            "dots3_note_text dots3_note_vision_encoder efficientloftr ernie4_5_vl_moe "
            "ernie4_5_vl_moe_text esmc esmfold2 fun_asr_nano gemma3n_text gemma4_assistant "
            "gemma4_unified_assistant glm5_next glm5_next_text gradium_phonon_tts "
            "granite4_vision granite_speech5_ctc granite_speech5_encoder "
            "granitemoehybrid informer inkling2 kyutai_speech_to_text lfm2_moe lightglue "
            "lw_detr lw_detr_vit mamba2 mask2former maskformer maskformer-swin mimi "
            "mimi_decoder mobilevit molmo2 moonshine_streaming muse_spark nemo_speechlm "
            "nemotron3_5_transcribe_audio nemotron3_5_transcribe_word_timestamp "
            "nemotron3_diarization nemotron_h_omni neomme neucodec nougat oneformer "
            "pix2struct_text_model pocket_tts pocket_tts_audio_tokenizer "
            "pocket_tts_audio_tokenizer_decoder pp_ocrv5_server_det pp_ocrv6_medium_det "
            "prophetnet qwen3_omni_moe_talker_text qwen4_exp qwen4_exp_text reformer rf_detr "
            "sew sew-d speech-encoder-decoder squeezebert swin2sr swinv2 t5gemma2_decoder "
            "t5gemma2_encoder t5gemma2_text time_series_transformer unispeech unispeech-sat "
            "upernet videoprism videoprism_vision_model vitmatte vitpose vitpose_backbone "
            "wav2vec2-conformer wavlm xcodec xcodec2 zamba zamba2",
        ),
        (
            "needs a library that is not there",
            "dinat edgetam edgetam_vision_model eomt eomt_dinov3 fast_vlm gemma3n "
            "gemma3n_vision higgs_audio_v2_tokenizer layoutlmv2 layoutxlm pe_audio_video "
            "pe_audio_video_encoder pe_video pe_video_encoder perception_lm "
            "pp_chart2table_vision timm_backbone timm_wrapper videomt",
        ),
        (
            "a part without a model of its own",
            "edgetam_mask_decoder edgetam_prompt_encoder edgetam_video_mask_decoder "
            "edgetam_video_prompt_encoder gemma4_unified_audio gemma4_unified_vision "
            "idefics_perciever idefics_vision qwen2_5_omni qwen3_omni_moe sam2_mask_decoder "
            "sam2_prompt_encoder sam2_video_mask_decoder sam2_video_prompt_encoder "
            "sam3_geometry_encoder sam3_lite_text_geometry_encoder sam3_tracker_mask_decoder "
            "sam3_tracker_prompt_encoder sam3_tracker_video_mask_decoder "
            "sam3_tracker_video_prompt_encoder sam_hq_mask_decoder sam_hq_prompt_encoder "
            "sam_mask_decoder sam_prompt_encoder sapiens2_head t5_gemma_module "
            "vibevoice_diffusion",
        ),
        ("its synthesis takes minutes", "vits"),
    )
    for name in names.split()
}  # fmt: skip
