"""The gate of the page: a secret in its address becomes a cookie of this browser, and every answer
forbids what the page does not need."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import PlainTextResponse, RedirectResponse, Response

from penult.data.files import user_cache
from penult.errors import UsageError, cause
from penult.server.answers import JSON, as_json, error_document
from penult.server.gate import Application, Message, Receive, Send

COOKIE = "penult"  # and the port: cookies of one host are shared by its ports
_LENGTH = 32  # letters of a secret, at least
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; worker-src 'self' blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(self)",
}
_CLOSED = "Open the address that `penult explore` printed: it has the token that this page needs."


def kept_token(path: Path) -> str:
    """The secret of a collection's page: kept in the user's cache, so that a page goes on where the
    command is started again.

    Raises:
        UsageError: it cannot be kept.
    """
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    file = user_cache() / "explorer" / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileNotFoundError):
            if file.stat().st_mode & 0o077 == 0 and len(found := file.read_text()) >= _LENGTH:
                return found
            file.unlink()  # others may have read it
        token = secrets.token_urlsafe(_LENGTH)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(token)
        return token
    except FileExistsError:  # another command was quicker
        return kept_token(path)
    except OSError as error:
        raise UsageError(
            f"{file}, the secret of the page, cannot be kept: {cause(error)}"
        ) from error


class PageGate:
    """Lets only the browser through that was given the token. port: of the server."""

    def __init__(self, routes: Application, token: str, port: int) -> None:
        self._routes, self._token = routes, token
        self._cookie = f"{COOKIE}-{port}"

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _completed(message["headers"])}
            await send(message)

        answer = self._answer(scope)
        await (self._routes if answer is None else answer)(scope, receive, sent)

    def _answer(self, scope: Any) -> Response | None:
        """What is answered without a look at the routes."""
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key = name.decode("latin-1").lower()
            before = f"{headers[key]}; " if key in headers else ""
            headers[key] = before + value.decode("latin-1")
        # Cookies are sent along for pages of other ports of this machine too: their pictures and
        # sounds name no origin, but say that they are of another site or origin.
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _refused(scope, 403, "pages of other origins may not ask")
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[-1]
        if scope["path"] == "/" and given:
            if not self._is_token(given):
                return _refused(scope, 401, _CLOSED)
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
            return answer
        if not self._is_token(_cookie_in(headers.get("cookie", ""), self._cookie)):
            return _refused(scope, 401, _CLOSED)
        return None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())


def _cookie_in(header: str, name: str) -> str:
    """The value of a cookie; those of other programs on this machine may hold anything."""
    given = (part.strip().partition("=") for part in header.split(";"))
    return next((value for key, _, value in given if key == name), "")


def _refused(scope: Any, status: int, words: str) -> Response:
    if scope["path"] == "/":
        return PlainTextResponse(words, status)
    return Response(
        as_json(error_document(words, "invalid_request_error", None)), status, media_type=JSON
    )


def _completed(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """With those that forbid what the page does not need."""
    given: MutableMapping[bytes, bytes] = {k.encode(): v.encode() for k, v in HEADERS.items()}
    there = {name.lower() for name, _ in headers}
    given.setdefault(b"cache-control", b"no-store")
    return [*headers, *((name, value) for name, value in given.items() if name not in there)]
