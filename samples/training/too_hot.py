"""Two training runs with the same loss, and what `attncli.watch` sees in one of them.

    pip install 'attncli[torch]'
    python samples/training/too_hot.py

A small decoder in plain PyTorch learns to repeat a sequence of random tokens, once with a learning
rate that works and once with ten times of it. For the first steps both losses say the same. The
largest attention logit does not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

import attncli

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS = 64, 32, 128, 4, 2
BATCH, STEPS = 16, 120
GOOD, HOT = 2e-3, 2e-2
LIMIT = 100.0  # of a logit; QK-Clip's, Kimi K2 2025


class Layer(nn.Module):
    """Causal attention and a perceptron, each behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, L, E)`` → ``(B, L, E)``."""
        heads = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, -1))  # (B, L, 3, H, D)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Decoder(nn.Module):
    """Token ids ``(B, L)`` → logits ``(B, L, VOCABULARY)``."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(2 * LENGTH, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places.weight[: ids.shape[1]]
        return self.head(self.layers(x))


@dataclass
class Run:
    """The loss and the largest attention logit of each step."""

    losses: list[float] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)

    def log(self, step: int, record: dict[str, dict[str, list[float]]]) -> None:
        """What `attncli.watch` calls: a record has a list with a number a head for every layer."""
        self.logits.append(max(max(layer["logit_max"]) for layer in record.values()))

    def alarm(self) -> int | None:
        """Return the first step at which a logit was beyond the limit."""
        return next((step for step, largest in enumerate(self.logits) if largest > LIMIT), None)


def train(rate: float, steps: int = STEPS, seed: int = 0) -> Run:
    """Train a new model, the same for every rate, on the same data."""
    torch.manual_seed(seed)
    model, run = Decoder(), Run()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    with attncli.watch(model, every=1, log=run.log):
        for _ in range(steps):
            half = torch.randint(VOCABULARY, (BATCH, LENGTH))
            ids = torch.cat([half, half], 1)
            predicted = model(ids)[:, LENGTH - 1 : -1]
            loss = functional.cross_entropy(predicted.flatten(0, 1), half.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.losses.append(loss.item())
    return run


def main() -> None:
    """Print both runs side by side."""
    good, hot = train(GOOD), train(HOT)
    print(f"{'':6}{f'rate {GOOD}':>22}{f'rate {HOT}':>22}")
    print("  step" + 2 * f"{'loss':>8}{'largest logit':>14}")
    for step in (*range(0, STEPS, 10), STEPS - 1):
        pairs = [(run.losses[step], run.logits[step]) for run in (good, hot)]
        print(f"{step:6}" + "".join(f"{loss:8.3f}{largest:14.1f}" for loss, largest in pairs))
    step = hot.alarm()
    if step is not None:
        losses = f"{good.losses[step]:.2f} and {hot.losses[step]:.2f}"
        print(f"step {step}: the first logit beyond {LIMIT:g}; the losses are {losses}")


if __name__ == "__main__":
    main()
