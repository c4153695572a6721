"""What config.json says of an attention layer, under the names that families use for it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attncli.attention.biases import alibi_slopes
from attncli.attention.rope import Rope
from attncli.attention.rope_scaling import SCALINGS
from attncli.errors import InputError
from attncli.models.families import Family, normal
from attncli.models.layer import Temperature

Config = Mapping[str, Any]

#: Parts of a composed model and the path components that belong to them.
NESTED: Mapping[str, tuple[str, ...]] = {
    "vision_config": ("vision", "visual", "image_encoder"),
    "audio_config": ("audio", "speech"),
    "qformer_config": ("qformer",),
    "text_config": ("text", "language"),
    "depth_decoder_config": ("depth_decoder",),
    "encoder": ("encoder",),
    "decoder": ("decoder",),
}
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
#: Components of a decoder's path that name no part of a model.
PLAIN = {"", "model", "backbone_model", "transformer", "layers", "h", "self_attn", "attn"}
KV_HEADS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads", "kv_n_heads")
WIDTHS = ("head_dim", "d_kv", "attention_head_size")
EPSILONS = (
    "rms_norm_eps", "layer_norm_eps", "norm_eps", "layer_norm_epsilon", "norm_epsilon",
)  # fmt: skip
THETAS = ("rope_theta", "rotary_emb_base", "rotary_base")
PARTIALS = ("partial_rotary_factor", "rotary_pct", "rope_pct")


def parts_of(config: Config, path: str) -> list[Config]:
    """Return the configs that speak of a layer, from the whole model's to that of its part.

    ``vision_model.…`` is spoken of by ``vision_config``; a path that names no part by
    ``text_config``, where that is what plain decoder blocks belong to.
    """
    components = path.split(".")
    for at, component in enumerate(components):
        for key, stems in NESTED.items():
            inner = config.get(key)
            if isinstance(inner, dict) and component.startswith(stems):
                return [config, *parts_of(inner, ".".join(components[at + 1 :]))]
    inner = config.get("text_config")
    before = [part for part in components if not part.isdigit()]
    if isinstance(inner, dict) and first(config, HEADS) is None and {*before} <= PLAIN:
        return [config, inner]
    return [config]


def speaks_of(chain: Sequence[Config], path: str) -> bool:
    """Return whether the last of a path's configs says what its layers are.

    A model of parts says nothing of a part that it does not name, and a part that goes by the
    name of the whole (as in older Qwen-VL) nothing of itself.
    """
    last = chain[-1]
    parts = any(isinstance(v, dict) and v.get("model_type") for v in last.values())
    named = {part for part in path.split(".") if not part.isdigit()} - PLAIN
    if parts and named:
        return False
    return len(chain) == 1 or model_type(last) != model_type(chain[0]) or not model_type(last)


def first(config: Config, names: Sequence[str]) -> tuple[str, Any] | None:
    """Return the first of the names that the config has, and what it says."""
    places = [config, config.get("attn_config")]
    for name in names:
        for place in places:
            if isinstance(place, dict | Mapping) and place.get(name) is not None:
                return name, place[name]
    return None


def wrong(name: str, value: Any, expected: str) -> InputError:
    """Return the error for a member that cannot be what it should be."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= 60 else text[:59] + "…"
    return InputError(f"config.json: {name} is {text}", f"expected {expected}, or null")


def count(config: Config, names: Sequence[str], stage: int = 0) -> tuple[str, int] | None:
    """Return a whole number and the name it has; of a list (Swin), that of the stage.

    Raises InputError for anything else.
    """
    found = first(config, names)
    if found is None:
        return None
    name, value = found
    if isinstance(value, list):
        if stage >= len(value):
            return None
        value = value[stage]
    if type(value) is not int or value < 1:
        raise wrong(name, value, "a positive whole number")
    return name, value


def heads(config: Config, path: str, stage: int) -> tuple[str, int] | None:
    """Return the query heads of a layer and under which name they stand."""
    parts = path.split(".")
    side = "decoder" if "decoder" in parts else "encoder"
    named = first(config, HEADS)
    if named and isinstance(named[1], list):  # diffusers' UNet: a number a block on the way down
        back = "up_blocks" in parts or "mid_block" in parts
        stage = max(len(named[1]) - 1 - stage, 0) if back else stage
    return count(config, (f"{side}_attention_heads", *HEADS), stage)


def number(config: Config, *names: str) -> float | None:
    """Return a finite number, or None without one; InputError for anything else."""
    found = first(config, names)
    if found is None:
        return None
    name, value = found
    try:
        number = float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise wrong(name, value, "a finite number")
    return number


def members(config: Config, name: str) -> dict[str, Any]:
    """Return an object within the config, empty without one; InputError for anything else."""
    value = config.get(name)
    if value is not None and not isinstance(value, dict):
        raise wrong(name, value, "an object")
    return value or {}


def scale(config: Config, family: Family, width: int, index: int) -> tuple[float, str]:
    """Return what the scores are multiplied by, and why."""
    value, why = 1 / math.sqrt(width), f"1/√{width}"
    multiplier = number(config, "attention_multiplier")
    before = number(config, "query_pre_attn_scalar")
    fixed = number(config, "softmax_scale")
    if before is not None and before <= 0:
        raise wrong("query_pre_attn_scalar", before, "a positive number")
    if family.bias == "disentangled":  # one for the content, and one for each term
        parts = 1 + len(terms(config))
        value, why = 1 / math.sqrt(width * parts), f"1/√({width}·{parts})"
    elif family.scale is not None:
        value, why = family.scale, "none in this family"
    elif multiplier is not None:
        value, why = multiplier, "attention_multiplier"
    elif before is not None:
        value, why = before**-0.5, f"query_pre_attn_scalar {before:g}"
    elif fixed is not None:
        value, why = fixed, "softmax_scale"
    elif config.get("scale_attn_weights") is False:
        value, why = 1.0, "scale_attn_weights false"
    factor = mscale(config) if "mscale" in family.latent else 1.0
    if factor != 1:
        value, why = value * factor**2, f"{why} · mscale² {factor**2:.4g}"
    if config.get("scale_attn_by_inverse_layer_idx"):
        value, why = value / (index + 1), f"{why}/{index + 1}, scale_attn_by_inverse_layer_idx"
    return value, why


def mscale(config: Config) -> float:
    """Return 0.1·mscale_all_dim·ln(factor) + 1 (yarn, Peng et al. 2023), 1 without."""
    settings = {**members(config, "rope_scaling"), **members(config, "rope_parameters")}
    name = settings.get("rope_type") or settings.get("type") or "default"
    weight, factor = number(settings, "mscale_all_dim"), number(settings, "factor")
    if name == "default" or not weight or factor is None or factor <= 1:
        return 1.0
    return 0.1 * weight * math.log(factor) + 1


def terms(config: Config) -> tuple[str, ...]:
    """Return DeBERTa's terms of content and position; InputError for others than c2p and p2c."""
    said = config.get("pos_att_type") or []
    some = said.split("|") if isinstance(said, str) else said
    if not isinstance(some, list) or any(one not in ("c2p", "p2c") for one in some):
        raise wrong("pos_att_type", said, "a list of c2p and p2c")
    return tuple(some)


def layer_type(config: Config, family: Family, index: int) -> str:
    """Return ``sliding_attention`` or ``full_attention``, from config.json or the family's rule."""
    types = config.get("layer_types")
    named = isinstance(types, list) and all(isinstance(kind, str) for kind in types)
    if types is not None and not named:
        raise wrong("layer_types", types, "a list with the name of each layer's type")
    if isinstance(types, list) and index < len(types):
        return str(types[index])
    rule, slides = family.window, False
    if rule == "chunks":
        return "chunked_attention" if turns(config, family, index, "") else "full_attention"
    if rule == "all":
        slides = True
    elif rule == "used":
        slides = bool(config.get("use_sliding_window"))
    elif rule == "upper":
        slides = bool(config.get("use_sliding_window")) and index >= int(
            number(config, "max_window_layers") or 0
        )
    elif rule.startswith("every"):
        names = ("sliding_window_pattern", "_sliding_window_pattern")
        said = first(config, names)
        if said and isinstance(said[1], str) and said[1]:
            slides = said[1][index % len(said[1])].upper() == "L"
        else:
            slides = (index + 1) % _whole(config, int(rule.split()[1]), *names) != 0
    elif rule == "no_rope":
        slides = bool(config.get("use_sliding_window")) and not turns(config, family, index, "")
    elif rule == "modernbert":
        slides = index % _whole(config, 3, "global_attn_every_n_layers") != 0
    elif rule == "gpt_neo":
        slides = _neo_type(config, index) == "local"
    elif rule == "longformer":
        slides = True
    return "sliding_attention" if slides else "full_attention"


def _whole(config: Config, usual: int, *names: str) -> int:
    """Return a positive whole number under one of the names, else the usual one."""
    found = count(config, names)
    return usual if found is None else found[1]


def _neo_type(config: Config, index: int) -> Any:
    """Return which attention a layer of GPT-Neo has; None where nothing says it."""
    layers = config.get("attention_layers")
    if layers:
        if not isinstance(layers, list):
            raise wrong("attention_layers", layers, "a list with the name of each layer's type")
        return layers[index] if index < len(layers) else None
    types = config.get("attention_types") or []
    try:
        for kinds, times in types:  # as [["global", "local"], 6]
            if index < times * len(kinds):
                return kinds[index % len(kinds)]
            index -= times * len(kinds)
    except (TypeError, ValueError):
        raise wrong("attention_types", types, "a list of types and how often they come") from None
    return None


def chunk(config: Config, kind: str) -> int | None:
    """Return how many positions of a chunked layer see each other."""
    found = count(config, ("attention_chunk_size",)) if kind == "chunked_attention" else None
    return None if found is None else found[1]


def temperature(config: Config, family: Family, turned: bool) -> Temperature | None:
    """Return what queries are multiplied by at their position, or None."""
    if family.temperature == "nope":  # Llama 4: where nothing turns
        weight, every = number(config, "attn_scale"), number(config, "floor_scale")
        if every is not None and every <= 0:
            raise wrong("floor_scale", every, "a positive number")
        on = config.get("attn_temperature_tuning", True) and not turned
        found = Temperature(0.1 if weight is None else weight, every or 8192.0, 1)
        return found if on else None
    settings = members(config, "rope_parameters") or members(config, "rope_scaling")
    beta = number(settings, "llama_4_scaling_beta") if family.temperature else None
    whole = number(settings, "original_max_position_embeddings")
    if whole is not None and whole <= 0:
        raise wrong("original_max_position_embeddings", whole, "a positive number")
    return Temperature(beta, whole) if beta and whole else None


def window(config: Config, family: Family, index: int, kind: str) -> tuple[int, int, str] | None:
    """Return keys to the left and right of the own position that a layer sees, and why.

    A causal window counts the own position: W sees i−W < j ≤ i, W − 1 to the left.
    """
    if kind != "sliding_attention":
        return None
    if family.window == "modernbert":
        size = _whole(config, 128, "local_attention") // 2
        return size, size, f"local_attention {2 * size}"
    if family.window == "longformer":
        found = count(config, ("attention_window",), index)
        return None if found is None else (found[1] // 2, found[1] // 2, f"{found[0]} {found[1]}")
    found = count(config, ("window_size",) if family.window == "gpt_neo" else ("sliding_window",))
    if found is not None and _both_ways(config):
        return found[1] // 2, found[1] // 2, f"{found[0]} {found[1]}, bidirectional"
    return None if found is None else (found[1] - 1, 0, f"{found[0]} {found[1]}")


def turns(config: Config, family: Family, index: int, kind: str) -> bool:
    """Return whether a layer of a family with RoPE turns its queries and keys."""
    if family.rope_on == "rotary":
        return bool(config.get("position_embedding_type") == "rotary")
    if family.rope_on == "sliding":
        return kind == "sliding_attention" or config.get("sliding_window") is None
    if family.rope_on == "stated":
        return number(members(config, "rope_parameters"), *THETAS) is not None
    layers = config.get("no_rope_layers")
    if layers is not None and not isinstance(layers, list):
        raise wrong("no_rope_layers", layers, "a list with 1 or 0 for each layer")
    if family.rope_on == "no_rope_layers" and not layers:
        return (index + 1) % _whole(config, 4, "no_rope_layer_interval") != 0
    if isinstance(layers, list) and index < len(layers):
        return bool(layers[index])  # 1 says that RoPE is used there
    return not (family.bias.startswith("alibi") and config.get("alibi"))


@dataclass(frozen=True)
class Turned:
    """The RoPE of a layer; ``lacks`` says what of it attncli cannot compute, ``notes`` the rest."""

    rope: Rope | None
    lacks: str = ""
    notes: tuple[str, ...] = ()


def rope(config: Config, family: Family, style: str, kind: str, width: int) -> Turned:
    """Return how queries and keys turn, from rope_parameters or the older rope_theta and kin."""
    settings = members(config, "rope_parameters")
    nested = isinstance(settings.get(kind), dict)
    if nested:  # one for each layer type: Gemma 3, ModernBERT
        settings = settings[kind]
    scaling = members(config, "rope_scaling")
    older = {} if nested else dict(scaling)
    local = number(config, "rope_local_base_freq") if kind == "sliding_attention" else None
    theta = number(settings, *THETAS) or local
    if local is not None:
        older = {}  # Gemma 3 stretches only its full layers
    if theta is None:
        per_kind = "local_rope_theta" if kind == "sliding_attention" else "global_rope_theta"
        theta = number(config, per_kind, *THETAS)
    notes = []
    if theta is None:
        theta = family.theta
        notes.append(f"no rope_theta in config.json: {theta:g} is the family's")
    dim = count(config, ("rotary_dim",))
    partial = number(settings, *PARTIALS) or number(config, *PARTIALS) or family.partial
    if family.latent:
        partial = 1.0  # the width given is that of the turned part
    if config.get("rope_interleave") is False:
        style = "half"
    turned = int(width * partial) if dim is None else dim[1]
    if turned == 0:
        return Turned(None, notes=("RoPE of 0 channels: too few for its partial_rotary_factor",))
    if turned % 2:
        return Turned(None, f"it turns {turned} channels by RoPE: they turn in pairs")
    parameters = {**older, **{k: v for k, v in settings.items() if k not in THETAS + PARTIALS}}
    name = str(parameters.get("rope_type") or parameters.get("type") or "default")
    if name == "mrope":
        name = "default"
        notes.append("mrope: positions of text are taken, one number a token")
    limit = number(config, "max_position_embeddings")
    if name != "default" and name not in SCALINGS:
        return Turned(None, f"its RoPE scaling '{name}' is not computed", tuple(notes))
    chosen: dict[str, Any] | None = None
    if name != "default":
        needed, optional = SCALINGS[name]
        defaults = {
            "max_position_embeddings": parameters.get("original_max_position_embeddings") or limit,
            "original_max_position_embeddings": config.get("original_max_position_embeddings")
            or limit,
        }
        if name == "longrope" and limit and parameters.get("factor") is None:
            whole = number(parameters, "original_max_position_embeddings") or number(
                config, "original_max_position_embeddings"
            )
            parameters["factor"] = limit / whole if whole else 1.0
        chosen = {"rope_type": name}
        for key in needed + optional:
            value = parameters.get(key)
            value = defaults.get(key) if value is None and key in needed else value
            if value is not None:
                chosen[key] = value
    return Turned(
        Rope(style, theta, dim=None if turned == width else turned, scaling=chosen),
        notes=tuple(notes),
    )


def causal(config: Config, family: Family, path: str) -> bool:
    """Return whether a self-attention layer hides the future."""
    if isinstance(family.causal, str):
        return not {*family.causal.split()}.isdisjoint(path.split("."))
    if family.causal:
        return not _both_ways(config)
    return bool(config.get("is_decoder") and not config.get("is_encoder_decoder"))


def _both_ways(config: Config) -> bool:
    return bool(config.get("use_bidirectional_attention")) or config.get("is_causal") is False


def flag(config: Config, member: str) -> bool:
    """Return a boolean member; ``!member`` is true where it is not said."""
    name = member.removeprefix("!")
    value = config.get(name)
    if value is not None and type(value) is not bool:
        raise wrong(name, value, "true or false")
    return name != member if value is None else bool(value)


def model_type(config: Config) -> str:
    """Return ``model_type`` as families are named, or nothing."""
    return normal(config.get("model_type"))


def alibi(config: Config, family: Family, heads: int, scale: float) -> tuple[float, ...] | None:
    """Return the slope of each head, or None without ALiBi (Press et al. 2022)."""
    if family.bias == "alibi mpt":
        settings = members(config, "attn_config")
        if settings.get("alibi") is False:
            return None
        return _mpt_slopes(heads, number(settings, "alibi_bias_max") or 8.0)
    if family.bias == "alibi scaled":  # Falcon scales the scores with the bias in them
        return tuple(s * scale for s in alibi_slopes(heads)) if config.get("alibi") else None
    return alibi_slopes(heads) if family.bias == "alibi" else None


def _mpt_slopes(heads: int, most: float) -> tuple[float, ...]:
    """Slopes of MPT, which orders them differently where the heads are no power of two."""
    whole = 1 << (heads - 1).bit_length()
    slopes = [2.0 ** (-most * (k + 1) / whole) for k in range(whole)]
    if whole != heads:
        slopes = slopes[1::2] + slopes[::2]
    return tuple(slopes[:heads])


def shared_blocks(config: Config, path: str, notes: list[str]) -> int:
    """Return how many layers use one and the same block (ALBERT), and note it."""
    if "albert_layer_groups" not in path:
        return 1
    layers = count(config, ("num_hidden_layers",))
    groups = count(config, ("num_hidden_groups",))
    shared = max((layers[1] if layers else 1) // (groups[1] if groups else 1), 1)
    notes += [f"one block for {shared} layers"] * (shared > 1)
    return shared
