"""``attncli inspect FOLDER --text``: a model reads a text, and every head of it is examined."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from typing import TYPE_CHECKING, Any

from attncli.cli import groups, output
from attncli.cli.groups import inspect as own
from attncli.cli.options import mode
from attncli.errors import InputError

if TYPE_CHECKING:
    from attncli.attention.problem import Problem
    from attncli.attention.view import Labels
    from attncli.studies.model.loading import Loaded


@mode("a model that reads a text (--text, --ids)")
def reading(
    *,
    bundle: str,
    given: own.Given,
    dtype: str | None,
    verdicts: own.Verdicts,
    where: own.Layers,
    elements: groups.Elements,
    picked: own.Picked,
    map: str | None,
    engine: groups.Engine,
    seed: int,
    full: bool,
    printed: groups.Printed,
) -> None:
    """Print one report on the heads of all layers."""
    page = output.page_of(printed)

    from attncli import render
    from attncli.reports.many import asked_of_heads, many_report
    from attncli.studies.many import Many
    from attncli.studies.model import loading
    from attncli.studies.model.capture import capture

    asked = asked_of_heads(filters=picked.filter or (), sort=picked.sort, map=map)
    limits = verdicts.limits()
    with render.progress("layers") as progress:
        loaded = loading.load(bundle, dtype=dtype, device=engine.device)
        batch = _batch(loaded, given)
        rows = int(batch["input_ids"].shape[0])
        many = Many(
            policy=limits, seed=seed, backend=engine.backend, device=engine.device,
            threads=engine.threads, batches=_batches(elements.batch, rows),
        )  # fmt: skip

        def told(path: str, problem: "Problem", labels: "Labels") -> None:
            many.add(path, problem, labels)
            progress(min(len(many.layers) / max(len(seen.short), 1), 1))

        with capture(
            loaded.model, told=told, words=loaded.tokenizer, backend=engine.backend,
            device=engine.device, threads=engine.threads,
        ) as seen:  # fmt: skip
            loading.run(loaded, batch)
    report = many_report(
        many, layer=where.layer, head=elements.head, asked=asked, fail_on=verdicts.fail_on,
        full=full, sources=[bundle], facts=_facts(loaded, batch), warnings=loaded.warnings,
    )  # fmt: skip
    render.show_warnings(report.warnings)
    output.finish(report, page, printed)


def _batch(loaded: "Loaded", given: own.Given) -> dict[str, Any]:
    """Return what the model reads."""
    from attncli import files
    from attncli.studies.model import loading

    if given.ids is None:
        return loading.read_texts(loaded, [loading.text_of(one) for one in given.text or ()])
    if given.text is not None:
        raise InputError("--text and --ids are two ways to say what the model reads", "choose one")
    return loading.read_ids(loaded, files.read_tensor(given.ids))


def _batches(batch: str | None, rows: int) -> list[int] | None:
    """Return the batch elements that are judged one by one, or None for all together."""
    if batch is None:
        return None
    from attncli.reports.selection import selection

    return [int(b) for b in selection("--batch", batch, rows) or ()]


def _facts(loaded: "Loaded", batch: dict[str, Any]) -> list[str]:
    kind = type(loaded.model).__name__
    tokens = int(batch["attention_mask"].sum())
    texts = int(batch["input_ids"].shape[0])
    many = f"{texts} texts of {tokens} tokens" if texts > 1 else f"{tokens} tokens"
    return [kind, many, f"its attention computed here, the rest by transformers in {loaded.dtype}"]
