"""Every model_type of transformers: its layers are right, or refused with the reason."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.errors import InputError
from attncli.files.bundle import Bundle
from attncli.models.families import COMPOSITES, FAMILIES, normal
from attncli.models.finding import find_layers
from attncli.studies.layer import multihead
from tests.support import zoo
from tests.support.zoo_configs import NOT_BUILT, VARIANTS

pytest.importorskip("transformers")

TYPES = zoo.model_types()
KNOWN = [kind for kind in TYPES if normal(kind) in {*FAMILIES, *COMPOSITES}]
OTHERS = [kind for kind in TYPES if kind not in KNOWN]
#: In the table for what they do beside it, or with options: nothing of them is computed unasked.
REFUSED = {"big_bird", "longformer", "dinov3_vit"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*KNOWN, *VARIANTS])
def test_a_model_type_of_the_table_is_right(kind: str) -> None:
    found = zoo.verdicts(kind, zoo.build(kind))
    assert not [verdict for verdict in found if verdict.what == "wrong"]
    assert any(verdict.what == "right" for verdict in found) == (kind not in REFUSED)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind not in NOT_BUILT])
def test_any_other_model_type_is_refused(kind: str) -> None:
    """None right either: it would belong in the table."""
    found = zoo.verdicts(kind, zoo.build(kind))
    assert {verdict.what for verdict in found} == {"refused"}


@pytest.mark.parametrize("kind", OTHERS)
def test_any_other_model_type_is_refused_by_its_name(kind: str) -> None:
    """Also where it cannot be built: with the commonest names of weights, and of a base class."""
    weights = {f"layers.0.self_attn.{n}_proj.weight": np.ones((8, 8), np.float32) for n in "qkvo"}
    for part in (
        {"model_type": kind},
        {"model_type": "llava", "text_config": {"model_type": kind}},
        {"model_type": kind, "text_config": {"model_type": "llama", "num_attention_heads": 2}},
    ):
        found = find_layers(Bundle("weights", "arrays", weights), part, heads=2)
        with pytest.raises(InputError, match=f"model_type '{normal(kind)}' is not in the table"):
            multihead(np.ones((3, 8)), found[0])


def test_every_family_of_the_table_is_a_model_type_of_transformers_or_said_to_be_none() -> None:
    elsewhere = {  # against their own libraries in test_named.py
        "nanogpt", "meta_llama", "openai_whisper", "timm", "timm_eva", "torchvision", "torch",
        "transformerlens", "diffusers", "flax", "keras", "megatron",
    }  # fmt: skip
    assert {*FAMILIES, *COMPOSITES} - {normal(kind) for kind in KNOWN} == elsewhere
    assert not FAMILIES.keys() & COMPOSITES and {*NOT_BUILT} <= {*OTHERS}
