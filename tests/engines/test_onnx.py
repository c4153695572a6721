"""ONNX's own node tests: 93 of Attention (opsets 23 to 25) and 8 of RotaryEmbedding.

Each runs on every engine, and through the command line; all outputs are compared, under the error
budget. tests/README.md shows the table, and here it is held to be true.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the node tests come from the package onnx==1.23.2")

import attncli as attncli_package
from tests.support import onnx_cases
from tests.support.engines import ENGINES, WHOLE, missing, options_of
from tests.support.onnx_cases import Case, cases
from tests.support.program import Door

CASES = cases()
README = Path(__file__).parents[1] / "README.md"

#: Mistakes that the data of a node test cannot show: the mask keeps everything, another mask or
#: the lengths say the same, or all values are equal.
UNTELLABLE = {
    ("attention_4d_attn_mask_bool", "no attn_mask"),
    ("attention_4d_attn_mask_bool_4d", "no attn_mask"),
    ("attention_local_window_rank1_boolean_mask", "no attn_mask"),
    ("attention_4d_gqa_causal_nonpad_decode", "no causal, no window"),
    ("attention_4d_gqa_causal_nonpad_decode_fp16", "no causal, no window"),
    ("attention_causal_boolmask_nan_robustness", "no causal, no window"),
    ("attention_4d_causal_nonpad_continued_prefill", "lengths"),
    ("attention_local_window_ext_cache_float16_mask", "no attn_mask"),
    ("attention_local_window_ext_cache_float16_mask", "lengths"),
    ("attention_local_window_ext_cache_float16_mask", "no causal, no window"),
    ("attention_local_window_ext_cache_float16_mask", "window off by one"),
}


#: What each engine can say: those that are partial make no qk_matmul_output.
SAID = [
    pytest.param(case, engine, id=f"{case.name}-{engine}")
    for engine in ENGINES
    for case in CASES
    if engine in WHOLE or case.tap is None
]


def by_name(case: Case) -> str:
    return case.name


def test_there_are_93_and_8() -> None:
    operators = [case.operator for case in CASES]
    assert (operators.count("Attention"), operators.count("RotaryEmbedding")) == (93, 8)
    assert {case.opset for case in CASES} == {23, 24, 25}
    assert {case.tap for case in CASES} == {None, *onnx_cases.TAPS}
    assert len({case.name for case in CASES}) == 101


@pytest.mark.parametrize(("case", "engine"), SAID)
def test_node(case: Case, engine: str) -> None:
    case.run(**options_of(engine))


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_a_mistaken_convention_is_noticed(case: Case) -> None:
    for what, arguments in case.wrong_ways():
        result = attncli_package.attend(**arguments, backend="reference")
        if (case.name, what) in UNTELLABLE:
            case.check(case.results(result), result.problem)
        else:
            with pytest.raises(AssertionError):
                case.check(case.results(result), result.problem)


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_node_through_the_door(case: Case, door: Door, tmp_path: Path) -> None:
    ran = door(*case.command(tmp_path))
    assert ran.code == 0, ran.err
    case.check_saved(tmp_path / "out.safetensors")


@pytest.mark.parametrize("case", CASES[::10], ids=by_name)
def test_node_through_the_program(case: Case, attncli: Door, tmp_path: Path) -> None:
    ran = attncli(*case.command(tmp_path))
    assert ran.code == 0, ran.err
    case.check_saved(tmp_path / "out.safetensors")


def test_the_table_is_true() -> None:
    """What tests/README.md claims is what happens, for the engines that run here."""
    written = re.findall(r"^\|.*\|$", README.read_text("utf-8"), re.M)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in written]
    head = next(i for i, row in enumerate(rows) if row[0] == "node tests")
    engines = rows[head][2:]
    assert {"reference", "numpy", "torch"} <= set(engines) <= set(ENGINES)
    here = [name for name in engines if missing(name) is None]
    table = list(onnx_cases.table(here))
    columns = [0, 1, *(2 + engines.index(name) for name in here)]
    for made, row in zip(table[2:], rows[head + 2 :], strict=False):
        assert made == f"| {' | '.join(row[i] for i in columns)} |"
    assert rows[head + len(table) - 1][0] == "**all**"
