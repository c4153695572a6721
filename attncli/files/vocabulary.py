"""The names that tensors, numbers, words and truth values have in files: one table for all.

It holds the names of other libraries, too. Case does not matter. Nothing here loads NumPy.
"""

# No `from __future__ import annotations` here: NamedTuple would compile each text.

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

TENSOR, NUMBER, TEXT, TRUTH = "tensor", "number", "text", "truth"
WORDS = "words"  # a list of strings
OBJECT = "object"


class Role(NamedTuple):
    """What a member of a file may be called, and what it may be.

    ``expected`` ends the sentence 'expected …' where it is something else. ``hint`` is there where
    nothing in attncli computes it: a file that says it is refused, and told what to do instead.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...] = (TENSOR,)
    expected: str = "numbers, as in [[1, 0], [0, 1]]"
    hint: str = ""


_MASK_NAMES = ("attn_mask", "mask", "attention_mask", "attn_bias")
_COUNT = "a positive integer"
_STARTS = "where each sequence begins, as [0, 3, 5]"
_SIDE = "an integer, -1 is open"
_LEFT_OUT = "leave it out if it changes nothing"

#: Every role by its own name. A name that stands in two rows is told by its kind.
ROLES: Mapping[str, Role] = {
    # -- tensors
    "query": Role(("query", "q", "query_states", "query_layer", "xq", "hook_q")),
    "key": Role(("key", "k", "key_states", "key_layer", "xk", "hook_k")),
    "value": Role(("value", "v", "value_states", "value_layer", "xv", "hook_v")),
    "qkv": Role(("qkv", "qkv_packed", "packed_qkv")),
    "kv": Role(("kv", "kv_packed", "packed_kv")),
    "attn_mask": Role(_MASK_NAMES, expected="a tensor"),
    "key_padding_mask": Role(("key_padding_mask",)),
    "hidden_states": Role(("hidden_states", "x")),
    "memory": Role(("memory", "encoder_hidden_states")),
    "memory_value": Role(("memory_value",)),
    "past_key": Role(("past_key", "past_k", "k_cache", "key_cache")),
    "past_value": Role(("past_value", "past_v", "v_cache", "value_cache")),
    "block_table": Role(
        ("block_table", "block_tables", "page_table"), expected="page numbers (batch, pages)"
    ),
    "kv_lengths": Role(
        ("kv_lengths", "cache_seqlens", "seqused_k", "nonpad_kv_seqlen", "key_value_seq_lengths"),
        (TENSOR, NUMBER), "an integer or a list of integers",
    ),
    "query_lengths": Role(
        ("query_lengths", "seqused_q", "query_seq_lengths"),
        (TENSOR, NUMBER), "an integer or a list of integers",
    ),
    "cu_seqlens_q": Role(
        ("cu_seqlens_q", "cu_seqlens", "qo_indptr"), expected=_STARTS
    ),
    "cu_seqlens_k": Role(
        ("cu_seqlens_k", "cu_seqlens_kv", "kv_indptr"), expected=_STARTS
    ),
    "positions": Role(("positions", "position_ids"), expected="a list of integers"),
    "rope_cos": Role(("rope_cos", "cos", "rotary_cos")),
    "rope_sin": Role(("rope_sin", "sin", "rotary_sin")),
    "sink": Role(
        ("sink", "sinks", "s_aux", "attn_sink", "attn_sinks"),
        (TENSOR, NUMBER), "a number or one per head",
    ),
    "alibi_slopes": Role(("alibi_slopes",), expected="one slope per head"),
    # -- numbers, words, truth values
    "mask": Role(_MASK_NAMES, (TEXT,), 'a mask expression, such as "causal"'),
    "causal": Role(("causal", "is_causal", "unidirectional"), (TRUTH, NUMBER), "true or false"),
    "mask_polarity": Role(("mask_polarity",), (TEXT,), "keep or ignore"),
    "window": Role(("window", "window_size"), expected="two integers [left, right], -1 is open"),
    "sliding_window": Role(("sliding_window",), (NUMBER,), _COUNT),
    "window_left": Role(("window_left", "left_window_size"), (NUMBER,), _SIDE),
    "window_right": Role(("window_right", "right_window_size"), (NUMBER,), _SIDE),
    "scale": Role(
        ("scale", "softmax_scale", "sm_scale", "scaling"),
        (NUMBER, TEXT), 'a number, "auto" or "none"',
    ),
    "softcap": Role(
        ("softcap", "soft_cap", "logits_soft_cap", "logit_soft_cap", "attn_logit_softcapping"),
        (NUMBER,), "a positive number",
    ),
    "heads": Role(
        ("heads", "num_heads", "n_heads", "n_head", "nheads", "num_attention_heads", "q_num_heads"),
        (NUMBER,), _COUNT,
    ),
    "kv_heads": Role(
        ("kv_heads", "num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_num_heads"),
        (NUMBER,), _COUNT,
    ),
    "layout": Role(("layout",), (TEXT,), "bhld or blhd"),
    "dtype": Role(("dtype",), (TEXT,), "a dtype such as float32"),
    "softmax_dtype": Role(("softmax_dtype",), (TEXT,), "a dtype such as float32"),
    "dropout": Role(("dropout", "dropout_p", "dropout_rate"), (NUMBER,), "a number"),
    "rope": Role(("rope",), (TEXT,), "half or interleaved"),
    "rope_theta": Role(("rope_theta",), (NUMBER,), "a number such as 10000"),
    "rope_dim": Role(("rope_dim",), (NUMBER,), "a positive even integer"),
    "rope_scaling": Role(("rope_scaling",), (OBJECT,), "an object"),
    "tokens": Role(("tokens",), (TEXT, WORDS, TENSOR), "a list of strings, or one for each batch"),
    "query_tokens": Role(
        ("query_tokens",), (TEXT, WORDS, TENSOR), "a list of strings, or one for each batch"
    ),
    "key_tokens": Role(
        ("key_tokens",), (TEXT, WORDS, TENSOR), "a list of strings, or one for each batch"
    ),
    # -- results, which are no input to the next command
    "head_outputs": Role(("heads",)),
    "weights": Role(
        ("weights", "attn_weights", "attentions", "attention_weights", "attention_probs",
         "encoder_attentions", "decoder_attentions", "cross_attentions", "hook_pattern")
    ),
    "output": Role(("output", "out", "o", "attn_output", "attn_out")),
    "lse": Role(("lse", "softmax_lse", "logsumexp")),
    "grad_output": Role(("grad_output", "dout", "do")),
    "grad_query": Role(("grad_query", "dq")),
    "grad_key": Role(("grad_key", "dk")),
    "grad_value": Role(("grad_value", "dv")),
    # -- results of somebody else, to be judged
    "expected": Role(("expected", "expected_output")),
    "expected_weights": Role(("expected_weights",)),
    "expected_lse": Role(("expected_lse",)),
    "expected_scores": Role(("expected_scores",)),
    "expected_grad_query": Role(("expected_grad_query",)),
    "expected_grad_key": Role(("expected_grad_key",)),
    "expected_grad_value": Role(("expected_grad_value",)),
    # -- known, and computed by nothing here
    "past_key_values": Role(
        ("past_key_values",), (), hint="name the two of one layer: --past-key FILE::NAME "
        "--past-value FILE::NAME",
    ),
    "head_mask": Role(("head_mask", "layer_head_mask"), (), hint=_LEFT_OUT),
    "leftpad": Role(("leftpad_k",), (), hint="hide those keys: --mask '~prefix(n)'"),
    "cache_batch": Role(("cache_batch_idx",), (), hint="give the cache in the order of the batch"),
    "descale": Role(
        ("q_descale", "k_descale", "v_descale"), (), hint="multiply the tensors by it first"
    ),
    "local_window": Role(
        ("local_window_size",), (), hint="say it as a mask: --mask 'window(left, 0)'"
    ),
    "score_mod": Role(
        ("score_mod", "mask_mod", "block_mask"), (), hint="say it as a mask expression: --mask"
    ),
}  # fmt: skip

#: What a line is called, of which nothing in its answer depends but its ``id``.
CALLED = frozenset({"id", "name", "kind", "catches"})
#: What is in results besides, and what of a call changes none of its numbers.
BYSTANDERS = CALLED | frozenset({
    "scores", "softcapped", "masked", "present_key", "present_value", "row_statistics", "concat",
    "rope_applied", "schema", "max_seqlen", "max_seqlen_q", "max_seqlen_k",
    "deterministic", "enable_gqa", "return_attn_probs", "return_softmax_lse", "num_splits",
    "page_size", "format", "lse_base",
})  # fmt: skip
RESULTS = frozenset(
    {"head_outputs", "weights", "output", "lse", "grad_output"}
    | {"grad_query", "grad_key", "grad_value"}
    | {role for role in ROLES if role.startswith("expected")}
)
#: A tensor with one of these roles is enough for a problem.
LEADING = ("query", "hidden_states", "qkv")


def _by_name() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for role, row in ROLES.items():
        for name in row.names:
            found[name] = (*found.get(name, ()), role)
    return found


#: The roles that a name, in lower case, may play.
PLAYED: Mapping[str, tuple[str, ...]] = _by_name()


def role_of(name: str, kind: str) -> str | None:
    """Return the role that a member of this kind plays under this name, or None."""
    return next((r for r in PLAYED.get(name.lower(), ()) if kind in ROLES[r].kinds), None)


def expected_of(name: str) -> str:
    """Return what may stand under a known name, in words."""
    return " or ".join(ROLES[role].expected for role in reversed(PLAYED[name.lower()]))


def slips(words: Iterable[str]) -> dict[str, str]:
    """Return what one letter too many, missing, wrong or swapped makes of some words, by slip.

    A word that is right is no slip of another.
    """
    letters = "abcdefghijklmnopqrstuvwxyz_"
    found: dict[str, str] = {}
    for word in words:
        for i in range(len(word) + 1):
            head, tail = word[:i], word[i:]
            found[head + tail[1:]] = found[head + tail[1:2] + tail[:1] + tail[2:]] = word
            for letter in letters:
                found[head + letter + tail] = found[head + letter + tail[1:]] = word
    return {slip: word for slip, word in found.items() if slip not in PLAYED}


def strangers(shapes: Mapping[str, tuple[int, ...]], taken: Collection[str]) -> list[str]:
    """Return the matrices, by name and shape, that are not taken and whose name plays no role.

    A single one beside an lse is the output, whatever it is called.
    """
    known = PLAYED.keys() | BYSTANDERS | set(taken)
    return [n for n, shape in shapes.items() if len(shape) > 1 and not known & {n, n.lower()}]
