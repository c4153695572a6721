"""Images and recordings for a model, through the door, on tiny models made here."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from tests.support.families import build  # noqa: E402
from tests.support.model import tokenizer  # noqa: E402
from tests.support.program import Door, Ran  # noqa: E402

RATE = 16000
WHISPER = dict(feature_size=8, chunk_length=1, hop_length=1000, n_fft=1000, sampling_rate=RATE)
WAV2VEC = dict(return_attention_mask=True, sampling_rate=RATE)


def save(kind: str) -> Any:
    """A model of a kind in a folder of its name, with what makes its inputs."""
    model = build(kind)
    model.save_pretrained(kind)
    if kind in ("clip", "whisper"):
        tokenizer("right").save_pretrained(kind)
    if kind in ("vit", "clip"):
        size = {"height": 16, "width": 16}
        transformers.ViTImageProcessor(size=size).save_pretrained(kind)
    if kind == "whisper":
        transformers.WhisperFeatureExtractor(**WHISPER).save_pretrained(kind)
    if kind == "wav2vec2":
        transformers.Wav2Vec2FeatureExtractor(**WAV2VEC).save_pretrained(kind)
    return model


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def picture(path: str, mode: str = "RGB") -> Any:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(1).integers(0, 255, (40, 30, len(mode)), dtype=np.uint8)
    image.fromarray(pixels).save(path)
    return image.fromarray(pixels).convert("RGB")


def sound(
    path: str, count: int = 4000, *, rate: int = RATE, width: int = 2, channels: int = 1
) -> Any:
    """Write a recording of PCM; return its samples, (T, channels), full scale 1."""
    samples = np.random.default_rng(count).uniform(-0.9, 0.9, (count, channels))
    whole = np.round(samples * 2 ** (8 * width - 1)).astype("<i8")
    raw = (whole + (128 if width == 1 else 0)).reshape(-1, 1).view(np.uint8)[:, :width]
    with wave.open(path, "wb") as stream:
        stream.setnchannels(channels)
        stream.setsampwidth(width)
        stream.setframerate(rate)
        stream.writeframes(raw.tobytes())
    return samples


def weights(door: Door, *arguments: object) -> Any:
    ran = door("compute", *arguments, "--json", "--include", "weights")
    assert ran.code == 0, ran.err
    return np.array(ran.data["weights"], float)


def said(ran: Ran) -> str:
    return " ".join(ran.err.split())


# -- images -----------------------------------------------------------------------------------


def test_an_image_is_what_eager_attention_sees(door: Door) -> None:
    model, image = save("vit"), picture("a.png")
    made = transformers.AutoImageProcessor.from_pretrained("vit")(image, return_tensors="pt")
    with torch.no_grad():
        want = model(**made, output_attentions=True).attentions
    for layer in (0, 1):
        found = weights(door, "vit", "--image", "a.png", "--layer", layer)
        np.testing.assert_allclose(found, want[layer], atol=5e-6)
    np.save("pixels.npy", made["pixel_values"][0])
    same = weights(door, "vit", "--image", "pixels.npy", "--layer", "0")
    np.testing.assert_allclose(same, want[0], atol=5e-6)


def test_patches_are_called_by_row_and_column(door: Door) -> None:
    save("vit")
    picture("a.png")
    ran = door("compute", "vit", "--image", "a.png", "--layer", "0", "--head", "0", "--json")
    assert ran.code == 0, ran.err
    patches = [f"{row},{column}" for row in range(4) for column in range(4)]
    assert ran.data["tokens"] == ["[CLS]", *patches]
    ran = door("inspect", "vit", "--image", "a.png", "--image", "a.png", "--json")
    assert ran.code == 0 and ran.data["layers"][0]["shapes"]["query"] == [2, 4, 17, 8]


@pytest.mark.parametrize(
    ("kind", "before"),
    [("ijepa", []), ("dinov2", ["[CLS]"]), ("deit", ["[CLS]", "[DIST]"]),
     ("dinov3_vit", ["[CLS]"]), ("vit_mae", None)],
)  # fmt: skip
def test_what_stands_before_the_patches(door: Door, kind: str, before: list[str] | None) -> None:
    save(kind)
    np.save("pixels.npy", np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32))
    ran = door("compute", kind, "--image", "pixels.npy", "--layer", "0", "--json")
    assert ran.code == 0, ran.err
    assert "pixels.npy is taken as pixel_values" in json.dumps(ran.data["notes"])
    tokens = ran.data.get("tokens")
    assert tokens is None if before is None else tokens[:-16] == before  # MAE hides patches


def test_text_and_image_together_and_alone(door: Door) -> None:
    save("clip")
    picture("a.png")
    both = door("inspect", "clip", "--image", "a.png", "--text", "the cat", "--json")
    assert both.code == 0, both.err
    shapes = {one["layer"]: one["shapes"]["query"][2] for one in both.data["layers"]}
    assert sorted(shapes.values()) == [3, 3, 17, 17]
    for arguments, length in ((("--image", "a.png"), 17), (("--text", "the cat"), 3)):
        alone = door("inspect", "clip", *arguments, "--json")
        assert alone.code == 0, alone.err
        assert [one["shapes"]["query"][2] for one in alone.data["layers"]] == [length] * 2
        own = {(one["layer"], one["head"]): one["statistics"] for one in alone.data["heads"]}
        for one in both.data["heads"]:
            if (one["layer"], one["head"]) in own:
                told = own[one["layer"], one["head"]]
                assert told["entropy"] == one["statistics"]["entropy"]
    name = "vision_model.encoder.layers.0.self_attn"
    asked = ("clip", "--image", "a.png", "--text", "a " * 20, "--layer", name)
    ran = door("compute", *asked, "--json")
    assert ran.code == 0 and ran.data["tokens"][1] == "0,0"  # not the words of the longer text


def test_several_texts_for_one_image(door: Door) -> None:
    save("clip")
    picture("a.png")
    texts = ("--text", "a cat", "--text", "a dog")
    ran = door("inspect", "clip", "--image", "a.png", *texts)
    assert ran.code == 0, ran.err


def test_what_is_not_read_of_an_image_is_said(door: Door) -> None:
    save("vit")
    picture("a.png", "RGBA")
    ran = door("inspect", "vit", "--image", "a.png")
    assert ran.code == 0 and "a.png: its transparency is not read" in said(ran)


# -- sounds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_a_recording_is_what_eager_attention_hears(door: Door, width: int) -> None:
    model, samples = save("wav2vec2"), sound("a.wav", width=width)
    whole = (samples[:, 0] * 2 ** (8 * width - 1)).round() / 2 ** (8 * width - 1)
    made = transformers.Wav2Vec2FeatureExtractor(**WAV2VEC)(
        whole.astype(np.float32), sampling_rate=RATE, return_tensors="pt"
    )
    with torch.no_grad():
        want = model(**made, output_attentions=True).attentions
    found = weights(door, "wav2vec2", "--audio", "a.wav", "--layer", "1")
    np.testing.assert_allclose(found, want[1], atol=5e-5 if width == 1 else 5e-6)


def test_the_shorter_one_of_a_batch_is_itself(door: Door) -> None:
    save("wav2vec2")
    sound("a.wav")
    sound("b.wav", 2000)
    asked = ("wav2vec2", "--audio", "a.wav", "--audio", "b.wav", "--layer", "0", "--json")
    ran = door("compute", *asked, "--batch", "1")
    assert ran.code == 0, ran.err
    assert ran.data["mask"] == "padding(399, 199)"
    alone = door("compute", "wav2vec2", "--audio", "b.wav", "--layer", "0", "--json").data
    for one, own in zip(ran.data["heads"], alone["heads"], strict=True):
        assert one["statistics"]["rows"] == own["statistics"]["rows"] == 199


def test_a_decoder_begins_or_writes_the_text(door: Door) -> None:
    model = save("whisper")
    sound("a.wav")
    ran = door("inspect", "whisper", "--audio", "a.wav", "--json")
    assert ran.code == 0, ran.err
    queries = {one["layer"]: one["shapes"]["query"][2] for one in ran.data["layers"]}
    assert queries["decoder.layers.0.self_attn"] == 1 and queries["encoder.layers.0.self_attn"] == 8
    with wave.open("a.wav") as stream:
        raw = np.frombuffer(stream.readframes(4000), "<i2") / np.float32(2**15)
    made = transformers.WhisperFeatureExtractor(**WHISPER)(
        raw, sampling_rate=RATE, return_tensors="pt"
    )
    ids = torch.tensor([[2, 1, 3]])  # the start token, <s> the; without the last one
    with torch.no_grad():
        want = model(**made, decoder_input_ids=ids, output_attentions=True)
    asked = ("whisper", "--audio", "a.wav", "--text", "the cat")
    for name, theirs in (
        ("encoder.layers.1.self_attn", want.encoder_attentions[1]),
        ("decoder.layers.1.self_attn", want.decoder_attentions[1]),
        ("decoder.layers.1.encoder_attn", want.cross_attentions[1]),
    ):
        np.testing.assert_allclose(weights(door, *asked, "--layer", name), theirs, atol=1e-5)


def test_features_and_samples_are_taken_as_they_are(door: Door) -> None:
    save("whisper")
    rng = np.random.default_rng(0)
    np.save("mel.npy", rng.normal(size=(8, 16)).astype(np.float32))
    np.save("samples.npy", rng.normal(size=4000).astype(np.float32))
    for name, words in (("mel", "as input_features"), ("samples", "as samples at 16,000 Hz")):
        ran = door("inspect", "whisper", "--audio", f"{name}.npy")
        assert ran.code == 0 and f"{name}.npy is taken {words}" in " ".join(ran.out.split())


def test_channels_are_averaged_and_it_is_said(door: Door) -> None:
    save("wav2vec2")
    samples = sound("two.wav", channels=2)
    ran = door("compute", "wav2vec2", "--audio", "two.wav", "--layer", "0", "--json")
    assert ran.code == 0 and "2 channels are averaged" in json.dumps(ran.data["warnings"])
    np.save("one.npy", samples.mean(1).astype(np.float32))
    found = weights(door, "wav2vec2", "--audio", "two.wav", "--layer", "0")
    same = weights(door, "wav2vec2", "--audio", "one.npy", "--layer", "0")
    np.testing.assert_allclose(found, same, atol=1e-4)


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("vit", "--text a", ("ViTModel takes no text", "it takes --image")),
        ("vit", "--ids px.npy", ("ViTModel takes no text",)),
        ("vit", "--audio a.wav", ("takes no audio",)),
        ("vit", "--image a.wav", ("a.wav is no image",)),
        ("vit", "--image no.png", ("no.png",)),
        ("vit", "--image flat.npy", ("float32 (4, 4)", "(3, H, W)")),
        ("vit", "--image px.npy --image small.npy", ("several shapes", "one shape")),
        ("vit", "--image small.npy", ("ViTModel does not run on pixel_values (1, 3, 8, 8)",)),
        ("bert", "--image a.png", ("BertModel takes no image", "it takes --text")),
        ("dinov2", "--image a.png", ("preprocessor_config.json", "as .npy")),
        ("wav2vec2", "--text a", ("takes no text", "it takes --audio")),
        ("wav2vec2", "--audio a.png", ("a.png is no WAV file", "ffmpeg -i a.png -ac 1")),
        ("wav2vec2", "--audio slow.wav", ("8,000 Hz", "16,000", "-ar 16000")),
        ("wav2vec2", "--audio none.wav", ("holds no samples",)),
        ("whisper", "--audio long.wav", ("lasts 2.5 s", "hears 1 s", "-t 1")),
        ("whisper", "--text a", ("needs audio", "add --audio FILE")),
        ("whisper", "--audio a.wav --text a --text the", ("differs in number",)),
    ],
)
def test_what_cannot_be_is_said(door: Door, kind: str, arguments: str, words: Any) -> None:
    save(kind)
    picture("a.png")
    sound("a.wav")
    sound("long.wav", 40000)
    sound("slow.wav", rate=8000)
    sound("none.wav", 0)
    rng = np.random.default_rng(0)
    for name, shape in (("px", (3, 16, 16)), ("small", (3, 8, 8)), ("flat", (4, 4))):
        np.save(f"{name}.npy", rng.normal(size=shape).astype(np.float32))
    ran = door("inspect", kind, *arguments.split())
    assert ran.code == 2 and "Traceback" not in ran.err, ran
    for word in words:
        assert word in said(ran)


def test_an_image_needs_pillow(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    save("vit")
    picture("a.png")
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    ran = door("inspect", "vit", "--image", "a.png")
    assert ran.code == 3 and "pip install pillow" in said(ran)


def test_a_model_without_attention_is_refused(door: Door) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic"
    )
    transformers.ResNetModel(config).save_pretrained("resnet")
    np.save("px.npy", np.zeros((3, 32, 32), np.float32))
    ran = door("inspect", "resnet", "--image", "px.npy")
    assert ran.code == 2 and "ResNetModel" in said(ran)
