"""``inspect A --compare B``: captures, checkpoints, and models that read a text."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncli import attend, files
from tests.support.model import SIZES, write_model
from tests.support.program import Door

LAYERS, HEADS = 3, 4
Edit = Callable[[dict[str, Any]], None]


def tensors() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        f"layers.{n}.{name}": rng.normal(size=(HEADS, 6, 8)).astype(np.float32)
        for n in range(LAYERS) for name in ("query", "key", "value")
    }  # fmt: skip


def edited(edit: Edit) -> dict[str, Any]:
    found = tensors()
    edit(found)
    return found


def scaled(found: dict[str, Any]) -> None:
    found["layers.1.query"][2] *= 3


@pytest.fixture
def two(tmp_path: Path) -> Callable[[Edit], tuple[Path, Path]]:
    """A capture, and one with something changed."""

    def write(edit: Edit) -> tuple[Path, Path]:
        paths = tmp_path / "a.npz", tmp_path / "b.npz"
        np.savez(paths[0], **tensors())
        np.savez(paths[1], **edited(edit))
        return paths

    return write


Two = Callable[[Edit], tuple[Path, Path]]


def compared(door: Door, *arguments: object) -> Any:
    ran = door("inspect", *arguments, "--json")
    assert ran.code == 0, ran.err
    return ran.data


# -- captures ---------------------------------------------------------------------------------


def test_the_head_that_changed_comes_first_and_the_others_did_not(door: Door, two: Two) -> None:
    a, b = two(scaled)
    data = compared(door, a, "--compare", b, "--causal")
    assert data["sources"] == [str(a), str(b)]
    assert data["heads"][0]["name"] == "1.2"
    assert [one["change"] for one in data["heads"][1:]] == [0] * (LAYERS * HEADS - 1)
    summary = data["summary"]
    assert summary["words"].startswith("layer 1 changed most")
    assert summary["above_limit"] == 1 and summary["most_changed"] == "1.2"


def test_its_numbers_are_those_of_both_captures(door: Door, two: Two) -> None:
    a, b = two(scaled)
    first = compared(door, a, "--compare", b, "--causal")["heads"][0]
    sides = []
    for path, own in ((a, first["before"]), (b, first)):
        alone = compared(door, path, "--causal", "--layer", "1", "--head", "2")["heads"][0]
        assert own["statistics"] == alone["statistics"] and own["verdict"] == alone["verdict"]
        bundle = np.load(path)
        q, k, v = (bundle[f"layers.1.{n}"][2].astype(float) for n in ("query", "key", "value"))
        sides.append(attend(q, k, v, mask="causal", want=("output", "weights")))
    was, now = (one.output for one in sides)
    want = np.linalg.norm(now - was) / np.linalg.norm(was)
    assert first["output_change"] == pytest.approx(want, rel=1e-5)
    p, q = (one.weights for one in sides)
    m = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(x > 0, x * np.log2(x / m), 0).sum(1) for x in (p, q)]
    distances = np.sqrt((terms[0] + terms[1]) / 2)[1:]  # row 0 has no choice
    assert first["js"]["mean"] == pytest.approx(distances.mean(), rel=1e-5)
    assert first["js"]["p95"] == pytest.approx(np.quantile(distances, 0.95), rel=1e-5)
    assert first["change"] == max(first["js"]["mean"], first["output_change"])
    apart = first["difference"]["entropy"]["median"]
    was, now = (one["statistics"]["entropy"]["median"] for one in (first["before"], first))
    assert apart == now - was


def test_a_head_that_was_replaced(door: Door, two: Two) -> None:
    def replace(found: dict[str, Any]) -> None:
        rng = np.random.default_rng(1)
        for name in ("query", "key", "value"):
            found[f"layers.2.{name}"][0] = rng.normal(size=(6, 8))

    data = compared(door, *two(replace)[:1], "--compare", "b.npz")
    assert data["heads"][0]["name"] == "2.0" and data["heads"][0]["change"] > 0.5
    assert data["summary"]["above_limit"] == 1


def test_heads_that_changed_places_are_recognised(door: Door, two: Two) -> None:
    def swap(found: dict[str, Any]) -> None:
        for name in ("query", "key", "value"):
            found[f"layers.0.{name}"][[1, 3]] = found[f"layers.0.{name}"][[3, 1]]

    a, b = two(swap)
    data = compared(door, a, "--compare", b)
    like = {one["name"]: one["like"] for one in data["heads"] if one["like"]}
    assert {name: own["head"] for name, own in like.items()} == {"0.1": 3, "0.3": 1}
    assert all(own["distance"] < 1e-6 for own in like.values())
    assert "0.1 like 0.3 before" in door("inspect", a, "--compare", b).out


def test_the_same_is_said_to_be_the_same(door: Door, two: Two) -> None:
    a, b = two(lambda found: None)
    ran = door("inspect", a, "--compare", b, "--fail-on", "change=0")
    assert ran.code == 0 and ran.out.rstrip().endswith("nothing changed")
    data = compared(door, a, "--compare", b)
    assert data["summary"]["nothing_changed"] and data["summary"]["most_changed"] is None


def test_statistics_may_change_where_weights_do_not(door: Door, two: Two) -> None:
    def shift(found: dict[str, Any]) -> None:  # which the softmax does not see
        found["layers.0.key"][...] += 1

    a, b = two(shift)
    data = compared(door, a, "--compare", b)
    assert data["summary"]["above_limit"] == 0 and not data["summary"]["nothing_changed"]
    assert any(one["difference"]["logit_max"] for one in data["heads"])


def test_bfloat16_is_a_small_change(door: Door, tmp_path: Path) -> None:
    files.write("a.safetensors", tensors())
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors().items()}
    files.write("b.safetensors", half)
    data = compared(door, "a.safetensors", "--compare", "b.safetensors", "--fail-on", "change=0.1")
    assert all(0 < one["change"] < 0.05 for one in data["heads"])
    assert "dtype float32 → bfloat16" in data["notes"]


def test_what_fails(door: Door, two: Two) -> None:
    a, b = two(scaled)
    change = compared(door, a, "--compare", b)["heads"][0]["change"]
    codes = {
        limit: door("inspect", a, "--compare", b, "--fail-on", f"change={limit}").code
        for limit in (0, 0.99 * change, change, 5)
    }
    assert [*codes.values()] == [1, 1, 0, 0]
    sick = door("inspect", a, "--compare", b, "--fail-on", "critical").code
    assert sick == door("inspect", b, "--fail-on", "critical").code


def test_verdicts_that_turned_are_said_with_their_reasons(door: Door, two: Two) -> None:
    def saturate(found: dict[str, Any]) -> None:
        found["layers.1.query"][2] *= 1000

    a, b = two(saturate)
    ran = door("inspect", a, "--compare", b)
    assert "ok → critical 1" in ran.out and "head 1.2 critical: " in ran.out
    first = compared(door, a, "--compare", b)["heads"][0]
    assert (first["before"]["verdict"], first["verdict"]) == ("ok", "critical")
    assert door("inspect", a, "--compare", b, "--fail-on", "critical").code == 1
    assert door("inspect", b, "--compare", a, "--fail-on", "critical").code == 0


def test_roles_that_came_and_went(door: Door, two: Two) -> None:
    def look_back(found: dict[str, Any]) -> None:
        found["layers.1.query"][1] = found["layers.1.key"][1] = 0
        for i in range(6):
            found["layers.1.key"][1, i, i] = 10
            found["layers.1.query"][1, i, max(i - 1, 0)] = 10

    first = compared(door, *two(look_back)[:1], "--compare", "b.npz", "--causal")["heads"][0]
    assert first["name"] == "1.1"
    assert "previous token" in [role["role"] for role in first["roles_gained"]]
    assert "previous token" not in [role["role"] for role in first["before"]["roles"]]


def test_what_is_asked_of_heads(door: Door, two: Two) -> None:
    def grow(found: dict[str, Any]) -> None:
        for n in range(LAYERS):
            found[f"layers.{n}.query"][:2] *= n + 1

    a, b = two(grow)
    call = (a, "--compare", b)
    names = lambda *typed: [one["name"] for one in compared(door, *call, *typed)["heads"]]  # noqa: E731
    assert {*names("--filter", "change>0")} == {"1.0", "1.1", "2.0", "2.1"}
    assert {*names("--filter", "entropy_difference<0 & entropy_before>entropy")} <= {
        "1.0", "1.1", "2.0", "2.1",
    }  # fmt: skip
    assert {*names("--layer", "2", "--head", "0,3")} == {"2.0", "2.3"}
    ordered = compared(door, *call, "--sort", "-entropy_difference")["heads"]
    values = [one["difference"]["entropy"]["median"] for one in ordered]
    assert values == sorted(values) and values[0] < 0
    seen = compared(door, *call, "--map", "js_p95")["map"]
    assert np.shape(seen["values"]) == (LAYERS, HEADS) and seen["values"][0] == [0] * HEADS
    rows = [*csv.DictReader(io.StringIO(door("inspect", *call, "--format", "csv").out))]
    assert len(rows) == LAYERS * HEADS
    assert float(rows[0]["logit_max_difference"]) == pytest.approx(
        float(rows[0]["logit_max"]) - float(rows[0]["logit_max_before"])
    )
    ran = door("inspect", *call, "--filter", "change>100")
    assert ran.code == 0 and "no head passes --filter" in ran.err
    assert "12 of 12" not in door("inspect", *call, "--full").out


def test_single_bundles_and_folders(door: Door, tmp_path: Path) -> None:
    for run, factor in (("before", 1), ("after", 2)):
        (tmp_path / run).mkdir()
        for n in range(2):
            own = {name: tensors()[f"layers.{n}.{name}"] for name in ("query", "key", "value")}
            own["query"] = own["query"] * (factor if n else 1)
            np.savez(tmp_path / run / f"layer_{n}.npz", **own)
    data = compared(door, "before", "--compare", "after")
    assert {one["layer_index"] for one in data["heads"] if one["change"]} == {1}
    alone = compared(door, "before/layer_1.npz", "--compare", "after/layer_1.npz")
    assert [one["change"] for one in alone["heads"]] == [
        one["change"] for one in data["heads"] if one["change"]
    ]
    (tmp_path / "after" / "layer_0.npz").unlink()
    ran = door("inspect", "before", "--compare", "after", "--json")
    assert ran.code == 0 and "only in before, not compared: layer_0" in ran.err
    assert ran.data["warnings"] == ["only in before, not compared: layer_0"]


def test_layers_of_other_names_belong_together_by_number(door: Door, two: Two) -> None:
    a, b = two(scaled)
    other = {name: name.rpartition(".") for name in np.load(b)}
    np.savez("c.npz", **{
        f"model.{prefix}.attn.{role}": np.load(b)[name] for name, (prefix, _, role) in other.items()
    })  # fmt: skip
    ran = door("inspect", a, "--compare", "c.npz", "--json")
    assert ran.data["heads"][0]["name"] == "1.2"
    assert "layers belong together by their numbers" in ran.data["notes"]


def test_a_head_that_lost_its_numbers_comes_first(door: Door, two: Two) -> None:
    def lose(found: dict[str, Any]) -> None:
        found["layers.0.query"][3, 2] = np.nan

    a, b = two(lose)
    first = compared(door, a, "--compare", b)["heads"][0]
    assert (first["name"], first["change"]) == ("0.3", "Infinity")
    ran = door("inspect", a, "--compare", b)
    assert ran.code == 0 and "0.3 (∞)" in ran.out


def test_another_mask_or_scale_is_said(door: Door, tmp_path: Path) -> None:
    for name, said in (("a.json", {"scale": 0.5}), ("b.json", {"scale": 0.25, "mask": "causal"})):
        own = {n: tensors()[f"layers.0.{n}"] for n in ("query", "key", "value")}
        files.write(str(tmp_path / name), own, extra=said)
    data = compared(door, "a.json", "--compare", "b.json")
    assert {"scale 0.5 → 0.25", "mask none → causal"} <= {*data["notes"]}


def test_other_tokens_are_a_warning(door: Door, tmp_path: Path) -> None:
    for name, tokens in (("a.json", "abcdef"), ("b.json", "abcxef")):
        own = {n: tensors()[f"layers.0.{n}"] for n in ("query", "key", "value")}
        files.write(str(tmp_path / name), own, extra={"tokens": [*tokens]})
    assert "the tokens are not the same" in door("inspect", "a.json", "--compare", "b.json").err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a.npz", "--compare", "missing.npz"), ("no such file", "missing.npz")),
        (("a.npz", "--compare", "layer.npz"), ("a capture", "a checkpoint", "expected two")),
        (("a.npz", "--compare", "short.npz"), ("6 queries", "5 queries", "a.npz", "short.npz")),
        (("a.npz", "--compare", "few.npz"), ("4 heads in a.npz", "3 heads in few.npz")),
        (("a.npz", "--compare", "other.npz"), ("no layer of one is in the other", "x, y")),
        (("a.npz", "--compare", "plain.npz"), ("plain.npz holds neither",)),
        (("a.npz", "b.npz", "--compare", "a.npz"), ("there are 2", "A --compare B")),
        (("--compare", "a.npz"), ("nothing to inspect",)),
        (("a.npz", "--fail-on", "change=0.1"), ("no use without --compare", "add --compare")),
        (("a.npz", "--compare", "a.npz", "--fail-on", "change=x"), ("'change=x'", "change=0.1")),
        (("a.npz", "--compare", "a.npz", "--fail-on", "change=-1"), ("'change=-1'",)),
        (("a.npz", "--compare", "a.npz", "--fail-on", "wach"), ("'wach'", "watch")),
        (("a.npz", "--compare", "a.npz", "--what-if", "scale=none"), ("--what-if has no use",)),
        (("a.npz", "--compare", "a.npz", "-o", "x.npz"), ("--output has no use",)),
        (("a.npz", "--compare", "a.npz", "--sort", "chang"), ("'chang'", "'change'")),
        (("a.npz", "--compare", "a.npz", "--map", "layer"), ("'layer' in --map",)),
        (("a.npz", "--compare", "a.npz", "--layer", "7"), ("--layer: 7 is out of range",)),
        (("a.npz", "--compare", "a.npz", "--head", "9"), ("--head: 9 is out of range",)),
        (("layer.npz", "--compare", "wide.npz", "--heads", "2"), ("inputs 8", "outputs 10")),
        (("layer.npz", "--compare", "layer.npz", "--causal"), ("--causal has no use",)),
        (("layer.npz", "--compare", "layer.npz", "--map", "js"), ("'js' in --map",)),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(door: Door, two: Two, arguments: Any, words: Any) -> None:
    two(scaled)
    np.savez("short.npz", **{name: array[:, :5] for name, array in tensors().items()})
    np.savez("few.npz", **{name: array[:3] for name, array in tensors().items()})
    xy = {"layers.0": "x", "layers.1": "y"}
    np.savez("other.npz", **{
        f"{xy[name[:8]]}.{name[9:]}": array for name, array in tensors().items() if name[:8] in xy
    })  # fmt: skip
    np.savez("plain.npz", a=np.ones(3))
    weights("layer.npz")
    weights("wide.npz", width=10)
    ran = door("inspect", *arguments)
    assert ran.code == 2, ran.out
    assert all(word in ran.err for word in words), ran.err


# -- checkpoints ------------------------------------------------------------------------------


def weights(path: str, width: int = 8, **changed: Any) -> None:
    rng = np.random.default_rng(0)
    made = {
        "wq": rng.normal(size=(8, width)), "wk": rng.normal(size=(8, width)),
        "wv": rng.normal(size=(8, width)), "wo": rng.normal(size=(width, 8)),
        "bo": rng.normal(size=width),
    }  # fmt: skip
    for name, change in changed.items():
        change(made[name])
    np.savez(path, **made)


def test_weights_alone(door: Door, tmp_path: Path) -> None:
    def scale_head_1(w: Any) -> None:
        w[4:] *= 1.5

    weights("a.npz")
    weights("b.npz", wq=scale_head_1)
    call = ("a.npz", "--compare", "b.npz", "--heads", "2")
    data = compared(door, *call)
    first, second = data["heads"]
    assert data["compared"] == "weights" and first["head"] == 1
    assert first["qk_change"] == pytest.approx(0.5) and first["ov_change"] == 0
    assert first["change"] == first["qk_change"] and second["change"] == 0
    assert first["difference"]["query_norm"] == pytest.approx(
        0.5 * first["before"]["statistics"]["query_norm"]
    )
    assert door("inspect", *call, "--fail-on", "change=0.4").code == 1
    assert door("inspect", *call, "--fail-on", "change=0.6").code == 0
    assert "‖M_B − M_A‖_F" in door("inspect", *call).out


def test_tensors_that_no_circuit_holds_are_said(door: Door, tmp_path: Path) -> None:
    def shift(bias: Any) -> None:
        bias += 1

    weights("a.npz")
    weights("b.npz", bo=shift)
    ran = door("inspect", "a.npz", "--compare", "b.npz", "--heads", "2")
    assert "nothing changed" in ran.out
    assert "not counted as a change: output_bias differ" in ran.err


# -- models -----------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny model, and it with one layer as if fine-tuned."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    before = write_model(tmp_path / "before")
    after = tmp_path / "after"
    shutil.copytree(before, after)
    path = after / "model.safetensors"
    rng = np.random.default_rng(0)
    bundle = files.read(str(path))
    found = {name: np.array(bundle.tensors[name]) for name in bundle.tensors}
    for name, array in found.items():
        if "layers.1.self_attn" in name:
            array += 0.3 * array.std() * rng.normal(size=array.shape).astype(array.dtype)
    files.write(str(path), found, extra={"format": "pt"})
    return before, after


def test_the_layer_that_was_tuned_comes_first(door: Door, models: tuple[Path, Path]) -> None:
    data = compared(door, models[0], "--compare", models[1])
    changed = {one["layer_index"] for one in data["heads"] if one["change"]}
    assert data["compared"] == "weights" and changed == {1}
    assert data["summary"]["words"].startswith("layer 1 changed most")


def test_models_read_the_same_text(door: Door, models: tuple[Path, Path], tmp_path: Path) -> None:
    text = ("--text", "the cat sat on the mat")
    data = compared(door, models[0], "--compare", models[1], *text)
    by_layer: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for one in data["heads"]:
        by_layer[one["layer_index"]].append(one["change"])
    assert not any(by_layer[0]) and all(by_layer[1]) and all(by_layer[2])
    assert "nothing changed before layer 1" in data["summary"]["words"]
    # as captures of both say it
    for path in models:
        ran = door("inspect", path, *text, "-o", f"{path.name}.safetensors", "--quiet")
        assert ran.code == 0, ran.err
    captured = compared(door, "before.safetensors", "--compare", "after.safetensors")
    assert {one["name"]: one["change"] for one in captured["heads"]} == pytest.approx(
        {one["name"]: one["change"] for one in data["heads"]}, rel=1e-6
    )


def test_a_model_and_itself(door: Door, models: tuple[Path, Path]) -> None:
    batch = ("--text", "the cat sat", "--text", "a dog")
    ran = door("inspect", models[0], "--compare", models[0], *batch)
    assert ran.code == 0 and "nothing changed" in ran.out
    some = compared(
        door, models[0], "--compare", models[1], *batch, "--batch", "1", "--layer", "1:"
    )
    assert {(one["batch"], one["layer_index"]) for one in some["heads"]} == {(1, 1), (1, 2)}


def test_models_that_read_other_tokens_are_refused(
    door: Door, models: tuple[Path, Path], tmp_path: Path
) -> None:
    path = models[1] / "tokenizer.json"
    path.write_text(path.read_text().replace('"cat"', '"kat"'))
    call = ("inspect", models[0], "--compare", models[1])
    ran = door(*call, "--text", "the cat sat")
    assert ran.code == 2 and "not the same for both models" in ran.err and "--ids" in ran.err
    np.save("ids.npy", [1, 3, 4, 5])
    assert door(*call, "--ids", "ids.npy").code == 0  # as the hint says


def test_models_of_other_shapes_are_refused(door: Door, models: tuple[Path, Path]) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = SIZES | {"num_attention_heads": 2, "num_key_value_heads": 2}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(models[1])
    ran = door("inspect", models[0], "--compare", models[1], "--text", "the cat")
    assert ran.code == 2 and "4 heads" in ran.err and "2 heads" in ran.err


def test_a_model_of_fewer_layers(door: Door, models: tuple[Path, Path]) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = SIZES | {"num_hidden_layers": 2}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(models[1])
    ran = door("inspect", models[0], "--compare", models[1], "--text", "the cat", "--json")
    assert ran.code == 0 and "layers.2.self_attn" in ran.err
    assert {one["layer_index"] for one in json.loads(ran.out)["heads"]} == {0, 1}
    back = door("inspect", models[1], "--compare", models[0], "--text", "the cat", "--json")
    assert back.code == 0 and f"only in {models[0]}" in back.err


def test_a_capture_is_no_model(door: Door, models: tuple[Path, Path], two: Two) -> None:
    ran = door("inspect", models[0], "--compare", two(scaled)[0], "--text", "the cat")
    assert ran.code == 2 and "a.npz is no folder" in ran.err
