"""The names in a bundle and the roles that they play."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attncli import files
from attncli.errors import FileError
from tests.support.files import put


@pytest.mark.parametrize(
    ("name", "role"),
    [("Q", "query"), ("KEY", "key"), ("v", "value"), ("mask", "attn_mask"), ("X", "hidden_states"),
     ("sinks", "sink"), ("dO", "grad_output"), ("slopes", "slopes")],
)  # fmt: skip
def test_roles(tmp_path: Path, name: str, role: str) -> None:
    bundle = files.read(put(tmp_path / "x.json", json.dumps({name: [[1.5]], "other": [2.5]})))
    found = files.find(bundle, role)
    assert found is not None and found[0] == name
    assert found[1].tolist() == [[1.5]]
    assert files.find(bundle, "past_key") is None


def test_two_candidates_for_a_role(tmp_path: Path) -> None:
    bundle = files.read(put(tmp_path / "x.json", '{"q": [1.5], "Query": [2.5]}'))
    with pytest.raises(FileError, match="'q' and 'Query': which is the query"):
        files.find(bundle, "query")
