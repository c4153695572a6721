"""RoPE against its definition in complex numbers, transformers, ONNX (test_onnx.py) and a Llama."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attncli
from attncli.attention.pose import pose
from attncli.attention.rope import Rope, rotate
from attncli.attention.rope_scaling import frequencies
from attncli.attention.words import ROPE_STYLES
from attncli.errors import InputError
from tests.support import budget, rope_cases
from tests.support.problems import normals
from tests.support.rope_cases import POSITIONS, SCALINGS, WIDTH

SAVED = dict(np.load(rope_cases.FILE))
normal = normals(1)


def turned(query: np.ndarray, key: np.ndarray | None = None, **options: Any) -> Any:
    rope = Rope.of(options.pop("rope", "half"))
    return pose(query, key, rope=rope, **options)


def by_complex_numbers(x: np.ndarray, angles: np.ndarray, style: str) -> np.ndarray:
    """The definition: each pair of channels of x is a number, times e^(i·angle)."""
    n = 2 * angles.shape[-1]
    pairs = x[..., :n].astype(np.float64)
    if style == "half":
        z = pairs[..., : n // 2] + 1j * pairs[..., n // 2 :]
    else:
        z = pairs[..., ::2] + 1j * pairs[..., 1::2]
    z = z * np.exp(1j * angles)
    both = [z.real, z.imag]
    back = np.concatenate(both, -1) if style == "half" else np.stack(both, -1).reshape(pairs.shape)
    return np.concatenate([back, x[..., n:]], -1)


def float32_band(x: np.ndarray, theta: float, factor: float = 1.0) -> Any:
    """What frequencies in float32, as transformers has them, do to turned x ``(…, L, D)``.

    A power θ^y is off by 1 + ln θ roundings, an angle by that times itself, at most the position.
    """
    angle_off = (3 + np.log(theta)) * POSITIONS[:, None, :, None]
    return budget.eps(np.float32) * (4 + angle_off) * factor * np.abs(x).max() * np.sqrt(2)


@given(
    style=st.sampled_from(ROPE_STYLES), pairs=st.integers(0, 6), rest=st.integers(0, 3),
    length=st.integers(1, 6), start=st.integers(-5, 2000), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_rotation_is_a_complex_product(
    style: str, pairs: int, rest: int, length: int, start: int, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(size=(2, length, 2 * pairs + rest))
    positions = start + np.arange(length)
    inverse, factor = frequencies(2 * pairs)
    assert factor == 1
    angles = positions[:, None] * inverse
    got = rotate(x, np.cos(angles), np.sin(angles), style)
    np.testing.assert_allclose(got, by_complex_numbers(x, angles, style), atol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), np.linalg.norm(x, axis=-1))
    np.testing.assert_array_equal(got[..., 2 * pairs :], x[..., 2 * pairs :])


@given(style=st.sampled_from(ROPE_STYLES), shift=st.integers(-3000, 3000), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_scores_depend_on_the_distance_alone(style: str, shift: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(7, 10))
    here = attncli.attend(x, rope=style, want=("scores",)).stages["scores"]
    moved = {"style": style, "positions": np.arange(7) + shift}
    there = attncli.attend(x, rope=moved, want=("scores",)).stages["scores"]
    np.testing.assert_allclose(there, here, atol=1e-11)
    plain = attncli.attend(x, want=("scores",)).stages["scores"]
    np.testing.assert_allclose(np.diag(here), np.diag(plain), atol=1e-12)


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    theta, length, scaling = SCALINGS[name]
    inverse, factor = frequencies(WIDTH, theta, scaling, length)
    theirs = SAVED[f"{name}_inverse"].astype(np.float64)
    # float32: a power, off by 1 + ln θ roundings; dynamic raises θ to another one first
    roundings = 4 + 2 * np.log(theta)
    assert (np.abs(inverse - theirs) <= budget.eps(np.float32) * roundings * inverse).all()
    assert factor == pytest.approx(float(SAVED[f"{name}_factor"]), rel=1e-15)


@pytest.mark.parametrize("name", SCALINGS)
def test_tensors_turn_as_in_transformers(name: str) -> None:
    theta, _, scaling = SCALINGS[name]
    x = rope_cases.query()
    problem = turned(x, rope=Rope("half", theta, positions=POSITIONS, scaling=scaling))
    error = np.abs(problem.query.astype(np.float64) - SAVED[f"{name}_turned"])
    band = float32_band(x, theta, float(SAVED[f"{name}_factor"]))
    assert (error <= band).all()
    other = turned(x, rope=Rope("half", theta, positions=POSITIONS))
    if name not in ("default", "dynamic_short"):
        assert (np.abs(other.query - SAVED[f"{name}_turned"]) > band).any()


@pytest.mark.parametrize(
    ("name", "rope"),
    [
        ("neox", {"style": "half", "dim": 8}),
        ("gptj", {"style": "interleaved"}),
        ("gptj_partial", {"style": "interleaved", "dim": 6}),
    ],
)
def test_partial_and_interleaved_as_in_transformers(name: str, rope: dict[str, Any]) -> None:
    x = rope_cases.query()
    problem = turned(x, rope=rope | {"positions": POSITIONS})
    error = np.abs(problem.query.astype(np.float64) - SAVED[f"{name}_turned"])
    assert (error <= float32_band(x, 10000.0)).all()


@pytest.mark.slow
def test_what_is_saved_is_what_transformers_makes() -> None:
    pytest.importorskip("transformers", reason="the saved values stand in for transformers")
    for name, array in rope_cases.made_by_transformers().items():
        np.testing.assert_allclose(SAVED[name], array, rtol=2**-20, atol=2**-20, err_msg=name)


def test_a_llama_layer_from_before_rope(backend: str) -> None:
    case = {k.removeprefix("tiny_llama_"): v for k, v in SAVED.items() if "tiny_llama" in k}
    tables = {"style": "half", "cos": case["cos"], "sin": case["sin"]}
    for rope in ("half", tables):
        result = attncli.attend(
            case["query"], case["key"], case["value"], rope=rope, mask="causal", backend=backend
        )
        problem = result.problem
        for name in ("query", "key"):
            # the model's tables are float32, up to position 19
            reach = np.abs(case[name]).max() * np.sqrt(2)
            band = budget.eps(np.float32) * (4 + 19 * (3 + np.log(10000))) * reach
            assert np.abs(getattr(problem, name) - case[f"turned_{name}"]).max() <= band
    # with the model's own tables only roundings are left
    right = attncli.attend(
        case["turned_query"], case["turned_key"], case["value"], mask="causal",
        backend="reference", dtype="float64",
    )  # fmt: skip
    budget.assert_close(
        "output", result.output, right.output, [case["output"]],
        budget.truth(problem).bands["output"],
    )  # fmt: skip


# --- where queries and keys stand -----------------------------------------------------------------


@pytest.mark.parametrize("style", ROPE_STYLES)
def test_decoding_with_a_past_is_the_whole_at_once(style: str) -> None:
    x = normal(2, 3, 9, 8)
    whole = attncli.attend(x, rope=style, mask="causal")
    first = turned(x[:, :, :6], rope=style)
    step = attncli.attend(
        x[:, :, 6:], x[:, :, 6:], x[:, :, 6:], rope=style, mask="causal",
        past_key=first.key, past_value=x[:, :, :6],
    )  # fmt: skip
    np.testing.assert_allclose(step.output, whole.output[:, :, 6:], atol=1e-13)
    np.testing.assert_array_equal(step.problem.key, whole.problem.key)
    np.testing.assert_array_equal(step.problem.query, whole.problem.query[:, :, 6:])


def test_fewer_queries_end_where_the_keys_end() -> None:
    x = normal(2, 1, 5, 4)
    whole = turned(x)
    one = turned(x[:, :, 4:], x)
    np.testing.assert_array_equal(one.query, whole.query[:, :, 4:])
    np.testing.assert_array_equal(one.key, whole.key)
    padded = turned(x[:, :, 1:3], x, kv_lengths=[3, 5])
    np.testing.assert_array_equal(padded.query[0], whole.query[0, :, 1:3])
    late = turned(x[:, :, 1:3], rope={"positions": [3, 4]})
    np.testing.assert_array_equal(padded.query[1], late.query[1])


def test_positions_move_a_sequence_of_the_batch() -> None:
    x = normal(2, 1, 3, 6)
    two = turned(x, rope={"positions": [[5, 6, 9], [0, 1, 2]]})
    np.testing.assert_array_equal(two.query[1], turned(x).query[1])
    np.testing.assert_array_equal(
        two.query[0], turned(x[:1], rope={"positions": [5.0, 6.0, 9.0]}).query[0]
    )
    last = turned(x[:, :, 2:], x, rope={"positions": [[5, 6, 9], [0, 1, 2]]})
    np.testing.assert_array_equal(last.query, two.query[:, :, 2:])


@pytest.mark.parametrize("style", ROPE_STYLES)
def test_given_tables_say_what_is_computed(style: str) -> None:
    x = normal(2, 2, 4, 8)
    right = turned(x, rope=style).query
    angles = np.arange(9)[:, None] * frequencies(8)[0]
    cos, sin = np.cos(angles), np.sin(angles)
    wide = [np.tile(t, 2) if style == "half" else np.repeat(t, 2, -1) for t in (cos, sin)]
    for c, s in ((cos, sin), wide):
        table = {"style": style, "cos": c, "sin": s}
        np.testing.assert_array_equal(turned(x, rope=table).query, right)
        at = turned(x, rope=table | {"positions": [3, 0, 8, 8]}).query
        np.testing.assert_array_equal(
            at, turned(x, rope={"style": style, "positions": [3, 0, 8, 8]}).query
        )
        rows = {"style": style, "cos": c[:4], "sin": s[:4]}
        np.testing.assert_array_equal(turned(x, rope=rows).query, right)
        rows = {"style": style, "cos": c[None, :4], "sin": s[None, :4]}
        np.testing.assert_array_equal(turned(x, rope=rows).query, right)
        np.testing.assert_array_equal(turned(x[:, :, 3:], x, rope=rows).query, right[:, :, 3:])
        past = x[:, :, :2]
        # with a past, as many rows as new keys are those of the new keys
        new = {"style": style, "cos": c[2:4], "sin": s[2:4]}
        step = turned(x[:, :, 2:], x[:, :, 2:], rope=new, past_key=past, past_value=past)
        np.testing.assert_array_equal(step.query, right[:, :, 2:])
        np.testing.assert_array_equal(step.key[:, :, :2], past)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_each_number_is_rounded_once(dtype: Any) -> None:
    x = normal(1, 2, 50, 16).astype(dtype)
    got = turned(x).query
    assert got.dtype == dtype
    angles = np.arange(50)[:, None] * frequencies(16)[0]
    right = by_complex_numbers(x, angles, "half")
    wide = np.float64 if np.dtype(dtype).itemsize == 8 else np.float32
    reach = np.abs(x.astype(np.float64)).max() * np.sqrt(2)
    band = budget.eps(dtype) / 2 * np.abs(right) + 3 * budget.eps(wide) * reach
    assert (np.abs(got.astype(np.float64) - right) <= band + 2.0**-24 * (wide != dtype)).all()


def test_packed_and_blhd_turn_alike() -> None:
    x = normal(2, 3, 5, 4)
    right = turned(x)
    swapped = x.swapaxes(1, 2)
    np.testing.assert_array_equal(turned(swapped, layout="blhd").query, right.query)
    np.testing.assert_array_equal(turned(swapped.reshape(2, 5, 12), heads=3).query, right.query)
    np.testing.assert_array_equal(turned(x[0, 0]).query, right.query[:1, :1])
    np.testing.assert_array_equal(right.value, x)


def test_a_packed_query_takes_a_cache_with_heads() -> None:
    x, cache = normal(2, 3, 5, 4), normal(2, 3, 2, 4)
    flat = x.swapaxes(1, 2).reshape(2, 5, 12)
    right = attncli.attend(x, x, x, past_key=cache, past_value=cache).output
    for past in (cache, cache.swapaxes(1, 2).reshape(2, 2, 12)):
        got = attncli.attend(flat, flat, flat, heads=3, past_key=past, past_value=past).output
        np.testing.assert_allclose(got, right.swapaxes(1, 2).reshape(2, 5, 12), atol=1e-14)
    one = attncli.attend(flat[0], flat[0], heads=3, past_key=cache[0], past_value=cache[0])
    np.testing.assert_array_equal(one.problem.key[:, :, :2], cache[:1])


def test_nothing_to_turn() -> None:
    assert turned(np.ones((0, 4))).query.shape == (1, 1, 0, 4)
    assert turned(np.ones((3, 0))).query.shape == (1, 1, 3, 0)
    x = normal(3, 4)
    np.testing.assert_array_equal(turned(x, rope={"positions": [0, 0, 0]}).query[0, 0], x)


def test_a_rope_says_what_it_is() -> None:
    assert Rope().text == "half, θ 10000"
    yarn = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 64, "mscale": None}
    assert Rope("half", 5e5, 64, scaling=yarn).text == "half, θ 500000, 64 channels, yarn ×4"
    cos = np.ones((2, 2))
    assert Rope("interleaved", cos=cos, sin=cos).text == "interleaved, given cos and sin"


# --- bad input ------------------------------------------------------------------------------------

X = np.ones((2, 3, 4, 8))
T = np.ones((4, 4))
LLAMA = dict(SCALINGS["llama3"][2] or {})

BAD: list[tuple[dict[str, Any], str]] = [
    ({"rope": "halves"}, "it must be half or interleaved"),
    ({"rope": {"style": "half", "base": 3}}, "no option 'base'"),
    ({"rope": {"theta": 0}}, "theta is 0"),
    ({"rope": {"theta": "10000"}}, "positive number"),
    ({"rope": {"theta": float("nan")}}, "theta is nan"),
    ({"rope": {"dim": 3}}, "give an even number"),
    ({"rope": {"dim": 0}}, "width is 0"),
    ({"rope": {"dim": 4.0}}, "width is 4.0"),
    ({"rope": {"dim": 10}}, "width is 10 but the head has 8 channels"),
    ({"query": np.ones((3, 7))}, "in pairs but the head has 7"),
    ({"query": np.ones((3, 7)), "rope": {"dim": 8}}, "give at most 6"),
    ({"rope": {"positions": [0, 1, 2]}}, "(3,) but there are 4 new keys"),
    ({"rope": {"positions": np.zeros((3, 4))}}, "in a batch of 2"),
    ({"rope": {"positions": 3}}, "() but there are 4"),
    ({"rope": {"positions": ["a"] * 4}}, "one finite number"),
    ({"rope": {"positions": [0, 1, 2, np.inf]}}, "finite"),
    ({"rope": {"positions": [0, 1, 2]}, "key": X[:, :, :3]}, "there are 4 queries"),
    ({"rope": {"cos": T}}, "cos is given without sin"),
    ({"rope": {"sin": T}}, "sin is given without cos"),
    ({"rope": {"cos": T, "sin": T[:3]}}, "sin is (3, 4) but cos is (4, 4)"),
    ({"rope": {"cos": T[:3], "sin": T[:3]}}, "positions 0 to 2, but one is 3"),
    ({"rope": {"cos": T, "sin": T, "positions": [0, 1, 2, 4]}}, "positions 0 to 3, but one is 4"),
    ({"rope": {"cos": T, "sin": T, "positions": [0, 1, 2, -1]}}, "but one is -1"),
    ({"rope": {"cos": T, "sin": T, "positions": [0, 1, 2, 0.5]}}, "but one is 0.5"),
    ({"rope": {"cos": T[:, :3], "sin": T[:, :3]}}, "cos is (4, 3) but 8 channels turn"),
    ({"rope": {"cos": T[0], "sin": T[0]}}, "cos is (4,)"),
    ({"rope": {"cos": T[None, :3], "sin": T[None, :3]}}, "cos is (1, 3, 4) but there are 4 new"),
    ({"rope": {"cos": T[None], "sin": T[None], "positions": [0, 1, 2, 3]}}, "leave them out"),
    ({"rope": {"cos": T + 1j, "sin": T}}, "complex"),
    ({"rope": {"cos": T[None, :3], "sin": T[None, :3]}, "key": X[:, :, :3]}, "rows for 3 keys"),
    ({"rope": {"cos": T, "sin": T, "scaling": {"rope_type": "linear", "factor": 2}}}, "scaling"),
    ({"rope": {"scaling": {"rope_type": "ntk"}}}, "unknown RoPE scaling 'ntk'"),
    ({"rope": {"scaling": {"factor": 2}}}, "no rope_type"),
    ({"rope": {"scaling": {"rope_type": "linear"}}}, "'linear' needs factor"),
    ({"rope": {"scaling": {"rope_type": "dynamic", "factor": 2}}}, "max_position_embeddings"),
    ({"rope": {"scaling": {"rope_type": "linear", "factor": 0}}}, "factor is 0"),
    ({"rope": {"scaling": {"rope_type": "linear", "factor": "2"}}}, "factor is '2'"),
    ({"rope": {"scaling": {"rope_type": "linear", "factor": True}}}, "factor is True"),
    ({"rope": {"scaling": {"rope_type": "linear", "factor": 2, "x": 1}}}, "no parameter x"),
    ({"rope": {"scaling": {"rope_type": "default", "rope_theta": 1e4}}}, "option of its own"),
    ({"rope": {"scaling": LLAMA | {"high_freq_factor": 1}}}, "1 and 4 are usual"),
    ({"rope": {"theta": 1, "scaling": SCALINGS["yarn"][2]}}, "theta above 1"),
    ({"rope": {"scaling": dict(SCALINGS["yarn"][2] or {}, truncate=1)}}, "true or false"),
    ({"rope": {"dim": 2, "scaling": SCALINGS["dynamic"][2]}}, "at least 4"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "fragment"), BAD)
def test_what_does_not_fit_is_said(options: dict[str, Any], fragment: str) -> None:
    arguments = {"query": X, "rope": "half"} | options
    with pytest.raises(InputError) as caught:
        attncli.attend(**arguments)
    assert fragment in str(caught.value)
    assert caught.value.exit_code == 2


def test_channels_that_look_of_the_other_style_are_refused() -> None:
    angles = np.arange(4)[:, None] * frequencies(8)[0]
    halves = {"cos": np.tile(np.cos(angles), 2), "sin": np.tile(np.sin(angles), 2)}
    with pytest.raises(InputError, match="it looks half"):
        turned(X, rope=halves | {"style": "interleaved"})
    with pytest.raises(InputError, match="one number per pair"):
        turned(X, rope={"cos": np.cos(normal(4, 8)), "sin": np.sin(normal(4, 8))})


def test_a_past_and_kv_lengths_contradict_each_other() -> None:
    with pytest.raises(InputError, match="two ways to say where the queries stand"):
        pose(X, past_key=X, past_value=X, kv_lengths=[1, 2])
