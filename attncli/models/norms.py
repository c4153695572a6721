"""Which norms a layer has: between hidden states and projections, and of queries and keys."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from attncli.errors import InputError
from attncli.files.bundle import Bundle
from attncli.models import config as configs
from attncli.models.families import Family
from attncli.models.layer import Norm
from attncli.models.matching import Found, join, norm_before, numbers


def input_norm(
    found: Found, config: configs.Config, family: Family | None, kind: str, names: Collection[str],
    notes: list[str],
) -> Norm | None:  # fmt: skip
    """Return the norm between hidden states and projections, of a pre-norm family."""
    if family is None or not family.before:
        return None
    if family.before_if and not configs.flag(config, family.before_if):
        return None
    at = place(found, kind, names)
    if at is None and not family.gainless:
        notes.append("no norm before the projections beside it: X is taken as they do")
        return None
    name, weight, bias = at or ("input_layernorm", "", "")
    eps = configs.number(config, *configs.EPSILONS) if family.eps is None else family.eps
    if family.staged_eps is not None and len(numbers(found.parent)) > 1:
        eps = family.staged_eps
    usual = 1e-5 if family.before.startswith("layer") else 1e-6
    return Norm(
        family.before, (weight,) if weight else (), (bias,) if bias else (),
        usual if eps is None else eps, name=name,
    )  # fmt: skip


def place(found: Found, kind: str, names: Collection[str]) -> tuple[str, str, str] | None:
    """Return leaf, weight and bias of that norm, which is not the one of the heads' outputs."""
    inner = f"{join(found.parent, found.layout.inner)}.weight"
    return norm_before(found.parent, kind, {*names} - {inner} if inner in names else names)


def head_norm(
    found: Found, bundle: Bundle, config: configs.Config, family: Family | None, role: str,
    heads: int, width: int, turned: bool, notes: list[str],
) -> Norm | None:  # fmt: skip
    """Return the norm of queries or keys, ``heads`` of them ``width`` wide.

    ``turned``: RoPE turns them. Raises InputError for weights of another size.
    """
    eps = configs.number(config, *configs.EPSILONS)
    if family and family.norm == "bare":  # Llama 4: nothing scales it
        on = config.get("use_qk_norm", True) and turned
        return Norm("rms", (), (), 1e-5 if eps is None else eps) if on else None
    if role not in found.norms:
        return None
    weights, biases = found.norms[role]
    shape: tuple[Any, ...] = bundle.header(weights[0]).shape
    if shape not in ((width,), (heads, width), (heads * width,)):
        raise InputError(
            f"'{weights[0]}' is {shape} but {heads} heads are {width} wide",
            f"a norm has {width}, {heads} × {width} or {heads * width} numbers",
        )
    kind = family.norm if family else ""
    kind = kind or ("layer" if biases else "rms")
    if eps is None:
        notes.append(f"no epsilon in config.json for {role}: 1e-6 is assumed")
    full = len(weights) == 1 and shape == (heads * width,) and shape != (width,)
    return Norm(kind, weights, biases, 1e-6 if eps is None else eps, full)
