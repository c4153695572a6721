"""How the numbers of a checkpoint are stored, and the border at which they become plain.

``plain`` is asked once, before layers are looked for: from there on weights are floats under their
own names. A row of PACKED is what stays as it is stored: its tensors are listed without statistics,
its heads are refused, and the row says what dequantises it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from attncli.errors import InputError
from attncli.files.bundle import Bundle
from attncli.files.formats.entry import Array, Entry, Header
from attncli.models import adapters, gguf
from attncli.models.layer import PLAIN
from attncli.models.lazily import made, with_entries

Config = Mapping[str, Any]


class Packed(NamedTuple):
    """Several numbers in one, by a scheme that is not computed here.

    ``mark`` is a pattern of the names that give it away, its group the weight that they belong to;
    ``numbers`` one of the names whose tensors are no numbers as they stand.
    """

    name: str
    mark: str
    numbers: str
    way: str


_TRANSFORMERS = "load it with transformers, model.dequantize(), save_pretrained(FOLDER)"
_GPTQMODEL = "dequantise it with the package gptqmodel and save that"

#: The first row that a name fits is its scheme.
PACKED = (
    Packed("GPTQ or AWQ", r"^(.*)\.(qweight|qzeros|g_idx)$", r"\.(qweight|qzeros)$", _GPTQMODEL),
    Packed(
        "compressed-tensors", r"^(.*)\.(weight_packed|weight_shape|weight_zero_point)$",
        r"\.weight_packed$",
        "load it with transformers, CompressedTensorsConfig(run_compressed=False), and save that",
    ),
    Packed(
        "NVFP4", r"^(.*)\.(weight_scale_2|weight_global_scale)$", r"\.weight$",
        "dequantise it with the tool that made it (modelopt, llm-compressor) and save that",
    ),
    Packed(
        "bitsandbytes 4-bit (nf4 or fp4)",
        r"^(.*)\.weight\.(absmax|quant_map|nested_absmax|quant_state.*)$", r"\.weight$",
        _TRANSFORMERS,
    ),
    Packed(
        "MXFP4", r"^(.*)_(blocks|scales)$", r"_blocks$",
        "load it with transformers, Mxfp4Config(dequantize=True), and save that",
    ),
    Packed(
        "torchao", r"^(.*?)(?:\.|:)_?(?:weight_)?(qdata|tensor_impl.*|int_data)$",
        r"(qdata|int_data|packed_weight)$",
        "load it with torchao, call .dequantize() on its weights and save that",
    ),
    Packed("HQQ", r"^(.*)\.W_q$", r"\.W_q$", "load it with hqq, model.dequantize(), and save that"),
)  # fmt: skip

ANY_MARK = re.compile("|".join(row.mark for row in PACKED))

#: A scale beside a weight: W = stored × scale.
SCALE = re.compile(r"^(.*)\.(weight_scale_inv|weight_scale|scale|SCB)$")
SCALES = (".weight_scale_inv", ".weight_scale", ".SCB")
#: Scales of what is no weight.
ACTIVATIONS = re.compile(
    r"\.(input_scale|activation_scale|input_zero_point|output_scale|[qkv]_scale|kv_scale|prob_scale)$"
)
FORMAT = ".weight_format"  # of bitsandbytes int8: how the rows are ordered, 0 as they are
BLOCK = (128, 128)  # of DeepSeek-V3 and Qwen, where config.json says no other


def plain(
    bundle: Bundle, config: Config | None = None, base: str | None = None
) -> tuple[Bundle, Config | None]:
    """Return the bundle with its weights as floats, each made when it is asked for, and its config.

    Scales are multiplied in, an adapter is added to its base (``base``, or what it names), GGUF's
    keys become config.json's members, of which those of ``config`` come first. Raises InputError or
    FileError where a scale, a base or an architecture is missing or does not fit.
    """
    if adapters.is_adapter(bundle.tensors):
        whole, said = plain(*adapters.base_of(bundle, config, base))
        return adapters.merged(bundle, whole), said
    if base is not None:
        raise InputError(
            f"{bundle.source} is no adapter, and --base is what an adapter is added to",
            "leave --base out",
        )
    if bundle.kind == "gguf":
        bundle, keys = gguf.plain(bundle)
        return bundle, {**keys, **(config or {})}
    return _scaled(bundle, config or {}), config


def scheme_of(name: str) -> tuple[Packed, str] | None:
    """Return the scheme that a name gives away, and the weight that it belongs to."""
    if not ANY_MARK.search(name):
        return None
    hits = ((row, re.search(row.mark, name)) for row in PACKED)
    return next(((row, found[1]) for row, found in hits if found), None)


def packed(names: Collection[str]) -> dict[str, Packed]:
    """Return the tensors that are no numbers as they stand, and how they are packed."""
    hits = {name: hit for name in names if (hit := scheme_of(name))}
    stems = {stem: row for row, stem in hits.values()}
    found: dict[str, Packed] = {}
    for name in names if hits else ():
        row = hits[name][0] if name in hits else stems.get(name.rpartition(".")[0])
        if row and re.search(row.numbers, name):
            found[name] = row
    return found


def check_plain(names: Collection[str], source: str) -> None:
    """Raise InputError for names that only packed weights have, and for scales left over."""
    for name in names:
        found = scheme_of(name)
        if found:
            raise refusal(found[0], source, name)
        if name.endswith(SCALES):
            raise InputError(
                f"{source} holds quantised weights, by a scheme that is not known ('{name}')", PLAIN
            )


def not_plain(name: str, header: Header, names: Collection[str], source: str) -> InputError:
    """Return the error for a weight of a type that is no float's."""
    if header.dtype.startswith("float8"):
        return InputError(
            f"'{name}' is {header.dtype} and no scale is beside it",
            f"expected {name}_scale_inv (a number a block) or {name}_scale (one a row, or one): "
            "without it the weights are not what the model has",
        )
    beside = name.rpartition(".")[0]
    found = next(filter(None, (scheme_of(n) for n in names if n.startswith(beside))), None)
    if found:
        return refusal(found[0], source, name)
    return InputError(f"'{name}' is {header.dtype}: quantised weights are not supported", PLAIN)


def refusal(row: Packed, source: str, name: str) -> InputError:
    """Return the error for weights that are packed."""
    return InputError(
        f"{source} holds {row.name} weights, which are not supported (such as '{name}')", row.way
    )


def _scaled(bundle: Bundle, config: Config) -> Bundle:
    """Return FP8 and int8 weights times their scales, and none of these."""
    names = set(bundle.tensors)
    marked = {f"{hit[1]}.weight" for hit in map(scheme_of, names) if hit}
    entries: dict[str, Entry] = {}
    spent: list[str] = []
    kinds: dict[str, int] = {}
    for name in bundle.tensors:
        found = SCALE.match(name)
        weight = f"{found[1]}.weight" if found else ""
        if not found or weight not in names or weight in marked:
            continue
        header = bundle.header(weight)
        if not _is_low(header, name, config):
            continue
        words = _way(header, bundle.header(name), name, config)
        kinds[words] = kinds.get(words, 0) + 1
        entries[weight] = _entry(bundle, weight, name, config)
        order = found[1] + FORMAT
        spent += [name, *([order] if order in names else [])]
        if order in names:
            _check_order(bundle, order)
    other = [name for name in names if ACTIVATIONS.search(name)] if entries else []
    if not entries:
        return bundle
    notes = [f"dequantised: {words} × {count} (tensors)" for words, count in kinds.items()]
    if other:
        notes.append(
            f"scales of activations are not used, such as {sorted(other)[0]}: weights alone are low"
        )
    return with_entries(bundle, entries, {*spent, *other}, notes)


def _is_low(header: Header, scale: str, config: Config) -> bool:
    """Whether a weight is a number a place: int8 may also be two of 4 bits."""
    said = config.get("quantization_config")
    whole = isinstance(said, dict) and said.get("format") == "int-quantized"
    return header.dtype.startswith("float8_e") or (
        header.dtype == "int8" and (whole or scale.endswith(".SCB"))
    )


def _check_order(bundle: Bundle, name: str) -> None:
    order = np.asarray(bundle.tensors[name]).ravel()
    if order.any():
        raise InputError(
            f"'{name}' is {order[0]}: rows of int8 in an order of a GPU of its own",
            "save the model again with bitsandbytes 0.43 or newer, which keeps rows in order",
        )


def _entry(bundle: Bundle, weight: str, scale: str, config: Config) -> Entry:
    header = bundle.header(weight)

    def load() -> Array:
        factor = np.asarray(bundle.tensors[scale])
        if factor.dtype == np.uint8:  # exponents: E8M0
            factor = np.exp2(factor.astype(np.float32) - 127)
        factor = factor.astype(np.float32)
        if scale.endswith(".SCB"):
            factor = factor / np.float32(127)
        stored = np.asarray(bundle.tensors[weight]).astype(np.float32)
        return np.asarray(stored * _spread(factor, header.shape, _sides(config)))

    return made(load, header)


def _sides(config: Config) -> tuple[int, int]:
    """Return the sides of a block, as quantization_config says them."""
    said = config.get("quantization_config")
    said = said if isinstance(said, dict) else {}
    groups = said.get("config_groups")
    weights = [g.get("weights") for g in groups.values()] if isinstance(groups, dict) else []
    found = [said.get("weight_block_size")]
    found += [of.get("block_structure") for of in weights if isinstance(of, dict)]
    for block in found:
        if isinstance(block, list) and len(block) == 2:
            if not all(type(n) is int and n > 0 for n in block):
                raise InputError(f"config.json: a block is {block}", "expected two whole numbers")
            return block[0], block[1]
    return BLOCK


def _way(header: Header, scale: Header, name: str, config: Config) -> str:
    """Return how a weight is scaled, in words; InputError where its scale does not fit."""
    kind = "bitsandbytes int8" if name.endswith(".SCB") else header.dtype
    if len(header.shape) != 2:
        raise InputError(f"'{name}' scales what is {header.shape}", "expected a matrix, (out, in)")
    rows, columns = header.shape
    sides = _sides(config)
    blocks = tuple(-(-n // side) for n, side in zip(header.shape, sides, strict=True))
    ways = {
        (): "one scale", (1,): "one scale", (1, 1): "one scale",
        (rows,): "a scale a row", (rows, 1): "a scale a row",
        blocks: f"a scale a block of {sides[0]} × {sides[1]}",
    }  # fmt: skip
    if scale.shape in ways:
        return f"{kind}, {ways[scale.shape]}"
    if len(scale.shape) == 2 and scale.shape[0] == rows and columns % scale.shape[1] == 0:
        return f"{kind}, a scale a group of {columns // scale.shape[1]}"
    raise InputError(
        f"'{name}' is {scale.shape}, which is no scale of {header.shape}",
        f"expected one number, one a row ({rows}), or one a block of {sides[0]} × {sides[1]} "
        f"{blocks}; quantization_config of config.json says how large a block is: --config FILE",
    )


def _spread(factor: Array, shape: tuple[int, ...], sides: tuple[int, ...]) -> Array:
    """Return a scale as it multiplies a matrix: a number, ``(out, 1)``, or ``(out, in)``."""
    if factor.size == 1:
        return factor.reshape(())
    if factor.ndim == 1 or (factor.shape[1] == 1 and factor.shape[0] == shape[0]):
        return factor.reshape(-1, 1)
    for axis, (side, blocks) in enumerate(zip(sides, factor.shape, strict=True)):
        if -(-shape[axis] // side) != blocks:  # groups along a row
            side = shape[axis] // blocks
        factor = np.repeat(factor, side, axis)  # the last block may be cut
    return factor[: shape[0], : shape[1]]
