"""Routes of the page: sounds, pictures, frames of videos."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated

from fastapi import FastAPI, Header, Query, Response
from starlette.exceptions import HTTPException

from penult.explorer.media import COLUMNS, Facts, MediaAnswer
from penult.explorer.session import Explorer

_AROUND = 60.0  # seconds before and after a region
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
Seconds = Annotated[float, Query(ge=0, le=_AROUND)]
Given = Annotated[str | None, Header()]


def facts_of(explorer: Explorer, id: str, region: str) -> Facts:
    """What media are found by, of the row of a key.

    Raises:
        HTTPException: 404, it is no row of the collection.
    """
    rows = explorer.rows
    row = rows.number((id, region))
    found = None if row is None else rows.records([row], COLUMNS, ("path", "text"))[0]
    if found is None:
        raise HTTPException(404, "the collection has no such row")
    return found


def add(app: FastAPI, explorer: Explorer) -> None:
    """Add the routes."""

    @app.get("/media/audio")
    def audio(
        id: str,
        region: str = "whole",
        before: Seconds = 0.0,
        after: Seconds = 0.0,
        range: Given = None,
        if_none_match: Given = None,
    ) -> Response:
        found = explorer.media.sound(facts_of(explorer, id, region), before, after)
        answer = _answer(found, if_none_match, range)
        answer.headers["X-Start"] = f"{found.start:.6f}"
        return answer

    @app.get("/media/image")
    def image(
        id: str,
        region: str = "whole",
        size: Annotated[int, Query(ge=1, le=4096)] = 512,
        if_none_match: Given = None,
    ) -> Response:
        return _answer(explorer.media.picture(facts_of(explorer, id, region), size), if_none_match)

    @app.get("/media/frame")
    def frame(
        id: str,
        region: str = "whole",
        at: Annotated[float, Query(ge=0, le=1e7)] = 0.0,
        if_none_match: Given = None,
    ) -> Response:
        return _answer(explorer.media.frame(facts_of(explorer, id, region), at), if_none_match)


def _answer(found: MediaAnswer, known: str | None, range: str | None = None) -> Response:
    """The bytes, or a range of them; nothing where the browser has them."""
    content = found.content
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {
        "ETag": tag,
        "Cache-Control": "private, no-cache",
        "X-Content-Type-Options": "nosniff",
        "Accept-Ranges": "bytes",
    }
    if known is not None and tag in known:
        return Response(status_code=304, headers=headers)
    asked = _RANGE.fullmatch(range.strip()) if range else None
    if asked is None or not any(asked.groups()):  # also of several ranges: all of it is right, too
        return Response(content, 200, headers, found.type)
    first, last = asked.groups()
    begin = int(first) if first else max(0, len(content) - int(last))
    end = min(int(last) + 1 if first and last else len(content), len(content))
    if begin >= end:
        headers["Content-Range"] = f"bytes */{len(content)}"
        return Response(status_code=416, headers=headers)
    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
    return Response(content[begin:end], 206, headers, found.type)
