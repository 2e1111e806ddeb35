"""Decoding in worker processes: the same contents, and no file that takes the run with it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import RATE, assert_law, clip
from penult.collection.collection import Collection
from penult.data.decode import (
    Content,
    DecodedRegion,
    DecodeTarget,
    Decoding,
    open_regions,
)
from penult.data.sources import from_paths
from penult.data.windows import Layout
from penult.data.workers import Decoders
from penult.embedding.embedder import Embedder
from penult.errors import ItemError
from penult.models.specs import load
from test_cli import ask

WANTED = DecodeTarget("audio", RATE)

CRASHING = """
import os, sys, time
if "from penult.data.decoding_process import serve" in " ".join(sys.orig_argv):
    from penult.data import audio
    load_many = audio.load_many
    def failing(content, *rest, **named):
        if "crash" in content.name:
            os.kill(os.getpid(), 11)
        if "hang" in content.name:
            time.sleep(600)
        print("what decoders print is no answer")
        return load_many(content, *rest, **named)
    audio.load_many = failing
"""


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that die of a segmentation fault on a file of that name."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CRASHING)
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))


def described(opened: DecodedRegion | object) -> object:
    if not isinstance(opened, DecodedRegion):
        return opened
    content = opened.content
    if isinstance(content, ItemError):
        return opened.item.id, opened.region.key, type(content).__name__, str(content)
    return opened.item.id, opened.region.key, content.values.tobytes(), content.start, content.end


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_as_in_this_process(recordings: Path, tmp_path: Path, workers: int) -> None:
    (recordings / "a" / "broken.wav").write_bytes(b"RIFF no sound")
    soundfile.write(recordings / "silent.wav", np.zeros(RATE), RATE)
    pairs = list(Layout(window=0.3, hop=0.1).apply(from_paths([str(recordings)], "audio"), "audio"))
    mixed = [*pairs[:7], "a note", *pairs[7:], "another"]
    expected = [described(one) for one in open_regions(mixed, WANTED)]
    with Decoders(WANTED, Decoding(workers=workers)) as decoders:
        assert [described(one) for one in decoders.open_regions(mixed)] == expected
        processes = [worker.process for worker in decoders._workers]
    assert all(process.poll() is not None for process in processes)


def test_many_regions_of_one_file_wait_for_the_reader(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", clip(60.0), RATE)
    pairs = list(Layout(window=1.0, hop=0.05).apply(from_paths([str(tmp_path)], "audio"), "audio"))
    with Decoders(WANTED, Decoding(workers=1)) as decoders:
        opened = list(decoders.open_regions(pairs))
    assert len(opened) == len(pairs) == 1181
    assert all(isinstance(one.content, Content) for one in opened)


@pytest.mark.usefixtures("crashing")
def test_a_file_that_kills_its_worker(recordings: Path, tmp_path: Path, tiny: Path) -> None:
    soundfile.write(recordings / "a" / "crash.wav", clip(1.0), RATE)
    emb = Embedder.from_classifier(load(tiny))
    collection = Collection.open(tmp_path / "c")
    summary = collection.add(emb, recordings, workers=2)
    assert (summary.done, summary.failed) == (6, 1)
    failure = collection.failures().to_pylist()[0]
    assert failure["id"].endswith("crash.wav") and "SIGSEGV" in failure["message"]
    windows = Collection.open(tmp_path / "w")
    summary = windows.add(emb, recordings, workers=2, window=0.25)
    assert summary.failed == 4  # one process, not four, died of them


@pytest.mark.usefixtures("crashing")
def test_a_file_that_hangs(recordings: Path) -> None:
    soundfile.write(recordings / "a" / "hangs.wav", clip(1.0), RATE)
    pairs = list(from_paths([str(recordings)], "audio"))
    with Decoders(WANTED, Decoding(workers=2, time_limit=5.0)) as decoders:
        opened = list(decoders.open_regions(pairs))
    assert [one.item.id for one in opened] == [item.id for item, _ in pairs]
    failed = [one for one in opened if not isinstance(one.content, Content)]
    assert [Path(one.item.id).name for one in failed] == ["hangs.wav"]
    assert "takes longer than 5 s" in str(failed[0].content)


@pytest.mark.usefixtures("crashing")
@pytest.mark.parametrize("size", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_tenth_of_hostile_files(tiny: Path, tmp_path: Path, size: int) -> None:
    """Some of them first, so that the proof and the choice of an engine meet them too."""
    good, folder = tmp_path / "good", tmp_path / "mixed"
    good.mkdir()
    for number in range(size * 9 // 10):
        soundfile.write(good / f"{number:05}.wav", clip(0.3 + number % 7 / 20, number), RATE)
    shutil.copytree(good, folder)
    crashes = [f"{number:05}-crash.wav" for number in range(size // 50)]
    texts = [f"{number:05}-text.flac" for number in range(size // 10 - size // 50 - 1)]
    bad = ["00000-hang.wav", *crashes, *texts]
    for name in bad:
        (folder / name).write_text("no sound at all")
    options = ["--workers", 2, "--time-limit", 4, "--precision", "fast", "--engine", "torch"]
    said = ask("embed", tiny, folder, "--into", tmp_path / "mixed.lance", *options)
    assert said.code == 3 and "Traceback" not in said.out + said.err
    why = Collection.open(tmp_path / "mixed.lance").failures().to_pylist()
    assert sorted(Path(row["id"]).name for row in why) == sorted(bad)
    for row in why:
        name = Path(row["id"]).name
        says = "SIGSEGV" if "crash" in name else "4 s" if "hang" in name else "holds no samples"
        assert says in row["message"]
    assert ask("embed", tiny, good, "--into", tmp_path / "good.lance", *options).code == 0
    found, expected = (
        Collection.open(tmp_path / name).vectors(columns=["content_hash"])
        for name in ("mixed.lance", "good.lance")
    )
    assert found[0] == expected[0]  # in the order of their paths
    assert_law(found[1], expected[1])


def test_left_early(recordings: Path) -> None:
    pairs = list(from_paths([str(recordings)], "audio"))
    with Decoders(WANTED, Decoding(workers=2)) as decoders:
        opened = decoders.open_regions(pairs)
        next(opened)
        processes = [worker.process for worker in decoders._workers]
    assert all(process.poll() is not None for process in processes)
