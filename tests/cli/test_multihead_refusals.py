"""What ``attncli multihead`` refuses, and what it says then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.layers import checkpoint
from tests.support.program import Door

RNG = np.random.default_rng(3)
SQUARE = np.ones((8, 8), np.float32)


def llama_like(**more: Any) -> dict[str, Any]:
    return {f"h.0.self_attn.{n}_proj.weight": SQUARE for n in "qkvo"} | more


@pytest.fixture
def wrong(tmp_path: Path, llama: Path) -> Path:
    """A folder of weights that cannot be used, each for its own reason."""
    np.save(tmp_path / "wide.npy", RNG.normal(size=(3, 8)).astype(np.float32))
    checks: dict[str, dict[str, Any]] = {
        "nothing": {"embed.weight": SQUARE},
        "partial": {"a.self_attn.q_proj.weight": SQUARE, "a.self_attn.k_proj.weight": SQUARE},
        "gptq": {"a.q_proj.qweight": np.ones((8, 8), np.int32),
                 "a.q_proj.scales": SQUARE, "a.q_proj.g_idx": np.ones(8, np.int32)},
        "int8": {n: w.astype(np.int8) for n, w in llama_like().items()},
        "lora": {"a.q_proj.lora_A.weight": SQUARE},
        "latent": {"a.kv_a_proj_with_mqa.weight": SQUARE},
        "plain": llama_like(),
        "fused": {"h.0.attn.query_key_value.weight": np.ones((24, 8), np.float32),
                  "h.0.attn.dense.weight": SQUARE},
    }  # fmt: skip
    for name, tensors in checks.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    save_file(llama_like(), sharded / "model-00001-of-00002.safetensors")
    index = dict.fromkeys(llama_like(), "model-00001-of-00002.safetensors")
    index["h.1.self_attn.q_proj.weight"] = "model-00002-of-00002.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "model.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04\x95" + bytes(64))
    (tmp_path / "config.txt").write_text("[1]")
    (tmp_path / "empty").mkdir()
    return tmp_path


BAD: dict[str, tuple[str, list[str]]] = {
    "no weights": ("wide.npy", ["no --weights", "--random-weights 0"]),
    "no X": ("-w plain.safetensors --heads 2", ["no X", "to try it:"]),
    "both": ("wide.npy -w plain.safetensors --random-weights 1", ["both given"]),
    "a list of nothing": ("--list", ["--list needs --weights"]),
    "no layout": ("wide.npy -w nothing.safetensors", ["no attention layer that is known",
                  "recognised by"]),
    "the nearest layout": ("wide.npy -w partial.safetensors", ["the nearest", "v_proj.weight"]),
    "GPTQ": ("wide.npy -w gptq.safetensors", ["GPTQ or AWQ weights, which are not supported",
             "gptqmodel"]),
    "int8": ("wide.npy -w int8.safetensors", ["int8", "quantised weights are not supported"]),
    "GGUF": ("wide.npy -w model.gguf", ["architecture 'None'", "known are"]),
    "a pickle": ("wide.npy -w model.pkl", ["a Python pickle", "never loaded"]),
    "an adapter": ("wide.npy -w lora.safetensors", ["an adapter", "merge it"]),
    "half of latent attention": ("wide.npy -w latent.safetensors", ["lacks kv_b_proj.weight"]),
    "a missing shard": ("wide.npy -w sharded", ["the index names model-00002-of-00002.safetensors, "
                        "which is not there"]),
    "a tokens option of no word": ("--random-weights 0 --model-dim 8 --heads 2 --tokens=",
                                   ["--tokens names no word"]),
    "no mask and a mask": ("x.npy -w llama --layer 0 --mask none --causal",
                           ["--mask none and --causal contradict"]),
    "an empty folder": ("wide.npy -w empty", ["without model.safetensors"]),
    "no folder": ("wide.npy -w nowhere", ["no such file"]),
    "no head count": ("wide.npy -w plain.safetensors", ["nothing says how many heads",
                      "--heads H"]),
    "heads that do not divide": ("wide.npy -w plain.safetensors --heads 3", ["--heads 3 does not "
                                 "divide the 8 query rows"]),
    "other kv heads": ("x.npy -w llama --layer 0 --kv-heads 4", ["--kv-heads is 4"]),
    "several layers": ("x.npy -w llama", ["2 attention layers and none is chosen", "--layer"]),
    "no such layer": ("x.npy -w llama --layer 7", ["no attention layer '7'", "model.layers.0"]),
    "X of the wrong width": ("wide.npy -w llama --layer 0", ["x is 8 wide", "takes 64"]),
    "an unknown packing": ("wide.npy -w fused.safetensors --heads 2", ["fused", "--arch"]),
    "an unknown arch": ("wide.npy -w plain.safetensors --arch lama", ["unknown architecture",
                        "did you mean llama"]),
    "a config that is none": ("wide.npy -w plain.safetensors --config config.txt", ["no object"]),
    "a polarity of nothing": ("x.npy -w llama --layer 0 --mask-polarity ignore",
                              ["no mask tensor"]),
    "a mask of another shape": ("x.npy -w llama --layer 0 --attn-mask padding.npy",
                                ["attn_mask is (2, 20)", "--key-padding-mask"]),
    "a wrong mask": ("x.npy -w llama --layer 0 -m causall", ["did you mean 'causal'"]),
    "rope parts": ("x.npy -w llama --layer 0 --rope none --rope-theta 5", ["contradict"]),
    "unknown include": ("x.npy -w llama --layer 0 --include outptu", ["did you mean 'output'"]),
    "no head": ("x.npy -w llama --layer 0 --head 9", ["--head: 9 is out of range"]),
    "wrong tokens": ("x.npy -w llama --layer 0 --tokens one", ["1 token"]),
    "heads of nothing": ("wide.npy --random-weights 0", ["--heads"]),
    "a width that does not divide": ("wide.npy --random-weights 0 --heads 3", ["--head-dim"]),
    "a model of another width": ("wide.npy --random-weights 0 --heads 2 --model-dim 6",
                                 ["x is 8 wide", "takes 6"]),
    "a width without random": ("wide.npy -w plain.safetensors --model-dim 8", ["--model-dim"]),
    "a layer of random weights": ("wide.npy --random-weights 0 --heads 2 --layer 1", ["one layer"]),
    "no words": ("--random-weights 0 --heads 2", ["no X", "--tokens"]),
    "two tensors": ("two.npz --random-weights 0 --heads 2", ["hidden_states or x", "two.npz::a"]),
    "an unreadable memory": ("wide.npy --memory nowhere.npy --random-weights 0 --heads 2",
                             ["no such file"]),
    "csv of everything": ("x.npy -w llama --layer 0 --format csv --include heads,query",
                          ["one CSV table cannot hold heads, query"]),
    "an output over its input": ("x.npy -w llama --layer 0 -o x.npy", ["overwrite an input"]),
    "an output over its weights": ("wide.npy -w plain.safetensors --heads 2 -o plain.safetensors",
                                   ["overwrite an input"]),
    "no cross memory": ("wide.npy -w cross.safetensors --heads 2 --arch bart",
                        ["give --memory"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_said(door: Door, wrong: Path, what: str) -> None:
    np.savez(wrong / "two.npz", a=SQUARE, b=SQUARE)
    cross = {n.replace("self_attn", "encoder_attn"): w for n, w in llama_like().items()}
    save_file(cross, wrong / "cross.safetensors")
    arguments, fragments = BAD[what]
    ran = door("multihead", *arguments.split())
    assert (ran.code, ran.out) == (2, ""), ran.out
    said = " ".join(ran.err.split())
    for fragment in fragments:
        assert fragment in said, ran.err
    assert "Traceback" not in ran.err


def test_a_pytorch_file_needs_torch(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    folder = tmp_path / "pickled"
    folder.mkdir()
    torch.save({n: torch.from_numpy(w) for n, w in llama_like().items()},
               folder / "pytorch_model.bin")  # fmt: skip
    np.save(tmp_path / "wide.npy", RNG.normal(size=(3, 8)).astype(np.float32))
    told = ("multihead", "wide.npy", "-w", folder, "--heads", 2, "--arch", "llama")
    assert door(*told).code == 0
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    ran = door(*told)
    assert ran.code == 3 and "torch" in ran.err


def test_errors_are_json_where_json_was_asked_for(door: Door, llama: Path) -> None:
    ran = door("multihead", "x.npy", "-w", llama, "--json")
    assert ran.code == 2
    assert ran.data["command"] == "multihead" and "--layer" in ran.data["error"]["hint"]


def test_an_unknown_family_is_refused_and_still_shown(
    door: Door, llama: Path, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "strange", model_type="xyzzy")
    ran = door("multihead", "x.npy", "-w", folder, "--layer", 0)
    assert (ran.code, ran.out) == (2, "")
    said = " ".join(ran.err.split())
    assert "model_type 'xyzzy' is not in the table" in said and "--arch llama" in said
    assert door("multihead", "x.npy", "-w", folder, "--layer", 0, "--arch", "llama").err == ""
    listed = " ".join(door("multihead", "-w", folder, "--list").out.split())
    assert listed.startswith("2 attention layers · unknown family (names like Llama's)")
    assert "'xyzzy' is not in the table" in listed and "mask unknown, RoPE unknown" in listed
    data = door("multihead", "-w", folder, "--list", "--json").data
    assert "'xyzzy' is not in the table" in data["layers"][0]["not_computed"][0]
    assert door("inspect", folder).code == 0


def test_what_a_bundle_of_weights_says_besides_is_named(door: Door, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(8, 8)) for name in ("wq", "wk", "wv", "wo")}
    np.savez(tmp_path / "w.npz", **weights, num_heads=2, causal=True)
    np.save(tmp_path / "x8.npy", rng.normal(size=(3, 8)))
    ran = door("multihead", "x8.npy", "-w", "w.npz", "--heads", 2)
    assert ran.code == 0
    assert ran.err.startswith("warning: w.npz: 'num_heads', 'causal' are not read; say as options")
    np.savez(tmp_path / "plain.npz", **weights)
    assert door("multihead", "x8.npy", "-w", "plain.npz", "--heads", 2).err == ""
