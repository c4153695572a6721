"""``--probe repeat`` on a model that has learnt to find repeats, and what its heads are good for.

It is trained here: random tokens that begin anew after a number of tokens that differs from batch
to batch, so that no distance tells what comes next; the heads that find it are known by what the
model loses without them (Olsson et al. 2022).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.support.program import Door  # noqa: E402

pytestmark = pytest.mark.slow

WORDS, LENGTH, BATCH, HEADS, WIDTH, LAYERS = 40, 48, 32, 4, 16, 3
LEARNT = 0.05  # nats a token where guessing costs ln 38 = 3.6


def repeats(every: int, length: int, batch: int) -> Any:
    """Token ids ``(batch, 1 + length)``: <s>, then random tokens, all different, over and over."""
    order = torch.rand(batch, WORDS - 2).argsort(1)[:, :every] + 2
    again = order.repeat(1, -(-length // every))[:, :length]
    return torch.cat([torch.zeros(batch, 1, dtype=torch.long), again], 1)


def loss(model: Any, ids: Any, every: int) -> Any:
    """Nats a token from the first that occurs again on."""
    logits = model(ids).logits[:, every + 1 : -1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, every + 2 :].flatten())


@pytest.fixture(scope="module")
def model() -> Any:
    """A Llama of attention alone: what its feed-forward layers add is 0."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=HEADS * WIDTH, intermediate_size=8, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
        pad_token_id=1,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config)
    for layer in made.model.layers:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight).requires_grad_(False)
    learning = [one for one in made.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=5e-3, betas=(0.9, 0.98))
    try:
        for step in range(1500):
            optimizer.param_groups[0]["lr"] = 5e-3 * min(1, (step + 1) / 50)
            every = int(torch.randint(8, LENGTH // 2, ()))
            now = loss(made, repeats(every, LENGTH, BATCH), every)
            optimizer.zero_grad()
            now.backward()
            optimizer.step()
            if now.item() < LEARNT:
                break
    finally:
        torch.set_num_threads(threads)
    assert now.item() < LEARNT
    return made


@pytest.fixture
def heads(model: Any, tmp_path: Path, door: Door) -> dict[str, Any]:
    model.save_pretrained(tmp_path / "trained")
    ran = door("inspect", "trained", "--probe", "repeat:20", "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


@contextmanager
def without(model: Any, heads: Any) -> Iterator[None]:
    """Leave out what these heads, ``layer.head`` each, add."""
    outs = [layer.self_attn.o_proj.weight for layer in model.model.layers]
    before = [weight.detach().clone() for weight in outs]
    try:
        for layer, head in (map(int, name.split(".")) for name in heads):
            outs[layer].data[:, head * WIDTH : (head + 1) * WIDTH] = 0
        yield
    finally:
        for weight, was in zip(outs, before, strict=True):
            weight.data.copy_(was)


def named(heads: Any, role: str) -> dict[str, float]:
    return {one["name"]: one["score"] for one in heads["detected"][role]}


def test_what_it_learnt_is_named(heads: Any) -> None:
    found, before = named(heads, "induction"), named(heads, "previous token")
    assert found and {name[0] for name in found} == {"1"}
    assert max(found.values()) > 0.7
    assert before and {name[0] for name in before} == {"0"}
    assert not named(heads, "duplicate token")
    assert heads["heads"][0]["name"] in (*found, *before)


def test_without_the_named_heads_it_has_learnt_nothing(model: Any, heads: Any) -> None:
    """The others behind layer 0, on which all are built, do without notice."""
    found = named(heads, "induction")
    behind = [f"{layer}.{head}" for layer in range(1, LAYERS) for head in range(HEADS)]
    others = [name for name in behind if name not in found]
    assert len(others) >= len(found)
    torch.manual_seed(1)
    ids = repeats(20, 40, 64)
    with torch.no_grad():
        whole = loss(model, ids, 20).item()
        with without(model, found):
            missing = loss(model, ids, 20).item()
        with without(model, others):
            spared = loss(model, ids, 20).item()
    print(f"loss {whole:.3f}, without induction heads {missing:.3f}, without others {spared:.3f}")
    assert whole < 0.1 and missing > 2 and spared < 0.2
