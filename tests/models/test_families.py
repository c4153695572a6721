"""Every family of the table, held against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from attncli.studies.layer import multihead
from tests.support import families
from tests.support.budget import assert_close


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", families.FAMILIES)
def test_a_family(key: str, tmp_path: Path) -> None:
    """Weights, heads and output of every layer, from the same hidden states, within the budget."""
    pytest.importorskip("transformers")
    some = list(families.compared(key, str(tmp_path), "numpy"))
    assert some
    for layer in some:
        assert (
            layer.layer.family == key.split("!")[0].replace("-", "_")
            or "_model" in layer.layer.family
        )
        bands = layer.bands()
        names = set()
        for name, ours, single, double in layer.results():
            names.add(name)
            if double is None:  # our reference in float64 stands in for theirs
                wide = multihead(
                    layer.single.query_input.numpy().astype(float),
                    layer.layer,
                    want=("output", "weights"),
                    backend="reference",
                    input_norm="none",
                )
                assert wide.weights is not None
                double = {"weights": wide.weights, "heads": wide.concat, "output": wide.output}[
                    name
                ]
            assert_close(f"{key} {name}", ours, double, [single], bands[name])
        shown = {"weights", "heads", "output"}
        assert names == (shown - {"weights"} if key in ("longformer", "falcon!mha") else shown)
