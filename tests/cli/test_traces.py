"""Workloads of FlashInfer Trace through the command line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from tests.support.program import Door
from tests.support.traces import dataset, expected, paged, ragged


def test_compute_reads_a_file_of_workloads_line_by_line(tmp_path: Path, door: Door) -> None:
    inputs = paged([3, 2], [[2, 0, 5], [1]], [2, 4])
    path = dataset(tmp_path, inputs, "gqa_paged")
    line = path.read_text()
    path.write_text(line + line.replace("7f-1", "8a-2").replace("./blob", "./nowhere"))
    ran = door("compute", path, "--include", "output,lse")
    good, bad = ran.lines
    output, lse = expected(inputs)
    assert ran.code == 1
    assert good["id"] == "7f-1"
    assert np.abs(np.array(good["output"]) - output).max() < 2**-7
    np.testing.assert_allclose(np.array(good["lse"], float).T, lse, rtol=1e-5)
    assert (bad["line"], bad["error"]["code"]) == (2, "bad_file")
    assert "nowhere" in bad["error"]["message"]
    assert "made_prefill_causal: its reference code is not executed" in good["notes"]


def test_the_answers_of_a_data_set_are_those_in_base_2(tmp_path: Path, door: Door) -> None:
    inputs = ragged([3], [4])
    ran = door("compute", dataset(tmp_path, inputs), "--json", "--include", "lse")
    query, key = inputs["q"].astype(float)[0, 0], inputs["k"].astype(float)[:2, 0]
    in_base_2 = math.log2(sum(2 ** (0.3 * float(query @ k) / math.log(2)) for k in key))
    assert math.isclose(ran.data["lse"][0][0] / math.log(2), in_base_2, rel_tol=1e-5)


def test_what_is_not_causal_is_made_so_by_the_flag(tmp_path: Path, door: Door) -> None:
    inputs = ragged([2, 3], [4, 3])
    path = dataset(tmp_path, inputs, name="made_prefill")
    for flags, causal in ((), False), (("--causal",), True):
        ran = door("compute", path, "--json", *flags)
        assert np.abs(np.array(ran.data["output"]) - expected(inputs, causal)[0]).max() < 2**-7
        assert any("does not say causal" in note for note in ran.data["notes"])


def test_a_pipe_has_no_data_set(tmp_path: Path, attncli: Door) -> None:
    line = dataset(tmp_path, ragged([2], [2])).read_text()
    ran = attncli("compute", "-", stdin=line)
    assert ran.code == 2
    assert "its data set cannot be found from there" in ran.err
