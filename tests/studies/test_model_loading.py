"""What is not loaded, and why: code of the folder, quantised weights, models too big."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from attncli.errors import InputError, TooLarge, Unavailable  # noqa: E402
from attncli.studies.model import folder as folders  # noqa: E402
from attncli.studies.model import loading  # noqa: E402
from attncli.studies.model.media import Media, together  # noqa: E402
from tests.support.families import build  # noqa: E402
from tests.support.model import write_model  # noqa: E402
from tests.support.program import Door  # noqa: E402

COMMANDS = (("inspect",), ("compute", "--layer", "1"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "llama")


def edit(path: Path, **said: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


@pytest.mark.parametrize("kind", ["llama", "of its own"])
def test_code_of_a_folder_is_never_run(folder: Path, tmp_path: Path, kind: str) -> None:
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n")
    own = "own.Own"
    edit(folder / "config.json", model_type=kind,
         auto_map={"AutoConfig": own, "AutoModel": own, "AutoModelForCausalLM": own})  # fmt: skip
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [own, own]})
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"auto_map": {"AutoImageProcessor": own, "AutoFeatureExtractor": own}})
    )
    if kind == "llama":  # which transformers knows
        loaded = loading.load(str(folder))
        assert "never run" in loaded.warnings[0]
        assert type(loaded.model) is transformers.LlamaForCausalLM
    else:
        with pytest.raises(InputError, match="never run"):
            loading.load(str(folder))
    assert not ran.exists()


def test_preprocessors_with_code_of_their_own_are_not_run(tmp_path: Path) -> None:
    from attncli.studies.model import media

    folder, ran = tmp_path / "vit", tmp_path / "ran"
    build("vit").save_pretrained(folder)
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own: pass\n")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"auto_map": {"AutoImageProcessor": "own.Own"}, "image_processor_type": "Own"})
    )
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="does not say how to read images"):
        media.read_images(loading.load(str(folder)), [str(tmp_path / "a.png")])
    assert not ran.exists()


def test_quantised_weights_are_loaded_as_transformers_does_or_refused(folder: Path) -> None:
    edit(folder / "config.json", quantization_config={"quant_method": "nobody", "bits": 4})
    with pytest.raises(InputError, match="quantised by 'nobody'"):
        loading.load(str(folder))
    if transformers.utils.is_aqlm_available():
        pytest.skip("AQLM is installed")
    edit(folder / "config.json", quantization_config={"quant_method": "aqlm"})
    with pytest.raises(Unavailable, match=r"quantised \(aqlm\)"):
        loading.load(str(folder))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_hint_of_a_model_too_big_works(
    door: Door, folder: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (folder / "model.safetensors").stat().st_size
    asked = (*command, folder, "--text", "the cat")
    monkeypatch.setattr(folders, "available_memory", lambda: size // 2 + 100)
    ran = door(*asked)
    assert ran.code == 2 and "--dtype bfloat16 needs" in " ".join(ran.err.split())
    assert door(*asked, "--dtype", "bfloat16").code == 0
    monkeypatch.setattr(folders, "available_memory", lambda: size // 4)
    ran = door(*asked)
    assert ran.code == 2 and "bfloat16" not in ran.err  # it would not fit, either
    assert "attncli inspect without --text" in " ".join(ran.err.split())
    assert door("inspect", folder).code == 0


def test_too_large_is_said_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "available_memory", lambda: 10)
    monkeypatch.setattr(loading, "_class_of", None)
    with pytest.raises(TooLarge):
        loading.load(str(folder))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--text", ""), ("the text is empty",)),
        (("--text", "a", "--text", " "), ("the text number 2 is empty",)),
        (("--text", "cat " * 16), ("17 tokens", "16 positions")),
        (("--ids", "long.npy"), ("20 tokens", "16 positions")),
        (("--ids", "half.npy"), ("ids are float64",)),
    ],
)
def test_what_a_model_cannot_read(
    door: Door, folder: Path, tmp_path: Path, command: Any, arguments: Any, words: Any
) -> None:
    np.save(tmp_path / "long.npy", np.ones(20, int))
    np.save(tmp_path / "half.npy", [0.5, 1])
    ran = door(*command, folder, *arguments)
    assert ran.code == 2 and "Traceback" not in ran.err
    for word in words:
        assert word in " ".join(ran.err.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_without_transformers_and_without_a_tokenizer(
    door: Door, folder: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in folder.glob("token*"):
        path.unlink()
    ran = door(*command, folder, "--text", "a")
    assert ran.code == 2 and "--ids 5,9,2" in ran.err
    assert door(*command, folder, "--ids", "5,9,2").code == 0  # as the hint says
    np.save(tmp_path / "ids.npy", [1, 3, 4])
    assert door(*command, folder, "--ids", "ids.npy").code == 0
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    ran = door(*command, folder, "--ids", "ids.npy")
    assert ran.code == 3 and "pip install 'attncli[hf]'" in " ".join(ran.err.split())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_the_models_own(door: Door, folder: Path, dtype: str) -> None:
    ran = door("inspect", folder, "--text", "the cat sat on", "--dtype", dtype, "-o", "c.npz")
    assert ran.code == 0 and f"in {dtype}" in " ".join(ran.out.split())
    model = transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    loaded = loading.load(str(folder), dtype=dtype)
    given = loading.read_texts(loaded, ["the cat sat on"])
    with torch.no_grad():
        want = model.model(**given, output_attentions=True).attentions[0].double().numpy()
    asked = ("compute", folder, "--text", "the cat sat on", "--layer", "0", "--dtype", dtype)
    ran = door(*asked, "--json", "--include", "weights")
    assert ran.code == 0, ran.err
    step = 2 * np.finfo(np.float16).eps if dtype == "float16" else 2**-7
    np.testing.assert_allclose(np.array(ran.data["weights"], float), want, atol=2 * step)


def test_a_mistake_of_our_own_stays_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attncli.studies.model import interface
    from attncli.studies.model.capture import capture

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("ours")

    loaded = loading.load(str(folder))
    given = together(loaded, loading.read_texts(loaded, ["the cat"]), Media({}))
    monkeypatch.setattr(interface, "pose", broken)
    with pytest.raises(ValueError, match="ours"), capture(loaded.model):
        loading.run(loaded, given)


def test_a_folder_of_pickled_weights_runs_nothing(folder: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "ran"), "w")

    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="more than tensors"):
        loading.load(str(folder))
    assert not (tmp_path / "ran").exists()


def test_weights_that_cannot_be_read(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(InputError, match="transformers cannot load"):
        loading.load(str(folder))
