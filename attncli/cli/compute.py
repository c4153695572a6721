"""``attncli compute``: from files and flags to a report."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

from attncli.cli import groups, output
from attncli.cli.options import Call, command, mode
from attncli.errors import InputError
from attncli.render import LINES

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.view import Labels
    from attncli.reports.blocks import Report


EXAMPLE = """echo '{"query": [[1, 0]], "key": [[1, 0], [0, 1]]}' | attncli compute -"""


class Asked(
    groups.Problem, groups.Softmax, groups.Engine, groups.Gradient, groups.Timing, groups.Part
):
    """All that one answer depends on."""


class Pictures(groups.Heatmap, groups.Steps, groups.Full):
    """How tables and maps are drawn."""


@command(groups.LINES_TOO)
def compute(
    call: Call,
    bundle: groups.Bundle = None,
    *,
    asked: Asked,
    pictures: Pictures,
    saved: groups.Saved,
    printed: groups.Printed,
) -> None:
    """Attention of Q, K, V: weights, output, stability statistics.

    Each query is compared with all keys; the softmax of these scores are the weights, and the
    output is the mean of the values under these weights: softmax(Q·Kᵀ/√D)·V.

    BUNDLE is a file that holds query, key and value (or q, k, v) by name, or a single tensor for
    self-attention: JSON, .npy, .npz, .safetensors or a PyTorch file. A missing value is the key,
    a missing key is the query. Shapes are (L, D), (H, L, D) or (B, H, L, D). Options on the
    command line win over options in a JSON file.

    With NDJSON, one problem a line, the results are NDJSON too, each with the number of its line.

    \b
    Examples:
      attncli compute qkv.npz --causal
      attncli compute -q q.npy -k k.npy -v v.npy -o out.npz
      attncli compute x.json --tokens 'the cat sat' --steps
      echo '{"query": [[1, 0]], "key": [[1, 0], [0, 1]]}' | attncli compute -
    """
    page = output.page_of(printed, saved)
    output.check_view(page.shown, top=asked.top, heatmap=pictures.heatmap, steps=pictures.steps)
    if bundle is None and asked.query is None:
        raise InputError("nothing to compute: no BUNDLE and no --query", f"try: {EXAMPLE}")
    output.say_waiting('{"query": [[…], …], …}', bundle, asked.query)

    from attncli import files

    source = None if bundle is None else files.read_many(bundle, lines=page.shown == LINES)
    if isinstance(source, files.Records):
        with closing(source):
            return call.run(lines, records=source, page=page)
    call.run(one, source=source, page=page)


@mode("one problem")
def one(
    source: "files.Bundle | None",
    page: output.Page,
    *,
    bundle: str | None,
    asked: Asked,
    pictures: Pictures,
    saved: groups.Saved,
    printed: groups.Printed,
) -> None:
    """Print, or save, the answer to one problem."""
    output.demand_place(page, "csv")
    from attncli import render

    with render.progress() as progress:
        report, labels = _answer(
            source, asked, page, vars(pictures), machine=page.machine, progress=progress
        )
    output.conclude(report, labels, page, printed)


@mode(output.IN_LINES, output.LINES_HINT)
def lines(
    records: "files.Records",
    page: output.Page,
    *,
    bundle: str,
    asked: Asked,
    include: str | None,
    answers: groups.Format,
) -> None:
    """Print a line of JSON for each line that holds a problem."""
    output.demand_lines(answers.format)
    output.stream_answers(records, lambda one: _answer(one, asked, page, {}, machine=True)[0])


def _answer(
    source: "files.Bundle | None",
    asked: Asked,
    page: output.Page,
    drawn: Mapping[str, Any],
    *,
    machine: bool,
    progress: Callable[[float], None] | None = None,
) -> "tuple[Report, Labels]":
    """Return the report on one problem, for a ``machine`` or a reader, and its labels."""
    from attncli.cli.given import attention
    from attncli.cli.given.view import view
    from attncli.reports import arrays
    from attncli.reports.compute import compute_report
    from attncli.studies import attend

    given = attention.gather(source, asked)
    output.keep_inputs(page.target, given.sources)
    problem = given.pose()
    labels = given.labels(problem)
    part = view(problem, asked, top=asked.top, time=asked.time, **drawn)
    upstream = given.grad_output
    if asked.grad_output is not None:
        upstream = attention.upstream(asked.grad_output)
    want = arrays.wanted(problem, part, page.names, machine, upstream is not None)
    result = attend.solve(
        problem, backend=asked.backend, device=asked.device, threads=asked.threads, want=want,
        grad_output="ones" if upstream is None else upstream, progress=progress,
    )  # fmt: skip
    report = compute_report(result, labels, part, page.names, notes=given.notes, progress=progress)
    return report, labels
