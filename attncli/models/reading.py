"""From names, shapes and config.json to one Layer: which of them decides, and what is assumed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from attncli.attention.rope import Rope
from attncli.errors import InputError, listed
from attncli.files.bundle import Bundle
from attncli.models import config as configs
from attncli.models.families import COMPOSITES, FAMILIES, Family, heeded, normal
from attncli.models.layer import PACKINGS, Lack, Layer, Norm, PositionBias
from attncli.models.layouts import Found, norm_before, numbers
from attncli.models.shapes import RowCounts, Said, Sizes, sizes
from attncli.models.stored import check_plain, not_plain

#: Components of a path that say: keys and values come from elsewhere.
CROSS = (
    "encoder_attn", "encoder_attention", "EncDecAttention", "crossattention", "cross_attn",
    "cross_attention", "multihead_attn", "cross_attn_mha",
)  # fmt: skip
LAYER_TYPES = ("full_attention", "sliding_attention")
FLOATS = ("float64", "float32", "float16", "bfloat16", "F64", "F32", "F16", "BF16")


class Reading:
    """Puts one layer together from names, shapes and config."""

    def __init__(
        self, found: Found, bundle: Bundle, config: Mapping[str, Any] | None, arch: str,
        flags: Said, names: Collection[str],
    ) -> None:  # fmt: skip
        self.found, self.bundle, self.flags, self.names = found, bundle, flags, names
        self.label = found.parent or found.layout.name
        chain = configs.parts_of(config or {}, found.parent)
        self.config = chain[-1]
        self.notes: list[str] = [*bundle.notes]
        self.lacks: list[Lack] = []
        self.forced = arch != "auto"
        self.stated = list(filter(None, map(configs.model_type, chain)))
        self.family_name = normal(arch) if self.forced else (self.stated or [""])[-1]
        layout = found.layout
        if self.family_name not in FAMILIES and (layout.family or not self.stated):
            self.family_name = layout.family or layout.alone
        if not self.forced and not configs.speaks_of(chain, found.parent):
            self.family_name = ""
        self.family: Family | None = FAMILIES.get(self.family_name)
        self.config, lost = heeded(self.config, self.family_name)
        self.notes += [
            f"{name} of config.json: {self.family_name} does not read it" for name in lost
        ]
        self.index = next(iter(numbers(found.parent)), 0)

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
        self._assumptions()
        if not cross:
            self._window_lacks(family, kind)
        causal = configs.causal(self.config, family, self.found.parent)
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
            input_norm=self._input_norm("cross" if cross else "self"),
            query_norm=self._norm("query_norm", sized.heads, sized.head_dim),
            key_norm=self._norm("key_norm", sized.kv_heads, sized.head_dim),
            norm_after_rope=family.norm_after_rope,
            relative=None if cross else self._relative(sized.heads),
            alibi=None if cross else configs.alibi(self.config, family, sized.heads, scale),
            clip=configs.number(self.config, "clip_qkv"), shared=self._shared(),
            lacks=tuple(self.lacks), arch=self._arch(), forced=self.forced,
            notes=tuple(self.notes), transposed=transposed,
            tensors={r: n for r, n in self.found.tensors.items() if r not in ("relative", "grid")},
            bundle=self.bundle,
        )  # fmt: skip

    def _check_types(self) -> None:
        roles = (*self.found.layout.inputs, "output")
        for name in (self.found.tensors[r] for r in roles if r in self.found.tensors):
            header = self.bundle.header(name)
            if header.dtype not in (*FLOATS, "int64", "I64"):  # JSON's whole numbers
                raise not_plain(name, header, self.names, self.bundle.source)
            if len(header.shape) != 2:
                raise InputError(
                    f"'{name}' is {header.shape}", "a projection has two dimensions, (out, in)"
                )
        check_plain(
            [n for n in self.found.unused if n.startswith(self.found.parent)], self.bundle.source
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

    def _window_lacks(self, family: Family, kind: str) -> None:
        """Add a layer type that is not computed, and a window of which no rule is known."""
        if kind not in LAYER_TYPES:
            option = "mask" if kind == "chunked_attention" else ""
            self.lacks.append(Lack(f"its layer type, {kind}, is not computed", option))
        width = configs.first(self.config, ("sliding_window",))
        silent = "layer_types" not in self.config and not family.window
        if width and silent and self.config.get("use_sliding_window") is not False:
            self.lacks.append(
                Lack(f"nothing says which layers have its sliding_window {width[1]}", "mask")
            )

    def _assumptions(self) -> None:
        """Add what is assumed to the notes, and what is known and not computed to the lacks."""
        family, layout = self.family, self.found.layout
        known = {*FAMILIES, *COMPOSITES}
        strange = [] if self.forced else [name for name in self.stated if name not in known]
        if strange:
            self.lacks.append(
                Lack(f"model_type '{strange[0]}' is not in the table of families", "arch")
            )
        elif family is None and not layout.by_hand:
            what = f"which part of '{self.stated[-1]}' it is" if self.stated else "its model_type"
            self.lacks.append(
                Lack(f"nothing says {what}: whether it has a mask or RoPE is not known", "arch")
            )
        elif family is not None and not self.stated and not layout.family and not self.forced:
            self.notes.append(
                f"no model_type: its names are {layout.name}'s, so {self.family_name} is assumed "
                "(--config, --arch)"
            )
        whole = {name: FAMILIES[name].note for name in self.stated if name in FAMILIES}
        self.notes += filter(None, whole.values())
        parts = self.found.parent.split(".")
        only = family.only.split() if family else []
        here = not only or any(self.config.get(word) or word in parts for word in only)
        if family and family.lacks and here:
            self.lacks.append(Lack(family.lacks))
        if layout.by_hand:
            self.notes.append("weights are taken as (out, in), as torch's Linear has them")
        if "output" not in self.found.tensors:
            self.notes.append(
                f"no output projection ({' or '.join(layout.output)}) beside it: the "
                "concatenated heads are the output"
            )
        if self.config.get("attention_type") == "block_sparse":
            self.lacks.append(Lack("its block-sparse attention is not computed", "mask"))
        if family and family.window == "shifted" and sum(numbers(self.found.parent)[1:]) % 2:
            self.lacks.append(
                Lack("its windows are shifted: which keys they hide is not computed", "mask")
            )
        self._spare(family or Family())

    def _spare(self, family: Family) -> None:
        """Account for tensors in the attention that no role has."""
        norm = norm_before(self.found.parent, "self", self.names) if family.before else None
        some = [
            name[len(self.found.parent) :].lstrip(".")
            for name in self.found.unused
            if name not in (norm or ())
        ]
        others = [name for name in some if name.startswith(tuple(family.spare.split()))]
        if others:
            self.notes.append(f"for other inputs than X, not used: {listed(others, 4)}")
        some = [name for name in some if name not in others]
        if some and not (family.lacks and not family.only):
            self.lacks.append(Lack(f"tensors beside it are not used: {listed(some, 4)}"))

    def _arch(self) -> str:
        """Return the name that --arch takes to go ahead: the nearest family that is known."""
        if self.family is not None:
            return self.family_name
        near = normal(self.found.layout.name)
        return self.found.layout.family or (near if near in FAMILIES else "torch")

    def _input_norm(self, kind: str) -> Norm | None:
        """Return the norm between hidden states and projections, of a pre-norm family."""
        family = self.family
        if family is None or not family.before:
            return None
        if family.before_if and not configs.flag(self.config, family.before_if):
            return None
        found = norm_before(self.found.parent, kind, self.names)
        if found is None and not family.gainless:
            self.notes.append("no norm before the projections beside it: X is taken as they do")
            return None
        name, weight, bias = found or ("input_layernorm", "", "")
        eps = configs.number(self.config, *configs.EPSILONS) if family.eps is None else family.eps
        usual = 1e-5 if family.before.startswith("layer") else 1e-6
        return Norm(
            family.before, (weight,) if weight else (), (bias,) if bias else (),
            usual if eps is None else eps, name=name,
        )  # fmt: skip

    def _rope(self, kind: str, width: int) -> Rope | None:
        family = self.family
        if family is None or not family.rope:
            return None
        if family.rope == "image":
            self.lacks.append(Lack("its RoPE over image rows and columns is not computed", "rope"))
            return None
        if not configs.turns(self.config, family, self.index, kind):
            return None
        turned = configs.rope(self.config, family, family.rope, kind, width)
        self.notes += turned.notes
        if turned.lacks:
            self.lacks.append(Lack(turned.lacks, "rope"))
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
            self.lacks.append(
                Lack("its relative position bias is missing (relative_attention_bias is not there)")
            )
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
        self.lacks.append(
            Lack(f"its relative position bias is not computed: {name} has {cells} rows, no square")
        )
        return None

    def _shared(self) -> int:
        if "albert_layer_groups" not in self.found.parent:
            return 1
        layers = configs.count(self.config, ("num_hidden_layers",))
        groups = configs.count(self.config, ("num_hidden_groups",))
        shared = (layers[1] if layers else 1) // (groups[1] if groups else 1)
        if shared > 1:
            self.notes.append(f"one block for {shared} layers")
        return max(shared, 1)
