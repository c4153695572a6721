"""The names in a bundle: which are known, which nearly are, and which nothing reads."""

from __future__ import annotations

from collections.abc import Collection

from attncli import files
from attncli.cli import groups
from attncli.errors import InputError, closest, listed
from attncli.files.bundle import STDIN, Bundle

DTYPES = ("dtype", *groups.Softmax.members)
#: Members of a bundle that are options: what the groups take that is no reference to a tensor.
OPTIONS = tuple(
    name
    for name, parameter in (groups.Problem.members | groups.Softmax.members).items()
    if parameter.annotation.__metadata__[0].metavar != "REF"
)
#: Roles that change the result: a name that nearly spells one is a slip, not a bystander.
READ = (
    "query", "key", "value", "attn_mask", "past_key", "past_value", "kv_lengths", "sink"
)  # fmt: skip
#: What else our own files hold.
RESULTS = (
    "scores", "softcapped", "masked", "present_key", "present_value", "row_statistics", "concat",
    "rope_applied", "num_heads",
)  # fmt: skip
ROLES = frozenset(name for names in files.ROLES.values() for name in names)
KNOWN = ROLES.union(OPTIONS, RESULTS)


def without_role(bundle: Bundle) -> list[str]:
    """Return the tensors whose names say nothing of what they are; all of them, if just one."""
    names = list(bundle.tensors)
    return names if len(names) == 1 else [n for n in names if n.lower() not in ROLES | {*OPTIONS}]


def refuse_slips(bundle: Bundle, given: Collection[str]) -> None:
    """Raise InputError for a misspelt role: without it the answer would be another one.

    ``given`` are the roles that come from elsewhere. A lone unknown tensor is the query.
    """
    if files.is_result(bundle):
        return
    there = {name.lower() for name in (*bundle.tensors, *bundle.options)}
    spellings = {
        alias: role
        for role in READ
        if role not in given and there.isdisjoint(files.ROLES[role])
        for alias in files.ROLES[role]
        if len(alias) > 2
    }
    for name in bundle.tensors:
        near = closest(name.lower(), spellings, 0.65)
        if name.lower() not in KNOWN and near and spellings[near[0]] != "query":
            raise InputError(
                f"{bundle.source}: '{name}' is not read; did you mean '{near[0]}'?",
                "rename it, or leave it out",
            )


def unread(bundle: Bundle, taken: Collection[str]) -> list[str]:
    """Return a line for the tensors that nothing took, and one for each misspelt option."""
    if files.is_result(bundle):
        return []
    left = [
        repr(name)
        for name in bundle.tensors
        if name not in taken and name.partition(".")[0].lower() not in KNOWN
    ]
    are = "are" if len(left) > 1 else "is"
    lines = [f"{bundle.source}: {listed(left)} {are} not read"] if left else []
    there = {name.lower() for name in bundle.options}
    for name in bundle.options if bundle.kind == "json" else ():
        near = closest(name.lower(), [n for n in OPTIONS if n not in there], 0.75)
        if near and name.lower() not in KNOWN:
            lines.append(f"{bundle.source}: '{name}' is not read; did you mean '{near[0]}'?")
    return lines


def no_query(bundle: Bundle, candidates: list[str]) -> InputError:
    """Return what to say when nothing in the bundle, or more than one tensor, may be the query."""
    names = list(bundle.tensors)
    if files.is_result(bundle):
        command = str(bundle.options["schema"]).partition("/")[0].replace(".", " ")
        return InputError(
            f"{bundle.source} is a result of {command} without its query: "
            f"it holds {listed(names) or 'no tensors'}",
            "write it with --include query,key,value",
        )
    hint = 'expected at least {"query": [[…], …]}'
    if candidates or len(names) == 1:
        path = "-" if bundle.source == STDIN else bundle.source
        hint = f"say which it is: -q {path}::{(candidates or names)[0]}"
    return InputError(
        f"{bundle.source} has no tensor named query (or q, hidden_states, x); "
        f"it holds {listed(names) or 'no tensors'}",
        hint,
    )
