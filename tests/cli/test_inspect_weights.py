"""``inspect`` of attention weights alone: files that people have, and what is said and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.attention.definition import stages
from attncli.attention.language import masker
from attncli.attention.pose import pose
from tests.support.program import Door

SHAPE = (1, 3, 6, 4)


def layer(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Query, key and value, and the causal weights ``(1, H, L, L)`` that they make."""
    rng = np.random.default_rng(seed)
    qkv = {name: 2 * rng.normal(size=SHAPE) for name in ("query", "key", "value")}
    p = pose(**qkv, mask=[masker("causal")])
    return qkv, np.stack([stages(p, 0, h)["weights"] for h in range(p.heads)])[None]


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    both = [layer(n) for n in range(3)]
    tensors = {f"layers.{n}.{k}": v for n, (qkv, _) in enumerate(both) for k, v in qkv.items()}
    np.savez(tmp_path / "qkv.npz", **tensors)
    np.savez(tmp_path / "w.npz", **{f"attentions.{n}": w for n, (_, w) in enumerate(both)})
    np.save(tmp_path / "one.npy", both[0][1][0])
    np.savez(tmp_path / "one_qkv.npz", **both[0][0])
    np.savetxt(tmp_path / "one.csv", both[0][1][0, 0], delimiter=",", fmt="%.6f")
    return tmp_path / "w.npz"


def assert_same(ours: Any, theirs: Any, rel: float = 1e-9) -> None:
    """All statistics of weights alone are those of the heads with query and key."""
    assert len(ours["heads"]) == len(theirs["heads"]) > 0
    for got, want in zip(ours["heads"], theirs["heads"], strict=True):
        assert {*want["statistics"]} - {*got["statistics"]} <= {*missing(ours)}
        assert not {*missing(ours)} & {*got["statistics"]}
        for name, value in got["statistics"].items():
            told = want["statistics"][name]
            if isinstance(value, dict):
                told, value = list(told.values()), list(value.values())
            assert value == pytest.approx(told, rel=rel, abs=1e-3 * rel), name
        assert [role["role"] for role in got["roles"]] == [role["role"] for role in want["roles"]]


def missing(data: Any) -> dict[str, str]:
    found: dict[str, str] = data["missing"] if "missing" in data else data["layers"][0]["missing"]
    return found


# -- one report, whatever the file ------------------------------------------------------------


def test_layers_in_one_report(door: Door, layers: Path) -> None:
    ran = door("inspect", layers, "--tokens", "a b c a b c")
    assert ran.code == 0 and ran.err == ""
    assert ran.out.startswith("3 layers × 3 heads, 6 tokens · attention weights alone")
    out = " ".join(ran.out.split())
    assert "the zeros look like the mask causal (--mask says another)" in out
    assert "not known is what needs the scores (logit_std_ratio, logit_max," in out
    assert "max logit" not in out and "‖dQ‖" not in out
    ours = door("inspect", layers, "--tokens", "a b c a b c", "--json").data
    asked = ("--causal", "--tokens", "a b c a b c", "--json")
    assert_same(ours, door("inspect", "qkv.npz", *asked).data)
    assert missing(ours)["logit_max"] == "the scores"
    assert missing(ours)["vanishing_share"] == "the gradients"
    assert ours["layers"][1]["shapes"] == {"weights": [1, 3, 6, 6]}
    assert ours["layers"][1]["scale"] is None and ours["grad_output"] is None


def test_one_layer_is_a_health_report(door: Door, layers: Path) -> None:
    ran = door("inspect", "one.npy")
    assert ran.code == 0 and ran.out.startswith("3 heads · ")
    assert "3 heads, 6 queries × 6 keys · attention weights alone · mask causal" in ran.out
    assert "Scale" not in ran.out and "width" not in ran.out
    ours = door("inspect", "one.npy", "--json").data
    assert_same(ours, door("inspect", "one_qkv.npz", "--causal", "--json").data)
    assert ours["shapes"] == {"weights": [3, 6, 6]} and ours["scale"] is None
    assert ours["scale_effect"] == [] and ours["scale_sentence"] is None
    assert not {"query", "key", "value", "sink"} & {*ours}


def test_a_matrix_in_csv(door: Door, layers: Path) -> None:
    ours = door("inspect", "one.csv", "--json").data
    theirs = door("inspect", "one_qkv.npz", "--causal", "--json").data
    got, want = (one["heads"][0]["statistics"]["entropy"] for one in (ours, theirs))
    assert got == pytest.approx(want, rel=1e-3)
    assert "look like attention weights" in ours["notes"][0]


def test_any_tensor_that_somebody_says_is_one(door: Door, layers: Path) -> None:
    weights = layer(0)[1]
    np.savez(layers.parent / "x.npz", mine=weights, other=np.ones(3))
    assert "2 tensors" in door("inspect", "x.npz").out
    ours = door("inspect", "--attention-weights", "x.npz::mine", "--json").data
    assert_same(ours, door("inspect", "one_qkv.npz", "--causal", "--json").data)
    ran = door("inspect", "--attention-weights", "x.npz")
    assert ran.code == 2 and "--attention-weights" not in ran.err and "x.npz::mine" in ran.err
    np.save(layers.parent / "all.npy", np.stack([layer(n)[1] for n in range(3)]))
    ours = door("inspect", "--attention-weights", "all.npy", "--json").data
    assert [head["name"] for head in ours["heads"]][-1] == "2.2"
    assert (
        ours["heads"][0]["statistics"]
        == door("inspect", layers, "--json").data["heads"][0]["statistics"]
    )


def test_files_folders_and_lines(door: Door, layers: Path) -> None:
    want = door("inspect", layers, "--json").data
    folder = layers.parent / "folder"
    folder.mkdir()
    for n in range(3):
        np.savez(folder / f"layer_{n}.npz", attn_weights=layer(n)[1])
    got = door("inspect", folder, "--json").data
    assert [h["statistics"] for h in got["heads"]] == [h["statistics"] for h in want["heads"]]
    lines = [json.dumps({"id": n, "weights": layer(n)[1].tolist()}) for n in range(3)]
    (layers.parent / "x.ndjson").write_text("\n".join(lines))
    each = door("inspect", "x.ndjson").lines
    assert [one["id"] for one in each] == [0, 1, 2]
    assert each[2]["heads"][1]["statistics"] == want["heads"][7]["statistics"]
    assert each[0]["missing"]["logit_max"] == "the scores"
    ran = door("inspect", "x.ndjson", "--format", "csv")
    assert len(ran.out.splitlines()) == 10
    ran = door("inspect", layers, "--format", "ndjson", "--layer", "1:")
    assert [one["layer"] for one in ran.lines] == ["attentions.1", "attentions.2"]
    mixed = door("inspect", layers, "one_qkv.npz", "--json").data
    assert [one["scale"] for one in mixed["layers"]] == [None, None, None, 0.5]
    assert "logit_max" in mixed["heads"][-1]["statistics"] and mixed["grad_output"] == "random:0"


def test_selections_maps_and_formats(door: Door, layers: Path) -> None:
    asked = ("--head", "0,2", "--sort", "entropy", "--map", "sink_mass", "--json")
    data = door("inspect", layers, *asked).data
    entropies = [head["statistics"]["entropy"]["median"] for head in data["heads"]]
    assert len(entropies) == 6 and entropies == sorted(entropies, reverse=True)
    assert data["map"]["statistic"] == "sink_mass" and data["map"]["labels"] == ["0", "1", "2"]
    ran = door("inspect", layers, "--format", "csv")
    header = ran.out.splitlines()[0].split(",")
    assert "entropy_median" in header and not any(name.startswith("logit") for name in header)
    assert "| 1.2 " in door("inspect", layers, "--format", "markdown", "--full").out
    data = door("inspect", layers, "--filter", "max_weight>0.9", "--json").data
    assert all(h["statistics"]["max_weight"]["median"] > 0.9 for h in data["heads"])
    assert door("inspect", layers, "--fail-on", "critical").code == 0


def test_statistics_of_every_row_are_saved(door: Door, layers: Path) -> None:
    ran = door("inspect", "one.npy", "-o", "rows.npz", "--quiet")
    assert ran.code == 0
    saved = np.load(layers.parent / "rows.npz")
    assert saved["row_statistics.entropy"].shape == (3, 6)
    assert not any("query" in name or "logit" in name for name in saved)


def test_what_compute_wrote_is_read(door: Door, layers: Path) -> None:
    """With query and key these count; weights alone are what they are."""
    asked = ("compute", "one_qkv.npz", "--causal", "--include")
    door(*asked, "weights", "-o", "only.json")
    want = door("inspect", "one_qkv.npz", "--causal", "--json").data
    assert_same(door("inspect", "only.json", "--json").data, want)
    assert door("inspect", "only.json", "--json").data["mask"] == "causal"
    door(*asked, "weights,query,key,value", "-o", "both.json")
    both = door("inspect", "both.json", "--json").data
    assert both["heads"][0]["statistics"]["logit_max"] == pytest.approx(
        want["heads"][0]["statistics"]["logit_max"]
    )


def test_a_sink_and_a_mask_are_said(door: Door, layers: Path) -> None:
    weights = layer(0)[1] * np.array([0.9, 0.5, 1])[:, None, None]
    np.savez(layers.parent / "sink.npz", attn_weights=weights)
    ran = door("inspect", "sink.npz")
    assert "counted as a sink's" in " ".join(ran.out.split())
    found = door("inspect", "sink.npz", "--json").data["heads"]
    whole = door("inspect", "one.npy", "--json").data["heads"][1]["statistics"]["max_weight"]
    got = found[1]["statistics"]["max_weight"]
    assert list(got.values()) == pytest.approx([one / 2 for one in whole.values()])
    plain = door("inspect", "one.npy", "--mask", "none", "--json").data
    assert plain["mask"] is None
    np.save(layers.parent / "padding.npy", np.array([[1, 1, 1, 1, 1, 0]]))
    ran = door("inspect", "one.npy", "--key-padding-mask", "padding.npy", "--json")
    assert ran.data["mask"] == "causal & padding(5)"
    assert ran.data["heads"][0]["statistics"]["rows"] == 5


# -- what cannot be ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("w.npz", "--scale", "2"), "--scale has no use in"),
        (("one.npy", "--softcap", "2"), "--softcap has no use in"),
        (("one.npy", "--sink", "0"), "--sink has no use in"),
        (("one.npy", "--rope", "half"), "--rope has no use in"),
        (("one.npy", "--what-if", "scale=none"), "what if scale=none?"),
        (("one.npy", "--mask", "window(0, 0)"), "were not made with the mask window(0, 0)"),
        (("one.npy", "--mask", "alibi"), "adds to scores"),
        (("w.npz", "--sort", "logit_max"), "it needs the scores"),
        (("w.npz", "--map", "effective_rank"), "it needs the values"),
        (("one.npy", "--filter", "grad_query_norm<1"), "it needs the gradients"),
        (("w.npz", "-o", "x.safetensors"), "attention weights alone have no query, key, value"),
        (("w.npz", "--attention-weights", "w.npz"), "--attention-weights is all that is"),
        (("w.npz", "--tokens", "a b"), "2 tokens but the query has length 6"),
        (("--attention-weights", "scores.npy"), "look like scores"),
        (("--attention-weights", "turned.npy"), "is transposed"),
    ],
)
def test_what_is_refused(door: Door, layers: Path, typed: tuple[str, ...], message: str) -> None:
    weights = layer(0)[1][0]
    np.save(layers.parent / "scores.npy", np.log(weights + 1e-3))
    np.save(layers.parent / "turned.npy", weights.swapaxes(-1, -2))
    ran = door("inspect", *typed)
    assert ran.code == 2 and message in " ".join(ran.err.split())
    assert not (layers.parent / "x.safetensors").exists()


def test_what_others_say_of_weights_alone(door: Door, layers: Path) -> None:
    np.savez(layers.parent / "named.npz", attn_weights=layer(0)[1])
    for name in ("w.npz", "named.npz"):
        ran = door("compute", name)
        assert ran.code == 2 and f"attncli inspect {name}" in ran.err
        assert door("inspect", name).code == 0
    np.savez(layers.parent / "layer.npz", **{n: np.eye(6) for n in ("wq", "wk", "wv", "wo")})
    ran = door("multihead", "w.npz", "-w", "layer.npz", "--heads", "2")
    assert ran.code == 2 and "attncli inspect w.npz" in ran.err


# -- real ones --------------------------------------------------------------------------------

SIZES = dict(
    vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
)  # fmt: skip
ODD = {"Mistral": {"sliding_window": 4}, "GptOss": {"head_dim": 8, "sliding_window": 4}}


@pytest.mark.parametrize("family", ["Llama", "Mistral", "GptOss", "Bert"])
def test_eager_attentions_of_transformers(door: Door, tmp_path: Path, family: str) -> None:
    """A padded batch, as it is saved, against the model's own run: captured query and key."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **ODD.get(family, {}))
    model = getattr(transformers, f"{family}Model")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ids, real = torch.randint(1, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    hidden = slice(-3, None) if family == "Bert" else slice(3)
    real[1, hidden] = 0
    batch = {"input_ids": ids * real, "attention_mask": real}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        torch.save(model(**batch, output_attentions=True).attentions, tmp_path / "w.pt")

    from attncli.studies.captures import Capture
    from attncli.studies.model.capture import capture

    with Capture(str(tmp_path / "qkv.safetensors")) as kept:

        def told(path: str, problem: Any, labels: Any) -> None:
            kept.add(path, problem, labels)

        with torch.no_grad(), capture(model, told=told):
            model(**batch)
    said = ("--attention-weights",) if family == "GptOss" else ()
    ours = door("inspect", *said, "w.pt", "--batch", "0,1", "--json").data
    theirs = door("inspect", "qkv.safetensors", "--batch", "0,1", "--json").data
    assert_same(ours, theirs, rel=1e-4)
