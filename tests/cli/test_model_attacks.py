"""Folders and texts that are not what a model needs: said in a line, never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from tests.support.model import write_model  # noqa: E402
from tests.support.program import Door  # noqa: E402

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "llama"))


def config(**members: Any) -> Change:
    """Change members of config.json."""
    return _edited("config.json", lambda found: found.update(members))


def tokens(change: Callable[[Any], object]) -> Change:
    """Change tokenizer.json."""
    return _edited("tokenizer.json", change)


def _edited(name: str, change: Callable[[Any], object]) -> Change:
    def edit(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        change(found)
        (folder / name).write_text(json.dumps(found))

    return edit


def weights(change: Callable[[dict[str, Any]], object]) -> Change:
    """Change the tensors of the model."""

    def edit(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        path = folder / "model.safetensors"
        found = load_file(path)
        change(found)
        save_file(found, path, {"format": "pt"})

    return edit


QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (config(model_type=None), ("names no model_type",)),
        (config(model_type=["llama"]), ("names no model_type",)),
        (config(quantization_config="x"), ("quantization_config", "no object")),
        (config(quantization_config={"quant_method": ["x"]}), ("quantised by",)),
        (config(num_key_value_heads=1), ("k_proj.weight", "(16, 32)", "(8, 32)")),
        (config(hidden_size="x"), ("'hidden_size'", "expected int")),
        (tokens(lambda t: t["model"].pop("vocab")), ("no tokenizer", "vocab", "--ids")),
        (tokens(lambda t: t["model"].update(type="Nobody")), ("no tokenizer", "--ids")),
        (tokens(lambda t: t["model"]["vocab"].update(cat=999)), ("999", "0 to 13")),
    ],
)
def test_a_folder_that_does_not_fit_says_where(
    door: Door, folder: Path, change: Change, words: tuple[str, ...]
) -> None:
    change(folder)
    for command in (("inspect", folder), ("compute", folder, "--layer", "0")):
        ran = door(*command, "--text", "the cat")
        said = " ".join(ran.err.split())
        assert ran.code == 2 and not ran.out
        assert all(word in said for word in words), said


def test_a_tokenizer_that_needs_a_package_is_not_available(
    door: Door, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise ImportError("\nLlamaTokenizer needs sentencepiece.\n")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lacking)
    ran = door("inspect", folder, "--text", "the cat")
    assert ran.code == 3 and "needs sentencepiece" in ran.err
    np.save("ids.npy", [1, 3, 4])
    assert door("inspect", folder, "--ids", "ids.npy").code == 0


@pytest.mark.parametrize("architectures", ["LlamaForCausalLM", [3], ["pipeline"], [], {"a": 1}])
def test_architectures_that_are_none_are_passed_over(
    door: Door, folder: Path, architectures: Any
) -> None:
    config(architectures=architectures)(folder)
    ran = door("inspect", folder, "--text", "the cat")
    assert ran.code == 0, ran.err
    own = "LlamaForCausalLM" if architectures == "LlamaForCausalLM" else "LlamaModel"
    assert own in ran.out


def test_the_attention_that_a_config_asks_for_need_not_be_there(door: Door, folder: Path) -> None:
    config(_attn_implementation="flash_attention_2")(folder)
    ran = door("inspect", folder, "--text", "the cat")
    assert ran.code == 0, ran.err


def test_weights_that_are_not_used_or_not_there_are_named(door: Door, folder: Path) -> None:
    def change(found: dict[str, Any]) -> None:
        found["model.adapter.weight"] = np.ones((2, 2), np.float32)
        del found[QUERY]

    weights(change)(folder)
    once, again = (door("inspect", folder, "--text", "the cat", "--json") for _ in range(2))
    warned = " ".join(once.data["warnings"])
    assert "has 1 tensor that LlamaForCausalLM does not use: model.adapter.weight" in warned
    assert f"lacks 1 weight of LlamaForCausalLM, random here: {QUERY}" in warned
    assert once.out == again.out


def test_texts_are_padded_without_a_token_for_it(door: Door, folder: Path) -> None:
    def bare(found: dict[str, Any]) -> None:
        for name in [name for name in found if name.endswith("_token")]:
            del found[name]

    texts = ("--text", "the cat sat", "--text", "a", "--batch", "1", "--json")
    whole = door("inspect", folder, *texts)
    _edited("tokenizer_config.json", bare)(folder)
    ran = door("inspect", folder, *texts)
    assert ran.code == 0, ran.err
    rows = [[one["statistics"]["rows"] for one in r.data["heads"]] for r in (whole, ran)]
    assert rows[0] == rows[1] == [2] * 12


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        (np.array([True, False, True]), "ids are bool (3,)"),
        (np.array([1j, 2]), "ids are complex128 (2,)"),
        (np.array([np.inf, 1]), "ids hold inf"),
        (np.array([2**63 + 1, 1], np.uint64), "ids hold 9223372036854775808"),
        (np.array([1.5, 1]), "ids are float64 (2,)"),
    ],
)
def test_ids_that_are_none(door: Door, folder: Path, ids: Any, found: str) -> None:
    np.save("ids.npy", ids)
    ran = door("inspect", folder, "--ids", "ids.npy")
    assert ran.code == 2 and found in ran.err


def test_a_device_that_is_not_there(door: Door, folder: Path) -> None:
    for command in (("inspect", folder), ("compute", folder, "--layer", "0")):
        ran = door(*command, "--text", "cat", "--device", "nonsense")
        assert ran.code == 2 and "unknown device 'nonsense'" in ran.err
        if not torch.cuda.is_available():
            ran = door(*command, "--text", "cat", "--device", "cuda")
            assert ran.code == 3 and "--device cpu" in ran.err


def test_hints_can_be_typed(door: Door, folder: Path) -> None:
    for command in (("compute", folder), ("compute", folder, "--layer", "0")):
        ran = door(*command)
        assert ran.code == 2
        typed = ran.err.split("attncli ")[1].strip()
        assert typed == f"compute {folder} --text 'the cat sat' --layer 0"
    assert door("compute", folder, "--text", "the cat sat", "--layer", "0").code == 0
    ran = door("inspect", "--text", "the cat")
    assert ran.code == 2 and "attncli inspect FOLDER --text" in ran.err
    ran = door("inspect", folder, "--text", "@cat")
    assert ran.code == 2 and "a text that begins with @" in ran.err


def test_a_layer_from_the_end(door: Door, folder: Path) -> None:
    last, third = (
        door("compute", folder, "--text", "the cat", "--layer", n, "--json") for n in (-1, 2)
    )
    assert last.code == 0, last.err
    assert last.out == third.out
    assert door("compute", folder, "--text", "the cat", "--layer", "-4").code == 2


def test_what_a_models_own_code_raises_is_said(
    door: Door, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("grid_thw")

    monkeypatch.setattr(transformers.models.llama.modeling_llama.LlamaMLP, "forward", broken)
    ran = door("inspect", folder, "--text", "the cat")
    assert ran.code == 2 and "does not run on input_ids (1, 3): 'grid_thw'" in ran.err


def test_a_capture_says_what_its_format_has_no_place_for(door: Door, folder: Path) -> None:
    read = ("inspect", folder, "--text", "the cat sat on the mat")
    whole = door(*read, "-o", "whole.safetensors", "--quiet")
    assert whole.code == 0 and "warning" not in whole.err
    for format in ("table", "ndjson"):
        ran = door(*read, "-o", "bare.npz", "--quiet", "--format", format)
        said = " ".join(ran.err.split())
        assert ran.code == 0 and "bare.npz holds no options, nor tokens: read it with" in said
    flags = ran.err.split("read it with ")[1].splitlines()[0].split()
    there, bare, typed = (
        [
            {name: one["statistics"][name] for name in ("entropy", "max_weight")}
            for one in door("inspect", *arguments, "--json").data["heads"]
        ]
        for arguments in (("whole.safetensors",), ("bare.npz",), ("bare.npz", *flags))
    )
    assert there == typed != bare


def test_a_change_that_nan_hides_fails(door: Door, folder: Path) -> None:
    def change(found: dict[str, Any]) -> None:
        found[QUERY] = found[QUERY].copy()
        found[QUERY][0, 0] = np.nan

    same = ("inspect", folder, "--compare", folder, "--text", "the cat", "--fail-on", "change=0.1")
    assert door(*same).code == 0
    weights(change)(folder)
    ran = door(*same)
    said = " ".join(ran.out.split())
    assert ran.code == 1 and "heads cannot be compared, for NaN" in said
    assert "these statistics did: change" not in said


def test_files_that_differ_by_suffix_have_names_of_their_own(door: Door, folder: Path) -> None:
    for suffix in ("safetensors", "json"):
        door("inspect", folder, "--text", "the cat", "-o", f"a.{suffix}", "--quiet")
    names = [
        one["layer"] for one in door("inspect", "a.json", "a.safetensors", "--json").data["heads"]
    ]
    assert len({*names}) == 6 and not any("call" in name for name in names)


@pytest.mark.parametrize(("kind", "ahead"), [("splinter", True), ("paligemma", False)])
def test_no_mask_is_what_eager_attention_means_by_it(
    door: Door, tmp_path: Path, kind: str, ahead: bool
) -> None:
    """Splinter sees both ways and has no is_causal; PaliGemma's is False, and its mask causal."""
    from tests.support import zoo

    zoo.build(kind).save_pretrained(tmp_path / kind)
    np.save(tmp_path / "ids.npy", ids := np.array([[5, 6, 7, 8, 9, 5, 6]]))
    ran = door("inspect", kind, "--ids", "ids.npy", "--json")
    assert ran.code == 0, ran.err
    model = transformers.AutoModel.from_pretrained(
        tmp_path / kind, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        weights = model(input_ids=torch.tensor(ids), output_attentions=True).attentions
    assert any(one.triu(1).any() for one in weights) == ahead
    layers = sorted({one["layer_index"] for one in ran.data["heads"]})  # others see images
    for one in ran.data["heads"]:
        p = weights[layers.index(one["layer_index"])][0, one["head"]].double().numpy()
        entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
        entropy = entropy if ahead else entropy[1:]  # its first row has no choice
        told = one["statistics"]["entropy"]
        assert told["max"] == pytest.approx(entropy.max(), rel=1e-4)
        assert told["mean"] == pytest.approx(entropy.mean(), rel=1e-4)
