"""From names, shapes and config.json to one Layer: which of them decides, and what is assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attncli.attention.biases import alibi_slopes
from attncli.attention.rope import Rope
from attncli.errors import InputError
from attncli.files.bundle import Bundle
from attncli.models import config as configs
from attncli.models.families import FAMILIES, Family, normal
from attncli.models.layer import PACKINGS, PLAIN, Layer, Norm, PositionBias
from attncli.models.layouts import Found, check_readable
from attncli.models.shapes import RowCounts, Said, Sizes, sizes

#: Components of a path that say: keys and values come from elsewhere.
CROSS = (
    "encoder_attn", "encoder_attention", "EncDecAttention", "crossattention", "cross_attn",
    "cross_attention", "multihead_attn", "cross_attn_mha",
)  # fmt: skip
FLOATS = ("float64", "float32", "float16", "bfloat16", "F64", "F32", "F16", "BF16")


class Reading:
    """Puts one layer together from names, shapes and config."""

    def __init__(
        self, found: Found, bundle: Bundle, config: Mapping[str, Any] | None, arch: str,
        flags: Said, names: Sequence[str],
    ) -> None:  # fmt: skip
        self.found, self.bundle, self.flags, self.names = found, bundle, flags, names
        self.label = found.parent or found.layout.name
        self.config = configs.part_of(config or {}, found.parent)
        self.has_config = config is not None
        self.notes: list[str] = []
        self.lacks: list[str] = []
        stated = configs.model_type(self.config)
        self.family_name = normal(arch) if arch != "auto" else stated
        if self.family_name not in FAMILIES and found.layout.family:
            self.family_name = found.layout.family
        self.family: Family | None = FAMILIES.get(self.family_name)
        numbers = [int(part) for part in found.parent.split(".") if part.isdigit()]
        self.index = numbers[0] if numbers else 0

    def shape(self, role: str) -> tuple[int, ...] | None:
        name = self.found.tensors.get(role)
        return None if name is None else self.bundle.header(name).shape

    def layer(self) -> Layer:
        self._check_types()
        transposed = self._transposed()
        packing = self._packing(transposed)
        sized = sizes(self.label, self._rows(transposed), self._said())
        self.notes += sized.notes
        cross = self._cross()
        family = self.family or Family()
        kind = configs.layer_type(self.config, family, self.index)
        scale, why = configs.scale(self.config, family, sized.head_dim, self.index)
        self._assumptions(cross)
        if kind not in ("full_attention", "sliding_attention"):
            self.lacks.append(f"its layer type, {kind}")
        elif not self.family and not cross and "layer_types" not in self.config:
            width = configs.first(self.config, ("sliding_window",))
            if width is not None:
                self.lacks.append(f"its sliding_window {width[1]}: which layers have it is unknown")
        causal, note = configs.causal(self.config, self.family, self.found.parent)
        if note and not cross and self.has_config:
            self.notes.append(note)
        window = None if cross else configs.window(self.config, family, self.index, kind)
        rope = None if cross else self._rope(kind, sized.head_dim)
        shapes = [self._in(role, transposed) for role in ("query", "key", "value")]
        output = self.shape("output")
        stated = configs.count(self.config, ("hidden_size",))
        stages = "depths" in self.config  # Swin's hidden_size is that of its last stage
        if stated is not None and stated[1] != shapes[0] and not stages:
            self.notes.append(
                f"config.json says hidden_size {stated[1]}, the weights take {shapes[0]}: the "
                "weights won"
            )
        softcap = configs.number(self.config, "attn_logit_softcapping")
        return Layer(
            name=self.found.parent, index=self.index, kind="cross" if cross else "self",
            family=self.family_name if self.family else "unknown", layout=self.found.layout.name,
            packing=self._packing_text(packing, sized, transposed),
            heads=sized.heads, kv_heads=sized.kv_heads, head_dim=sized.head_dim,
            value_dim=sized.value_dim, heads_source=sized.source,
            model_dim=shapes[0], key_input=shapes[1], value_input=shapes[2],
            output_dim=sized.heads * sized.value_dim if output is None
            else output[1 if transposed else 0],
            scale=scale, scale_source=why, softcap=softcap if softcap else None,
            causal=causal and not cross, window=None if window is None else window[:2],
            window_source="" if window is None else window[2], rope=rope,
            query_norm=self._norm("query_norm", sized.heads, sized.head_dim),
            key_norm=self._norm("key_norm", sized.kv_heads, sized.head_dim),
            norm_after_rope=family.norm_after_rope,
            relative=None if cross else self._relative(sized.heads),
            alibi=None if cross else self._alibi(family, sized.heads, scale),
            clip=configs.number(self.config, "clip_qkv"), shared=self._shared(),
            lacks=tuple(self.lacks),
            unknown=self._unknown(causal and not cross, rope),
            notes=tuple(self.notes), transposed=transposed,
            tensors={r: n for r, n in self.found.tensors.items() if r not in ("relative", "grid")},
            bundle=self.bundle,
        )  # fmt: skip

    def _check_types(self) -> None:
        for role in self.found.layout.inputs:
            name = self.found.tensors[role]
            header = self.bundle.header(name)
            if header.dtype not in (*FLOATS, "int64", "I64"):  # JSON's whole numbers
                raise InputError(
                    f"'{name}' is {header.dtype}: quantised weights are not supported", PLAIN
                )
            if len(header.shape) != 2:
                raise InputError(
                    f"'{name}' is {header.shape}", "a projection has two dimensions, (out, in)"
                )
        check_readable(
            (n for n in self.found.unused if n.startswith(self.found.parent)), self.bundle.source
        )

    def _transposed(self) -> bool:
        """Whether weights are (in, out): GPT-2's Conv1D."""
        if not any("c_attn" in leaf for leaf in self.found.layout.inputs.values()):
            return False
        if self.found.layout.name == "GPT-2 cross":
            return True
        shape = self.shape("qkv")
        assert shape is not None
        by_family = self.family.transposed if self.family else None
        by_shape = True if shape[1] == 3 * shape[0] else False if shape[0] > shape[1] else None
        if by_shape is None:
            by_shape = bool(by_family)
        if by_family is not None and by_family != by_shape:
            self.notes.append(
                f"{self.family_name} stores c_attn {'(in, out)' if by_family else '(out, in)'}, "
                f"but it is {shape}: the weights won"
            )
        elif by_family is None and by_shape:
            self.family_name, self.family = "gpt2", FAMILIES["gpt2"]
            self.notes.append(f"c_attn {shape} is (in, out): GPT-2 is assumed (--arch)")
        return by_shape

    def _packing(self, transposed: bool) -> str:
        layout = self.found.layout
        if "qkv" not in layout.inputs:
            return layout.packing
        if layout.packing:
            return layout.packing
        if self.family is not None and self.family.fused:
            return self.family.fused
        leaf = layout.inputs["qkv"]
        options = {
            "c_attn": "nanogpt (Q|K|V rows) or gpt_bigcode (per head [h][q, k, v])",
            "query_key_value": "gpt_neox, bloom, persimmon or falcon (all per head or group)",
            "qkv_proj": "phi3 (Q|K|V rows) or codegen (4 blocks of [q, v, k])",
        }[leaf]
        known = f"the packing of model_type '{self.family_name}'" if self.family_name else "it"
        raise InputError(
            f"{self.label}: {leaf} {self.shape('qkv')} is fused and nothing says how its rows are "
            f"ordered: {known} is not known",
            f"give --config FILE, or --arch: {options}",
        )

    def _packing_text(self, packing: str, sized: Sizes, transposed: bool) -> str:
        if "qkv" not in self.found.layout.inputs:
            return "K|V fused (in, out)" if packing else "separate"
        if packing == "rows" and transposed:
            return "Q|K|V columns (in, out)"
        if packing == "groups" and sized.kv_heads == sized.heads:
            return "per head [h][q, k, v]"
        return PACKINGS[packing]

    def _rows(self, transposed: bool) -> RowCounts:
        def out(role: str) -> int | None:
            shape = self.shape(role)
            return None if shape is None else shape[1 if transposed else 0]

        output = self.shape("output")
        kv = out("kv")
        return RowCounts(
            out("query"), kv // 2 if kv else out("key"), kv // 2 if kv else out("value"),
            out("qkv"), None if output is None else output[0 if transposed else 1],
        )  # fmt: skip

    def _in(self, role: str, transposed: bool) -> int:
        shape = self.shape(role) or self.shape("qkv") or self.shape("kv")
        assert shape is not None
        return shape[0 if transposed else 1]

    def _said(self) -> Said:
        """Numbers of config.json, and those that shapes of small tensors show."""
        heads = width = None
        tables = [self.found.tensors.get(role) for role in ("sinks", "relative", "grid")]
        if self.family and self.family.bias == "buckets":
            tables.append(self._shared_table())
        for table in tables:
            if table is not None:
                heads = self.bundle.header(table).shape[-1]
        norms = self.found.norms.get("query_norm", ((), ()))[0]
        if norms:
            shape = self.bundle.header(norms[0]).shape
            if len(norms) > 1:
                heads, width = len(norms), shape[0]
            elif len(shape) == 2:
                heads, width = shape
            elif len(shape) == 1 and self._rows_of_query() != shape[0]:
                width = shape[0]
        stage = self.index
        return Said(
            self.flags.flag_heads, self.flags.flag_kv_heads, self.flags.flag_head_dim,
            heads, width,
            configs.heads(self.config, self.found.parent, stage),
            configs.count(self.config, configs.KV_HEADS),
            configs.count(self.config, configs.WIDTHS),
        )  # fmt: skip

    def _rows_of_query(self) -> int | None:
        shape, output = self.shape("query"), self.shape("output")
        return shape[0] if shape else output[1] if output else None

    def _cross(self) -> bool:
        """Whether keys and values come from elsewhere, as the path says."""
        parts = self.found.parent.split(".")
        if "multihead_attn" in parts:  # nn.TransformerDecoder's, beside its self_attn
            beside = ".".join([*parts[: parts.index("multihead_attn")], "self_attn"])
            return any(name.startswith(beside.lstrip(".") + ".") for name in self.names)
        return any(part in CROSS for part in parts)

    def _assumptions(self, cross: bool) -> None:
        if self.family is not None:
            # DeBERTa's relative terms can be off
            optional = self.family_name.startswith("deberta")
            if self.family.lacks and (not optional or self.config.get("relative_attention")):
                self.lacks.append(self.family.lacks)
        elif not self.family_name and self.found.layout.name not in ("arrays",):
            self.notes.append(
                "no config.json: no mask, no RoPE and the scale 1/√D are assumed; --config, "
                "--arch or --mask, --rope, --scale say otherwise"
            )
        if self.found.layout.by_hand:
            self.notes.append("weights are taken as (out, in), as torch's Linear has them")
        if "output" not in self.found.tensors:
            self.notes.append(
                f"no output projection ({' or '.join(self.found.layout.output)}) beside it: the "
                "concatenated heads are the output"
            )
        if self.config.get("attention_type") == "block_sparse":
            self.lacks.append("block-sparse attention: all keys are seen (attention_type)")
        if self.found.unused:
            some = [n[len(self.found.parent) :].lstrip(".") for n in self.found.unused[:4]]
            more = ", …" if len(self.found.unused) > 4 else ""
            text = f"tensors beside it that are not used: {', '.join(some)}{more}"
            (self.notes if self.family and self.family.lacks else self.lacks).append(text)

    def _unknown(self, causal: bool, rope: Rope | None) -> str:
        """What is assumed where the model_type is not in the table of families."""
        if self.family is not None or not self.family_name:
            return ""
        near = normal(self.found.layout.name)
        return (
            f"model_type '{self.family_name}' is not in the table: "
            f"{'a' if causal else 'no'} causal mask and {'RoPE' if rope else 'no RoPE'} are "
            f"assumed (--causal, --rope, --arch {near if near in FAMILIES else 'MODEL_TYPE'})"
        )

    def _rope(self, kind: str, width: int) -> Rope | None:
        family = self.family
        style = family.rope if family else ""
        if family is None and (
            configs.first(self.config, ("rope_theta", "rope_parameters", "rotary_dim")) is not None
        ):
            style, family = "half", Family(rope="half")
            self.notes.append("RoPE turning halves is assumed: --rope interleaved says otherwise")
        if not style or family is None or not configs.turns(self.config, family, self.index, kind):
            return None
        turned = configs.rope(self.config, family, style, kind, width)
        self.notes += turned.notes
        if turned.lacks:
            self.lacks.append(turned.lacks)
        return turned.rope

    def _norm(self, role: str, heads: int, width: int) -> Norm | None:
        if role not in self.found.norms:
            return None
        weights, biases = self.found.norms[role]
        shape = self.bundle.header(weights[0]).shape
        if shape not in ((width,), (heads, width), (heads * width,)):
            raise InputError(
                f"'{weights[0]}' is {shape} but {heads} heads are {width} wide",
                f"a norm has {width}, {heads} × {width} or {heads * width} numbers",
            )
        kind = self.family.norm if self.family else ""
        kind = kind or ("layer" if biases else "rms")
        eps = configs.number(self.config, *configs.EPSILONS)
        if eps is None:
            self.notes.append(f"no epsilon in config.json for {role}: 1e-6 is assumed")
        full = len(weights) == 1 and shape == (heads * width,) and shape != (width,)
        return Norm(kind, weights, biases, 1e-6 if eps is None else eps, full)

    def _relative(self, heads: int) -> PositionBias | None:
        grid = self.found.tensors.get("grid")
        if grid is not None:
            return self._grid(grid)
        if not (self.family and self.family.bias == "buckets"):
            return None
        name = self.found.tensors.get("relative") or self._shared_table()
        if name is None:
            self.lacks.append("its relative position bias (relative_attention_bias is not there)")
            return None
        distance = configs.number(self.config, "relative_attention_max_distance")
        return PositionBias(
            "buckets", name, "decoder" not in self.found.parent.split("."), int(distance or 128)
        )

    def _shared_table(self) -> str | None:
        """T5's block 0 has the table for its whole stack, MPNet's encoder for all its layers."""
        parts = self.found.parent.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if at is not None:
            sibling = [*parts[:at], "0", *parts[at + 1 :], "relative_attention_bias", "weight"]
            if ".".join(sibling) in self.names:
                return ".".join(sibling)
        for end in range(len(parts), -1, -1):
            name = ".".join([*parts[:end], "relative_attention_bias", "weight"])
            if name in self.names:
                return name
        return None

    def _grid(self, name: str) -> PositionBias | None:
        """A table of (2h − 1)(2w − 1) offsets, and 3 more where there is a class token."""
        cells = self.bundle.header(name).shape[0]
        for extra in (0, 3):
            side = round((cells - extra) ** 0.5)
            if side * side == cells - extra and side % 2:
                return PositionBias("grid", name, window=((side + 1) // 2,) * 2)
        self.lacks.append(f"its relative position bias: {name} has {cells} rows, not a square grid")
        return None

    def _alibi(self, family: Family, heads: int, scale: float) -> tuple[float, ...] | None:
        if not family.bias.startswith("alibi"):
            return None
        if family.bias == "alibi scaled" and not self.config.get("alibi"):
            return None
        inner = self.config.get("attn_config")
        inner = inner if isinstance(inner, Mapping) else {}
        if self.family_name == "mpt":
            if inner.get("alibi") is False:
                return None
            return _mpt_slopes(heads, float(inner.get("alibi_bias_max", 8)))
        slopes = alibi_slopes(heads)
        if family.bias == "alibi scaled":  # Falcon scales the scores with the bias in them
            slopes = tuple(s * scale for s in slopes)
        return slopes

    def _shared(self) -> int:
        if "albert_layer_groups" not in self.found.parent:
            return 1
        layers = configs.count(self.config, ("num_hidden_layers",))
        groups = configs.count(self.config, ("num_hidden_groups",))
        shared = (layers[1] if layers else 1) // (groups[1] if groups else 1)
        if shared > 1:
            self.notes.append(f"one block for {shared} layers")
        return max(shared, 1)


def _mpt_slopes(heads: int, most: float) -> tuple[float, ...]:
    """Slopes of MPT, which orders them differently where the heads are no power of two."""
    whole = 1 << (heads - 1).bit_length()
    slopes = [2.0 ** (-most * (k + 1) / whole) for k in range(whole)]
    if whole != heads:
        slopes = slopes[1::2] + slopes[::2]
    return tuple(slopes[:heads])
