"""Options that several commands share: how to open a model that cannot say everything itself."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

NOTHING: dict[str, Any] = {}

Asked = dict[str, Any]  # what `opening` collects
Model = Annotated[
    str,
    typer.Argument(
        help="Folder, hub id, timm:NAME, torchvision:NAME, FILE.onnx, package.module:factory, "
        "or demo."
    ),
]
Paths = Annotated[
    list[str],
    typer.Argument(help="Files, folders, tables (CSV, JSONL, Parquet with a path column), or -."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Allow code and pickles of the checkpoint to run.")
]
Tap = Annotated[
    str | None,
    typer.Option(
        help="Where to read: backbone, prelogits, weighted, layer:N or a module's path; "
        "several, joined by commas, are read together."
    ),
]
Pooling = Annotated[
    str | None,
    typer.Option(help="Over positions: mean, max, first, last or mean+std; or one for each tap."),
]
PoolOver = Annotated[
    str | None,
    typer.Option(help="Of clips padded to one length, pool all positions or the valid ones."),
]
Channel = Annotated[
    str | None, typer.Option(help="A channel (from 0), or each; else the mean over channels.")
]
Engine = Annotated[
    str,
    typer.Option(
        help="auto (the fastest, measured where a run is long), torch, openvino or onnxruntime."
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="exact (cosine ≥ 0.999999 to torch in fp32), fast (≥ 0.9999) or turbo (≥ 0.999); "
        "else exact."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Devices = Annotated[
    str,
    typer.Option("--device", "--devices", help="auto, cpu, cuda, cuda:N or mps; or cuda:0,cuda:1."),
]

ASKED: dict[str, Any] = {
    "checkpoint": Annotated[
        str | None, typer.Option(help="Weights for a named model or factory: FILE or FILE#entry.")
    ],
    "preprocess": Annotated[
        str | None, typer.Option(help="package.module:function, from an item to tensors.")
    ],
    "class_names": Annotated[
        str | None, typer.Option(help="A file with the names of the model's classes, one a line.")
    ],
    "sample_rate": Annotated[
        int | None, typer.Option(help="Of audio that the model takes, if it cannot say itself.")
    ],
    "seconds": Annotated[
        float | None, typer.Option(help="Fixed length: shorter clips are padded, longer ones cut.")
    ],
    "modality": Annotated[str | None, typer.Option(help="audio, image, video or text.")],
    "kind": Annotated[str | None, typer.Option(help="single-label, multi-label or regression.")],
    "output": Annotated[
        str | None, typer.Option(help="Which output holds the logits, if there are several.")
    ],
    "trust": Annotated[
        bool, typer.Option("--trust", help="Allow code and pickles of the checkpoint to run.")
    ],
    "labels": Annotated[
        str | None, typer.Option(hidden=True, help="--class-names, as it was called before.")
    ],
}


def opening(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options above, handed on as its one argument `asked`; an option that the
    command has under the same name stays its own."""
    signature = inspect.signature(command, eval_str=True)
    shared = {name: kind for name, kind in ASKED.items() if name not in signature.parameters}

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        said = {name: given.pop(name, None) for name in shared}
        asked = {name: value for name, value in said.items() if value not in (None, False)}
        command(**given, asked=_current(asked))

    own = [p for p in signature.parameters.values() if p.name != "asked"]
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if name == "trust" else None,
            annotation=annotation,
        )
        for name, annotation in shared.items()
    ]
    named = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    described: Any = wrapped
    described.__signature__ = signature.replace(parameters=[*named, *added])
    described.__annotations__ = {p.name: p.annotation for p in [*named, *added]}
    del described.__wrapped__
    return wrapped


def _current(asked: Asked) -> Asked:
    """The class names under their own name, with a note where that of old was used."""
    if "labels" not in asked:
        return asked
    from penult.cli.output import say
    from penult.models.options import current

    say("[dim]--labels FILE is called --class-names FILE; it goes in the next version[/]")
    return current(asked)
