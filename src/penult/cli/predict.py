"""`penult predict`: the classes of items, by examples or by names, as a table, events, a file or
JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penult.cli.collection import Where
from penult.cli.options import (
    NO_OPTIONS,
    BoxOption,
    ChannelOfRows,
    Device,
    End,
    Hop,
    Json,
    ModelOptions,
    Overlap,
    Overwrite,
    Pages,
    RawCells,
    Start,
    TableFormatName,
    Tile,
    WindowOfRows,
    check_tables,
    items_of,
    layout_of,
    modality_for,
    of_part,
    query_part,
    source_of,
    with_columns,
    with_limits,
    with_model_options,
)
from penult.cli.output import (
    SOME_FAILED,
    counted,
    print_failures,
    print_note,
    printable,
    stdout,
    working,
)
from penult.cli.prediction_tables import SHOWN, EventOptions, Form, print_predictions
from penult.cli.score_maps import check_maps
from penult.cli.teach import Model, is_collection, load_class_space
from penult.cli.values import ValueForm, print_values

if TYPE_CHECKING:
    from penult.collection.collection import Collection
    from penult.data.items import Failure
    from penult.data.roots import Roots
    from penult.data.sources import Source
    from penult.data.windows import Layout
    from penult.fewshot.classspace import ClassSpace
    from penult.fewshot.predictions import ClassPrediction, Spool
    from penult.fewshot.values import ValuePrediction, ValueSpace
    from penult.fewshot.vectors import VectorSource


LEVEL = 0.9  # of intervals of values
Results = Iterator["ClassPrediction | Failure"]


@with_columns
@with_limits
@with_model_options
def predict(
    place: Annotated[
        str,
        typer.Argument(
            help="A collection or a saved class space (FILE.npz); with --names also a model."
        ),
    ],
    items: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, tables, - or one collection. Default: the rows of the collection."
        ),
    ] = None,
    where: Where = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="For this call: prototype, knn, ridge, logistic or agile (logistic, with rows of "
            "the collection as weak negatives); auto selects among the first four by "
            "cross-validation. Default: as taught."
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help="For this call: recipe of the vector space, for example raw, centre, scale+l2 or "
            "auto. Default: as taught."
        ),
    ] = None,
    unknown: Annotated[
        float | None,
        typer.Option(
            help="Largest share of items of known classes that may be rejected as unknown. 0 turns "
            "rejection off. Default: 0.05."
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="For this call: keep these groups (speaker, site) on one side of every "
            "cross-validation split: a column, folder or pattern. The level of --unknown then "
            "holds for new groups. items: none, for the same speakers and sites. Default: as "
            "taught."
        ),
    ] = None,
    several: Annotated[
        bool | None,
        typer.Option(
            "--several/--single",
            help="For this call: allow several classes per item, or exactly one. Default: as "
            "taught.",
        ),
    ] = None,
    min_probability: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Least probability of a class, with --several in place of the classes' own "
            "thresholds; else unknown.",
        ),
    ] = None,
    min_similarity: Annotated[
        float | None,
        typer.Option(
            min=-1.0, max=1.0, help="Least cosine to the mean of a class's examples; else unknown."
        ),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Give no item to this class: what it takes is unknown; repeatable.",
        ),
    ] = None,
    nearest: Annotated[
        int, typer.Option(min=0, help="Number of nearest examples to list for each prediction.")
    ] = 0,
    window: WindowOfRows = None,
    hop: Hop = None,
    tile: Tile = None,
    overlap: Overlap = 0,
    pages: Pages = None,
    box: BoxOption = None,
    channel: ChannelOfRows = None,
    start: Start = None,
    end: End = None,
    merge_gap: Annotated[
        float,
        typer.Option(min=0.0, help="Longest gap in seconds between windows of one event."),
    ] = 0.0,
    windows: Annotated[
        bool,
        typer.Option("--windows", help="List every window, without merging windows into events."),
    ] = False,
    smooth: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Events of the median over the windows within so many seconds: a class holds "
            "where more than half of them have it.",
        ),
    ] = None,
    unknown_events: Annotated[
        bool,
        typer.Option(
            "--unknown-events", help="Stretches without a class are events too, of class unknown."
        ),
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(
            help="Write the predictions to a .csv file, to a .txt Raven selection table (of "
            "several recordings with a list of them beside it), or to FOLDER/: a Raven table for "
            "each recording."
        ),
    ] = None,
    overwrite: Overwrite = False,
    format: TableFormatName = None,
    raw_cells: RawCells = False,
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="With --tile: draw each picture with heat maps of its tiles' probabilities.",
        ),
    ] = None,
    value: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Predict this value (penult teach --value) in place of classes. Default where "
            "no class is taught: all values.",
        ),
    ] = None,
    level: Annotated[
        float, typer.Option(help="With values: the level of their intervals.")
    ] = LEVEL,
    probe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Predict by a probe of penult probe --save (.skops, .onnx), in place of what was "
            "taught. PLACE is a collection of its embedder, or the folder of that embedder.",
        ),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(help="Zero-shot class names, separated by commas; needs no examples."),
    ] = None,
    names_model: Annotated[
        Path | None, typer.Option(help="Folder of a sentence-transformers model, for --names.")
    ] = None,
    mixed: Annotated[
        int,
        typer.Option(
            min=1, help="With --names: number of the classifier's labels to combine per item."
        ),
    ] = 10,
    model: Model = None,
    device: Device = "auto",
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Predict the classes of items, or unknown, from taught examples or class names; or values.

    Consecutive windows of one class are merged into one event.
    """
    from penult.fewshot.predictions import AssignmentLimits, ClassPrediction, Spool

    check_tables(out, overwrite, format)
    how = EventOptions(merge_gap, windows, smooth, unknown_events)
    how.check()
    check_maps(maps, bool(tile), overwrite)
    cut = {"window": window, "hop": hop, "tile": tile, "overlap": overlap, "pages": pages}
    parts = Parts(items or [], where, {n: value for n, value in cut.items() if value}, channel, box,
                  start, end)  # fmt: skip
    settings = {
        "space": space,
        "method": method,
        "unknown": unknown,
        "several": several,
        "groups": groups,
    }
    limits = {"min-probability": min_probability, "min-similarity": min_similarity,
              "without": without or None}  # fmt: skip
    own = {**settings, **limits, "names": names, "nearest": nearest or None, **how.given,
           "maps": maps}  # fmt: skip
    opening = model, device, bool(model_options.get("trust"))
    form = ValueForm(level, Path(out) if out else None, json, raw_cells, _roots(place, items))
    if probe is not None:
        own |= {"value": value, "level": None if level == LEVEL else level}
        shape = Form(how, out, overwrite, json, raw_cells, form.roots, (), format)
        _predict_by_probe(place, probe, own, parts, opening, shape)
        return
    if _predicts_values(place, value, own, parts, opening, form):
        return
    if names is not None:
        unused = {**settings, **limits, **parts.cut, "box": box, "nearest": nearest or None}
        _check_names(unused, names_model)
        found, facts = _predict_by_names(
            place, Names(names, str(names_model), mixed), parts, device, model_options
        )
    else:
        taught = load_class_space(place, model, device, opening[2], **settings)
        accepted = AssignmentLimits(min_probability, min_similarity, frozenset(without or ()))
        accepted.check(taught.fitted.names)
        results = _predict_taught(taught, parts, unknown, nearest, min_probability)
        found, facts = (accepted(one) if isinstance(one, ClassPrediction) else one
                        for one in results), None  # fmt: skip
    classes = taught.fitted.names if names is None and taught.fitted.several else ()
    shape = Form(how, out, overwrite, json, raw_cells, form.roots, classes, format, maps)
    with Spool(whole=json or bool(maps or (classes and out)), shown=SHOWN) as spool:
        with working("predicting"):
            failures = spool.extend(found)  # output starts after the last item
        if facts is None:
            facts = _facts(place, taught, unknown, accepted.to_dict(), spool)
        print_predictions(place, spool, failures, facts, shape)


def _facts(
    place: str, taught: ClassSpace, level: float | None, limits: dict[str, Any], spool: Spool
) -> dict[str, Any]:
    """What is told of the classes beside their predictions."""
    from penult.fewshot.classspace import lacking, mostly_other

    rate = taught.settings.unknown if level is None else level
    return taught.fitted.to_dict(rate) | {
        "limits": limits,
        "version": _version(taught),
        "lengths": _lengths(place, taught, spool.seconds),
        "background": {
            "rows": taught.history.background,
            "note": lacking(taught, place)
            or mostly_other(taught, spool.tally[None], len(spool), place),
        },
    }


def _value_spaces(place: str, value: str | None, names: str | None) -> list[ValueSpace]:
    """The values that are to be predicted: of a file, the one that is named, or all where no class
    is taught.

    Raises:
        LabelsError: none of this name.
        UsageError: a class file.
    """
    from penult.collection.collection import Collection
    from penult.collection.labels import standing
    from penult.errors import UsageError
    from penult.fewshot.values import ValueLedger, ValueSpace, is_value_file

    if place.endswith(".npz"):
        if not is_value_file(place):
            if value is not None:
                raise UsageError(f"{place} is no file of a value: penult teach COLLECTION --value "
                                 f"{value} --save FILE.npz writes one")  # fmt: skip
            return []
        space = ValueSpace.load(place)
        if value not in (None, space.by):
            raise UsageError(f"{place} has the value {space.by!r}, not {value!r}")
        return [space]
    if not is_collection(place):
        if value is not None:
            raise UsageError(
                f"--value is for a collection or file that was taught; {place} is none"
            )
        return []
    if names is not None and value is None:
        return []
    store = Collection.open(place, must_exist=True)
    kept = ValueLedger(store)
    if value is None and (not kept.current() or standing(store.reader)):
        if found := sorted(kept.current()):
            print_note(
                f"[dim]values are taught too: {printable(', '.join(found))}; --value "
                f"{printable(found[0])} predicts one[/]"
            )
        return []
    return [ValueSpace.of(store, one.name) for one in kept.named(value)]


def _predicts_values(
    place: str,
    value: str | None,
    own: dict[str, Any],
    parts: Parts,
    opening: tuple[str | None, str, bool],
    form: ValueForm,
) -> bool:
    """Predict values, where these are asked for or nothing else is taught; whether it was so. own:
    the options that are for classes. opening: model, device, trust.

    Raises:
        UsageError: options that do not go together.
    """
    from penult.collection.search import embedder_of
    from penult.data.items import Failure
    from penult.errors import UsageError
    from penult.fewshot.values import value_predictions, value_rows

    if not (spaces := _value_spaces(place, value, own["names"])):
        if form.level != LEVEL:
            raise UsageError("--level is for values; --unknown is the level of classes")
        return False
    if odd := [name for name, one in own.items() if one is not None]:
        raise UsageError(f"--{odd[0]} is for classes, not for values")
    if form.out is not None and form.out.suffix != ".csv":
        raise UsageError(f"--out {form.out}: values are written as .csv, not as a Raven table")
    source, (model, device, trust) = spaces[0].source, opening
    if model is not None or device != "auto" or trust:
        options: dict[str, Any] = {"device": device, "trust": trust, "file": place}
        source.open_with(lambda: embedder_of(source.manifest, model, **options))
    results: Iterable[ValuePrediction | Failure]
    if _is_rows(parts):
        rows = _rows_of(parts, source.collection, "a value from a file")
        results = value_rows(spaces, rows, parts.where, form.level)
    else:
        results = value_predictions(spaces, *_cut_items(source, parts), form.level)
    with working("predicting"):
        every = list(results)  # output starts after the last item
    found = [one for one in every if not isinstance(one, Failure)]
    failures = [one for one in every if isinstance(one, Failure)]
    print_values(place, spaces, found, failures, form)
    return True


_OF_PROBES = ("without", "min-probability", "merge-gap", "windows", "smooth", "unknown-events")


def _predict_by_probe(
    place: str,
    file: Path,
    own: dict[str, Any],
    parts: Parts,
    opening: tuple[str | None, str, bool],
    form: Form,
) -> None:
    """Predict classes, labels or values by a saved probe. own: the options that are for classes.
    opening: model, device, trust.

    Raises:
        UsageError: options that are for taught classes.
    """
    from penult.analysis.prediction_measures import REGRESSION
    from penult.collection.collection import Collection
    from penult.collection.search import embedder_of
    from penult.embedding.embedder import open_embedder
    from penult.errors import UsageError
    from penult.fewshot.predictions import AssignmentLimits, ClassPrediction, Spool
    from penult.fewshot.probes import SavedProbe
    from penult.fewshot.vectors import VectorSource

    model, device, trust = opening
    probe = SavedProbe.load(file)
    usable = () if probe.task == REGRESSION else _OF_PROBES
    if odd := [name for name, one in own.items() if one is not None and name not in usable]:
        raise UsageError(f"--{odd[0]} does not apply to a probe of the task {probe.task}")
    if is_collection(place):
        source = VectorSource.of(Collection.open(place, must_exist=True))
        options: dict[str, Any] = {"device": device, "trust": trust, "file": place}
        if model is not None or device != "auto" or trust:
            source.open_with(lambda: embedder_of(source.manifest, model, **options))
    else:
        with working(f"opening {place}"):
            source = VectorSource.of(open_embedder(place, device=device, trust=trust))
    probe.check(source.manifest, place)
    if probe.several and (least := own["min-probability"]) is not None:
        probe = replace(probe, thresholds=(least,) * len(probe.classes))
    if _is_rows(parts):
        rows = _rows_of(parts, source.collection, "a probe")
        results: Iterable[Any] = probe.rows(rows, parts.where)
    else:
        results = probe.items(source, *_cut_items(source, parts))
    facts = {"probe": str(file), "task": probe.task, "by": probe.by}
    if probe.task == REGRESSION:
        with working("predicting"):
            every = list(results)  # output starts after the last item
        print_probe_values(place, every, facts, form)
        return
    limits = AssignmentLimits(own["min-probability"], None, frozenset(own["without"] or ()))
    limits.check(probe.classes)
    found = (limits(one) if isinstance(one, ClassPrediction) else one for one in results)
    classes = probe.classes if probe.several else ()
    form = replace(form, classes=classes)
    with Spool(whole=form.json or bool(classes and form.out), shown=SHOWN) as spool:
        with working("predicting"):
            failures = spool.extend(found)  # output starts after the last item
        print_predictions(place, spool, failures, facts, form)


def print_probe_values(place: str, every: Sequence[Any], facts: dict[str, Any], form: Form) -> None:
    """Print or write the values of a probe. Exit code 3 where some items failed."""
    from penult.cli.output import print_json
    from penult.cli.values import show_value_predictions, write_values
    from penult.data.items import Failure
    from penult.errors import UsageError

    out = None if form.out is None else Path(form.out)
    if out is not None and out.suffix != ".csv":
        raise UsageError(f"--out {out}: values are written as .csv, not as a Raven table")
    found = [one for one in every if not isinstance(one, Failure)]
    failures = [one.to_dict() for one in every if isinstance(one, Failure)]
    if out is not None:
        write_values(out, found, ValueForm(LEVEL, out, form.json, form.raw_cells, form.roots))
    if form.json:
        predictions = [one.to_dict() for one in found]
        print_json({"place": place, **facts, "out": out, "predictions": predictions,
                    "failures": failures})  # fmt: skip
    else:
        if out is None:
            show_value_predictions(found, [facts["by"]])
        stdout.print(f"[bold green]{counted(len(found), 'prediction')}[/]")
        if out is not None:
            stdout.print(f"written: [bold]{printable(str(out))}[/]", soft_wrap=True)
        print_failures(failures)
    if failures:
        raise typer.Exit(SOME_FAILED)


@dataclass(frozen=True, slots=True)
class Parts:
    """The items to predict, or the rows of a collection, and how items are cut: the options that
    were given."""

    items: list[str]
    where: str | None
    cut: dict[str, Any]
    channel: str | None
    box: str | None = None
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class Names:
    """Classes by name, separated by commas. folder: of the text model. mixed: labels per item."""

    classes: str
    folder: str
    mixed: int


def _check_names(unused: dict[str, Any], folder: Path | None) -> None:
    from penult.errors import UsageError

    if odd := [name for name, value in unused.items() if value is not None]:
        raise UsageError(f"--{odd[0]} applies to taught classes, not to --names")
    if folder is None:
        raise UsageError(
            "--names needs --names-model FOLDER, a local sentence-transformers model such as "
            "all-MiniLM-L6-v2"
        )


def _predict_taught(
    taught: ClassSpace, parts: Parts, level: float | None, nearest: int, least: float | None
) -> Results:
    if _is_rows(parts):
        rows = _rows_of(parts, taught.source.collection, "a class space from a file")
        return taught.predict_collection(
            rows, parts.where, unknown=level, nearest=nearest, min_probability=least
        )
    source, layout, channel = _cut_items(taught.source, parts)
    return taught.stream(source, layout, level, nearest, min_probability=least, channel=channel)


def _is_rows(parts: Parts) -> bool:
    """Whether rows of a collection are predicted."""
    return not parts.items or (len(parts.items) == 1 and is_collection(parts.items[0]))


def _rows_of(parts: Parts, own: Collection | None, what: str) -> Collection:
    """The collection whose rows are predicted. own: that of what was taught, which is called so.

    Raises:
        UsageError: rows that are to be cut, or no collection.
    """
    from penult.collection.collection import Collection
    from penult.errors import UsageError

    if given := [
        *parts.cut,
        *(n for n in ("channel", "box", "start", "end") if getattr(parts, n) is not None),
    ]:
        raise UsageError(
            f"rows of a collection are already cut; leave --{' and --'.join(given)} out"
        )
    if parts.items:
        return Collection.open(parts.items[0], must_exist=True)
    if own is None:
        raise UsageError(f"give items or a collection: {what} has no rows of its own")
    return own


def _cut_items(
    taught: VectorSource, parts: Parts
) -> tuple[Source, Layout | None, int | str | None]:
    """The items, and the layout and channel by which they are cut.

    Raises:
        UsageError: a filter, which is of rows.
    """
    from penult.errors import UsageError
    from penult.fewshot.vectors import roots_of

    if parts.where is not None:
        raise UsageError("--where filters the rows of a collection; it does not apply to files")
    modality = str(taught.manifest.model.get("modality"))
    layout = (
        layout_of(modality, **{"window": None, "hop": None, **parts.cut}) if parts.cut else None
    )
    part = query_part(modality, parts.start, parts.end, parts.channel, parts.box)
    channel = part.channel
    source = of_part(_with_named_rows(taught, parts.items, modality), part.region)
    source = _dated(replace(source, roots=roots_of(taught)), taught)
    as_rows = taught.rows.chosen(channel, layout)
    if as_rows and (layout is None or channel is None):
        store = taught.collection
        made = "the examples" if store is None else f"the rows of {printable(str(store.path))}"
        print_note(
            f"[dim]files are read as {made}: "
            f"{as_rows.words(modality)}; --window and --channel read them otherwise[/]"
        )
    return source, layout, channel


def _dated(source: Source, taught: VectorSource) -> Source:
    """The source with the beginning of each item, where the collection's rows have theirs."""
    from penult.collection.timing import times_of_runs
    from penult.data.recording_times import RecordingTimes

    zone = None if taught.collection is None else times_of_runs(taught.collection.reader)
    if zone is None:
        return source
    times = RecordingTimes(zone)
    return replace(source, start=lambda: map(times.entry, source.start()), folder=None)


def _with_named_rows(taught: VectorSource, items: list[str], modality: str) -> Source:
    """The items at these paths, and the parts of files that are named as tables print them."""
    from penult.collection.row_names import rows_of_names
    from penult.data.sources import Source
    from penult.fewshot.vectors import pairs_of, roots_of

    collection = taught.collection
    named = rows_of_names(collection.reader if collection else None, items)
    keys = [one for one in named if isinstance(one, tuple)]
    paths = [one for one in named if isinstance(one, str)]
    if not keys:
        return source_of(paths, None, modality)
    files = [source_of(paths, None, modality)] if paths else []
    roots = roots_of(taught)
    return Source(lambda: chain(pairs_of(keys, modality, roots), *files))


def _roots(place: str, items: list[str] | None) -> Roots:
    """What ids of the predicted items begin with."""
    from penult.collection.reader import Reader
    from penult.data.roots import Roots

    rows = items[0] if items and len(items) == 1 and is_collection(items[0]) else place
    return Reader(rows).roots if is_collection(rows) else Roots()


def _version(taught: ClassSpace) -> dict[str, Any] | None:
    """The version that predictions are from, with the settings that are for this call alone."""
    current = taught.history.current
    if current is None:
        return None
    facts = ("number", "when", "change", "classes", "examples")
    return {name: getattr(current, name) for name in facts} | {
        "for_this_call": taught.history.overridden
    }


_FAR = 2.0  # times as long: from there on vectors of parts are another kind than those of examples


def _lengths(place: str, taught: ClassSpace, predicted: list[float]) -> dict[str, Any] | None:
    """The median seconds of the examples and of what was predicted, and what is told where one is
    more than twice the other; None where either has no length."""
    from statistics import median

    marked = zip(taught.examples.keys, taught.examples.marks, strict=True)
    members = [key for key, marks in marked if "yes" in marks.values()]
    known = list(taught.source.seconds_of(members).values())
    if not known or not predicted:
        return None
    own, theirs = median(known), median(predicted)
    told = None
    if min(own, theirs) * _FAR < max(own, theirs):
        told = (
            f"examples are {own:.3g} s long, what is predicted {theirs:.3g} s (medians): vectors "
            f"of other lengths may lie elsewhere. penult teach {place} CLASS FILES --window "
            f"{theirs:.3g}s makes examples of that length"
        )
    return {"examples": own, "predicted": theirs, "note": told}


def _predict_by_names(
    place: str, names: Names, parts: Parts, device: str, model_options: ModelOptions
) -> tuple[Results, dict[str, Any]]:
    from penult.collection.collection import Collection
    from penult.embedding.runner import Runner, device_of
    from penult.errors import UsageError
    from penult.fewshot.zeroshot import ByName, text_embedder
    from penult.models.base import Activation
    from penult.models.specs import open_recorded

    class_names = names.classes.split(",")
    facts = {"names": class_names, "names_model": names.folder}
    if is_collection(place):
        if parts.items:
            raise UsageError(
                "with a collection, --names predicts the rows of the collection; for files give "
                "MODEL instead"
            )
        collection = Collection.open(place, must_exist=True)
        manifest = collection.manifest
        assert manifest is not None
        kind, embed = str(manifest.model.get("kind")), text_embedder(names.folder)
        own = Activation(str(manifest.model.get("scores") or ""))
        by_name = ByName(manifest.labels, kind, class_names, embed, names.mixed, own)
        return by_name.predict_collection(collection, parts.where), facts
    if parts.where is not None:
        raise UsageError("--where filters the rows of a collection; it does not apply to files")
    source = items_of(place, model_options, parts.items, parts.channel)
    modality = modality_for(place, model_options)
    source = of_part(source, query_part(modality, parts.start, parts.end).region)
    embed = text_embedder(names.folder)
    with working(f"loading {place}"):
        classifier = open_recorded(place, **model_options)
        by_name = ByName(
            classifier.labels, classifier.kind, class_names, embed, names.mixed,
            classifier.structure.activation,
        )  # fmt: skip
    return by_name.stream(Runner(classifier, [], device_of(classifier, device)), source), facts
