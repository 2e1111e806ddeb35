"""Limits of the server: what a request, a client and all of them together may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from penult.errors import UsageError


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a server takes.

    waiting: seconds of sound or video that wait and are worked on together; of pictures and texts
    seconds of expected work. body: bytes of a request. items: of a request. regions: of a request,
    windows, tiles or pages. upload: seconds for the body of a request to arrive, and for a client
    to take a part of an answer. request: seconds until a request is answered. connections: open at
    once. grace: seconds in which a server that stops answers what it has accepted.
    """

    waiting: float = 1800.0
    body: int = 100_000_000
    items: int = 2048
    regions: int = 20_000
    upload: float = 60.0
    request: float = 600.0
    connections: int = 1024
    grace: float = 30.0

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) > 0:
                raise UsageError(
                    f"a limit of {getattr(self, one.name):g} for {one.name} lets nothing through; "
                    "give more"
                )
