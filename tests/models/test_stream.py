"""Which layers write to one residual stream, and what lies between them, by names alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.models.finding import find_layers
from attncli.models.stream import Stream, streams
from attncli.models.vocabulary import Vocabulary, vocabulary
from tests.support.layers import apart, bundle_of

BART = "q_proj k_proj v_proj out_proj"
T5 = "q k v o"


def found(*tensors: Any, config: Any = None, **more: Any) -> list[Stream]:
    return streams(find_layers(bundle_of(*tensors, **more), config, heads=2))


def paths(some: list[Stream]) -> dict[str, list[str]]:
    return {
        one.name: [layer.name.removeprefix(one.name).lstrip(".") for layer in one.layers]
        for one in some
    }


def test_encoder_and_decoder_are_two_streams_in_the_order_of_writing() -> None:
    names = [
        f"decoder.layers.{n}.{kind}" for n in (10, 2) for kind in ("encoder_attn", "self_attn")
    ]
    names += [f"encoder.layers.{n}.self_attn" for n in (0, 1)]
    layers = [tensor for name in names for tensor in apart(name, BART)]
    assert paths(found(*layers, config={"model_type": "bart"})) == {
        "decoder.layers": ["2.self_attn", "2.encoder_attn", "10.self_attn", "10.encoder_attn"],
        "encoder.layers": ["0.self_attn", "1.self_attn"],
    }


def test_t5_numbers_its_attentions_within_a_block() -> None:
    names = [f"decoder.block.{n}.layer.{m}" for n in (0, 1) for m in (0, 1)]
    kinds = ("SelfAttention", "EncDecAttention")
    layers = [
        tensor for n, name in enumerate(names) for tensor in apart(f"{name}.{kinds[n % 2]}", T5)
    ]
    assert paths(found(*layers)) == {
        "decoder.block": [f"{n}.layer.{m}.{kinds[m]}" for n in (0, 1) for m in (0, 1)]
    }


def test_stages_and_widths_are_apart_and_what_writes_elsewhere_is_in_none() -> None:
    stages = [
        tensor for stage in (0, 1) for block in (0, 1)
        for tensor in apart(f"layers.{stage}.blocks.{block}.attn", BART)
    ]  # fmt: skip
    assert [*paths(found(*stages))] == ["layers.0.blocks", "layers.1.blocks"]
    wide = apart("h.0.attn", BART) + apart("h.1.attn", BART, *((6, 12),) * 3, (12, 6))
    assert [one.width for one in found(*wide)] == [8, 12]
    silent = apart("h.0.attn", "q_proj k_proj v_proj") + apart("h.1.attn", BART)
    assert paths(found(*silent)) == {"h": ["1.attn"]}


ROWS = {
    "bert": ("self.query self.key self.value output.dense", "attention",
             ("attention.output.LayerNorm", "output.LayerNorm")),
    "bart": (BART, "self_attn", ("self_attn_layer_norm", "final_layer_norm")),
    "distilbert": ("q_lin k_lin v_lin out_lin", "attention",
                   ("sa_layer_norm", "output_layer_norm")),
    "mpnet": ("attn.q attn.k attn.v attn.o", "attention", ("attention.LayerNorm",
                                                           "output.LayerNorm")),
    "wav2vec2": (BART, "attention", ("layer_norm", "final_layer_norm")),
    "nomic_bert": (BART, "self_attn", ("norm1", "norm2")),
}  # fmt: skip


@pytest.mark.parametrize("model_type", ROWS)
def test_norms_behind_the_sums_of_post_norm_blocks(model_type: str) -> None:
    leaves, place, norms = ROWS[model_type]
    layers = [
        tensor for n in range(2)
        for tensor in (*apart(f"encoder.layer.{n}.{place}", leaves),
                       *((f"encoder.layer.{n}.{norm}.weight", (8,)) for norm in norms))
    ]  # fmt: skip
    one = found(*layers, config={"model_type": model_type})[0]
    named = [[norm.name for norm in some] for some in one.between]
    assert named == [list(norms)] * 2 and one.post_norm and not one.centred


def test_a_decoders_norms_lie_each_behind_its_sum() -> None:
    layers = [
        tensor for n in range(2)
        for tensor in (
            *apart(f"decoder.layers.{n}.self_attn", BART),
            *apart(f"decoder.layers.{n}.encoder_attn", BART),
            *((f"decoder.layers.{n}.{norm}_layer_norm.weight", (8,))
              for norm in ("self_attn", "encoder_attn", "final")),
        )
    ]  # fmt: skip
    one = found(*layers, config={"model_type": "bart"})[0]
    assert [[norm.name.split("_")[0] for norm in some] for some in one.between] == [
        ["self"], ["encoder", "final"], ["self"], ["encoder", "final"],
    ]  # fmt: skip


def test_pre_norm_blocks_and_unknown_ones_have_nothing_between() -> None:
    blocks = [
        tensor for n in range(2)
        for tensor in (*apart(f"layers.{n}.self_attn", BART), (f"layers.{n}.norm1.weight", (8,)),
                       (f"layers.{n}.norm2.weight", (8,)))
    ]  # fmt: skip
    vit = found(*blocks, config={"model_type": "clip_vision_model"})[0]
    assert not vit.post_norm and vit.centred
    unknown = found(*blocks, config={"model_type": "never_heard_of"})[0]
    assert not unknown.post_norm and not unknown.centred


def test_what_is_carried_forward_and_read_backward_is_one_number() -> None:
    leaves, place, norms = ROWS["bert"]
    layers = [
        tensor for n in range(3)
        for tensor in (*apart(f"encoder.layer.{n}.{place}", leaves),
                       *((f"encoder.layer.{n}.{norm}.weight", (8,)) for norm in norms))
    ]  # fmt: skip
    one = found(*layers, config={"model_type": "bert"})[0]
    x, y = np.random.default_rng(0).normal(size=(2, 5, 8))
    forward = one.carried(x, 0, 2) @ y.T
    np.testing.assert_allclose(forward, x @ one.returned(y, 0, 2).T, atol=1e-10)
    assert np.abs(forward - x @ y.T).max() > 0.1


# -- words ------------------------------------------------------------------------------------


def words(top: str, stack: str, model_type: str, *names: str, **more: Any) -> Vocabulary | None:
    leaves = BART if model_type in ("opt", "bart") else "q_proj k_proj v_proj o_proj"
    tensors = apart(f"{top}{stack}.0.self_attn", leaves)
    tensors += [(f"{name}.weight", (11, 8)) for name in names if "norm" not in name]
    tensors += [(f"{name}.weight", (8,)) for name in names if "norm" in name]
    return vocabulary(found(*tensors, config={"model_type": model_type, **more})[0])


def test_the_embedding_is_that_of_the_layers_part() -> None:
    one = words("model.", "layers", "llama", "model.embed_tokens", "lm_head", "model.norm",
                "other.embed_tokens")  # fmt: skip
    assert one is not None and one.final is not None
    assert (one.embedding, one.unembedding) == ("model.embed_tokens.weight", "lm_head.weight")
    assert one.final.weights == ("model.norm.weight",) and not one.tied
    assert words("model.", "layers", "llama", "vision.embed_tokens") is None
    tied = words("", "layers", "llama", "tok_embeddings")
    assert tied is not None and tied.tied and tied.unembedding == tied.embedding
    apart_ = words("", "layers", "llama", "tok_embeddings", tie_word_embeddings=False)
    assert apart_ is not None and apart_.unembedding == ""
    nearest = words("model.decoder.", "layers", "opt", "model.shared", "model.decoder.embed_tokens")
    assert nearest is not None and nearest.embedding == "model.decoder.embed_tokens.weight"


def test_a_shared_embedding_is_followed_by_the_norm_of_its_part() -> None:
    norms = [f"model.{part}coder.layernorm_embedding" for part in ("en", "de")]
    one = words("model.decoder.", "layers", "bart", "model.shared", *norms)
    assert one is not None and one.embedded is not None
    assert one.embedded.weights == ("model.decoder.layernorm_embedding.weight",)


def test_an_encoder_has_no_logits() -> None:
    clip = words("text_model.encoder.", "layers", "bart", "text_model.embeddings.token_embedding")
    assert clip is not None and clip.unembedding == ""
    one = words("model.encoder.", "layers", "bart", "model.shared", "lm_head")
    assert one is not None and one.unembedding == "" and not one.tied
