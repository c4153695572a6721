"""From names, shapes and config.json to one Layer: which of them decides, and what is assumed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from attncli.attention.rope import Rope
from attncli.errors import InputError, listed
from attncli.files.bundle import Bundle
from attncli.models import config as configs
from attncli.models.args import FAMILY, SELF, SOURCE, UNKNOWN
from attncli.models.disentangled import disentangled_of
from attncli.models.families import COMPOSITES, FAMILIES, Family, heeded, normal
from attncli.models.forms import CONV1D, LINEAR, Form
from attncli.models.joint import is_cross
from attncli.models.latent import latent_of, latent_sizes
from attncli.models.layer import GATED, PACKINGS, Disentangled, Lack, Layer, Norm
from attncli.models.layouts import OTHERWISE
from attncli.models.matching import Found, join, numbers
from attncli.models.norms import head_norm, input_norm, place
from attncli.models.relative import relative_of, shared_table
from attncli.models.shapes import RowCounts, Said, Sizes, sizes
from attncli.models.stored import check_plain, not_plain

LAYER_TYPES = ("full_attention", "sliding_attention")
FLOATS = ("float64", "float32", "float16", "bfloat16", "F64", "F32", "F16", "BF16")


class Reading:
    """Puts one layer together from names, shapes and config."""

    def __init__(
        self, found: Found, bundle: Bundle, config: Mapping[str, Any] | None, arch: str,
        flags: Said, names: Collection[str],
    ) -> None:  # fmt: skip
        self.found, self.bundle, self.flags, self.names = found, bundle, flags, names
        self.label = found.parent or ("the layer" if found.layout.by_hand else found.layout.name)
        chain = configs.parts_of(config or {}, found.parent)
        self.config = chain[-1]
        self.tied = next((one["tie_word_embeddings"] for one in reversed(chain)
                          if type(one.get("tie_word_embeddings")) is bool), None)  # fmt: skip
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
        if self.family is not None:
            self.family = replace(self.family, **self.config.get(FAMILY, {}))
        self.index = next(iter(numbers(found.parent)), 0)
        types = self.config.get("layer_types")
        listed_types = types if isinstance(types, list) else []
        self.stated_type = str([*listed_types, ""][min(self.index, len(listed_types))])
        self.config, lost = heeded(self.config, self.family_name)
        self.notes += [
            f"{name} of config.json: {self.family_name} does not read it" for name in lost
        ]
        self.more = self._gate()  # tensors of roles that only some families have

    def shape(self, role: str) -> tuple[int, ...] | None:
        name = self.found.tensors.get(role)
        return None if name is None else self.bundle.header(name).shape

    @property
    def shapes(self) -> dict[str, tuple[int, ...] | None]:
        roles = ("query", "query_down", "down", "up", "output")
        return {role: self.shape(role) for role in roles}

    def layer(self) -> Layer:
        found = self.found
        self._check_types()
        if "linear" in self.stated_type:
            raise InputError(
                f"{self.label} is {self.stated_type} in config.json: not computed",
                "the layers that have a softmax are",
            )
        form = self.form = self._form()
        packing = self._packing()
        latent = "down" in self.found.tensors
        if latent:
            sized = latent_sizes(self.label, self.shapes, self._said(), self.config)
        else:
            sized = sizes(self.label, self._rows(), self._said())
        self.notes += sized.notes
        cross = is_cross(found.parent, self.names, self.config.get(SELF, ()))
        family = self.family or Family()
        kind = configs.layer_type(self.config, family, self.index)
        scale, why = configs.scale(self.config, family, sized.head_dim, self.index)
        terms = self._disentangled()
        self._assumptions()
        shared = configs.shared_blocks(self.config, found.parent, self.notes)
        if not cross:
            self._window_lacks(family, kind)
        causal = configs.causal(self.config, family, self.found.parent)
        window = None if cross else configs.window(self.config, family, self.index, kind)
        rope = None if cross else self._rope(kind, sized.head_dim)
        roles = ("query_down", "down", "down") if latent else ("query", "key", "value")
        shapes = [self._in(role) for role in roles]
        output = self._linear("output")
        stated = configs.count(self.config, ("hidden_size",))
        stages = "depths" in self.config  # Swin's hidden_size is that of its last stage
        if stated is not None and stated[1] != shapes[0] and not stages:
            self.notes.append(
                f"{self.config.get(SOURCE, 'config.json')} says hidden_size {stated[1]}, the "
                f"weights take {shapes[0]}: the weights won"
            )
        softcap = configs.number(self.config, "attn_logit_softcapping")
        return Layer(
            name=self.found.parent, index=self.index, kind="cross" if cross else "self",
            family=self.family_name if self.family else "unknown", layout=self.found.layout.name,
            packing=self._packing_text(packing, sized),
            heads=sized.heads, kv_heads=sized.kv_heads, head_dim=sized.head_dim,
            value_dim=sized.value_dim, heads_source=sized.source,
            model_dim=shapes[0], key_input=shapes[1], value_input=shapes[2],
            output_dim=sized.heads * sized.value_dim if output is None
            else output[0],
            scale=scale, scale_source=why, softcap=softcap if softcap else None,
            causal=causal and not cross, window=None if window is None else window[:2],
            window_source="" if window is None else window[2], rope=rope,
            input_norm=input_norm(
                found, self.config, self.family, "cross" if cross else "self", self.names,
                self.notes,
            ),
            query_norm=self._head_norm("query_norm", sized.heads, sized.head_dim, rope),
            key_norm=self._head_norm("key_norm", sized.kv_heads, sized.head_dim, rope),
            norm_after_rope=family.norm_after_rope, joint_first=family.text_first,
            relative=None if cross else relative_of(
                found, self.bundle, self.config, self.family, self.names, self.lacks
            ),
            alibi=None if cross else configs.alibi(self.config, family, sized.heads, scale),
            clip=configs.number(self.config, "clip_qkv"), shared=shared,
            chunk=None if cross else configs.chunk(self.config, kind),
            temperature=configs.temperature(self.config, family, rope is not None),
            disentangled=terms,
            latent=latent_of(self.label, self.shapes, self.found.norms, family) if latent else None,
            lacks=tuple(self.lacks), arch=self._arch(), forced=self.forced,
            notes=tuple(self.notes), form=form, tied=self.tied,
            tensors={r: n for r, n in self.found.tensors.items() if r not in ("relative", "grid")}
            | self.more,
            bundle=self.bundle,
        )  # fmt: skip

    def _check_types(self) -> None:
        roles = (*self.found.layout.inputs, "output")
        for role, name in ((r, self.found.tensors.get(r)) for r in roles):
            if name is None:
                continue
            header = self.bundle.header(name)
            if 0 in header.shape:
                raise InputError(f"'{name}' is {header.shape}: it is empty", "save it again")
            if header.dtype not in (*FLOATS, "int64", "I64"):  # JSON's whole numbers
                raise not_plain(name, header, self.names, self.bundle.source)
            self.found.layout.form.check(name, role, header.shape)
        check_plain(
            [n for n in self.found.unused if n.startswith(self.found.parent)], self.bundle.source
        )

    def _form(self) -> Form:
        """Return how weights are stored: as the layout says, but for GPT-2's Conv1D as it shows."""
        shape = self.shape("qkv")
        if shape is None or "c_attn" not in self.found.layout.inputs["qkv"]:
            return self.found.layout.form
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
        return CONV1D if by_shape else LINEAR

    def _packing(self) -> str:
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

    def _packing_text(self, packing: str, sized: Sizes) -> str:
        if "down" in self.found.tensors:
            return "latent"
        if self._doubled():
            return GATED
        if "qkv" not in self.found.layout.inputs:
            form = "" if self.form == LINEAR else f" {self.form.words()}"
            return ("K|V fused" if packing else "separate") + form
        if packing == "rows" and self.form.turned:
            return "Q|K|V columns (in, out)"
        if packing == "groups" and sized.kv_heads == sized.heads:
            return "per head [h][q, k, v]"
        return PACKINGS[packing]

    def _linear(self, role: str) -> tuple[int, int] | None:
        """Return the shape of a weight as torch's Linear has it, (out, in)."""
        shape = self.shape(role)
        return None if shape is None else self.form.rows_columns(role, shape)

    def _doubled(self) -> bool:
        """Whether half of the query's rows are a gate's."""
        query, output = self._linear("query"), self._linear("output")
        return bool(
            self.family and self.family.gate == "query" and query
            and (output is None or query[0] == 2 * output[1])
        )  # fmt: skip

    def _gate(self) -> dict[str, str]:
        """Return the tensors of a gate by their roles, where the family has one."""
        leaf = self.family.gate if self.family else ""
        names = {"gate": f"{leaf}.weight", "gate_bias": f"{leaf}.bias"}
        found = {role: join(self.found.parent, name) for role, name in names.items()}
        if leaf and leaf != "query" and found["gate"] not in self.names:
            self.lacks.append(Lack(f"its gate is missing ({found['gate']} is not there)"))
        return {role: name for role, name in found.items() if leaf and name in self.names}

    def _disentangled(self) -> Disentangled | None:
        if not (self.family and self.family.bias == "disentangled"):
            return None
        terms, more, lost = disentangled_of(self.found.parent, self.config, self.names)
        self.more |= more
        self.lacks += [Lack(lost)] * bool(lost)
        return terms

    def _rows(self) -> RowCounts:
        def out(role: str) -> int | None:
            shape = self._linear(role)
            return None if shape is None else shape[0]

        output = self._linear("output")
        kv, query = out("kv"), out("query")
        if query and self._doubled():
            query //= 2
        return RowCounts(
            query, kv // 2 if kv else out("key"), kv // 2 if kv else out("value"),
            out("qkv"), None if output is None else output[1],
        )  # fmt: skip

    def _in(self, role: str) -> int:
        shape = (
            self._linear(role) or self._linear("qkv") or self._linear("kv") or self._linear("query")
        )
        assert shape is not None
        return shape[1]

    def _said(self) -> Said:
        """Numbers of config.json, and those that shapes of small tensors show."""
        heads = width = None
        query = self.shape("query")
        if self.form.apart and query is not None:
            axes = self.form.sizes("query", query)
            heads, width = axes["h"], axes["d"]
        tables = [self.found.tensors.get(role) for role in ("sinks", "relative", "grid")]
        if self.family and self.family.bias == "buckets":
            tables.append(shared_table(self.found.parent, self.names))
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
            self.config.get(SOURCE, "config.json"),
        )  # fmt: skip

    def _rows_of_query(self) -> int | None:
        shape, output = self._linear("query"), self._linear("output")
        return shape[0] if shape else output[1] if output else None

    def _window_lacks(self, family: Family, kind: str) -> None:
        """Add a layer type that is not computed, and a window of which no rule is known."""
        chunked = kind == "chunked_attention" and family.window == "chunks"
        if kind not in LAYER_TYPES and not chunked:
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
        self.lacks += [Lack(what) for what in self.config.get(UNKNOWN, ())]
        parts = self.found.parent.split(".")
        only = family.only.split() if family else []
        here = not only or any(self.config.get(word) or word in parts for word in only)
        if family and family.lacks and here:
            self.lacks.append(Lack(family.lacks))
        if layout.by_hand:
            self.notes.append("weights are taken as (out, in), as torch's Linear has them: X·Wᵀ")
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
        norm = place(self.found, "self", self.names) if family.before else None
        some = [
            name[len(self.found.parent) :].lstrip(".")
            for name in self.found.unused
            if name not in (norm or ()) and name not in self.more.values()
        ]
        others = [name for name in some if name.startswith(tuple(family.spare.split()))]
        if others:
            self.notes.append(f"for other inputs than X, not used: {listed(others, 4)}")
        some = [name for name in some if name not in others]
        for start, what in OTHERWISE.items():
            if any(name.startswith(start) for name in some):
                self.lacks.insert(0, Lack(what))
                some = [name for name in some if not name.startswith(start)]
        if some and not (family.lacks and not family.only):
            self.lacks.append(Lack(f"tensors beside it are not used: {listed(some, 4)}"))

    def _arch(self) -> str:
        """Return the name that --arch takes to go ahead: the nearest family that is known."""
        if self.family is not None:
            return self.family_name
        near = normal(self.found.layout.name)
        return self.found.layout.family or (near if near in FAMILIES else "torch")

    def _rope(self, kind: str, width: int) -> Rope | None:
        family = self.family
        if family is None or not family.rope:
            return None
        style, _, beside = family.rope.partition(" beside ")
        if beside and (beside not in self.found.tensors or "grid" in self.found.tensors):
            return None
        if style == "image":
            self.lacks.append(Lack("its RoPE over image rows and columns is not computed", "rope"))
            return None
        if not configs.turns(self.config, family, self.index, kind):
            return None
        down, up = self.shape("down"), self.shape("up")
        own = width if down is None or up is None else down[0] - up[1]
        turned = configs.rope(self.config, family, style, kind, own)
        self.notes += turned.notes
        if turned.lacks:
            self.lacks.append(Lack(turned.lacks, "rope"))
        if turned.rope is None or own == width:
            return turned.rope
        return replace(turned.rope, dim=own, start=width - own)

    def _head_norm(self, role: str, heads: int, width: int, rope: Rope | None) -> Norm | None:
        return head_norm(
            self.found, self.bundle, self.config, self.family, role, heads, width,
            rope is not None, self.notes,
        )  # fmt: skip
