"""Items as Python and pipes give them: open files, pairs, generators that fail, standard input."""

from __future__ import annotations

import hashlib
import io
import mmap
import os
import sys
import tempfile
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import penult
from conftest import RATE, assert_law, clip
from penult.cli.main import run
from penult.data.sources import from_objects, from_paths
from penult.errors import SourceError
from test_cli import Said, ask
from zoo import save_image, save_text


@pytest.fixture(scope="module")
def embedder(tiny: Path) -> penult.Embedder:
    return penult.Embedder.from_classifier(penult.load(tiny))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sound") / "a.wav"
    soundfile.write(path, clip(0.5, 3), RATE)
    return path


def name_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def spooled(data: bytes) -> Any:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115  the reader closes it
    file.write(data)
    return file


def named(data: bytes) -> Any:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115
    file.write(data)
    return file


def mapped(data: bytes) -> Any:
    memory = mmap.mmap(-1, len(data))
    memory.write(data)
    return memory


def piped(data: bytes) -> Any:
    """The end of a pipe, which can be read once and not sought."""
    ends = os.pipe()
    with os.fdopen(ends[1], "wb") as writer:
        writer.write(data)
    return os.fdopen(ends[0], "rb")


FILES: dict[str, Callable[[bytes], Any]] = {
    "BytesIO": io.BytesIO,
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "spooled": spooled,
    "named temporary file": named,
    "mmap": mapped,
    "pipe": piped,
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_in_memory_is_one_recording(
    embedder: penult.Embedder, sound: Path, kind: str
) -> None:
    data = sound.read_bytes()
    for items in (FILES[kind](data), [FILES[kind](data)]):
        found = embedder.run(items)
        assert found.ids == [name_of(data)]
        assert_law(found.vectors, embedder.embed(sound))


def test_an_open_file_stays_where_it_stands(embedder: penult.Embedder, sound: Path) -> None:
    expected = embedder.embed(sound)
    with sound.open("rb") as file:
        for place in (0, 44, sound.stat().st_size):
            file.seek(place)
            assert_law(embedder.embed(file), expected)
            assert file.tell() == place
        found = embedder.run([file, sound, file])
    assert found.ids == [name_of(sound.read_bytes()), str(sound), name_of(sound.read_bytes())]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60), place=st.integers(0, 60))
def test_any_bytes_are_one_item_from_any_place(data: bytes, place: int) -> None:
    file = io.BytesIO(data)
    file.seek(place)
    source = from_objects(file, "audio")
    for entries in (list(source), list(source)):
        ((item, _),) = entries
        assert (item.id, item.content) == (name_of(data), data)
    assert file.tell() == place


def test_a_picture_and_a_text_in_memory(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (64, 48), "teal").save(picture, "PNG")
    images = penult.Embedder.from_classifier(penult.load(save_image(tmp_path / "vit")))
    (tmp_path / "p.png").write_bytes(picture.getvalue())
    assert_law(images.embed(picture), images.embed(tmp_path / "p.png"))
    texts = penult.Embedder.from_classifier(penult.load(save_text(tmp_path / "bert", "bert")))
    words = "one bird\nand another"
    for file in (io.StringIO(words), io.BytesIO(words.encode())):
        assert_law(texts.embed(file), texts.embed([words]))
    assert len(texts.embed(words.splitlines())) == 2


def odd_objects(path: Path) -> dict[str, tuple[Any, str]]:
    samples = clip(0.2)
    return {
        "opened as text": (path.open(), "opened as text; open it with 'rb'"),
        "a list in memory": (io.StringIO("a.wav\nb.wav"), "if it lists paths give them as a list"),
        "wave": (wave.open(str(path)), "give the file's path"),
        "soundfile": (soundfile.SoundFile(path), "(file.read(always_2d=True).T, file.samplerate)"),
        "scipy": ((RATE, samples), "is (rate, array), as scipy gives it; give (array, rate)"),
        "no rate": ((samples, 0), "a rate of 0 Hz; give a whole number above 0"),
        "half a rate": ((samples, 0.5), "a rate of 0.5 Hz; give a whole number above 0"),
        "file and rate": ((path, RATE), "a pair is an array and its rate in Hz"),
        "bytes and rate": ((b"RIFF", RATE), "a pair is an array and its rate in Hz"),
        "dict": ({"array": samples, "sampling_rate": RATE}, "(it['array'], it['sampling_rate'])"),
        "objects": (np.array([None, 1]), "not of numbers"),
        "nothing": (None, "NoneType"),
        "a number": (3, "type int"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", [
    "opened as text", "a list in memory", "wave", "soundfile", "scipy", "no rate", "half a rate",
    "file and rate", "bytes and rate", "dict", "objects", "nothing", "a number",
])  # fmt: skip
def test_other_objects_are_refused_in_words(sound: Path, kind: str) -> None:
    thing, words = odd_objects(sound)[kind]
    for number, items in ((0, thing), (1, [sound, thing])):
        if number == 0 and kind in ("objects", "nothing", "a number"):
            continue
        with pytest.raises(SourceError) as caught:
            list(from_objects(items, "audio"))
        assert words in str(caught.value) and f"item {number} " in str(caught.value)
        assert "0x" not in str(caught.value)


def test_a_rate_of_another_type(embedder: penult.Embedder) -> None:
    expected = embedder.embed((clip(0.4), RATE))
    for rate in (np.int32(RATE), float(RATE), np.float64(RATE), np.array(RATE)):
        assert_law(embedder.embed((clip(0.4), rate)), expected)
        assert_law(embedder.embed([(clip(0.4), rate)]), expected)


# ---- generators


def failing(paths: list[Path], error: Exception) -> Iterator[Path]:
    yield from paths
    raise error


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("error", [ValueError("disk gone"), KeyError("x"), OSError(5, "I/O")])
def test_an_error_of_a_generator_is_its_own(
    embedder: penult.Embedder, sound: Path, on_error: Any, error: Exception
) -> None:
    """Also one of a kind that a decoder may raise for a file."""
    with pytest.raises(SourceError) as caught:
        embedder.run(failing([sound] * 3, error), on_error)
    assert caught.value.__cause__ is error
    said = str(caught.value)
    assert "item 3 was asked for" in said and type(error).__name__ in said
    assert sound.name not in said


def test_what_came_before_is_kept(
    embedder: penult.Embedder, recordings: Path, tmp_path: Path
) -> None:
    paths = sorted(recordings.rglob("*.wav"))
    collection = penult.Collection.open(tmp_path / "c.lance")
    with pytest.raises(SourceError, match="item 5 was asked for"):
        collection.add(embedder, failing(paths[:5], RuntimeError("no more")))
    assert collection.count == 5
    (row,) = collection.reader.side_table("runs").to_pylist()
    assert row["status"] == "stopped"
    assert collection.add(embedder, iter(paths)).skipped == 5
    assert collection.count == 6


def test_what_came_before_is_given(embedder: penult.Embedder, sound: Path) -> None:
    source = from_objects(failing([sound] * 3, RuntimeError("no more")), "audio")
    outcomes = embedder.runner.stream(source)
    assert [next(outcomes).item.id for _ in range(3)] == [str(sound)] * 3
    with pytest.raises(SourceError, match="RuntimeError: no more"):
        next(outcomes)


# ---- standard input


class Pipe:
    """Standard input with these bytes."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes, *arguments: object) -> Said:
    """Run a command with these bytes on standard input."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    code = run([str(argument) for argument in arguments])
    monkeypatch.undo()
    return Said(code, out.getvalue(), err.getvalue())


@pytest.mark.parametrize("subtype", ["wav", "flac", "ogg", "mp3"])
def test_a_recording_on_standard_input(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subtype: str
) -> None:
    path = tmp_path / f"a.{subtype}"
    soundfile.write(path, clip(0.6), RATE)
    said = pipe(monkeypatch, path.read_bytes(), "classify", tiny, "-", "--json")
    assert said.code == 0
    (found,) = said.json["predictions"]
    (expected,) = ask("classify", tiny, path, "--json").json["predictions"]
    assert found["id"] == name_of(path.read_bytes())
    assert (found["label"], found["region"]) == (expected["label"], expected["region"])


def test_standard_input_that_is_no_list_and_no_sound(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)) + b"\0"
    said = pipe(monkeypatch, noise, "classify", tiny, "-")
    assert said.code == 3 and said.err.count("\n") == 1
    assert "not readable as audio" in said.err and "no such file" not in said.err


LISTS: dict[str, Callable[[list[str]], bytes]] = {
    "lines": lambda names: "\n".join(names).encode() + b"\n",
    "Windows lines": lambda names: "\r\n".join(names).encode(),
    "byte order mark": lambda names: b"\xef\xbb\xbf" + "\n".join(names).encode(),
    "UTF-16": lambda names: "\r\n".join(names).encode("utf-16"),
    "find -print0": lambda names: "".join(f"{name}\0" for name in names).encode(),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_on_standard_input(tmp_path: Path, kind: str) -> None:
    names = [str(tmp_path / name) for name in ("a.wav", "RIFF b.wav", "ä/c.wav")]
    source = from_paths(["-"], "audio", stdin=Pipe(LISTS[kind](names)))  # type: ignore[arg-type]
    for entries in (list(source), list(source)):  # for the proof, and for the run
        assert [entry[0].id for entry in entries] == names


def test_a_list_is_read_as_it_comes() -> None:
    read, write = os.pipe()
    with os.fdopen(read) as stdin, os.fdopen(write, "wb", 0) as writer:
        writer.write(b"RIFF/a.wav\n")
        entries = iter(from_paths(["-"], "audio", stdin=stdin))
        assert next(entries)[0].id.endswith("RIFF/a.wav")
        writer.write(b"\xff.wav\n")
        assert next(entries)[0].id.endswith("\\udcff.wav")


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SourceError, match="standard input is closed"):
        from_paths(["-"], "audio")
