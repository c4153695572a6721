"""Every model_type of transformers, built tiny and awkward, held against our reading of its layers.

5 heads, 1 key/value head, heads 12 wide in a model of 40, windows of 3, norms far from 1, bfloat16
files, padding on the right and on the left. Nothing is downloaded.
``python -m tests.support.zoo [MODEL_TYPE …]`` prints a line a model type.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"

from attncli.errors import AttnError
from attncli.models.finding import every_layer
from attncli.models.layer import Layer
from attncli.models.matching import numbers
from attncli.studies.layer import multihead
from tests.support.families import Compared, Seen
from tests.support.zoo_configs import (
    AUTO,
    LEFT_OUT,
    LENGTHS,
    LONGEST,
    MEMBERS,
    PAIRS,
    REARRANGED,
    SIZES,
    TOO_MANY,
    VARIANTS,
)

Array = np.ndarray[Any, np.dtype[Any]]

V, B = 64, 3


class Verdict(NamedTuple):
    """Of one layer: ``right``, ``refused``, ``wrong`` or ``unseen`` (its model did not run it)."""

    layer: str
    what: str
    words: str = ""


def model_types() -> list[str]:
    """Every name that transformers has a config for."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return sorted(CONFIG_MAPPING_NAMES)


def config_of(kind: str) -> Any:
    """The tiny and awkward config of a model type, or of its variant after a ``!``."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name = kind.split("!")[0]
    made = CONFIG_MAPPING[name]
    said = _shrunk(made) | MEMBERS.get(name, {}) | VARIANTS.get(kind, {})
    return made(**{name: value for name, value in said.items() if value is not LEFT_OUT})


def _shrunk(made: Any, depth: int = 0) -> dict[str, Any]:
    default = made()
    said = default.to_dict()
    small = {
        name: SIZES[name]
        for name, value in said.items()
        if name in SIZES and (type(value) is int or (value is None and name in LENGTHS))
    }
    for name in getattr(made, "sub_configs", None) or {}:
        inner = getattr(default, name, None)
        if inner is not None and depth < 3:
            small[name] = _shrunk(type(inner), depth + 1)
            if isinstance(said.get(name), dict) and "model_type" in said[name]:
                small[name]["model_type"] = said[name]["model_type"]
    return small


def build(kind: str) -> Any:
    """A model whose every parameter is random and exact in bfloat16; raises what keeps it away."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = config_of(kind)
    torch.manual_seed(sum(map(ord, kind)))
    errors: list[str] = []
    for attention in ("eager", "sdpa"):
        for make in _makers(config):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    with torch.device("meta"):
                        size = sum(p.numel() for p in make(attention).parameters())
                    if size > TOO_MANY:
                        raise MemoryError(f"{size:,} parameters")
                    return _randomised(make(attention).eval().float())
            except MemoryError:
                raise
            except Exception as error:  # whatever a model says that this is not its way
                errors.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    raise RuntimeError(next((e for e in errors if "Unrecognized" not in e), errors[0]))


def _makers(config: Any) -> Iterator[Any]:
    import transformers

    for auto in AUTO:
        yield lambda how, auto=auto: getattr(transformers, auto).from_config(
            config, attn_implementation=how
        )
    module = type(config).__module__.replace("configuration", "modeling")
    for found in vars(importlib.import_module(module)).values():
        ours = inspect.isclass(found) and getattr(found, "config_class", None) is type(config)
        if ours and not found.__name__.endswith("PreTrainedModel"):
            yield lambda how, found=found: found._from_config(config, attn_implementation=how)


def _randomised(model: Any) -> Any:
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" in name and not parameter.requires_grad:
                continue  # the angles of RoFormer
            norm = parameter.ndim == 1 or "norm" in name
            centre = parameter.mean().round() if norm else 0  # norms stay about 1
            value = centre + (0.3 if norm else 0.25) * torch.randn_like(parameter)
            parameter.copy_(value.to(torch.bfloat16))
    return model


def inputs(kind: str, model: Any) -> dict[str, Any]:
    """Random inputs; the second sequence is padded on the right, the third on the left."""
    import torch

    takes = inspect.signature(model.forward).parameters
    config, main = model.config, model.main_input_name
    length = LONGEST.get(kind, 9)
    feed: dict[str, Any] = {}
    if "input_ids" in takes:
        codebooks = (config.num_codebooks,) if kind == "csm" else ()
        feed["input_ids"] = torch.randint(4, V, (B, length, *codebooks))
        if "attention_mask" in takes:
            feed["attention_mask"] = torch.ones(B, length, dtype=torch.long)
            feed["attention_mask"][1, length - 3 :] = 0
            feed["attention_mask"][2, :3] = 0
    if "decoder_input_ids" in takes:
        feed["decoder_input_ids"] = torch.randint(4, V, (B, 7))
        if "decoder_attention_mask" in takes:
            feed["decoder_attention_mask"] = torch.ones(B, 7, dtype=torch.long)
            feed["decoder_attention_mask"][1, 5:] = 0
    if "pixel_values" in takes and ("input_ids" not in takes or kind in PAIRS):
        vision = getattr(config, "vision_config", config)
        sides = getattr(vision, "image_size", 32)
        sides = (sides, sides) if isinstance(sides, int) else sides
        feed["pixel_values"] = torch.randn(B, getattr(vision, "num_channels", 3), *sides)
    if main == "input_values":
        feed["input_values"] = torch.randn(B, 400)
    if main == "input_features":
        bins = getattr(config, "num_mel_bins", 8)
        frames = 2 * getattr(config, "max_source_positions", 16)
        speech = kind == "speech_to_text"
        feed["input_features"] = torch.randn(B, *((frames, bins) if speech else (bins, frames)))
        feed.pop("attention_mask", None)
    return feed


@dataclass
class Passed:
    """What passed through one layer: into its projections, out of it, and into its norm."""

    place: str = ""  # of the module that makes queries
    query: Any = None
    key: Any = None
    concat: Any = None
    output: Any = None
    rearranged: bool = False  # between the norm and the projections
    normed: Any = None  # the input of the norm, of the same block, that made ``query``


def watched(model: Any, layers: list[Layer], feed: dict[str, Any]) -> tuple[list[Passed], str]:
    """Run the model, as far as it runs, and return what passed and what stopped it."""
    import torch

    modules: dict[bytes, tuple[str, Any]] = {}
    norms: list[tuple[str, Any, Any]] = []
    handles = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.is_floating_point():
            modules.setdefault(_bytes(weight.detach().numpy()), (name, module))
        if "norm" in type(module).__name__.lower():

            def standardised(_: Any, args: Any, made: Any, name: str = name) -> None:
                if args and torch.is_tensor(made):
                    norms.append((name, args[0].detach(), made.detach()))

            handles.append(module.register_forward_hook(standardised))
    seen = [Passed() for _ in layers]
    for layer, one in zip(layers, seen, strict=True):
        handles += _hooks(layer, one, modules)
    stopped = ""
    with torch.no_grad():
        try:
            model(**feed)
        except Exception as error:  # an input that it lacks; what ran until then has been seen
            stopped = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    for handle in handles:
        handle.remove()
    for one in seen:
        for name, before, after in norms:
            if (
                one.query is not None
                and _same_block(name, one.place)
                and after.shape == one.query.shape
                and torch.equal(after, one.query)
            ):
                one.normed = before
    return seen, stopped


def _same_block(norm: str, projection: str) -> bool:
    """Whether both are of one numbered block, as ``layers.3.norm`` and ``layers.3.attn.q``."""
    shared = [a for a, b in zip(norm.split("."), projection.split("."), strict=False) if a == b]
    return bool(numbers(projection)) and numbers(".".join(shared)) == numbers(projection)


def _bytes(array: Array) -> bytes:
    return np.ascontiguousarray(array, np.float32).tobytes()


def _hooks(layer: Layer, one: Passed, modules: Mapping[bytes, tuple[str, Any]]) -> Iterator[Any]:
    """Yield the hooks on a layer's projections, found by the values of their weights."""
    made = layer.projections()

    def module(*roles: str, apart: Array | None = None) -> tuple[str, Any]:
        arrays = [layer.array(role) for role in roles if role in layer.tensors]
        found = [modules.get(_bytes(a)) for a in (*arrays, apart) if a is not None]
        return next((m for m in found if m is not None), ("", None))

    def enters(place: str) -> Any:
        def hook(_: Any, args: Any) -> None:
            if args and getattr(one, place) is None:
                setattr(one, place, args[0].detach())

        return hook

    def leaves(_: Any, args: Any, result: Any) -> None:
        if one.output is None:
            one.concat, one.output = args[0].detach(), result.detach()

    enter = module("query_down", "query", "qkv", apart=made.query)
    one.place = enter[0]
    for place, (_, found) in (
        ("query", enter),
        ("key", module("key", "kv", "qkv", apart=made.key)),
    ):
        if found is not None:
            yield found.register_forward_pre_hook(enters(place))
    _, output = module("output")
    if output is not None:
        yield output.register_forward_hook(leaves)


def verdicts(kind: str, model: Any) -> list[Verdict]:
    """Save a model in bfloat16, read it back our way, and hold each layer against what it did."""
    import torch

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
        feed = inputs(kind, model)
        try:
            layers, skipped = every_layer(folder)
        except AttnError as error:
            return [Verdict("", "refused", error.message)]
        seen, stopped = watched(model, layers, feed)
        found = [Verdict("", "refused", why) for why in skipped]
        for layer, one in zip(layers, seen, strict=True):
            refused = _refused(layer)
            if refused:
                found.append(Verdict(layer.name, "refused", refused))
            elif one.query is None or one.output is None:
                found.append(Verdict(layer.name, "unseen", stopped))
            else:
                one.rearranged = kind in REARRANGED
                found.append(_held(layer, one, feed))
        return found


def _refused(layer: Layer) -> str:
    """Why a layer is refused whatever it is given, or ''."""
    try:
        layer.missing()
    except AttnError as error:
        return error.message
    return ""


def _held(layer: Layer, one: Passed, feed: dict[str, Any]) -> Verdict:
    """Ours from the projections' input, and from the norm's where there is one."""
    x, theirs = one.query.numpy(), one.output.numpy()
    memory = one.key.numpy() if layer.kind == "cross" else None
    keys = x if memory is None else memory
    hidden = _padding(feed, keys, layer.kind == "cross")
    rows = _padding(feed, x, False)
    real = np.ones(theirs.shape[:-1], bool) if rows is None else rows
    states = [("projections", x, "none")]
    if one.normed is not None:
        if layer.input_norm is None and layer.kind == "self":
            return Verdict(layer.name, "wrong", "its norm before the projections is not applied")
        if layer.input_norm is not None:  # a cross layer's may be the one after self-attention
            states.append(("hidden states", one.normed.numpy(), "auto"))
    elif layer.input_norm is not None and not one.rearranged:
        return Verdict(layer.name, "wrong", "the norm applied is none that its model applies")
    worst = 0.0
    for name, given, norm in states:
        arguments = dict(memory=memory, key_padding_mask=hidden, input_norm=norm)
        try:
            ours = multihead(given, layer, **arguments)
            exact = multihead(given.astype(float), layer, backend="reference", **arguments)
        except AttnError as error:
            return Verdict(layer.name, "refused", error.message)
        if ours.output.shape != theirs.shape:
            return Verdict(layer.name, "wrong", f"{ours.output.shape}, not {theirs.shape}")
        band = Compared(layer, ours, Seen(), None).bands()["output"]
        own = float(np.abs(ours.output - exact.output)[real].max(initial=0))
        error = np.abs(ours.output - theirs)
        if not (error <= 2 * own + 2 * band)[real].all():
            return Verdict(layer.name, "wrong", f"from its {name}, {error[real].max():.1e}")
        worst = max(worst, float(error[real].max(initial=0)))
    return Verdict(layer.name, "right", f"{worst:.1e}")


def _padding(feed: dict[str, Any], states: Array, memory: bool) -> Array | None:
    """The padding mask ``(B, L)`` that fits the states, or None."""
    names = ("attention_mask",) if memory else ("decoder_attention_mask", "attention_mask")
    for name in names:
        mask = feed.get(name)
        if mask is not None and tuple(mask.shape) == states.shape[:2]:
            return np.asarray(mask.numpy() != 0)
    return None


def main(kinds: list[str]) -> None:
    """Print a line a model type."""
    for kind in kinds or model_types():
        try:
            found = verdicts(kind, build(kind))
        except Exception as error:
            print(f"{kind:32} not built: {type(error).__name__}: {error}"[:160], flush=True)
            continue
        count = Counter(verdict.what for verdict in found)
        first = next((v for v in found if v.what != "right"), None)
        said = f"  {first.layer}: {first.words}" if first else ""
        print(f"{kind:32} {dict(count)}{said}"[:200], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
