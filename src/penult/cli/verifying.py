"""`penult verify`: how well pairs are told apart as same or different."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from penult.cli.collections import Where
from penult.cli.options import Device, Json
from penult.cli.output import emit, shown, stdout, working


def verify(
    collection: Annotated[Path, typer.Argument(help="A collection, for example voices.lance.")],
    pair: Annotated[
        list[str] | None,
        typer.Argument(help="Two files or ids of rows: the same, by this threshold?"),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="What is the same: a column, folder, a pattern such as '{}_*', labels or label."
        ),
    ] = "labels",
    groups: Annotated[
        str | None,
        typer.Option(help="Two rows of one group (a recording, a session) are never compared."),
    ] = None,
    where: Where = None,
    space: Annotated[
        str, typer.Option(help="Recipe of the space: raw, centre, scale+l2, auto, …")
    ] = "auto",
    false_accepts: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Also what is missed at this rate of them.")
    ] = 0.01,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure how well pairs are told apart as same or different: equal error rate, threshold."""
    from penult.classspace.verifying import same_or_different, verify_collection
    from penult.errors import UsageError
    from penult.store.collection import Collection

    if pair and len(pair) != 2:
        raise UsageError(f"a pair is two files or rows; received {len(pair)}. Give two, or none")
    opened = Collection.open(collection, must_exist=True)
    with working("comparing"):
        found, fitted = verify_collection(opened, by, groups, where, space, false_accepts)
        alike = same_or_different(opened, fitted, pair, device) if pair else None
    same = None if alike is None else alike >= found.threshold
    if json:
        emit({"collection": str(collection), "by": by, "groups": groups, "space": fitted.recipe,
              **found.to_dict(), "pair": pair, "similarity": alike, "same_name": same})  # fmt: skip
        return
    stdout.print(
        f"equal error rate [bold]{100 * found.eer:.1f} %[/] (95 %: {100 * found.low:.1f} to "
        f"{100 * found.high:.1f}), at cosine {found.threshold:.4f}; area under the curve "
        f"{found.auc:.4f}",
        soft_wrap=True,
    )
    stdout.print(
        f"at {100 * false_accepts:g} % false accepts (cosine {found.strict:.4f}) "
        f"{100 * found.missed:.1f} % of the same are missed",
        soft_wrap=True,
    )
    stdout.print(
        f"[dim]{found.same:,} pairs of the same {shown(by)}, {found.different:,} of different "
        f"ones, {found.names:,} names; space {fitted.recipe}[/]",
        soft_wrap=True,
    )
    if alike is not None:
        stdout.print(f"[bold]{'same' if same else 'different'}[/]: cosine {alike:.4f}")


COMMANDS = (verify,)
