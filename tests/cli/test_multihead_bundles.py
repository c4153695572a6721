"""What ``attncli multihead`` writes is what compute and inspect read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attncli import files
from attncli.studies import layer as studie_layer
from tests.support.program import Door, array

RNG = np.random.default_rng(3)
OVERRIDES: dict[str, tuple[Any, ...]] = {
    "plain": (),
    "padding": ("--key-padding-mask", "padding.npy"),
    "none": ("-m", "none", "--scale", "0.3"),
    "capped, with a sink": ("--softcap", "5", "--sink", "0.5", "-m", "window(3, 0)"),
    "holes": ("--key-padding-mask", "holes.npy"),
    "a bias": ("--attn-mask", "bias.npy"),
    "an ignored mask": ("--attn-mask", "heads.npy", "--mask-polarity", "ignore", "-m", "none"),
    "zeros": ("--add-zero-attn",),
    "a cache": ("--past-key", "past.npy", "--past-value", "past.npy"),
    "lengths": ("--kv-lengths", "20,7", "--rope", "none"),
}


@pytest.mark.parametrize(
    ("what", "suffix"),
    [(what, "pipe") for what in OVERRIDES]
    + [(what, suffix) for what in ("padding", "capped, with a sink", "a bias", "a cache")
       for suffix in (".json", ".safetensors", ".npz")],
)  # fmt: skip
def test_a_bundle_gives_the_same_weights(
    door: Door, llama: Path, tmp_path: Path, what: str, suffix: str
) -> None:
    rng = np.random.default_rng(5)
    np.save(tmp_path / "holes.npy", (rng.random((2, 20)) < 0.8) | (np.arange(20) == 0))
    np.save(tmp_path / "bias.npy", rng.normal(size=(8, 20, 20)).astype(np.float32))
    ignored = rng.random((2, 8, 20, 20)) < 0.3
    ignored[..., 0] = False
    np.save(tmp_path / "heads.npy", ignored)
    np.save(tmp_path / "past.npy", rng.normal(size=(2, 2, 3, 16)).astype(np.float32))
    told = ("multihead", "x.npy", "-w", llama, "--layer", 0, *OVERRIDES[what])
    names = "query,key,value,weights"
    flags: list[str] = []
    if suffix == "pipe":
        ran = door(*told, "--json", "--include", names)
        weights = array(ran, "weights")
        (tmp_path / "bundle").write_text(ran.out)
    else:
        ran = door(*told, "-o", f"bundle{suffix}", "--include", names)
        weights = np.array(files.read(str(tmp_path / f"bundle{suffix}")).tensors["weights"])
        (tmp_path / f"bundle{suffix}").rename(tmp_path / "bundle")
        if suffix == ".npz":
            said = re.search(r"read it with (.*)", ran.err)
            assert said
            flags = re.findall(r"'[^']*'|\S+", said[1])
            flags = [flag.strip("'") for flag in flags]
    again = door("compute", "bundle", "--json", "--include", "weights", *flags)
    np.testing.assert_allclose(array(again, "weights"), weights, rtol=0, atol=3e-6)
    looked = door("inspect", "bundle", "--json", *flags)
    assert looked.code == 0, looked.err
    assert len(looked.data["heads"]) == 16


def test_a_bundle_of_a_layer_with_a_bias_by_distance(door: Door, tmp_path: Path) -> None:
    """T5's buckets are no expression: they go along as a tensor."""
    start = "encoder.block.0.layer.0.SelfAttention"
    weights = {f"{start}.{n}.weight": RNG.normal(size=(8, 8)) for n in "qkvo"}
    weights[f"{start}.relative_attention_bias.weight"] = RNG.normal(size=(32, 2))
    save_file(weights, tmp_path / "t5.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "t5", "num_heads": 2, "d_kv": 4}')
    np.save(tmp_path / "x.npy", RNG.normal(size=(1, 6, 8)))
    ran = door("multihead", "x.npy", "-w", "t5.safetensors", "--json", "--include",
               "query,key,value,weights")  # fmt: skip
    assert np.shape(ran.data["attn_mask"]) == (1, 2, 6, 6) and ran.data["mask"] is None
    (tmp_path / "bundle.json").write_text(ran.out)
    again = door("compute", "bundle.json", "--json", "--include", "weights")
    np.testing.assert_allclose(array(again, "weights"), array(ran, "weights"), atol=1e-12)


def test_a_layer_s_output_goes_into_the_next(door: Door, llama: Path, tmp_path: Path) -> None:
    first = door("multihead", "x.npy", "-w", llama, "--layer", 0, "--json", "--include", "output")
    (tmp_path / "first.json").write_text(first.out)
    then = door("multihead", "first.json", "-w", llama, "--layer", 1, "--json")
    direct = studie_layer.multihead(np.array(first.data["output"]), str(llama), layer=1)
    np.testing.assert_allclose(array(then, "output"), direct.output, atol=1e-9)
    assert all("left out" in warning for warning in then.data["warnings"])


def test_files_hold_what_was_asked_for(door: Door, llama: Path, tmp_path: Path) -> None:
    names = "output,heads,concat,query,key,value,weights,lse,row_statistics"
    ran = door("multihead", "x.npy", "-w", llama, "--layer", 0, "-o", "all.safetensors",
               "--include", names)  # fmt: skip
    assert ran.code == 0 and "wrote all.safetensors" in ran.err
    found = load_file(tmp_path / "all.safetensors")
    x, want = np.load(tmp_path / "x.npy"), ("output", "weights")
    made = studie_layer.multihead(x, str(llama), layer=0, want=want)
    for name in ("output", "heads", "concat", "query", "key", "value"):
        np.testing.assert_array_equal(found[name], getattr(made, name), err_msg=name)
    assert found["weights"].shape == (2, 8, 20, 20) and found["lse"].shape == (2, 8, 20)
    assert found["row_statistics.entropy"].shape == (2, 8, 20)
