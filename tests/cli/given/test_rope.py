"""Rotary positions of a file."""

from __future__ import annotations

import pytest

from attncli.cli.given.attention import gather
from attncli.cli.groups import Problem as Flags
from attncli.errors import InputError
from tests.support.given import X, bundle


@pytest.mark.parametrize("name", ["rope_theta", "rope_dim", "rope_cos"])
def test_rope_options_in_the_file_need_rope(name: str) -> None:
    value = [[1.0]] if name == "rope_cos" else 2
    with pytest.raises(InputError, match=f"b.json: '{name}' is given without rope\nadd --rope"):
        gather(bundle(query=X, **{name: value}), Flags())
    assert gather(bundle(query=X, position_ids=[0, 1]), Flags()).warnings == ()
