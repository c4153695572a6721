"""Files of many problems: which members belong to which, and which files of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attncli import files
from attncli.files.folders import captures_in

X = np.eye(2, dtype=np.float32)


def held(tmp_path: Path, *names: str, **options: object) -> dict[str, set[str]]:
    files.write(str(tmp_path / "x.safetensors"), dict.fromkeys(names, X), extra=options)
    bundle = files.read(str(tmp_path / "x.safetensors"))
    return {
        prefix: {*one.tensors, *one.options} for prefix, one in files.problems_of(bundle).items()
    }


def test_each_problem_has_its_own_and_what_stands_above(tmp_path: Path) -> None:
    found = held(
        tmp_path, "a.0.query", "a.0.key", "a.1.q", "b.0.query", "sink", "a.mask", "b.0.more.thing",
        **{"scale": 1.0, "a.softcap": 2.0, "a.1.scale": 3.0},
    )  # fmt: skip
    assert found == {
        "a.0": {"a.0.query", "a.0.key", "sink", "a.mask", "scale", "a.softcap"},
        "a.1": {"a.1.q", "sink", "a.mask", "scale", "a.softcap", "a.1.scale"},
        "b.0": {"b.0.query", "b.0.more.thing", "sink", "scale"},
    }


def test_a_problem_inside_another_is_one_of_its_own(tmp_path: Path) -> None:
    assert held(tmp_path, "a.query", "a.b.query", "a.b.key") == {
        "a": {"a.query"}, "a.b": {"a.b.query", "a.b.key"},
    }  # fmt: skip


def test_what_is_no_problem_goes_to_all_so_that_it_is_warned_about(tmp_path: Path) -> None:
    found = held(tmp_path, "a.query", "b.query", "else.where")
    assert all("else.where" in members for members in found.values())


@pytest.mark.parametrize("names", [["query", "key"], ["a.query", "a.key"], ["weight", "a.weight"]])
def test_one_problem_is_not_many(tmp_path: Path, names: list[str]) -> None:
    assert held(tmp_path, *names) == {}


def test_numbers_are_sorted_as_numbers_and_shards_go_with_their_index(tmp_path: Path) -> None:
    names = ["run10.npz", "run9.npz", "x.safetensors.index.json", "notes.txt", "y.json",
             "x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors",
             "z-1.safetensors"]  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    found = [Path(path).name for path in captures_in(str(tmp_path))]
    assert found == ["run9.npz", "run10.npz", "x.safetensors.index.json", "y.json",
                     "z-1.safetensors"]  # fmt: skip


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "params.json"])
def test_a_checkpoint_holds_no_captures(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.npz").touch()
    (tmp_path / name).touch()
    assert captures_in(str(tmp_path)) == []


def test_shards_keep_what_they_say(tmp_path: Path) -> None:
    for n in (1, 2):
        files.write(
            str(tmp_path / f"x-{n}.safetensors"), {f"layers.{n}.query": X},
            extra={f"layers.{n}.scale": n / 4, "mask": "causal"},
        )  # fmt: skip
    where = {f"layers.{n}.query": f"x-{n}.safetensors" for n in (1, 2)}
    index = tmp_path / "x.safetensors.index.json"
    index.write_bytes(files.dumps({"weight_map": where}))
    bundle = files.read(str(index))
    assert dict(bundle.options) == {"layers.1.scale": 0.25, "layers.2.scale": 0.5, "mask": "causal"}
    assert not bundle.tensors["layers.2.query"].flags.owndata  # mapped
