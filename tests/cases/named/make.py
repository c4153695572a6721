"""Writes the checkpoints here, each by its own library, with what that library's attention gives.

    python tests/cases/named/make.py [NAME …]

openai-whisper 20250625 · nanoGPT 3adf61e (its model.py as ``nanogpt`` on the path) · llama-models
(``llama3``, by two ranks of gloo with fairscale 0.4.13) · TransformerLens 2.16.1 · diffusers 0.42.1
· flax 0.12.8 · keras 3.15.1 with torch · megatron-core 0.16.1 · timm 1.0.31 · torchvision 0.29.1,
all with torch 2.13 on CPUs, in float32, random weights of awkward sizes.

``NAME.answers.npz`` holds, by the name of each layer, ``x`` (hidden states before the layer's own
norm), ``memory`` and ``output``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
Answers = dict[str, Any]


def shaken(model: nn.Module) -> nn.Module:
    """The model with random parameters: norms and biases too, which begin as ones and zeros."""
    torch.manual_seed(14)
    with torch.no_grad():
        for name, p in model.named_parameters():
            wide = p.dim() > 1
            p.copy_(torch.randn(p.shape) * (1.5 / p.shape[-1] ** 0.5 if wide else 0.3))
            if not wide and "norm" in name.lower() + "ln" and name.endswith("weight"):
                p.add_(1)
    return model.eval()


def watched(model: nn.Module, layers: dict[str, tuple[nn.Module, nn.Module]]) -> Answers:
    """What will be seen of each layer: what its norm was given, and what its attention returned."""
    seen: Answers = {}
    for name, (norm, attention) in layers.items():

        def given(_: Any, args: Any, name: str = name) -> None:
            seen[f"{name}|x"] = args[0].detach().numpy().copy()

        def made(_: Any, args: Any, out: Any, name: str = name) -> None:
            first = out[0] if isinstance(out, tuple) else out
            seen[f"{name}|output"] = first.detach().numpy().copy()

        norm.register_forward_pre_hook(given)
        attention.register_forward_hook(made)
    return seen


def keep(name: str, seen: Answers) -> None:
    """Save the answers."""
    np.savez_compressed(HERE / f"{name}.answers.npz", **seen)


def whisper() -> None:
    """openai-whisper, as its own tools save it: dims beside model_state_dict."""
    from whisper.model import ModelDimensions, Whisper

    dims = ModelDimensions(6, 5, 12, 3, 1, 11, 7, 12, 2, 1)
    model: Any = shaken(Whisper(dims))
    enc, dec = model.encoder.blocks[0], model.decoder.blocks[0]
    seen = watched(
        model,
        {
            "encoder.blocks.0.attn": (enc.attn_ln, enc.attn),
            "decoder.blocks.0.attn": (dec.attn_ln, dec.attn),
            "decoder.blocks.0.cross_attn": (dec.cross_attn_ln, dec.cross_attn),
        },
    )
    model.decoder.blocks[0].cross_attn.register_forward_pre_hook(
        lambda _, args: seen.update({"decoder.blocks.0.cross_attn|memory": args[1].numpy()})
    )
    with torch.no_grad():
        model(torch.randn(1, 6, 10), torch.randint(0, 11, (1, 5)))
    torch.save({"dims": dims.__dict__, "model_state_dict": model.state_dict()}, HERE / "whisper.pt")
    keep("whisper", seen)


def nanogpt() -> None:
    """nanoGPT's ckpt.pt, as its train.py saves a compiled model."""
    import nanogpt as nano

    args = {
        "n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 9, "bias": True, "vocab_size": 7,
        "dropout": 0.0,
    }  # fmt: skip
    model: Any = shaken(nano.GPT(nano.GPTConfig(**args)))
    layers = {
        f"transformer.h.{n}.attn": (b.ln_1, b.attn) for n, b in enumerate(model.transformer.h)
    }
    seen = watched(model, layers)
    with torch.no_grad():
        model(torch.randint(0, 7, (2, 6)))
    state = {f"_orig_mod.{name}": t for name, t in model.state_dict().items()}
    kept = {"model": state, "model_args": args, "iter_num": 3, "config": {"n_head": 3}}
    torch.save(kept, HERE / "nanogpt.pt")
    keep("nanogpt", seen)


def meta() -> None:
    """Meta's Llama by two ranks of tensor parallelism, each with the file it saves."""
    torch.multiprocessing.spawn(_meta_rank, nprocs=2)


def _meta_rank(rank: int) -> None:
    import json

    import fairscale.nn.model_parallel.initialize as fs
    from llama3.args import ModelArgs
    from llama3.model import Transformer

    torch.distributed.init_process_group(
        "gloo", init_method="tcp://127.0.0.1:29514", rank=rank, world_size=2
    )
    fs.initialize_model_parallel(2)
    said = {
        "dim": 24, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 10,
        "multiple_of": 4, "norm_eps": 1e-5, "rope_theta": 500000.0, "use_scaled_rope": True,
    }  # fmt: skip
    model: Any = shaken(Transformer(ModelArgs(**said, max_seq_len=16, max_batch_size=2)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(
                    99 * rank + len(name))) * 0.3)  # fmt: skip
    block = model.layers[0]
    seen = watched(model, {"layers.0.attention": (block.attention_norm, block.attention)})
    with torch.no_grad():
        model(torch.arange(7)[None] % 10, 0)
    folder = HERE / "meta"
    folder.mkdir(exist_ok=True)
    torch.save(model.state_dict(), folder / f"consolidated.{rank:02d}.pth")
    if rank == 0:
        (folder / "params.json").write_text(json.dumps(said))
        keep("meta", seen)
    torch.distributed.barrier()


def lens() -> None:
    """TransformerLens, cfg beside: RoPE of half a head with shared heads and a cap; local; LN."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    common = {"n_layers": 2, "d_model": 12, "n_ctx": 9, "d_head": 6, "d_vocab": 7, "d_mlp": 8,
              "act_fn": "relu", "seed": 1, "attn_only": True}  # fmt: skip
    kinds = {
        "lens": {
            "n_layers": 1, "n_heads": 4, "n_key_value_heads": 2,
            "positional_embedding_type": "rotary",
            "rotary_dim": 4, "rotary_base": 500, "normalization_type": "RMS",
            "attn_scores_soft_cap": 2.0, "use_qk_norm": True,
        },
        "lens_local": {
            "n_heads": 3, "normalization_type": "LNPre", "use_local_attn": True, "window_size": 3,
            "attn_types": ["global", "local"], "attn_scale": 1.7,
        },
        "lens_pairs": {
            "n_heads": 2, "positional_embedding_type": "rotary", "rotary_adjacent_pairs": True,
            "normalization_type": "LN", "scale_attn_by_inverse_layer_idx": True,
        },
    }  # fmt: skip
    for name, own in kinds.items():
        cfg = HookedTransformerConfig(**{**common, **own})
        model: Any = shaken(HookedTransformer(cfg))
        seen = watched(model, {f"blocks.{n}": (b.ln1, b.attn) for n, b in enumerate(model.blocks)})
        with torch.no_grad():
            model(torch.randint(0, 7, (1, 8)))
        drop = {"tokenizer_name"}
        said = {k: v for k, v in cfg.to_dict().items() if k not in drop}
        torch.save({"cfg": said, "model": model.state_dict()}, HERE / f"{name}.pt")
        keep(name, seen)


def saved(model: Any, name: str) -> None:
    """Save as diffusers does: config.json beside the weights."""
    from safetensors.torch import load_file, save_file

    model.save_pretrained(HERE / name, safe_serialization=True)
    file = HERE / name / "diffusion_pytorch_model.safetensors"
    kept = {
        n: t
        for n, t in load_file(file).items()
        if ".attn" in n or (".norm" in n and "linear" not in n)
    }
    save_file(kept, file)  # the attention alone: convolutions are large


def unet() -> None:
    """diffusers' UNet: heads by block, under the name of their width; attn2 reads a text."""
    from diffusers import UNet2DConditionModel

    model: Any = shaken(
        UNet2DConditionModel(
            sample_size=4, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=2,
            block_out_channels=(4, 12), attention_head_dim=(2, 3), cross_attention_dim=5,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), mid_block_type=None,
        )
    )  # fmt: skip
    at = {
        "down_blocks.0.attentions.0.transformer_blocks.0": model.down_blocks[0].attentions[0],
        "down_blocks.1.attentions.0.transformer_blocks.0": model.down_blocks[1].attentions[0],
        "up_blocks.0.attentions.0.transformer_blocks.0": model.up_blocks[0].attentions[0],
    }
    layers, memory = {}, torch.randn(1, 3, 5)
    for path, one in at.items():
        block = one.transformer_blocks[0]
        layers[f"{path}.attn1"] = (block.norm1, block.attn1)
        layers[f"{path}.attn2"] = (block.norm2, block.attn2)
    seen = watched(model, layers)
    with torch.no_grad():
        model(torch.randn(1, 1, 4, 4), 3, memory)
    seen |= {f"{name}|memory": memory.numpy() for name in layers if name.endswith("attn2")}
    saved(model, "unet")
    keep("unet", seen)


def pixart() -> None:
    """diffusers' PixArt: the norm is moved by the time step, so X is what the projections take."""
    from diffusers import PixArtTransformer2DModel

    model: Any = shaken(
        PixArtTransformer2DModel(
            num_attention_heads=3, attention_head_dim=4, in_channels=1, out_channels=2,
            num_layers=1, norm_num_groups=1, cross_attention_dim=12, sample_size=4, patch_size=2,
            caption_channels=5,
        )
    )  # fmt: skip
    block = model.transformer_blocks[0]
    seen: Answers = {}
    for name in ("attn1", "attn2"):

        def made(_: Any, args: Any, more: Any, out: Any, name: str = name) -> None:
            key = f"transformer_blocks.0.{name}"
            x = args[0] if args else more["hidden_states"]
            seen[f"{key}|x"], seen[f"{key}|output"] = x.numpy().copy(), out.numpy().copy()
            other = more.get("encoder_hidden_states")
            if other is not None:
                seen[f"{key}|memory"] = other.numpy().copy()

        getattr(block, name).register_forward_hook(made, with_kwargs=True)
    with torch.no_grad():
        model(
            torch.randn(1, 1, 4, 4), torch.randn(1, 3, 5), torch.tensor([7]),
            {"resolution": None, "aspect_ratio": None},
        )  # fmt: skip
    saved(model, "pixart")
    keep("pixart", seen)


def flax() -> None:
    """A pre-norm block of flax.linen with normed queries and keys, its tree flattened to npz."""
    import flax.linen as fnn
    import jax
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict

    class EncoderBlock(fnn.Module):
        @fnn.compact
        def __call__(self, x: Any, memory: Any) -> Any:
            x = fnn.MultiHeadDotProductAttention(
                num_heads=3, qkv_features=12, out_features=7, normalize_qk=True, name="self"
            )(x)
            return fnn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4, name="cross_attn")(
                x, memory
            )

    class Encoder(fnn.Module):
        @fnn.compact
        def __call__(self, x: Any, memory: Any) -> Any:
            return EncoderBlock(name="encoderblock_0")(x, memory)

    draw = np.random.default_rng(14)
    x, memory = (draw.normal(size=shape).astype(np.float32) for shape in ((2, 4, 7), (2, 3, 5)))
    tree = Encoder().init(jax.random.key(0), x, memory)
    tree = jax.tree.map(lambda a: a + 0.3 * draw.normal(size=a.shape).astype(np.float32), tree)
    _, state = Encoder().apply(tree, x, memory, capture_intermediates=True)
    made = state["intermediates"]["encoderblock_0"]
    own, cross = (np.asarray(made[name]["__call__"][0]) for name in ("self", "cross_attn"))
    flat = {"/".join(path): np.asarray(a) for path, a in flatten_dict(tree).items()}
    np.savez_compressed(HERE / "flax.npz", **flat)
    start = "params/encoderblock_0/"
    keep(
        "flax",
        {
            f"{start}self|x": x, f"{start}self|output": own, f"{start}cross_attn|x": own,
            f"{start}cross_attn|memory": memory, f"{start}cross_attn|output": cross,
        },
    )  # fmt: skip
    assert jnp.isfinite(own).all()


def keras() -> None:
    """keras' MultiHeadAttention and its grouped kin, by the paths of their variables."""
    from keras import layers

    draw = np.random.default_rng(14)
    x, memory = (draw.normal(size=shape).astype(np.float32) for shape in ((2, 4, 7), (2, 3, 5)))
    seen, kept = {}, {}
    for layer, given in (
        (layers.MultiHeadAttention(3, 4, value_dim=5, name="plain"), (x, x)),
        (layers.MultiHeadAttention(2, 3, output_shape=6, name="cross_attention"), (x, memory)),
        (layers.GroupQueryAttention(4, 4, 2, name="grouped"), (x, x)),
    ):
        layer(*given)
        for variable in layer.variables:
            if "seed" in variable.path:
                continue
            shape = tuple(variable.shape)
            variable.assign(draw.normal(size=shape).astype(np.float32) * 0.4)
            kept[variable.path] = variable.numpy()
        seen[f"{layer.name}|x"] = x
        seen[f"{layer.name}|output"] = np.asarray(layer(*given).detach())
        if given[1] is memory:
            seen[f"{layer.name}|memory"] = memory
    np.savez_compressed(HERE / "keras.npz", **kept)
    keep("keras", seen)


def megatron() -> None:
    """Megatron-Core's GPT, grouped, RoPE on half a head, as its training saves it.

    By its modules for no Transformer Engine, whose norm lies in input_layernorm.
    """
    import argparse
    import contextlib

    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel import random
    from megatron.core.transformer import TransformerConfig

    torch.distributed.init_process_group(
        "gloo", init_method="tcp://127.0.0.1:29515", rank=0, world_size=1
    )
    parallel_state.initialize_model_parallel()
    torch.cuda.current_device = lambda: "cpu"  # it asks where its angles should lie
    random.CudaRNGStatesTracker.fork = lambda *_: contextlib.nullcontext()  # for dropout of 0
    said = {
        "num_layers": 1, "hidden_size": 12, "num_attention_heads": 4, "num_query_groups": 2,
        "kv_channels": 4, "normalization": "RMSNorm", "layernorm_epsilon": 1e-5,
    }  # fmt: skip
    config = TransformerConfig(
        **said, use_cpu_initialization=True, bias_dropout_fusion=False, apply_rope_fusion=False,
        qk_layernorm=True, masked_softmax_fusion=False, add_bias_linear=True, attention_dropout=0.0,
    )  # fmt: skip
    spec = get_gpt_layer_local_spec(qk_layernorm=True, normalization="RMSNorm")
    model: Any = shaken(
        GPTModel(
            config, spec, vocab_size=7, max_sequence_length=9, rotary_percent=0.5,
            rotary_base=500, position_embedding_type="rope",
        )
    )  # fmt: skip
    block = model.decoder.layers[0]
    name = "decoder.layers.0.self_attention"
    seen = watched(model, {name: (block.input_layernorm, block.self_attention)})
    ids = torch.randint(0, 7, (2, 6))
    places = torch.arange(6)[None].expand(2, 6)
    with torch.no_grad():
        model(ids, places, torch.ones(2, 1, 6, 6).tril() == 0)
        bias = block.self_attention.linear_proj.bias  # returned apart, added with the residual
    seen[f"{name}|output"] += bias.detach().numpy()
    seen = {key: a.swapaxes(0, 1) for key, a in seen.items()}  # (L, B, E) → (B, L, E)
    args = argparse.Namespace(
        **said, group_query_attention=True, position_embedding_type="rope", rotary_base=500,
        rotary_percent=0.5, rotary_interleaved=False, norm_epsilon=1e-5, qk_layernorm=True,
        tensor_model_parallel_size=1, apply_layernorm_1p=False, seq_length=9,
    )  # fmt: skip
    state = {n: t for n, t in model.state_dict().items() if torch.is_tensor(t)}
    torch.save({"args": args, "model": state, "checkpoint_version": 3.0}, HERE / "megatron.pt")
    keep("megatron", seen)


def _without_its_kernels() -> None:
    """torchvision's compiled operators do not load beside torch for CPUs, and none is used here."""
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor a) -> Tensor")
    KEPT.append(library)


KEPT: list[Any] = []


def images() -> None:
    """timm (ViT with normed queries, BEiT, Swin, EVA without RoPE) and torchvision (ViT, Swin)."""
    _without_its_kernels()
    import timm
    from safetensors.torch import save_file
    from torchvision.models.swin_transformer import SwinTransformer
    from torchvision.models.vision_transformer import VisionTransformer

    small = {"img_size": 8, "patch_size": 4, "num_classes": 2}
    vit = {**small, "embed_dim": 12, "num_heads": 3, "depth": 1}
    swin = {"img_size": 8, "patch_size": 4, "window_size": 2, "num_classes": 2, "embed_dim": 6}
    beside = {"weight_init": "skip"}
    models: dict[str, Any] = {
        "timm_vit": timm.create_model("vit_tiny_patch16_224", **vit, **beside, qk_norm=True),
        "timm_beit": timm.create_model("beit_base_patch16_224", **vit),
        "timm_eva": timm.create_model("eva02_base_patch14_224", **vit, use_rot_pos_emb=False),
        "timm_swin": timm.create_model(
            "swin_tiny_patch4_window7_224", **swin, num_heads=(2,), depths=(1,)
        ),
        "torchvision_vit": VisionTransformer(8, 4, 1, 3, 12, 8, num_classes=2),
        "torchvision_swin": SwinTransformer([4, 4], 6, [2], [2], [2, 2], num_classes=2),
    }
    for name, model in models.items():
        shaken(model)
        if name == "torchvision_vit":
            path, block = "encoder.layers.encoder_layer_0", model.encoder.layers[0]
            layers = {path: (block.ln_1, block.self_attention)}
        else:
            path = {"timm_swin": "layers.0.blocks.0", "torchvision_swin": "features.1.0"}.get(
                name, "blocks.0"
            )
            block = model.get_submodule(path)
            layers = {f"{path}.attn": (block.norm1, block.attn)}
        seen = watched(model, layers)
        with torch.no_grad():
            model(torch.randn(2, 3, 8, 8))
        seen = {key: a.reshape(len(a), -1, a.shape[-1]) for key, a in seen.items()}
        kept = {n: t.contiguous() for n, t in model.state_dict().items() if n.startswith(path)}
        save_file(kept, HERE / f"{name}.safetensors")
        keep(name, seen)


def streams(model: Any, paths: list[str], seen: Answers) -> None:
    """Watch attention of two streams: x is the image's, memory the text's, and the other way."""
    for path in paths:

        def made(_: Any, args: Any, more: Any, out: Any, path: str = path) -> None:
            x, other = more["hidden_states"], more.get("encoder_hidden_states")
            outs = out if isinstance(out, tuple) else (out,)
            keys = (path, f"{path}.text") if other is not None else (path,)
            for key, own, theirs, result in zip(
                keys, (x, other), (other, x), outs, strict=False
            ):  # fmt: skip
                seen[f"{key}|x"], seen[f"{key}|output"] = own.numpy().copy(), result.numpy().copy()
                if theirs is not None:
                    seen[f"{key}|memory"] = theirs.numpy().copy()
            for n, part in zip(("cos", "sin"), more.get("image_rotary_emb") or (), strict=False):
                seen[f"rope|{n}"] = part.numpy()[:, ::2].copy()

        model.get_submodule(path).register_forward_hook(made, with_kwargs=True)


def flux() -> None:
    """diffusers' Flux: a block of two streams and one of both together, turned by the pipeline."""
    from diffusers import FluxTransformer2DModel

    model: Any = shaken(
        FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=6,
            num_attention_heads=3, joint_attention_dim=5, pooled_projection_dim=4,
            axes_dims_rope=(2, 2, 2), guidance_embeds=False,
        )
    )  # fmt: skip
    seen: Answers = {}
    streams(model, ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"], seen)
    places = torch.stack([torch.zeros(4), torch.arange(4) // 2, torch.arange(4) % 2], -1)
    with torch.no_grad():
        model(
            torch.randn(1, 4, 4), torch.randn(1, 3, 5), torch.randn(1, 4), torch.tensor([0.3]),
            places, torch.zeros(3, 3),
        )  # fmt: skip
    saved(model, "flux")
    keep("flux", seen)


def sd3() -> None:
    """diffusers' Stable Diffusion 3.5: two streams, a second attention, a last without text."""
    from diffusers import SD3Transformer2DModel

    model: Any = shaken(
        SD3Transformer2DModel(
            sample_size=4, patch_size=2, in_channels=1, num_layers=2, attention_head_dim=4,
            num_attention_heads=3, joint_attention_dim=5, caption_projection_dim=12,
            pooled_projection_dim=4, out_channels=1, pos_embed_max_size=4, qk_norm="rms_norm",
            dual_attention_layers=(0,),
        )
    )  # fmt: skip
    seen: Answers = {}
    paths = ["transformer_blocks.0.attn", "transformer_blocks.0.attn2", "transformer_blocks.1.attn"]
    streams(model, paths, seen)
    with torch.no_grad():
        model(torch.randn(1, 1, 4, 4), torch.randn(1, 3, 5), torch.randn(1, 4), torch.tensor([3]))
    saved(model, "sd3")
    seen = {key: a for key, a in seen.items() if not key.startswith("transformer_blocks.1.attn.t")}
    keep("sd3", seen)


MADE: dict[str, Callable[[], None]] = {
    made.__name__: made
    for made in (
        whisper, nanogpt, meta, lens, unet, pixart, flux, sd3, flax, keras, megatron, images,
    )
}  # fmt: skip


if __name__ == "__main__":
    for name in sys.argv[1:] or MADE:
        MADE[name]()
