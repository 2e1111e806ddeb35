"""Options that several commands share, and how a model and its items are opened from them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penult.cli.output import print_note, printable, working
from penult.errors import UsageError
from penult.extras import ENGINES, LOADERS, POOLINGS, plugins

if TYPE_CHECKING:
    from penult.collection.ingest import Machines
    from penult.collection.search import QueryPart
    from penult.data.items import Entry
    from penult.data.recording_times import RecordingTimes
    from penult.data.regions import Region
    from penult.data.sources import Source
    from penult.data.windows import Layout

WHOLE_FILE = "whole"  # as a window: files are read in one piece
_ADDED = " From installed packages: "

ModelOptions = dict[str, Any]  # how `penult.load` opens a model: the options of MODEL_OPTIONS
NO_OPTIONS: ModelOptions = {}
Model = Annotated[
    str,
    typer.Argument(
        help="Folder, hub id, timm:NAME, torchvision:NAME, FILE.onnx, package.module:factory, "
        "or demo."
    ),
]
Paths = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, tables (CSV, JSONL, Parquet with a path column), or - for paths "
        "or one file on stdin."
    ),
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="Columns of tables by what they hold: 'path=IN FILE,start=OFFSET,duration=DURATION'; "
        "also end, channel, id, left, top, right, bottom.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]
AudioFolders = Annotated[
    list[str] | None,
    typer.Option(
        "--audio",
        metavar="FOLDER",
        help="Where the files are that tables name, if not beside the tables; repeatable.",
    ),
]
TableFormatName = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Of a .txt file or a FOLDER/ in --out: raven (selection tables) or audacity (label "
        "tracks). Default: raven.",
    ),
]
RawCells = Annotated[
    bool,
    typer.Option("--raw-cells", help="Write texts that a spreadsheet runs as formulas unchanged."),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Allow code to run that comes with the model or that a file names, and pickles; and "
        "what a file names to be fetched.",
    ),
]
Tap = Annotated[
    str | None,
    typer.Option(
        help="Layer to read: backbone, prelogits, weighted, layer:N or a module's path. Several, "
        "joined by commas, are concatenated."
    ),
]
Pooling = Annotated[
    str | None,
    typer.Option(
        help="Over positions: mean, max, first, last, gem, mean+std or mean+std+delta; or one for "
        "each tap."
    ),
]
PoolOver = Annotated[
    str | None,
    typer.Option(help="Positions to pool in clips padded to one length: all or valid."),
]
Channel = Annotated[
    str | None,
    typer.Option(
        help="Audio channel: a number from 0, each (one row per channel) or mix (the mean of all, "
        "the default)."
    ),
]
ChannelOfRows = Annotated[
    str | None,
    typer.Option(
        "--channel",
        help="Audio channel: a number from 0, each, or mix (the mean of all). Default: as the rows "
        "of the collection.",
    ),
]
Start = Annotated[float | None, typer.Option(help="Start of the part within the file, in seconds.")]
End = Annotated[float | None, typer.Option(help="End of the part within the file, in seconds.")]
Window = Annotated[
    str | None,
    typer.Option(
        help="Cut recordings into windows, for example 5s or 250ms; texts into windows of so many "
        "tokens, for example 128."
    ),
]
WindowOfRows = Annotated[
    str | None,
    typer.Option(
        "--window",
        help="Cut files into windows, for example 5s (texts: 128 tokens), or whole: not at all. "
        "Default: as the rows of the collection.",
    ),
]
Hop = Annotated[
    str | None,
    typer.Option(help="Step from one window to the next, for example 1s. Default: the window."),
]
Tile = Annotated[int | None, typer.Option(help="Cut images into square tiles of this many pixels.")]
Overlap = Annotated[int, typer.Option(help="Overlap of neighbouring tiles in pixels.")]
Pages = Annotated[
    str | None,
    typer.Option(
        help="each: every page of a TIFF and frame of a GIF, WebP, PNG or AVIF is a region of its "
        "own. Default: the first."
    ),
]
TimeZone = Annotated[
    str | None,
    typer.Option(
        help="With times: the zone of those that carry none, as Europe/Berlin, UTC or +02:00. "
        "Default: UTC."
    ),
]
BoxOption = Annotated[
    str | None,
    typer.Option(
        "--box",
        help="Use only this box of the picture: x,y,w,h in pixels, the upper "
        "left corner and the size.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(help="auto (the fastest, measured while items are run), torch or openvino."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Least cosine to the vectors of torch in fp32: exact (0.999999, the default) or fast "
        "(0.9999)."
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Random seed.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Devices = Annotated[
    str,
    typer.Option(
        "--device", "--devices", help="auto, cpu, cuda, cuda:N or mps; several: cuda:0,cuda:1."
    ),
]

Ray = Annotated[
    str | None,
    typer.Option(
        help="Spread the work over a Ray cluster: auto (the one that this machine belongs to), an "
        "address such as ray://head:10001, or local (workers on this machine alone)."
    ),
]
RayWorkerCount = Annotated[
    int | None,
    typer.Option(
        "--ray-workers",
        min=1,
        help="With --ray: number of workers, each with the model. Default: one for each GPU, else "
        "for each CPU but one; local: 2.",
    ),
]
RayPatience = Annotated[
    float | None,
    typer.Option(
        help="With --ray: seconds without any result, behind which the run ends. Default: 1200."
    ),
]

# The options for which other packages may add values, by the group of their entry points.
_EXTENSIBLE: dict[str, Any] = {LOADERS: Model, POOLINGS: Pooling, ENGINES: Engine}


def add_plugins_to_help() -> None:
    """Name the loaders, poolings and engines of other packages in the help; none is imported."""
    for group, option in _EXTENSIBLE.items():
        names = [f"{name}:NAME" if group == LOADERS else name for name in plugins(group)]
        info = option.__metadata__[0]
        text = info.help.partition(_ADDED)[0]
        info.help = f"{text}{_ADDED}{', '.join(names)}." if names else text


MODEL_OPTIONS: dict[str, Any] = {
    "checkpoint": Annotated[
        str | None, typer.Option(help="Weights for a named model or factory: FILE or FILE#ENTRY.")
    ],
    "preprocess": Annotated[
        str | None, typer.Option(help="package.module:function that turns an item into tensors.")
    ],
    "patches": Annotated[
        str | None,
        typer.Option(
            help="Where --preprocess gives several patches of an item: mean or max of their "
            "vectors and logits, or rows, a row for each."
        ),
    ],
    "inputs": Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="NAME=NUMBER: an input of a graph that is part of no item, such as sr=16000.",
        ),
    ],
    "band": Annotated[
        str | None,
        typer.Option(
            help="Band-pass for sound in Hz, for example 500-8000, at the recording's own rate."
        ),
    ],
    "playback_rate": Annotated[
        float | None,
        typer.Option(
            help="Rate at which sound is played to the model: 0.1 is ten times slower and lower, "
            "for bats. Times stay those of the recording."
        ),
    ],
    "class_names": Annotated[
        str | None,
        typer.Option(help="Text file with the names of the model's classes, one per line."),
    ],
    "sample_rate": Annotated[
        int | None,
        typer.Option(
            help="Sample rate of the model's input in Hz, where its files do not give it."
        ),
    ],
    "seconds": Annotated[
        float | None,
        typer.Option(help="Fixed input length: shorter clips are padded, longer ones are cut."),
    ],
    "modality": Annotated[
        str | None,
        typer.Option(
            help="Modality of the items: audio, image, video, text, array (.npy files), bytes."
        ),
    ],
    "kind": Annotated[
        str | None,
        typer.Option(
            help="Task of the classifier: single-label, multi-label, binary or regression."
        ),
    ],
    "output": Annotated[
        str | None, typer.Option(help="Output that holds the logits, where the model has several.")
    ],
    "weights_inside": Annotated[
        bool,
        typer.Option(
            "--weights-inside", help="The factory's model has its trained weights in it already."
        ),
    ],
    "trust": Trust,
    "labels": Annotated[
        str | None, typer.Option(hidden=True, help="Former name of --class-names.")
    ],
}


LIMITS: dict[str, Any] = {
    "max_seconds": Annotated[
        float | None,
        typer.Option(
            help="Longest recording, uncut, in seconds; longer ones fail. Default: 3600; inf for "
            "none."
        ),
    ],
    "max_pixels": Annotated[
        int | None,
        typer.Option(
            help="Largest picture, uncut, in pixels; larger ones fail. Default: 134217728."
        ),
    ],
    "max_characters": Annotated[
        int | None,
        typer.Option(
            help="Characters of a text that are read; of a longer one the model takes the "
            "beginning, or it fails. Default: 1000000."
        ),
    ],
    "memory": Annotated[
        str | None,
        typer.Option(
            help="Memory for decoded items, inputs and batches in all processes, for example 2GB "
            "or 60% of what is free. Default: half of that, 4GB at most."
        ),
    ],
    "workers": Annotated[
        int | None,
        typer.Option(min=0, help="Number of decoding processes; 0 decodes in the main process."),
    ],
    "time_limit": Annotated[
        float | None,
        typer.Option(help="Longest decoding time of a file in seconds; beyond it the item fails."),
    ],
}


def with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above, collected in its one argument `model_options`.

    An option that the command declares itself under the same name stays the command's.
    """
    signature = inspect.signature(command, eval_str=True)
    shared = {
        name: kind for name, kind in MODEL_OPTIONS.items() if name not in signature.parameters
    }

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        values = {name: arguments.pop(name, None) for name in shared}
        options = {
            n: value for n, value in values.items() if value is not None and value is not False
        }
        command(**arguments, model_options=_current(options))

    own = [p for p in signature.parameters.values() if p.name != "model_options"]
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if name in ("trust", "weights_inside") else None,
            annotation=annotation,
        )
        for name, annotation in shared.items()
    ]
    keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    described: Any = wrapped
    described.__signature__ = signature.replace(parameters=[*keywords, *added])
    described.__annotations__ = {p.name: p.annotation for p in [*keywords, *added]}
    del described.__wrapped__
    return wrapped


def with_columns(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes items the option `--column`, for tables whose columns it names."""

    def within(column: list[str] | None = None) -> AbstractContextManager[None]:
        from penult.data.sources import named_columns
        from penult.data.table_roles import parse_columns

        return named_columns(parse_columns(column or []))

    return _with_options(command, {"column": Column}, within)


def with_limits(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that opens items the options of LIMITS, which hold for all that it opens."""

    def within(
        max_seconds: float | None = None,
        memory: str | None = None,
        workers: int | None = None,
        time_limit: float | None = None,
        **most: int | None,
    ) -> AbstractContextManager[None]:
        from penult.collection.ingest import MAX_SECONDS
        from penult.data.decode import TIME_LIMIT, Decoding, Limits, decoding_as, default_workers

        given = {n.removeprefix("max_"): one for n, one in most.items() if one is not None}
        decoding = Decoding(
            MAX_SECONDS if max_seconds is None else max_seconds,
            default_workers() if workers is None else workers,
            TIME_LIMIT if time_limit is None else time_limit,
            limits=Limits(**given, memory=memory),
        )
        return decoding_as(decoding)

    return _with_options(command, LIMITS, within)


def _with_options(
    command: Callable[..., None],
    options: dict[str, Any],
    within: Callable[..., AbstractContextManager[None]],
) -> Callable[..., None]:
    """Give a command options, all None by default, that hold within a block while it runs."""
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def wrapped(**arguments: Any) -> None:
        with within(**{name: arguments.pop(name, None) for name in options}):
            command(**arguments)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in options.items()
    ]
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in signature.parameters.values()]
    described: Any = wrapped
    described.__signature__ = signature.replace(parameters=[*own, *added])
    described.__annotations__ = {p.name: p.annotation for p in [*own, *added]}
    del described.__wrapped__
    return wrapped


def _current(options: ModelOptions) -> ModelOptions:
    """The class names under their present name, with a note where the former one was used."""
    if "labels" not in options:
        return options
    from penult.models.options import current

    print_note("[dim]--labels FILE is now called --class-names FILE; the next version drops it[/]")
    return current(options)


def items_of(
    model: str, model_options: ModelOptions, paths: list[str], channel: str | None = None
) -> Source:
    """The items for a model. Wrong paths are refused before the weights are loaded."""
    return source_of(paths, channel, modality_for(model, model_options))


def modality_for(model: str, model_options: ModelOptions) -> str:
    """The modality of a model, read before the weights are loaded."""
    from penult.models.specs import modality_of

    with working(f"opening {model}"):
        return modality_of(model, **model_options)


def source_of(paths: list[str], channel: str | None, modality: str) -> Source:
    """The items at these paths; what is unusual about their tables is noted. A process that will
    open them is started now, beside what is loaded next."""
    from penult.data.sources import from_paths
    from penult.data.workers import prepare_worker

    chosen = channel_of(channel)
    source = from_paths(paths, modality, None if chosen == "mix" else chosen)  # type: ignore[arg-type]
    for note in source.notes:
        print_note(f"[dim]{printable(note)}[/]")
    if modality != "text":  # of which most stand in tables
        prepare_worker(modality)
    return source


def channel_of(channel: str | None) -> int | str | None:
    """`--channel` as a number, `each` or `mix`.

    Raises:
        UsageError: something else.
    """
    if channel is None or channel in ("each", "mix"):
        return channel
    if channel.isascii() and channel.isdigit():
        return int(channel)
    raise UsageError(f"--channel {channel!r} is neither a number from 0 nor 'each' nor 'mix'")


def query_part(
    modality: str,
    start: float | None = None,
    end: float | None = None,
    channel: str | None = None,
    box: str | None = None,
    cut: tuple[str | None, str | None] = (None, None),
) -> QueryPart:
    """The part of a file that is meant. cut: window and hop; `whole` as the window cuts nothing.

    Raises:
        UsageError: seconds or a channel of what has none, a box of what is no picture.
    """
    from penult.collection.search import QueryPart
    from penult.data.regions import WHOLE, Region
    from penult.errors import RegionError

    given = {"--start": start, "--end": end, "--channel": channel}
    timed = [name for name, value in given.items() if value is not None]
    if timed and (modality not in ("audio", "video") or (channel and modality != "audio")):
        raise UsageError(f"{timed[-1]} is for sound, and this model takes {modality}")
    region = WHOLE if box is None else box_of(box, modality)
    if start is not None or end is not None:
        try:
            region = Region("segment", start or 0.0, end)
        except RegionError as error:
            raise UsageError(str(error)) from error
    layout = None if cut == (None, None) else layout_of(modality, *cut)
    return QueryPart(region, channel_of(channel), layout)


def seconds_of(duration: str | None) -> float | None:
    """`5s`, `250ms` or `1.5` as seconds."""
    from penult.data.windows import parse_seconds

    return None if duration is None else parse_seconds(duration)


def layout_of(
    modality: str,
    window: str | None,
    hop: str | None,
    tile: int | None = None,
    overlap: int = 0,
    pages: str | None = None,
) -> Layout:
    """How items are cut, as the options have it.

    Raises:
        UsageError: a text's window in seconds, or parts that cannot be.
    """
    from penult.data.windows import Layout

    if window == WHOLE_FILE and hop is None:
        return Layout(None, None, tile, overlap, pages)  # type: ignore[arg-type]
    for name, value in (("window", window), ("hop", hop)):
        if modality == "text" and value is not None and not value.strip().isdecimal():
            raise UsageError(
                f"--{name} {value!r}: texts have no seconds; give a number of tokens, such as 128"
            )
    layout = Layout(seconds_of(window), seconds_of(hop), tile, overlap, pages)  # type: ignore[arg-type]
    if layout.window is not None and layout.hop is not None and layout.hop > layout.window:
        print_note(
            f"[yellow]--hop {hop} is longer than --window {window}: "
            f"{1 - layout.window / layout.hop:.0%} of each file lies in no window[/]"
        )
    return layout


def times_asked(times: bool | None, zone: str | None) -> RecordingTimes | None:
    """`--times`, or `--time-zone`, which asks for them too; None where neither was given.

    Raises:
        UsageError: no such zone, or one for no times.
    """
    from penult.data.recording_times import CLOCK, RecordingTimes

    if times is False and zone is not None:
        raise UsageError("--time-zone is for times, and --no-times leaves them out")
    return RecordingTimes(zone or CLOCK) if times or zone is not None else None


def engine_of(engine: str, ray: str | None) -> str:
    """The engine of a run: measured on each machine of a cluster, `auto` would be another on each,
    so that it is the model's own there."""
    from penult.engines.registry import AUTO, DEFAULT

    return DEFAULT if ray is not None and engine == AUTO else engine


def machines_of(
    model: str, how: dict[str, Any], ray: str | None, workers: int | None, patience: float | None
) -> Machines | None:
    """The workers of a Ray cluster; None where none are asked for. how: the model is opened.

    Raises:
        UsageError: options for a cluster without one. MissingExtra: Ray is not installed.
    """
    if ray is None:
        if workers is not None or patience is not None:
            raise UsageError("--ray-workers and --ray-patience are for --ray, which is not given")
        return None
    from penult.collection.chunks import WorkerModel
    from penult.collection.ray_workers import PATIENCE, RayOptions, RayWorkers

    asked = RayOptions(ray, workers, PATIENCE if patience is None else patience)
    return RayWorkers(asked, WorkerModel(model, how, str(Path.cwd())))


def box_of(text: str, modality: str) -> Region:
    """`x,y,w,h` as a region of a picture.

    Raises:
        UsageError: not four whole numbers, a box without an area, or items that are no pictures.
    """
    from penult.data.regions import Region

    if modality != "image":
        raise UsageError(f"--box is for pictures, and this model takes {modality}")
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isdecimal() and part.isascii() for part in parts):
        raise UsageError(
            f"--box {text!r}: give x,y,w,h as whole numbers, for example 10,20,64,48: the left and "
            "upper edge, the width and the height, in pixels"
        )
    x, y, w, h = map(int, parts)
    if not (w and h):
        raise UsageError(f"--box {text!r} has no area: w and h are its width and height in pixels")
    return Region("box", box=(x, y, x + w, y + h))


def of_part(source: Source, part: Region) -> Source:
    """The source with this segment, or box, of each whole item."""
    from penult.data.items import Failure
    from penult.data.regions import WHOLE

    if part == WHOLE:
        return source

    def start() -> Iterator[Entry]:
        for entry in source:
            if isinstance(entry, Failure) or (entry[1].start, entry[1].end, entry[1].box) != (
                None, None, None):  # fmt: skip
                yield entry
            else:
                yield entry[0], replace(entry[1], kind=part.kind, start=part.start, end=part.end,
                                        box=part.box)  # fmt: skip

    return replace(source, start=start, folder=None)


def check_tables(
    out: str | None,
    overwrite: bool,
    format: str | None,
    suffixes: tuple[str, ...] = (".csv", ".txt"),
) -> None:
    """Refuse an output for rows with a time: a name without one of these suffixes that is no
    folder, or one that exists. format: of `TABLE_FORMATS`.

    Raises:
        UsageError: it is refused.
    """
    from penult.data.selection_tables import is_folder
    from penult.data.table_formats import table_format
    from penult.fewshot.storage import check_free

    asked = table_format(format)
    if format is not None and not (out is not None and (is_folder(out) or out.endswith(".txt"))):
        raise UsageError(
            f"--format {format} is of a .txt file or a FOLDER/ in --out"
            + ("" if out is None else f", and --out {out} is neither")
        )
    if out is None:
        return
    if is_folder(out):
        check_parent(Path(out), create=True)
        asked.check_free(out, overwrite)
        return
    if Path(out).suffix not in suffixes:
        raise UsageError(
            f"--out {out}: the name has to end in {' or '.join(suffixes)} (.txt: a Raven selection "
            "table), or in / (a folder of Raven tables, one for each recording); --format audacity "
            "makes label tracks"
        )
    check_output(Path(out))
    free = asked.check_free if out.endswith(".txt") else check_free
    free(Path(out), overwrite)


def check_output(path: Path | None, create: bool = False) -> None:
    """Refuse a file that cannot be written, before any work is done. create: as `check_parent`.

    Raises:
        UsageError: the path is a folder, or its folder does not exist.
    """
    if path is not None and path.is_dir():
        raise UsageError(f"{path} is a folder; name a file to write")
    if path is not None:
        check_parent(path, create)


def check_parent(path: Path, create: bool = False) -> None:
    """Refuse a path whose folder does not exist. create: missing folders will be made.

    Raises:
        UsageError: something that is not a folder is in the way, or the folder is missing.
    """
    from penult.data.files import user_path

    parent = user_path(path).absolute().parent
    while create and not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        problem = "is not a folder" if parent.exists() else "does not exist"
        raise UsageError(f"{path} cannot be written: {parent} {problem}")
