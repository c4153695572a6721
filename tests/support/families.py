"""Tiny random models of transformers, one a family, and what their attention layers really do.

``python -m tests.support.families`` prints the table of errors. Nothing is downloaded.
"""

from __future__ import annotations

import copy
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"

from attncli.attention.rope import Rope
from attncli.models.finding import load
from attncli.models.layer import Layer
from attncli.studies.layer import MultiheadResult, multihead
from tests.support.budget import eps, truth

Array = np.ndarray[Any, np.dtype[Any]]

V, L = 64, 9
_ENCODER = dict(
    vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_GQA = {**_ENCODER, "num_key_value_heads": 2}
_WIDE = {**_GQA, "head_dim": 12}  # heads × width is not the hidden size
_IMAGE = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    image_size=16, patch_size=4,
)  # fmt: skip
_SEQ2SEQ = dict(
    vocab_size=V, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    forced_eos_token_id=2,
)  # fmt: skip
_T5 = dict(vocab_size=V, d_model=32, d_kv=12, d_ff=48, num_layers=2, num_heads=4)
_GPT = dict(vocab_size=V, n_positions=64, n_embd=32, n_layer=2, n_head=4)
_BLOCKS = dict(vocab_size=V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
_SLIDE = {"sliding_window": 4}
_YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
_LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 5000.0, "factor": 2.0}

#: ``model_type`` or ``model_type!variant`` → what its config says.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "bert!decoder": {**_ENCODER, "is_decoder": True},
    "roberta": _ENCODER,
    "xlm-roberta": _ENCODER,
    "electra": {**_ENCODER, "embedding_size": 32},
    "camembert": _ENCODER,
    "ernie": _ENCODER,
    "layoutlm": _ENCODER,
    "megatron-bert": _ENCODER,
    "albert": {**_ENCODER, "embedding_size": 32, "num_hidden_layers": 3},
    "big_bird": {**_ENCODER, "attention_type": "original_full", "sep_token_id": 3},
    "longformer": {**_ENCODER, "attention_window": 4},
    "distilbert": dict(
        vocab_size=V, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64
    ),
    "deberta": _ENCODER,
    "deberta-v2": _ENCODER,
    "mpnet": _ENCODER,
    "esm": {**_ENCODER, "position_embedding_type": "rotary", "mask_token_id": 3},
    "roformer": {**_ENCODER, "embedding_size": 32},
    "nomic_bert": _BLOCKS | {"intermediate_size": 48},
    "modernbert": {
        **_ENCODER, "local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "eurobert": _WIDE,
    "xlm": dict(vocab_size=V, emb_dim=32, n_layers=2, n_heads=4),
    "vit": _IMAGE,
    "deit": _IMAGE,
    "vit_mae": _IMAGE,
    "ijepa": _IMAGE,
    "dinov2": _IMAGE,
    "dinov3_vit": _IMAGE,
    "beit": {**_IMAGE, "use_relative_position_bias": True},
    "swin": dict(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4
    ),
    "clip": dict(
        text_config={**_ENCODER, "projection_dim": 16, "num_attention_heads": 2},
        vision_config={**_IMAGE, "projection_dim": 16},
    ),
    "siglip": dict(text_config=_ENCODER, vision_config=_IMAGE),
    "blip": dict(text_config={**_ENCODER, "encoder_hidden_size": 32}, vision_config=_IMAGE),
    "wav2vec2": dict(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, conv_dim=[16, 16], conv_stride=[5, 2], conv_kernel=[10, 3],
        num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    ),
    "llama": _WIDE,
    "llama!llama3": {**_WIDE, "rope_parameters": _LLAMA3},
    "llama!yarn": {**_WIDE, "rope_parameters": _YARN},
    "llama!linear": {**_WIDE, "rope_parameters": _LINEAR},
    "llama!dynamic": {**_WIDE, "rope_parameters": _DYNAMIC, "max_position_embeddings": 6},
    "mistral": {**_WIDE, **_SLIDE},
    "mixtral": {**_WIDE, **_SLIDE, "num_local_experts": 2},
    "qwen2": {**_GQA, **_SLIDE, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": _WIDE,
    "qwen3_moe": {**_WIDE, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8},
    "gemma": _WIDE,
    "gemma2": {
        **_WIDE, **_SLIDE, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0,
    },
    "gemma3_text": {
        **_WIDE, **_SLIDE, "query_pre_attn_scalar": 20, "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gemma3_text!both": {
        **_WIDE, **_SLIDE, "use_bidirectional_attention": True,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "cohere": {**_GQA, "use_qk_norm": True},
    "cohere2": {**_WIDE, **_SLIDE, "num_hidden_layers": 4},
    "granite": {**_GQA, "attention_multiplier": 0.37},
    "starcoder2": {**_GQA, **_SLIDE},
    "olmo": {**_GQA, "clip_qkv": 1.0},
    "olmo2": _GQA,
    "olmo3": {**_GQA, **_SLIDE, "num_hidden_layers": 4},
    "glm": _WIDE,
    "glm4": _WIDE,
    "stablelm": {**_GQA, "qk_layernorm": True, "use_qkv_bias": True},
    "gpt_oss": {
        **_WIDE, **_SLIDE, "num_local_experts": 2, "num_experts_per_tok": 1,
        "rope_parameters": {**_YARN, "truncate": False},
    },
    "phi": {**_GQA, "qk_layernorm": True},
    "phi3": {**_GQA, **_SLIDE},
    "smollm3": {**_GQA, "num_hidden_layers": 4},
    "exaone4": {**_WIDE, **_SLIDE, "num_hidden_layers": 4},
    "helium": {**_GQA, "head_dim": 8},
    "ernie4_5": _WIDE,
    "nemotron": _WIDE,
    "seed_oss": _WIDE,
    "arcee": _WIDE,
    "apertus": {**_WIDE, "rope_parameters": _LLAMA3},
    "hunyuan_v1_dense": _WIDE,
    "persimmon": _ENCODER,
    "opt": dict(
        vocab_size=V, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32,
    ),
    "biogpt": _ENCODER,
    "xglm": dict(
        vocab_size=V, d_model=32, ffn_dim=48, num_layers=2, attention_heads=4,
        max_position_embeddings=64,
    ),
    "ctrl": dict(vocab_size=V, n_embd=32, n_layer=2, n_head=4, dff=48, n_positions=64),
    "gpt2": {**_GPT, "scale_attn_by_inverse_layer_idx": True},
    "gpt2!cross": {**_GPT, "add_cross_attention": True},
    "gpt_bigcode": {**_GPT, "multi_query": True},
    "gpt_bigcode!mha": {**_GPT, "multi_query": False},
    "gpt_neo": dict(
        vocab_size=V, max_position_embeddings=64, hidden_size=32, num_layers=2,
        attention_types=[[["global", "local"], 1]], num_heads=4, window_size=4,
    ),
    "gptj": {**_GPT, "rotary_dim": 4},
    "codegen": {**_GPT, "n_ctx": 64, "rotary_dim": 4, "n_head": 8, "n_embd": 64},
    "gpt_neox": {**_BLOCKS, "intermediate_size": 48},
    "bloom": dict(vocab_size=V, hidden_size=32, n_layer=2, n_head=4),
    "mpt": dict(vocab_size=V, d_model=48, n_layers=2, n_heads=6, max_seq_len=64),
    "falcon": {**_BLOCKS, "multi_query": True},
    "falcon!grouped": {**_BLOCKS, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon!mha": {**_BLOCKS, "multi_query": False, "alibi": True},
    "bart": _SEQ2SEQ,
    "mbart": _SEQ2SEQ,
    "pegasus": _SEQ2SEQ,
    "marian": _SEQ2SEQ,
    "m2m_100": _SEQ2SEQ,
    "blenderbot": _SEQ2SEQ,
    "whisper": {
        **_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16,
    },
    "t5": _T5,
    "mt5": _T5,
    "umt5": _T5,
}  # fmt: skip


def build(key: str) -> Any:
    """A model in eager mode whose every parameter is random, so that no zero hides a mistake."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(sum(map(ord, key)))
    config = transformers.AutoConfig.for_model(key.split("!")[0], **copy.deepcopy(FAMILIES[key]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Falcon's eager code adds its ALiBi twice, once in the mask: its default, sdpa, is right
        how = "sdpa" if key == "falcon!mha" else "eager"
        model = transformers.AutoModel.from_config(
            config, attn_implementation=how, experts_implementation="eager"
        ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" in name and key == "roformer":
                continue  # its angles
            norm = parameter.ndim == 1 or "norm" in name
            centre = parameter.mean().round() if norm else 0  # norms stay about 1
            spread = 0.3 if norm else 0.25
            parameter.copy_(centre + spread * torch.randn_like(parameter))
    return model


def inputs(key: str, model: Any, length: int = L) -> dict[str, Any]:
    """What the model takes, random."""
    import torch

    kind, config = key.split("!")[0], model.config
    ids = torch.randint(4, V, (2, length))
    if kind in ("clip", "siglip", "blip"):
        pixels = torch.randn(2, 3, 16, 16)
        return {"input_ids": ids, "pixel_values": pixels}
    if hasattr(config, "image_size"):
        size = config.image_size
        return {"pixel_values": torch.randn(2, 3, size, size)}
    if kind == "wav2vec2":
        return {"input_values": torch.randn(2, 120)}
    if kind == "whisper":
        frames = 2 * config.max_source_positions
        features = torch.randn(2, config.num_mel_bins, frames)
        return {"input_features": features, "decoder_input_ids": ids}
    if config.is_encoder_decoder:
        return {"input_ids": ids, "decoder_input_ids": torch.randint(4, V, (2, length - 2))}
    if key == "gpt2!cross":
        memory = torch.randn(2, 5, config.n_embd)
        return {"input_ids": ids, "encoder_hidden_states": memory}
    return {"input_ids": ids}


@dataclass
class Seen:
    """What passed through one attention layer."""

    query_input: Any = None
    key_input: Any = None
    weights: Any = None
    concat: Any = None
    output: Any = None


class Watched:
    """Watches the layers of a model: the projections are found by the values of their weights."""

    def __init__(self, model: Any, layers: list[Layer]) -> None:
        import torch

        modules = {
            np.ascontiguousarray(module.weight.detach().numpy()).tobytes(): name
            for name, module in model.named_modules()
            if isinstance(getattr(module, "weight", None), torch.Tensor) and module.weight.ndim == 2
        }
        self.places: list[tuple[str, str, str]] = []
        for layer in layers:
            made = layer.projections()
            names = []
            for roles, apart in (
                (("query", "qkv"), made.query),
                (("key", "kv", "qkv"), made.key),
                (("output",), None),
            ):
                tensors = [layer.array(role) for role in roles if role in layer.tensors]
                if apart is not None:
                    tensors.append(apart)
                found = [modules.get(np.ascontiguousarray(t).tobytes()) for t in tensors]
                names.append(next((name for name in found if name is not None), ""))
            self.places.append((names[0], names[1], names[2]))
        self.layers = layers

    def run(
        self, model: Any, feed: dict[str, Any], instead: list[Seen] | None = None
    ) -> list[Seen]:
        """Run the model; ``instead`` are inputs that its projections get in place of their own."""
        import torch

        seen = [Seen() for _ in self.layers]
        handles = []
        modules = dict(model.named_modules())
        watched: dict[str, list[tuple[str, int]]] = {}
        for i, (query, key, output) in enumerate(self.places):
            for what, name in (("query_input", query), ("key_input", key)):
                watched.setdefault(name, []).append((what, i))

            def attended(_: Any, args: Any, result: Any, i: int = i) -> None:
                if seen[i].concat is None:
                    seen[i].concat, seen[i].output = args[0].detach(), result.detach()

            handles.append(modules[output].register_forward_hook(attended))
            path = query.split(".")
            for end in range(len(path) - 1, 0, -1):

                def mixed(_: Any, args: Any, result: Any, i: int = i) -> None:
                    for part in result if isinstance(result, tuple) else ():
                        if seen[i].weights is None and getattr(part, "ndim", 0) == 4:
                            shaped = part.shape[1] == self.layers[i].heads
                            sums = part.sum(-1)  # at most 1 with a sink; a bias is 0 or anything
                            if shaped and (part >= 0).all() and ((sums > 0) & (sums < 1.001)).all():
                                seen[i].weights = part.detach()

                handles.append(modules[".".join(path[:end])].register_forward_hook(mixed))
        for name, whats in watched.items():

            def enters(_: Any, args: Any, whats: Any = whats) -> Any:
                for what, i in whats:
                    if getattr(seen[i], what) is None:
                        setattr(seen[i], what, args[0].detach())
                if instead is not None:
                    what, i = whats[0]
                    return (getattr(instead[i], what).double(), *args[1:])
                return None

            handles.append(modules[name].register_forward_pre_hook(enters))
        for name in {p[0].rpartition(".")[0] for p in self.places}:
            # values are made from what keys are made from: watch them as well, to replace it
            for leaf in ("v_proj", "value", "v", "v_lin", "value_proj", "Wv"):
                if instead is not None and f"{name}.{leaf}" in modules:
                    i = next(
                        i for i, p in enumerate(self.places) if p[0].rpartition(".")[0] == name
                    )

                    def values(_: Any, args: Any, i: int = i) -> Any:
                        return (instead[i].key_input.double(), *args[1:])

                    handles.append(modules[f"{name}.{leaf}"].register_forward_pre_hook(values))
        with torch.no_grad():
            asked = model.config._attn_implementation == "eager"
            model(**feed, **({"output_attentions": True} if asked else {}))
        for handle in handles:
            handle.remove()
        return seen


@dataclass
class Compared:
    """One layer: ours in float32 and transformers' in float32 and float64, from the same input."""

    layer: Layer
    ours: MultiheadResult
    single: Seen
    double: Seen | None

    def results(self) -> Iterator[tuple[str, Array, Array, Array | None]]:
        """Name, ours, transformers' in float32 and in float64, of what it shows."""
        assert self.ours.weights is not None
        ours = {"weights": self.ours.weights, "heads": self.ours.concat, "output": self.ours.output}
        for name, mine in ours.items():
            attribute = "concat" if name == "heads" else name
            theirs = getattr(self.single, attribute)
            wide = getattr(self.double, attribute, None)
            if theirs is not None:
                yield name, mine, theirs.numpy(), None if wide is None else wide.numpy()

    def errors(self) -> dict[str, float]:
        """The largest differences of ours from transformers in float32."""
        return {
            name: float(np.abs(mine - theirs).max()) for name, mine, theirs, _ in self.results()
        }

    def bands(self) -> dict[str, Array]:
        """What rounding can do to each number: to scores, weights, heads, and their projection."""
        problem, made, ours = self.ours.attention.problem, self.ours.projections, self.ours
        # transformers computes RoPE's angles in float32: they are off by their own rounding
        turned = 1 + (problem.queries if self.layer.rope is not None else 0)
        known = truth(problem).bands
        heads = np.moveaxis(known["output"], 1, 2).reshape(ours.concat.shape) * turned
        found = {"weights": known["weights"] * turned, "heads": heads}
        assert made.output is not None
        reach = np.abs(made.output).T.astype(float)
        step = eps(np.float32)
        found["output"] = (
            heads @ reach
            + step * (np.abs(ours.concat) @ reach)
            + step
            * (np.abs(ours.output) + (0 if made.output_bias is None else np.abs(made.output_bias)))
        )
        return found


def compared(key: str, folder: str, backend: str = "reference") -> Iterator[Compared]:
    """Save a family's model, read it back our way, and run each layer on the same hidden states."""
    import torch

    from attncli import files
    from attncli.models.finding import config_beside, find_layers

    model = build(key)
    model.save_pretrained(folder)
    layers = find_layers(files.read(folder), config_beside(folder))
    feed = inputs(key, model, 12 if key == "longformer" else L)  # whole windows
    layers = [layer for layer in layers if used(key, layer)]
    watched = Watched(model, layers)
    single = watched.run(model, feed)
    double: list[Seen | None] = [None] * len(layers)
    if key != "xglm":  # whose own code cannot run in float64
        wide = copy.deepcopy(model).double()
        doubled = {n: x.double() if torch.is_floating_point(x) else x for n, x in feed.items()}
        double = [*watched.run(wide, doubled, single)]
    for layer, one, two in zip(layers, single, double, strict=True):
        if key == "longformer":  # it projects (L, B, E), and its weights are those of bands
            for seen in (one, two):
                assert seen is not None
                seen.query_input, seen.weights = seen.query_input.transpose(0, 1), None
        x = one.query_input.numpy()
        memory = one.key_input.numpy() if layer.kind == "cross" else None
        # a layer as the program finds it: from the folder, by its name; without global attention
        arch = "longformer" if key == "longformer" else "auto"
        found = load(folder, layer=layer.name, arch=arch)
        ours = multihead(
            x, found, memory=memory, want=("output", "weights", "lse"), backend=backend,
            input_norm="none", rope=image_rope(model, feed) if key == "dinov3_vit" else None,
        )  # fmt: skip
        yield Compared(layer, ours, one, two)


def image_rope(model: Any, feed: dict[str, Any]) -> Rope:
    """DINOv3's own cosines and sines of image rows and columns; other tokens do not turn."""
    import torch

    with torch.no_grad():
        cos, sin = (t.numpy() for t in model.rope_embeddings(feed["pixel_values"]))
    others = 1 + model.config.num_register_tokens
    half = cos.shape[1] // 2
    return Rope(
        cos=np.pad(cos[:, :half], ((others, 0), (0, 0)), constant_values=1),
        sin=np.pad(sin[:, :half], ((others, 0), (0, 0))),
    )


def used(key: str, layer: Layer) -> bool:
    """Leave out what the model's own forward does not run: heads for pooling, BLIP's cross."""
    if key == "siglip" and "head" in layer.name:
        return False
    return not (key == "blip" and layer.kind == "cross")


def main(keys: list[str]) -> None:
    """Print the table."""
    print(f"{'family':22}{'layers':>7}  {'weights':>9}{'heads':>9}{'output':>9}   {'|output|':>8}")
    for key in keys or list(FAMILIES):
        with tempfile.TemporaryDirectory() as folder:
            worst: dict[str, float] = {}
            size, layers = 0.0, 0
            for one in compared(key, folder):
                layers += 1
                size = max(size, float(np.abs(one.ours.output).max()))
                for name, error in one.errors().items():
                    worst[name] = max(worst.get(name, 0), error)
        numbers = "".join(
            f"{worst[n]:9.1e}" if n in worst else f"{'–':>9}"
            for n in ("weights", "heads", "output")
        )
        print(f"{key:22}{layers:7}  {numbers}   {size:8.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
