"""A local S3 server, and a proxy before it that counts bytes and makes faults."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "AKIATESTONLY", "AWS_SECRET_ACCESS_KEY": "s3cr3t-of-the-tests"}


def _free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of a moto server, in a process of its own."""
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with closing(socket.socket()) as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait(10)


@dataclass
class Proxy:
    """Passes requests on and counts. every: of so many requests one is answered 503; stall: of so
    many one is not answered at all, until it is given up. sent: bytes of the answers to GET."""

    upstream: int
    every: int = 0
    stall: int = 0
    requests: int = 0
    faults: int = 0
    sent: int = 0
    log: list[str] = field(default_factory=list)
    port: int = 0

    def reset(self, every: int = 0, stall: int = 0) -> None:
        self.every, self.stall = every, stall
        self.requests = self.faults = self.sent = 0
        self.log.clear()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await _head(reader):
                body = await _body(reader, head)
                self.requests += 1
                line = head.split(b"\r\n", 1)[0].decode()
                self.log.append(line)
                if self.stall and self.requests % self.stall == 0:
                    self.faults += 1
                    await asyncio.sleep(60)
                    return
                if self.every and self.requests % self.every == 0:
                    self.faults += 1
                    writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n")
                    await writer.drain()
                    continue
                await self._pass(line, head, body, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _pass(self, line: str, head: bytes, body: bytes, writer: Any) -> None:
        there, out = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            out.write(head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1) + body)
            await out.drain()
            answer = await there.read(-1)
        finally:
            out.close()
        if line.startswith("GET"):
            self.sent += len(answer.partition(b"\r\n\r\n")[2])
        writer.write(answer)
        await writer.drain()
        writer.close()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return await reader.readexactly(int(line.split(b":")[1]))
        if line.startswith(b"transfer-encoding:"):
            raise OSError("chunked bodies are not passed on")
    return b""


@contextmanager
def proxied(upstream: int) -> Iterator[Proxy]:
    """A proxy before a server, in a thread."""
    proxy, loop = Proxy(upstream), asyncio.new_event_loop()
    started = threading.Event()

    async def serve() -> None:
        server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0, limit=1 << 20)
        proxy.port = server.sockets[0].getsockname()[1]
        started.set()
        await server.serve_forever()

    def run() -> None:
        asyncio.set_event_loop(loop)
        with suppress(RuntimeError, asyncio.CancelledError):
            loop.run_until_complete(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(10)
    try:
        yield proxy
    finally:
        for task in asyncio.all_tasks(loop):
            loop.call_soon_threadsafe(task.cancel)
        thread.join(5)


def environment(port: int) -> dict[str, str]:
    """What a user sets for this server."""
    return {
        **KEYS,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_TIMEOUT": "3s",
    }


def bucket(port: int, name: str) -> Any:
    """An obstore of a new bucket, past the proxy."""
    from urllib.request import Request, urlopen

    from obstore.store import S3Store

    scope = f"Credential={KEYS['AWS_ACCESS_KEY_ID']}/20260101/us-east-1/s3/aws4_request"
    request = Request(f"http://127.0.0.1:{port}/{name}", method="PUT")
    request.add_header("Authorization", f"AWS4-HMAC-SHA256 {scope}")
    urlopen(request).close()
    return S3Store(
        name,
        endpoint=f"http://127.0.0.1:{port}",
        access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        client_options={"allow_http": True},
    )


def upload(store: Any, folder: Path, prefix: str) -> None:
    """All files of a folder."""
    for root, _, names in os.walk(folder):
        for name in names:
            file = Path(root, name)
            store.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())
