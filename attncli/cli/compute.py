"""``attncli compute``: from files and flags to a report."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from attncli.cli import groups, output, ranks
from attncli.cli.groups import compute as own
from attncli.cli.groups import divided
from attncli.cli.groups import expected as other
from attncli.cli.groups.model import Given
from attncli.cli.options import Call, Mode, command, mode
from attncli.cli.parts import merge, one_part
from attncli.errors import InputError
from attncli.render import LINES

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.problem import Problem
    from attncli.attention.view import Labels, View
    from attncli.cli.given.attention import Inputs
    from attncli.cli.given.model import Called
    from attncli.reports.blocks import Report
    from attncli.studies.attend import Result


EXAMPLE = """echo '{"query": [[1, 0]], "key": [[1, 0], [0, 1]]}' | attncli compute -"""


class Answered(groups.Engine, groups.Gradient, groups.Timing, other.Judging, groups.Part):
    """What the answer to a problem depends on besides the problem."""


class Lined(groups.Problem, groups.Softmax, Answered):
    """All that the answer to a line depends on."""


class Asked(other.Expected, other.ExpectedGradients, Lined):
    """All that one answer depends on."""


class OfModel(groups.Labels, other.Expected, other.ExpectedGradients, Answered):
    """What the answer to a model's own problem depends on."""


class Tested(own.Cases, own.Candidate):
    """A kernel's test set, and whose answers to it are judged."""


class Pictures(groups.Shades, groups.Steps, groups.Full):
    """How tables and maps are drawn."""


@command(groups.LINES_TOO)
def compute(
    call: Call,
    bundle: groups.Bundle = None,
    command: own.Command = None,
    *,
    asked: Asked,
    where: own.Layer,
    given: Given,
    shared: divided.Shard,
    part: divided.Part,
    parts: divided.Merge,
    tested: Tested,
    pictures: Pictures,
    saved: groups.Saved,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Attention of Q, K, V: weights, output, stability statistics.

    Each query is compared with all keys; the softmax of these scores are the weights, and the
    output is the mean of the values under these weights: softmax(Q·Kᵀ/√D)·V.

    BUNDLE is a file that holds query, key and value (or q, k, v) by name, or a single tensor for
    self-attention: JSON, .npy, .npz, .safetensors or a PyTorch file. A missing value is the key,
    a missing key is the query. Shapes are (L, D), (H, L, D) or (B, H, L, D). Options on the
    command line win over options in a JSON file.

    BUNDLE that is a folder of transformers, with --text and --layer: what this layer of its model
    computes when it reads the text.

    With NDJSON, one problem a line, the results are NDJSON too, each with the number of its line.

    --expect judges an output that was computed elsewhere, by the error that rounding makes, and
    says which convention or fault explains it if it is not right.

    --cases writes a test set for kernels. Answers to it, in a folder (--candidate) or of a command
    that reads each problem and writes its output, are judged case by case; exit 1 if one fails.

    What no single machine holds: torchrun with --shard, or --part 1/2 and so on, and --merge.

    \b
    Examples:
      attncli compute qkv.npz --causal
      attncli compute -q q.npy -k k.npy -v v.npy -o out.npz
      attncli compute x.json --tokens 'the cat sat' --steps
      echo '{"query": [[1, 0]], "key": [[1, 0], [0, 1]]}' | attncli compute -
      attncli compute qkv.npz --causal --expect mine.npy
      attncli compute MiniLM/ --text 'the cat sat' --layer 0 --head 2
      attncli compute --cases tests.jsonl
      attncli compute tests.jsonl --timeout 10 -- python3 my_kernel.py
    """
    if tested.cases is not None:
        return call.run(write_cases)
    if parts.merge:
        return call.run(merge)
    if command or tested.candidate is not None:
        return _judge(call, judge_command if command else judge_folder, bundle)
    page = output.page_of(printed, saved, drawn=drawn)
    output.check_view(page.shown, pictures, top=asked.top, steps=pictures.steps)
    if given.runs_model:
        return call.run(reading, source=bundle, page=page)
    if bundle is None and asked.query is None:
        raise InputError("nothing to compute: no BUNDLE and no --query", f"try: {EXAMPLE}")
    output.say_waiting('{"query": [[…], …], …}', bundle, asked.query)

    ranks.meet(shared.shard, asked.device)

    from attncli import files

    source = None if bundle is None else files.read_many(bundle, lines=page.shown == LINES)
    if isinstance(source, files.Records):
        with closing(source):
            return call.run(lines, records=source, page=page)
    if where.layer is not None:
        from attncli.cli.given.many import choose

        source = choose(source, where.layer)
    if part.part is not None:
        return call.run(one_part, source=source)
    call.run(one, source=source, page=page)


@mode("one problem")
def one(
    source: "files.Bundle | None",
    page: output.Page,
    *,
    bundle: str | None,
    asked: Asked,
    where: own.Layer,
    shared: divided.Shard,
    pictures: Pictures,
    saved: groups.Saved,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Print, or save, the answer to one problem."""
    output.demand_place(page, "csv")
    from attncli import render
    from attncli.cli.given import attention

    with render.progress() as progress:
        report, labels = _answer(
            attention.gather(source, asked), asked, page, vars(pictures), machine=page.machine,
            explain=asked.explain != "none", shard=shared.shard, progress=progress,
        )  # fmt: skip
    output.conclude(report, labels, page, printed)


@mode(
    "an attention call of a model",
    "the model says what it computes; of a capture it can be changed: "
    "attncli inspect MODEL --text … -o capture.safetensors",
)
def reading(
    source: str | None,
    page: output.Page,
    *,
    bundle: str | None,
    given: Given,
    dtype: str | None,
    where: own.Layer,
    asked: OfModel,
    pictures: Pictures,
    saved: groups.Saved,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Print, or save, what one layer of a model computes when it reads something."""
    output.demand_place(page, "csv")
    if source is None:
        raise InputError(
            "--text and the like are for a model, and there is none",
            "attncli compute FOLDER --text 'the cat sat' --layer 0",
        )

    from attncli import render
    from attncli.cli.given.model import call, sources
    from attncli.resources import stages

    output.keep_inputs(page, sources(source, given))
    with render.progress() as progress:
        model, own = stages(progress, (2, 1))
        report, labels = _answer(
            call(source, given, where.layer, asked, dtype, model), asked, page, vars(pictures),
            machine=page.machine, explain=asked.explain != "none", progress=own,
        )  # fmt: skip
    output.conclude(report, labels, page, printed)


IN_EACH = '--candidate DIR judges many, and so does "expected" in each line'


@mode(
    output.IN_LINES, output.LINES_HINT,
    **other.not_of_many(other.Expected, other.ExpectedGradients, instead=IN_EACH),
)  # fmt: skip
def lines(
    records: "files.Records",
    page: output.Page,
    *,
    bundle: str,
    asked: Lined,
    include: str | None,
    answers: groups.Format,
) -> None:
    """Print a line of JSON for each line that holds a problem."""
    output.demand_lines(answers.format)
    from attncli.cli.given import attention
    from attncli.cli.given.alike import Ahead
    from attncli.studies import together

    explained = other.Explained(asked.explain)

    def solve(first: "Asking[Inputs]", whole: "Problem") -> "list[Result]":
        if not together.WANTED.issuperset(first.want):
            return []
        return together.solve(
            first.problem, whole, want=first.want, backend=asked.backend, device=asked.device,
            threads=asked.threads,
        )  # fmt: skip

    ahead = Ahead(
        lambda one: _ask(attention.gather(one, asked), asked, page, {}, machine=True), solve
    )

    def alone(one: "files.Bundle") -> "Report":
        kind, given = one.options.get("kind"), attention.gather(one, asked)
        report = _answer(given, asked, page, {}, machine=True, explain=explained.wants(kind))[0]
        explained.saw(kind, failed=bool(report.exit_code))
        return report

    def answer(one: "files.Bundle") -> "Report":
        found = ahead.answer(one)
        return _report(*found, asked, page, machine=True) if found else alone(one)

    if asked.time:
        output.stream_answers(records, alone)
    else:
        output.stream_answers(records, answer, heard=ahead.hear)


@mode("a test set (--cases)", "leave it out: --cases writes problems of its own")
def write_cases(*, cases: str, seed: int, printed: groups.Printed) -> None:
    """Write a kernel's test set, and print what is in it."""
    page = output.page_of(printed)

    from attncli import render
    from attncli.reports.cases import written_report
    from attncli.studies.cases import writing

    with render.progress("cases") as progress:
        written = writing.write(cases, seed, progress)
    for path in (written.lines, written.tensors):
        output.say_wrote(path, ["cases" if path == written.lines else "their tensors"])
    output.finish(written_report(written, seed), page, printed)


OTHERS = "the answers of somebody else"
OTHERS_HINT = "leave it out: each case is judged, and the sums are printed"


@mode(f"{OTHERS} (--candidate)", OTHERS_HINT)
def judge_folder(
    source: "files.Bundle | files.Records",
    *,
    bundle: str,
    asked: own.Others,
    candidate: str,
    printed: groups.Printed,
) -> None:
    """Print how the answers in a folder went."""
    from attncli.cli.judging import judge
    from attncli.studies.cases.candidates import Folder

    judge(source, asked, Folder(candidate), printed)


@mode(f"{OTHERS} (-- COMMAND)", OTHERS_HINT)
def judge_command(
    source: "files.Bundle | files.Records",
    *,
    bundle: str,
    command: list[str],
    asked: own.Others,
    timeout: float | None,
    printed: groups.Printed,
) -> None:
    """Print how the answers of a command went."""
    from attncli.cli.judging import judge
    from attncli.studies.cases.commands import Command

    judge(source, asked, Command(command, timeout or own.TIMEOUT), printed)


def _judge(call: Call, chosen: Mode, bundle: str | None) -> None:
    """Read the problems and do what is chosen."""
    call.check(chosen)
    if bundle is None:
        raise InputError("there are no cases to judge", "name them: attncli compute FILE.jsonl …")
    output.say_waiting('{"query": [[…], …], …}', bundle)

    from attncli import files

    source = files.read_many(bundle)
    with closing(source) if isinstance(source, files.Records) else nullcontext():
        call.run(chosen, source=source)


G = TypeVar("G", bound="Inputs | Called")


class Asking(NamedTuple, Generic[G]):
    """What one answer is made from: what was given, the problem, and what is wanted of it."""

    given: G
    problem: "Problem"
    labels: "Labels"
    part: "View"
    upstream: Any
    want: set[str]


def _ask(
    given: G,
    asked: Answered,
    page: output.Page,
    drawn: Mapping[str, Any],
    *,
    machine: bool,
    shard: str | None = None,
) -> Asking[G]:
    """Pose one problem, whose answer is for a ``machine`` or a reader."""
    from attncli.cli.given.attention import upstream as upstream_of
    from attncli.cli.given.view import view
    from attncli.reports import arrays

    output.keep_inputs(page, given.sources)
    problem = ranks.divided(shard, asked.device, given.pose)
    labels = given.labels(problem)
    part = view(problem, asked, top=asked.top, time=asked.time, **drawn)
    upstream = given.grad_output
    if asked.grad_output is not None:
        upstream = upstream_of(asked.grad_output)
    ours = machine and not given.expected  # whole arrays, though nobody named them
    want = arrays.wanted(problem, part, page.names, ours, upstream is not None)
    return Asking(given, problem, labels, part, upstream, want)


def _answer(
    given: "Inputs | Called",
    asked: Answered,
    page: output.Page,
    drawn: Mapping[str, Any],
    *,
    machine: bool,
    explain: bool = True,
    shard: str | None = None,
    progress: Callable[[float], None] | None = None,
) -> "tuple[Report, Labels]":
    """Return the report on one problem, for a ``machine`` or a reader, and its labels."""
    from attncli.studies import attend

    asking = _ask(given, asked, page, drawn, machine=machine, shard=shard)
    upstream = asking.upstream
    result = attend.solve(
        asking.problem, backend=asked.backend, device=asked.device, threads=asked.threads,
        want=asking.want, grad_output="ones" if upstream is None else upstream, progress=progress,
    )  # fmt: skip
    ranks.rest()
    report = _report(
        asking, result, asked, page, machine=machine, explain=explain, progress=progress
    )
    return report, asking.labels


def _report(
    asking: Asking[Any],
    result: "Result",
    asked: Answered,
    page: output.Page,
    *,
    machine: bool,
    explain: bool = True,
    progress: Callable[[float], None] | None = None,
) -> "Report":
    """Return the report on a result, judged where somebody else's was given."""
    from attncli.cli.given.expected import checked, name_of
    from attncli.reports.compute import compute_report

    expected = asking.given.expected
    judged = checked(asking.problem, expected, asked, asking.upstream, explain=explain)
    return compute_report(
        result, asking.labels, asking.part, page.names, notes=asking.given.notes,
        progress=progress, machine=machine and not page.pictures, judged=judged,
        name=name_of(judged, expected),
    )  # fmt: skip
