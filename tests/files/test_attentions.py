"""Which tensors of a file are attention weights, of which layers; views of BertViz."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.errors import FileError
from attncli.files.attentions import NAME, weights_in

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    e = np.exp(RNG.normal(size=shape))
    return e / e.sum(-1, keepdims=True)


W = weights(2, 3, 5, 5)


def layers_of(path: Path, said: bool = False) -> list[str]:
    return [*weights_in(files.read(str(path)), said)]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("attentions.{}", "attentions.{}"), ("layers.{}.attn_weights", "layers.{}"),
        ("cross_attentions.{}", "cross_attentions.{}"), ("encoder.{}.weights", "encoder.{}"),
        ("blocks.{}.attn.hook_pattern", "blocks.{}.attn"),
        ("attentions.0.{}", "attentions.0.{}"), ("model.Attention_Probs.{}", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".json"])
def test_layers_by_their_names(tmp_path: Path, name: str, layer: str | None, suffix: str) -> None:
    arrays = {name.format(n): (n + 1) / (n + 1) * W for n in (0, 3)}
    path = tmp_path / f"x{suffix}"
    files.write(str(path), {**arrays, "logits": np.ones((5, 7))})
    found = weights_in(files.read(str(path)))
    assert [*found] == [(layer or name).format(n) for n in (0, 3)]
    for one in found.values():
        assert [*one.tensors] == [NAME, "logits"]
        np.testing.assert_allclose(one.tensors[NAME], W)


def test_a_tensor_of_all_layers(tmp_path: Path) -> None:
    whole = weights(4, 1, 3, 5, 5)
    np.savez(tmp_path / "x.npz", attentions=whole)
    found = weights_in(files.read(str(tmp_path / "x.npz")))
    assert [*found] == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(found["2"].tensors[NAME], whole[2])
    np.save(tmp_path / "x.npy", whole)
    assert layers_of(tmp_path / "x.npy") == ["0", "1", "2", "3"]


@pytest.mark.parametrize("name", ["arr_{}", "layer{}", "layer_{}", "layers.{}", "{}"])
def test_numbered_and_no_more(tmp_path: Path, name: str) -> None:
    """As ``np.savez(FILE, *outputs.attentions)`` calls them."""
    path = tmp_path / "x.npz"
    np.savez(path, **{name.format(n): W for n in (0, 1)})
    assert layers_of(path) == layers_of(path, said=True) == ["0", "1"]
    np.savez(path, **{name.format(0): W, name.format(1): RNG.normal(size=(5, 5))})
    assert layers_of(path) == []
    np.savez(path, weights(4, 6))  # a table whose rows sum to 1
    assert layers_of(path) == []


def test_what_is_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for tensors in (
        {"weights": RNG.normal(size=(4, 4)), "bias": np.ones(3)},  # of anything
        {"query": W, "weights": W}, {"layers.0.q": W, "layers.0.attn_weights": W},
        {"a": W, "b": W}, {"router.weights": 2 * W},
    ):  # fmt: skip
        np.savez(path, **tensors)
        assert layers_of(path) == []
    for array in (RNG.normal(size=(5, 5)), weights(4, 6), np.ones(3)):
        np.save(tmp_path / "x.npy", array)
        assert layers_of(tmp_path / "x.npy") == []


def test_what_somebody_says(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=W, b=W)
    with pytest.raises(FileError, match="which are the weights"):
        layers_of(tmp_path / "x.npz", said=True)
    assert [*weights_in(files.read(f"{tmp_path}/x.npz::a"), said=True)] == [""]
    np.savez(tmp_path / "x.npz", query=W, attn_weights=W)
    assert layers_of(tmp_path / "x.npz", said=True) == [""]
    np.save(tmp_path / "x.npy", RNG.normal(size=(4, 6)))
    assert layers_of(tmp_path / "x.npy", said=True) == [""]


def test_what_torch_saves(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    some = tuple(torch.tensor(W) for _ in range(3))  # as many as query, key and value
    path = tmp_path / "x.pt"
    torch.save(some, path)
    assert layers_of(path) == ["0", "1", "2"]
    torch.save({"attentions": some, "tokens": list("abcde"), "loss": 0.5}, path)
    found = weights_in(files.read(str(path)))
    assert [*found] == ["attentions.0", "attentions.1", "attentions.2"]
    assert found["attentions.1"].options["tokens"] == list("abcde")
    torch.save(tuple((one[:, :, :1],) for one in some), path)  # of steps of generate()
    assert layers_of(path) == ["0.0", "1.0", "2.0"]
    torch.save((torch.zeros(3, 3), torch.ones(3, 3), torch.ones(3, 3)), path)
    assert layers_of(path) == []
    torch.save((None, None), path)
    assert layers_of(path) == []
    with pytest.raises(FileError) as error:
        layers_of(path, said=True)
    assert "eager" in str(error.value.hint)


# -- BertViz ----------------------------------------------------------------------------------


def view(parts: Any, **others: Any) -> dict[str, Any]:
    return {
        "attention": parts, "default_filter": "0", "root_div_id": "bertviz-1", "layer": None,
        "heads": [0], "include_layers": [0, 4], **others,
    }  # fmt: skip


def part(name: str | None, attn: np.ndarray, left: str, right: str) -> dict[str, Any]:
    texts = {"left_text": list(left), "right_text": list(right)}
    return {"name": name, "attn": attn.tolist(), **texts}


TEXT = "abcde"
VIEWS = {
    "one": (view([part(None, W, TEXT, TEXT)]), ["layers.0", "layers.4"]),
    "old": ({"attention": {"all": part(None, W, TEXT, TEXT)}}, ["layers.0", "layers.1"]),
    "two sentences": (
        view([part("All", W, TEXT, TEXT),
              part("Sentence A -> Sentence B", W[:, :, :3, 3:], "abc", "de")]),
        ["layers.0", "layers.4"],
    ),
    "encoder–decoder": (
        view([part("Encoder", W, TEXT, TEXT), part("Cross", W[:, :, :3], "xyz", TEXT)]),
        ["Encoder.0", "Encoder.4", "Cross.0", "Cross.4"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("suffix", [".json", ".html"])
def test_views_of_bertviz(tmp_path: Path, name: str, suffix: str) -> None:
    params, names = VIEWS[name]
    path = tmp_path / f"view{suffix}"
    text = json.dumps(params)
    if suffix == ".html":  # its own marker is replaced in the comment, too
        text = (
            '<script src="https://example.org/require.min.js"></script>\n<div id="vis"></div>\n'
            "<script>\nrequirejs(['d3'], function (d3) {\n"
            f"  const params = {text}; // HACK: {text} is a template marker\n}});\n</script>\n"
        )
    path.write_text(text)
    found = weights_in(files.read(str(path)))
    assert [*found] == names
    last = found[names[-1]]
    np.testing.assert_allclose(last.tensors[NAME], W[1][:, :3] if "Cross.4" in names else W[1])
    assert last.options["query_tokens"] == list("xyz" if "Cross.4" in names else TEXT)
    assert {*last.options} == {"query_tokens", "key_tokens"}
    assert [note for note in last.notes if "left out" in note] == (
        ["left out are parts of what is read: Sentence A -> Sentence B"]
        if name == "two sentences" else []
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html><body>nothing</body></html>", "without a view"),
        ("<script>params = {}; params = {}</script>", "with 2 views"),
        ("<script>const params = {attention: 1}</script>", "are no JSON"),
        ("<div>const params = {" + '"a":[' * 100_000, "are no JSON"),
        ('<script>const params = {"attention": [{"attn": [[1]], "left_text": ["a"]}]}', "shape"),
    ],
)
def test_html_that_is_no_view(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.html").write_text(text)
    with pytest.raises(FileError, match=message):
        files.read(str(tmp_path / "x.html"))
