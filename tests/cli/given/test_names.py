"""Names that nearly are one, that nothing reads, and that play another role."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.cli.given.attention import gather
from attncli.cli.groups import Problem as Flags
from attncli.errors import InputError
from tests.support.given import K, Q, V, X, bundle, posed


def test_no_query_lists_what_is_there() -> None:
    with pytest.raises(InputError, match=r"no tensor named query.*it holds key, value"):
        posed(key=K.tolist(), value=V.tolist())
    with pytest.raises(InputError, match=r"-q b\.json::foo"):
        posed(foo=K.tolist(), bar=V.tolist())
    with pytest.raises(InputError, match=r"no tensors\b"):
        posed(mask="causal")


@pytest.mark.parametrize(
    ("members", "name", "meant"),
    [
        ({"query": X, "keys": X, "values": X}, "keys' and 'values", "key' and 'value"),
        ({"query": X, "key": X, "vlaue": X}, "vlaue", "value"),
        ({"keys": X}, "keys", "key"),
        ({"x": X, "attn_msk": X}, "attn_msk", "attn_mask"),
        ({"query": X, "kv_length": [2]}, "kv_length", "kv_lengths"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_misspelt_role_is_refused(
    members: dict[str, Any], name: str, meant: str, suffix: str
) -> None:
    path = f"b.{suffix}"
    if suffix == "json":
        Path(path).write_text(json.dumps(members))
    else:
        np.savez(path, **members)
    with pytest.raises(InputError, match=f"'{name}' (is|are) not read; did you mean '{meant}'?"):
        gather(files.read(path), Flags())


def test_no_slip_where_the_role_is_played_otherwise() -> None:
    np.save("k.npy", K)
    given = gather(bundle(query=Q.tolist(), keys=[[1.0]]), Flags(key="k.npy"))
    assert given.warnings == ("b.json: 'keys' is not read",)
    assert gather(bundle(querys=Q.tolist(), key=K.tolist()), Flags()).warnings == ()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("token", "tokens"), ("words", "tokens"), ("query_labels", "query_tokens"),
        ("padding_mask", "key_padding_mask"), ("temperature", "scale"),
    ],
)  # fmt: skip
def test_another_word_for_it_is_understood_and_said(name: str, meant: str) -> None:
    given = gather(bundle(query=X, **{name: [1]}), Flags())
    assert given.warnings == (f"b.json: '{name}' is not read; did you mean '{meant}'?",)


def test_what_nothing_reads_is_warned_about_in_one_line() -> None:
    given = gather(bundle(query=X, more=[1], extra=[2], sclae=3, note="b"), Flags())
    assert given.warnings == (
        "b.json: 'more', 'extra', 'note' are not read",
        "b.json: 'sclae' is not read; did you mean 'scale'?",
    )
    assert given.pose().warnings == given.warnings
    known = dict.fromkeys(("output", "weights", "lse", "grad_query", "masked", "present_key"), X)
    assert gather(bundle(query=X, **known), Flags()).warnings == ()
    ours = bundle(schema="attncli.compute/1", query=X, extra=X, keys=X, warnings=[])
    assert gather(ours, Flags()).warnings == ()


@pytest.mark.parametrize("name", ["key", "value", "weights", "output", "attn_mask", "lse"])
def test_a_tensor_with_another_role_is_no_query(name: str) -> None:
    with pytest.raises(InputError, match=f"no tensor named query.*it holds {name}"):
        gather(bundle(**{name: X}), Flags())


def test_a_result_without_its_query_says_what_it_holds() -> None:
    found = bundle(schema="attncli.compute/1", output=X, weights=X, warnings=[], heads=[])
    with pytest.raises(
        InputError, match=r"result of attncli compute.*holds output, weights\n.*--in"
    ):
        gather(found, Flags())
