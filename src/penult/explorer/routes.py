"""The application of the explorer: the page, and the routes that it asks."""

from __future__ import annotations

import logging
import threading
import traceback
from contextlib import suppress
from importlib.resources import files

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from penult.errors import PenultError, UsageError
from penult.explorer import media_routes, row_routes, teach_routes
from penult.explorer.details import row_document
from penult.explorer.session import Explorer
from penult.server.answers import JSON, as_json, error_answer, error_document

log = logging.getLogger(__name__)
PAGE = {
    "index.html": "text/html; charset=utf-8",
    "main.js": "text/javascript; charset=utf-8",
    "main.css": "text/css; charset=utf-8",
    "LICENSES.txt": "text/plain; charset=utf-8",
}


def page_files() -> dict[str, bytes]:
    """The built page, by the names of its files.

    Raises:
        UsageError: it was not built.
    """
    folder = files("penult.explorer") / "page"
    try:
        return {name: (folder / name).read_bytes() for name in PAGE}
    except OSError as error:
        raise UsageError(
            "the page of the explorer was not built in this checkout: `make page` builds it (a "
            "wheel has it)"
        ) from error


def prepare(explorer: Explorer) -> None:
    """Make in the background what the page asks for first, while the browser starts."""

    def work() -> None:
        with suppress(PenultError):  # which the page is told when it asks
            explorer.points.drawn()
            explorer.values.columns()
            explorer.media.prepare()
            if explorer.rows.there.any():
                row_document(explorer, int(explorer.rows.there.argmax()))

    threading.Thread(target=work, daemon=True, name="prepare").start()


def build(explorer: Explorer, page: dict[str, bytes] | None = None) -> FastAPI:
    """The application. page: files that it consists of."""
    app = FastAPI(title="Penult", docs_url=None, redoc_url=None, openapi_url=None)
    for part in (row_routes, media_routes, teach_routes):
        part.add(app, explorer)
    for name, content in (page or {}).items():
        _add_file(app, name, content)
    for kind in (PenultError, RequestValidationError, ValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _on_error)
    return app


def _add_file(app: FastAPI, name: str, content: bytes) -> None:
    @app.get("/" if name == "index.html" else f"/{name}")
    def file() -> Response:
        return Response(content, media_type=PAGE[name])


async def _on_error(request: Request, error: Exception) -> Response:
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        status, headers = error.status_code, dict(error.headers or {})
        document = error_document(str(error.detail), "invalid_request_error")
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][1:]))
        words = f"{place}: {first['msg']}" if place else str(first["msg"])
        status, document = 400, error_document(words, "invalid_request_error", first["type"])
    else:
        status, document, headers = error_answer(error)
    if status == 500:
        log.error("%s failed: %s", request.url.path, "".join(traceback.format_exception(error)))
    return Response(as_json(document), status, headers, JSON)
