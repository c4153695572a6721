"""Faults of what a query sees: corners, windows, polarity, padding, caches, documents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tests.support.faults import Case, Generator, ask, case, fault
from tests.support.faults_kernel import INF, Array, Kernel, Question

NO_MASK = (
    r"--mask[ =]+none|(mask|causal|window)\S* (is )?(ignored|missing|left out|not applied)"
    r"|no mask|window\(inf"
)


def apart(queries: int, keys: int, offset: int | Array = 0) -> Array:
    """j − (i + offset): how far right of its own position a key lies, ``(Lq, Lk)``."""
    return np.arange(keys) - np.arange(queries)[:, None] - offset


def band(asked: Question, left: float = INF, right: float = 0, offset: int | None = None) -> Array:
    """Keys from ``left`` before to ``right`` after; the bottom-right corner unless told."""
    queries, keys = asked.shape[2:]
    d = apart(queries, keys, keys - queries if offset is None else offset)
    return (d >= -left) & (d <= right)


def masked(asked: Question, mask: str, keep: Array) -> Question:
    return replace(asked, said={"mask": mask}, keep=keep)


def causal(asked: Question, corner: str = "") -> Question:
    offset = 0 if corner == "top_left" else None
    return masked(asked, f"causal({corner})" if corner else "causal", band(asked, offset=offset))


def window(asked: Question, left: int = 24) -> Question:
    """As Mistral: the own position and ``left`` before it."""
    return masked(asked, f"causal & window({left})", band(asked, left))


def shorter(rng: Generator, dtype: Any, **rest: Any) -> Question:
    """Fewer queries than keys: the corners differ."""
    return ask(rng, dtype, queries=96, keys=int(rng.choice([136, 170])), **rest)


# -- corners


@fault("causal top-left for bottom-right", r"causal\(top_left\)|top.left")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(shorter(rng, dtype), "bottom_right")
    return case(right, causal(right, "top_left"))


@fault("causal bottom-right for top-left", r"causal\(bottom_right\)|bottom.right")
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(shorter(rng, dtype), "top_left")
    return case(right, causal(right, "bottom_right"))


@fault("causal missing", NO_MASK)
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype))
    return case(right, replace(right, keep=True))


STRICT = (
    r"strict|own (position|key|token)|diagonal|~ ?window\(0(, ?0)?|j < i|shifted? by (1|one)"
    r"|causal\(?-1|one (key|position)"
)


@fault("causal strict: the own position hidden", STRICT)
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype))
    return case(right, replace(right, keep=band(right, right=-1)))


@fault(
    "causal sees one ahead",
    r"window\(inf, ?1\)|ahead|one (key|position)|shifted? by (1|one)|future",
)
def _(rng: Generator, dtype: Any) -> Case:
    right = causal(ask(rng, dtype))
    return case(right, replace(right, keep=band(right, right=1)))


@fault("causal of the wrong triangle", r"future|~|invert|upper|window\(0, ?inf|transpos")
def _(rng: Generator, dtype: Any) -> Case:
    """triu for tril."""
    right = causal(ask(rng, dtype))
    return case(right, replace(right, keep=band(right, 0, INF)))


@fault("causal by whole tiles", r"tile|block")
def _(rng: Generator, dtype: Any) -> Case:
    """Diagonal tiles are taken as full."""
    right = causal(ask(rng, dtype))
    at = np.arange(right.shape[3]) // 64
    return case(right, replace(right, keep=at <= at[:, None]))


# -- windows


@fault("window one too wide", r"window\(25(, ?0)?\)|one too (wide|many)|off by one")
def _(rng: Generator, dtype: Any) -> Case:
    """The window counts the own position, the kernel does not."""
    right = window(ask(rng, dtype))
    return case(right, replace(right, keep=band(right, 25)))


@fault("window one too narrow", r"window\(23(, ?0)?\)|one too (narrow|few)|off by one")
def _(rng: Generator, dtype: Any) -> Case:
    """The kernel counts the own position, the window does not."""
    right = window(ask(rng, dtype))
    return case(right, replace(right, keep=band(right, 23)))


@fault("window two-sided instead of left", r"window\(24, ?24\)|two.sided|both sides")
def _(rng: Generator, dtype: Any) -> Case:
    right = window(ask(rng, dtype))
    return case(right, replace(right, keep=band(right, 24, 24)))


@fault("window left instead of two-sided", r"window\(24, ?0\)|causal")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype)
    right = masked(right, "window(24, 24)", band(right, 24, 24))
    return case(right, replace(right, keep=band(right, 24)))


@fault("window ignored", r"--mask[ =]+causal( |$|\||\()|window\S* (is )?(ignored|missing|left out)")
def _(rng: Generator, dtype: Any) -> Case:
    right = window(ask(rng, dtype))
    return case(right, replace(right, keep=band(right)))


@fault("window counted from the other corner", r"window\(24(, ?\w+)?, ?top_left\)|top.left")
def _(rng: Generator, dtype: Any) -> Case:
    right = shorter(rng, dtype)
    right = masked(right, "window(24, 0, bottom_right)", band(right, 24))
    return case(right, replace(right, keep=band(right, 24, offset=0)))


def chunked(asked: Question, size: int) -> Array:
    at = np.arange(asked.shape[3])
    return (at // size == at[:, None] // size) & (at <= at[:, None])


@fault("window read as chunks", r"chunks\((24|25)\)")
def _(rng: Generator, dtype: Any) -> Case:
    right = window(ask(rng, dtype))
    return case(right, replace(right, keep=chunked(right, 25)))


@fault("chunks read as a window", r"window\((31|32)(, ?0)?\)")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype)
    right = masked(right, "chunks(32)", chunked(right, 32))
    return case(right, replace(right, keep=band(right, 31)))


# -- tensors


def tensor(asked: Question, keep: Array) -> Question:
    return replace(asked, said={"attn_mask": keep}, keep=keep)


def scattered(rng: Generator, asked: Question, share: float = 0.6) -> Array:
    """A mask without a pattern in which every row sees its own key, ``(Lq, Lk)``."""
    keep = rng.random(asked.shape[2:]) < share
    np.fill_diagonal(keep, True)
    return keep


@fault("mask polarity inverted", r"polarity|ignore")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype)
    right = tensor(right, scattered(rng, right))
    return case(right, replace(right, keep=~np.asarray(right.keep)))


@fault("bool mask added as 0/1", r"added|0/1|0 (and|or) 1")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype)
    right = tensor(right, scattered(rng, right))
    return case(right, replace(right, keep=True, bias=np.asarray(right.keep, np.float64)))


@fault(
    "mask ignored",
    NO_MASK,
)
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype)
    right = tensor(right, scattered(rng, right))
    return case(right, replace(right, keep=True))


@fault("mask transposed", r"transpos")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype)
    right = tensor(right, scattered(rng, right))
    return case(right, replace(right, keep=np.asarray(right.keep).T))


def added(rng: Generator, asked: Question) -> Question:
    bias = rng.standard_normal(asked.shape[2:]).astype(np.float32)
    return replace(asked, said={"attn_mask": bias}, bias=bias)


@fault(
    "float mask ignored",
    NO_MASK,
)
def _(rng: Generator, dtype: Any) -> Case:
    right = added(rng, ask(rng, dtype))
    return case(right, replace(right, bias=0.0))


@fault("float mask added before the scale", r"(mask|bias).*(scale)|scale.*(mask|bias)")
def _(rng: Generator, dtype: Any) -> Case:
    right = added(rng, ask(rng, dtype))
    return case(right, replace(right, bias=np.asarray(right.bias) * right.factor))


# -- padding


@fault("key padding ignored", r"padding|" + NO_MASK)
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype)
    length = np.array([right.shape[3], right.shape[3] - 57])
    keep = np.arange(right.shape[3]) < length[:, None]
    right = replace(right, said={"key_padding_mask": keep}, keep=keep[:, None, None])
    return case(right, replace(right, keep=True))


def cached(rng: Generator, dtype: Any, **rest: Any) -> Question:
    """A padded cache with stale values past its lengths; every query sees all valid keys."""
    right = ask(rng, dtype, queries=16, keys=int(rng.choice([150, 190])), **rest)
    return until(right, np.array([right.shape[3] - 29, right.shape[3] - 64]))


def until(asked: Question, lengths: Array) -> Question:
    keep = (np.arange(asked.shape[3]) < lengths[:, None])[:, None, None]
    return replace(asked, said={"kv_lengths": lengths.tolist()}, keep=keep)


def lengths_of(asked: Question) -> Array:
    return np.array(asked.said["kv_lengths"])


LENGTHS = r"length|kv.lengths|stale|past the (end|length)"


@fault("padding on the other side", r"left|right|side|start")
def _(rng: Generator, dtype: Any) -> Case:
    right = ask(rng, dtype)
    keys = right.shape[3]
    n, at = np.array([[keys], [keys - 57]]), np.arange(keys)
    right = masked(right, f"padding({keys}, {keys - 57})", (at < n)[:, None, None])
    return case(right, replace(right, keep=(at >= keys - n)[:, None, None]))


@fault("causal corner that ignores kv_lengths", r"corner|kv.lengths|causal\(bottom_right\)|offset")
def _(rng: Generator, dtype: Any) -> Case:
    """The last query is put at the end of the cache, not at its last valid key."""
    right = cached(rng, dtype)
    n, (queries, keys) = lengths_of(right), right.shape[2:]
    valid = np.asarray(right.keep)
    own = [apart(queries, keys, int(length) - queries) <= 0 for length in n]
    asked = replace(
        right, said={**right.said, "mask": "causal"}, keep=valid & np.stack(own)[:, None]
    )
    return case(asked, replace(asked, keep=valid & band(asked)))


@fault("kv_lengths ignored", LENGTHS)
def _(rng: Generator, dtype: Any) -> Case:
    right = cached(rng, dtype)
    return case(right, replace(right, keep=True))


@fault("kv_lengths one too long", LENGTHS, r"one|off by|\+ ?1|longer")
def _(rng: Generator, dtype: Any) -> Case:
    right = cached(rng, dtype)
    return case(right, until(right, lengths_of(right) + 1))


@fault("kv_lengths one too short", LENGTHS, r"one|off by|- ?1|− ?1|shorter|last")
def _(rng: Generator, dtype: Any) -> Case:
    right = cached(rng, dtype)
    return case(right, until(right, lengths_of(right) - 1))


@fault("kv_lengths of the other batch element", LENGTHS + r"|batch")
def _(rng: Generator, dtype: Any) -> Case:
    right = cached(rng, dtype)
    return case(right, until(right, lengths_of(right)[::-1]))


@fault("block table off by one page", r"page|block|shifted")
def _(rng: Generator, dtype: Any) -> Case:
    """Keys and values are read 16 further on; behind the last page lies what it holds."""
    right = cached(rng, dtype)
    moved = np.minimum(np.arange(right.shape[3]) + 16, right.shape[3] - 1)
    return case(right, replace(right, key=right.key[:, :, moved], value=right.value[:, :, moved]))


# -- caches


def decoding(rng: Generator, dtype: Any, **rest: Any) -> Question:
    """24 new tokens after a cache."""
    past = int(rng.choice([104, 140]))
    right = ask(rng, dtype, queries=24, keys=past + 24, **rest)
    return replace(causal(right), past=past)


@fault("past ignored: the cache is not read", r"past|cache")
def _(rng: Generator, dtype: Any) -> Case:
    right = decoding(rng, dtype)
    return case(right, right.hiding(np.s_[: right.past]))


@fault("causal corner that ignores the past", r"top.left|past")
def _(rng: Generator, dtype: Any) -> Case:
    right = decoding(rng, dtype)
    return case(right, replace(right, keep=band(right, offset=0)))


# -- documents and biases


def documents(asked: Question, starts: tuple[int, ...] = (0, 41, 77)) -> Question:
    ids = np.searchsorted(starts, np.arange(asked.shape[3]), side="right")
    keep = (ids == ids[:, None]) & band(asked)
    return masked(asked, f"causal & segments({', '.join(map(str, ids))})", keep)


@fault("segments ignored", r"segment|document|--mask[ =]+causal( |$|\|)")
def _(rng: Generator, dtype: Any) -> Case:
    right = documents(ask(rng, dtype))
    return case(right, replace(right, keep=band(right)))


@fault("segments begin one too early", r"segment|document")
def _(rng: Generator, dtype: Any) -> Case:
    """cu_seqlens off by one."""
    right = documents(ask(rng, dtype))
    return case(right, documents(right, (0, 40, 76)))


def alibi(asked: Question, sign: float = -1.0, mask: str = "causal", offset: int = 0) -> Question:
    """Press et al. 2022: slopes 2^(−8h/H)."""
    heads = asked.shape[1]
    slopes = 2.0 ** (-8 * np.arange(1, heads + 1) / heads)
    distance = np.abs(apart(*asked.shape[2:], offset))
    bias = sign * slopes[:, None, None] * distance
    return replace(asked, said={"mask": [mask, "alibi"]}, bias=bias)


@fault("alibi missing", r"alibi|bias")
def _(rng: Generator, dtype: Any) -> Case:
    right = alibi(causal(ask(rng, dtype)))
    return case(right, replace(right, bias=0.0))


@fault("alibi with the wrong sign", r"alibi|bias|slope", r"sign|alibi\([^)]*-|negat|opposite|-\d")
def _(rng: Generator, dtype: Any) -> Case:
    right = alibi(causal(ask(rng, dtype)))
    return case(right, alibi(right, sign=1.0))


# -- rows that see nothing

DEAD = r"dead|see(s|ing)? (nothing|no key)|no (visible )?key|empty|fully masked"


def with_dead_rows(rng: Generator, dtype: Any) -> Question:
    """Query 3 to 9 see nothing."""
    right = ask(rng, dtype)
    keep = scattered(rng, right)
    keep[3:10] = False
    return tensor(right, keep)


@fault("dead rows are NaN", DEAD)
def _(rng: Generator, dtype: Any) -> Case:
    return case(with_dead_rows(rng, dtype), kernel=Kernel(dead=float("nan")))


SENTINEL = DEAD + r"|sentinel|finite|-1e\+?0?4|-10000|finfo"


@fault("dead rows are the mean of V", SENTINEL)
def _(rng: Generator, dtype: Any) -> Case:
    """masked_fill(−1e4) in place of −∞."""
    return case(with_dead_rows(rng, dtype), kernel=Kernel(fill=-1e4))


@fault("dead rows see through a sentinel", SENTINEL)
def _(rng: Generator, dtype: Any) -> Case:
    """−1e4 added to the scores: they are unmasked."""
    return case(with_dead_rows(rng, dtype), kernel=Kernel(fill=-1e4, fill_added=True))


@fault("finite lse in dead rows", DEAD + r"|lse.*(finite|-inf|−∞)", stage="lse")
def _(rng: Generator, dtype: Any) -> Case:
    done = case(with_dead_rows(rng, dtype), names=("output", "lse"))
    lse = done.answered["lse"]
    return Case(done.asked, {**done.answered, "lse": np.where(np.isneginf(lse), 0, lse)})
