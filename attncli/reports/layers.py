"""The attention layers of a checkpoint: how each is called, and the list of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attncli.errors import counted
from attncli.models.finding import labels
from attncli.models.layer import Layer
from attncli.reports.blocks import Block, Column, Records, Report, Table, Text

SCHEMA = "attncli.multihead/1"
LONG = 40  # of a name in the list; --full shows it whole


def layers_report(
    layers: Sequence[Layer], skipped: Sequence[str], source: str, *, full: bool = False
) -> Report:
    """Return the list of ``--list``: a row a layer, then what cannot be read and why."""
    families = sorted({family_of(layer) for layer in layers} - {""})
    total = sum(layer.parameters for layer in layers)
    table, alike = _table(layers, full)
    blocks: list[Block] = [table]
    if skipped:
        blocks.append(
            Text("", [f"{counted(len(skipped), 'attention layer')} cannot be read:", *skipped])
        )
    every = [set(layer.notes) for layer in layers]
    shared = [note for note in layers[0].notes if all(note in some for some in every)]
    lacks = dict.fromkeys(what for layer in layers for what, _ in layer.lacks)
    return Report(
        command="multihead",
        headline=[
            counted(len(layers), "attention layer"), *([", ".join(families)] if families else []),
            f"{total:,} parameters", source,
        ],
        blocks=blocks,
        data=lambda: {
            "schema": SCHEMA, "command": "multihead", "source": source,
            "layers": [_listed(layer) for layer in layers], "skipped": list(skipped),
        },
        records=lambda: _records(layers),
        notes=[
            *([f"{'each' if len(layers) > 1 else 'it'} has {alike}"] if alike else []),
            *shared, *lacks,
        ],
    )  # fmt: skip


#: Columns of the list that are said once, above it, where all layers agree.
LIFTED = ("packing", "scale", "mask", "RoPE", "also", "parameters")


def _cells(layer: Layer, full: bool) -> dict[str, Any]:
    """Return the cells of a layer by column."""
    known = not any(lack.option == "arch" for lack in layer.lacks)
    return {
        "name": layer.name if full else short_name(layer.name),
        "kind": layer.kind,
        "heads × width": _heads(layer),
        "packing": layer.packing,
        "scale": f"{layer.scale:.4g} = {layer.scale_source}",
        "mask": layer.mask or ("none" if known else "unknown"),
        "RoPE": layer.rope.text if layer.rope else "none" if known else "unknown",
        "also": _extras(layer),
        "parameters": layer.parameters,
    }


def _table(layers: Sequence[Layer], full: bool) -> tuple[Table, str]:
    """Return a row a layer, and what all of them have in words."""
    cells = [_cells(layer, full) for layer in layers]
    alike = [name for name in LIFTED if len({one[name] for one in cells}) == 1]
    shown = [name for name in cells[0] if name not in alike]
    said = {name: cells[0][name] for name in alike if cells[0][name] != ""}
    if "parameters" in said:
        said["parameters"] = f"{said['parameters']:,}"
    table = Table(
        title="layer",
        columns=[
            Column(name, "count" if name == "parameters" else "text", keep=len(cells[0]) - n)
            for n, name in enumerate(shown)
        ],
        rows=[[one[name] for name in shown] for one in cells],
        labels=labels(layers),
        whole=full,
    )
    return table, ", ".join(f"{name} {value}" for name, value in said.items())


def short_name(name: str) -> str:
    """Cut a name at its start: its end tells layers apart."""
    return name if len(name) <= LONG else "…" + name[1 - LONG :]


def _heads(layer: Layer) -> str:
    groups = f" ({layer.kv_heads} kv)" if layer.kv_heads != layer.heads else ""
    return f"{layer.heads} × {layer.head_dim}{groups}"


def _extras(layer: Layer) -> str:
    found = [
        f"{layer.input_norm.name} first" if layer.input_norm else "",
        f"{layer.query_norm.kind} qk-norm" if layer.query_norm else "",
        f"latents of {layer.latent.rank}" if layer.latent else "",
        "temperature by position" if layer.temperature else "",
        f"{' + '.join(layer.disentangled.terms)}" if layer.disentangled else "",
        "gated" if layer.gated else "",
        "sinks" if layer.sinks else "",
        f"softcap {layer.softcap:g}" if layer.softcap else "",
        f"bias by {layer.relative.kind}" if layer.relative else "",
        "alibi" if layer.alibi else "",
        "bias_k, bias_v" if "bias_k" in layer.tensors else "",
    ]
    return ", ".join(filter(None, found))


def _listed(layer: Layer) -> dict[str, Any]:
    lacks = [lack.what for lack in layer.lacks]
    return {**layer_data(layer), "notes": list(layer.notes), "not_computed": lacks}


def _records(layers: Sequence[Layer]) -> Records:
    found = [layer_data(layer) for layer in layers]
    rows = ([_plain(value) for value in one.values()] for one in found)
    return Records(list(found[0]) if found else [], rows)


def _plain(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def family_of(layer: Layer) -> str:
    """Return the family as its layout spells it, else its model_type, '' for plain arrays.

    Of a model_type that no table has only the names of its weights are known.
    """

    def plain(text: str) -> str:
        return "".join(c for c in text.lower() if c.isalnum())

    if layer.layout == "arrays":
        return ""
    if layer.family == "unknown":
        return f"unknown family (names like {layer.layout}'s)"
    if plain(layer.family) in plain(layer.layout):
        return layer.layout
    return layer.family


def heads_of(layer: Layer) -> str:
    """Return '32 heads × 64, 8 for keys and values'."""
    text = f"{counted(layer.heads, 'head')} × {layer.head_dim}"
    if layer.kv_heads != layer.heads:
        text += f", {layer.kv_heads} for keys and values"
    if layer.value_dim != layer.head_dim:
        text += f", values × {layer.value_dim}"
    return text


def layer_data(layer: Layer) -> dict[str, Any]:
    """Return what JSON says of a layer."""
    names = (
        "name", "index", "kind", "family", "layout", "packing", "heads", "kv_heads", "head_dim",
        "value_dim", "heads_source", "model_dim", "key_input", "value_input", "output_dim",
        "scale", "scale_source", "softcap", "causal", "window_source", "sinks", "shared",
        "parameters",
    )  # fmt: skip
    return {name: getattr(layer, name) for name in names} | {
        "window": list(layer.window) if layer.window else None,
        "rope": layer.rope.text if layer.rope else None,
        "input_norm": layer.input_norm.kind if layer.input_norm else None,
        "qk_norm": layer.query_norm.kind if layer.query_norm else None,
        "relative_bias": layer.relative.kind if layer.relative else None,
        "alibi": layer.alibi is not None,
    }
