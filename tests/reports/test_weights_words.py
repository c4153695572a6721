"""What a checkpoint's report says of statistics that are not known."""

from __future__ import annotations

import numpy as np

from attncli.files.bundle import Bundle
from attncli.reports.weights import weights_report
from tests.support.layers import llama_bundle
from tests.support.lens import CONFIGS, bundle_of
from tests.support.reports import printed


def test_without_embeddings_nothing_is_known_of_words() -> None:
    made = weights_report(llama_bundle(2), heads=4)
    for head in made.data()["heads"]:
        assert head["statistics"]["copying"] is None and head["statistics"]["logit_bound"] is None
    text = printed(made)
    assert "no embedding is there: copies, matches are not known" in text
    assert "copies" not in text.split("layer/head")[1]


def test_with_embeddings_both_are_told_and_where_they_come_from() -> None:
    made = weights_report(bundle_of("ln"), CONFIGS["ln"])
    for head in made.data()["heads"]:
        assert isinstance(head["statistics"]["copying"], float)
    said = "words of model.decoder.embed_tokens.weight, logits lm_head.weight"
    assert said in " ".join(made.notes)


def test_what_comes_out_of_weights_that_are_not_finite_is_nan() -> None:
    found = bundle_of("ln")
    name = "model.decoder.layers.1.self_attn.v_proj.weight"
    spoilt = found.tensors[name].copy()
    spoilt[:5] = np.nan
    made = weights_report(Bundle("x", "arrays", {**found.tensors, name: spoilt}), CONFIGS["ln"])
    copying = [head["statistics"]["copying"] for head in made.data()["heads"]]
    assert [n for n, value in enumerate(copying) if value != value] == [4]
