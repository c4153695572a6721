"""``attncli compute FOLDER --text --layer`` through the door, on tiny models made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from tests.support.families import FAMILIES  # noqa: E402
from tests.support.model import tokenizer, write_model  # noqa: E402
from tests.support.program import Door  # noqa: E402

TEXT = "the cat sat on the mat"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "llama")


def save(folder: Path, kind: str) -> Any:
    config = transformers.AutoConfig.for_model(kind, **FAMILIES[kind])
    if kind == "t5":
        config.decoder_start_token_id = 0
    model = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def weights(door: Door, *arguments: object) -> Any:
    ran = door("compute", *arguments, "--json", "--include", "weights")
    assert ran.code == 0, ran.err
    return np.array(ran.data["weights"], float)


@pytest.mark.parametrize("layer", ["1", "model.layers.1.self_attn"])
def test_a_layer_is_what_eager_attention_computes(door: Door, folder: Path, layer: str) -> None:
    found = weights(door, folder, "--text", TEXT, "--layer", layer)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        given = tokenizer()(TEXT, return_tensors="pt")["input_ids"]
        want = model(given, output_attentions=True).attentions[1]
    np.testing.assert_allclose(found, want, atol=2e-6)


def test_words_are_the_tokenizers(door: Door, folder: Path) -> None:
    ran = door("compute", folder, "--text", TEXT, "--layer", "0", "--head", "1")
    assert ran.code == 0, ran.err
    first = next(line for line in ran.out.splitlines() if line.startswith("Weights"))
    assert first.split()[-7:] == ["<s>", *TEXT.split()]
    ran = door("compute", folder, "--text", "cat", "--layer", "0", "--tokens", "one two", "--top=1")
    assert ran.code == 0 and "two" in ran.out and "cat" not in ran.out


def test_it_is_the_layer_of_a_capture(door: Door, folder: Path) -> None:
    texts = ("--text", TEXT, "--text", "a dog sat")
    assert door("inspect", folder, *texts, "-o", "capture.safetensors").code == 0
    for layer in "012":
        own = weights(door, folder, *texts, "--layer", layer)
        np.testing.assert_array_equal(own, weights(door, "capture.safetensors", "--layer", layer))


def test_it_is_judged_and_saved_as_any_problem(door: Door, folder: Path) -> None:
    asked = (folder, "--text", TEXT, "--layer", "2")
    names = ("--include", "query,key,value,output")
    assert door("compute", *asked, "-o", "out.safetensors", *names).code == 0
    assert door("compute", "out.safetensors", "--expect", "out.safetensors").code == 0
    ran = door("compute", *asked, "--expect", "out.safetensors")
    assert ran.code == 0 and "is right" in ran.out
    ran = door("compute", folder, "--text", TEXT, "--layer", "1", "--expect", "out.safetensors")
    assert ran.code == 1


def test_a_module_that_is_called_twice(door: Door, tmp_path: Path) -> None:
    model = save(tmp_path / "albert", "albert")
    np.save(tmp_path / "ids.npy", [5, 6, 7, 8])
    with torch.no_grad():
        want = model(torch.tensor([[5, 6, 7, 8]]), output_attentions=True).attentions
    for layer in range(3):
        found = weights(door, "albert", "--ids", "ids.npy", "--layer", layer)
        np.testing.assert_allclose(found, want[layer], atol=2e-6)
    ran = door("compute", "albert", "--ids", "ids.npy", "--layer", "3")
    assert ran.code == 2 and "no layer '3'" in ran.err


def test_cross_attention_has_words_on_both_sides(door: Door, tmp_path: Path) -> None:
    save(tmp_path / "t5", "t5")
    np.save(tmp_path / "ids.npy", [5, 6, 7])
    ran = door("compute", "t5", "--ids", "ids.npy")
    assert ran.code == 2 and "6 layers" in ran.err
    names = ran.err.split("one of ")[1].split(", ")
    cross = next(name for name in names if name.startswith("decoder.0") and "1.Enc" in name)
    found = weights(door, "t5", "--ids", "ids.npy", "--layer", cross.strip())
    assert found.shape == (1, 4, 3, 3) and (found > 0).all()  # not causal


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("3 layers", "--layer: one of 0, 1, 2")),
        (("--layer", "7"), ("no layer '7'", "0, 1, 2")),
        (("--layer", "0", "--causal"), ("--causal has no use", "-o capture.safetensors")),
        (("--layer", "0", "--scale", "1"), ("--scale has no use",)),
        (("--layer", "0", "--ids", "x.npy"), ("--text and --ids",)),
        (("--layer", "0", "--expect", "no.npy"), ("no.npy",)),
        (("--layer", "0", "--tokens", "a"), ("1 token", "length 3")),
        (("--layer", "0", "-o", "llama/model.safetensors"), ("would overwrite",)),
    ],
)
def test_what_cannot_be_is_said(door: Door, folder: Path, arguments: Any, words: Any) -> None:
    ran = door("compute", "llama", "--text", "the cat", *arguments)
    assert ran.code == 2 and "Traceback" not in ran.err
    for word in words:
        assert word in " ".join(ran.err.split()), ran.err


def test_the_hint_to_a_captured_problem_works(door: Door, folder: Path) -> None:
    assert door("inspect", folder, "--text", TEXT, "-o", "capture.safetensors").code == 0
    ran = door("compute", "capture.safetensors", "--layer", "0", "--scale", "1", "--mask", "none")
    assert ran.code == 0, ran.err


def test_a_model_is_named(door: Door) -> None:
    ran = door("compute", "--text", "the cat", "--layer", "0")
    assert ran.code == 2 and "compute FOLDER --text" in ran.err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_the_dtype_is_the_models(door: Door, folder: Path, dtype: str) -> None:
    asked = ("compute", folder, "--text", TEXT, "--layer", "2", "--dtype", dtype)
    ran = door(*asked, "--json", "--include", "output,query,key")
    assert ran.code == 0, ran.err
    assert f"transformers in {dtype}" in json.dumps(ran.data["notes"])
    assert ran.data["dtype"] == dtype
    plain = door("compute", folder, "--text", TEXT, "--layer", "2", "--json")
    ours, want = np.array(ran.data["output"]), np.array(plain.data["output"])
    error = np.abs(ours - want).max() / np.abs(want).max()
    assert 0 < error < {"bfloat16": 0.1, "float16": 0.02, "float64": 1e-5}[dtype]
