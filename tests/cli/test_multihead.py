"""``attncli multihead`` through its door: layers, overrides, bundles, lists, and all bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import attncli as package
from attncli import files
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.models import random
from attncli.studies import bundle
from attncli.studies import layer as studie_layer
from tests.conftest import ROOT, Ran
from tests.studies.test_layer import GPT2, LAYERS, LLAMA, saved

Door = Callable[..., Ran]

CONFIGS: dict[str, dict[str, Any]] = {"tiny_gpt2": GPT2, "tiny_llama_gqa": LLAMA}
RNG = np.random.default_rng(3)


def checkpoint(folder: Path, case: str = "tiny_llama_gqa", **config: Any) -> Path:
    """A folder as people have it: model.safetensors and config.json."""
    folder.mkdir(exist_ok=True)
    save_file(saved(case), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIGS[case] | config))
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", LAYERS["tiny_llama_gqa/0/hidden_in"])
    np.save(tmp_path / "padding.npy", LAYERS["tiny_llama_gqa/key_padding"])
    return checkpoint(tmp_path / "llama")


def array(ran: Ran, name: str) -> Any:
    assert ran.code == 0, ran.err
    return np.array(ran.data[name], float)


def put(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


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
    assert "scale 0.25 = 1/√16 · RoPE half, θ 10000 · mask causal · numpy float32" in text
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


# -- what is written is what compute and inspect read -----------------------------------------

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


def test_a_mask_goes_along_as_text_where_text_says_it() -> None:
    """And as a tensor only where it does not."""
    q = RNG.normal(size=(1, 2, 4, 3))

    def carried(*masks: Any, **more: Any) -> tuple[dict[str, Any], set[str]]:
        posed = pose(q, mask=masks, **more)
        found = bundle.carried(posed, ("query", "key"), past_apart=False)
        return dict(found.options), set(found.arrays)

    plain = {"scale": 1 / 3**0.5, "dtype": "float64"}
    assert carried() == (plain, set())
    said = masker("causal & window(2, 0) & alibi")
    assert carried(said) == (plain | {"mask": "causal & window(2, 0) & alibi"}, set())
    past = dict(key=q, past_key=q[:, :, :2], past_value=q[:, :, :2])
    assert carried(masker("causal"), **past) == (plain, {"attn_mask"})
    assert bundle.flags_of(plain | {"mask": "a & b", "kv_heads": 2}) == (
        f"--scale {1 / 3**0.5} --mask 'a & b' --kv-heads 2"
    )


def test_a_layer_s_output_goes_into_the_next(door: Door, llama: Path, tmp_path: Path) -> None:
    first = door("multihead", "x.npy", "-w", llama, "--layer", 0, "--json", "--include", "output")
    (tmp_path / "first.json").write_text(first.out)
    then = door("multihead", "first.json", "-w", llama, "--layer", 1, "--json")
    direct = studie_layer.multihead(np.array(first.data["output"]), str(llama), layer=1)
    np.testing.assert_allclose(array(then, "output"), direct.output, atol=1e-9)
    assert all("left out" in warning for warning in then.data["warnings"])


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
        np.testing.assert_allclose(array(ran, "output"), made.output, atol=1e-6, err_msg=str(flags))
        same = {"positions", "dtype", "backend", "arch"} & {*arguments}
        assert same or np.abs(made.output - base).max() > 1e-3, flags
    swapped = door("multihead", "x_first.npy", "--seq-first", "-w", llama, "--layer", 0, "--json",
                   "--include", "output")  # fmt: skip
    np.testing.assert_allclose(array(swapped, "output").swapaxes(0, 1), base, atol=1e-6)


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
    put(tmp_path / "both.npz", hidden_states=x, attention_mask=mask)
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


# -- bad input --------------------------------------------------------------------------------

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
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
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
             "float64, float32, float16 and bfloat16"]),
    "int8": ("wide.npy -w int8.safetensors", ["int8", "quantised weights are not supported"]),
    "GGUF": ("wide.npy -w model.gguf", ["a GGUF file", "readable are"]),
    "a pickle": ("wide.npy -w model.pkl", ["a Python pickle", "never loaded"]),
    "an adapter": ("wide.npy -w lora.safetensors", ["an adapter", "merge it"]),
    "latent attention": ("wide.npy -w latent.safetensors", ["latent attention"]),
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
    "no cross memory": ("wide.npy -w cross.safetensors --heads 2", ["give --memory"]),
}  # fmt: skip


def test_a_sequence_of_padding_alone_is_said(door: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.normal(size=(2, 3, 8)))
    np.save(tmp_path / "p.npy", np.array([[True] * 3, [False] * 3]))
    told = ("multihead", "x.npy", "--random-weights", 0, "--heads", 2)
    ran = door(*told, "--key-padding-mask", "p.npy")
    assert ran.code == 0
    assert ran.err.startswith("warning: 6 of 12 rows see no key: key_padding_mask hides every")
    assert "batch 1" in ran.err
    assert door(*told).err == ""


def test_an_unknown_family_is_no_llama(door: Door, llama: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "strange", model_type="xyzzy")
    ran = door("multihead", "x.npy", "-w", folder, "--layer", 0)
    assert ran.code == 0
    assert ran.out.startswith("unknown family (names like Llama's) self-attention")
    said = " ".join(ran.err.split())
    assert said.startswith("warning: model_type 'xyzzy' is not in the table")
    assert "--arch llama" in said
    listed = " ".join(door("multihead", "-w", folder, "--list").out.split())
    assert "'xyzzy' is not in the table" in listed
    data = door("multihead", "-w", folder, "--list", "--json").data
    assert "'xyzzy' is not in the table" in data["layers"][0]["notes"][0]
    assert door("multihead", "x.npy", "-w", folder, "--layer", 0, "--arch", "llama").err == ""


def test_the_title_of_the_map_of_a_batch_fits(door: Door, llama: Path) -> None:
    ran = door("multihead", "x.npy", "-w", llama, "--layer", 0)
    assert "mean of the batch" in ran.out and max(map(len, ran.out.splitlines())) <= 80


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_said(door: Door, wrong: Path, what: str) -> None:
    put(wrong / "two.npz", a=SQUARE, b=SQUARE)
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
    told = ("multihead", "wide.npy", "-w", folder, "--heads", 2)
    assert door(*told).code == 0
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    ran = door(*told)
    assert ran.code == 3 and "torch" in ran.err


def test_a_config_that_contradicts_the_weights_loses(
    door: Door, llama: Path, tmp_path: Path
) -> None:
    folder = checkpoint(tmp_path / "other", num_key_value_heads=4)
    ran = door("multihead", "x.npy", "-w", folder, "--layer", 0, "--json")
    assert "config.json says num_key_value_heads 4, the weights 2" in " ".join(ran.data["notes"])
    assert "the weights won" in " ".join(ran.data["notes"])
    right = studie_layer.multihead(np.load(tmp_path / "x.npy"), str(llama), layer=0)
    np.testing.assert_allclose(array(ran, "output"), right.output, atol=1e-6)


def test_errors_are_json_where_json_was_asked_for(door: Door, llama: Path) -> None:
    ran = door("multihead", "x.npy", "-w", llama, "--json")
    assert ran.code == 2
    assert ran.data["command"] == "multihead" and "--layer" in ran.data["error"]["hint"]


def test_files_hold_what_was_asked_for(door: Door, llama: Path, tmp_path: Path) -> None:
    names = "output,heads,concat,query,key,value,weights,lse,row_statistics"
    ran = door("multihead", "x.npy", "-w", llama, "--layer", 0, "-o", "all.safetensors",
               "--include", names)  # fmt: skip
    assert ran.code == 0 and "wrote all.safetensors" in ran.err
    found = load_file(tmp_path / "all.safetensors")
    made = studie_layer.multihead(np.load(tmp_path / "x.npy"), str(llama), layer=0)
    for name in ("output", "heads", "concat", "query", "key", "value"):
        np.testing.assert_array_equal(found[name], getattr(made, name), err_msg=name)
    assert found["weights"].shape == (2, 8, 20, 20) and found["lse"].shape == (2, 8, 20)
    assert found["row_statistics.entropy"].shape == (2, 8, 20)
