"""``attncli multihead``: from hidden states and a layer's weights to heads and output."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attncli.attention.words import ROPE_STYLES
from attncli.cli import groups, output
from attncli.cli.groups import Text
from attncli.cli.options import WEIGHTS, Call, Group, command, mode, one_of, option, said
from attncli.errors import InputError
from attncli.render import LINES
from attncli.reports.words import INCLUDABLE

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.view import Labels, View
    from attncli.cli.given.states import States
    from attncli.models.layer import Layer
    from attncli.reports.blocks import Report


SAVED = ("output", "heads", "concat", *(name for name in INCLUDABLE if name != "output"))
EXAMPLE = "attncli multihead --random-weights 0 --model-dim 8 --heads 2 --tokens 'the cat sat'"

X = Annotated[
    Text,
    typer.Argument(
        metavar="[X]", show_default=False,
        help="Hidden states (L, E) or (B, L, E): a tensor, or a file that names them "
        "hidden_states or x; - is standard input. With --random-weights, --model-dim and --tokens "
        "a random vector for each word.",
    ),
]  # fmt: skip


class Weights(Group, panel=WEIGHTS):
    """Where the weights are."""

    weights: Annotated[
        Text,
        option(
            "-w", metavar="REF",
            help="A file, a checkpoint's folder, or its part: PATH::PREFIX. Also a bundle with "
            "wq, wk, wv, wo (out, in) and bq … bo.",
        ),
    ] = None  # fmt: skip
    layer: Annotated[
        Text,
        option(metavar="N|NAME", help="Which layer, by its number or (a part of) its name."),
    ] = None


class Listing(Group, panel=WEIGHTS):
    """What layers there are."""

    list_layers: Annotated[
        bool, option("--list", help="List every attention layer of the weights; needs no X.")
    ] = False


class Architecture(Group, panel=WEIGHTS):
    """How the weights are to be understood."""

    arch: Annotated[
        str,
        option(
            metavar="auto|MODEL_TYPE",
            help="A model_type in place of config.json's, such as llama or gpt2.",
        ),
    ] = "auto"
    config: Annotated[
        Text,
        option(metavar="FILE", help="The config.json, when it is not beside the weights."),
    ] = None


class Asked(groups.Projection, groups.Engine, groups.Timing, groups.Part):
    """All that one answer depends on, besides the weights."""


class Pictures(groups.Heatmap, groups.Full):
    """How tables and maps are drawn."""


DIFFERING = groups.LINES_TOO | {
    "heads": said(
        panel=WEIGHTS, help="How many heads, when config.json and the weights do not say."
    ),
    "kv_heads": said(panel=WEIGHTS),
    "mask": said(
        metavar="EXPR|none", help="In place of the layer's own mask; repeatable: all must allow."
    ),
    "attn_mask": said(
        help="A mask tensor besides the layer's own: bool, or float that is added. (L, Lk), "
        "(H, L, Lk), torch's (B·H, L, Lk) or (B, H, L, Lk)."
    ),
    "mask_polarity": said(
        help="What True means in these two (default: keep, as in transformers and SDPA; "
        "torch.nn.MultiheadAttention's mean ignore)."
    ),
    "scale": said(help="Factor of the scores (default: the layer's; auto is 1/√D)."),
    "softcap": said(help="c·tanh(score/c), before the mask; 0 is none (default: the layer's)."),
    "sink": said(
        help="An extra logit per head, without a value; -inf is none (default: the layer's)."
    ),
    "rope": said(
        **one_of(*ROPE_STYLES, "none"),
        help="How queries and keys turn (default: the layer's; the options below change parts of "
        "that).",
    ),
    "include": said(
        autocompletion=lambda: list(SAVED),
        help=f"What to save and to put into JSON: {', '.join(SAVED)} (default: output). With "
        "query,key,value compute and inspect read it. In JSON, heads are each head's output.",
    ),
}


@command(DIFFERING)
def multihead(
    call: Call,
    x: X = None,
    *,
    weights: Weights,
    listing: Listing,
    architecture: Architecture,
    asked: Asked,
    random: groups.Random,
    pictures: Pictures,
    saved: groups.Saved,
    printed: groups.Printed,
) -> None:
    """From hidden states and pretrained weights to heads and output, without the model's code.

    X is projected to queries, keys and values, each head attends, and the heads' outputs are
    projected back: concat(o_1 … o_H)·W_O. Layers are recognised by the names and shapes of their
    weights and by config.json beside them; what these say of mask, scale, RoPE and the like is
    used and shown, and an option overrides it.

    Prints the layer and how it was recognised, a row a head (what it looks at, its share of the
    output, which head is most like it), how alike the heads are, and the output.

    \b
    Examples:
      attncli multihead hidden.npy -w checkpoint/ --layer 0
      attncli multihead -w checkpoint/ --list
      attncli multihead x.npy --memory y.npy -w t5/ --layer block.0.layer.1
      attncli multihead x.npy -w ckpt -o qkv.json --include query,key,value
      attncli multihead x.npy --random-weights 0 --heads 2 --causal
    """
    _check_weights(weights, listing, random)
    if listing.list_layers:
        return call.run(list_layers)
    page = output.page_of(printed, saved, SAVED)
    output.check_view(page.shown, top=asked.top, heatmap=pictures.heatmap, steps=False)
    if x is None and random.random_weights is None:
        raise InputError("nothing to project: no X, the hidden states", f"to try it: {EXAMPLE}")
    call.run(checkpoint if random.random_weights is None else learning, call=call, page=page)


@mode("the list of layers (--list)", "leave it out, or leave out --list")
def list_layers(
    *,
    weights: str,
    list_layers: bool,
    architecture: Architecture,
    sizes: groups.Sizes,
    full: bool,
    printed: groups.Printed,
) -> None:
    """Print every attention layer of the weights."""
    from attncli.models import finding
    from attncli.reports.layers import layers_report

    page = output.page_of(printed)
    found, skipped = finding.every_layer(
        weights, config=architecture.config, arch=architecture.arch, heads=sizes.heads,
        kv_heads=sizes.kv_heads, head_dim=sizes.head_dim,
    )  # fmt: skip
    output.finish(layers_report(found, skipped, weights, full=full), page, printed)


@mode("a layer of a checkpoint (--weights)")
def checkpoint(
    call: Call,
    page: output.Page,
    *,
    x: str,
    where: Weights,
    architecture: Architecture,
    asked: Asked,
    pictures: Pictures,
    saved: groups.Saved,
    printed: groups.Printed,
) -> None:
    """Project with the weights of a checkpoint, loaded once for all lines of NDJSON."""
    loaded: list[Layer] = []

    def layer_for(given: "States") -> "Layer":
        from attncli.models import finding

        if not loaded:
            assert where.weights is not None
            sizes, of = given.sizes(), architecture
            loaded.append(
                finding.load(
                    where.weights, config=of.config, layer=where.layer, arch=of.arch, **sizes
                )
            )
        return loaded[0]

    _project(call, x, Projecting(asked, layer_for, page), pictures, printed)


@mode("random weights (--random-weights)", "leave it out, or give --weights in their place")
def learning(
    call: Call,
    page: output.Page,
    *,
    x: str | None,
    random: groups.Random,
    asked: Asked,
    pictures: Pictures,
    saved: groups.Saved,
    printed: groups.Printed,
) -> None:
    """Project with random weights, and without X with random vectors."""
    how = Projecting(asked, lambda given: given.random_layer(random), page, random)
    _project(call, x, how, pictures, printed)


@dataclass(frozen=True)
class Projecting:
    """How hidden states become a report, whichever way the weights come."""

    asked: Asked
    layer_for: Callable[["States"], "Layer"]
    page: output.Page
    random: groups.Random | None = None

    def answer(
        self,
        source: "files.Bundle | None",
        drawn: Mapping[str, Any],
        *,
        machine: bool,
        progress: Callable[[float], None] | None = None,
    ) -> "tuple[Report, Labels]":
        """Return the report, for a ``machine`` or a reader, and its labels."""
        from attncli.cli.given import states
        from attncli.cli.given.view import view
        from attncli.reports.multihead import layer_wanted, multihead_report
        from attncli.studies import layer
        from attncli.studies.heads import head_facts

        asked, names = self.asked, self.page.names
        given = states.gather_states(source, asked, self.random)
        own = self.layer_for(given)
        bundle = [own.bundle.source] if own.bundle else []
        output.keep_inputs(self.page.target, [*given.sources, *bundle])

        def shown_of(problem: Any) -> "View":
            return view(problem, asked, top=asked.top, time=asked.time, **drawn)

        made = layer.multihead(
            given.x, own, **given.arguments, rope=given.rope(own), backend=asked.backend,
            device=asked.device, threads=asked.threads, progress=progress,
            want=lambda p: layer_wanted(p, shown_of(p), names, machine),
        )  # fmt: skip
        problem = made.attention.problem
        labels = given.labels(problem, own)
        facts = head_facts(made, labels.key, threads=asked.threads, progress=progress)
        report = multihead_report(
            made, facts, labels, shown_of(problem), names, notes=given.notes_for(own),
            warnings=given.warnings, counted=self.random is not None,
        )  # fmt: skip
        return report, labels


def _project(
    call: Call, x: str | None, how: Projecting, pictures: Pictures, printed: groups.Printed
) -> None:
    output.say_waiting('{"x": [[…], …]}', x, how.asked.memory)

    from attncli import files, render
    from attncli.studies.bundle import flags_of

    page = how.page
    source = None if x is None else files.read_many(x, lines=page.shown == LINES)
    if isinstance(source, files.Records):
        with closing(source):
            return call.run(lines, records=source, how=how)
    output.demand_place(page, "csv")
    with render.progress("heads") as progress:
        report, labels = how.answer(source, vars(pictures), machine=page.machine, progress=progress)
    render.show_warnings(report.warnings)
    advice = ""
    if page.target:
        output.save(page.target, report, labels)
        if report.options and page.target.suffix == ".npz":
            advice = f"it holds no options: read it with {flags_of(report.options)}"
    output.finish(report, page, printed, advice)


@mode(output.IN_LINES, output.LINES_HINT)
def lines(
    records: "files.Records",
    how: Projecting,
    *,
    x: str,
    where: Weights,
    architecture: Architecture,
    random: groups.Random,
    asked: Asked,
    include: str | None,
    answers: groups.Format,
) -> None:
    """Print a line of JSON for each line that holds hidden states."""
    output.demand_lines(answers.format)
    output.stream_answers(records, lambda one: how.answer(one, {}, machine=True)[0], "multihead")


def _check_weights(where: Weights, listing: Listing, random: groups.Random) -> None:
    """Raise InputError unless it is said, once, where the weights come from."""
    weights, seed = where.weights, random.random_weights
    if weights is not None and seed is not None:
        raise InputError("--weights and --random-weights are both given", "leave one of them out")
    if weights is None and listing.list_layers:
        raise InputError("--list needs --weights", "as in: attncli multihead -w FOLDER --list")
    if weights is None and seed is None:
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
