"""`penult serve`: an embedder over HTTP."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penult.cli.options import (
    NO_OPTIONS,
    Device,
    Engine,
    Json,
    Model,
    ModelOptions,
    Pooling,
    PoolOver,
    Precision,
    Tap,
    with_limits,
    with_model_options,
)
from penult.cli.output import print_json, printable, stdout, working
from penult.errors import UsageError
from penult.extras import require

if TYPE_CHECKING:
    from penult.embedding.embedder import Embedder
    from penult.server.gate import ApiKeys
    from penult.server.limits import ServerLimits
    from penult.server.routes import Served

_SAMPLE = 4  # made-up items that engines are measured on


@with_limits
@with_model_options
def serve(
    model: Model,
    collection: Annotated[
        Path | None, typer.Option(help="A collection of this embedder, for /v1/search.")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="A class file (FILE.npz), for /v1/predict and /v1/classes; made by the first "
            "example. Default: the classes of the collection."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="The model's name for clients. Default: the folder's.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the API keys, one on each line.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond this machine without API keys.")
    ] = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin of web pages whose scripts may ask; repeatable."),
    ] = None,
    max_seconds_waiting: Annotated[
        float,
        typer.Option(
            help="Seconds of sound or video that may wait (of pictures and texts: of expected "
            "work); more is answered with 429 and Retry-After."
        ),
    ] = 1800.0,
    max_items: Annotated[int, typer.Option(help="Most items of a request.")] = 2048,
    max_megabytes: Annotated[float, typer.Option(help="Largest request, in megabytes.")] = 100.0,
    max_request_seconds: Annotated[
        float, typer.Option(help="Longest time until a request is answered.")
    ] = 600.0,
    grace: Annotated[
        float, typer.Option(help="Seconds for what was accepted, once the server is to stop.")
    ] = 30.0,
    tap: Tap = None,
    pooling: Pooling = None,
    pool_over: PoolOver = None,
    device: Device = "auto",
    engine: Engine = "auto",
    precision: Precision = None,
    json: Json = False,
    model_options: ModelOptions = NO_OPTIONS,
) -> None:
    """Serve labels and vectors of one pass over HTTP, as OpenAI's clients ask for them.

    Ends by Ctrl-C or SIGTERM, once what was accepted is answered.
    """
    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        require(module)
    from penult.server.gate import ApiKeys
    from penult.server.limits import ServerLimits
    from penult.server.process import address_of, listen

    keys = ApiKeys() if api_key_file is None else ApiKeys.read(api_key_file)
    hosts = _hosts(host, keys, insecure)
    limits = ServerLimits(
        waiting=max_seconds_waiting,
        body=int(max_megabytes * 1e6),
        items=max_items,
        request=max_request_seconds,
        grace=grace,
    )
    listener = listen(host, port)
    with working(f"loading {model}"):
        embedder = _embedder(
            model, tap, pooling, pool_over=pool_over, device=device, engine=engine,
            precision=precision, **model_options,
        )  # fmt: skip
        served = _served(embedder, name or _name_of(model), limits, collection, classes)
    try:
        _tell(served, address_of(listener), json)
        _serve(served, listener, limits, keys, hosts, allow_origin or ())
    finally:
        served.service.close()


def _hosts(host: str, keys: ApiKeys, insecure: bool) -> tuple[str, ...] | None:
    """The names by which the server may be asked: without keys, only those of this machine, or a
    page of the web could be given one of them.

    Raises:
        UsageError: everybody could ask.
    """
    from penult.server.gate import LOOPBACK

    if host in LOOPBACK or (_is_address(host) and ip_address(host).is_loopback):
        return None if keys else (*LOOPBACK, host)
    if not keys and not insecure:
        raise UsageError(
            f"--host {host} lets other machines ask: give --api-key-file FILE, or --insecure if "
            "everybody may"
        )
    return None


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(host))
    return False


def _name_of(model: str) -> str:
    """The last part of a folder's name, else as it was typed."""
    path = Path(model)
    return path.resolve().name if path.exists() else model


def _embedder(model: str, tap: str | None, pooling: str | None, **how: Any) -> Embedder:
    """The embedder, with its engine chosen."""
    from penult.data.sources import from_objects
    from penult.embedding.embedder import open_embedder
    from penult.embedding.source_sample import SourceSample
    from penult.models.synthetic import content_of

    embedder = open_embedder(model, tap, pooling, **how)
    one = embedder.classifier.input
    sample = [content_of(one.modality, at, one.rate, one.frames, 2.0 + at) for at in range(_SAMPLE)]
    embedder.settle(SourceSample(from_objects(sample, one.modality)))
    return embedder


def _served(
    embedder: Embedder,
    name: str,
    limits: ServerLimits,
    collection: Path | None,
    classes: Path | None,
) -> Served:
    from penult.collection.collection import Collection
    from penult.collection.search import check_embedder
    from penult.data.decode import BRIEF_LIMIT, TIME_LIMIT, usual_decoding
    from penult.fewshot.classspace import ClassSpace
    from penult.server.routes import Served
    from penult.server.service import Service
    from penult.server.taught import TaughtClasses

    rows = None
    if collection is not None:
        rows = Collection.open(collection, must_exist=True)
        check_embedder(rows.reader.require_manifest(), embedder)
    taught = None
    if classes is not None:
        taught = TaughtClasses.open(classes, embedder)
    elif rows is not None:
        taught = TaughtClasses(ClassSpace(rows), embedder, None)
    decoding = usual_decoding()
    if decoding.time_limit == TIME_LIMIT:  # of a run that nobody waits for
        decoding = replace(decoding, time_limit=BRIEF_LIMIT)
    return Served(name, Service(embedder, limits, decoding), taught, rows)


def _tell(served: Served, address: str, json: bool) -> None:
    if json:
        print_json({"url": address, "model": served.name, "dim": served.service.embedder.dim})
        return
    stdout.print(
        f"[bold]{printable(served.name)}[/] on {address}/v1/embeddings (OpenAPI: "
        f"{address}/openapi.json); Ctrl-C stops it",
        soft_wrap=True,
    )


def _serve(
    served: Served,
    listener: socket.socket,
    limits: ServerLimits,
    keys: ApiKeys,
    hosts: tuple[str, ...] | None,
    origins: Sequence[str],
) -> None:
    from penult.server.gate import Gate
    from penult.server.process import serve
    from penult.server.routes import build

    gate = Gate(build(served, origins), keys, limits, served.service.metrics, hosts, origins)
    serve(gate, listener, limits)
