"""Writes the checkpoints here and what their own libraries make of them, ``answers.npz``.

transformers 5.23.0, torch 2.13.0, compressed-tensors 0.20.0, bitsandbytes 0.50.2, peft 0.21.2:
``python tests/cases/stored/make.py``. Weights of attention alone are kept; ``NAME.output`` is what
the attention's module gave for the hidden states ``NAME.x``.
"""

import json
import logging
import shutil
from pathlib import Path

import bitsandbytes
import numpy as np
import torch
from compressed_tensors.compressors import FloatQuantizationCompressor, IntQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
LLAMA = LlamaConfig(
    vocab_size=16, hidden_size=80, intermediate_size=16, num_hidden_layers=1, num_attention_heads=5,
    num_key_value_heads=1, max_position_embeddings=32, attn_implementation="eager",
    attention_bias=True,
)  # fmt: skip
GPT2 = GPT2Config(
    vocab_size=16, n_embd=40, n_layer=1, n_head=5, n_positions=32, attn_implementation="eager"
)
ATTENTION = ("self_attn", "input_layernorm", "attn", "ln_1")
answers = {}


def model_of(config):
    torch.manual_seed(0)
    model = (LlamaForCausalLM if config is LLAMA else GPT2LMHeadModel)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm.weight" in name or "ln_1.weight" in name else 0.0
            parameter.copy_((centre + 0.2 * torch.randn_like(parameter)).to(torch.bfloat16))
    return model


def answer(name, model, width):
    module = next(m for n, m in model.named_modules() if n.endswith(("self_attn", "h.0.attn")))
    seen = []
    handle = module.register_forward_hook(lambda _, args, made: seen.append(made[0]))
    x = torch.randn(1, 6, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if width == 80:
            model(inputs_embeds=x)
        else:  # GPT-2 adds positions to what it is given
            places = next(m for n, m in model.named_modules() if n.endswith("wpe"))
            model(inputs_embeds=x - places(torch.arange(6))[None])
    handle.remove()
    answers[f"{name}.x"], answers[f"{name}.output"] = x[0].numpy(), seen[0][0].numpy()


def keep(name, tensors, config, **more):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    some = {n: t.contiguous() for n, t in tensors.items() if set(n.split(".")) & {*ATTENTION}}
    save_file(some, folder / "model.safetensors")
    said = {k: v for k, v in config.to_diff_dict().items() if k != "attn_implementation"}
    (folder / "config.json").write_text(
        json.dumps({**said, "model_type": config.model_type, **more})
    )


def projections(model):
    return {n: m for n, m in model.named_modules() if n.endswith("_proj") and "self_attn" in n}


def halves(model):
    return {n: t.to(torch.bfloat16) for n, t in model.state_dict().items()}


def compressed(name, strategy, compressor, type="float", **args):
    model = model_of(LLAMA)
    block = args.get("block_structure")
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(num_bits=8, type=type, strategy=strategy, symmetric=True, **args),
    )
    tensors = halves(model)
    most = 448.0 if type == "float" else 127.0
    for path, linear in projections(model).items():
        weight = linear.weight.detach()
        if block:
            rows, columns = (-(-n // side) for n, side in zip(weight.shape, block, strict=True))
            padded = torch.zeros(rows * block[0], columns * block[1])
            padded[: weight.shape[0], : weight.shape[1]] = weight
            scale = padded.reshape(rows, block[0], columns, block[1]).abs().amax((1, 3)) / most
        else:
            scale = weight.abs().amax(1, keepdim=True) / most
            scale = scale if strategy == "channel" else scale.max().reshape(1)
        made = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
        whole = compressor.decompress(made, scheme)["weight"]
        linear.weight.data = whole[: weight.shape[0], : weight.shape[1]].float()
        tensors[f"{path}.weight"] = made["weight"]
        tensors[f"{path}.weight_scale"] = scale
        if strategy == "tensor":
            tensors[f"{path}.input_scale"] = torch.ones(1)
    form = "float-quantized" if type == "float" else "int-quantized"
    weights = json.loads(scheme.weights.model_dump_json())
    said = {"quant_method": "compressed-tensors", "format": form,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}  # fmt: skip
    keep(name, tensors, LLAMA, quantization_config=said)
    answer(name, model, 80)


def int8():
    model = model_of(LLAMA)
    tensors = halves(model)
    for path, linear in projections(model).items():
        low = bitsandbytes.nn.Linear8bitLt(
            linear.in_features, linear.out_features, has_fp16_weights=False, bias=False
        )
        low.load_state_dict({"weight": linear.weight.detach().half()})
        low = low.to("cpu")
        for part, tensor in low.state_dict().items():
            tensors[f"{path}.{part}"] = tensor
        linear.weight.data = bitsandbytes.functional.int8_vectorwise_dequant(
            low.weight.data, low.weight.SCB
        ).float()
    keep("int8", tensors, LLAMA, quantization_config={"load_in_8bit": True})
    answer("int8", model, 80)


def adapter(name, config, **how):
    model = get_peft_model(model_of(config), LoraConfig(**how)).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    said = json.loads((folder / "adapter_config.json").read_text())
    said["base_model_name_or_path"] = "../base" if config is LLAMA else "../gpt2"
    (folder / "adapter_config.json").write_text(json.dumps(said, indent=1))
    answer(name, model, 80 if config is LLAMA else 40)


logging.disable(logging.WARNING)
compressed("fp8_block", "block", FloatQuantizationCompressor, block_structure=[48, 32])
compressed("fp8_channel", "channel", FloatQuantizationCompressor)
compressed("fp8_tensor", "tensor", FloatQuantizationCompressor)
compressed("int8_channel", "channel", IntQuantizationCompressor, type="int")
int8()
keep("base", halves(model_of(LLAMA)), LLAMA)
keep("gpt2", halves(model_of(GPT2)), GPT2)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj"]
adapter("lora", LLAMA, r=4, lora_alpha=12, target_modules=ALL,
        rank_pattern={"k_proj": 2}, alpha_pattern={"layers.0.self_attn.v_proj": 7})  # fmt: skip
adapter("rslora", LLAMA, r=3, lora_alpha=5, target_modules=ALL[:2], use_rslora=True, bias="all")
adapter("dora", LLAMA, r=2, lora_alpha=6, target_modules=ALL, use_dora=True)
adapter("saved", LLAMA, r=2, target_modules=ALL[1:], modules_to_save=["q_proj"])
adapter("conv1d", GPT2, r=3, lora_alpha=9, target_modules=["c_attn", "attn.c_proj"],
        fan_in_fan_out=True)  # fmt: skip
np.savez(HERE / "answers.npz", **answers)
