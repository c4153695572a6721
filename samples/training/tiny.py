"""Train the model of samples/tiny: two layers that learn to find what they have read before.

    pip install 'attncli[hf]'
    python samples/training/tiny.py FOLDER

A text is some words in random order, once more and once more, with another period in each text. So
nothing can be learnt but to look for the last occurrence of a word, and to say what came after it
(Olsson et al. 2022). It takes a few minutes on one processor.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = tuple(
    """
    a and ant apple bear bed bee big bird black blue boat book box boy bread bus cake cat chair cow
    cup day dog door duck egg fish fox frog girl goat green hat hen horse house ice in jam key kite
    lamp leaf lion milk moon mouse on pen pig rain red sea sheep ship shoe sky small snow star sun
    the tree water white wind wolf yellow
    """.split()  # noqa: SIM905 - a list to be read
)
LENGTH, BATCH, STEPS, RATE = 64, 64, 800, 3e-3
PERIODS = range(8, 25)


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a word, behind a <BOS>."""
    vocabulary = {word: n for n, word in enumerate(["<BOS>", "<UNK>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<UNK>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<BOS> $A", special_tokens=[("<BOS>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<BOS>", unk_token="<UNK>", padding_side="left"
    )


def texts(count: int) -> torch.Tensor:
    """Random texts ``(count, LENGTH)``, each of its own period."""
    rows = []
    for _ in range(count):
        period = PERIODS[torch.randint(len(PERIODS), ()).item()]
        own = 2 + torch.randperm(len(WORDS))[:period]
        rows.append(torch.cat([torch.zeros(1, dtype=torch.int64), own.repeat(LENGTH)])[:LENGTH])
    return torch.stack(rows)


def train(steps: int = STEPS) -> LlamaForCausalLM:
    """Train a new model; prints its loss on tokens that can be known."""
    config = LlamaConfig(
        vocab_size=2 + len(WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for step in range(steps):
        ids = texts(BATCH)
        logits = model(input_ids=ids).logits[:, PERIODS.stop : -1]
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, PERIODS.stop + 1 :].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5}  loss {loss.item():.3f}", flush=True)
    return model


def main(folder: str) -> None:
    """Train, and save what transformers loads."""
    torch.set_num_threads(1)
    train().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    Path(folder, "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
