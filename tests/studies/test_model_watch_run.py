"""A watch of compiled models and of copies, and what its default log keeps to itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import attncli  # noqa: E402
from attncli.attention.pose import pose  # noqa: E402
from attncli.errors import InputError  # noqa: E402
from attncli.studies.health import examine  # noqa: E402
from attncli.studies.model.device_rows import head_sums  # noqa: E402
from attncli.studies.model.watch import TELLING, WATCHED, _told, say  # noqa: E402
from tests.support.families import build  # noqa: E402

LAYERS = ["layers.0.self_attn", "layers.1.self_attn"]


def quiet(step: int, record: Any) -> None:
    pass


class Graphs:
    """A backend of torch.compile that counts how often its graphs run."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, module: Any, example: Any) -> Any:
        def run(*args: Any) -> Any:
            self.runs += 1
            return module(*args)

        return run


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    assert not WATCHED and not TELLING


class Sdpa(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Two layers that call PyTorch themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(2)])

    def forward(self, input_ids: Any) -> Any:
        x = torch.nn.functional.one_hot(input_ids % 8, 8).float()[:, None]
        for layer in self.layers:
            x = torch.nn.functional.scaled_dot_product_attention(layer(x), x, x)
        return x


def model_of(kind: str) -> tuple[Any, dict[str, Any], list[str]]:
    torch.manual_seed(0)
    model = build("llama") if kind == "llama" else Sdpa()
    if kind == "llama":
        model.set_attn_implementation("sdpa")
    ids = {"input_ids": torch.arange(4, 22).reshape(2, 9)}
    return model.train(), ids, LAYERS if kind == "llama" else ["model", "model.call2"]


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it compiles
@pytest.mark.parametrize("kind", ["llama", "sdpa"])
@pytest.mark.parametrize("how", ["before", "run before", "after", "in place", "a layer"])
def test_a_compiled_model_is_told_as_it_is_and_keeps_its_graph(kind: str, how: str) -> None:
    model, given, names = model_of(kind)
    with attncli.watch(model, every=3, log=quiet) as plain:
        model(**given)
    graphs = Graphs()
    run = watched = model
    if how == "in place":
        model.compile(backend=graphs)
    elif how == "a layer":
        model.layers[0] = torch.compile(model.layers[0], backend=graphs)
    else:
        run = torch.compile(model, backend=graphs)
        if how != "after":
            watched = run
        if how == "run before":
            run(**given)
    counts = []
    with attncli.watch(watched, every=3, log=quiet) as seen:
        for _ in range(7):
            graphs.runs = 0
            run(**given)
            counts.append(graphs.runs)
    assert [step for step, _ in seen.records] == [0, 3, 6] and seen.passes == 7
    told = [n == 0 for n in counts]
    assert told == [True, False, False, True, False, False, True]
    for _, record in seen.records:
        assert list(record) == names
        for name, found in record.items():
            for statistic, values in found.items():
                want = plain.records[0][1][name][statistic]
                np.testing.assert_allclose(values, want, rtol=1e-5, err_msg=statistic)
    run(**given)
    assert graphs.runs > counts[0] and seen.passes == 7


@pytest.mark.filterwarnings("ignore")
def test_two_watches_take_turns_with_graphs() -> None:
    (one, given, _), (two, other, _) = model_of("llama"), model_of("sdpa")
    graphs = Graphs()
    compiled = torch.compile(one, backend=graphs)
    with (
        attncli.watch(one, every=2, log=quiet) as seen,
        attncli.watch(two, every=1, log=quiet) as always,
    ):
        for _ in range(4):
            compiled(**given)
            two(**other)
    assert [list(record) for _, record in seen.records] == [LAYERS] * 2
    assert len(always.records) == 4


@pytest.mark.filterwarnings("ignore")
def test_attention_that_becomes_unreadable_is_refused_at_its_next_pass() -> None:
    model, given, _ = model_of("llama")
    with attncli.watch(model, every=1, log=quiet) as seen:
        model(**given)
        model.set_attn_implementation("flex_attention")
        with pytest.raises(InputError, match="by 'flex_attention', which is not read here"):
            model(**given)
        model.set_attn_implementation("sdpa")
        model(**given)
    assert len(seen.records) == 2


def test_copies_on_several_devices_are_refused_and_one_is_not() -> None:
    model, given, _ = model_of("llama")
    several = torch.nn.DataParallel(model)
    with attncli.watch(several, every=1, log=quiet) as seen:
        several(**given)
    assert list(seen.records[0][1]) == [f"module.{name}" for name in LAYERS]
    several.device_ids = [0, 1]
    with pytest.raises(InputError, match="copies on 2 devices"):
        attncli.watch(several)


# -- the default log ------------------------------------------------------------------------------


def record(weights: Any, logit: float = 20.0, batch: int = 1) -> dict[str, dict[str, list[float]]]:
    """What is told of one head whose row i looks at key weights[i] alone."""
    at = torch.as_tensor(weights).reshape(batch, -1)
    length = at.shape[1]
    key = torch.eye(length)[None, None].expand(batch, 1, -1, -1)
    query = logit * torch.nn.functional.one_hot(at, length).float()[:, None]
    return {"layer": _told(head_sums(query, key, scale=1.0))}


def said(found: Any, capsys: pytest.CaptureFixture[str]) -> str:
    say(0, found)
    return capsys.readouterr().err


PLACES = {
    "previous": [max(i - 1, 0) for i in range(64)],
    "next": [min(i + 1, 63) for i in range(64)],
    "self": list(range(64)),
    "two before": [max(i - 2, 0) for i in range(64)],
    "first": [0] * 64,
    "last": [63] * 64,
    "a separator": [i // 32 * 31 for i in range(64)],
    "first and previous": [0 if i % 2 else max(i - 1, 0) for i in range(64)],
}


@pytest.mark.parametrize("name", PLACES)
def test_a_head_that_is_sharp_on_a_fixed_place_is_no_warning(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = record(PLACES[name])
    assert found["layer"]["saturated_share"][0] > 0.9
    assert found["layer"]["placed_share"][0] > 0.9
    assert said(found, capsys).startswith("attncli: step 0: 1 layer, largest logit 20")
    large = said(record(PLACES[name], 150.0), capsys)
    assert "100% of its rows have max weight > 0.99" in large and "logit is 150" in large


def test_a_head_that_is_sharp_on_what_it_finds_is(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(torch.randperm(64, generator=torch.Generator().manual_seed(0)))
    assert found["layer"]["placed_share"][0] < 0.5
    assert "100% of its rows have max weight > 0.99" in said(found, capsys)


def test_places_are_those_of_each_text() -> None:
    ends = torch.tensor([[9] * 32, [20] * 32, list(range(32))])
    assert record(ends, batch=3)["layer"]["placed_share"] == pytest.approx([2 / 3 + 1 / 3], rel=0.1)
    mixed = torch.stack([torch.randperm(32, generator=torch.Generator().manual_seed(n))
                         for n in range(3)])  # fmt: skip
    assert record(mixed, batch=3)["layer"]["placed_share"][0] < 0.3


@pytest.mark.parametrize("name", [*PLACES, "content"])
def test_places_are_those_that_verdicts_know(name: str) -> None:
    content = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    at = PLACES.get(name, content)
    key = np.eye(64)[None, None]
    problem = pose(20 * key[:, :, at], key, key, scale=1.0)
    placed = examine(problem, effects=False).heads[0].placed
    assert record(at)["layer"]["placed_share"][0] == pytest.approx(placed, abs=0.1)
