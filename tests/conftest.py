"""What the tests share: tiny checkpoints, clips made here, and real data where it is there."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; read by numpy's BLAS

from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import soundfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from penult.data.decode import Decoding, decoding_as

torch.set_num_threads(1)  # as above
hypothesis.settings.register_profile("busy", deadline=None)  # and on busy machines
hypothesis.settings.load_profile("busy")

RATE = 16_000
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def clip(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """A gliding tone in noise, (n,) float32: never silent, different for each seed."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (200 + 150 * seed + 80 * time) * time)
    return (0.3 * tone + 0.05 * random.standard_normal(len(time))).astype(np.float32)


def thinned(cases: Iterable[Any], each_run: Container[Any]) -> list[Any]:
    """Parameters of a test: some in each run, the others where slow tests are run too."""
    slow = pytest.mark.slow
    return [
        case if case in each_run else pytest.param(*_values(case), marks=slow) for case in cases
    ]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)


def assert_law(found: object, alone: object) -> None:
    """What the padding law allows between an item in a batch and the item alone."""
    one, other = np.float64(found), np.float64(alone)  # type: ignore[arg-type]
    assert one.shape == other.shape
    assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Graphs, proofs and choices of the tests are kept apart from those of whoever runs them."""
    folder = tmp_path_factory.getbasetemp() / "user cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENULT_CACHE", str(folder))
        yield folder


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache in which no other test has left a proof."""
    folder = tmp_path / "fresh cache"
    monkeypatch.setenv("PENULT_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def cache_of_patched_code(request: pytest.FixtureRequest) -> None:
    """What patched code measures is not kept for other tests."""
    if "monkeypatch" in request.fixturenames:
        request.getfixturevalue("fresh_cache")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; tests that need it skip where it is absent, and fail on CI."""
    if not SHARED.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail("the real data must be there on CI")
        pytest.skip("real data is not there")
    return SHARED


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny wav2vec2 classifier."""
    from zoo import save_audio

    return save_audio(tmp_path_factory.mktemp("models") / "tiny", "wav2vec2")


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved embedder that opens quickly, for tests that start commands and look at no model."""
    from zoo import save_graph

    return save_graph(tmp_path_factory.mktemp("models") / "light")


@pytest.fixture(scope="session")
def demo_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's clips at its prelogits; a test that writes copies the folder."""
    import penult

    path = tmp_path_factory.mktemp("store") / "words.lance"
    embedder = penult.Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")
    clips = Path(penult.__file__).parent / "demo" / "clips" / "clips.csv"
    penult.Collection.open(path).add(embedder, clips)
    return path


# What a worker does with a file of a hostile name; a test adds which readers.
HOSTILE = """
import os, sys, time
if "from penult.data.decoding_process import serve" in " ".join(sys.orig_argv):
    from penult.data import audio, image
    def hostile(read):
        def reading(content, *rest, **named):
            name = getattr(content, "name", "") or str(content)[-99:] * isinstance(content, bytes)
            if "crash" in name:
                os.kill(os.getpid(), 11)
            if "hang" in name:
                time.sleep(600)
            if "alloc" in name:
                bytearray(1 << 40)
            return read(content, *rest, **named)
        return reading
"""


def make_hostile(place: Path, monkeypatch: pytest.MonkeyPatch, *readers: str) -> None:
    """Make these readers, such as `audio.info`, hostile in the workers of a test."""
    (place / "site").mkdir()
    lines = "".join(f"    {one} = hostile({one})\n" for one in readers)
    (place / "site" / "sitecustomize.py").write_text(HOSTILE + lines)
    paths = [str(place / "site"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))


@pytest.fixture
def here() -> Iterator[None]:
    """Files are opened in this process, whose decoders a test changes."""
    with decoding_as(Decoding()):
        yield


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine is worth a trial, at once and in this process."""
    for name, value in {
        "OPENING": 0.0,
        "RECORDING": (0.0, 0.0),
        "UNKNOWN": 0.0,
        "INLINE": 0.0,
        "can_copy_process": lambda: False,
    }.items():
        monkeypatch.setattr(f"penult.engines.portfolio.{name}", value)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder of six clips of different lengths, in two folders."""
    root = tmp_path / "recordings"
    for number in range(6):
        path = root / ("a" if number % 2 else "b") / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, clip(0.3 + 0.17 * number, number), RATE, subtype="PCM_16")
    return root


def pytest_collection_finish() -> None:
    """Thousands of tests and what they import stay until the end: no search for garbage among
    them, which took up to a second each time."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of the sweeps in test_conformance.py, where they ran, on whatever worker."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    lines = [value for r in reports for key, value in r.user_properties if key == "conformance"]
    if lines:
        from sweep import HEADINGS

        terminalreporter.section("heads: proved, or rightly refused")
        table = [HEADINGS, *sorted(lines)]
        widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
        for row in table:
            cells = zip(row, widths, strict=True)
            terminalreporter.write_line("  ".join(text.ljust(width) for text, width in cells))
