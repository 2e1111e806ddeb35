"""`penult inspect`: the architecture before and after the cut, the head's proof, every tap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from penult.cli.options import NO_OPTIONS, Json, Model, ModelOptions, with_model_options
from penult.cli.output import print_json, print_table, printable, printable_path, stdout, working
from penult.cli.tree import HEAD, draw, draw_cut, draw_graph, draw_graph_cut, readable

if TYPE_CHECKING:
    from penult.embedding.inspect import Inspection


MEANINGS = {
    "sufficient": "the logits depend on this tap alone",
    "partial": "the logits depend on this tap and on other tensors",
    "unused": "the logits do not depend on this tap",
    "not proved": "the logits of the two test inputs differ too little",
}


@with_model_options
def inspect(
    model: Model,
    depth: Annotated[
        int | None, typer.Option(min=1, help="Levels of the module tree to show.")
    ] = None,
    verify: Annotated[
        list[str] | None,
        typer.Option(help="File to prove the head on; give it twice for two files of one shape."),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Module to use as the head, where the search found none.")
    ] = None,
    tap: Annotated[
        list[str] | None,
        typer.Option(help="Further module, or tensor of a graph, to list as a tap; repeatable."),
    ] = None,
    all_taps: Annotated[
        bool, typer.Option("--all-taps", help="Measure every layer, with one forward pass each.")
    ] = False,
    random: Annotated[
        bool,
        typer.Option("--random", help="Use untrained weights, to look at the architecture only."),
    ] = False,
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Show the architecture before and after the cut, the proof of the head, and all taps."""
    from penult.embedding.inspect import InspectionOptions, inspect_model

    options = InspectionOptions(head, tap or (), verify or (), all_taps)
    with working(f"looking into {model}"):
        further = {"random": True} if random else {}
        found = inspect_model(model, options, **model_options, **further)
    if json:
        print_json(found.to_dict())
        return
    _show_facts(found)
    axis = found.axis
    before, after = _before_and_after(found, axis, depth)
    before.label = f"[bold underline]before[/]  {before.label}"
    after.label = f"[bold underline]after[/]   {after.label}"
    for tree in (before, after):
        print_table(tree)
        stdout.print()
    _show_proof(found)
    print_table(_taps_table(found, axis, all_taps))
    _show_meanings(found)


def _show_facts(found: Inspection) -> None:
    facts, labels = found.classifier.describe(), found.classifier.labels
    names = ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
    rate = f" at {facts['rate']:,} Hz" if facts.get("rate") else ""
    stdout.print(
        f"[bold]{escape(facts['class'])}[/]  {facts['modality']}{rate}, {facts['kind']}, "
        f"{facts['classes']} classes ({escape(names)}), "
        f"{readable(facts['parameters'])} parameters\n",
        soft_wrap=True,
    )
    for note in found.notes:
        stdout.print(f"[bold yellow]note[/] {printable(note)}\n", soft_wrap=True)


def _before_and_after(found: Inspection, axis: str, depth: int | None) -> tuple[Tree, Tree]:
    """The module tree, or the graph, with its head and without it."""
    structure = found.classifier.structure
    return _DRAWINGS[structure.engine](structure, found.anatomy, axis, depth)


def _draw_module(structure: Any, anatomy: Any, axis: str, depth: int | None) -> tuple[Tree, Tree]:
    before = draw(structure.module, anatomy.behind, anatomy.head or (), depth)
    return before, draw_cut(structure.module, anatomy.behind, _output_of_cut(anatomy, axis))


def _draw_onnx(structure: Any, anatomy: Any, axis: str, depth: int | None) -> tuple[Tree, Tree]:
    name, cut = structure.describe()["class"], structure.study().cut
    before = draw_graph(cut, name, anatomy, depth)
    return before, draw_graph_cut(cut, name, anatomy, _output_of_cut(anatomy, axis))


_DRAWINGS = {"torch": _draw_module, "onnxruntime": _draw_onnx}  # by the engine of the structure


def _output_of_cut(anatomy: Any, axis: str) -> str:
    tap = anatomy.taps.get("backbone")
    if tap is None:
        return "no hidden states found"
    if not tap.positions:
        return f"{tap.describe(axis)}: a vector of {tap.width} numbers"
    return f"hidden states: {tap.describe(axis)}  →  mean  →  a vector of {tap.width} numbers"


def _show_proof(found: Inspection) -> None:
    """Each check with its figure, the input it was measured on, and remarks."""
    proof = found.certificate
    title = "[bold green]head[/]" if proof.ok else "[bold red]head[/]"
    stdout.print(f"{title} {_in_options(str(proof))}", soft_wrap=True)
    files = " and ".join(printable_path(name) for name in found.proved_on)
    where = f"on {files}" if files else "on a synthetic input; --verify FILE uses a file of yours"
    stdout.print(f"[dim]measured {where}[/]\n", soft_wrap=True)
    if found.anatomy.refusal and found.anatomy.refusal not in proof.refusal:
        stdout.print(f"[bold red]head not found:[/] {_in_options(found.anatomy.refusal)}\n")
    if found.remark:
        stdout.print(f"[bold yellow]note[/] {printable(found.remark)}\n", soft_wrap=True)
    if found.anatomy.mixes_layers:
        stdout.print(
            "[bold]note[/] this model averages all layers with learned weights: the input of the "
            "head is that average (tap [cyan]weighted[/]), not the last hidden states "
            "(tap [cyan]backbone[/]).\n"
        )


def _in_options(text: str) -> str:
    """A message with the names of Python arguments replaced by those of options."""
    return escape(text.replace("(head=)", "(--head)").replace("(output=)", "(--output)"))


def _taps_table(found: Inspection, axis: str, every: bool) -> Table:
    taps = found.anatomy.taps
    table = Table(title="taps", title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in ("tap", "module", "shape of one item", "width", "logits"):
        table.add_column(column, justify="right" if column == "width" else "left")
    layers = [name for name in taps if name.startswith("layer:")]
    folded = [name for name in layers[1:-1] if not every and name not in found.statements]
    for name, tap in taps.items():
        if name in folded:
            if name == folded[0]:
                table.add_row(f"… {len(folded)} more", "", "", "", "[dim]--all-taps[/]")
            continue
        style = HEAD if name == "prelogits" else ""
        table.add_row(
            f"[cyan]{printable(name)}[/]",
            printable(tap.place),
            tap.describe(axis),
            str(tap.width),
            found.statements.get(name, "[dim]not measured[/]"),
            style=style,
        )
    return table


def _show_meanings(found: Inspection) -> None:
    """The meaning of the words that occur in the last column."""
    seen = dict.fromkeys(found.statements.values())
    lines = [f"{word}: {MEANINGS[word]}" for word in MEANINGS if word in seen]
    if lines:
        stdout.print(f"\n[dim]{' · '.join(lines)}[/]", soft_wrap=True)
