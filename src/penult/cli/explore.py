"""`penult explore`: a page on a collection, to see it, hear it and teach it classes."""

from __future__ import annotations

import socket
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penult.cli.collection import Store
from penult.cli.options import Json
from penult.cli.output import print_json, print_note, printable, stdout, working
from penult.errors import UsageError
from penult.extras import require

if TYPE_CHECKING:
    from penult.explorer.session import Explorer

PORT = 8765


def explore(
    collection: Store,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help=f"Port; 0 takes a free one. Default: {PORT}, or a free one."
        ),
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address, and open no browser.")
    ] = False,
    json: Json = False,
) -> None:
    """Open a page on a collection: a map, its sounds and pictures, rows that are alike, and classes
    taught in a few clicks.

    It listens on this machine alone, and its address has a token. Ends by Ctrl-C.
    """
    for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
        require(module)
    from penult.collection.collection import Collection
    from penult.collection.manifest import require_disk
    from penult.explorer.gate import kept_token
    from penult.explorer.routes import page_files, prepare
    from penult.explorer.session import Explorer
    from penult.server.process import address_of

    page = page_files()
    opened = Collection.open(collection, must_exist=True)
    require_disk(opened.path, "penult explore")
    token = kept_token(Path(collection))
    listener = _listen(port)
    address = f"{address_of(listener)}/?token={token}"
    with working(f"reading the rows of {collection}"):
        explorer = Explorer(opened)
    prepare(explorer)
    if json:
        print_json({"url": address})
    else:
        stdout.print(
            f"[bold]{printable(str(collection))}[/] on {address} ; Ctrl-C stops it", soft_wrap=True
        )
    if not (no_browser or json) and not _open_browser(address):
        print_note("no browser could be opened here: open the address in one")
    _serve(explorer, page, token, listener)


def _listen(port: int | None) -> socket.socket:
    """A socket: at the port, or at the usual one, or at a free one."""
    from penult.server.process import listen

    if port is not None:
        return listen("127.0.0.1", port)
    try:
        return listen("127.0.0.1", PORT)
    except UsageError:
        return listen("127.0.0.1", 0)


def _open_browser(address: str) -> bool:
    try:
        return webbrowser.open(address)
    except webbrowser.Error:
        return False


def _serve(explorer: Explorer, page: dict[str, bytes], token: str, listener: socket.socket) -> None:
    from penult.explorer.gate import PageGate
    from penult.explorer.routes import build
    from penult.server.gate import LOOPBACK, ApiKeys, Gate
    from penult.server.limits import ServerLimits
    from penult.server.metrics import Metrics
    from penult.server.process import serve

    limits = ServerLimits(grace=3.0)
    routes = PageGate(build(explorer, page), token, listener.getsockname()[1])
    gate = Gate(routes, ApiKeys(), limits, Metrics(lambda: 0.0), LOOPBACK)
    try:
        serve(gate, listener, limits)
    finally:
        explorer.close()
