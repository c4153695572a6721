"""``compute --expect``: the options that explain a candidate are typed, and exit with 0."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, assume, given, settings

from tests.support.changes import Changed, changes, differs, pasted, solved, typed
from tests.support.program import Door


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changed=changes(("float32", "float64", "float16")))
def test_the_options_that_explain_it_are_typed(door: Door, changed: Changed) -> None:
    assume(changed.kinds and differs(changed, 50))
    np.savez("q.npz", **changed.tensors)
    np.save("c.npy", solved(changed.tensors, changed.made))

    def run(options: Any) -> Any:
        return door("compute", "q.npz", *typed(options), "--expect", "c.npy", "--json")

    first = run(changed.asked)
    assert first.code == 1, first.err
    for one in json.loads(first.out)["expect"]["explanations"]:
        if one["passed"] and not one["words"]:
            again = run(pasted(changed.asked, SimpleNamespace(options=one["options"])))
            assert again.code == 0, again.err or again.out
