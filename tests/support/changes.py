"""Random problems as options say them, a random change of one, and whether it is named.

python -m tests.support.changes [N] [--dtype float32] [--seed S] [-v]
"""

from __future__ import annotations

import argparse
import collections
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

import attncli
from attncli.attention.problem import Problem
from attncli.errors import AttnError
from attncli.measures.budget import eps
from attncli.studies.attend import posed
from attncli.studies.compare import Comparison
from tests.support.problems import DTYPES, leaf_masks, mask_expressions

Options = Mapping[str, str]
Array = np.ndarray[Any, np.dtype[Any]]
KINDS = ("scale", "mask", "softcap", "sink", "rope")
#: What an option says when it says nothing.
NOTHING = {
    "--scale": "auto",
    "--mask": "none",
    "--softcap": "0",
    "--sink": "-inf",
    "--rope": "none",
}


class Changed(NamedTuple):
    """Tensors, options that ask, and the other options by which the candidate was made."""

    tensors: Mapping[str, Array]
    asked: Options
    made: Options

    @property
    def kinds(self) -> str:
        """The flags that differ."""
        flags = dict.fromkeys([*self.asked, *self.made])
        return " ".join(f for f in flags if self.asked.get(f) != self.made.get(f))


# -- options ------------------------------------------------------------------------------------


def arguments(options: Options) -> dict[str, Any]:
    """Options as arguments of ``attncli.attend``."""
    found: dict[str, Any] = {}
    for flag, text in options.items():
        name = flag.removeprefix("--").replace("-", "_")
        if NOTHING.get(flag) == text:
            continue
        if name.startswith("rope"):
            key = "style" if name == "rope" else name.removeprefix("rope_")
            found.setdefault("rope", {})[key] = text if key == "style" else float(text)
        elif name == "sink":
            found[name] = np.array(text.split(","), np.float64)
        else:
            found[name] = text if name == "mask" or text == "none" else float(text)
    return found


def pasted(options: Options, explanation: Any) -> dict[str, str]:
    """Options with those of an explanation in place of what they contradict."""
    said = explanation.options
    pairs = dict(zip(said[::2], said[1::2], strict=True))
    kept = {**options, **pairs}
    if pairs.get("--rope") == "none":
        kept = {f: text for f, text in kept.items() if not f.startswith("--rope-")}
    return kept


def typed(options: Options) -> list[str]:
    """Options as they are typed."""
    return [word for pair in options.items() for word in pair]


def problem_of(tensors: Mapping[str, Array], options: Options) -> Problem:
    """The problem that these options ask."""
    with warnings.catch_warnings(action="ignore"):
        return posed(**tensors, **arguments(options))


def solved(tensors: Mapping[str, Array], options: Options) -> Array:
    """The output of that problem."""
    with warnings.catch_warnings(action="ignore"):
        return np.asarray(attncli.attend(**tensors, **arguments(options)).output)


# -- what is drawn ------------------------------------------------------------------------------


def short(low: float, high: float) -> st.SearchStrategy[str]:
    """Numbers as people type them."""
    return st.floats(low, high).map(lambda x: f"{x:.2g}")


@st.composite
def an_option(draw: st.DrawFn, kind: str, sizes: tuple[int, int, int, int]) -> dict[str, str]:
    """Draw what one kind of option says, nothing included."""
    batch, heads, queries, keys = sizes
    if draw(st.integers(0, 3)) == 0:
        return {}
    if kind == "scale":
        return {"--scale": draw(st.one_of(st.just("none"), short(0.05, 2)))}
    if kind == "softcap":
        return {"--softcap": draw(st.one_of(st.sampled_from(["20", "30", "50"]), short(0.5, 60)))}
    if kind == "sink":
        each = st.lists(short(-2, 3), min_size=heads, max_size=heads).map(",".join)
        return {"--sink": draw(st.one_of(st.just("0"), short(-2, 3), each))}
    if kind == "rope":
        theta = draw(st.sampled_from(["10000", "500000", "1000000", "100", "25000"]))
        return {"--rope": draw(st.sampled_from(["half", "interleaved"])), "--rope-theta": theta}
    one = st.one_of(leaf_masks(batch, queries, keys), mask_expressions(batch, queries, keys))
    return {"--mask": draw(one)}


@st.composite
def changes(
    draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPES), kinds: tuple[str, ...] = KINDS
) -> Changed:
    """Draw a problem of a few options, and a change of one of them, of these kinds."""
    batch, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    heads = groups * draw(st.integers(1, 2))
    queries = draw(st.integers(4, 24))
    keys = queries if draw(st.integers(0, 2)) else draw(st.integers(4, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = DTYPES[draw(st.sampled_from(dtypes))]
    shapes = {"query": (heads, queries), "key": (groups, keys), "value": (groups, keys)}
    tensors = {n: rng.normal(size=(batch, *s, 8)).astype(dtype) for n, s in shapes.items()}
    able = [kind for kind in KINDS if kind != "rope" or queries == keys]
    sizes = (batch, heads, queries, keys)
    asked: dict[str, str] = {}
    for kind in draw(st.lists(st.sampled_from(able), max_size=2, unique=True)):
        asked |= draw(an_option(kind, sizes))
    kind = draw(st.sampled_from([kind for kind in able if kind in kinds]))
    rest = {f: text for f, text in asked.items() if not f.startswith(f"--{kind}")}
    return Changed(tensors, asked, {**rest, **draw(an_option(kind, sizes))})


# -- what is said of it -------------------------------------------------------------------------


def differs(changed: Changed, times: float) -> bool:
    """Whether the change moves the output ``times`` what a rounding of scores and sums can do.

    By hand, not by the error budget: (1 + the largest logit) · eps · the largest value. In halves a
    tenth of that, which is large enough.
    """
    tensors, asked, made = changed
    own = tensors["query"].dtype
    wide = {name: a.astype(np.float64) for name, a in tensors.items()}
    one, other = solved(wide, asked), solved(wide, made)
    p = problem_of(wide, asked)
    each = p.heads // p.kv_heads
    logits = p.query @ p.key.repeat(each, 1).swapaxes(-1, -2) * p.scale
    step = eps(own) * (1 + np.abs(logits).max()) * np.abs(p.value).max()
    return bool(np.abs(one - other).max() > (times if own.itemsize > 2 else times / 10) * step)


def same(tensors: Mapping[str, Array], one: Options, other: Options) -> bool:
    """Whether options ask the same, but for the last digits of numbers."""
    try:
        p, q = problem_of(tensors, one), problem_of(tensors, other)
    except AttnError:
        return False

    def near(a: Any, b: Any) -> bool:
        if a is None or b is None:
            return a is b
        return bool(np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=0.02, atol=0.02))

    numbers = all(near(getattr(p, n), getattr(q, n)) for n in ("scale", "softcap", "sink"))
    turned = near(p.query, q.query) and near(p.key, q.key)
    return numbers and turned and bool((p.mask.dense() == q.mask.dense()).all())


def outcome(changed: Changed, found: Comparison) -> str:
    """What became of a change: named, or the verdict."""
    good = [e for e in found.explanations if e.passed and e.options]
    named = any(same(changed.tensors, changed.made, pasted(changed.asked, e)) for e in good)
    return f"{found.verdict}, {'named' if named else 'not named'}"


def main() -> None:
    """Print how often changes are named, by kind."""
    asked = argparse.ArgumentParser()
    asked.add_argument("examples", type=int, nargs="?", default=200)
    asked.add_argument("--dtype", default="float32")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("-v", "--verbose", action="store_true")
    how = asked.parse_args()
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    @seeded(how.seed)
    @settings(
        max_examples=how.examples, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(changed=changes((how.dtype,)))
    def look(changed: Changed) -> None:
        if not changed.kinds or not differs(changed, 50):
            return
        candidate = solved(changed.tensors, changed.made)
        found = attncli.compare(candidate, problem_of(changed.tensors, changed.asked))
        said = outcome(changed, found)
        table[changed.kinds.removeprefix("--").split("-")[0].strip()][said] += 1
        if how.verbose and not said.endswith(", named"):
            print(said, dict(changed.asked), "→", dict(changed.made), "|",
                  [(" ".join(e.options), e.words) for e in found.explanations if e.passed][:3],
                  list(found.located)[:2], flush=True)  # fmt: skip
        for e in found.explanations:
            if e.passed and not e.words:
                again = problem_of(changed.tensors, pasted(changed.asked, e))
                if not attncli.compare(candidate, again, explain=False).passed:
                    print("BROKEN", dict(changed.asked), dict(changed.made), e, flush=True)

    look()
    for kind, counts in sorted(table.items()):
        print(kind, sum(counts.values()), dict(counts.most_common()))


if __name__ == "__main__":
    main()
