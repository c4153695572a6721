"""``attncli multihead``: from hidden states and a layer's weights to heads and output."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attncli.cli import groups, output
from attncli.cli.groups import expected as other
from attncli.cli.groups import multihead as own
from attncli.cli.options import Call, command, mode
from attncli.errors import InputError
from attncli.render import LINES

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.view import Labels, View
    from attncli.cli.given.states import States
    from attncli.models.layer import Layer
    from attncli.reports.blocks import Report


EXAMPLE = "attncli multihead --random-weights 0 --model-dim 8 --heads 2 --tokens 'the cat sat'"


@command(own.DIFFERING)
def multihead(
    call: Call,
    x: own.X = None,
    *,
    weights: own.Weights,
    listing: own.Listing,
    architecture: own.Architecture,
    asked: own.Asked,
    normed: own.InputNorm,
    random: own.Random,
    pictures: own.Pictures,
    saved: groups.Saved,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """From hidden states and pretrained weights to heads and output, without the model's code.

    X is projected to queries, keys and values, each head attends, and the heads' outputs are
    projected back: concat(o_1 … o_H)·W_O. Layers are recognised by the names and shapes of their
    weights and by config.json beside them; what these say of mask, scale, RoPE and the like is
    used and shown, and an option overrides it.

    Prints the layer and how it was recognised, a row a head (what it looks at, its share of the
    output, which head is most like it), how alike the heads are, and the output. With --expect, how
    a layer that was computed elsewhere fares, and what explains it if it is not right.

    \b
    Examples:
      attncli multihead hidden.npy -w checkpoint/ --layer 0
      attncli multihead -w checkpoint/ --list
      attncli multihead x.npy --memory y.npy -w t5/ --layer block.0.layer.1
      attncli multihead x.npy -w ckpt --layer 0 -o q.npz --include query,key,value
      attncli multihead x.npy --random-weights 0 --heads 2 --causal
      attncli multihead hidden.npy -w checkpoint/ --layer 0 --expect mine.npy
    """
    _check_weights(weights, listing, random, x)
    if listing.list_layers:
        return call.run(list_layers)
    page = output.page_of(printed, saved, own.SAVED, drawn)
    output.check_view(page.shown, pictures, top=asked.top, steps=pictures.steps)
    if x is None and random.random_weights is None:
        raise InputError("nothing to project: no X, the hidden states", f"to try it: {EXAMPLE}")
    call.run(checkpoint if random.random_weights is None else learning, call=call, page=page)


@mode("the list of layers (--list)", "leave it out, or leave out --list")
def list_layers(
    *,
    weights: str,
    list_layers: bool,
    architecture: own.Architecture,
    sizes: own.Sizes,
    full: bool,
    printed: groups.Printed,
) -> None:
    """Print every attention layer of the weights."""
    from attncli.models import finding
    from attncli.reports.layers import layers_report

    page = output.page_of(printed)
    found, skipped = finding.every_layer(
        weights, config=architecture.config, arch=architecture.arch, heads=sizes.heads,
        kv_heads=sizes.kv_heads, head_dim=sizes.head_dim, base=architecture.base,
    )  # fmt: skip
    output.finish(layers_report(found, skipped, weights, full=full), page, printed)


@mode("a layer of a checkpoint (--weights)")
def checkpoint(
    call: Call,
    page: output.Page,
    *,
    x: str,
    where: own.Weights,
    architecture: own.Architecture,
    asked: own.Asked,
    input_norm: str,
    pictures: own.Pictures,
    saved: groups.Saved,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Project with the weights of a checkpoint, loaded once for all lines of NDJSON.

    Without ``--weights`` they are those that stand beside X: each line has its own.
    """
    loaded: list[Layer] = []

    def layer_for(given: "States") -> "Layer":
        from attncli.models import finding
        from attncli.models.beside import config_beside

        of = architecture
        beside = where.weights is None or (where.weights == x and config_beside(x) is None)
        if beside or not loaded:
            weights: Any = where.weights
            if beside:
                weights = given.own_weights(EXAMPLE, weights is not None)
            layer = finding.load(
                weights, config=of.config, layer=where.layer, arch=of.arch, base=of.base,
                **given.sizes(),
            )  # fmt: skip
            loaded[:] = [layer]
        return loaded[0]

    how = Projecting(asked, layer_for, page, input_norm=input_norm)
    _project(call, x, how, pictures, printed)


@mode("random weights (--random-weights)", "leave it out, or give --weights in their place")
def learning(
    call: Call,
    page: output.Page,
    *,
    x: str | None,
    random: own.Random,
    asked: own.Asked,
    pictures: own.Pictures,
    saved: groups.Saved,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Project with random weights, and without X with random vectors."""
    how = Projecting(asked, lambda given: given.random_layer(random), page, random)
    _project(call, x, how, pictures, printed)


@dataclass(frozen=True)
class Projecting:
    """How hidden states become a report, whichever way the weights come."""

    asked: own.Asked
    layer_for: Callable[["States"], "Layer"]
    page: output.Page
    random: own.Random | None = None
    input_norm: str = "auto"

    def answer(
        self,
        source: "files.Bundle | None",
        drawn: Mapping[str, Any],
        *,
        machine: bool,
        explain: bool = True,
        progress: Callable[[float], None] | None = None,
    ) -> "tuple[Report, Labels]":
        """Return the report, for a ``machine`` or a reader, and its labels."""
        from attncli.cli.given import states
        from attncli.cli.given.expected import checked_layer, name_of
        from attncli.cli.given.view import view
        from attncli.reports.multihead import layer_wanted, multihead_report
        from attncli.studies import layer
        from attncli.studies.heads import head_facts

        asked, names = self.asked, self.page.names
        given = states.gather_states(source, asked, self.random)
        weights = self.layer_for(given)
        bundle = [weights.bundle.source] if weights.bundle else []
        output.keep_inputs(self.page, [*given.sources, *bundle])

        def shown_of(problem: Any) -> "View":
            return view(problem, asked, top=asked.top, time=asked.time, **drawn)

        made = layer.multihead(
            given.x, weights, **given.arguments, rope=given.rope(weights),
            input_norm=self.input_norm, backend=asked.backend, device=asked.device,
            threads=asked.threads, progress=progress,
            want=lambda p: layer_wanted(
                p, shown_of(p), names, machine and not given.expected
            ),
        )  # fmt: skip
        problem = made.attention.problem
        labels = given.labels(problem, weights)
        judged = checked_layer(made, given.expected, asked, explain=explain)
        facts = head_facts(made, labels.key, labels.query, threads=asked.threads, progress=progress)
        report = multihead_report(
            made, facts, labels, shown_of(problem), names, notes=given.notes_for(weights),
            warnings=given.warnings, counted=self.random is not None,
            judged=judged, name=name_of(judged, given.expected),
        )  # fmt: skip
        return report, labels


def _project(
    call: Call, x: str | None, how: Projecting, pictures: own.Pictures, printed: groups.Printed
) -> None:
    output.say_waiting('{"x": [[…], …]}', x, how.asked.memory)

    from attncli import files, render

    page = how.page
    source = None if x is None else files.read_many(x, lines=page.shown == LINES)
    if isinstance(source, files.Records):
        with closing(source):
            return call.run(lines, records=source, how=how)
    output.demand_place(page, "csv")
    with render.progress("heads") as progress:
        report, labels = how.answer(
            source, vars(pictures), machine=page.machine, explain=how.asked.explain != "none",
            progress=progress,
        )  # fmt: skip
    output.conclude(report, labels, page, printed)


@mode(
    output.IN_LINES, output.LINES_HINT,
    **other.not_of_many(other.Expected, instead='name them in each line: "expected"'),
)  # fmt: skip
def lines(
    records: "files.Records",
    how: Projecting,
    *,
    x: str,
    where: own.Weights,
    architecture: own.Architecture,
    random: own.Random,
    asked: own.Lined,
    input_norm: str,
    include: str | None,
    answers: groups.Format,
) -> None:
    """Print a line of JSON for each line that holds hidden states."""
    output.demand_lines(answers.format)
    explained = other.Explained(asked.explain)

    def answer(one: "files.Bundle") -> "Report":
        kind = one.options.get("kind")
        report = how.answer(one, {}, machine=True, explain=explained.wants(kind))[0]
        explained.saw(kind, failed=bool(report.exit_code))
        return report

    output.stream_answers(records, answer, "multihead")


def _check_weights(
    where: own.Weights, listing: own.Listing, random: own.Random, x: str | None
) -> None:
    """Raise InputError unless it is said, once, where the weights come from; X may hold them."""
    weights, seed = where.weights, random.random_weights
    if weights is not None and seed is not None:
        raise InputError("--weights and --random-weights are both given", "leave one of them out")
    if weights is None and listing.list_layers:
        raise InputError("--list needs --weights", "as in: attncli multihead -w FOLDER --list")
    if weights is None and seed is None and x is None:
        raise InputError(
            "nothing says where the weights are: no --weights",
            f"-w FILE or FOLDER; or, without a checkpoint: {EXAMPLE}",
        )
    if random.model_dim is not None and seed is None:
        raise InputError(
            "--model-dim is given without --random-weights", "weights from a file have a width"
        )
    if where.layer is not None and seed is not None:
        raise InputError("--layer is given with --random-weights", "these are one layer")
