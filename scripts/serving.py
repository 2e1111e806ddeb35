"""The section of bench.py on the server; as a program, the clients that ask it.

python scripts/serving.py URL FOLDER [--clients N] [--rate ITEMS_PER_SECOND] [--routes ROUTE,…]
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from measuring import Bench, Fault, Section, digits, ratios
from page import Table
from speed import mixed, models, saved

CLIENTS = 64
GOAL, OVERHEAD = 0.9, 0.005  # of offline throughput; seconds of one request above `emb.run`
SOUND = 240.0  # seconds
ALONE = 12  # requests of a single client


def ask(connection: http.client.HTTPConnection, route: str, body: bytes) -> None:
    """One request, which has to be answered."""
    connection.request("POST", route, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{route}: {answer.status} {content[:200]!r}")


def clients(options: argparse.Namespace) -> dict[str, Any]:
    """Every file of a folder once, by clients that each ask for the next one; with a rate, at
    random moments. Seconds in all, of the clients' own processor, and of each answer."""
    bodies = [
        json.dumps(
            {
                "input": ["data:audio/wav;base64," + base64.b64encode(path.read_bytes()).decode()],
                **({"encoding_format": "base64"} if options.routes == ROUTES[0] else {}),
            }
        ).encode()
        for path in sorted(options.folder.glob("*.wav"))
    ]
    netloc, lock, times = urlsplit(options.url).netloc, threading.Lock(), list[float]()
    gaps = np.random.default_rng(0).exponential(1 / (options.rate or 1), len(bodies))
    starts = np.cumsum(gaps) if options.rate else np.zeros(len(bodies))
    waiting = list(zip(starts, bodies, strict=True))[::-1]
    began, cpu = time.perf_counter(), time.process_time()

    def client() -> None:
        connection = http.client.HTTPConnection(netloc)
        while True:
            with lock:
                if not waiting:
                    return
                start, body = waiting.pop()
            time.sleep(max(0.0, began + start - time.perf_counter()))
            asked = time.perf_counter()
            for route in options.routes.split(","):
                ask(connection, route, body)
            with lock:
                times.append(time.perf_counter() - max(asked, began + start))

    with ThreadPoolExecutor(options.clients) as threads:
        for one in [threads.submit(client) for _ in range(options.clients)]:
            one.result()  # which raises what the client did
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "times": times,
    }


ROUTES = ("/v1/embeddings", "/v1/classify")

# As its documentation shows batches: padded by hand, with the model's own mask, 8 at most.
LITSERVE = """
import base64, io, json, sys
import litserve, soundfile, torch, transformers

class Api(litserve.LitAPI):
    def setup(self, device):
        name = "Wav2Vec2ForSequenceClassification"
        self.model = getattr(transformers, name).from_pretrained(sys.argv[1]).eval()
        self.extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(sys.argv[1])
        self.held = []
        self.model.wav2vec2.register_forward_hook(lambda *a: self.held.append(a[-1][0]))

    def decode_request(self, request):
        content = base64.b64decode(request["input"][0].partition(",")[2])
        return soundfile.read(io.BytesIO(content), dtype="float32")[0]

    def batch(self, waves):
        return waves

    def predict(self, waves):
        how = {"sampling_rate": 16_000, "return_tensors": "pt", "padding": True}
        inputs = self.extractor(waves, return_attention_mask=True, **how)
        self.held.clear()
        with torch.inference_mode():
            logits = self.model(**inputs).logits
        hidden = self.held[0]
        mask = self.model._get_feature_vector_attention_mask(
            hidden.shape[1], inputs["attention_mask"]
        )[..., None]
        vectors = (hidden * mask).sum(1) / mask.sum(1)
        return list(zip(logits.argmax(-1).tolist(), vectors.numpy()))

    def unbatch(self, outputs):
        return outputs

    def encode_response(self, output):
        vector = base64.b64encode(output[1].astype("<f4").tobytes()).decode()
        return {"label": output[0], "embedding": vector}

if __name__ == "__main__":
    api = Api(max_batch_size=8, batch_timeout=0.01, api_path="/v1/embeddings")
    server = litserve.LitServer(api, accelerator="cpu", timeout=False)
    server.run(port=int(sys.argv[2]), generate_client_file=False, log_level="error")
"""


@contextmanager
def lit(model: Path, work: Path) -> Iterator[str]:
    """The address of LitServe with the same model."""
    script = work / "lit.py"
    script.write_text(LITSERVE)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(script), str(model), str(port)],
                               stdout=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def asked(url: str, folder: Path, *more: str) -> dict[str, Any]:
    """What `clients` tells, in a process of their own."""
    words = [sys.executable, __file__, url, str(folder), *more]
    found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    document: dict[str, Any] = json.loads(found)
    return document


@contextmanager
def served(*command: str | Path) -> Iterator[str]:
    """The address that a command serves on."""
    words = [sys.executable, "-m", "penult", *map(str, command), "--port", "0", "--json"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("}"):
            break
    try:
        yield json.loads("".join(lines))["url"]
    finally:
        process.terminate()
        process.wait()


def serving(bench: Bench) -> None:
    """wav2vec2-base: offline, 64 clients, two requests for each item, and one client alone."""
    import transformers

    import penult

    with models() as work:
        config = transformers.Wav2Vec2Config(num_labels=4)
        extractor = transformers.Wav2Vec2FeatureExtractor()
        saved(work / "model", transformers.Wav2Vec2ForSequenceClassification(config), extractor)
        clips = work / "clips"
        clips.mkdir()
        paths = mixed(clips, SOUND, bench.options.clips)
        embedder = penult.Embedder.from_classifier(penult.load(work / "model"), device="cpu")
        with served("serve", work / "model", "--engine", "torch") as url:
            own: dict[str, float] = {}  # seconds without those of the clients' processor
            rate: dict[str, float] = {}

            def online(name: str, *more: str) -> None:
                found = asked(url, clips, "--clients", str(CLIENTS), *more)
                own[name] = found["seconds"] - found["cpu"] / (os.cpu_count() or 1)
                rate[name] = len(paths) / found["seconds"]

            two = "two requests for each item, as for label and vector elsewhere"
            ways: dict[str, Callable[[], object]] = {
                "offline, `emb.run`": lambda: embedder.run(paths),
                f"{CLIENTS} clients": lambda: online("one"),
                two: lambda: online("two", "--routes", ",".join(ROUTES)),
            }
            with contextlib.ExitStack() as others:
                if find_spec("litserve") is None:
                    bench.note("LitServe is not installed here (pip install litserve).")
                else:
                    other = others.enter_context(lit(work / "model", work))
                    words = f"LitServe, {CLIENTS} clients, padded by hand"
                    ways[words] = lambda: asked(other, clips, "--clients", str(CLIENTS))
                times = bench.paired(ways, warm=False)
            title = f"{len(paths)} clips of 1 to 15 s, {SOUND:.0f} s of sound"
            bench.show(ratios(title, times))
            share = times["offline, `emb.run`"] / own["one"]
            bench.note(
                f"{CLIENTS} clients, less their own processor time: {share:.0%} of the offline "
                f"throughput; bound {GOAL:.0%}."
            )
            if share < GOAL:
                raise Fault(f"the server has {share:.0%} of the offline throughput")
            half = asked(url, clips, "--clients", str(CLIENTS), "--rate", str(rate["one"] / 2))
            parts = [digits(float(np.quantile(half["times"], q))) for q in (0.5, 0.95, 0.99)]
            bench.show(Table(("at half of that load", "p50", "p95", "p99"), [["seconds", *parts]]))
            _alone(bench, embedder, url, paths, work)


def _alone(bench: Bench, embedder: Any, url: str, paths: list[Path], work: Path) -> None:
    """One client, one clip after another, beside `emb.run`."""
    one = work / "one"
    one.mkdir()
    for at in range(ALONE):
        (one / f"{at:02d}.wav").write_bytes(paths[0].read_bytes())
    found: list[float] = []
    times = bench.paired(
        {
            "`emb.run` of one clip": lambda: [embedder.run(paths[0]) for _ in range(ALONE)],
            "a request": lambda: found.extend(asked(url, one, "--clients", "1")["times"]),
        }
    )
    alone = times["`emb.run` of one clip"] / ALONE
    more = statistics.median(found) - alone
    rows = [["`emb.run`", digits(alone)], ["a request", digits(statistics.median(found))],
            ["difference", digits(more)]]  # fmt: skip
    bench.show(Table(("one clip, one client", "seconds"), rows))
    if more > OVERHEAD:
        raise Fault(f"a request takes {more * 1e3:.1f} ms more than `emb.run`")


SECTIONS = {
    "server": Section(
        "The server",
        "wav2vec2-base size with random weights, torch, server and clients on one machine.",
        serving,
        ("clips", "rounds"),
        rounds=2,
    )
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--routes", default=ROUTES[0])
    print(json.dumps(clients(parser.parse_args())))
