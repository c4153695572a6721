"""Hidden states, memories, masks and labels of `attncli multihead`, from files and flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from attncli import files
from attncli.attention.problem import Problem
from attncli.attention.rope import Rope
from attncli.attention.view import Labels
from attncli.cli import groups
from attncli.cli.given.attention import kv_lengths_of, scale_of, sink_of
from attncli.cli.given.expected import Theirs, expected_of
from attncli.cli.given.expressions import said_of
from attncli.cli.given.names import is_known, of_weights, without_role
from attncli.cli.given.reader import Reader, is_count, is_number, is_truth, is_word
from attncli.cli.given.rope import PARTS, no_rope, rope_of
from attncli.cli.given.tokens import Tokens, labels_of, tokens_of
from attncli.cli.groups import multihead as own
from attncli.errors import InputError, listed
from attncli.files.bundle import Bundle
from attncli.models.finding import holds_layers
from attncli.models.layer import Layer
from attncli.models.random import random_weights

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class States:
    """``x`` and other ``arguments`` of ``layers.multihead``; RoPE waits for the layer.

    ``expected`` are results to be judged, by stage.
    """

    x: Array
    arguments: Mapping[str, Any]
    reader: StateReader
    tokens: Mapping[str, Tokens] = field(default_factory=dict)
    expected: Mapping[str, Theirs] = field(default_factory=dict)

    @property
    def cross(self) -> bool:
        """Whether keys and values are made from something else."""
        return self.arguments["memory"] is not None

    def notes_for(self, layer: Layer) -> tuple[str, ...]:
        """What was assumed of the input."""
        notes = tuple(dict.fromkeys(self.reader.notes))
        masks = [self.arguments[name] for name in ("attn_mask", "key_padding_mask")]
        unsaid = self.reader.flags.mask_polarity is None
        if layer.family == "torch" and unsaid and any(
            mask is not None and mask.dtype == bool for mask in masks
        ):  # fmt: skip
            notes += ("masks: True keeps a key; in torch's own it hides (--mask-polarity ignore)",)
        return notes

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looks like a mistake in the input; ask when all has been read."""
        self.reader.warn_of_unread()
        return tuple(dict.fromkeys(self.reader.warnings))

    @property
    def sources(self) -> tuple[str, ...]:
        """The files that were read."""
        return tuple(dict.fromkeys(self.reader.sources))

    def sizes(self) -> dict[str, int | None]:
        """Return what flags and file say of heads, as ``layers.load`` takes it."""
        return self.reader.sizes()

    def own_weights(self, example: str, asked: bool) -> Bundle:
        """Return the weights that stand beside X in its file, as ``--weights`` ``asked`` or not.

        InputError where there are none.
        """
        bundle = self.reader.bundle
        assert bundle
        names = [name for name in bundle.tensors if not is_known(name)]
        tensors = {name: bundle.tensors[name] for name in names}
        own = replace(bundle, tensors=tensors, options={}) if names else None
        if own is None or not holds_layers(own):
            raise InputError(
                "nothing says where the weights are: "
                f"{'no --weights, and ' * (not asked)}no wq, wk, wv in {bundle.source}",
                f"-w FILE or FOLDER; or, without a checkpoint: {example}",
            )
        self.reader.taken.update(names)
        return own

    def random_layer(self, how: own.Random) -> Layer:
        """Return a layer with random weights that takes these hidden states."""
        sizes = self.sizes()
        assert how.random_weights is not None
        width = how.model_dim or int(self.x.shape[-1])
        if sizes["heads"] is None:
            raise InputError(
                "random weights need to know how many heads", "give --heads, as in --heads 2"
            )
        memory = self.arguments["memory"]
        return random_weights(
            how.random_weights, width, sizes["heads"], kv_heads=sizes["kv_heads"],
            head_dim=sizes["head_dim"], memory_dim=memory.shape[-1] if memory is not None else None,
        )  # fmt: skip

    def rope(self, layer: Layer) -> Rope | str | None:
        """Return the RoPE asked for, parts of it in place of the layer's; None: the layer's."""
        return self.reader.rope_of(None if self.cross else layer.rope)

    def labels(self, problem: Problem, layer: Layer) -> Labels:
        """Return the labels; those of a memory come from its file, torch's added keys have own."""
        tokens = dict(self.tokens)
        extra = ("[bias_k]",) * ("bias_k" in layer.tensors)
        extra += ("[zero]",) * self.reader.flags.add_zero_attn
        if extra and not self.cross and "tokens" in tokens:
            both = tokens.pop("tokens")
            tokens = {"query_tokens": both, "key_tokens": both, **tokens}
        if extra and "key_tokens" in tokens:
            tokens["key_tokens"] = tuple((*some, *extra) for some in tokens["key_tokens"])
        return labels_of(tokens, problem)


def gather_states(
    bundle: Bundle | None, flags: own.Projection, learning: own.Random | None = None
) -> States:
    """Find hidden states, what goes with them, and their labels.

    Without a bundle, ``learning`` makes a random vector for each word of the tokens. Raises
    InputError or FileError for what is missing, ambiguous or of the wrong type.
    """
    return StateReader(bundle, flags).states(learning)


class StateReader(Reader):
    """Finds hidden states and what goes with them."""

    flags: own.Projection

    def __init__(self, bundle: Bundle | None, flags: own.Projection) -> None:
        super().__init__(bundle, flags)
        if bundle and files.is_result(bundle):
            # the result of a layer: its scale and mask are not those of the next one
            self.options = {n: v for n, v in self.options.items() if n.endswith("tokens")}

    def states(self, learning: own.Random | None) -> States:
        flags = self.flags
        tokens = tokens_of(self)
        x = self.hidden_states(tokens, learning)
        memory = self.floats("memory")
        mask, padding = self.mask_tensors(x)
        self.check_mask(mask, x, x if memory is None else memory)
        polarity = self.pick("mask_polarity", is_word, "keep or ignore")
        if flags.mask_polarity and mask is None and padding is None:
            raise InputError(
                "--mask-polarity is given, but there is no mask tensor",
                "add --attn-mask FILE or --key-padding-mask FILE",
            )
        positions = self.tensor("positions", flags.positions)
        found = States(
            x,
            {
                "memory": memory,
                "memory_value": self.floats("memory_value"),
                "seq_first": flags.seq_first,
                "mask": self.mask_texts(),
                "attn_mask": mask,
                "key_padding_mask": padding,
                "mask_polarity": polarity or "keep",
                "add_zero_attn": flags.add_zero_attn,
                "past_key": self.floats("past_key"),
                "past_value": self.floats("past_value"),
                "kv_lengths": kv_lengths_of(self),
                "positions": positions[0] if positions else None,
                "scale": self.given_scale(),
                "softcap": self.pick("softcap", is_number, "a positive number"),
                "sink": sink_of(self),
                "dtype": flags.dtype,
                "softmax_dtype": flags.softmax_dtype,
            },
            self,
            self.sides(tokens, memory is not None),
            expected_of(self),
        )
        return found

    # -- tensors --

    def hidden_states(self, tokens: Mapping[str, Tokens], learning: own.Random | None) -> Array:
        """The tensor of that role, the output of a layer before, or the only one there is."""
        if self.bundle is None:
            assert learning is not None
            return self.random_states(tokens, learning)
        found = self.tensor("hidden_states")
        if found is None and files.is_result(self.bundle):
            found = self.tensor("output")
        if found is None:
            rest = without_role(self.bundle)
            weights = None if rest == [""] else of_weights(self.bundle)
            if len(rest) != 1 or weights:
                names = listed(self.bundle.tensors) or "no tensors"
                which = (
                    f"name it x, or say which it is: {self.bundle.ref(rest[0])}" if rest else None
                )
                raise InputError(
                    f"{self.bundle.source} has no tensor named hidden_states or x; it holds "
                    f"{names}",
                    weights or which or 'expected at least {"x": [[…], …]}, a row for each token',
                )  # fmt: skip
            self.taken.add(rest[0])
            found = self.bundle.tensors[rest[0]], self.bundle.kind
        return self.noted("x", *found)

    def random_states(self, tokens: Mapping[str, Tokens], learning: own.Random) -> Array:
        """Normal numbers ``(L, E)`` or ``(B, L, E)``: the same word is the same row."""
        words = tokens.get("tokens") or tokens.get("query_tokens")
        if not words or learning.model_dim is None:
            raise InputError(
                "there is no X, and nothing to make hidden states for",
                "give X; or --model-dim N and --tokens 'the cat sat', for a random vector a word",
            )
        if not words[0]:
            raise InputError("--tokens names no word", "as in --tokens 'the cat sat'")
        lengths = sorted({len(some) for some in words})
        if len(lengths) > 1:
            raise InputError(
                f"the sentences of --tokens have {lengths[0]} to {lengths[-1]} words",
                "make them as long, with a word such as [PAD]",
            )
        rows: dict[str, Array] = {}
        rng = np.random.default_rng(learning.random_weights)
        for word in (word for some in words for word in some):
            if word not in rows:
                rows[word] = rng.standard_normal(learning.model_dim)
        self.notes.append(
            f"hidden states: a random normal vector for each word, seed {learning.random_weights}"
        )
        states = np.stack([[rows[word] for word in some] for some in words])  # (B, L, E)
        return states if len(words) > 1 else states[0]

    def mask_tensors(self, x: Array) -> tuple[Array | None, Array | None]:
        """The attention mask and the key padding mask; transformers' attention_mask is a padding
        mask where it is ``(batch, keys)``."""
        batch = x.shape[int(self.flags.seq_first)] if x.ndim == 3 else 1
        mask = self.tensor("attn_mask", self.flags.attn_mask)
        padding = self.tensor("key_padding_mask", self.flags.key_padding_mask)
        if mask and self.flags.attn_mask is None and mask[0].ndim == 2:
            assert self.bundle
            role = files.find(self.bundle, "attn_mask")
            if role and role[0].lower() == "attention_mask" and len(mask[0]) == batch:
                if padding:
                    raise InputError(
                        f"{self.bundle.source}: {role[0]} {mask[0].shape} and key_padding_mask "
                        "are both key padding",
                        "keep one of them",
                    )
                self.notes.append(
                    f"attention_mask {mask[0].shape} is taken as the key padding mask, "
                    "(batch, keys), 1 = keep"
                )
                mask, padding = None, mask
        return (mask[0] if mask else None), (padding[0] if padding else None)

    def check_mask(self, mask: Array | None, x: Array, memory: Array) -> None:
        """Raise InputError for a key padding mask where an attention mask should be."""
        if mask is None or x.ndim != 3 or memory.ndim != 3:
            return
        batch, length = x.shape[:2][:: -1 if self.flags.seq_first else 1]
        keys = memory.shape[0 if self.flags.seq_first else 1]
        if mask.shape == (batch, keys) != (length, keys):
            raise InputError(
                f"attn_mask is {mask.shape}, a row for each of the batch, but there are {length} "
                "queries",
                "it looks like a key padding mask: give it as --key-padding-mask",
            )

    # -- options --

    def sizes(self) -> dict[str, int | None]:
        counts = {n: self.pick(n, is_count, "a positive integer") for n in groups.Heads.members}
        return counts | {"head_dim": self.flags.head_dim}

    def mask_texts(self) -> tuple[str, ...] | None:
        """Mask expressions; None: the layer's own mask."""
        texts = said_of(self.flags)
        if not texts and "mask" in self.options:
            texts.append(self.checked("mask", is_word, 'such as "causal"'))
        if not texts and self.checked("causal", is_truth, "true or false"):
            texts.append("causal")
        return tuple(texts) if texts else None

    def given_scale(self) -> Any:
        """None: the layer's own."""
        if self.flags.scale is None and "scale" not in self.options:
            return None
        return scale_of(self)[0]

    def rope_of(self, own: Rope | None) -> Rope | str | None:
        flags = self.flags
        parts = {name: getattr(flags, name) for name in PARTS}
        if no_rope(flags):
            return "none"
        if flags.rope is None and own is not None and any(v is not None for v in parts.values()):
            given = rope_of(Reader(None, flags.but(rope=own.style)))
            assert given is not None
            if given.cos is not None:
                return replace(given, dim=given.dim or own.dim, start=own.start)
            return replace(
                own,
                theta=own.theta if flags.rope_theta is None else given.theta,
                dim=own.dim if flags.rope_dim is None else given.dim,
                scaling=own.scaling if flags.rope_scaling is None else given.scaling,
            )
        if flags.rope is None and (flags.positions is not None or "positions" in self.spelt):
            return None  # they belong to the layer's own
        return rope_of(self)

    def sides(self, tokens: Mapping[str, Tokens], cross: bool) -> dict[str, Tokens]:
        """Return the labels of queries and keys; a memory's labels are those of its file."""
        sides = dict(tokens)
        if not cross:
            return sides
        if "tokens" in sides:
            sides.setdefault("query_tokens", sides.pop("tokens"))
        if self.flags.memory is not None and "key_tokens" not in sides:
            theirs = tokens_of(Reader(files.read(self.flags.memory), groups.Labels()))
            keys = theirs.get("tokens") or theirs.get("query_tokens")
            if keys:
                sides["key_tokens"] = keys
        return sides
