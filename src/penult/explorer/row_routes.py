"""Routes of the page: rows, points, searches and selections."""

from __future__ import annotations

import getpass
import os
from typing import Annotated, Any
from urllib.parse import quote

import numpy as np
from fastapi import FastAPI, Form, Query, Request, Response, UploadFile
from starlette.exceptions import HTTPException

from penult.analysis.space import RAW
from penult.collection.derived import rename_cluster
from penult.errors import UsageError
from penult.explorer.details import found_rows, row_document, short_rows
from penult.explorer.requests import (
    MOST_HITS,
    ExportedRows,
    NamedRows,
    NamedSelection,
    RenamedCluster,
    SearchByExample,
)
from penult.explorer.rows import NoSuchRow
from penult.explorer.search import LARGEST, ExampleQuery, ExampleSearch
from penult.explorer.selections import RowSelections
from penult.explorer.session import Explorer
from penult.server.answers import JSON, as_json, error_document

_HIGHEST = float(np.finfo(np.float32).max)
_MOST = 2000  # rows of a list
BYTES = "application/octet-stream"


def add(app: FastAPI, explorer: Explorer) -> None:
    """Add the routes."""
    selections = RowSelections(explorer)
    _add_points(app, explorer, selections)
    _add_rows(app, explorer)
    _add_searches(app, explorer, ExampleSearch(explorer))
    _add_selections(app, explorer, selections)
    app.add_exception_handler(NoSuchRow, _on_no_row)


async def _on_no_row(request: Request, error: Exception) -> Response:
    document = error_document(str(error), "invalid_request_error", NoSuchRow.__name__)
    return Response(as_json(document), 404, media_type=JSON)


def _json(document: Any) -> Response:
    return Response(as_json(document), media_type=JSON)


def _numbers(text: str) -> list[int]:
    parts = text.split(",") if text else []
    if len(parts) > _MOST or not all(one.isascii() and one.isdigit() for one in parts):
        raise UsageError(f"rows: numbers with commas between them, {_MOST:,} at most")
    return [min(int(one), 1 << 62) for one in parts]


def state_of(explorer: Explorer, selections: RowSelections) -> dict[str, Any]:
    """For JSON: what the page shows of a collection as a whole."""
    collection, values = explorer.collection, explorer.values
    manifest, points = collection.reader.require_manifest(), explorer.points.drawn()
    model = manifest.model
    return {
        "name": collection.path.name,
        "rows": points.total,
        "drawn": len(points.rows),
        "sampled": points.is_sample,
        "modality": explorer.media.modality,
        "model": {
            "name": model.get("spec", ""),
            "dim": manifest.dim,
            "tap": model.get("tap", ""),
            "pooling": model.get("pooling", ""),
            "labels": list(manifest.labels),
        },
        "map": {
            "method": points.method,
            "making": explorer.points.is_making,
            "nearby": points.nearby,
        },
        "space": RAW,  # of searches
        "columns": [one.to_dict() for one in values.columns()],
        "classes": explorer.records.classes(),
        "clusterings": values.clusterings(),
        "selections": selections.listed(),
        "user": user(),
        "read_only": not os.access(collection.path, os.W_OK),
    }


def user() -> str:
    """The name of whoever started the server, for marks."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _add_points(app: FastAPI, explorer: Explorer, selections: RowSelections) -> None:
    @app.get("/api/state")
    def state(since: int | None = None) -> Response:
        version = explorer.watch.look()
        own = {
            "version": version,
            "session": explorer.id,
            "running": explorer.watch.running(),
        }
        if since == version:
            return _json(own)
        return _json(own | state_of(explorer, selections))

    @app.get("/api/points")
    def points() -> Response:
        headers = {"X-Version": str(explorer.watch.version)}
        drawn = explorer.points.drawn()
        return Response(drawn.to_bytes(), 200, headers | {"X-Map": drawn.method}, BYTES)

    @app.get("/api/legend")
    def legend(by: str) -> Response:
        return _json(explorer.values.legend(by, explorer.points.drawn().rows))

    @app.get("/api/values")
    def values(by: str) -> Response:
        headers = {"X-Version": str(explorer.watch.version)}
        rows, found = explorer.points.drawn().rows, explorer.values.of(by).values
        drawn = np.full(len(rows), np.nan)
        known = rows < len(found)
        drawn[known] = np.clip(found[rows[known]], -_HIGHEST, _HIGHEST)
        return Response(drawn.astype("<f4").tobytes(), 200, headers, BYTES)


def _add_rows(app: FastAPI, explorer: Explorer) -> None:
    @app.get("/api/rows")
    def rows(rows: Annotated[str, Query(max_length=20_000)]) -> Response:
        return _json({"rows": short_rows(explorer, _numbers(rows))})

    @app.get("/api/row")
    def row(row: int) -> Response:
        explorer.watch.look()
        return _json(row_document(explorer, row))

    @app.get("/api/find")
    def find(
        text: Annotated[str, Query(min_length=1, max_length=1000)],
        k: Annotated[int, Query(ge=1, le=_MOST)] = 50,
    ) -> Response:
        return _json({"rows": short_rows(explorer, found_rows(explorer, text, k))})


def _add_searches(app: FastAPI, explorer: Explorer, search: ExampleSearch) -> None:
    @app.post("/api/search")
    def by_example(body: SearchByExample) -> Response:
        explorer.watch.look()
        query = ExampleQuery(body.k, body.like, body.unlike, body.where or None)
        if (part := body.region) is not None:
            return _json(search.by_region(query, part.row, part.start, part.end))
        return _json(search.by_rows(query))

    @app.post("/api/search/upload")
    def by_upload(
        file: UploadFile,
        k: Annotated[int, Form(ge=1, le=MOST_HITS)] = 50,
        where: Annotated[str, Form(max_length=4096)] = "",
    ) -> Response:
        if (file.size or 0) > LARGEST:
            raise HTTPException(413, f"the file has more than {LARGEST:,} bytes; cut it")
        query = ExampleQuery(k, where=where or None)
        return _json(search.by_file(query, file.file.read(LARGEST + 1), file.filename or ""))

    @app.get("/api/neighbours")
    def neighbours(row: int, k: Annotated[int, Query(ge=1, le=MOST_HITS)] = 12) -> Response:
        return _json(search.by_rows(ExampleQuery(k, [row])))


def _add_selections(app: FastAPI, explorer: Explorer, selections: RowSelections) -> None:
    @app.post("/api/selections")
    def keep(body: NamedRows) -> Response:
        selections.keep(body.name, body.rows)
        return _json({"version": explorer.watch.look(), "selections": selections.listed()})

    @app.post("/api/selections/remove")
    def remove(body: NamedSelection) -> Response:
        selections.remove(body.name)
        return _json({"version": explorer.watch.look(), "selections": selections.listed()})

    @app.get("/api/selections/rows")
    def rows(name: str) -> Response:
        return _json({"rows": selections.rows(name)})

    @app.post("/api/export")
    def export(body: ExportedRows) -> Response:
        content, kind, name = selections.exported(body.rows, body.format)
        headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
        return Response(content, 200, headers, kind)

    @app.post("/api/clusters/rename")
    def rename(body: RenamedCluster) -> Response:
        rename_cluster(explorer.collection.reader, body.clustering, body.number, body.name)
        explorer.watch.look()
        return _json(
            {"version": explorer.watch.version, "clusterings": explorer.values.clusterings()}
        )
