"""GGUF: a model of transformers, written as llama.cpp's converters write it, is read as itself."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.errors import FileError, InputError
from attncli.files import read
from attncli.models.finding import every_layer, find_layers
from attncli.models.layer import Layer
from attncli.studies.layer import multihead

pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from tests.support import gguf_files, zoo  # noqa: E402

KINDS = [*gguf_files.ARCHS, "cohere!qk", "stablelm!qk", "falcon!grouped", "granitemoe!multiplier"]


def both(kind: str, tmp_path: Path, stored: str = "F32") -> tuple[list[Layer], list[Layer]]:
    """A model's layers out of its folder, which test_zoo holds to be right, and out of GGUF."""
    model = zoo.build(kind)
    if kind == "starcoder2":  # GGUF has no place for its window
        model.config.sliding_window = None
    if kind.startswith(("gemma2", "gemma3_text")):  # llama.cpp's: a key for it is not there
        model.config.query_pre_attn_scalar = model.config.head_dim
    path = str(tmp_path / "model.gguf")
    gguf_files.write(model, path, stored)
    folder = tempfile.mkdtemp(dir=tmp_path)
    model.save_pretrained(folder)
    return every_layer(folder)[0], every_layer(path)[0]


def told(layer: Layer) -> dict[str, Any]:
    names = "heads kv_heads head_dim value_dim scale softcap clip norm_after_rope"
    return {name: getattr(layer, name) for name in names.split()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_read_as_itself(kind: str, tmp_path: Path) -> None:
    theirs, ours = both(kind, tmp_path)
    theirs = [layer for layer in theirs if layer.kind == "self"]
    assert len(ours) == len(theirs)
    if kind == "apertus" and ours[0].lacks:  # GGUF has a factor a pair of channels for it
        pytest.skip(ours[0].lacks[0].what)
    for one, other in zip(ours, theirs, strict=True):
        assert told(one) == pytest.approx(told(other)) and one.mask == other.mask
        assert one.lacks == other.lacks == ()
        x = np.random.default_rng(0).normal(size=(2, 9, one.model_dim))
        made, truth = (multihead(x, layer) for layer in (one, other))
        for name in ("query", "key", "value"):
            np.testing.assert_allclose(
                getattr(made.attention.problem, name), getattr(truth.attention.problem, name),
                rtol=1e-6, atol=1e-6,
            )  # fmt: skip
        np.testing.assert_allclose(made.output, truth.output, rtol=1e-6, atol=1e-6)


YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
ROPES = {
    "llama": YARN | {"beta_fast": 16.0, "attention_factor": 1.3},
    "qwen2": YARN,
    "gemma3_text": {
        "full_attention": LINEAR,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}


@pytest.mark.parametrize("kind", ROPES)
def test_scaled_rope(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.VARIANTS, f"{kind}!rope", {"rope_parameters": ROPES[kind]})  # type: ignore[attr-defined]
    test_a_model_is_read_as_itself(f"{kind}!rope", tmp_path)


WIDE = dict(
    hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_hidden_layers=2,
    query_pre_attn_scalar=32,
)  # fmt: skip
WIDER = {"llama": WIDE, "qwen2": WIDE, "gemma2": WIDE, "gpt2": dict(n_embd=64, n_head=4, n_layer=2)}


@pytest.mark.parametrize("stored", ["F16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("kind", WIDER)
def test_layers_are_those_of_transformers_with_the_dequantised_weights(
    kind: str, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setitem(zoo.VARIANTS, f"{kind}!wide", WIDER[kind])  # type: ignore[arg-type]
    model = zoo.build(f"{kind}!wide")
    path = str(tmp_path / "model.gguf")
    gguf_files.write(model, path, stored)
    seen: list[Any] = []
    number = gguf.GGMLQuantizationType[stored]
    with torch.no_grad():
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if weight is not None and weight.ndim == 2 and "attn." in name:
                turned = weight.T if kind == "gpt2" else weight
                blocks = gguf.quants.quantize(np.ascontiguousarray(turned.numpy()), number)
                whole = torch.from_numpy(gguf.quants.dequantize(blocks, number))
                weight.copy_(whole.T if kind == "gpt2" else whole)
            if name.endswith(("self_attn", ".attn")):
                module.register_forward_hook(lambda _, args, made: seen.append(made[0].numpy()))
        ids = torch.randint(4, 60, (2, 9))
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    layers = every_layer(path)[0]
    assert len(layers) == len(seen) == 2
    for layer, x, theirs in zip(layers, states, seen, strict=False):
        assert any("dequantised" in note for note in layer.notes) == (stored != "F16")
        ours, exact = (multihead(x.numpy().astype(d), layer).output for d in ("f4", "f8"))
        band = np.abs(ours - exact).max() + 2e-6 * np.abs(theirs).max()
        assert np.abs(exact - theirs).max() <= 2 * band


def written(path: Path, arch: str, *names: str, rows: int = 8, **keys: Any) -> str:
    """A file of one block with tensors of 8 columns."""
    writer = gguf.GGUFWriter(str(path), arch)
    for key, value in keys.items():
        writer.add_uint32(f"{arch}.{key.replace('__', '.')}", value)
    for name in names:
        writer.add_tensor(f"blk.0.{name}.weight", np.ones((rows, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


QKVO = ("attn_q", "attn_k", "attn_v", "attn_output")


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    bundle = read(written(tmp_path / "x.gguf", "qwen99", *QKVO, attention__head_count=2))
    with pytest.raises(InputError, match="architecture 'qwen99' is not in the table") as caught:
        find_layers(bundle)
    assert "qwen2" in str(caught.value.hint)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no None heads whose channels turn in pairs"):
        every_layer(written(tmp_path / "a.gguf", "llama", *QKVO))
    with pytest.raises(InputError, match="nothing says how many heads"):
        every_layer(written(tmp_path / "b.gguf", "qwen2", *QKVO))
    with pytest.raises(InputError, match=r"'blk\.0' has attn_q\.weight, attn_k\.weight but lacks"):
        every_layer(written(tmp_path / "c.gguf", "qwen2", *QKVO[:2], attention__head_count=2))
    with pytest.raises(InputError, match="no 3 heads whose channels"):
        every_layer(written(tmp_path / "d.gguf", "llama", *QKVO, attention__head_count=3))
    spare = written(tmp_path / "e.gguf", "qwen2", *QKVO, "attn_gate", attention__head_count=2)
    (layer,) = every_layer(spare)[0]
    assert [lack.what for lack in layer.lacks] == [
        "tensors beside it are not used: attn_gate.weight"
    ]


def test_a_config_that_is_given_comes_first(tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", "qwen2", *QKVO, attention__head_count=2)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')  # of another file
    assert every_layer(path)[0][0].heads == 2
    assert every_layer(path, config=str(tmp_path / "config.json"))[0][0].heads == 4


def test_parts_are_brought_by_the_first(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), "qwen2", split_max_tensors=2)
    writer.add_uint32("qwen2.attention.head_count", 2)
    for name in QKVO:
        writer.add_tensor(f"blk.0.{name}.weight", np.ones((8, 8), np.float32))
    writer.write_header_to_file(tmp_path / "x.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first, second = sorted(tmp_path.iterdir())
    assert every_layer(str(first))[0][0].heads == every_layer(str(tmp_path))[0][0].heads == 2
    with pytest.raises(InputError, match="a later part of a GGUF file"):
        every_layer(str(second))
    second.unlink()
    with pytest.raises(FileError, match="no such file"):
        every_layer(str(first))
