"""The stages with their arithmetic written out."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention import language
from attncli.attention.definition import stages
from attncli.attention.pose import pose
from attncli.attention.rope import Rope
from attncli.attention.view import Labels, View
from attncli.errors import InputError
from attncli.reports.blocks import Step
from tests.support.reports import problem, reported

RNG = np.random.default_rng(7)


def test_steps_are_the_stages_with_their_arithmetic() -> None:
    asked = pose(
        [[2.0, 0.0]], [[1.0, 3.0], [0.0, -1.0]], [[10.0], [-4.0]],
        scale=0.5, softcap=4.0, sink=0.0, mask=[language.masker("prefix(2)")],
    )  # fmt: skip
    steps = [b for b in reported(asked, View(steps=True)).blocks if isinstance(b, Step)]
    assert [(s.number, s.name) for s in steps] == [
        (1, "scores"), (2, "scaled"), (3, "softcapped"), (4, "masked"), (5, "weights"),
        (6, "output"),
    ]  # fmt: skip
    assert steps[0].lines == ["q0·k0 = 2×1 + 0×3 = 2.000", "q0·k1 = 2×0 + 0×(-1) = 0.000"]
    assert steps[1].lines == ["q0·k0: 2.000 × 0.5 = 1.000, and 1 more key alike"]
    assert steps[2].lines == ["q0·k0: 4×tanh(1.000 / 4) = 0.980, and 1 more key alike"]
    assert steps[3].formula == "prefix(2)"
    assert steps[4].meaning == "each row and its sink sum to 1"
    assert steps[4].lines == [
        "k0: exp(0.980 − 0.980) = 1.000",
        "k1: exp(0.000 − 0.980) = 0.375",
        "sum for q0: 1.000 + 0.375 + 0.375 of the sink = 1.751",
        "q0 → k0: 1.000 / 1.751 = 0.571",
        "q0 → k1: 0.375 / 1.751 = 0.214",
    ]
    assert steps[5].meaning == "0.571×10 + 0.214×(-4) = 4.854"


def test_steps_of_some_rows_and_keys_count_the_others() -> None:
    asked = problem(1, 2, 30, mask="causal")
    view = View(steps=True, head=(1,), rows=(5,), keys=(0, 1, 29))
    steps = [b for b in reported(asked, view).blocks if isinstance(b, Step)]
    text = "\n".join(line for step in steps for line in step.lines)
    assert "of 27 other keys" in text
    assert "29: hidden, 0" in text
    assert steps[0].table is not None
    stage = stages(asked, 0, 1, np.array([5]))
    raw = stage["scores"][:, [0, 1, 29]] / asked.scale
    np.testing.assert_allclose(np.array(steps[0].table.rows), raw)
    whole = stage["weights"] @ np.asarray(asked.value[0, 1])
    assert f"= {whole[0, 0]:.3f}" in steps[-1].lines[0]


def test_steps_of_a_row_that_sees_nothing() -> None:
    asked = problem(queries=2, mask="prefix(0)")
    steps = [b for b in reported(asked, View(steps=True)).blocks if isinstance(b, Step)]
    assert steps[3].lines == ["q0 sees no key: its weights are 0"]


@pytest.mark.parametrize(("flag", "shape"), [("--rows", (13, 2)), ("--keys", (2, 13))])
def test_steps_of_too_much_say_what_to_choose(flag: str, shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"13 .* are too many(?s:.)*{flag} 0:4"):
        reported(problem(queries=shape[0], keys=shape[1]), View(steps=True))


def test_steps_show_how_rope_turned() -> None:
    asked = pose([[1.0, 0.0], [0.5, 2.0]], rope=Rope("half"), scale=1)
    steps = [b for b in reported(asked, View(steps=True, rows=(1,))).blocks if isinstance(b, Step)]
    assert [s.name for s in steps[:2]] == ["turned", "scores"]
    assert steps[0].formula == "RoPE half, θ 10000"
    assert steps[0].table
    assert steps[0].table.labels == ["query q1", "key k0", "key k1"]
    c, s = np.cos(1), np.sin(1)
    np.testing.assert_allclose(steps[0].table.rows[0], [0.5 * c - 2 * s, 2 * c + 0.5 * s])
    assert steps[0].lines[0] == "query q1 [0, 1]: (0.500, 2.000) turned by 57.3° = (-1.413, 1.501)"
    assert steps[0].lines[1] == "key k0 [0, 1]: (1.000, 0.000) turned by 0.0° = (1.000, 0.000)"


def test_steps_of_rope_with_cached_keys_and_pairs_side_by_side() -> None:
    new, past = RNG.standard_normal((2, 4)), RNG.standard_normal((3, 4))
    asked = pose(
        new, new, new, past_key=past, past_value=past, rope=Rope("interleaved", dim=2)
    )  # fmt: skip
    steps = [b for b in reported(asked, View(steps=True)).blocks if isinstance(b, Step)]
    assert steps[0].table
    assert steps[0].table.labels == ["query q0", "query q1", "key k3", "key k4"]
    assert "cached keys are turned already" in steps[0].meaning
    first = f"({new[0, 0]:.3f}, {new[0, 1]:.3f}) turned by 171.9°"
    assert steps[0].lines[0].startswith(f"query q0 [0, 1]: {first}")


def test_steps_claim_no_infinity_for_a_finite_bias() -> None:
    for bias, hides in (([[0.5, -1.0]], False), ([[0.5, -np.inf]], True)):
        asked = pose(
            [[1.0]], [[1.0], [2.0]], [[1.0], [2.0]],
            mask=[language.tensor_masker(np.array(bias), "keep")],
        )  # fmt: skip
        steps = [b for b in reported(asked, View(steps=True)).blocks if isinstance(b, Step)]
        masked = next(s for s in steps if s.name == "masked")
        assert "a bias is added" in masked.meaning
        assert ("−∞" in masked.meaning) == hides


def test_steps_name_rows_and_keys_alike_in_tables_and_arithmetic() -> None:
    asked = problem(queries=2)
    for labels, names in ((None, ["q0", "q1"]), (Labels(((" a", "b "),)), ["␣a", "b␣"])):
        steps = list(reported(asked, View(steps=True), labels=labels).blocks)[-4:]
        assert isinstance(steps[0], Step)
        first = next(s for s in steps if isinstance(s, Step) and s.table)
        assert first.table
        assert list(first.table.labels) == names
        worked = [line for s in steps if isinstance(s, Step) for line in s.lines]
        assert any(f"sum for {names[0]}" in line for line in worked)
