"""The application of the explorer: the page, and the routes that it asks."""

from __future__ import annotations

from fastapi import FastAPI

from penult.explorer import media_routes, row_routes, teach_routes
from penult.explorer.session import Explorer


def build(explorer: Explorer) -> FastAPI:
    """The application."""
    app = FastAPI(title="Penult", docs_url=None, redoc_url=None, openapi_url=None)
    for part in (row_routes, media_routes, teach_routes):
        part.add(app, explorer)
    return app
