"""A server in a thread of the tests, and clients that ask it."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import soundfile

from penult.data.decode import Decoding
from penult.embedding.embedder import Embedder
from penult.server.gate import LOOPBACK, ApiKeys, Gate
from penult.server.limits import ServerLimits
from penult.server.process import address_of, listen, serve
from penult.server.routes import Served, build
from penult.server.service import Service


@dataclass
class LiveServer:
    url: str
    served: Served
    gate: Gate

    def post(self, route: str, document: Any = None, **more: Any) -> httpx.Response:
        return httpx.post(self.url + route, json=document, timeout=60, **more)

    def embed(self, *sounds: bytes, **more: Any) -> httpx.Response:
        return self.post("/v1/embeddings", {"input": [uri(one) for one in sounds], **more})

    def metric(self, name: str) -> float:
        """The sum over its labels."""
        lines = httpx.get(self.url + "/metrics").text.splitlines()
        found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)


def uri(content: bytes, kind: str = "audio/wav") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def wav(sound: np.ndarray, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def vectors_in(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([one["embedding"] for one in answer.json()["data"]], np.float32)


@contextmanager
def running(
    embedder: Embedder,
    limits: ServerLimits = ServerLimits(grace=5.0),
    decoding: Decoding = Decoding(workers=2, time_limit=20.0),
    keys: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
    **more: Any,
) -> Iterator[LiveServer]:
    service = Service(embedder, limits, decoding)
    served = Served("model", service, **more)
    gate = Gate(build(served, origins), ApiKeys(keys), limits, service.metrics, LOOPBACK, origins)
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=serve, args=(gate, listener, limits), daemon=True)
    thread.start()
    try:
        yield LiveServer(address_of(listener), served, gate)
    finally:
        gate.stopping = True
        thread.join(30)
        service.close()
        assert not thread.is_alive()
