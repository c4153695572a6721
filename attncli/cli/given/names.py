"""The names in a bundle: which are known, which nearly are, and which nothing reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from attncli import files
from attncli.cli import groups
from attncli.errors import InputError, listed, numbered, series
from attncli.files.attentions import weights_in
from attncli.files.bundle import Bundle, path_of, prefixes
from attncli.files.vocabulary import BYSTANDERS, PLAYED, RESULTS, ROLES, TENSOR, slips

DTYPES = ("dtype", "softmax_dtype")
#: Roles that change the result: a name that nearly spells one is a slip, not a bystander.
READ = (
    "key", "value", "attn_mask", "past_key", "past_value", "kv_lengths", "sink"
)  # fmt: skip
#: What other people call a member, and what it is called here.
OTHERWISE = {
    "padding_mask": "key_padding_mask", "pad_mask": "key_padding_mask", "temperature": "scale",
    "labels": "tokens", "words": "tokens", "query_labels": "query_tokens",
    "key_labels": "key_tokens",
}  # fmt: skip


def is_known(name: str) -> bool:
    """Return whether the vocabulary holds a name, in any case."""
    return name.lower() in PLAYED or name.partition(".")[0].lower() in BYSTANDERS


def without_role(bundle: Bundle) -> list[str]:
    """Return the tensors whose names say nothing of what they are; all of them, if just one."""
    names = list(bundle.tensors)
    return names if len(names) == 1 else [name for name in names if not is_known(name)]


def refuse_slips(bundle: Bundle, given: Collection[str]) -> None:
    """Raise InputError for a misspelt role: without it the answer would be another one.

    ``given`` are the roles that come from elsewhere.
    """
    if files.is_result(bundle):
        return
    unknown = [name for name in bundle.tensors if not is_known(name)]
    open_roles = [role for role in READ if role not in given and role not in bundle.by_role]
    near = _near(open_roles) if unknown else {}
    slipped = [name for name in unknown if name.lower() in near]
    if slipped:
        said = series([f"'{name}'" for name in slipped])
        meant = series([f"'{near[name.lower()]}'" for name in slipped])
        are, them = ("is", "it") if len(slipped) == 1 else ("are", "them")
        raise InputError(
            f"{bundle.source}: {said} {are} not read; did you mean {meant}?",
            f"rename {them}, or leave {them} out",
        )


def refuse_groups(bundle: Bundle) -> None:
    """Raise InputError where several tensors lie under a name that one should have."""
    if files.is_result(bundle):
        return
    for name in bundle.tensors:
        head, dot, _ = name.partition(".")
        roles = PLAYED.get(head.lower(), ()) if dot else ()
        if any(role not in RESULTS for role in roles):
            own = [n for n in bundle.tensors if n.startswith(f"{head}.")]
            raise InputError(
                f"{bundle.source}: '{head}' holds {numbered(own)}; expected one tensor",
                ROLES[roles[0]].hint
                or "say which is meant, as in: "
                f"--{roles[0].replace('_', '-')} {bundle.ref(own[0])}",
            )


def unread(bundle: Bundle, taken: Collection[str], said: Callable[[str], object]) -> list[str]:
    """Return a line for the members that nothing took, and one for each misspelt option.

    ``said`` tells whether the command line gives a role in place of the file.
    """
    if files.is_result(bundle):
        return []
    unknown: list[str] = []
    idle: list[str] = []
    for name in (*bundle.tensors, *bundle.options):
        roles = PLAYED.get(name.lower(), ())
        if name in taken or (not roles and is_known(name)):
            continue
        if not roles:
            unknown.append(name)
        elif not any(role in RESULTS or said(role) for role in roles) and _says(bundle, name):
            idle.append(name)
    there = {role for name in bundle.options for role in PLAYED.get(name.lower(), ())}
    options = [
        r for r, row in ROLES.items()
        if row.kinds and (TENSOR not in row.kinds or r in groups.Labels.members)
    ]  # fmt: skip
    near = _near([role for role in options if role not in there]) if unknown else {}
    near |= {name: role for name, role in OTHERWISE.items() if role not in there}
    slipped = [name for name in unknown if name.lower() in near]
    left = [repr(name) for name in (*idle, *unknown) if name.lower() not in near]
    are = "are" if len(left) > 1 else "is"
    lines = [f"{bundle.source}: {listed(left)} {are} not read"] if left else []
    return lines + [
        f"{bundle.source}: '{name}' is not read; did you mean '{near[name.lower()]}'?"
        for name in slipped
    ]


def _says(bundle: Bundle, name: str) -> bool:
    """Whether a known member says anything: null does not, nor a dtype in metadata."""
    if name not in bundle.options:
        return True
    of_file = bundle.kind == "safetensors" and name.lower() == "dtype"
    return bundle.options[name] is not None and not of_file


def _near(roles: Collection[str]) -> dict[str, str]:
    """Return the slips of the names of some roles, the shortest names left out."""
    return slips([name for role in roles for name in ROLES[role].names if len(name) > 2])


def of_weights(bundle: Bundle) -> str | None:
    """Return what to say to attention weights alone, which ``inspect`` reads; None to others."""
    if not weights_in(bundle):
        return None
    return f"what attention weights say alone: attncli inspect {path_of(bundle)}"


def of_model(bundle: Bundle) -> str | None:
    """Return what to say to the weights of a model in its folder; None to others."""
    folder = os.path.dirname(path_of(bundle)) or "."
    if not os.path.isfile(os.path.join(folder, "config.json")):
        return None
    from attncli.models.finding import holds_layers  # 20 ms that few need

    if not holds_layers(bundle):
        return None
    return f"its model computes it: attncli compute {folder} --text 'the cat sat' --layer 0"


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
    from attncli.studies.partial import is_partial

    if is_partial(bundle):
        return InputError(
            f"{bundle.source} is a part of a problem",
            "join it with the others: attncli compute --merge PART…",
        )
    return InputError(
        f"{bundle.source} has no tensor named query (or q, hidden_states, x); "
        f"it holds {listed(names) or 'no tensors'}",
        of_weights(bundle) or of_model(bundle) or _which(bundle, candidates),
    )


def _which(bundle: Bundle, candidates: list[str]) -> str:
    """Return how to say what is what."""
    below = prefixes(bundle)
    if len(below) > 1:
        return f"choose one of {numbered(below)}: {path_of(bundle)}::{below[0]}"
    named = candidates or list(bundle.tensors)
    if not named:
        return 'expected at least {"query": [[…], …]}'
    if len(named) == 1:
        return f"say which it is: -q {bundle.ref(named[0])}"
    flags = zip(("-q", "-k", "-v"), _in_order(named), strict=False)
    return f"say which is which, as in: {' '.join(f'{f} {bundle.ref(n)}' for f, n in flags)}"


def _in_order(names: list[str]) -> list[str]:
    """Return the three that have query, key and value, or q, k and v, in them; else all."""
    found = []
    for word in ("query", "key", "value"):
        like = [
            name
            for name in names
            if any(part in (word, word[0]) for part in name.lower().replace(".", "_").split("_"))
        ]
        found += like[:1]
    return found if len(found) == 3 else names
