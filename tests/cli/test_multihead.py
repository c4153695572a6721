"""``attncli multihead`` through its door: layers, overrides, bundles, lists."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import attncli as package
from attncli import files
from attncli.models import random
from attncli.studies import layer as studie_layer
from tests.support.layers import CONFIGS, LAYERS, checkpoint
from tests.support.program import ROOT, Door, array

RNG = np.random.default_rng(3)


# -- what it prints ---------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("case", CONFIGS)
def test_a_layer_of_a_checkpoint(door: Door, tmp_path: Path, case: str, index: int) -> None:
    """Hidden states and weights to what transformers computed."""
    folder = checkpoint(tmp_path / "ckpt", case)
    np.save(tmp_path / "x.npy", LAYERS[f"{case}/{index}/hidden_in"])
    np.save(tmp_path / "padding.npy", LAYERS[f"{case}/key_padding"])
    told = ("multihead", "x.npy", "-w", folder, "--layer", index, "--key-padding-mask",
            "padding.npy", "--json", "--include", "output,heads,weights")  # fmt: skip
    ran = door(*told)
    real = LAYERS[f"{case}/key_padding"].astype(bool)
    for name, theirs in (("output", "out"), ("weights", "attn_weights")):
        ours, right = array(ran, name), LAYERS[f"{case}/{index}/{theirs}"]
        keep = np.broadcast_to(real[:, None, :, None] if ours.ndim == 4 else real[..., None],
                               ours.shape)  # fmt: skip
        np.testing.assert_allclose(ours[keep], right[keep], rtol=0, atol=2e-5)
    found = np.array([head["output"] for head in ran.data["heads"]], float)
    right = LAYERS[f"{case}/{index}/attn_out"]
    rows = np.broadcast_to(real[:, None, :, None], right.shape)
    np.testing.assert_allclose(found.reshape(right.shape)[rows], right[rows], rtol=0, atol=2e-5)
    assert ran.data["shapes"]["output"][:2] == [*real.shape]


def test_the_first_lines_say_what_was_recognised_and_assumed(door: Door, llama: Path) -> None:
    ran = door("multihead", "x.npy", "-w", llama, "--layer", 1, "--batch", 0)
    assert (ran.code, ran.err) == (0, "")
    text = ran.out.replace("\n", " ")
    assert text.startswith(
        "Llama self-attention, model.layers.1.self_attn (8 heads × 16, 2 for keys and values, from "
        "config.json) 20,480 parameters "
    )
    assert "scale 0.25 = 1/√16 · RoPE half, θ 10000 · mask causal · " in text
    assert re.search("mask causal · (fused|numpy) float32 ", text)
    for words in ("looks at", "norm share", "most alike", "How alike heads are", "Projected"):
        assert words in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    assert len(re.findall(r"^0/\d ", ran.out, re.MULTILINE)) == 8


def test_shares_and_likeness(door: Door, llama: Path) -> None:
    data = door("multihead", "x.npy", "-w", llama, "--layer", 0, "--json").data
    made = studie_layer.multihead(np.load(llama.parent / "x.npy"), str(llama), layer=0)
    norms = made.contributions
    share = (norms / norms.sum(1, keepdims=True)).mean(-1)
    heads = data["heads"]
    assert len(heads) == 2 * 8
    for one in heads:
        own = one["statistics"]
        assert own["output_share"] == pytest.approx(share[one["batch"], one["head"]], rel=1e-5)
        others = np.array(data["head_distances"][one["batch"]][one["head"]], float)
        others[one["head"]] = np.inf
        assert own["similar_head"] == others.argmin()
        assert own["head_similarity"] == pytest.approx(others.min())
        assert one["roles"]


def test_the_list(door: Door, llama: Path, tmp_path: Path) -> None:
    ran = door("multihead", "-w", llama, "--list")
    assert ran.code == 0
    assert "2 attention layers · Llama" in ran.out.replace("\n", " ")
    assert "scale 0.25 = 1/√16" in ran.out and "RoPE half, θ 10000" in ran.out
    rows = [line.split() for line in ran.out.splitlines() if "self_attn" in line]
    assert [row[:3] for row in rows] == [
        ["0", "model.layers.0.self_attn", "self"], ["1", "model.layers.1.self_attn", "self"]
    ]  # fmt: skip
    assert "8 × 16 (2 kv)" in ran.out
    data = door("multihead", "-w", llama, "--list", "--json").data
    one = data["layers"][1]
    assert (one["heads"], one["kv_heads"], one["head_dim"]) == (8, 2, 16)
    assert (one["packing"], one["causal"], one["parameters"]) == ("separate", True, 20480)
    table = door("multihead", "-w", llama, "--list", "--format", "csv").out.splitlines()
    assert len(table) == 3 and table[0].startswith("name,index,kind,family")


def test_the_list_says_what_it_skips(door: Door, tmp_path: Path) -> None:
    good = {f"a.0.attn.{n}_proj.weight": np.ones((8, 8), np.float32) for n in "qkvo"}
    bad = {f"a.1.attn.{n}_proj.weight": np.ones((8, 8), np.int8) for n in "qkvo"}
    save_file(good | bad, tmp_path / "mixed.safetensors")
    ran = door("multihead", "-w", "mixed.safetensors", "--heads", 2, "--list")
    assert ran.code == 0
    assert "1 attention layer cannot be read:" in ran.out
    assert "quantised weights are not supported" in ran.out
    assert door("multihead", "-w", "mixed.safetensors", "--heads", 2, "--list", "--json").data[
        "skipped"
    ]


def test_windows_and_differing_layers_are_columns(door: Door, tmp_path: Path) -> None:
    config = {"model_type": "gemma2", "sliding_window": 4, "query_pre_attn_scalar": 64,
              "attn_logit_softcapping": 50.0, "layer_types": ["sliding_attention",
              "full_attention"]}  # fmt: skip
    folder = checkpoint(tmp_path / "gemma", "tiny_llama_gqa", **config)
    ran = door("multihead", "-w", folder, "--list")
    assert "scale 0.125 = query_pre_attn_scalar 64" in ran.out.replace("\n", " ")
    assert "softcap 50" in ran.out and "causal & window(3, 0)" in ran.out


# -- other ways to see it ---------------------------------------------------------------------


def test_tokens_top_heatmap_and_selections(door: Door, llama: Path) -> None:
    words = " ".join(f"w{n}" for n in range(20))
    base = ("multihead", "x.npy", "-w", llama, "--layer", 0, "--tokens", words)
    top = door(*base, "--top", 2, "--head", 1, "--batch", 1, "--rows", "5")
    assert top.code == 0
    assert "Top 2 keys · batch 1 · head 1" in top.out
    assert re.search(r"^w5 +w\d", top.out, re.MULTILINE)
    shaded = door(*base, "--heatmap", "--head", 0, "--batch", 0)
    assert "Weights · batch 0 · head 0" in shaded.out and "Projected" not in shaded.out
    timed = door(*base, "--time", "--batch", 0)
    assert "GFLOP/s" in timed.out
    csv = door(*base, "--format", "csv").out.splitlines()
    assert csv[0].startswith("batch,head,entropy_mean") and csv[0].endswith("looks_at")
    assert len(csv) == 1 + 16
    rows = door(*base, "--format", "csv", "--include", "output").out.splitlines()
    assert len(rows) == 1 + 2 * 20 * 64 and rows[1].split(",")[2] == "w0"
    assert "\x1b[" in door(*base, "--color", "always").out
    assert "| head |" in door(*base, "--format", "markdown").out


def test_ndjson_answers_line_by_line(attncli: Door, tmp_path: Path) -> None:
    lines = [json.dumps({"x": RNG.normal(size=(3, 8)).tolist()}) for _ in range(2)]
    ran = attncli("multihead", "-", "--random-weights", 0, "--heads", 2, "--include", "output",
                  stdin="\n".join([lines[0], '{"x": [[1, 2]], "y": 1', lines[1]]))  # fmt: skip
    assert ran.code == 1
    assert [("output" in line, "error" in line) for line in ran.lines] == [
        (True, False), (False, True), (True, False)
    ]  # fmt: skip
    assert ran.lines[1]["command"] == "multihead"


# -- overrides reach the layer ----------------------------------------------------------------


def test_overrides_are_those_of_the_function(door: Door, llama: Path, tmp_path: Path) -> None:
    x = np.load(tmp_path / "x.npy")
    np.save(tmp_path / "positions.npy", np.arange(20) * 2)
    np.save(tmp_path / "memory.npy", x[:, :7])
    np.save(tmp_path / "x_first.npy", x.swapaxes(0, 1))
    cases: list[tuple[list[Any], dict[str, Any]]] = [
        (["--rope-theta", 500], {"rope": package.Rope(theta=500.0)}),
        (["--rope", "interleaved"], {"rope": "interleaved"}),
        (["--rope", "none"], {"rope": "none"}),
        (["--positions", "positions.npy"], {"positions": np.arange(20) * 2}),
        (["--memory", "memory.npy"], {"memory": x[:, :7]}),
        (["--memory", "memory.npy", "--memory-value", "memory.npy"],
         {"memory": x[:, :7], "memory_value": x[:, :7]}),
        (["--mask", "none"], {"mask": "none"}),
        (["--causal", "-m", "window(2, 0)"], {"mask": ["causal", "window(2, 0)"]}),
        (["--scale", "none"], {"scale": "none"}),
        (["--softcap", 3], {"softcap": 3.0}),
        (["--sink", 1], {"sink": 1.0}),
        (["--dtype", "float64"], {"dtype": "float64"}),
        (["--add-zero-attn"], {"add_zero_attn": True}),
        (["--backend", "reference"], {"backend": "reference"}),
        (["--heads", 4], {"heads": 4}),
        (["--arch", "mistral"], {"arch": "mistral"}),
    ]  # fmt: skip
    base = studie_layer.multihead(x, str(llama), layer=0).output
    for flags, arguments in cases:
        ran = door("multihead", "x.npy", "-w", llama, "--layer", 0, "--json", *flags, "--include",
                   "output")  # fmt: skip
        made = studie_layer.multihead(x, str(llama), layer=0, **arguments)
        np.testing.assert_allclose(array(ran, "output"), made.output, atol=1e-5, err_msg=str(flags))
        same = {"positions", "dtype", "backend", "arch"} & {*arguments}
        assert same or np.abs(made.output - base).max() > 1e-3, flags
    swapped = door("multihead", "x_first.npy", "--seq-first", "-w", llama, "--layer", 0, "--json",
                   "--include", "output")  # fmt: skip
    np.testing.assert_allclose(array(swapped, "output").swapaxes(0, 1), base, atol=1e-5)


def test_torch_s_engine_through_the_door(door: Door, llama: Path) -> None:
    pytest.importorskip("torch")
    told = ("multihead", "x.npy", "-w", llama, "--layer", 0, "--json", "--include", "output",
            "--dtype", "float64")  # fmt: skip
    ran = door(*told, "--backend", "torch", "--device", "cpu")
    assert ran.data["engine"]["backend"] == "torch"
    np.testing.assert_allclose(array(ran, "output"), array(door(*told), "output"), atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 8), (0, 3, 8), (1, 8), (1, 1, 8), (2, 0, 8)])
def test_little_and_nothing(door: Door, tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", np.ones(shape))
    for format in ("table", "json", "csv", "markdown"):
        ran = door("multihead", "x.npy", "--random-weights", 0, "--heads", 1, "--format", format)
        assert ran.code == 0 and "internal" not in ran.err, ran.err
    assert ran.out


def test_weights_come_from_a_pipe_too(attncli: Door, tmp_path: Path) -> None:
    weights = {n: RNG.normal(size=(4, 4)).tolist() for n in ("wq", "wk", "wv", "wo")}
    np.save(tmp_path / "x.npy", RNG.normal(size=(3, 4)))
    ran = attncli(
        "multihead", "x.npy", "-w", "-", "--heads", 2, "--json", stdin=json.dumps(weights)
    )
    made = studie_layer.multihead(np.load(tmp_path / "x.npy"), weights, heads=2)
    np.testing.assert_allclose(array(ran, "output"), made.output, atol=1e-12)


def test_what_the_file_says_holds_unless_a_flag_does(door: Door, tmp_path: Path) -> None:
    x = RNG.normal(size=(3, 8)).tolist()
    (tmp_path / "x.json").write_text(json.dumps({"x": x, "mask": "causal", "heads": 2, "scale": 1}))
    told = ("multihead", "x.json", "--random-weights", 4, "--json", "--include", "weights")
    own, flagged = door(*told), door(*told, "-m", "none", "--scale", "0", "--heads", 4)
    assert array(own, "weights").shape == (2, 3, 3) and array(own, "weights")[0, 0, 1] == 0
    assert own.data["scale"] == 1
    np.testing.assert_allclose(array(flagged, "weights"), np.full((4, 3, 3), 1 / 3))


def test_transformers_attention_mask_is_a_padding_mask(door: Door, tmp_path: Path) -> None:
    x = RNG.normal(size=(2, 3, 8))
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    np.savez(tmp_path / "both.npz", hidden_states=x, attention_mask=mask)
    told = ("multihead", "both.npz", "--random-weights", 0, "--heads", 2, "--json", "--include",
            "weights")  # fmt: skip
    ran = door(*told)
    assert (array(ran, "weights")[1, :, :, 2] == 0).all()
    assert "padding mask" in " ".join(ran.data["notes"])
    assert ran.data["mask"] == "padding(3, 2)"


def test_torch_s_masks_need_the_other_polarity(door: Door, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    save_file({n: t.detach().numpy() for n, t in layer.state_dict().items()},
              tmp_path / "mha.safetensors")  # fmt: skip
    x = RNG.normal(size=(1, 4, 8)).astype(np.float32)
    future = np.triu(np.ones((4, 4), bool), 1)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "future.npy", future)
    tensors = [torch.from_numpy(x)] * 3
    with torch.no_grad():
        theirs = layer(*tensors, attn_mask=torch.from_numpy(future))[0].numpy()
    ran = door("multihead", "x.npy", "-w", "mha.safetensors", "--heads", 2, "--attn-mask",
               "future.npy", "--mask-polarity", "ignore", "--json",
               "--include", "output")  # fmt: skip
    np.testing.assert_allclose(array(ran, "output"), theirs, atol=1e-6)
    kept = door("multihead", "x.npy", "-w", "mha.safetensors", "--heads", 2, "--attn-mask",
                "future.npy", "--json", "--include", "output")  # fmt: skip
    assert np.abs(array(kept, "output") - theirs).max() > 1e-3
    assert "in torch's own it hides" in " ".join(kept.data["notes"])
    assert "in torch's own it hides" not in " ".join(ran.data["notes"])


# -- without a checkpoint ---------------------------------------------------------------------


ENCODER, DECODER = (str(ROOT / "samples" / f"{name}.json") for name in ("encoder", "decoder"))


def test_the_three_attentions_of_a_translation(door: Door) -> None:
    """Encoder self-attention, decoder masked self-attention, decoder-to-encoder attention."""
    told = ("--heads", 2, "--json", "--include", "weights,output")
    encoder = door("multihead", ENCODER, "--random-weights", 0, *told)
    decoder = door("multihead", DECODER, "--random-weights", 1, "--causal", *told)
    cross = door("multihead", DECODER, "--memory", ENCODER, "--random-weights", 2, *told)
    assert encoder.data["tokens"] == ["I", "like", "you", "."]
    assert (np.triu(array(decoder, "weights"), 1) == 0).all()
    assert (np.triu(array(encoder, "weights"), 1) > 0).sum() == 2 * 6
    assert cross.data["query_tokens"] == ["<BOS>", "ich", "mag", "dich"]
    assert cross.data["key_tokens"] == ["I", "like", "you", "."]
    assert cross.data["layer"]["cross"] and not encoder.data["layer"]["cross"]
    assert "previous_mass" not in cross.data["heads"][0]["statistics"]
    for ran in (encoder, decoder, cross):
        assert ran.data["layer"]["parameters"] == 4 * 8 * 8
        np.testing.assert_allclose(array(ran, "weights").sum(-1), 1)
    x, memory = (files.read(path).tensors["x"] for path in (DECODER, ENCODER))
    made = package.multihead(x, random.random_weights(2, 8, 2), memory=memory)
    np.testing.assert_allclose(array(cross, "output"), made.output, atol=1e-12)


def test_parameters_are_counted(door: Door) -> None:
    text = door("multihead", ENCODER, "--random-weights", 0, "--heads", 2, "--head-dim", 3,
                "--kv-heads", 1).out  # fmt: skip
    rows = {line.split()[0]: line.split()[-1] for line in text.splitlines() if line[:2] == "W_"}
    assert rows == {"W_Q": "48", "W_K": "24", "W_V": "24", "W_O": "48"}
    assert "144 parameters" in text


def test_words_alone_are_enough(door: Door) -> None:
    told = ("multihead", "--random-weights", 3, "--model-dim", 8, "--heads", 2, "--tokens",
            "the cat the", "--json", "--include", "weights")  # fmt: skip
    ran = door(*told)
    weights = array(ran, "weights")
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])  # the same word, the same row
    assert "random normal vector for each word" in ran.data["notes"][0]


def test_the_function_stays_when_its_modules_are_loaded() -> None:
    import attncli.cli.multihead  # noqa: F401

    assert callable(package.multihead) and package.multihead is studie_layer.multihead


# -- odd input that has an answer -------------------------------------------------------------


def test_a_sequence_of_padding_alone_is_said(door: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.normal(size=(2, 3, 8)))
    np.save(tmp_path / "p.npy", np.array([[True] * 3, [False] * 3]))
    told = ("multihead", "x.npy", "--random-weights", 0, "--heads", 2)
    ran = door(*told, "--key-padding-mask", "p.npy")
    assert ran.code == 0
    assert ran.err.startswith("warning: 6 of 12 rows see no key: key_padding_mask hides every")
    assert "batch 1" in ran.err
    assert door(*told).err == ""


def test_the_title_of_the_map_of_a_batch_fits(door: Door, llama: Path) -> None:
    ran = door("multihead", "x.npy", "-w", llama, "--layer", 0)
    assert "mean of the batch" in ran.out and max(map(len, ran.out.splitlines())) <= 80


def test_a_config_that_contradicts_the_weights_loses(
    door: Door, llama: Path, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "other", num_key_value_heads=4)
    ran = door("multihead", "x.npy", "-w", folder, "--layer", 0, "--json")
    assert "config.json says num_key_value_heads 4, the weights 2" in " ".join(ran.data["notes"])
    assert "the weights won" in " ".join(ran.data["notes"])
    right = studie_layer.multihead(np.load(tmp_path / "x.npy"), str(llama), layer=0)
    np.testing.assert_allclose(array(ran, "output"), right.output, atol=1e-5)
