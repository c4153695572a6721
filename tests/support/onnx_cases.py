"""The node tests of ONNX's Attention and RotaryEmbedding, said in attncli's words.

``cases()`` generates what ``onnx.backend.test`` does (offline, seeded). A Case reads the node's
attributes and inputs and gives the arguments of ``attncli.attend``, the words of the command line,
and ONNX's own reference in float64, which is what results are judged against.

    python -m tests.support.onnx_cases   the table of tests/README.md, for the engines found
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import attncli
from attncli.attention.problem import Problem
from attncli.errors import Unavailable
from attncli.studies.attend import Result
from tests.support import budget
from tests.support.engines import ENGINES, missing

Array = np.ndarray[Any, np.dtype[Any]]

TAPS = ("scores", "softcapped", "masked", "weights")  # qk_matmul_output_mode 0 to 3
#: ONNX's names of tensors, and ours; ``--past-key`` is the flag of ``past_key``.
INPUTS = {
    "Q": "query", "K": "key", "V": "value", "attn_mask": "attn_mask", "past_key": "past_key",
    "past_value": "past_value", "nonpad_kv_seqlen": "kv_lengths",
}  # fmt: skip
GROUPS = (
    "plain, grouped heads, other value width", "scale", "causal", "attn_mask", "softcap",
    "past and present", "padded cache", "window", "qk_matmul_output", "packed 3-D",
    "rotary embedding",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A node test: its operator, attributes, and tensors by ONNX's names."""

    name: str
    operator: str
    opset: int
    attributes: dict[str, Any]
    inputs: dict[str, Array]
    outputs: dict[str, Array]

    @property
    def group(self) -> str:
        """What is special about it, the rarest first."""
        if self.operator == "RotaryEmbedding":
            return "rotary embedding"
        a = self.attributes
        found = {
            "window": "window" in self.name,
            "qk_matmul_output": "qk_matmul_output" in self.outputs,
            "padded cache": "nonpad_kv_seqlen" in self.inputs,
            "past and present": "past_key" in self.inputs,
            "packed 3-D": self.inputs["Q"].ndim == 3,
            "softcap": "softcap" in a,
            "attn_mask": "attn_mask" in self.inputs,
            "causal": "is_causal" in a,
            "scale": "scale" in a,
        }
        return next((name for name, is_so in found.items() if is_so), GROUPS[0])

    @property
    def tap(self) -> str | None:
        """The stage that qk_matmul_output is, if it is asked for."""
        if "qk_matmul_output" not in self.outputs:
            return None
        return TAPS[self.attributes.get("qk_matmul_output_mode", 0)]

    @property
    def heads(self) -> dict[str, int]:
        """Heads and kv_heads of packed inputs."""
        a = self.attributes
        names = {"q_num_heads": "heads", "kv_num_heads": "kv_heads", "num_heads": "heads"}
        return {ours: a[theirs] for theirs, ours in names.items() if a.get(theirs)}

    @property
    def masks(self) -> list[str]:
        """is_causal and the windows as mask expressions.

        ONNX lets query 0 stand at key 0 unless a past or a padded cache says otherwise, which is
        our rule for ``causal`` too, but that Lq ≠ Lk then needs a corner.
        """
        a = self.attributes
        q, k = self.inputs["Q"], self.inputs["K"]
        cached = "past_key" in self.inputs or "nonpad_kv_seqlen" in self.inputs
        corner = [] if cached or q.shape[-2] == k.shape[-2] else ["top_left"]
        masks = []
        if a.get("is_causal"):
            masks.append(f"causal({corner[0]})" if corner else "causal")
        sides = [a.get(f"{side}_window_size", -1) for side in ("left", "right")]
        if max(sides) >= 0:
            left, right = ("inf" if n < 0 else str(n) for n in sides)
            masks.append(f"window({', '.join([left, right, *corner])})")
        return masks

    @property
    def softmax_dtype(self) -> str | None:
        import onnx

        precision = self.attributes.get("softmax_precision")
        if precision is None:
            return None
        return str(onnx.helper.tensor_dtype_to_np_dtype(precision))

    @property
    def rope(self) -> dict[str, Any]:
        """The fields of a Rope."""
        a, i = self.attributes, self.inputs
        return {
            "style": "interleaved" if a.get("interleaved") else "half",
            "dim": a.get("rotary_embedding_dim") or None,
            "positions": i.get("position_ids"),
            "cos": i["cos_cache"],
            "sin": i["sin_cache"],
        }

    def arguments(self) -> dict[str, Any]:
        """The arguments of ``attncli.attend``; a rotary embedding is attention of its input."""
        if self.operator == "RotaryEmbedding":
            return {"query": self.inputs["input"], "rope": self.rope, **self.heads}
        scale = self.attributes.get("scale")
        return {
            **{ours: self.inputs.get(theirs) for theirs, ours in INPUTS.items()},
            **self.heads,
            "mask": self.masks,
            "scale": "auto" if scale is None else scale,
            "softcap": self.attributes.get("softcap") or None,
            "softmax_dtype": self.softmax_dtype,
            "want": ("output", self.tap) if self.tap else ("output",),
        }

    def command(self, folder: Path) -> list[str]:
        """The words after ``attncli``; tensors are written to ``folder``, results go there too."""
        words = ["compute"]
        tensors, options = {}, self.arguments()
        for name in INPUTS.values():
            if options.get(name) is not None:
                tensors[name] = options[name]
        if self.operator == "RotaryEmbedding":
            rope = options["rope"]
            words += ["--rope", rope["style"]]
            words += ["--rope-dim", str(rope["dim"])] if rope["dim"] else []
            flags = {"query": options["query"], "rope_cos": rope["cos"], "rope_sin": rope["sin"]}
            flags |= {} if rope["positions"] is None else {"positions": rope["positions"]}
            tensors |= flags
        for number, (name, array) in enumerate(tensors.items()):
            path = folder / f"{number}.safetensors"
            _save(path, array)
            words += [f"--{name.replace('_', '-')}", str(path)]
        for name in ("heads", "kv_heads"):
            if name in options:
                words += [f"--{name.replace('_', '-')}", str(options[name])]
        for mask in options.get("mask", ()):
            words += ["--causal"] if mask == "causal" else ["--mask", mask]
        for name in ("scale", "softcap", "softmax_dtype"):
            if options.get(name) not in (None, "auto"):
                words += [f"--{name.replace('_', '-')}", str(options[name])]
        return [*words, "-o", str(folder / "out.safetensors"), "--include", ",".join(self.names())]

    def names(self) -> dict[str, str]:
        """Our names of the results, for each the name of ONNX's output."""
        if self.operator == "RotaryEmbedding":
            return {"query": "output"}
        names = {"output": "Y", "present_key": "present_key", "present_value": "present_value"}
        names = {ours: theirs for ours, theirs in names.items() if theirs in self.outputs}
        return names | ({self.tap: "qk_matmul_output"} if self.tap else {})

    def truth(self) -> dict[str, Array]:
        """ONNX's reference in float64, by ONNX's names."""
        wide = {
            name: a.astype(np.float64) if a.dtype.kind not in "bi" else a
            for name, a in self.inputs.items()
        }
        if self.operator == "RotaryEmbedding":
            from onnx.reference.ops.op_rotary_embedding import rotary_embedding

            cos, sin = wide.pop("cos_cache"), wide.pop("sin_cache")
            return {
                "output": rotary_embedding(wide.pop("input"), cos, sin, **wide, **self.attributes)
            }
        from onnx.reference.ops.op_attention import _compute_attention

        # a softmax in float32 would be no truth
        attributes = {k: v for k, v in self.attributes.items() if k != "softmax_precision"}
        q, k, v = (wide.pop(name) for name in "QKV")
        found = _compute_attention(q, k, v, **wide, **attributes)
        names = ("Y", "present_key", "present_value", "qk_matmul_output")
        return dict(zip(names, found, strict=True))

    def results(self, result: Result) -> dict[str, Array]:
        """What we computed, by our names, in ONNX's shapes: caches keep their heads apart."""
        problem = result.problem
        found = {
            "output": result.output,
            "query": problem.family.restore(problem.query),
            "present_key": problem.key,
            "present_value": problem.value,
            **result.stages,
        }
        return {name: found[name] for name in self.names()}

    def check(self, found: dict[str, Array], problem: Problem) -> None:
        """Hold results, by our names, against ONNX; AssertionError says what is off.

        The budget: twice the error that ONNX's own result at this dtype has against float64, and
        the rounding band of this problem. Present tensors are copies and must be equal.
        """
        truth, bands = self.truth(), budget.truth(problem).bands
        for ours, theirs in self.names().items():
            expected, candidate = self.outputs[theirs], found[ours]
            assert candidate.dtype == expected.dtype, f"{ours}: {candidate.dtype}"
            if ours.startswith("present"):
                np.testing.assert_array_equal(candidate, expected, err_msg=ours)
                continue
            band: Any = bands.get(ours)
            if ours == "output":
                band = problem.family.restore(band)
            elif band is None:  # a turned query: two products and a sum, each rounded
                reach = np.abs(self.inputs["input"]).max() * max(
                    np.abs(self.inputs[name]).max() for name in ("cos_cache", "sin_cache")
                )
                band = 3 * budget.eps(expected.dtype) * reach
            budget.assert_close(ours, candidate, truth[theirs], [expected], band)

    def check_saved(self, path: Path) -> None:
        """Hold what the command saved against ONNX: packed caches get their heads back first."""
        from safetensors.numpy import load_file

        problem = pose_of(self.arguments())
        found = load_file(path)
        assert found.keys() == self.names().keys()
        for name in found:
            expected = self.outputs[self.names()[name]]
            if name.startswith("present") and found[name].ndim < expected.ndim:
                b, _, length, width = expected.shape
                found[name] = found[name].reshape(b, length, -1, width).swapaxes(1, 2)
        self.check(found, problem)

    def wrong_ways(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Arguments that mistake one convention of the case each, and so must fail its check."""
        right = self.arguments()
        if self.operator == "RotaryEmbedding":
            rope = right["rope"]
            other = "half" if rope["style"] == "interleaved" else "interleaved"
            yield "style", right | {"rope": rope | {"style": other}}
            yield "direction", right | {"rope": rope | {"sin": -rope["sin"]}}
            if rope["positions"] is not None:
                late = (rope["positions"] + 1) % len(rope["cos"])
                yield "positions", right | {"rope": rope | {"positions": late}}
            return
        q, k, lengths = right["query"], right["key"], right["kv_lengths"]
        if right["scale"] != "auto":
            yield "scale", right | {"scale": "auto"}
        if right["softcap"]:
            yield "no softcap", right | {"softcap": None}
        if right["attn_mask"] is not None:
            yield "no attn_mask", right | {"attn_mask": None}
            if right["attn_mask"].dtype == bool:
                yield "polarity", right | {"mask_polarity": "ignore"}
        if lengths is not None:
            yield "lengths", right | {"kv_lengths": np.full_like(lengths, k.shape[2])}
        if right["mask"]:
            yield "no causal, no window", right | {"mask": []}
            if q.shape[-2] != k.shape[-2] and "top_left" in str(right["mask"]):
                other = [m.replace("top_left", "bottom_right") for m in right["mask"]]
                yield "corner", right | {"mask": other}
        if self.attributes.get("left_window_size", -1) > 0:
            n = self.attributes["left_window_size"]
            wider = [m.replace(f"window({n}", f"window({n - 1}") for m in right["mask"]]
            yield "window off by one", right | {"mask": wider}
        if right["past_key"] is not None:
            past = right["past_key"]
            yield "past backwards", right | {"past_key": past[:, :, ::-1]}
        if q.ndim == 4 and q.shape[1] != k.shape[1]:
            yield "groups", right | {"key": k[:, ::-1]}

    def run(self, **engine: str) -> None:
        """Compute (``backend``, ``device``) and check; AssertionError where an output is off."""
        result = attncli.attend(**self.arguments(), **engine)
        self.check(self.results(result), result.problem)
        if self.operator == "RotaryEmbedding":
            # what the engine did with the turned tensors: the same as with ONNX's
            turned = self.outputs["output"]
            plain = attncli.attend(
                turned, turned, self.inputs["input"], **self.heads, backend="reference"
            )
            right = budget.truth(plain.problem)
            restore = plain.problem.family.restore
            budget.assert_close(
                "output", result.output, restore(right.arrays["output"]), [plain.output],
                restore(right.bands["output"]),
            )  # fmt: skip


@functools.cache
def cases() -> tuple[Case, ...]:
    """All node tests of the two operators; the operators as they are, not their expansions."""
    import onnx
    from onnx.backend.test.case import node as nodes

    for module in ("attention", "rotaryembedding"):
        import_module(f"onnx.backend.test.case.node.{module}")
    return tuple(
        _case(onnx, test)
        for test in nodes._NodeTestCases
        if len(test.model.graph.node) == 1
        and test.model.graph.node[0].op_type in ("Attention", "RotaryEmbedding")
    )


def _case(onnx: Any, test: Any) -> Case:
    node = test.model.graph.node[0]
    [(inputs, outputs)] = test.data_sets
    return Case(
        name=test.name.removeprefix("test_"),
        operator=node.op_type,
        opset=test.model.opset_import[0].version,
        attributes={a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
        inputs=dict(zip(filter(None, node.input), inputs, strict=True)),
        outputs=dict(zip(filter(None, node.output), outputs, strict=True)),
    )


def _save(path: Path, array: Array) -> None:
    from safetensors.numpy import save_file

    save_file({"it": np.ascontiguousarray(array)}, path)


def pose_of(arguments: dict[str, Any]) -> Problem:
    """The problem of ``attncli.attend``'s arguments."""
    return attncli.attend(**arguments, backend="reference").problem


def passed(engine: str, case: Case) -> bool:
    """Whether it computes all outputs of the case, within the budget."""
    try:
        case.run(**ENGINES[engine])
    except (AssertionError, Unavailable):
        return False
    return True


def table(engines: Sequence[str]) -> Iterator[str]:
    """Run every case on every engine; yield the lines of the table, in Markdown."""
    yield f"| node tests | cases | {' | '.join(engines)} |"
    yield f"| --- |{' ---: |' * (len(engines) + 1)}"
    counts = dict.fromkeys(engines, 0)
    for group in GROUPS:
        members = [case for case in cases() if case.group == group]
        good = {e: sum(passed(e, case) for case in members) for e in engines}
        for engine, count in good.items():
            counts[engine] += count
        yield f"| {group} | {len(members)} | {' | '.join(str(n) for n in good.values())} |"
    yield f"| **all** | **{len(cases())}** | {' | '.join(f'**{n}**' for n in counts.values())} |"


if __name__ == "__main__":
    print("\n".join(table([name for name in ENGINES if missing(name) is None])))
