"""The server: what clients see of it, under load, overload and hostile items."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import openai
import pytest
import soundfile
from hypothesis import HealthCheck

import penult
from conftest import RATE, assert_law, clip, make_hostile
from live_server import LiveServer, running, uri, vectors_in, wav
from penult.data.decode import Decoding
from penult.embedding.runner import Runner
from penult.errors import StoreError
from penult.server.limits import ServerLimits
from penult.server.taught import TaughtClasses

CLIPS = Path(penult.__file__).parent / "demo" / "clips"


@pytest.fixture(scope="module")
def embedder() -> penult.Embedder:
    return penult.Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")


@pytest.fixture(scope="module")
def server(
    embedder: penult.Embedder, demo_collection: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    place = tmp_path_factory.mktemp("server")
    shutil.copytree(demo_collection, place / "words.lance")
    classes = TaughtClasses.open(place / "words.npz", embedder)
    rows = penult.Collection.open(place / "words.lance")
    with running(embedder, classes=classes, collection=rows) as live:
        yield live


@pytest.fixture(scope="module")
def sounds() -> list[bytes]:
    return [wav(clip(0.2 + 0.23 * at, at)) for at in range(8)]


def arrays(sounds: list[bytes]) -> list[tuple[np.ndarray, int]]:
    return [(clip(0.2 + 0.23 * at, at), RATE) for at in range(len(sounds))]


# ---- vectors and labels of one pass


@pytest.mark.parametrize("how", [{}, {"encoding_format": "float"}])
def test_openai_client_gets_vector_and_label_of_one_pass(
    server: LiveServer, embedder: penult.Embedder, sounds: list[bytes], how: dict[str, Any]
) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    passes = server.metric("penult_items_total")
    found = client.embeddings.create(model="model", input=[uri(one) for one in sounds], **how)
    expected = embedder.run(arrays(sounds), alone=True)
    assert_law([one.embedding for one in found.data], expected.vectors)
    rows = [one.to_dict() for one in found.data]  # fields of our own are kept
    assert [one["label"] for one in rows] == expected.labels
    assert [one.index for one in found.data] == [*range(len(sounds))]
    lengths = [one["seconds"] for one in rows]
    assert np.allclose(lengths, [len(one) / RATE for one, _ in arrays(sounds)], atol=1e-4)
    assert server.metric("penult_items_total") == passes + len(sounds)
    assert client.models.list().data[0].id == "model"


def test_windows_and_logits_are_those_of_a_run(
    server: LiveServer, embedder: penult.Embedder, sounds: list[bytes]
) -> None:
    answer = server.embed(*sounds[-2:], window=0.5, hop=0.25, logits=True)
    expected = embedder.run(arrays(sounds)[-2:], window=0.5, hop=0.25)
    assert_law(vectors_in(answer), expected.vectors)
    rows = answer.json()["data"]
    assert [one["region"] for one in rows] == [region.key for region in expected.regions]
    assert [one["item"] for one in rows] == expected.item_index.tolist()
    assert np.allclose([one["logits"] for one in rows], expected.logits, atol=1e-3)


def test_classify_answers_as_the_command(server: LiveServer, sounds: list[bytes]) -> None:
    answer = server.post("/v1/classify", {"input": [uri(one) for one in sounds[:3]]})
    expected = penult.load("demo").classify(arrays(sounds)[:3])
    for found, one in zip(answer.json()["data"], expected, strict=True):
        assert found.keys() >= one.to_dict().keys()
        assert found["label"] == one.label
        assert np.allclose(found["logits"], one.logits, atol=1e-3)


def test_a_form_with_files_is_the_same_as_data_uris(
    server: LiveServer, sounds: list[bytes]
) -> None:
    files = [("file", (f"{at}.wav", one)) for at, one in enumerate(sounds[:3])]
    form = httpx.post(server.url + "/v1/embeddings", files=files, data={"window": "0.5"})
    assert_law(vectors_in(form), vectors_in(server.embed(*sounds[:3], window=0.5)))


def test_an_embedder_with_a_space_gives_vectors_in_it(sounds: list[bytes]) -> None:
    from penult.analysis.space import fit

    raw = penult.Embedder.from_classifier(penult.load("demo"), device="cpu")
    space = fit("centre+l2", raw.embed(arrays(sounds)))
    spaced = penult.Embedder.from_classifier(penult.load("demo"), device="cpu", space=space)
    with running(spaced) as live:
        absent = live.post("/v1/search", {"input": []})
        assert absent.status_code == 404 and "--collection" in absent.text
        assert_law(vectors_in(live.embed(*sounds[:2])), spaced.embed(arrays(sounds)[:2]))


def test_texts_are_the_words_themselves(tmp_path: Path) -> None:
    from zoo import save_text

    embedder = penult.Embedder.from_classifier(penult.load(save_text(tmp_path / "text")))
    texts = ["/etc/hostname", "a longer text about dogs", "dogs"]
    with running(embedder) as live:
        client = openai.OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0)
        found = client.embeddings.create(model="model", input=texts)
        assert_law([one.embedding for one in found.data], embedder.embed(texts))
        assert found.usage.prompt_tokens > 0
        single = client.embeddings.create(model="model", input=texts[1])
        assert_law(single.data[0].embedding, embedder.embed(texts)[1])
        with pytest.raises(openai.BadRequestError, match="token ids"):
            client.embeddings.create(model="model", input=[[1, 2, 3]])


# ---- search, predictions, classes


def test_search_is_that_of_the_collection(
    server: LiveServer, embedder: penult.Embedder, sounds: list[bytes]
) -> None:
    rows = server.served.collection
    assert rows is not None
    answer = server.post("/v1/search", {"input": [uri(sounds[0])], "k": 3}).json()["data"][0]
    expected = rows.search(embedder.embed(arrays(sounds)[:1])[0], k=3)
    assert [one["id"] for one in answer["hits"]] == [hit.id for hit in expected]
    assert answer["hits"][0].keys() == expected[0].to_dict().keys()
    vector = embedder.embed(arrays(sounds)[:1])[0].tolist()
    by_vector = server.post("/v1/search", {"vectors": [vector], "k": 3}).json()["data"][0]
    assert [one["id"] for one in by_vector["hits"]] == [hit.id for hit in expected]


def test_classes_are_taught_renamed_and_taken_back(
    server: LiveServer, embedder: penult.Embedder, sounds: list[bytes]
) -> None:
    for name, at in (("low", 0), ("high", 7), ("high", 6), ("low", 1)):
        taught = server.post("/v1/classes", {"name": name, "input": [uri(sounds[at])]})
        assert taught.status_code == 200, taught.text
    assert {one["name"]: one["yes"] for one in taught.json()["data"]} == {"low": 2, "high": 2}
    body = {"input": [uri(one) for one in sounds], "unknown": 0}
    found = server.post("/v1/predict", body).json()["data"]
    classes = server.served.classes
    assert classes is not None and classes._file is not None
    kept = penult.ClassSpace.load(classes._file, embedder)  # it is in the file already
    expected = kept.predict(arrays(sounds), unknown=0)
    assert [one["label"] for one in found] == [one.label for one in expected]
    assert np.allclose([one["score"] for one in found], [one.score for one in expected], atol=1e-4)
    renamed = httpx.patch(server.url + "/v1/classes", json={"old": "low", "new": "deep"})
    assert {one["name"] for one in renamed.json()["data"]} == {"deep", "high"}
    undone = server.post("/v1/classes/undo").json()
    assert "deep" in undone["undone"] or "low" in {one["name"] for one in undone["data"]}
    gone = httpx.request("DELETE", server.url + "/v1/classes", json={"name": "high"})
    assert {one["name"] for one in gone.json()["data"]} < {"low", "deep", "high"}
    assert [one.name for one in penult.ClassSpace.load(classes._file, embedder).classes] == [
        one["name"] for one in gone.json()["data"]
    ]


def test_classes_here_are_those_of_their_file(
    embedder: penult.Embedder,
    sounds: list[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def names(answer: httpx.Response) -> list[str]:
        assert answer.status_code == 200, answer.text
        return [one["name"] for one in answer.json()["data"]]

    file = tmp_path / "words.npz"
    with running(embedder, classes=TaughtClasses.open(file, embedder)) as live:
        url = live.url + "/v1/classes"
        body = [{"name": str(at), "input": [uri(one)]} for at, one in enumerate(sounds)]
        assert names(live.post("/v1/classes", body[0])) == ["0"]
        other = penult.ClassSpace.load(file, embedder)  # another process has the file, too
        other.add("other", arrays(sounds)[-1:])
        other.save(file)
        assert names(httpx.get(url)) == ["0", "other"]
        assert names(live.post("/v1/classes", body[1])) == ["0", "other", "1"]
        with monkeypatch.context() as full:
            full.setattr("penult.fewshot.storage.write", cannot_write)
            assert live.post("/v1/classes", body[2]).status_code == 503
        assert names(httpx.get(url)) == ["0", "other", "1"]
        assert names(live.post("/v1/classes", body[3])) == ["0", "other", "1", "3"]
    kept = penult.ClassSpace.load(file, embedder)
    assert [one.name for one in kept.classes] == ["0", "other", "1", "3"]


def cannot_write(*_: Any) -> None:
    raise StoreError("the disk is full")


# ---- what cannot be


@pytest.mark.parametrize(
    ("document", "status", "words"),
    [
        ({"input": []}, 400, "empty"),
        ({}, 400, "missing"),
        ({"input": 5}, 400, "a number"),
        ({"input": {"a": 1}}, 400, "an object"),
        ({"input": "/etc/passwd"}, 400, "paths and URLs are not opened"),
        ({"input": "file:///etc/passwd"}, 400, "paths and URLs are not opened"),
        ({"input": "http://127.0.0.1/a.wav"}, 400, "paths and URLs are not opened"),
        ({"input": "data:image/png;base64,AAAA"}, 400, "the model takes audio"),
        ({"input": "data:audio/wav;base64,A A"}, 400, "base64"),
        ({"input": "data:audio/wav;base64,AAAA"}, 400, "not readable as audio"),
        ({"input": [[1, 2]]}, 400, "token ids"),
        ({"input": ["data:audio/wav;base64,"]}, 400, ""),
        ({"input": "x", "model": "other"}, 404, "no model 'other'"),
        ({"input": "x", "dimensions": 8}, 400, "not shortened"),
        ({"input": "x", "windw": 5}, 400, "no field 'windw' here; GET /openapi.json"),
        ({"input": "x", "window": -1}, 400, "window"),
        ({"input": ["x"] * 3000}, 400, "2,048"),
        ([], 400, "no JSON object"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(
    server: LiveServer, document: Any, status: int, words: str
) -> None:
    answer = server.post("/v1/embeddings", document)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"] and error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_method_that_a_route_does_not_take_is_named(server: LiveServer) -> None:
    answer = httpx.get(server.url + "/v1/embeddings")
    assert answer.status_code == 405
    words = "/v1/embeddings does not take GET; GET /openapi.json has"
    assert answer.json()["error"]["message"].startswith(words)


def test_a_sound_cut_into_tiles_is_refused(server: LiveServer, sounds: list[bytes]) -> None:
    answer = server.embed(sounds[0], tile=64)
    assert answer.status_code == 400 and "tiles are cut from images" in answer.text


def test_one_bad_item_is_named_or_skipped(
    server: LiveServer, embedder: penult.Embedder, sounds: list[bytes]
) -> None:
    items = [sounds[0], b"no sound at all", sounds[1]]
    refused = server.embed(*items)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "input[1]"
    rows = server.embed(*items, on_error="skip").json()["data"]
    assert [one["item"] for one in rows] == [0, 1, 2]
    assert rows[1]["error"]["code"] == "DecodeError" and rows[1]["embedding"] == []
    assert_law([rows[0]["embedding"], rows[2]["embedding"]], embedder.embed(arrays(sounds)[:2]))


def test_a_silent_window_is_skipped_and_the_others_are_there(
    server: LiveServer, embedder: penult.Embedder
) -> None:
    sound = clip(3.0)
    sound[RATE : 2 * RATE] = 0
    assert server.embed(wav(sound), window=1).status_code == 400
    rows = server.embed(wav(sound), window=1, on_error="skip").json()["data"]
    assert [one["region"] for one in rows] == ["0-1", "1-2", "2-3"]
    assert [one["item"] for one in rows] == [0, 0, 0]
    assert "silence" in rows[1]["error"]["message"]
    expected = embedder.embed([(sound[:RATE], RATE), (sound[2 * RATE :], RATE)])
    assert_law([rows[0]["embedding"], rows[2]["embedding"]], expected)


def test_work_without_bounds_is_refused(embedder: penult.Embedder) -> None:
    long = io.BytesIO()
    soundfile.write(long, np.zeros(301 * RATE, np.int16), RATE, format="FLAC")
    with running(embedder, ServerLimits(regions=30, grace=5.0)) as live:
        for content, how in (
            ([long.getvalue()], {}),  # a pass of any length would hold up everybody
            ([wav(clip(1.0))], {"window": 0.2, "hop": 1e-6}),
            ([wav(clip(2.0))] * 8, {"window": 0.4}),  # of all items together
        ):
            answer = live.embed(*content, **how)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["code"] == "TooLong"
        assert live.embed(wav(clip(2.0)), window=0.4).status_code == 200
        rate = live.served.service.admission.rate
        silent = np.zeros(250 * RATE, np.float32)
        assert "silence" in live.embed(wav(silent)).text
        assert live.served.service.admission.rate <= rate  # it was not fast: it did nothing


def test_errors_show_no_path_of_this_machine(server: LiveServer) -> None:
    rows = server.served.collection
    assert rows is not None
    for route, body in (
        ("/v1/search", {"vectors": [[1.0, 2.0]]}),
        ("/v1/search", {"vectors": [[1.0] * 64], "where": "nothing = 1"}),
        ("/v1/search", {"vectors": [[1.0] * 64], "space": "absent"}),
        ("/v1/classes", {"name": "a", "rows": [["/etc/passwd", "whole"]]}),
    ):
        answer = server.post(route, body)
        assert answer.status_code == 400, answer.text
        assert str(rows.path.parent) not in answer.text
        assert not re.search(
            r"(?<![\w:])/(?:tmp|work|home|root|etc)/", answer.json()["error"]["message"]
        )


def test_a_body_that_is_no_json_or_too_large(embedder: penult.Embedder) -> None:
    with running(embedder, ServerLimits(body=10_000, grace=2.0)) as live:
        url, kind = live.url + "/v1/embeddings", {"content-type": "application/json"}
        assert httpx.post(url, content=b"{", headers=kind).status_code == 400
        assert (
            httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code
            == 400
        )
        assert httpx.post(url, content=b"[" * 9_000, headers=kind).status_code == 400
        assert httpx.post(url, content=b" " * 10_001, headers=kind).status_code == 413
        chunks = (b" " * 5_000 for _ in range(4))  # of no stated length
        assert httpx.post(url, content=chunks, headers=kind).status_code == 413
        assert live.metric("penult_waiting_seconds") == 0


# ---- load


def test_vectors_under_load_are_those_of_each_item_alone(
    server: LiveServer, embedder: penult.Embedder
) -> None:
    lengths = [0.9 + 0.07 * (at % 30) for at in range(64)]
    alone = [embedder.embed([(clip(s, at), RATE)], alone=True)[0] for at, s in enumerate(lengths)]
    regions, passes = (f"penult_batch_regions_{what}" for what in ("sum", "count"))
    before = server.metric(regions), server.metric(passes)

    def client(at: int) -> None:
        with httpx.Client(timeout=60) as own:
            for again in range(2):
                mine = (at + 7 * again) % len(lengths)
                body = {"input": [uri(wav(clip(lengths[mine], mine)))]}
                answer = own.post(server.url + "/v1/embeddings", json=body)
                assert_law(vectors_in(answer)[0], alone[mine])

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(client, range(64)))
    made = server.metric(regions) - before[0]
    assert made >= 2 * 64
    assert server.metric(passes) - before[1] < 0.9 * made  # they did share passes


@pytest.mark.slow
def test_a_minute_of_load(server: LiveServer, embedder: penult.Embedder) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        test_vectors_under_load_are_those_of_each_item_alone(server, embedder)
    assert server.metric("penult_probes_total") > 0
    assert server.metric("penult_probe_largest_difference") <= 1e-5


def test_the_probe_among_live_items_has_its_known_vector(
    embedder: penult.Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penult.server.service._PROBING", 0.05)
    sound = wav(clip(1.0, 3))
    with running(embedder) as live, ThreadPoolExecutor(16) as pool:
        end = time.monotonic() + 20
        while not live.metric("penult_probes_total") and time.monotonic() < end:
            list(pool.map(lambda _: live.embed(*[sound] * 4), range(16)))
        assert live.metric("penult_probes_total") > 0
        assert live.metric("penult_probe_largest_difference") <= 1e-5


def test_who_is_turned_away_is_served_when_told(embedder: penult.Embedder) -> None:
    sound, refused = wav(clip(1.0)), list[int]()

    def client(at: int) -> None:
        for attempt in range(2):
            answer = live.embed(sound)
            if answer.status_code == 200:
                return
            assert answer.status_code == 429, answer.text
            assert attempt == 0, "turned away again"
            refused.append(at)
            time.sleep(int(answer.headers["retry-after"]))

    with running(embedder, ServerLimits(waiting=3.0, grace=5.0)) as live:
        with ThreadPoolExecutor(24) as pool:
            list(pool.map(client, range(24)))
        assert refused
        assert live.metric("penult_waiting_seconds") == 0


# ---- hostile items, workers and clients


@pytest.fixture
def hostile(
    embedder: penult.Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LiveServer]:
    make_hostile(tmp_path, monkeypatch, "audio.load_many", "audio.info")
    with running(embedder, decoding=Decoding(workers=2, time_limit=1.5)) as live:
        yield live


def test_a_hostile_item_is_refused_and_nobody_else_notices(
    hostile: LiveServer, embedder: penult.Embedder, sounds: list[bytes]
) -> None:
    evil = [sounds[0] + word for word in (b"crash", b"hang", b"alloc")]
    expected = embedder.embed(arrays(sounds)[:1])
    with ThreadPoolExecutor(4) as pool:
        refused = [pool.submit(hostile.embed, one) for one in evil]
        began, slowest = time.monotonic(), 0.0
        while not all(one.done() for one in refused):
            since = time.monotonic()
            assert_law(vectors_in(hostile.embed(sounds[0])), expected)
            slowest = max(slowest, time.monotonic() - since)
        assert time.monotonic() - began > 1.5  # the hanging one took its time
        for answer in (one.result() for one in refused):
            assert answer.status_code in (400, 503), answer.text
            assert answer.json()["error"]["message"]
    assert httpx.get(hostile.url + "/ready").status_code == 200
    assert_law(vectors_in(hostile.embed(sounds[0])), expected)


def test_a_killed_worker_costs_no_client_its_answer(
    server: LiveServer, embedder: penult.Embedder, sounds: list[bytes]
) -> None:
    import psutil

    expected, killed = embedder.embed(arrays(sounds)), 0
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(server.embed, *sounds) for _ in range(24)]
        while not all(one.done() for one in answers):
            for child in psutil.Process().children():
                if killed < 3 and "decoding_process" in " ".join(child.cmdline()):
                    child.kill()
                    killed += 1
            time.sleep(0.05)
        assert killed
        for answer in answers:
            assert_law(vectors_in(answer.result()), expected)


def test_a_client_that_leaves_costs_nothing_more(server: LiveServer, sounds: list[bytes]) -> None:
    body = json.dumps({"input": [uri(wav(clip(20.0)))] * 20}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    before = server.metric("penult_items_total")
    with socket.create_connection((host, int(port))) as own:
        head = f"POST /v1/embeddings HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        own.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: server.metric("penult_waiting_seconds") > 0)
    until(lambda: server.metric("penult_waiting_seconds") == 0)
    assert server.metric("penult_items_total") == before
    assert server.embed(sounds[0]).status_code == 200


def until(holds: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_clients_that_send_slowly_are_given_up(
    embedder: penult.Embedder, sounds: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penult.server.process._HEAD", 0.4)
    with running(embedder, ServerLimits(upload=0.4, grace=5.0)) as live:
        host, port = live.url.removeprefix("http://").split(":")
        slow = [socket.create_connection((host, int(port))) for _ in range(40)]
        for at, one in enumerate(slow):
            one.sendall(b"POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\n")
            if at % 2:
                one.sendall(b"content-length: 1000\r\n\r\n{")
        assert live.embed(sounds[0]).status_code == 200  # meanwhile
        for at, one in enumerate(slow):
            one.settimeout(10)
            answer = one.recv(4096)
            assert answer.startswith(b"HTTP/1.1 408") if at % 2 else answer == b""
            one.close()


def test_a_client_that_does_not_read_is_given_up(embedder: penult.Embedder) -> None:
    sound, windows = uri(wav(clip(20.0))), {"window": 0.1, "hop": 0.05, "logits": True}
    body = json.dumps({"input": [sound] * 6, **windows}).encode()
    with running(embedder, ServerLimits(upload=0.5, grace=5.0)) as live:
        host, port = live.url.removeprefix("http://").split(":")
        with socket.socket() as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            own.connect((host, int(port)))
            head = "POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            kind = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            own.sendall((head + kind).encode() + body)
            until(lambda: live.gate.active == 1)
            until(lambda: live.gate.active == 0)
            own.settimeout(20)
            with pytest.raises(ConnectionError):  # it did not get the whole answer
                while own.recv(1 << 16):
                    pass
                raise ConnectionError
        assert live.embed(wav(clip(1.0))).status_code == 200


def test_many_who_ask_whether_it_is_ready_hold_up_nobody(
    embedder: penult.Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(embedder) as live, ThreadPoolExecutor(24) as pool:
        hold = held_model(monkeypatch)
        monkeypatch.setattr("penult.server.service._PROBING", 0.3)
        asked = [pool.submit(httpx.get, live.url + "/ready", timeout=20) for _ in range(24)]
        assert httpx.get(live.url + "/v1/models").status_code == 200
        assert {one.result().status_code for one in asked} == {503}
        hold.set()
        until(lambda: httpx.get(live.url + "/ready").status_code == 200)


def test_what_outlasts_the_grace_is_told_so(
    embedder: penult.Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(embedder, ServerLimits(grace=0.2)) as live, ThreadPoolExecutor(1) as pool:
        hold = held_model(monkeypatch)
        asked = pool.submit(live.embed, wav(clip(1.0)))
        until(lambda: live.metric("penult_waiting_seconds") > 0)
        live.gate.stopping = True
        answer = asked.result()
        hold.set()
    assert answer.status_code == 503 and "retry-after" in answer.headers


def test_connections_without_requests_make_room(embedder: penult.Embedder) -> None:
    with running(embedder, ServerLimits(connections=20, grace=5.0)) as live:
        host, port = live.url.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(60)]
        assert live.embed(wav(clip(1.0))).status_code == 200
        for one in idle:
            one.close()


def held_model(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No pass begins before this is set."""
    hold, rows = threading.Event(), Runner._rows

    def held(*given: Any) -> Any:
        assert hold.wait(20)
        return rows(*given)

    monkeypatch.setattr(Runner, "_rows", held)
    return hold


@pytest.mark.parametrize(
    ("error", "status"), [(MemoryError(), 400), (RuntimeError("odd"), 400), (SystemExit(3), 500)]
)
def test_whatever_the_model_raises_is_answered_and_the_next_request_works(
    server: LiveServer, sounds: list[bytes], error: BaseException, status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def failing(*given: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_rows", failing)
        answer = server.embed(sounds[0])
        assert answer.status_code == status and answer.json()["error"]["message"]
    assert server.embed(sounds[0]).status_code == 200


# ---- who may ask


def test_keys_hosts_and_origins(embedder: penult.Embedder, sounds: list[bytes]) -> None:
    keys = ("first secret", "second secret")
    with running(embedder, keys=keys, origins=("https://page.example",)) as live:
        assert live.embed(sounds[0]).status_code == 401
        for given, status in ((keys[0], 200), (keys[1], 200), ("third secret", 401)):
            answer = httpx.get(
                live.url + "/v1/models", headers={"authorization": f"Bearer {given}"}
            )
            assert answer.status_code == status
        assert "is none of this server's" in answer.text
        basic = {"authorization": f"Basic {keys[0]}"}
        assert httpx.get(live.url + "/v1/models", headers=basic).status_code == 401
        assert httpx.get(live.url + "/metrics").status_code == 401
        assert httpx.get(live.url + "/health").status_code == 200
        own = {"authorization": f"Bearer {keys[0]}"}
        for header, value, status in (
            ("host", "evil.example", 403),
            ("host", "[::1", 403),
            ("host", "[evil]:80", 403),
            ("origin", "https://evil.example", 403),
            ("origin", "https://page.example", 200),
        ):
            answer = httpx.get(live.url + "/v1/models", headers={**own, header: value})
            assert answer.status_code == status, (header, value)
        allowed = answer.headers["access-control-allow-origin"]
        assert allowed == "https://page.example"


def test_pages_of_other_origins_may_not_ask(server: LiveServer) -> None:
    answer = httpx.get(server.url + "/health", headers={"origin": "https://a.example"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


# ---- the process


@pytest.fixture
def command(light: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    words = [sys.executable, "-m", "penult", "serve", str(light), "--port", "0", "--json",
             "--name", "light", "--grace", "20"]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("}"):
            break
    try:
        yield process, json.loads("".join(lines))["url"]
    finally:
        process.kill()
        process.wait()


def test_a_server_that_stops_answers_what_it_has_accepted(
    command: tuple[subprocess.Popen[str], str],
) -> None:
    process, url = command
    assert httpx.get(url + "/ready").json() == {"ready": True}
    body = {"input": [uri(wav(clip(2.0, at))) for at in range(60)]}
    with ThreadPoolExecutor(4) as pool:
        answers = [
            pool.submit(httpx.post, url + "/v1/embeddings", json=body, timeout=60) for _ in range(4)
        ]
        until(lambda: "penult_waiting_seconds 0.0" not in httpx.get(url + "/metrics").text)
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(url + "/v1/models").status_code == 503)
        assert [one.result().status_code for one in answers] == [200] * 4
    assert process.wait(30) == 0


def test_other_machines_may_not_ask_without_a_key(
    light: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from penult.cli import run

    assert run(["serve", str(light), "--host", "0.0.0.0"]) == 2
    assert "--api-key-file" in capsys.readouterr().err
    keys = tmp_path / "keys"
    keys.write_text("short\n")
    assert run(["serve", str(light), "--api-key-file", str(keys)]) == 2
    assert "less than 8" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["serve", str(light), "--port", str(taken.getsockname()[1])]) == 2
    assert "--port 0" in capsys.readouterr().err


def test_ready_notices_a_model_that_gives_other_vectors(tmp_path: Path) -> None:
    import torch

    embedder = penult.Embedder.from_classifier(penult.load("demo"), device="cpu")
    with running(embedder) as live:
        assert httpx.get(live.url + "/ready").status_code == 200
        with torch.no_grad():
            for weights in embedder.classifier.module.parameters():
                weights.mul_(1.1)
        until(lambda: httpx.get(live.url + "/ready").status_code == 503, 5)
        assert "differs" in httpx.get(live.url + "/ready").json()["reason"]
        assert httpx.get(live.url + "/health").status_code == 200


# ---- the document


def test_the_page_names_every_route(server: LiveServer) -> None:
    document = httpx.get(server.url + "/openapi.json").json()
    page = (Path(__file__).parents[1] / "docs" / "server.md").read_text()
    routes = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    }
    named = set(re.findall(r"`((?:GET|POST|PATCH|DELETE) /[^`\s]*)`", page))
    assert routes == named - {"GET /openapi.json"}
    for methods in document["paths"].values():
        for one in methods.values():
            assert one["summary"] and "429" in one["responses"]
            if "requestBody" in one:
                assert one["requestBody"]["content"]["application/json"]["example"]


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_made_up_requests_find_no_undocumented_answer(server: LiveServer, mode: str) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi import checks

    wanted = [
        schemathesis.checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()

        @hypothesis.settings(max_examples=12, database=None, suppress_health_check=[*HealthCheck])
        @hypothesis.given(case=operation.as_strategy(GenerationMode[mode]))
        def ask(case: Any) -> None:
            case.call_and_validate(checks=wanted)

        try:
            ask()
        except hypothesis.errors.Unsatisfiable:  # a route without parameters has no wrong ones
            assert mode == "NEGATIVE" and operation.method.upper() != "PATCH"
