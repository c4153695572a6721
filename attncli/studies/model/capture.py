"""What the attention of a model does while it runs: every call, its statistics and its heads."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from inspect import signature
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.view import Labels
from attncli.engines import DEFAULT
from attncli.errors import InputError, Unavailable, counted, listed
from attncli.measures.evidence import words_of
from attncli.measures.policy import POLICY
from attncli.measures.statistic import STATISTICS, Summaries
from attncli.studies.attend import Result, run
from attncli.studies.health import TOLD, Head, exact, head_of
from attncli.studies.many import call_name, labels_of
from attncli.studies.model import interface
from attncli.studies.model.interface import LISTENERS, NAME, Place
from attncli.studies.model.patches import patch_names

Array = np.ndarray[Any, np.dtype[Any]]

Words = Callable[[Sequence[int]], Sequence[str]]  # token ids as what people read
#: Takes the path of a module, its problem and the labels; returns the result it made, or None.
Told = Callable[[str, Problem, Labels], Result | None]

#: Parameters of attention modules by which keys come from another sequence.
MEMORY = ("key_value_states", "encoder_hidden_states")
#: What a part is given that hears.
SOUNDS = ("input_features", "input_values")
NEEDS = "pip install 'attncli[hf]' (transformers and PyTorch)"


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention call: ``name`` is short, ``module`` the path in the model.

    ``statistics`` by name: of rows a mapping of mean, p05, median, p95, min, max to ``(B, H)``
    arrays, of heads ``(B, H)`` arrays. ``heads``: verdict and roles of each.
    """

    name: str
    module: str
    statistics: Summaries
    heads: tuple[Head, ...]
    shape: tuple[int, int, int, int]  # batch, heads, queries, keys
    mask: str
    warnings: tuple[str, ...] = ()


@dataclass(eq=False)
class Frame:
    """A part of the model with a configuration of its own that runs, and what it was given."""

    module: Any
    ids: Array | None
    real: Array | None
    memory: Array | None  # which keys of the other sequence are real
    image: tuple[int, int] | None = None  # its height and width
    sound: bool = False

    @property
    def apart(self) -> bool:
        """Whether it reads something else than the words that others were given."""
        return self.ids is None and (self.sound or self.image is not None)


@dataclass(eq=False)
class Seen:
    """What a capture has seen: ``layers`` in the order of their calls."""

    names: Mapping[Any, str]  # of every module
    short: Mapping[str, str]
    told: Told | None = None
    words: Words | None = None
    backend: str = DEFAULT
    device: str = "auto"
    threads: int | None = None
    layers: list[Layer] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    frames: list[Frame] = field(default_factory=list)
    read: list[Array] = field(default_factory=list)  # ids of parts that have run
    apart: set[Any] = field(default_factory=set)
    ran: bool = False

    def __repr__(self) -> str:
        names = listed([layer.name for layer in self.layers], 6)
        return f"<Seen: {counted(len(self.layers), 'layer')}{names and f' ({names})'}>"

    # -- a Listener -------------------------------------------------------------------------------

    def place(self, module: Any, batch: int, queries: int, keys: int) -> Place:
        """Return where a module stands, and what is padding there."""
        frame = self._frame()
        apart = module in self.apart
        real_queries = real_keys = ids = read = None
        if frame is not None:
            if frame.apart:
                return self._pictured(frame, module, batch, queries, keys)
            real_queries, ids = (_last(one, batch, queries) for one in (frame.real, frame.ids))
            if apart:
                real_keys = _sized(frame.memory, batch, keys)
                read = next(
                    (one for one in reversed(self.read) if one.shape == (batch, keys)), None
                )
            else:
                real_keys, read = (_sized(one, batch, keys) for one in (frame.real, frame.ids))
        labels = Labels(self._words(ids), self._words(read))
        return Place(self.names[module], real_queries, real_keys, apart, labels)

    def _pictured(self, frame: Frame, module: Any, batch: int, queries: int, keys: int) -> Place:
        """Return where a module stands that sees an image or hears a sound."""
        named = (
            frame.image and patch_names(frame.module.config, frame.image, count)
            for count in (queries, keys)
        )
        labels = Labels(*((one,) * batch if one else None for one in named))
        return Place(
            self.names[module], _heard(frame, batch, queries), _heard(frame, batch, keys),
            module in self.apart, labels,
        )  # fmt: skip

    def answer(self, module: Any, place: Place, problem: Problem) -> Array:
        """Compute a call, and keep what its statistics say."""
        self.calls[place.name] += 1
        how: dict[str, Any] = dict(backend=self.backend, device=self.device, threads=self.threads)
        if self.told is not None:
            result = self.told(place.name, problem, place.labels)
            result = run(problem, **how) if result is None else result
            return result.attended.output
        result = run(exact(problem, self.backend), want=("output", "lse", "row_statistics"), **how)
        name = call_name(self.short.get(place.name, place.name), self.calls[place.name])
        self.layers.append(_layer(name, place, result))
        return result.attended.output

    def _frame(self) -> Frame | None:
        """Return the innermost part that runs and was told of a sequence."""
        found = (
            f for f in reversed(self.frames) if f.apart or f.ids is not None or f.real is not None
        )
        return next(found, None)

    def _words(self, ids: Array | None) -> tuple[tuple[str, ...], ...] | None:
        if ids is None or self.words is None:
            return None
        return tuple(tuple(self.words(row.tolist())) for row in ids)

    # -- hooks ------------------------------------------------------------------------------------

    def enter(self, module: Any, args: Any, kwargs: Any) -> None:
        """Note what a part of the model is given."""
        given = _arguments(module, args, kwargs)
        ids, real, memory = (
            _plane(given.get(name))
            for name in ("input_ids", "attention_mask", "encoder_attention_mask")
        )
        pixels = getattr(given.get("pixel_values"), "shape", ())
        self.frames.append(
            Frame(module, ids, None if real is None else real != 0,
                  None if memory is None else memory != 0,
                  tuple(pixels[-2:]) if len(pixels) == 4 else None,
                  any(given.get(name) is not None for name in SOUNDS))
        )  # fmt: skip

    def leave(self, module: Any, *_: Any) -> None:
        """Forget it, and keep what it read."""
        while self.frames and self.frames[-1].module is not module:
            self.frames.pop()  # parts that an exception has left
        self.ran = True
        if self.frames and (ids := self.frames.pop().ids) is not None:
            self.read.append(ids)
            del self.read[:-4]

    def attending(self, module: Any, args: Any, kwargs: Any) -> None:
        """Note whether an attention module is given another sequence for its keys."""
        given = _arguments(module, args, kwargs)
        if any(given.get(name) is not None for name in MEMORY):
            self.apart.add(module)
        else:
            self.apart.discard(module)


@contextmanager
def capture(
    model: Any,
    *,
    told: Told | None = None,
    words: Words | Any = None,
    backend: str = DEFAULT,
    device: str = "auto",
    threads: int | None = None,
) -> Iterator[Seen]:
    """Compute the attention of a transformers model here, for as long as the block runs.

        with attncli.capture(model) as seen:
            model(**batch)
        seen.layers[3].statistics["entropy"]["median"]

    ``words``: a tokenizer, or what makes words of a list of token ids; it names what heads look
    at. ``told(path, problem, labels)`` is called for each attention call in place of keeping its
    statistics. Afterwards the model has the implementation that it had, whatever happened.
    Raises Unavailable without transformers, InputError for a model whose code does not ask
    transformers for its attention, one that is captured already, for calls that cannot be computed
    here, and where a model ran and no attention was seen.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's
    parts = _parts(model)
    modules = {module: name or "model" for name, module in model.named_modules()}
    if any(module in LISTENERS for module in modules):
        raise InputError(
            f"{type(model).__name__} is captured already", "one capture of a model at a time"
        )
    if words is not None and not callable(getattr(words, "convert_ids_to_tokens", words)):
        raise InputError(f"words is a {type(words).__name__}", "expected a tokenizer or a function")
    interface.register()
    seen = Seen(modules, short_names(modules), told, _words_of(words), backend, device, threads)
    before = [(config, config._attn_implementation_internal) for config in _configs(parts)]
    hooks: list[Any] = []
    finished = False
    try:
        model.set_attn_implementation(NAME)
        LISTENERS.update(dict.fromkeys(modules, seen))
        hooks += _hooked(seen, parts, modules)
        yield seen
        finished = True
    finally:
        for module in modules:
            LISTENERS.pop(module, None)
        for hook in hooks:
            hook.remove()
        for config, implementation in before:
            config._attn_implementation_internal = implementation
    if finished and seen.ran and not seen.calls:
        raise InputError(
            f"{type(model).__name__} ran, and none of its attention went through transformers' "
            "interface", "it cannot be seen: its code computes attention by itself, if any",
        )  # fmt: skip


def _parts(model: Any) -> list[Any]:
    """Return the parts of a model that have a configuration; raise for what cannot be captured."""
    try:
        base = import_module("transformers").PreTrainedModel
        import_module("transformers").AttentionMaskInterface  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"transformers 5 is not there: {error}", NEEDS) from None
    if not isinstance(model, base):
        raise InputError(
            f"the model is a {type(model).__name__}", "expected a model of transformers"
        )
    parts = [module for module in model.modules() if isinstance(module, base)]
    deaf = next((part for part in parts if not part._can_set_attn_implementation()), None)
    if deaf is not None:
        raise InputError(
            f"{type(deaf).__name__} cannot be captured: its code computes attention by itself and "
            "does not ask transformers' AttentionInterface",
            "inspect its weights (attncli inspect FOLDER), or captured tensors of it",
        )
    return parts


def _configs(parts: Sequence[Any]) -> list[Any]:
    """Return the configurations of all parts, each once, and those inside them."""
    found: dict[int, Any] = {}
    todo = [part.config for part in parts]
    while todo:
        config = todo.pop()
        if id(config) not in found:
            found[id(config)] = config
            inner = (getattr(config, name, None) for name in config.sub_configs)
            todo += [one for one in inner if one is not None]
    return list(found.values())


def _hooked(seen: Seen, parts: Sequence[Any], modules: Mapping[Any, str]) -> Iterator[Any]:
    for part in parts:
        yield part.register_forward_pre_hook(seen.enter, with_kwargs=True)
        yield part.register_forward_hook(seen.leave, always_call=True)
    for module in modules:
        if module not in parts and {*MEMORY} & {*signature(module.forward).parameters}:
            yield module.register_forward_pre_hook(seen.attending, with_kwargs=True)


def _arguments(module: Any, args: Any, kwargs: Any) -> Mapping[str, Any]:
    """Return what a module is given, by name."""
    names = [name for name in signature(module.forward).parameters if name != "self"]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _plane(tensor: Any) -> Array | None:
    """Return a tensor ``(B, L)`` of numbers that count, or None."""
    if getattr(tensor, "ndim", 0) != 2 or tensor.is_floating_point():
        return None
    return np.asarray(tensor.detach().cpu().numpy())


def _heard(frame: Frame, batch: int, length: int) -> Array | None:
    """Return which frames of a batch of sounds are real, ``(B, L)``, of which samples are."""
    if frame.real is None or frame.real.shape == (batch, length):
        return frame.real
    of_samples = getattr(frame.module, "_get_feature_vector_attention_mask", None)
    if of_samples is None or not frame.sound:
        return None
    real = of_samples(length, import_module("torch").from_numpy(frame.real))
    return _sized(np.asarray(real.cpu().numpy() != 0), batch, length)


def _sized(array: Array | None, batch: int, length: int) -> Array | None:
    return array if array is not None and array.shape == (batch, length) else None


def _last(array: Array | None, batch: int, length: int) -> Array | None:
    """Return the last columns of ``(B, L)``: those of the new positions, after a cache."""
    if array is None or array.shape[0] != batch or array.shape[1] < length:
        return None
    return array[:, array.shape[1] - length :]


def _words_of(words: Any) -> Words | None:
    """Return a function from ids to words, of a tokenizer or of such a function."""
    if not hasattr(words, "convert_ids_to_tokens"):
        return words  # type: ignore[no-any-return]

    def read(ids: Sequence[int]) -> list[str]:
        tokens = words.convert_ids_to_tokens(list(ids))
        return [_word(words, one, token) for one, token in zip(ids, tokens, strict=True)]

    return read


def _word(tokenizer: Any, one: int, token: Any) -> str:
    """Return a token as people write it: the byte-level 'Ġcafé' as 'café'."""
    text = str(tokenizer.decode([one])).strip()
    return text if text and "\ufffd" not in text else str(token)


# -- layers ---------------------------------------------------------------------------------------


def _layer(name: str, place: Place, result: Result) -> Layer:
    p, labels = result.problem, place.labels
    self_attention = not place.apart and p.mask.positions() is not None
    evidence = replace(result.evidence, words=words_of(labels.query, labels.key, p.batch))
    found = evidence.summaries(
        name
        for name in evidence.known(TOLD)
        if self_attention or not {"placed", "repeats"} & {*STATISTICS[name].needs}
    )
    heads = tuple(
        head_of(evidence, found, b, h, labels.key, POLICY, self_attention)
        for b, h in np.ndindex(p.batch, p.heads)
    )
    return Layer(
        name, place.name, found, heads, (p.batch, p.heads, p.queries, p.keys), p.mask.words,
        tuple(result.warnings),
    )  # fmt: skip


def short_names(modules: Mapping[Any, str]) -> dict[str, str]:
    """Return a short name for each innermost attention module, by its path, none twice."""
    named = [name for module, name in modules.items() if _is_attention(module)]
    paths = [one for one in named if not any(two.startswith(f"{one}.") for two in named)]
    return dict(zip(paths, labels_of(paths), strict=True))


def _is_attention(module: Any) -> bool:
    with suppress(AttributeError):
        return bool(re.search(r"Attention|Attn", type(module).__name__)) and any(
            True for _ in module.children()
        )
    return False
