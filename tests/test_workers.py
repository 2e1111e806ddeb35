"""Decoding in worker processes: the same contents, and no file that takes the run with it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from conftest import RATE, clip
from penult.classifiers import load
from penult.embedding.embedder import Embedder
from penult.embedding.opening import Content, Opened, Wanted, open_regions
from penult.embedding.workers import Decoders
from penult.errors import ItemError
from penult.sources import from_paths
from penult.sources.layout import Layout
from penult.store.collection import Collection

WANTED = Wanted("audio", RATE)

CRASHING = """
import os, sys, time
if "from penult.embedding.workers import serve" in " ".join(sys.orig_argv):
    from penult.media import audio
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


def described(opened: Opened | object) -> object:
    if not isinstance(opened, Opened):
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
    with Decoders(WANTED, workers) as decoders:
        assert [described(one) for one in decoders.open_regions(mixed)] == expected
        processes = [worker.process for worker in decoders._workers]
    assert all(process.poll() is not None for process in processes)


def test_many_regions_of_one_file_wait_for_the_reader(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", clip(60.0), RATE)
    pairs = list(Layout(window=1.0, hop=0.05).apply(from_paths([str(tmp_path)], "audio"), "audio"))
    with Decoders(WANTED, 1) as decoders:
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
    with Decoders(WANTED, 2, time_limit=5.0) as decoders:
        opened = list(decoders.open_regions(pairs))
    assert [one.item.id for one in opened] == [item.id for item, _ in pairs]
    failed = [one for one in opened if not isinstance(one.content, Content)]
    assert [Path(one.item.id).name for one in failed] == ["hangs.wav"]
    assert "takes longer than 5 s" in str(failed[0].content)


def test_left_early(recordings: Path) -> None:
    pairs = list(from_paths([str(recordings)], "audio"))
    with Decoders(WANTED, 2) as decoders:
        opened = decoders.open_regions(pairs)
        next(opened)
        processes = [worker.process for worker in decoders._workers]
    assert all(process.poll() is not None for process in processes)
