"""``attncli inspect FOLDER --probe`` through the door, on tiny models made here."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from attncli.errors import InputError  # noqa: E402
from attncli.reports.probe import SCORES  # noqa: E402
from attncli.studies.model import loading, probe  # noqa: E402
from tests.support.families import FAMILIES  # noqa: E402
from tests.support.model import WORDS, tokenizer, write_model  # noqa: E402
from tests.support.program import Door  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "llama")


def told(door: Door, *arguments: object) -> Any:
    ran = door("inspect", *arguments, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def strongest(head: Any) -> float:
    return max(head["statistics"][name]["mean"] for name in SCORES.values())


def test_random_tokens_twice_behind_the_first_one(folder: Path) -> None:
    loaded = loading.load(str(folder))
    ids = probe.read_probe(loaded, probe.parse("repeat:6"), seed=3)["input_ids"].numpy()
    assert ids.shape == (4, 13) and (ids[:, 0] == WORDS.index("<s>")).all()
    assert (ids[:, 1:7] == ids[:, 7:]).all()
    assert {*ids[:, 1:].ravel()} <= {*range(3, len(WORDS))}
    assert all(len({*row[1:7]}) == 6 for row in ids)
    assert len({tuple(row) for row in ids}) == 4
    again = probe.read_probe(loaded, probe.parse("repeat:6"), seed=3)["input_ids"].numpy()
    other = probe.read_probe(loaded, probe.parse("repeat:6"), seed=4)["input_ids"].numpy()
    assert (ids == again).all() and (ids != other).any()
    assert probe.parse("repeat") == probe.Probe(40, 4)


def test_the_strongest_scores_come_first(door: Door, folder: Path) -> None:
    found = told(door, folder, "--probe", "repeat:6", "--seed", "5")
    assert found["probe"] == {"name": "repeat", "length": 6, "sequences": 4, "seed": 5}
    scores = [strongest(head) for head in found["heads"]]
    assert len(scores) == 12 and scores == sorted(scores, reverse=True) and len({*scores}) > 6
    named = {
        what: {head["name"] for head in found["heads"]
               if any(role["role"] == what for role in head["roles"])}
        for what in SCORES
    }  # fmt: skip
    assert {w: {one["name"] for one in some} for w, some in found["detected"].items()} == named
    ran = door("inspect", folder, "--probe", "repeat:6", "--seed", "5")
    assert "induction mean" in ran.out and "layer 2" in ran.out
    assert "duplicate token" in ran.out and "4 × 6 random tokens twice (seed 5)" in ran.out
    ran = door("inspect", folder, "--probe", "repeat:6", "--seed", "5", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(ran.out)))
    assert [(int(r["layer_index"]), int(r["head"])) for r in rows] == [
        (head["layer_index"], head["head"]) for head in found["heads"]
    ]


def test_the_scores_are_those_of_eager_attention(door: Door, folder: Path) -> None:
    ids = probe.read_probe(loading.load(str(folder)), probe.parse("repeat:6"))["input_ids"]
    model = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        weights = model(ids, output_attentions=True).attentions
    second = np.arange(7, 13)
    for head in told(door, folder, "--probe", "repeat:6")["heads"]:
        p = weights[head["layer_index"]][:, head["head"]].double().numpy()
        for name, place in (("induction", second - 5), ("duplicate token", second - 6),
                            ("previous token of a repeat", second - 1)):  # fmt: skip
            mean = head["statistics"][SCORES[name]]["mean"]
            assert mean == pytest.approx(p[:, second, place].mean(), rel=1e-4)


def test_what_was_asked_goes_first(door: Door, folder: Path) -> None:
    found = told(door, folder, "--probe", "repeat:4", "--sort", "-entropy", "--layer", "1",
                 "--map", "duplicate_mass")  # fmt: skip
    medians = [head["statistics"]["entropy"]["median"] for head in found["heads"]]
    assert medians == sorted(medians) and {h["layer_index"] for h in found["heads"]} == {1}
    assert found["map"]["statistic"] == "duplicate_mass"
    assert all(one["name"].startswith("1.") for some in found["detected"].values() for one in some)


def test_each_sequence_by_itself(door: Door, folder: Path) -> None:
    each = told(door, folder, "--probe", "repeat:5", "--batch", "0:4", "--head", "1")["heads"]
    both = told(door, folder, "--probe", "repeat:5", "--head", "1")["heads"]
    for layer in range(3):
        own = [h["statistics"]["induction_mass"]["mean"] for h in each if h["layer_index"] == layer]
        (mean,) = (
            h["statistics"]["induction_mass"]["mean"] for h in both if h["layer_index"] == layer
        )
        assert len(own) == 4 and mean == pytest.approx(np.mean(own))


@pytest.mark.parametrize("kind", ["bert", "bart", "t5"])
def test_encoders_look_both_ways(door: Door, tmp_path: Path, kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind, **FAMILIES[kind])
    if kind == "t5":
        config.decoder_start_token_id = 0
    model = transformers.AutoModel.from_config(config)
    model.save_pretrained(tmp_path / kind)
    found = told(door, kind, "--probe", "repeat:8")
    read = probe.read_probe(loading.load(str(tmp_path / kind)), probe.parse("repeat:8"))
    length = read["input_ids"].shape[1]
    for head in found["heads"]:
        seen, layer = head["statistics"], head["layer"]
        cross = "encoder_attn" in layer or "EncDecAttention" in layer
        assert ("induction_mass" in seen) == (not cross)
    encoder = next(h for h in found["heads"] if not h["layer"].startswith("decoder"))["statistics"]
    assert encoder["rows"] == 4 * length
    assert encoder["duplicate_mass"]["mean"] > 0


def test_without_a_tokenizer_the_configuration_says_what_is_special(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()
    loaded = loading.load(str(folder))
    ids = probe.read_probe(loaded, probe.parse("repeat:7"))["input_ids"].numpy()
    config = loaded.model.config
    assert (ids[:, 0] == config.bos_token_id).all()
    assert not {config.bos_token_id, config.eos_token_id, config.pad_token_id} & {*ids[:, 1:].flat}


def test_a_token_of_the_beginning_that_the_model_has_not(folder: Path) -> None:
    """As GPT2Config(vocab_size=100) leaves it."""
    for path in folder.glob("token*"):
        path.unlink()
    loaded = loading.load(str(folder))
    loaded.model.config.bos_token_id = 50256
    ids = probe.read_probe(loaded, probe.parse("repeat:6"))["input_ids"].numpy()
    assert ids.shape[1] == 12 and (ids[:, :6] == ids[:, 6:]).all()


def test_tokens_that_read_alike_are_told_apart(folder: Path) -> None:
    """Decoded, 'Ġcat' and 'cat' are one word."""
    loaded = loading.load(str(folder))
    names = probe.words_of(loaded)(range(len(WORDS)))
    assert list(names) == WORDS
    bare = replace(loaded, tokenizer=None)
    assert list(probe.words_of(bare)([5, 6])) == ["5", "6"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("repeat",), ("16 positions", "--probe repeat:7")),
        (("repeat:8",), ("8 tokens twice", "--probe repeat:7")),
        (("repeat:1",), ("1 token", "at least 2")),
        (("repeat:x",), ("unknown --probe 'repeat:x'", "repeat:50")),
        (("repeat:",), ("unknown --probe",)),
        (("random",), ("unknown --probe 'random'", "expected repeat")),
        (("repeat:4", "--text", "the cat"), ("--text and --probe",)),
        (("repeat:4", "--ids", "ids.npy"), ("--ids and --probe",)),
        (("repeat:4", "--causal"), ("--causal has no use",)),
    ],
)
def test_what_cannot_be_is_said(door: Door, folder: Path, arguments: Any, words: Any) -> None:
    ran = door("inspect", folder, "--probe", *arguments)
    assert ran.code == 2 and "Traceback" not in ran.err
    for word in words:
        assert word in " ".join(ran.err.split()), ran.err


def test_the_hint_of_a_probe_that_is_too_long_works(door: Door, folder: Path) -> None:
    assert door("inspect", folder, "--probe", "repeat:7").code == 0


def test_few_tokens(folder: Path, tmp_path: Path) -> None:
    config = transformers.LlamaConfig.from_pretrained(folder, vocab_size=5, bos_token_id=1)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "few")
    tokenizer().save_pretrained(tmp_path / "few")
    with pytest.raises(InputError, match=r"2 tokens that are not special, too few .* 3 tokens"):
        probe.read_probe(loading.load(str(tmp_path / "few")), probe.parse("repeat:3"))


def test_a_model_that_reads_no_tokens(door: Door, tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    ran = door("inspect", "vit", "--probe", "repeat:4")
    assert ran.code == 2 and "ViTModel reads no tokens" in " ".join(ran.err.split())
