"""Healthy attention is called healthy, sick attention is found and named; limits can be changed."""

from __future__ import annotations

import math
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
from attncli.measures import policy
from attncli.studies import health
from tests.support.program import SAMPLE


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
    first = [next(role for role in head.roles if role.rows is None) for head in done.heads]
    places = {role.words.split(" ")[0] for role in first}
    assert places == {"[CLS]"}  # a sink on the first token is said, and is no fault
    assert all(role.sink for role in first)
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


def test_no_verdict_hangs_on_one_row() -> None:
    """In a short text the gradient of one row in eight may vanish, of a healthy head."""
    one = policy.judge({"vanishing_share": 1 / 8, "rows_with_choice": 8}, 0.0)
    assert one.level == "ok" and one.reasons[0].endswith("(one row: a hint only)")
    two = policy.judge({"vanishing_share": 2 / 16, "rows_with_choice": 16}, 0.0)
    assert two.level == "watch"
    lost = policy.judge({"nonfinite_share": 1 / 8, "rows_with_choice": 8}, 0.0)
    assert lost.level == "critical"


def test_large_logits_alone_are_a_hint() -> None:
    """A healthy DINOv2 reaches 282."""
    rule = next(rule for rule in policy.POLICY if rule.name == "large_logits")
    assert rule.limit(99) is None and rule.limit(282) == "hint" and rule.limit(2000) == "watch"
    verdict = policy.judge({"logit_max": 282.0}, 0.0)
    assert verdict.level == "ok" and verdict.reasons == ["its largest logit is 282"]


# -- limits -----------------------------------------------------------------------------------


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
        ("\xff", "no UTF-8 text"),
    ],
)
def test_a_policy_that_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(AttnError) as error:
        policy.read_policy(str(path))
    assert message in str(error.value)


def test_a_policy_that_is_not_there() -> None:
    with pytest.raises(FileError, match="no such folder: /nowhere"):
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


def test_limits_are_passed_not_touched() -> None:
    """What is said to be above or below a limit is; a fixed place excuses from its share on."""
    sharp = {"saturated_share": 0.95, "rows_with_choice": 50}
    for logit, placed, level in (
        (100.0, policy.PLACED, "ok"), (100.1, policy.PLACED, "critical"),
        (100.0, policy.PLACED - 1e-9, "critical"), (math.nan, 1.0, "ok"),
    ):  # fmt: skip
        assert policy.judge({**sharp, "logit_max": logit}, placed).level == level
    assert policy.judge({"logit_max": 1000.0}, 0.0).level == "ok"
    assert policy.judge({"logit_max": 1000.5}, 0.0).level == "watch"
    close = policy.APART * math.sqrt(1 - 0.99)
    for apart, level in ((close, "watch"), (close * 1.01, "ok")):
        found = {"head_similarity": apart, "similar_head": 1, "logit_max": 1.0}
        assert policy.judge(found, 0.99).level == level
    for rows, level in ((policy.FEW, "watch"), (policy.FEW - 1, "ok")):
        assert policy.judge({"saturated_share": 0.8, "rows_with_choice": rows}, 0.0).level == level
