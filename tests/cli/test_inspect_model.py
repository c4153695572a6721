"""``attncli inspect FOLDER --text`` through the door, on a tiny model made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from attncli.studies.model import folder as folders  # noqa: E402
from tests.support.model import tokenizer, write_model  # noqa: E402
from tests.support.program import Door  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "llama")


def heads(door: Door, *arguments: object) -> dict[tuple[int, int], Any]:
    ran = door("inspect", *arguments, "--json")
    assert ran.code == 0, ran.err
    return {(one["layer_index"], one["head"]): one for one in json.loads(ran.out)["heads"]}


def test_every_head_of_every_layer_is_reported(door: Door, folder: Path) -> None:
    ran = door("inspect", folder, "--text", "the cat sat on the mat")
    assert ran.code == 0, ran.err
    assert "3 layers × 4 heads" in ran.out and "LlamaForCausalLM" in ran.out
    assert "layer 2" in ran.out and "entropy" in ran.out
    assert not ran.err


def test_the_numbers_are_those_of_eager_attention(door: Door, folder: Path) -> None:
    found = heads(door, folder, "--text", "the cat sat on the mat")
    model = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = tokenizer()("the cat sat on the mat", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions
    assert len(found) == 12
    for (layer, head), one in found.items():
        p = weights[layer][0, head, 1:].double().numpy()
        entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
        told = one["statistics"]["entropy"]
        assert told["median"] == pytest.approx(float(np.median(entropy)), rel=1e-4)
        assert told["max"] == pytest.approx(float(entropy.max()), rel=1e-4)


def test_a_padded_batch_is_its_sentences(door: Door, folder: Path) -> None:
    long, short = "the cat sat on the mat", "a dog sat"
    both = door("inspect", folder, "--text", long, "--text", short, "--batch", "0,1", "--json")
    assert both.code == 0, both.err
    told = json.loads(both.out)["heads"]
    for b, text in enumerate((long, short)):
        alone = heads(door, folder, "--text", text)
        for one in (one for one in told if one["batch"] == b):
            own = alone[one["layer_index"], one["head"]]["statistics"]
            assert one["statistics"]["rows"] == own["rows"] == len(text.split()) + 1
            for name in ("entropy", "max_weight"):
                assert one["statistics"][name]["median"] == pytest.approx(
                    own[name]["median"], rel=1e-4
                )


def test_text_of_a_file_and_ids_are_the_same(door: Door, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat\n")
    np.save(tmp_path / "ids.npy", [1, 3, 4, 5])
    typed = heads(door, folder, "--text", "@text.txt")
    ids = heads(door, folder, "--ids", "ids.npy")
    assert {at: one["statistics"]["entropy"] for at, one in typed.items()} == {
        at: one["statistics"]["entropy"] for at, one in ids.items()
    }


def test_layers_and_heads_are_selected(door: Door, folder: Path) -> None:
    text = ("--text", "the cat sat")
    assert {*heads(door, folder, *text, "--layer", "1:", "--head", "0")} == {(1, 0), (2, 0)}
    kept = heads(door, folder, *text, "--filter", "layer>1")
    assert {layer for layer, _ in kept} == {2}


def edited(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    found = json.loads(path.read_text()) | config
    path.write_text(json.dumps({name: one for name, one in found.items() if one is not None}))


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()


@pytest.mark.parametrize(
    ("arguments", "change", "words"),
    [
        (("--text", "  "), None, ("empty", "some words")),
        (("--text", "cat " * 16), None, ("17 tokens", "16 positions")),
        (("--text", "cat"), without_tokenizer, ("no tokenizer", "--ids")),
        (("--text", "@missing.txt"), None, ("missing.txt",)),
        (("--ids", "far.npy"), None, ("ids hold 99", "tokens 0 to 13")),
        (("--text", "a", "--ids", "far.npy"), None, ("--text and --ids",)),
        (("--text", "a", "--causal"), None, ("--causal has no use",)),
        (
            ("--text", "a"),
            lambda f: edited(f, model_type="own", auto_map={"AutoModel": "own.Model"}),
            ("code of its own", "never run"),
        ),
        (("--text", "a"), lambda f: edited(f, model_type="nobody"), ("'nobody'",)),
        (("--text", "a"), lambda f: (f / "model.safetensors").unlink(), ("holds no weights",)),
    ],
)
def test_what_cannot_be_is_said(
    door: Door, folder: Path, tmp_path: Path, arguments: Any, change: Any, words: Any
) -> None:
    np.save(tmp_path / "far.npy", [1, 99])
    if change:
        change(folder)
    ran = door("inspect", folder, *arguments)
    assert ran.code == 2
    for word in words:
        assert word in " ".join(ran.err.split()), ran.err
    assert "Traceback" not in ran.err


def test_nothing_is_downloaded(door: Door) -> None:
    ran = door("inspect", "somebody/no-such-model", "--text", "a")
    assert ran.code == 2
    assert "nothing is downloaded" in " ".join(ran.err.split())
    ran = door("inspect", "some-model", "--text", "a")
    assert ran.code == 2 and "OWNER/some-model" in ran.err and "hf download" not in ran.err
    ran = door("inspect", "./missing/folder", "--text", "a")
    assert ran.code == 2 and "there is no folder" in ran.err and "hf download" not in ran.err


@pytest.mark.parametrize(
    "way", [("--text", "the cat sat"), ("--ids", "5,6,7"), ("--probe", "repeat:4")]
)
def test_what_a_decoder_reads_is_said(door: Door, tmp_path: Path, way: Any) -> None:
    config = transformers.BartConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=20,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.BartModel(config).save_pretrained(tmp_path / "bart")
    tokenizer().save_pretrained(tmp_path / "bart")
    ran = door("inspect", tmp_path / "bart", *way)
    assert ran.code == 0, ran.err
    assert "its decoder reads the same tokens" in " ".join(ran.out.split())
    ran = door("inspect", tmp_path / "bart", *way, "--layer", "encoder_attn")
    assert ran.code == 0 and "1 layer × 2 heads" in ran.out, ran.err


def test_the_hint_of_what_if_works(door: Door, folder: Path) -> None:
    ran = door("inspect", folder, "--text", "the cat sat", "--what-if", "scale=none")
    assert ran.code == 2 and "inspect capture.safetensors::NAME --what-if" in ran.err
    door("inspect", folder, "--text", "the cat sat", "-o", "capture.safetensors", "--quiet")
    ran = door("inspect", "capture.safetensors", "--what-if", "scale=none")
    assert ran.code == 2 and "FILE::NAME --what-if" in ran.err
    name = door("inspect", "capture.safetensors", "--format", "csv").out.splitlines()[1]
    ran = door("inspect", f"capture.safetensors::{name.split(',')[0]}", "--what-if", "scale=none")
    assert ran.code == 0 and "scale=none" in ran.out, ran.err


def test_a_model_that_does_not_ask_is_refused(door: Door, tmp_path: Path) -> None:
    config = transformers.GPTJConfig(
        vocab_size=14, n_positions=16, n_embd=32, n_layer=1, n_head=4, rotary_dim=4
    )
    transformers.GPTJForCausalLM(config).save_pretrained(tmp_path / "gptj")
    np.save(tmp_path / "ids.npy", [1, 2])
    ran = door("inspect", "gptj", "--ids", "ids.npy")
    assert ran.code == 2
    assert "GPTJForCausalLM cannot be captured" in " ".join(ran.err.split())


def test_too_large_says_how_large(
    door: Door, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(folders, "available_memory", lambda: size // 2 + 100)
    ran = door("inspect", folder, "--text", "the cat")
    assert ran.code == 2 and "--dtype bfloat16 needs" in " ".join(ran.err.split())
    ran = door("inspect", folder, "--text", "the cat", "--dtype", "bfloat16")
    assert ran.code == 0 and "bfloat16" in ran.out


def test_without_transformers_it_says_what_to_install(
    door: Door, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    ran = door("inspect", folder, "--text", "a")
    assert ran.code == 3 and "pip install 'attncli[hf]'" in " ".join(ran.err.split())


@pytest.mark.parametrize("kind", ["bert", "bart", "t5"])
def test_encoders_and_encoder_decoders(door: Door, tmp_path: Path, kind: str) -> None:
    from tests.support.families import FAMILIES

    config = transformers.AutoConfig.for_model(kind, **FAMILIES[kind])
    if kind == "t5":
        config.decoder_start_token_id = 0
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / kind)
    np.save(tmp_path / "ids.npy", [5, 6, 7, 8, 9])
    ran = door("inspect", kind, "--ids", "ids.npy", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert len(told["layers"]) == (2 if kind == "bert" else 6)


def test_lines_are_the_layers_that_are_asked_for(door: Door, folder: Path) -> None:
    ran = door("inspect", folder, "--text", "the cat sat", "--format", "ndjson", "--layer", "1:")
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [line["layer"] for line in lines] == [f"model.layers.{n}.self_attn" for n in (1, 2)]
    whole = heads(door, folder, "--text", "the cat sat")
    for line in lines:
        for one in line["heads"]:
            own = whole[one["layer_index"], one["head"]]
            assert one["statistics"]["entropy"] == own["statistics"]["entropy"]


def test_a_layer_that_is_not_there(door: Door, folder: Path) -> None:
    ran = door("inspect", folder, "--text", "the cat sat", "--layer", "7")
    assert ran.code == 2 and "--layer" in ran.err


def test_what_was_captured_is_read_again(door: Door, folder: Path) -> None:
    texts = ("--text", "the cat sat on the mat", "--text", "a dog sat")
    ran = door("inspect", folder, *texts, "-o", "capture.safetensors")
    assert ran.code == 0, ran.err
    before, after = heads(door, folder, *texts), heads(door, "capture.safetensors")
    assert before.keys() == after.keys()
    for at, one in before.items():
        for name in ("entropy", "max_weight", "first_key_mass"):
            told = after[at]["statistics"][name]
            assert told["median"] == pytest.approx(one["statistics"][name]["median"], rel=1e-4)
        assert after[at]["statistics"]["rows"] == one["statistics"]["rows"]
    ran = door("compute", "capture.safetensors", "--layer", "2", "--head", "1", "--batch", "0")
    assert ran.code == 0, ran.err
    assert "mat" in ran.out
