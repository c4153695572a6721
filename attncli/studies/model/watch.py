"""Watch the attention of a model while it trains: largest logit, entropy, saturated share."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from inspect import signature
from typing import Any

from attncli.errors import InputError, Unavailable, counted
from attncli.measures.policy import PLACED, POLICY, Rule
from attncli.studies.model.interface import HARMLESS, LISTENERS, REFUSED

#: By layer (path of the module), by statistic, a number a head.
Record = dict[str, dict[str, list[float]]]
Log = Callable[[int, Record], None]

KEPT = 1000  # records, the newest
#: Implementations of transformers whose masks and arguments mean what is computed here.
READ = ("sdpa", "eager")
MINDED = ("softcap", "s_aux", "position_bias", "is_causal", "scaling")
UNMINDED = {
    **HARMLESS,
    "dropout": "it takes weights away after the softmax",
    "sliding_window": "the mask has it in it, or the model goes without",
    "output_attentions": "what the model returns",
}
JUDGED = {rule.statistic: rule for rule in POLICY if rule.name in ("large_logits", "saturated")}
NEEDS = "pip install 'attncli[torch]'"

#: Who watches a module, and whose next pass is told.
WATCHED: dict[Any, Watch] = {}
TELLING: set[Watch] = set()


def watch(model: Any, every: int = 100, log: Log | None = None) -> Watch:
    """Watch the attention of a model in training, until ``remove()`` or the end of a block.

        with attncli.watch(model, every=100) as seen:
            for batch in batches:
                model(**batch).loss.backward()
                ...
        seen.records[-1]

    Every ``every``-th forward pass in training mode, from the first on, ``log(step, record)`` is
    told: ``step`` counts these passes from 0, and ``record`` is
    ``{layer: {"logit_max": […], "entropy": […], "saturated_share": […], "placed_share": […]}}``,
    one float a head over the rows of the batch, padding left out where the model is given a 2-D
    attention_mask: the largest magnitude of a score (scaled, before softcap and mask; NaN and inf
    where a score is); of rows that see two keys or more, before dropout, the mean entropy in nats,
    the share of rows with max weight > 0.99, and the share of the mass on few places: keys, as a
    sink, and offsets, as the previous token. A layer is called by the path of its module;
    ``.call2`` is its second call in a pass. Models of ``from_pretrained`` are not in training mode
    before ``model.train()``; a watch that ends without such a pass says so. Without ``log``, a line
    on standard error for each layer beyond the limits of ``measures.policy``, which excuse heads on
    fixed places, or one for all. ``records`` has the newest 1000.

    The model computes what it always does, by the implementation it has: nothing is replaced, no
    graph is kept, and the step is the same to the last bit. Scores are computed again beside it, on
    its device, in O(tile·Lk) memory.

    - A model of transformers 5 (also inside another module) is seen where its code asks
      AttentionInterface.get_interface for sdpa or eager attention, as nearly all do; layers that
      take a function from its table by themselves (some of SAM 2 and 3, Qwen2.5-Omni) are not.
    - Any other module is seen where it calls torch.nn.functional.scaled_dot_product_attention,
      nn.MultiheadAttention with need_weights=False and nn.TransformerEncoder among them, called by
      the innermost module that runs; a 3-D query is ``(H, L, D)``. Attention written out with
      matmul and softmax, flex_attention, and functions that other packages compile are not seen.

    What a forward pass computes again in the backward pass (checkpointing) is not told twice.
    What is compiled, before or after, is compiled once more, and runs without its graph in passes
    that are told; with fullgraph=True PyTorch refuses to watch it.
    Raises Unavailable without PyTorch; InputError for what is no module, for ``every`` < 1, a model
    that is watched or captured already, DataParallel on several devices, or a model whose
    implementation cannot be read (flash, flex); at the first pass, for one of whose attention
    nothing was seen, or a call that is not measured here.
    """
    try:
        module = import_module("torch").nn.Module
    except ImportError as error:
        raise Unavailable(f"watching a model needs PyTorch: {error}", NEEDS) from None
    if not isinstance(model, module):
        raise InputError(f"the model is a {type(model).__name__}", "expected a torch.nn.Module")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InputError(f"every is {every!r}", "expected a number of forward passes, at least 1")
    if log is not None and not callable(log):
        raise InputError(f"log is a {type(log).__name__}", "expected a function of step and record")
    return Watch(model, every, say if log is None else log)


class Watch:
    """A model that is watched; ``records`` are pairs ``(step, record)``, see ``watch``."""

    def __init__(self, model: Any, every: int, log: Log) -> None:
        model = getattr(model, "_orig_mod", model)  # torch.compile's
        self.model, self.every, self.log = model, every, log
        self.records: deque[tuple[int, Record]] = deque(maxlen=KEPT)
        self.passes = 0  # in training mode
        self.asleep = 0  # with gradients and not in training mode
        self.names = {
            module: name.replace("._orig_mod", "").replace("_orig_mod.", "") or "model"
            for name, module in model.named_modules()
        }
        self.parts = _parts(model, self.names)
        self._on = False
        self._sums: dict[str, Any] = {}
        self._inner: list[Any] = []  # (module, what is known of it) that run now
        self._hooks: list[Any] = []
        self._mode: Any = None
        if self.parts and not any(one.parts for one in WATCHED.values()):
            _install()
        WATCHED.update(dict.fromkeys(self.names, self))
        self._compiler = import_module("torch").compiler
        apart = self._compiler.disable  # of a graph, that hooks break off
        self._root = [
            model.register_forward_pre_hook(apart(self._begin), with_kwargs=True),
            model.register_forward_hook(apart(self._end), always_call=True),
        ]
        self._compiler.reset()  # graphs that know nothing of hooks
        self._tell(True)

    def remove(self) -> None:
        """Stop watching; the model is as before."""
        self._stop()
        self._tell(False)
        if self.asleep and not self.passes:
            sys.stderr.write(
                f"attncli: nothing was watched: of {counted(self.asleep, 'pass', 'passes')} "
                "forward none was in training mode, which model.train() turns on\n"
            )
        self.asleep = 0
        for hook in self._root:
            hook.remove()
        watched = [module for module in self.names if WATCHED.get(module) is self]
        for module in watched:
            del WATCHED[module]
        if watched:
            self._compiler.reset()
            if self.parts and not any(one.parts for one in WATCHED.values()):
                _uninstall()

    def _tell(self, following: bool) -> None:
        """Note whether the pass that follows is told: no graph may run in its place."""
        before = bool(TELLING)
        (TELLING.add if following else TELLING.discard)(self)
        if before != bool(TELLING):
            self._compiler.set_stance("force_eager" if TELLING else "default")

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # -- a pass -----------------------------------------------------------------------------------

    def _begin(self, model: Any, args: Any, kwargs: Any) -> None:
        self._stop()  # a pass that was interrupted
        if not model.training:
            self.asleep += import_module("torch").is_grad_enabled()
            return
        self.passes += 1
        if (self.passes - 1) % self.every:
            return
        self._on, self._sums = True, {}
        self._enter(model, args, kwargs)
        for module in self.parts or self.names:
            if module is not model:  # hooks on others only while they are needed
                self._hooks += [
                    module.register_forward_pre_hook(self._enter, with_kwargs=True),
                    module.register_forward_hook(self._leave, always_call=True),
                ]
        if not self.parts:
            mode = import_module("attncli.studies.model.device_rows").SdpaCalls(self._sdpa)
            self._mode = mode.__enter__()

    def _end(self, model: Any, _: Any, output: Any) -> None:
        if model.training:
            self._tell(self.passes % self.every == 0)
        if not self._on:
            return
        self._stop()
        if output is None:  # an exception is on its way
            return
        if not self._sums:
            self.remove()
            own = import_module("torch").nn.MultiheadAttention
            raise InputError(
                f"{type(model).__name__} ran, and none of its attention was seen",
                "nn.MultiheadAttention is seen where it is called with need_weights=False, which "
                "is faster and gives the same output"
                if any(isinstance(module, own) for module in self.names)
                else "it computes attention by itself: watch sees scaled_dot_product_attention and "
                "transformers' AttentionInterface",
            )
        step, record = self.passes - 1, {n: _told(one) for n, one in self._sums.items()}
        self._sums = {}
        self.records.append((step, record))
        self.log(step, record)

    def _stop(self) -> None:
        self._on = False
        for hook in self._hooks:
            hook.remove()
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
        self._hooks, self._inner, self._mode = [], [], None

    def _enter(self, module: Any, args: Any, kwargs: Any) -> None:
        self._inner.append((module, _real(module, args, kwargs) if module in self.parts else None))

    def _leave(self, module: Any, *_: Any) -> None:
        while self._inner and self._inner.pop()[0] is not module:
            pass  # modules that an exception has left

    # -- a call -----------------------------------------------------------------------------------

    def asked(self, implementation: str, function: Any, args: Any, kwargs: Any) -> None:
        """Measure a call of transformers' attention, if this pass is told."""
        if not self._on:
            return
        _demand_read(args[0], implementation)
        given = signature(function).bind(*args, **kwargs).arguments
        given.update(given.pop("kwargs", {}))
        module, query, key, _, mask = list(given.values())[:5]
        name, others = self.names[module], dict(list(given.items())[5:])
        for one, value in others.items():
            if not (value is None or value is False or one in MINDED or one in UNMINDED):
                raise InputError(
                    f"{name} calls attention with {one}, which is not measured here",
                    REFUSED.get(one, "it might change the weights, so nothing is told without it"),
                )
        causal = others.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        bias, sdpa = others.get("position_bias"), implementation == "sdpa"
        self._measure(
            name, query, key, scale=others.get("scaling"),
            # eager attention is causal by its mask alone, and sdpa has no sinks
            causal=bool(sdpa and causal and mask is None and query.shape[2] > 1),
            masks=[one for one in (mask, bias) if one is not None],
            softcap=others.get("softcap"), sink=None if sdpa else others.get("s_aux"),
        )  # fmt: skip

    def _sdpa(
        self, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0,
        is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
    ) -> None:  # fmt: skip
        """Measure a call of scaled_dot_product_attention."""
        name = self.names[self._inner[-1][0]]
        if query.is_nested or not (attn_mask is None or hasattr(attn_mask, "untyped_storage")):
            raise InputError(f"{name} calls attention with nested tensors", "expected plain ones")
        lead = query.shape[:-3]
        self._measure(
            name, _four(query, lead), _four(key, lead), scale=scale, causal=is_causal,
            masks=[] if attn_mask is None else [_four(attn_mask, lead)],
        )  # fmt: skip

    def _measure(self, name: str, query: Any, key: Any, *, scale: Any, **how: Any) -> None:
        found = (real for _, real in reversed(self._inner) if real is not None)
        real = next(found, None)
        if real is not None:
            batch, length = query.shape[0], query.shape[2]
            fits = real.shape[0] == batch and real.shape[1] >= length
            real = real[:, real.shape[1] - length :] if fits else None
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        rows = import_module("attncli.studies.model.device_rows")
        sums = rows.head_sums(query.detach(), key.detach(), scale=scale, real=real, **how)
        calls = sum(one == name or one.startswith(f"{name}.call") for one in self._sums)
        self._sums[name if not calls else f"{name}.call{calls + 1}"] = sums


def _told(sums: Any) -> dict[str, list[float]]:
    """Return what is told of a call; this is where the host waits for the device."""
    largest, *summed, rows = sums.double().cpu().tolist()
    shares = [[a / n if n else math.nan for a, n in zip(one, rows, strict=True)] for one in summed]
    largest = [math.nan if one == -math.inf else one for one in largest]
    placed = [min(one, 1.0) for one in shares[2]]  # a cell may lie on two places
    return {
        "logit_max": largest, "entropy": shares[0], "saturated_share": shares[1],
        "placed_share": placed,
    }  # fmt: skip


def _four(tensor: Any, lead: Any) -> Any:
    """Return a tensor with the leading dimensions of a query as one."""
    if tensor.ndim > 4:
        return tensor.expand(*lead, *tensor.shape[-3:]).flatten(0, -4)
    return tensor[(None,) * (4 - tensor.ndim)]


def _real(module: Any, args: Any, kwargs: Any) -> Any:
    """Return which tokens that a model is given are no padding, ``(B, L)``, or None."""
    names = [name for name in signature(module.forward).parameters if name != "self"]
    mask = {**dict(zip(names, args, strict=False)), **kwargs}.get("attention_mask")
    if mask is None or getattr(mask, "ndim", 0) != 2 or mask.is_floating_point():
        return None
    return mask != 0


def _parts(model: Any, modules: Mapping[Any, str]) -> list[Any]:
    """Return the models of transformers in a module; raise for what cannot be watched."""
    kind = type(model).__name__
    if any(module in WATCHED for module in modules):
        raise InputError(f"{kind} is watched already", "one watch of a model at a time")
    if any(module in LISTENERS for module in modules):
        raise InputError(f"{kind} is captured", "leave the block of attncli.capture before")
    for module in modules:
        if type(module).__name__ == "DataParallel" and len(module.device_ids) > 1:
            raise InputError(
                f"{kind} runs copies on {len(module.device_ids)} devices (DataParallel)",
                "nothing sees inside the copies: use DistributedDataParallel",
            )
    if "transformers" not in sys.modules:  # then none of it is here
        return []
    base = import_module("transformers").PreTrainedModel
    parts = [module for module in modules if isinstance(module, base)]
    for part in parts:
        if not part._can_set_attn_implementation():
            raise InputError(
                f"{type(part).__name__} cannot be watched: its code computes attention by itself "
                "and does not ask transformers' AttentionInterface",
                "there is no way to see its scores",
            )
        _demand_read(part, part.config._attn_implementation)
    return parts


def _demand_read(module: Any, how: str) -> None:
    if how not in READ:
        raise InputError(
            f"{type(module).__name__} computes attention by '{how}', which is not read here",
            'model.set_attn_implementation("sdpa")',
        )


# -- transformers' side ---------------------------------------------------------------------------

_BEFORE: list[Any] = []


def _install() -> None:
    """Let watched modules be told of what AttentionInterface gives out: the same functions."""
    kind = import_module("transformers").AttentionInterface
    before, compiling = kind.get_interface, import_module("torch").compiler.is_compiling
    _BEFORE.append(before)

    def get_interface(self: Any, attn_implementation: str, default: Any) -> Any:
        function = before(self, attn_implementation, default)
        # no graph runs in a pass that is told: none needs to hold this
        return function if compiling() else partial(_call, attn_implementation, function)

    kind.get_interface = get_interface


def _uninstall() -> None:
    import_module("transformers").AttentionInterface.get_interface = _BEFORE.pop()


def _call(implementation: str, function: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
    seen = WATCHED.get(module)
    if seen is not None:
        seen.asked(implementation, function, (module, *args), kwargs)
    return function(module, *args, **kwargs)


# -- the default log ------------------------------------------------------------------------------


def say(step: int, record: Record) -> None:
    """Write a line to standard error for each layer beyond the limits, or one for all."""
    lines = list(_beyond(record)) or [_calm(record)]
    sys.stderr.write("".join(f"attncli: step {step}: {line}\n" for line in lines))


def _beyond(record: Record) -> Iterator[str]:
    for layer, found in record.items():
        reasons = []
        for name, rule in JUDGED.items():
            values = found[name]
            heads = [
                h for h, value in enumerate(values)
                if _passes(rule, value) and not (rule.placed and _placed(found, h))
            ]  # fmt: skip
            if heads:
                worst = max(heads, key=lambda h: (not math.isfinite(values[h]), values[h]))
                of = (
                    f"head {worst}" if len(heads) == 1 else f"{len(heads)} heads, head {worst} most"
                )
                reasons.append(f"{of}: {_words(rule, values[worst])}")
        if reasons:
            yield f"{layer}: {'; '.join(reasons)}"


def _passes(rule: Rule, value: float) -> bool:
    """Whether a value is beyond a limit, or a logit that is not finite."""
    broken = rule.statistic == "logit_max" and not math.isfinite(value)
    return broken or rule.limit(value) is not None


def _placed(found: Mapping[str, list[float]], h: int) -> bool:
    """Whether a head is sharp on fixed places, with logits that are not large, as healthy ones."""
    large = JUDGED["logit_max"].hint
    calm = large is None or not found["logit_max"][h] > large
    return calm and found["placed_share"][h] >= PLACED


def _words(rule: Rule, value: float) -> str:
    return rule.words.format(f"{value:.0%}" if rule.number == "%" else f"{value:.3g}")


def _calm(record: Record) -> str:
    largest = max(max(found["logit_max"]) for found in record.values())
    entropies = [one for found in record.values() for one in found["entropy"] if one == one]
    least = f", least mean entropy {min(entropies):.3g} nats" if entropies else ""
    return f"{counted(len(record), 'layer')}, largest logit {largest:.3g}{least}"
