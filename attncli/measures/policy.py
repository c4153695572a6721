"""When is attention ``ok``, ``watch`` or ``critical``? One table, each limit with its source.

The labels are this tool's policy, not a fact: ``--policy FILE.toml`` overrides the table,

    [saturated]
    watch = 0.6
    critical = false      # never

A limit is calibrated so that healthy pretrained models (MiniLM, SmolLM2, DINOv2, Whisper, ALBERT)
have no ``critical`` head: their logits go to 282, and whole heads look at the previous token alone.
The last rules judge heads by their weights alone (``circuits``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from attncli.errors import FileError, InputError, nearest
from attncli.files.texts import read_text
from attncli.measures.circuits import ALONE
from attncli.measures.evidence import every_statistic

LEVELS = ("ok", "watch", "critical")
LIMITS = ("hint", "watch", "critical")
COUNTED = ("nonfinite_share", "dead_share", "output_norm")  # true of however few rows
FEW = 4  # rows with a choice: fewer give hints, not verdicts, on shares and quantiles
APART = 0.25  # of √(1 − placed), how far heads are that agree on fixed places alone
PLACED = 0.8  # of a head's mass on fixed places: there it may be as sharp as it likes


@dataclass(frozen=True)
class Rule:
    """A finding: the ``statistic`` (and its quantile) is above, or below, a limit.

    ``hint`` says so without changing the verdict. ``words`` take the value as ``{}``. ``placed``
    excuses heads that look at fixed places (first token, previous token, separators, …), unless
    their logits are large; ``chosen`` asks that the head chooses at all: that it is not flat, and
    that what it shares with another is more than the fixed places both look at.
    ``number``: how the value is written. ``unless`` names the statistic that is judged instead
    where it is known.
    """

    name: str
    statistic: str
    words: str
    source: str
    quantile: str = ""
    below: bool = False
    hint: float | None = None
    watch: float | None = None
    critical: float | None = None
    placed: bool = False
    chosen: bool = False
    number: str = "g"
    unless: str = ""

    def limit(self, value: float) -> str | None:
        """Return the highest of hint, watch and critical that the value passes."""
        passed = None
        for name in LIMITS:
            limit = getattr(self, name)
            if limit is not None and (value < limit if self.below else value > limit):
                passed = name
        return passed


POLICY = (
    Rule("not_finite", "nonfinite_share", "{} of its rows are NaN or infinite",
         "a single NaN spreads through the layers above", critical=0.0, number="%"),
    Rule("dead", "dead_share", "{} of its rows see no key, their output is 0",
         "a mask that hides everything", watch=0.0, critical=0.5, number="%"),
    Rule("silent", "output_norm", "its output is 0 in every row: values are 0 or a sink takes all",
         "a pruned or dying head", quantile="max", below=True, watch=1e-30),
    Rule("saturated", "saturated_share", "{} of its rows have max weight > 0.99",
         "healthy heads: 8–18 % of rows above 0.9, and whole heads on fixed places",
         watch=0.5, critical=0.9, placed=True, number="%"),
    Rule("collapsed", "entropy", "half of its rows have an entropy of at most {} nats",
         "entropy collapse, Zhai et al. 2023", quantile="median", below=True,
         watch=0.02, critical=1e-4, placed=True),
    Rule("flat", "normalized_entropy",
         "95 % of its rows weigh all keys alike (entropy ≥ {} of ln n)",
         "healthy heads: at most 0.91 of ln n", quantile="p05", watch=0.98, critical=0.9999),
    Rule("vanishing", "vanishing_share", "the gradient of {} of its rows is under 1/1000 of the "
         "median row's at scale 1/√D", "Vaswani et al. 2017, note 4", watch=0.1, critical=0.5,
         placed=True, number="%"),
    Rule("large_logits", "logit_max", "its largest logit is {}",
         "QK-Clip's threshold, Kimi K2 2025; healthy vision models reach 282",
         hint=100.0, watch=1000.0),
    Rule("frozen", "logit_std_ratio",
         "its scores lie so far apart (σ is {} × √(2 ln n)) that a few keys take nearly all the "
         "weight", "random energy model, Derrida 1981; healthy heads: about 1",
         quantile="median", hint=2.0, watch=4.0, placed=True),
    Rule("duplicate", "head_similarity", "its weights are those of head {other} (distance {})",
         "redundant heads, Michel et al. 2019; copies with 1 % noise: up to 0.024, with 3 %: "
         "0.055; honest pairs of real heads: 0.13 and more",
         below=True, hint=0.1, watch=0.05, chosen=True),
    Rule("rank_collapse", "rank_residual", "all rows have nearly the same output (residual {})",
         "Dong et al. 2021", below=True, watch=0.01, placed=True),
    Rule("overflow", "overflow_room", "q·k reaches {reach}, past float16's 65504",
         "IEEE 754 binary16", below=True, watch=1.0, unless="overflow_room_now"),
    Rule("overflow_now", "overflow_room_now", "q·k reaches {reach}, past the inputs' own float16: "
         "kernels that store scores in it overflow", "IEEE 754 binary16", below=True, critical=1.0),
    # of heads judged by their weights alone
    Rule("weights_not_finite", "nonfinite_weights", "{} of its weights are NaN or infinite",
         "a single NaN spreads through the layers above", critical=0.0),
    Rule("dead_qk", "largest_logit", "its W_Q W_Kᵀ is nearly 0 ({}): all keys weigh the same",
         "a pruned or dying head", below=True, watch=1e-8),
    Rule("dead_ov", "ov_norm", "its W_O W_V is nearly 0 ({}): it writes nothing",
         "a pruned or dying head", below=True, watch=1e-8),
    Rule("logit_outlier", "logit_outlier",
         "its W_Q W_Kᵀ is large among the heads ({} robust standard deviations)",
         "Iglewicz & Hoaglin 1993; MiniLM's previous-token head: 7.7", hint=3.5, watch=20.0),
    Rule("ov_outlier", "ov_outlier",
         "its W_O W_V is large among the heads ({} robust standard deviations)",
         "Iglewicz & Hoaglin 1993", hint=3.5, watch=20.0),
    Rule("low_rank_qk", "qk_rank_share", "its W_Q W_Kᵀ uses {} of its width (effective rank)",
         "Roy & Vetterli 2007; MiniLM: at least 67 %", below=True, hint=0.3, watch=0.05,
         number="%"),
    Rule("duplicate_qk", "qk_similarity", "its W_Q W_Kᵀ is that of head {other} (cosine {})",
         "redundant heads, Michel et al. 2019; MiniLM: at most 0.46", hint=0.9, watch=0.99),
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A rule that a head's statistics pass: ``level`` is hint, watch or critical.

    ``words`` have ``{}`` in place of ``number``, which is the value as it is told.
    """

    name: str
    level: str
    value: float
    limit: float
    words: str
    number: str

    @property
    def reason(self) -> str:
        """What is found, in words."""
        return self.words.replace("{}", self.number)


@dataclass(frozen=True)
class Verdict:
    """``ok``, ``watch`` or ``critical``, and why."""

    level: str
    findings: tuple[Finding, ...]

    @property
    def reasons(self) -> list[str]:
        """The findings in words, the worst first."""
        return [finding.reason for finding in self.findings]


def judge(found: Mapping[str, Any], placed: float, policy: Sequence[Rule] = POLICY) -> Verdict:
    """Return the verdict on one head.

    found: its statistics, a number or a mapping of quantiles each; placed: its mass on fixed
    places.
    """
    rules = {rule.name: rule for rule in policy}
    large = rules["large_logits"].hint
    calm = large is None or not _value(found, "logit_max") > large
    flat = rules["flat"].limit(_value(found, "normalized_entropy", "p05")) is not None
    findings = []
    for rule in policy:
        value = _value(found, rule.statistic, rule.quantile)
        level = None if math.isnan(value) else rule.limit(value)
        # two heads on the same fixed places are alike there, whatever the rest of them does
        if level is None or (rule.chosen and (flat or value > APART * math.sqrt(1 - placed))):
            continue
        if rule.unless and not math.isnan(_value(found, rule.unless)):
            continue
        number = _number(value, rule.number)
        if "{reach}" in rule.words:
            number = _number(65504 / value if value else math.inf, "g")
        words = rule.words.format("{}", other=found.get("similar_head"), reach="{}")
        if rule.placed and placed >= PLACED and calm and level != "hint":
            level, words = "hint", f"{words} (normal on a fixed place)"
        statistical = (
            rule.placed or rule.quantile != "" or rule.number == "%"
        ) and rule.statistic not in COUNTED
        if statistical and level != "hint" and found.get("rows_with_choice", FEW) < FEW:
            level, words = "hint", f"{words} (few rows: a hint only)"
        elif rule.number == "%" and statistical and level != "hint" and _one_row(found, value):
            level, words = "hint", f"{words} (one row: a hint only)"
        limit = getattr(rule, level)
        findings.append(
            Finding(rule.name, level, value, math.nan if limit is None else limit, words, number)
        )
    findings.sort(key=lambda finding: -LIMITS.index(finding.level))
    worst = findings[0].level if findings else "hint"
    return Verdict("ok" if worst == "hint" else worst, tuple(findings))


def _one_row(found: Mapping[str, Any], share: float) -> bool:
    """Whether a share of the rows with a choice is one of them: no verdict hangs on that."""
    return share * float(found.get("rows_with_choice", math.inf)) < 1.5


def _value(found: Mapping[str, Any], name: str, quantile: str = "") -> float:
    value = found.get(name, math.nan)
    if isinstance(value, Mapping):
        value = value.get(quantile or "median", math.nan)
    return math.nan if value is None else float(value)


def _number(value: float, kind: str) -> str:
    if kind == "%":
        return f"{100 * value:.0f} %" if value >= 0.005 else "<1 %"
    return f"{value:.3g}"


# -- a policy file ----------------------------------------------------------------------------


def read_policy(path: str) -> tuple[Rule, ...]:
    """Return the table with what a TOML file changes.

    Raises FileError where it cannot be read, InputError for unknown names and wrong types.
    """
    import tomllib

    expected = "sections such as [saturated] with watch = 0.5"
    text = read_text(path, expected)
    try:
        given = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is no TOML: {error}", f"expected {expected}") from None
    return changed(given, path)


def changed(given: Mapping[str, Any], where: str = "policy") -> tuple[Rule, ...]:
    """Return the table with the limits of ``{rule: {"hint" | "watch" | "critical": limit}}``."""
    rules = {rule.name: rule for rule in POLICY}
    for name, limits in given.items():
        if name not in rules:
            raise InputError(f"{where}: no rule is called '{name}'", nearest(name, rules))
        if not isinstance(limits, Mapping):
            raise InputError(
                f"{where}: '{name}' is {_toml(limits)}, not a section",
                f"write [{name}] on a line of its own, and watch = … under it",
            )
        for level, limit in limits.items():
            if level not in LIMITS:
                raise InputError(f"{where}: [{name}] has no '{level}'", nearest(level, LIMITS))
            number = None if limit is False else _number_of(limit)
            if number is not None and math.isnan(number):
                raise InputError(
                    f"{where}: {level} of [{name}] is {_toml(limit)}",
                    "expected a number, or false for never",
                )
            change: dict[str, Any] = {level: number}
            rules[name] = replace(rules[name], **change)
        _check_order(rules[name], where)
    return tuple(rules.values())


def _number_of(limit: Any) -> float:
    """Return a limit as float64, NaN for what is no number there."""
    try:
        return float(limit) if type(limit) in (int, float) else math.nan
    except OverflowError:
        return math.nan


def _check_order(rule: Rule, where: str) -> None:
    limits = [(n, value) for n in LIMITS if (value := getattr(rule, n)) is not None]
    for (milder, a), (worse, b) in pairwise(limits):
        if (b > a) if rule.below else (b < a):
            raise InputError(
                f"{where}: [{rule.name}] is {worse} at {b:g} but {milder} at {a:g}",
                f"{rule.statistic} must be {'below' if rule.below else 'above'} a limit, so that "
                f"{worse} must be the {'smaller' if rule.below else 'larger'} one",
            )


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        text = "a very long number"
    return text if len(text) <= 40 else text[:39] + "…"


# -- the table and the registry ---------------------------------------------------------------


def check(policy: Sequence[Rule]) -> None:
    """Raise AssertionError for a rule on what is no statistic, or none of its quantiles."""
    known = {one.name: one for one in (*ALONE, *every_statistic())}
    for rule in policy:
        for name in filter(None, (rule.statistic, rule.unless)):
            assert name in known, f"{rule.name}: no statistic is called {name}"
        quantiles = known[rule.statistic].quantiles or ("",)
        assert rule.quantile in quantiles, f"{rule.name}: {rule.quantile} of {rule.statistic}"


check(POLICY)
