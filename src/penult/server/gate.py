"""The gate before the routes: keys, hosts and origins, sizes and times of bodies, clients that
leave, and a server that stops."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from penult.errors import UsageError
from penult.server.answers import JSON, as_json, error_document
from penult.server.limits import ServerLimits
from penult.server.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Receive, Send], Awaitable[None]]

log = logging.getLogger(__name__)
OPEN = ("/health", "/ready")  # without a key
LOOPBACK = ("127.0.0.1", "localhost", "::1")
BODIES = 8  # largest bodies that are in memory at once
_SHORTEST = 8  # letters of a key
_LEFT = 499  # status of a request whose client left without an answer
_PART = 1 << 18  # bytes of an answer that are sent in one piece


class ApiKeys:
    """The keys that clients may have, one or more; none lets everybody in."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._hashes = [sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """The keys in a file, one on each line.

        Raises:
            UsageError: none, or one that is too short to be a secret.
        """
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}, the file of API keys, cannot be read: {error}") from error
        keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not keys:
            raise UsageError(f"{path} has no API key; write one on each line")
        if short := [at for at, key in enumerate(keys, 1) if len(key) < _SHORTEST]:
            raise UsageError(f"{path}: key {short[0]} has less than {_SHORTEST} letters")
        return cls(keys)

    def client(self, authorization: str) -> str | None:
        """A name for the client of this header; None where the key is none of these. All keys are
        compared, in constant time."""
        scheme, _, given = authorization.partition(" ")
        digest = sha256(given.strip().encode("latin-1")).digest()  # the bytes that were sent
        same = [hmac.compare_digest(digest, one) for one in self._hashes]
        known = any(same) and scheme.lower() == "bearer"
        return f"key {same.index(True)}" if known else None


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Gate:
    """Lets requests through to the routes that may pass.

    hosts: names by which the server may be asked, None for any. origins: of web pages whose
    scripts may ask. stopping: set it to take no more requests; `active` counts those under way.
    """

    def __init__(
        self,
        routes: Application,
        keys: ApiKeys,
        limits: ServerLimits,
        metrics: Metrics,
        hosts: Sequence[str] | None,
        origins: Sequence[str] = (),
    ) -> None:
        self._routes, self._keys, self._limits, self._metrics = routes, keys, limits, metrics
        self._hosts, self._origins = hosts, origins
        self.stopping = False
        self.active = 0
        self._held = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._routes(scope, receive, send)
            return
        began, status = time.perf_counter(), _LEFT

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            # A client that does not read holds its own connection, and not for ever.
            for part in _parts(message):
                await asyncio.wait_for(send(part), self._limits.upload)

        self.active += 1
        held = [0]
        try:
            scope.setdefault("state", {})["client"] = self._check(scope)
            body = await self._body(scope, receive, held)
            await self._pass(scope, body, receive, sent)
        except _Refused as error:
            document = error_document(str(error), "invalid_request_error", error.code)
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            if error.status in (429, 503):
                headers["Retry-After"] = "1"
            await _answer(sent, error.status, document, headers)
        except asyncio.CancelledError:
            if not self.stopping or status != _LEFT:
                raise
            document = error_document("the server stops", "server_error", "stopping")
            await _answer(sent, 503, document, {"Retry-After": "1"})
        except (TimeoutError, ConnectionError):
            log.info("a client was given up that did not read its answer")
            raise
        finally:
            self.active -= 1
            self._held -= held[0]
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request_ended(route, status, time.perf_counter() - began)

    def _check(self, scope: Any) -> str:
        """The client's name.

        Raises:
            _Refused: it may not ask.
        """
        headers = {name.decode("latin-1").lower(): value.decode("latin-1")
                   for name, value in scope["headers"]}  # fmt: skip
        path, host = scope["path"], headers.get("host", "")
        name = _name_in(host)
        if self._hosts is not None and name not in self._hosts:
            raise _Refused(403, "this server is not asked by that host name", "wrong_host")
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and "*" not in self._origins:
            own = origin.partition("://")[2]
            if own != host:
                raise _Refused(
                    403, "pages of other origins may not ask (--allow-origin)", "wrong_origin"
                )
        if self.stopping and path not in OPEN:
            raise _Refused(503, "the server stops", "stopping")
        address = (scope.get("client") or ("unknown",))[0]
        if not self._keys or path in OPEN or scope["method"] == "OPTIONS":
            return str(address)
        given = headers.get("authorization", "")
        client = self._keys.client(given)
        if client is None:
            what = "the API key is none of this server's" if given else "give an API key"
            raise _Refused(401, f"{what}: Authorization: Bearer KEY", "invalid_api_key")
        return client

    async def _body(self, scope: Any, receive: Receive, held: list[int]) -> bytes:
        """The whole body: a client that sends slowly, or too much, reaches no route. held: takes
        its bytes."""
        most = self._limits.body
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > most:
                raise _Refused(413, f"a request may have {most:,} bytes", "too_large")
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.upload):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Refused(400, "the request has no end", "cut_off")
                    part = message.get("body", b"")
                    if len(body) + len(part) > most:
                        raise _Refused(413, f"a request may have {most:,} bytes", "too_large")
                    if self._held + len(part) > BODIES * most:
                        raise _Refused(429, "too many large requests at once", "overloaded")
                    self._held += len(part)
                    held[0] += len(part)
                    body += part
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError as error:
            raise _Refused(
                408, f"the body did not arrive in {self._limits.upload:g} s", "timeout"
            ) from error

    async def _pass(self, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        """Let a request through, as long as its client is there."""
        given = asyncio.Event()

        async def replayed() -> Message:
            if not given.is_set():
                given.set()
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()  # a client that leaves ends the whole request
            raise AssertionError

        async def left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        work = asyncio.ensure_future(self._routes(scope, replayed, send))
        watch = asyncio.ensure_future(left())
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
            if work.done() and (error := work.exception()) is not None:
                log.debug("a route failed, which it has answered", exc_info=error)
        finally:
            for task in (work, watch):
                task.cancel()
            with suppress(Exception):
                await asyncio.gather(work, watch, return_exceptions=True)


def _name_in(host: str) -> str:
    """The name in a Host header, without its port; empty where it is none."""
    if any(sign in host for sign in "/?#@"):
        return ""
    with suppress(ValueError):  # of brackets
        return urlsplit(f"//{host}").hostname or ""
    return ""


def _parts(message: Message) -> Iterator[Message]:
    """A message in such parts that each waits until the client has taken the ones before."""
    body = message.get("body", b"")
    for at in range(0, len(body) - _PART, _PART):
        yield {**message, "body": body[at : at + _PART], "more_body": True}
    yield {**message, "body": body[(len(body) - 1) // _PART * _PART :]} if body else message


async def _answer(
    send: Send, status: int, document: dict[str, Any], headers: dict[str, str]
) -> None:
    body = as_json(document)
    given = {"content-type": JSON, "content-length": str(len(body)), "connection": "close"}
    pairs = [(n.lower().encode(), v.encode()) for n, v in {**given, **headers}.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
