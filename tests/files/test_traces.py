"""Workloads of FlashInfer Trace: what a line becomes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.attention.problem import Problem
from attncli.cli.compute import Asked
from attncli.cli.given.attention import gather
from attncli.errors import FileError
from attncli.studies import attend
from tests.support.traces import (
    HEADS,
    SCALE,
    WIDTH,
    dataset,
    definition,
    expected,
    paged,
    ragged,
)

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ragged": ("gqa_ragged", "made_prefill_causal", ragged([3, 2], [3, 2])),
    "ragged, more keys": ("gqa_ragged", "made_prefill_causal_h4", ragged([2, 1, 3], [5, 1, 4])),
    "ragged, not causal": ("gqa_ragged", "made_prefill", ragged([2, 3], [4, 3])),
    "ragged, a sequence without keys": (
        "gqa_ragged", "made_prefill_causal", ragged([2, 2], [0, 3]),
    ),
    "paged prefill": (
        "gqa_paged", "made_prefill_causal", paged([3, 2], [[2, 0, 5], [1]], [2, 4]),
    ),
    "paged, a page shared": (
        "gqa_paged", "made_prefill_causal", paged([2, 2], [[3, 1], [3, 2]], [1, 3]),
    ),
    "paged, pages of one": (
        "gqa_paged", "made_prefill_causal", paged([2, 1], [[4, 0, 2], [1, 3]], [], page=1),
    ),
    "paged decode": ("gqa_paged", "made_decode", paged(None, [[2, 0], [], [1]], [3, 0, 4])),
    "paged, fewer keys than queries": (
        "gqa_paged", "made_prefill_causal", paged([4], [[1]], [2]),
    ),
    "latent decode": ("mla_paged", "made_decode", paged(None, [[1], [2, 0]], [3, 1], latent=True)),
    "latent prefill": (
        "mla_paged", "made_prefill_causal", paged([2, 3], [[1], [2, 0]], [3, 1], latent=True),
    ),
}  # fmt: skip


def problem_of(path: Path) -> Problem:
    return gather(files.read(str(path)), Asked()).pose()


@pytest.mark.parametrize("case", CASES)
def test_a_workload_is_what_its_sequences_are_alone(tmp_path: Path, case: str) -> None:
    op_type, name, inputs = CASES[case]
    problem = problem_of(dataset(tmp_path, inputs, op_type, name))
    got = attend.solve(problem, want=("output", "lse"), backend="numpy")
    output, lse = expected(inputs, causal="prefill" in name and "causal" in name)
    assert problem.scale == SCALE
    assert got.output.shape == output.shape
    assert np.abs(got.output.astype(float) - output).max() < 2**-7 * max(1, np.abs(output).max())
    np.testing.assert_allclose(got.attended.lse[0].T, lse, rtol=1e-5)


def test_traces_lie_a_folder_deeper_and_say_more(tmp_path: Path) -> None:
    path = dataset(tmp_path, CASES["ragged"][2], evaluation={"status": "PASSED"})
    deep = tmp_path / "traces" / "somebody" / "gqa_ragged" / path.name
    deep.parent.mkdir(parents=True)
    path.rename(deep)
    bundle = files.read(str(deep))
    assert bundle.options["id"] == "7f-1"
    assert bundle.options["lse_base"] == 2
    assert gather(bundle, Asked()).warnings == (f"{deep}: 'evaluation' is not read",)


def test_random_inputs_are_the_same_each_time_and_said(tmp_path: Path) -> None:
    inputs = paged([3], [[7, 1]], [2])
    path = dataset(tmp_path, inputs, "gqa_paged", random=("q", "k_cache", "v_cache"))
    once, again = (files.read(str(path)) for _ in range(2))
    assert once.tensors["query"].shape == (3, HEADS, WIDTH)
    assert once.tensors["key"].shape == (6, 2, WIDTH)
    for name in ("query", "key", "value"):
        assert once.tensors[name].dtype.name == "bfloat16"
        assert (once.tensors[name] == again.tensors[name]).all()
    assert (once.tensors["key"] != once.tensors["value"]).any()
    assert "random: q, k_cache, v_cache (normal, seed" in " ".join(gather(once, Asked()).notes)


def test_a_random_page_is_one_page_wherever_it_is_read(tmp_path: Path) -> None:
    inputs = paged([1, 1], [[7, 1], [1, 7]], [4, 4])
    key = files.read(
        str(dataset(tmp_path, inputs, "gqa_paged", random=("k_cache", "v_cache")))
    ).tensors["key"]
    assert (key[:4] == key[12:]).all() and (key[4:8] == key[8:12]).all()
    assert (key[:4] != key[4:8]).any()


def test_a_huge_cache_costs_what_is_read_of_it(tmp_path: Path) -> None:
    inputs = paged([1], [[3]], [4])
    path = dataset(tmp_path, inputs, "gqa_paged", random=("k_cache", "v_cache"))
    line = json.loads(path.read_text())
    line["workload"]["axes"]["num_pages"] = 10**12
    path.write_text(json.dumps(line))
    assert files.read(str(path)).tensors["key"].shape == (4, 2, WIDTH)


# -- refused ----------------------------------------------------------------------------------


def _line(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    line = json.loads(path.read_text())
    change(line["workload"])
    path.write_text(json.dumps(line))


def _refusal(path: Path) -> str:
    with pytest.raises(FileError) as error:
        list(files.read(str(path)).tensors.values())
    return str(error.value)


def test_what_is_no_attention_is_refused_by_name(tmp_path: Path) -> None:
    path = dataset(tmp_path, CASES["ragged"][2])
    made = definition("made_prefill_causal", "gemm", ["q"])
    (tmp_path / "definitions" / "gqa_ragged" / "made_prefill_causal.json").write_text(
        json.dumps(made)
    )
    assert "made_prefill_causal is gemm, which attncli does not compute" in _refusal(path)


def test_an_input_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = dataset(tmp_path, CASES["ragged"][2])
    where = tmp_path / "definitions" / "gqa_ragged" / "made_prefill_causal.json"
    made = json.loads(where.read_text())
    made["inputs"]["logits_soft_cap"] = {"shape": None, "dtype": "float32"}
    where.write_text(json.dumps(made))
    assert "the input 'logits_soft_cap' changes the result, and is not read" in _refusal(path)


@pytest.mark.parametrize(
    ("name", "said", "words"),
    [
        ("qo_indptr", {"type": "random"}, "random offsets mean nothing"),
        ("sm_scale", {"type": "random"}, "'sm_scale' is random"),
        ("sm_scale", {"type": "scalar", "value": "1"}, "expected a scalar"),
        ("q", {"type": "torch"}, "'q' is torch"),
        ("q", {"type": "safetensors", "path": "/etc/passwd", "tensor_key": "q"},
         "names the file '/etc/passwd'"),
        ("q", {"type": "safetensors", "path": "../x.safetensors", "tensor_key": "q"},
         "expected one inside the data set"),
        ("q", {"type": "safetensors", "path": "definitions", "tensor_key": "q"}, "is a folder"),
        ("q", {"type": "safetensors", "path": "definitions/gqa_ragged/made_prefill_causal.json",
               "tensor_key": "q"}, "is no safetensors file"),
        ("mask", {"type": "random"}, "has no input 'mask'"),
    ],
)  # fmt: skip
def test_a_source_that_cannot_be_used(
    tmp_path: Path, name: str, said: dict[str, Any], words: str
) -> None:
    path = dataset(tmp_path, CASES["ragged"][2])
    _line(path, lambda work: work["inputs"].update({name: said}))
    assert words in _refusal(path)


def test_a_link_out_of_the_data_set_is_refused(tmp_path: Path) -> None:
    inputs = CASES["ragged"][2]
    path = dataset(tmp_path / "set", inputs)
    blob = next((tmp_path / "set" / "blob").rglob("*.safetensors"))
    elsewhere = tmp_path / "elsewhere.safetensors"
    blob.rename(elsewhere)
    blob.symlink_to(elsewhere)
    assert "a link that leads out of the data set" in _refusal(path)


@pytest.mark.parametrize(
    ("inputs", "name", "array", "words"),
    [
        (ragged([2, 1], [2, 1]), "qo_indptr", [0, 2, 4], "qo_indptr ends at 4, but there are 3"),
        (ragged([2, 1], [2, 1]), "kv_indptr", [0, 3, 1], "expected offsets"),
        (ragged([2, 1], [2, 1]), "kv_indptr", [0, 3], "2 sequences, kv_indptr 1"),
        (paged([2], [[1, 0]], [2]), "kv_indices", [1, 9], "kv_indices names page 9"),
        (paged([2], [[1, 0]], [2]), "kv_indices", [1], "kv_indptr ends at 2, but kv_indices has 1"),
        (paged([2], [[1, 0]], [2]), "kv_last_page_len", [5], "is not one of 0 to 4"),
        (paged(None, [[1], [0]], [], page=1), "kv_indptr", [0, 2],
         "one query a sequence, ends at 1"),
    ],
)  # fmt: skip
def test_offsets_and_pages_that_do_not_fit(
    tmp_path: Path, inputs: dict[str, Any], name: str, array: list[int], words: str
) -> None:
    op_type = "gqa_ragged" if "k" in inputs else "gqa_paged"
    inputs = inputs | {name: np.array(array, np.int32)}
    path = dataset(tmp_path, inputs, op_type)
    _line(path, lambda work: work["axes"].pop("len_indptr"))  # or the shape itself does not fit
    assert words in _refusal(path)


def test_a_shape_or_dtype_that_the_definition_does_not_say(tmp_path: Path) -> None:
    inputs = CASES["ragged"][2]
    path = dataset(tmp_path, inputs | {"k": inputs["k"].astype(np.float32)})
    assert "'k' is float32 (5, 2, 8)" in _refusal(path)
    path = dataset(tmp_path, inputs | {"k": inputs["k"][:, :1]})
    assert "expects bfloat16 (5, 2, 8)" in _refusal(path)


def test_a_definition_holds_no_data(tmp_path: Path) -> None:
    dataset(tmp_path, CASES["ragged"][2])
    where = tmp_path / "definitions" / "gqa_ragged" / "made_prefill_causal.json"
    assert "name its workloads: ROOT/workloads/OP_TYPE/NAME.jsonl" in _refusal(where)


def test_a_workload_without_its_data_set(tmp_path: Path) -> None:
    path = dataset(tmp_path, CASES["ragged"][2])
    (tmp_path / "definitions" / "gqa_ragged" / "made_prefill_causal.json").unlink()
    assert "no definition of made_prefill_causal" in _refusal(path)
    alone = tmp_path / "a" / "b" / "c" / "d" / "e" / "one.jsonl"
    alone.parent.mkdir(parents=True)
    path.rename(alone)
    assert "no folder definitions lies above" in _refusal(alone)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: made["inputs"].update(q={"shape": [], "dtype": "bfloat16"}), "no workload"),
        (lambda made: made["inputs"].update(q={"shape": None}), "'q' is no tensor"),
        (lambda made: made.pop("axes"), "has no 'axes'"),
        (lambda made: made["inputs"].pop("sm_scale"), "gqa_ragged without the input sm_scale"),
        (lambda made: made.update(op_type=["gqa_ragged"]), "which attncli does not compute"),
    ],
)
def test_a_definition_that_is_none(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    path = dataset(tmp_path, CASES["ragged"][2])
    where = tmp_path / "definitions" / "gqa_ragged" / "made_prefill_causal.json"
    made = json.loads(where.read_text())
    change(made)
    where.write_text(json.dumps(made))
    assert words in _refusal(path)
