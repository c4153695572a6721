"""Every family of the table, held against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

from attncli.models.families import FAMILIES
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
                )
                assert wide.weights is not None
                double = {"weights": wide.weights, "heads": wide.concat, "output": wide.output}[
                    name
                ]
            assert_close(f"{key} {name}", ours, double, [single], bands[name])
        shown = {"weights", "heads", "output"}
        assert names == (shown - {"weights"} if key in ("longformer", "falcon!mha") else shown)


def test_every_family_of_the_table_is_held_against_transformers() -> None:
    """What is not, is marked (code) in the table, or is a part of a family that is."""
    code = {"nanogpt", "meta_llama", "openai_whisper", "timm", "torch"}
    parts = {
        "clip_text_model",
        "clip_vision_model",
        "siglip_text_model",
        "siglip_vision_model",
        "blip_text_model",
        "blip_vision_model",
        "gemma3",
    }
    same_code = {"flaubert", "hubert", "blenderbot_small", "speech_to_text"}
    tested = {key.split("!")[0].replace("-", "_") for key in families.FAMILIES}
    assert set(FAMILIES) - tested == code | parts | same_code
