"""``inspect`` of many problems: layers in a file, files, folders, NDJSON; captures and --layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.view import Labels
from attncli.studies.captures import Capture
from tests.support.program import Door

SHAPE = (3, 6, 4)
LAYERS = 3


def qkv(seed: int, shape: tuple[int, ...] = SHAPE) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name in ("query", "key", "value")}


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    """A bundle with layers, and each of them alone beside it."""
    tensors = {}
    for n in range(LAYERS):
        alone = qkv(n)
        np.savez(tmp_path / f"layer_{n}.npz", **alone)
        tensors |= {f"model.layers.{n}.attn.{name}": array for name, array in alone.items()}
    np.savez(tmp_path / "layers.npz", **tensors)
    return tmp_path / "layers.npz"


def statistics(data: Any) -> list[Any]:
    return [head["statistics"] for head in data["heads"]]


def places(data: Any) -> list[tuple[int, int]]:
    return [(head["layer_index"], head["head"]) for head in data["heads"]]


# -- where problems come from -----------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["layers.{}", "model.layers.{}.self_attn", "blocks.{}.Q.attn"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".json"])
def test_layers_of_a_file_are_what_each_is_alone(
    door: Door, tmp_path: Path, prefix: str, suffix: str
) -> None:
    tensors = {
        f"{prefix.format(n)}.{name}": array
        for n in (0, 2, 10)
        for name, array in qkv(n).items()
    }  # fmt: skip
    path = tmp_path / f"many{suffix}"
    files.write(str(path), tensors)
    data = door("inspect", path, "--causal", "--json").data
    assert places(data) == [(n, h) for n in (0, 2, 10) for h in range(3)]
    assert [head["name"] for head in data["heads"]][-1] == "10.2"
    alone = []
    for n in (0, 2, 10):
        np.savez(tmp_path / "one.npz", **qkv(n))
        alone += statistics(door("inspect", tmp_path / "one.npz", "--causal", "--json").data)
    for got, want in zip(statistics(data), alone, strict=True):
        assert got["entropy"] == pytest.approx(want["entropy"], rel=1e-6)
        assert got["grad_query_norm"] == pytest.approx(want["grad_query_norm"], rel=1e-6)


def test_files_and_folders(door: Door, layers: Path) -> None:
    names = [f"layer_{n}.npz" for n in range(LAYERS)]
    some = door("inspect", *names, "--json").data
    whole = door("inspect", layers, "--json").data
    assert statistics(some) == statistics(whole) and places(some) == places(whole)
    assert [one["layer"] for one in some["layers"]] == ["layer_0", "layer_1", "layer_2"]
    folder = layers.parent / "folder"
    folder.mkdir()
    for n in (2, 10, 1):  # in the order of their numbers
        np.savez(folder / f"layer_{n}.npz", **qkv(n))
    data = door("inspect", folder, "--json").data
    assert [one["layer"] for one in data["layers"]] == ["layer_1", "layer_2", "layer_10"]
    (folder / "notes.json").write_text('{"seed": [1, 2]}')
    ran = door("inspect", folder)
    assert ran.code == 0 and "notes.json is not read: it has no query" in ran.err
    both = door("inspect", "layer_0.npz", layers, "--json").data
    assert [one["layer"] for one in both["layers"]][:2] == [
        "layer_0", "layers.model.layers.0.attn",
    ]  # fmt: skip


def test_files_of_one_name_are_called_by_their_paths(door: Door, tmp_path: Path) -> None:
    for run in ("before", "after"):
        (tmp_path / run).mkdir()
        np.savez(tmp_path / run / "x.npz", **qkv(len(run)))
    data = door("inspect", "before/x.npz", "after/x.npz", "--json").data
    assert [one["layer"] for one in data["layers"]] == ["before/x", "after/x"]


def test_a_folder_that_is_a_checkpoint_stays_one(door: Door, llama: Path) -> None:
    np.savez(llama / "layer_0.npz", **qkv(0))
    ran = door("inspect", llama)
    assert ran.code == 0 and "parameters" in ran.out
    ran = door("inspect", llama, "--causal")
    assert ran.code == 2 and "--causal has no use in a checkpoint" in ran.err


def test_lines_make_one_report_where_that_is_asked_for(door: Door, tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"text {n}", "query": qkv(n)["query"].tolist()}) for n in range(3)]
    (tmp_path / "x.ndjson").write_text("\n".join(lines))
    ran = door("inspect", "x.ndjson", "--format", "table", "--map", "logit_max")
    assert ran.out.startswith("3 layers × 3 heads, 6 tokens")
    each = [json.loads(line) for line in door("inspect", "x.ndjson").out.splitlines()]
    assert [one["id"] for one in each] == ["text 0", "text 1", "text 2"]
    rows = door("inspect", "x.ndjson", "--format", "csv").out.splitlines()[1:]
    assert [row.split(",")[0] for row in rows[::3]] == ["text 0", "text 1", "text 2"]
    (tmp_path / "bad.ndjson").write_text(lines[0] + "\n{\n" + lines[1])
    ran = door("inspect", "bad.ndjson", "--format", "table")
    assert ran.code == 2 and "line 2" in ran.err


def test_what_is_said_once_is_said_of_all(door: Door, tmp_path: Path) -> None:
    members: dict[str, Any] = {"scale": 0.7, "mask": "causal", "layers": {}}
    for n in range(2):
        members["layers"][str(n)] = {k: v.tolist() for k, v in qkv(n).items()}
    members["layers"]["1"]["scale"] = 0.1
    del members["scale"]
    members["layers"]["0"]["scale"] = 0.7
    (tmp_path / "x.json").write_text(json.dumps(members))
    data = door("inspect", "x.json", "--json").data
    assert [one["scale"] for one in data["layers"]] == [0.7, 0.1]
    assert [one["mask"] for one in data["layers"]] == ["causal", "causal"]
    members["bogus"] = 3
    (tmp_path / "x.json").write_text(json.dumps(members))
    ran = door("inspect", "x.json")
    assert ran.err.count("'bogus' is not read") == 1


# -- what is asked of them --------------------------------------------------------------------


def test_selections(door: Door, layers: Path) -> None:
    assert places(door("inspect", layers, "--layer", "1:", "--head", "0,2", "--json").data) == [
        (1, 0), (1, 2), (2, 0), (2, 2),
    ]  # fmt: skip
    data = door("inspect", layers, "--filter", "layer==1 & head>0", "--sort", "-head", "--json")
    assert places(data.data) == [(1, 1), (1, 2)]
    assert places(door("inspect", layers, "--layer", "-2", "--json").data)[0] == (1, 0)
    ran = door("inspect", layers, "--layer", "7")
    assert ran.code == 2 and "expected 0 to 2" in ran.err
    ran = door("inspect", layers, "--map", "sink_mass", "--format", "csv")
    assert ran.out.splitlines()[0] == "layer,0,1,2" and len(ran.out.splitlines()) == 1 + LAYERS


def test_lines_of_json_as_they_come(door: Door, layers: Path) -> None:
    ran = door("inspect", layers, "--format", "ndjson", "--layer", "1:", "--filter", "head<2")
    each = [json.loads(line) for line in ran.out.splitlines()]
    assert [one["layer"] for one in each] == ["model.layers.1.attn", "model.layers.2.attn"]
    whole = door("inspect", layers, "--layer", "1:", "--filter", "head<2", "--json").data
    assert [head for one in each for head in one["heads"]] == whole["heads"]
    np.savez(layers.parent / "bad.npz", query=qkv(0)["query"], key=np.ones((3, 6, 9)))
    ran = door("inspect", "bad.npz", "layer_1.npz", "--format", "ndjson")
    assert ran.code == 1
    bad, good = map(json.loads, ran.out.splitlines())
    assert bad["error"]["message"].startswith("bad: ") and good["layer"] == "layer_1"


def test_fail_on_and_errors_name_the_layer(door: Door, layers: Path) -> None:
    assert door("inspect", layers, "--fail-on", "watch").code == 0
    np.savez(layers.parent / "sick.npz", query=0 * qkv(0)["query"], key=qkv(0)["key"])
    ran = door("inspect", "layer_0.npz", "sick.npz", "--fail-on", "critical")
    assert ran.code == 1 and "heads sick.0, sick.1, sick.2, each critical: " in ran.out
    np.savez(layers.parent / "bad.npz", query=qkv(0)["query"], key=np.ones((3, 6, 9)))
    ran = door("inspect", "layer_0.npz", "bad.npz")
    assert ran.code == 2 and "error: bad: key " in ran.err


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("layers.npz", "--what-if", "scale=none"), "--what-if has no use in one report on many"),
        (("layers.npz", "-q", "layer_0.npz::query", "--layer", "0"), "--layer has no use in"),
        (("layer_0.npz", "missing.npz"), "no such file: missing.npz"),
        (("layer_0.npz", "--layer", "0"), "--layer has no use in the health"),
        (("layers.npz", "--include", "query"), "--include has no use without -o"),
        (("layers.npz", "-o", "x.safetensors", "--include", "weights"), "nothing is called"),
        (("layers.npz", "-o", "layers.npz"), "would overwrite an input"),
        (("layers.npz", "-o", "x.npy"), ".npy takes exactly one array"),
        (("layers.npz", "layer_0.npz", "--sort", "max"), "unknown name 'max' in --sort"),
    ],
)
def test_what_cannot_be(door: Door, layers: Path, typed: tuple[str, ...], message: str) -> None:
    ran = door("inspect", *typed)
    assert ran.code == 2 and message in ran.err


# -- captures ---------------------------------------------------------------------------------


def test_a_capture_gives_the_same_again(door: Door, layers: Path) -> None:
    asked = ("--causal", "--scale", "0.3", "--softcap", "7", "--sink", "0,1,2", "--tokens")
    asked = (*asked, "a b c a b c")
    ran = door("inspect", layers, *asked, "-o", "capture.safetensors", "--json")
    assert "wrote capture.safetensors (query, key, value)" in ran.err
    again = door("inspect", "capture.safetensors", "--json")
    assert again.err == ""
    assert again.data["heads"] == ran.data["heads"]
    assert again.data["summary"] == ran.data["summary"]
    np.savez(layers.parent / "mask.npz", m=np.tri(6, dtype=bool) & ~np.eye(6, k=-2, dtype=bool))
    ran = door("inspect", layers, "--attn-mask", "mask.npz", "-o", "masked.json", "--json")
    assert door("inspect", "masked.json", "--json").data["heads"] == ran.data["heads"]


def test_a_format_without_options_says_what_it_lost(door: Door, layers: Path) -> None:
    ran = door("inspect", layers, "--causal", "--scale", "0.3", "-o", "c.npz", "--quiet")
    assert ran.out == "" and "c.npz holds no options: read it with --scale 0.3" in ran.err
    want = door("inspect", layers, "--causal", "--scale", "0.3", "--json").data
    flags = ran.err.partition("read it with ")[2].splitlines()[0].replace("'", "").split()
    assert door("inspect", "c.npz", *flags, "--json").data["heads"] == want["heads"]


def test_compute_reads_a_layer(door: Door, layers: Path) -> None:
    door("inspect", layers, "--causal", "--scale", "0.3", "-o", "capture.safetensors")
    for which in ("2", "model.layers.2.attn"):
        got = door("compute", "capture.safetensors", "--layer", which, "--head", "1", "--json").data
        want = door(
            "compute", "layer_2.npz", "--causal", "--scale", "0.3", "--head", "1", "--json"
        ).data
        assert got["output"] == want["output"] and got["mask"] == "causal"
    door("compute", "layer_2.npz", "--causal", "--scale", "0.3", "-o", "mine.npy")
    asked = ("compute", "capture.safetensors", "--expect", "mine.npy", "--layer")
    assert door(*asked, "2").code == 0
    assert door(*asked, "1").code == 1
    ran = door(*asked, "3")
    assert ran.code == 2 and "has no layer '3'" in ran.err and "one of 0, 1, 2" in ran.err
    ran = door("compute", "layer_2.npz", "--layer", "2")
    assert ran.code == 2 and "holds no layers" in ran.err


def test_large_captures_are_sharded(door: Door, tmp_path: Path) -> None:
    path = tmp_path / "capture.safetensors"
    problems = {
        f"layers.{n}": pose(**qkv(n), mask=[masker("causal")], scale=0.1 * (n + 1))
        for n in range(5)
    }
    labels = Labels((tuple("abcdef"),), (tuple("abcdef"),))
    with Capture(str(path), shard=1500) as capture:
        for name, one in problems.items():
            capture.add(name, one, labels)
    assert not path.exists()
    assert capture.written == str(tmp_path / "capture.safetensors.index.json")
    shards = sorted(p.name for p in tmp_path.iterdir())
    assert shards == [
        *(f"capture-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)),
        "capture.safetensors.index.json",
    ]
    data = door("inspect", "capture.safetensors.index.json", "--json").data
    assert [one["scale"] for one in data["layers"]] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert {one["mask"] for one in data["layers"]} == {"causal"}
    assert places(data) == [(n, h) for n in range(5) for h in range(3)]
    assert door("inspect", tmp_path, "--json").data["heads"] == data["heads"]  # the only file there
    ran = door("inspect", "capture.safetensors.index.json", "-o", "capture.safetensors")
    assert ran.code == 2 and "would overwrite an input" in ran.err
    got = door("compute", "capture.safetensors.index.json", "--layer", "4", "--json").data
    np.savez(tmp_path / "one.npz", **qkv(4))
    want = door("compute", "one.npz", "--causal", "--scale", "0.5", "--json").data
    np.testing.assert_allclose(got["output"], want["output"], rtol=1e-6)


def test_a_capture_of_one_layer(door: Door, layers: Path) -> None:
    door("inspect", layers, "--layer", "1", "--causal", "-o", "capture.safetensors")
    got = door("compute", "capture.safetensors", "--layer", "1", "--json").data
    assert got["output"] == door("compute", "layer_1.npz", "--causal", "--json").data["output"]
    data = door("inspect", "capture.safetensors", "--layer", "1", "--json").data
    assert places(data) == [(1, 0), (1, 1), (1, 2)]
    alone = door("inspect", "capture.safetensors", "--what-if", "scale=none", "--json").data
    assert statistics(alone) == statistics(data)


@pytest.mark.parametrize(
    ("shape", "how"),
    [((6, 12), {"heads": 3}), ((2, 6, 12), {"heads": 3}), ((2, 6, 3, 4), {"layout": "blhd"})],
)
def test_shapes_go_along(
    door: Door, tmp_path: Path, shape: tuple[int, ...], how: dict[str, Any]
) -> None:
    tensors = {f"layers.{n}.{k}": v for n in range(2) for k, v in qkv(n, shape).items()}
    np.savez(tmp_path / "x.npz", **tensors)
    flags = [word for name, value in how.items() for word in (f"--{name}", str(value))]
    ran = door("inspect", "x.npz", *flags, "-o", "c.safetensors", "--json")
    assert ran.data["layers"][0]["shapes"]["query"] == list(shape)
    again = door("inspect", "c.safetensors", "--json").data
    assert again["heads"] == ran.data["heads"]
