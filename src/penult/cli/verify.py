"""`penult verify`: pairs of a collection's rows as same or different, or the trials of a file."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penult.cli.collection import Where
from penult.cli.options import (
    ChannelOfRows,
    Device,
    End,
    Json,
    Overwrite,
    Start,
    check_output,
    query_part,
)
from penult.cli.output import print_json, print_note, printable, stdout, working
from penult.errors import UsageError

if TYPE_CHECKING:
    from penult.analysis.verification import Verification
    from penult.collection.collection import Collection
    from penult.fewshot.trials import TrialSettings


_TRIALS = "target trials", "nontarget trials"


def verify(
    collection: Annotated[Path, typer.Argument(help="A collection, for example voices.lance.")],
    pair: Annotated[
        list[str] | None,
        typer.Argument(help="Two files or ids of rows to compare at the measured threshold."),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="Identity of each row: a column, folder, a path pattern such as '{}_*', labels or "
            "label."
        ),
    ] = "labels",
    groups: Annotated[
        str | None,
        typer.Option(
            help="Never pair two rows of one group (recording, session); same format as --by."
        ),
    ] = None,
    where: Where = None,
    space: Annotated[
        str,
        typer.Option(help="Recipe of the vector space, for example raw, centre, scale+l2 or auto."),
    ] = "auto",
    trials: Annotated[
        Path | None,
        typer.Option(
            help="Judge the pairs of this file: lines `utt1 utt2 target` (or nontarget; Kaldi), or "
            "`1 utt1 utt2` (or 0; VoxCeleb)."
        ),
    ] = None,
    enrol: Annotated[
        Path | None,
        typer.Option(help="Utterances of the models in --trials: lines `model utt1 utt2 …`."),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Write the score of each trial to this file.")
    ] = None,
    overwrite: Overwrite = False,
    s_norm: Annotated[
        bool,
        typer.Option(
            "--s-norm", help="Normalise scores by the nearest rows of a cohort (AS-norm)."
        ),
    ] = False,
    cohort: Annotated[
        str | None,
        typer.Option(help="Filter of the cohort's rows; rows that no trial names where left out."),
    ] = None,
    false_accepts: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Report the miss rate at this rate of false accepts."),
    ] = 0.01,
    p_target: Annotated[
        float, typer.Option(help="Prior of a pair of the same name, for the detection cost.")
    ] = 0.01,
    cost_miss: Annotated[float, typer.Option(help="Cost of a missed pair.")] = 1.0,
    cost_false_accept: Annotated[float, typer.Option(help="Cost of a false accept.")] = 1.0,
    start: Start = None,
    end: End = None,
    channel: ChannelOfRows = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure verification of pairs as same or different: equal error rate, detection cost, Cllr.

    Pairs are all those of the rows' names, or the trials of a file.
    """
    from penult.analysis.verification import TOP, OperatingPoint
    from penult.collection.collection import Collection
    from penult.fewshot import trials as judged

    _check_verify(pair, trials, {"--by": by != "labels", "--groups": groups}, s_norm,
                  {"--enrol": enrol, "--scores": scores, "--cohort": cohort})  # fmt: skip
    _check_scores(scores, overwrite, trials, enrol)
    if not pair and (start is not None or end is not None or channel is not None):
        raise UsageError("--start, --end and --channel are of a pair of files; give two files")
    point = OperatingPoint(p_target, cost_miss, cost_false_accept)
    opened = Collection.open(collection, must_exist=True)
    modality = str(opened.reader.require_manifest().model.get("modality"))
    part = query_part(modality, start, end, channel)
    if trials is not None:
        settings = judged.TrialSettings(where, space, false_accepts, point, s_norm, cohort)
        _verify_trials(opened, (trials, enrol, scores), settings, json)
        return
    with working("comparing"):
        found, fitted = judged.verify_collection(
            opened, by, groups, where, space, false_accepts, point, TOP if s_norm else 0
        )
        similarity = None
        if pair:
            similarity = judged.same_or_different(opened, fitted, pair, device, part)
    same = None if similarity is None else similarity >= found.threshold
    if json:
        options = {"by": by, "groups": groups, "space": fitted.recipe, "s_norm": s_norm}
        answer = {"pair": pair, "similarity": similarity, "same_name": same}
        print_json({"collection": str(collection), **options, **found.to_dict(), **answer})
        return
    kinds = f"pairs of the same {by}", "of different ones"
    _show_verification(found, kinds, f"{found.names:,} classes", fitted.recipe, s_norm)
    if similarity is not None:
        stdout.print(f"[bold]{'same' if same else 'different'}[/]: cosine {similarity:.4f}")


def _verify_trials(
    collection: Collection,
    files: tuple[Path, Path | None, Path | None],
    settings: TrialSettings,
    json: bool,
) -> None:
    """files: the trials, the enrolment, and where scores are written."""
    from penult.fewshot import trials as judged

    listed, enrol, scores = files
    trials = judged.read_trials(listed)
    models = None if enrol is None else judged.read_enrolment(enrol)
    with working("comparing"):
        scored = judged.verify_trials(collection, trials, models, settings)
    if scores is not None:
        scored.write(scores)
    if json:
        names = dict(zip(("trials", "enrol", "scores"), map(_text, files), strict=True))
        how = {"s_norm": settings.s_norm, "cohort": settings.cohort}
        print_json({"collection": str(collection.path), **names, **how, **scored.to_dict()})
        return
    for note in scored.notes:
        print_note(f"[yellow]{printable(note)}[/]")
    what = f"{scored.utterances:,} utterances"
    what += f", {scored.enrolled:,} models of several" if scored.enrolled else ""
    recipe = scored.space.recipe
    _show_verification(scored.verification, _TRIALS, what, recipe, settings.s_norm)
    if scores is not None:
        stdout.print(f"scores in [bold]{printable(str(scores))}[/]", soft_wrap=True)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _check_verify(
    pair: list[str] | None,
    trials: Path | None,
    of_rows: dict[str, object],
    s_norm: bool,
    of_trials: dict[str, object],
) -> None:
    """Refuse options that would have no effect.

    Raises:
        UsageError: it names them.
    """
    if pair and len(pair) != 2:
        raise UsageError(f"a pair is two files or rows; received {len(pair)}. Give two or none")
    if pair and (trials or s_norm):
        raise UsageError(
            "a pair is judged by its cosine at the threshold of all pairs; leave --trials and "
            "--s-norm out, or the pair"
        )
    unused = of_rows if trials else of_trials
    if given := [name for name, value in unused.items() if value]:
        raise UsageError(
            f"{', '.join(given)} has no effect {'beside' if trials else 'without'} --trials; "
            f"{'leave it out' if trials else 'give --trials too, or leave it out'}"
        )
    if of_trials["--cohort"] and not s_norm:
        raise UsageError("--cohort has no effect without --s-norm; give --s-norm too")


def _check_scores(scores: Path | None, overwrite: bool, *read: Path | None) -> None:
    """Refuse to write the scores where they cannot be written, over a file that is read, or, unless
    that is asked for, over any.

    Raises:
        UsageError: so it would be.
    """
    from penult.fewshot.storage import check_free

    check_output(scores)
    if scores is None or not scores.exists():
        return
    if any(path is not None and path.exists() and path.samefile(scores) for path in read):
        raise UsageError(
            f"{scores} is read, and its scores would replace it; name another file in --scores"
        )
    check_free(scores, overwrite)


def _show_verification(
    found: Verification, kinds: tuple[str, str], what: str, space: str, s_norm: bool
) -> None:
    """kinds: what its pairs of one name are called, and those of two."""
    same, different = kinds
    unit = "score" if s_norm else "cosine"
    ends = f"95 %: {100 * found.low:.1f} to {100 * found.high:.1f}"
    if isnan(found.low):
        ends = "no interval: all same pairs are of one"
    stdout.print(
        f"equal error rate [bold]{100 * found.eer:.1f} %[/] ({ends}), at {unit} "
        f"{found.threshold:.4f}; area under the curve {found.auc:.4f}",
        soft_wrap=True,
    )
    stdout.print(
        f"at {100 * found.false_accepts:g} % false accepts ({unit} {found.strict:.4f}) "
        f"{100 * found.missed:.1f} % of the same pairs are missed",
        soft_wrap=True,
    )
    costs, of_others = found.costs, ""
    if not isnan(costs.cllr):
        of_others = f"{costs.cllr:.3f} calibrated on other names, "
    stdout.print(
        f"minDCF {costs.min_dcf:.3f} at a prior of {costs.point.p_target:g}; "
        f"Cllr {of_others}{costs.least_cllr:.3f} at least",
        soft_wrap=True,
    )
    drawn = ""
    if found.same + found.different < found.pairs:
        drawn = f", drawn from {found.pairs:,} pairs with seed {costs.seed}"
    stdout.print(
        f"[dim]{found.same:,} {printable(same)}, {found.different:,} {different}{drawn}, {what}; "
        f"space {space}{', s-norm' if s_norm else ''}[/]",
        soft_wrap=True,
    )
