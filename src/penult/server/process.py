"""The server as a process: its socket, its connections, and how it stops."""

from __future__ import annotations

import asyncio
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from penult.errors import UsageError, cause
from penult.server.gate import Gate
from penult.server.limits import ServerLimits

_HEAD = 15.0  # seconds for the head of a request to arrive
_KEPT = 30  # seconds that a connection stays open without a request
_LEAVING = 2  # seconds for connections to close behind their last answer
_BACKLOG = 2048


class _Connection(H11Protocol):
    """A connection that is closed where the head of a request does not arrive in time: a client
    that sends a letter now and then keeps none open for ever. Where there are as many as there may
    be, the one that has been without a request for longest makes room."""

    _timer: asyncio.TimerHandle | None = None
    _idle_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle_since = time.monotonic()
        self._watch()
        if self.limit_concurrency and len(self.connections) >= self.limit_concurrency:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """What of the answer is not taken by then is given up."""
        super().on_response_complete()
        self._idle_since = time.monotonic()
        if self.transport.is_closing():
            self.loop.call_later(_KEPT, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """No further request has come."""
        super().timeout_keep_alive_handler()
        self.transport.abort()

    def _make_room(self) -> None:
        own = [one for one in self.connections if isinstance(one, _Connection)]
        idle = [one for one in own if one.is_idle and one is not self]
        if idle:
            longest = min(idle, key=lambda one: one._idle_since)
            self.connections.discard(longest)
            longest.transport.abort()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self.is_idle:
            self._end()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEAD, self._late)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self.transport.abort()


class _Server(uvicorn.Server):
    """Stops by a signal: what was accepted is answered, within the time of grace; new requests get
    503. A second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, gate: Gate, grace: float) -> None:
        super().__init__(config)
        self._gate, self._grace = gate, grace
        self._since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal."""
        if self._gate.stopping:
            self.should_exit = self.force_exit = True
        self._gate.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now."""
        if self._gate.stopping:
            self._since = self._since or time.monotonic()
            if not self._gate.active or time.monotonic() - self._since > self._grace:
                return True
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address.

    Raises:
        UsageError: it cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"{host}:{port} cannot be listened on: {cause(error)}; --port 0 takes a free one"
        ) from error


def serve(gate: Gate, listener: socket.socket, limits: ServerLimits) -> None:
    """Serve until a signal comes, or the gate is set to stop."""
    config = uvicorn.Config(
        gate,
        http=_Connection,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=_KEPT,
        timeout_graceful_shutdown=_LEAVING,
        backlog=_BACKLOG,
    )
    _Server(config, gate, limits.grace).run(sockets=[listener])


def address_of(listener: socket.socket) -> str:
    """`http://127.0.0.1:8000`."""
    name: Any = listener.getsockname()
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"
