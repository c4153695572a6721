"""Healthy attention is called healthy, sick attention is found and named; the policy; the door."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.cli import groups
from attncli.cli.given import attention
from attncli.errors import AttnError, FileError, InputError
from attncli.measures import policy, roles
from attncli.studies import health
from tests.conftest import ROOT, Ran

SAMPLE = ROOT / "samples" / "minilm.safetensors"
Door = Callable[..., Ran]


@pytest.fixture(scope="module")
def minilm() -> tuple[Problem, Any]:
    given = attention.gather(files.read(str(SAMPLE)), groups.Problem())
    problem = given.pose()
    return problem, given.labels(problem).key


def found(problem: Problem, tokens: Any = None, **how: Any) -> list[dict[str, str]]:
    """The findings of every head: name → level."""
    done = health.examine(problem, tokens=tokens, **how)
    return [{f.name: f.level for f in head.verdict.findings} for head in done.heads]


def levels(problem: Problem, tokens: Any = None) -> list[str]:
    return [head.verdict.level for head in health.examine(problem, tokens=tokens).heads]


# -- healthy ----------------------------------------------------------------------------------


def test_a_real_layer_is_healthy(minilm: tuple[Problem, Any]) -> None:
    problem, tokens = minilm
    done = health.examine(problem, tokens=tokens)
    assert [head.verdict.level for head in done.heads] == ["ok"] * 36
    places = {role.words.split(" ")[0] for head in done.heads for role in head.roles[:1]}
    assert places == {"[CLS]"}  # a sink on the first token is said, and is no fault
    assert all(role.sink for head in done.heads for role in head.roles[:1])
    second = [role.name for head in done.heads if head.head == 11 for role in head.roles[1:]]
    assert second == ["previous token"] * 3


def test_padding_rows_are_left_out(minilm: tuple[Problem, Any]) -> None:
    problem, tokens = minilm
    done = health.examine(problem, tokens=tokens)
    assert np.asarray(done.found["rows"])[:, 0].tolist() == [18, 13, 15]
    assert done.found["dead_rows"].sum() == 0  # type: ignore[union-attr]


def test_a_sharp_head_on_a_fixed_place_is_healthy() -> None:
    """Such as MiniLM's previous-token head, with a mean weight of 1.00."""
    length, width = 40, 48
    key = np.eye(length, width)
    problem = pose(
        10 * width**0.5 * np.eye(length, width, k=-1),
        key,
        np.random.default_rng(0).normal(size=(length, 4)),
    )
    (head,) = health.examine(problem).heads
    assert head.verdict.level == "ok"
    assert head.roles[0].name == "previous token" and head.roles[0].share > 0.95
    assert any("fixed place" in reason for reason in head.verdict.reasons)


def test_random_attention_is_healthy() -> None:
    rng = np.random.default_rng(0)
    for length in (1, 2, 5, 16, 100):
        q, k, v = rng.normal(size=(3, 4, length, 16))
        assert levels(pose(q, k, v)) == ["ok"] * 4
        assert "critical" not in levels(pose(q, k, v, mask=masker("causal")))


# -- sick -------------------------------------------------------------------------------------


def test_logits_times_fifty_are_saturated(minilm: tuple[Problem, Any]) -> None:
    problem, tokens = minilm
    sick = found(replace(problem, query=problem.query * 50), tokens)
    assert all({"saturated", "collapsed"} & set(head) for head in sick)
    assert all("critical" in head.values() for head in sick)
    assert sum("saturated" in head for head in sick) >= 30


def test_equal_keys_are_flat(minilm: tuple[Problem, Any]) -> None:
    problem, tokens = minilm
    same = np.broadcast_to(problem.key[:, :, :1], problem.key.shape)
    assert all(head["flat"] == "critical" for head in found(replace(problem, key=same), tokens))


def test_a_copied_head_is_a_duplicate(minilm: tuple[Problem, Any]) -> None:
    problem, tokens = minilm
    copies = {n: getattr(problem, n).copy() for n in ("query", "key", "value")}
    for array in copies.values():
        array[:, 7] = array[:, 2]
    done = health.examine(replace(problem, **copies), tokens=tokens)
    named = [h.head for h in done.heads if any(f.name == "duplicate" for f in h.verdict.findings)]
    assert named == [2, 7] * 3
    assert "head 7" in done.heads[2].verdict.reasons[0]


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_nan_is_found_in_its_head(name: str, bad: float, minilm: tuple[Problem, Any]) -> None:
    problem, tokens = minilm
    array = getattr(problem, name).copy()
    array[1, 4, 3, 5] = bad
    sick = found(replace(problem, **{name: array}), tokens)
    assert [n for n, head in enumerate(sick) if "not_finite" in head] == [16]
    assert sick[16]["not_finite"] == "critical"


def test_float16_overflow() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 64)) * 60
    (wide,) = found(pose(x.astype(np.float32)))
    assert wide["overflow"] == "watch"
    (half,) = found(pose(x.astype(np.float16)))
    assert half["overflow_now"] == "critical" and "overflow" not in half


def test_dead_rows_silence_and_rank_collapse() -> None:
    x = np.random.default_rng(0).normal(size=(8, 4))
    (some,) = found(pose(x, mask=masker("~global_rows(2)")))
    assert some["dead"] == "watch"
    (most,) = found(pose(x, mask=masker("~global_rows(6)")))
    assert most["dead"] == "critical"
    (silent,) = found(pose(x, x, x * 0))
    assert silent["silent"] == "watch"
    (same,) = found(pose(x, x, np.ones((8, 4)) + 1e-4 * x))
    assert same["rank_collapse"] == "watch"


def test_no_scale_is_vanishing() -> None:
    q, k, v = np.random.default_rng(0).normal(size=(3, 256, 1000))
    (head,) = found(pose(q, k, v, scale="none"))
    assert head["vanishing"] == "watch" and head["saturated"] == "watch"
    assert found(pose(q, k, v)) == [{}]


def test_large_logits_alone_are_a_hint() -> None:
    """A healthy DINOv2 reaches 282."""
    rule = next(rule for rule in policy.POLICY if rule.name == "large_logits")
    assert rule.limit(99) is None and rule.limit(282) == "hint" and rule.limit(2000) == "watch"
    verdict = policy.judge({"logit_max": 282.0}, 0.0)
    assert verdict.level == "ok" and verdict.reasons == ["its largest logit is 282"]


# -- what heads look at -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "name"), [(-1, "previous token"), (0, "self"), (1, "next token")]
)
def test_heads_that_look_near_by(shift: int, name: str) -> None:
    length = 30
    problem = pose(60 * np.eye(length, 40, k=shift), np.eye(length, 40))
    (head,) = health.examine(problem).heads
    assert head.roles[0].name == name


def test_separators_first_token_local_and_content() -> None:
    tokens = ["[CLS]", *"abcdefgh", ".", *"ijklmnop", "[SEP]"]
    length = len(tokens)
    toward = np.zeros((length, 2))
    toward[[9, length - 1]] = [5.0, 0.0]
    problem = pose(np.tile([3.0, 0.0], (length, 1)), toward)
    (head,) = health.examine(problem, tokens=[tokens]).heads
    assert head.roles[0].name == "separators" and head.roles[0].share > 0.9
    near = pose(np.zeros((200, 1)), mask=masker("alibi(0.4)"))
    (head,) = health.examine(near).heads
    assert [role.name for role in head.roles] == ["local"]
    scattered = np.random.default_rng(3).permutation(60)
    content = pose(np.eye(60)[scattered] * 60, np.eye(60))
    (head,) = health.examine(content).heads
    assert [role.name for role in head.roles] == ["by content"]


def test_role_words() -> None:
    assert roles.Role("first token", 0.84, "[CLS]", sink=True).words == "[CLS] 84 % (sink)"
    assert roles.Role("broad", 0.9).words == "broad"


# -- policy -----------------------------------------------------------------------------------


def test_a_policy_changes_limits(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text(
        "[saturated]\nwatch = 0.25\ncritical = false\n\n[flat]\nwatch = 1\ncritical = 2\n"
    )
    rules = {rule.name: rule for rule in policy.read_policy(str(path))}
    assert (rules["saturated"].watch, rules["saturated"].critical) == (0.25, None)
    assert rules["flat"].critical == 2.0
    assert rules["dead"] == next(rule for rule in policy.POLICY if rule.name == "dead")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[saturatd]\nwatch = 1", "did you mean 'saturated'"),
        ("[saturated]\nwach = 1", "did you mean 'watch'"),
        ("[saturated]\nwatch = 'high'", "watch of [saturated] is 'high'"),
        ("[saturated]\nwatch = true", "is true"),
        ("[saturated]\nwatch = nan", "expected a number"),
        ("[saturated]\nwatch = [1]", "expected a number"),
        ("saturated = 0.5", "not a section"),
        ("[saturated]\nwatch = 0.95", "must be the larger one"),
        ("[collapsed]\ncritical = 1.0", "must be the smaller one"),
        ("[saturated", "no TOML"),
        ("\xff", "no TOML"),
    ],
)
def test_a_policy_that_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(AttnError) as error:
        policy.read_policy(str(path))
    assert message in str(error.value)


def test_a_policy_that_is_not_there() -> None:
    with pytest.raises(FileError, match="no such file"):
        policy.read_policy("/nowhere/limits.toml")
    assert policy.changed({}) == policy.POLICY
    with pytest.raises(InputError):
        policy.changed({"flat": 3})


def test_every_rule_reads_a_statistic_and_has_a_source() -> None:
    assert all(rule.source for rule in policy.POLICY)
    policy.check(policy.POLICY)
    (flat,) = (rule for rule in policy.POLICY if rule.name == "flat")
    for change in ({"statistic": "entropi"}, {"quantile": ""}, {"quantile": "cv"}, {"unless": "x"}):
        with pytest.raises(AssertionError, match="flat"):
            policy.check([replace(flat, **change)])


# -- the door ---------------------------------------------------------------------------------


def test_the_table(door: Door) -> None:
    ran = door("inspect", SAMPLE, "--what-if", "scale=none", "--what-if", "dtype=float16")
    assert ran.code == 0 and ran.err == ""
    lines = ran.out.splitlines()
    assert lines[0] == "36 heads (3 × 12) · 0 critical · 0 watch · 36 ok"
    assert "padding(18, 13, 15)" in ran.out and "upstream gradient dO (seed 0)" in ran.out
    assert max(map(len, lines)) <= 80
    assert "[CLS] 84 %" in ran.out or "[CLS] 82 %" in ran.out
    for title in ("Scale", "What if", "1/√32", "dtype=float16"):
        assert title in ran.out
    assert "Without the scale 70 % of the rows saturate (with it 1 %)" in " ".join(ran.out.split())


def test_json_carries_every_statistic(door: Door) -> None:
    ran = door("inspect", SAMPLE, "--what-if", "qk_clip=5, sink=0", "--json", "--head", "2")
    data = ran.data
    assert data["schema"] == "attncli.inspect/1" and len(data["heads"]) == 3
    head = data["heads"][0]
    assert (head["batch"], head["head"], head["verdict"], head["reasons"]) == (0, 2, "ok", [])
    assert head["roles"][0]["role"] == "first token" and head["roles"][0]["token"] == "[CLS]"
    assert set(head["statistics"]["entropy"]) == {"mean", "p05", "median", "p95", "min", "max"}
    assert set(head["statistics"]) >= {
        "jacobian_spectral", "grad_query_norm", "vanishing_share", "sink_key", "mean_distance",
        "head_similarity", "effective_rank", "rank_residual", "overflow_room", "logit_std_ratio",
    }  # fmt: skip
    assert [one["scale"] for one in data["scale_effect"]] == ["1/√32", "none"]
    assert data["what_if"][0]["what"] == "qk_clip=5, sink=0"
    assert data["what_if"][0]["output_change"] > 0.1 and len(data["what_if"][0]["heads"]) == 3
    assert data["summary"]["ok"] == 3


def test_csv_and_markdown(door: Door) -> None:
    lines = door("inspect", SAMPLE, "--format", "csv").out.splitlines()
    assert len(lines) == 37 and lines[0].startswith(
        "batch,head,verdict,reasons,looks_at,entropy_mean"
    )
    assert "| head | verdict |" in door("inspect", SAMPLE, "--format", "markdown").out


def test_row_statistics(door: Door, tmp_path: Path) -> None:
    ran = door("inspect", SAMPLE, "--include", "row_statistics", "-o", "rows.npz")
    assert ran.code == 0 and "wrote rows.npz (row_statistics)" in ran.err
    saved = np.load(tmp_path / "rows.npz")
    assert saved["row_statistics.grad_query_norm"].shape == (3, 12, 18)
    data = door("inspect", SAMPLE, "--include", "row_statistics", "--json").data
    got = np.asarray(data["row_statistics"]["entropy"], float)
    np.testing.assert_allclose(got, saved["row_statistics.entropy"])


def test_fail_on_and_policy(door: Door, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text("[large_logits]\nwatch = 8\nhint = 8\n")
    assert door("inspect", SAMPLE, "--fail-on", "watch").code == 0
    ran = door("inspect", SAMPLE, "--fail-on", "watch", "--policy", "limits.toml")
    assert ran.code == 1 and "its largest logit is 8.58" in ran.out
    assert door("inspect", SAMPLE, "--fail-on", "critical", "--policy", "limits.toml").code == 0
    assert (
        door("inspect", SAMPLE, "--fail-on", "watch", "--policy", "limits.toml", "--head", "0").code
        == 0
    )


def test_many_heads_show_the_telling_ones(door: Door, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 20, 6, 8))
    np.savez(tmp_path / "many.npz", query=x, key=x[::-1], value=x)
    ran = door("inspect", "many.npz")
    assert "16 of 80 heads, all ok" in ran.out and len(ran.out.splitlines()) < 40
    x[2, 3, 1, 1] = np.nan
    np.savez(tmp_path / "many.npz", query=x, key=np.ones_like(x), value=x)
    assert "40 of 80 heads, the worst of 80" in door("inspect", "many.npz").out
    assert "head 2/3 critical: 100 % of its rows are NaN" in door("inspect", "many.npz").out


def test_sweep_dim(door: Door) -> None:
    ran = door("inspect", "--sweep-dim", "8,64")
    assert ran.code == 0 and "unit-normal" in ran.out.splitlines()[0]
    assert "at d = 64" in ran.out and max(map(len, ran.out.splitlines())) <= 80
    data = door("inspect", "--sweep-dim", "8,64", "--json", "--seed", "1").data
    assert [one["dim"] for one in data["sweep_dim"]] == [8, 64]
    assert data["sweep_dim"][1]["none"]["score_variance"] == pytest.approx(64, rel=0.1)


def test_ndjson(attncli: Door, door: Door, tmp_path: Path) -> None:
    (tmp_path / "two.ndjson").write_text(
        '{"query": [[1, 0], [0, 1]]}\n{"query": [[1, 0], [0, 1]], "scale": "none"}\n'
    )
    ran = door("inspect", "two.ndjson")
    assert ran.code == 0 and [len(line["heads"]) for line in ran.lines] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to inspect"),
        ((SAMPLE, "--what-if", "scal=none"), "did you mean 'scale'"),
        ((SAMPLE, "--policy", "missing.toml"), "missing.toml: no such file"),
        ((SAMPLE, "--fail-on", "criticl"), "did you mean 'critical'"),
        ((SAMPLE, "--include", "weights"), "nothing is called 'weights'"),
        ((SAMPLE, "--head", "12"), "out of range"),
        ((SAMPLE, "--sweep-dim", "8"), "leave one of the two out"),
        (("--sweep-dim", "8,x"), "'x' is no width"),
        (("--sweep-dim", ","), "names no width"),
        ((SAMPLE, "--header", "--what-if", "scale=none"), "leave one of them out"),
        (("w.npz", "--fail-on", "watch"), "w.npz has no query: it holds weight, bias"),
        (("missing.npz",), "missing.npz"),
    ],
)
def test_bad_input(arguments: tuple[object, ...], message: str, door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", weight=np.ones((3, 3)), bias=np.ones(3))
    ran = door("inspect", *arguments)
    assert ran.code == 2 and ran.out == ""
    assert message in ran.err and "Traceback" not in ran.err


def test_a_file_without_a_query_is_a_list_of_tensors(door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", weight=np.ones((3, 3)), bias=np.zeros(3))
    ran = door("inspect", "w.npz")
    assert ran.code == 0 and "weight" in ran.out and "bias" in ran.out
    np.savez(tmp_path / "kv.npz", key=np.ones((3, 3)), value=np.zeros((3, 3)))
    assert "key and value but no query" in door("inspect", "kv.npz").out
    assert door("inspect", SAMPLE, "--header").code == 0


def test_empty_attention(door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "no.npz", query=np.ones((2, 0, 4)), key=np.ones((2, 3, 4)))
    assert door("inspect", "no.npz").code == 0
    np.savez(tmp_path / "none.npz", query=np.ones((2, 3, 4)), key=np.ones((2, 0, 4)))
    ran = door("inspect", "none.npz", "--what-if", "dtype=float16", "--what-if", "qk_norm")
    assert ran.code == 0 and "2 critical" in ran.out
    np.savez(tmp_path / "heads.npz", query=np.ones((0, 3, 4)))
    assert door("inspect", "heads.npz").code == 0


@pytest.mark.parametrize(
    "more",
    [
        ("--policy", "limits.toml"),
        ("--fail-on", "watch"),
        ("--what-if", "softcap=5"),
        ("--backend", "torch"),
        ("-o", "out.npz"),
    ],
)
def test_sweep_dim_refuses_what_it_would_ignore(door: Door, more: tuple[str, ...]) -> None:
    done = door("inspect", "--sweep-dim", "8", *more)
    assert done.code == 2
    assert "no use in a sweep of widths (--sweep-dim)" in done.err


def test_nothing_to_judge_is_said(door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", query=np.ones((1, 4)), key=np.ones((1, 4)))
    done = door("inspect", "one.npz", "--fail-on", "watch")
    assert done.code == 0
    assert "no row that sees two keys" in done.err


def test_equal_values_have_no_vanishing_gradient(door: Door, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 16, 8))
    np.savez(tmp_path / "veq.npz", query=q, key=k, value=np.ones((16, 8)))
    found = door("inspect", "veq.npz", "--json").data["heads"][0]["statistics"]
    assert found["vanishing_share"] == 0


def test_a_weight_is_never_more_than_one(door: Door, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, k = (rng.normal(size=(2, 8, 16, 8)) * 1e15).astype(np.float32)
    np.savez(tmp_path / "huge.npz", query=q, key=k)
    done = door("inspect", "huge.npz", "--json")
    for head in done.data["heads"]:
        assert head["statistics"]["sink_mass"] <= 1
    assert "RuntimeWarning" not in done.err
