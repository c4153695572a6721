"""A tiny Llama with a tokenizer, in a folder as transformers writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = [
    "<pad>", "<s>", "<unk>", "the", "cat", "sat", "on", "mat", "because", "it", "was", "tired", "a",
    "dog",
]  # fmt: skip
SIZES = dict(
    vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16, pad_token_id=0,
)  # fmt: skip


def tokenizer(side: str = "left", words: Sequence[str] = WORDS) -> Any:
    """``words`` between blanks, with <s> before them."""
    import tokenizers
    import transformers

    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", padding_side=side
    )


def write_model(folder: Path, words: Sequence[str] = WORDS, **sizes: int) -> Path:
    """Write a model of random weights, large enough to choose between keys."""
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**SIZES, "vocab_size": len(words), **sizes})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer(words=words).save_pretrained(folder)
    return folder
