"""Save what a layer of a model gets and what its attention makes of it: hidden.npy and output.npy.

    pip install 'attncli[hf]'
    python samples/hidden_states.py MODEL LAYER TEXT

This is PyTorch's and transformers' answer alone, for attncli to be held against.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar


def main(folder: str, layer: str, text: str) -> None:
    """Run the model on the text, and write both files here."""
    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    seen: list[Any] = []
    attention = model.get_submodule(f"model.layers.{layer}.self_attn")
    attention.register_forward_hook(lambda module, given, made: seen.append(made[0]))
    with torch.no_grad():
        ran = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
    np.save("hidden.npy", ran.hidden_states[int(layer)].numpy())
    np.save("output.npy", seen[0].numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
