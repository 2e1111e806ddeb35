"""Decoding in worker processes: the same contents, and no file that takes the run with it."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import penult
from conftest import RATE, assert_law, clip
from penult.collection.collection import Collection
from penult.data import messages, workers
from penult.data.decode import (
    Content,
    DecodedRegion,
    DecodeTarget,
    Decoding,
    open_regions,
)
from penult.data.items import Item
from penult.data.regions import WHOLE, Region
from penult.data.sources import from_paths
from penult.data.windows import Layout
from penult.data.workers import Decoders
from penult.embedding.embedder import Embedder
from penult.errors import DecodeError, ItemError, PassingFault, StoreError
from penult.import_path import environment, isolated_path
from penult.models.specs import load
from test_cli import ask

WANTED = DecodeTarget("audio", RATE)

# By their names files crash or kill their worker, hang, find the disk gone, or make their decoder
# write answers of its own; `later` ones only in a worker that has read another file before.
CRASHING = """
import errno, os, pickle, struct, sys, time
if "from penult.data.decoding_process import serve" in " ".join(sys.orig_argv):
    from penult.data import audio
    load_many, done = audio.load_many, []
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {sys.path[0]}/exploded",)
    def answer(header, body=b"", length=None):
        size = len(body) if length is None else length
        return struct.pack("<QQ", len(header), size) + header + body
    sound = b'{"seconds":0.1,"span":[0,1],"pages":null,"notes":[],"shape":[%s]}'
    forged = {
        "pickle": pickle.dumps(Bomb()),
        "pickled": answer(pickle.dumps(Bomb())),
        "endless": answer(sound % b"1000000000000000", b"", 4 * 10**15),
        "deep": answer(b"[" * 100000),
        "raising": answer(b'{"seconds":0.1,"error":["KeyboardInterrupt","x"]}'),
        "ending": answer(b'{"seconds":0.1,"error":["MissingExtra","x"]}'),
        "shape": answer(sound % b"3", b"1234"),
        "axes": answer(sound % b"1,1", b"1234"),
        "objects": answer(b'{"seconds":0.1,"span":{},"pages":"x","notes":7}'),
        "silent": b"",
    }
    def failing(content, *rest, **named):
        name = getattr(content, "name", "bytes")
        kind = name if "later" not in name or done else ""
        done.append(name)
        if "crash" in kind or name == "bytes":
            os.kill(os.getpid(), 11)
        if "kill" in kind:
            os.kill(os.getpid(), 9)
        if "hang" in kind:
            time.sleep(600)
        if "slow" in kind:
            time.sleep(0.05)
        if "stale" in kind:
            raise OSError(errno.ESTALE, "Stale file handle")
        if "forged" in kind:
            os.write(int(sys.argv[2]), forged[name.split("-")[1]])
            os._exit(0)
        print("what decoders print is no answer")
        return load_many(content, *rest, **named)
    audio.load_many = failing
"""
FORGED = "pickle pickled endless deep raising ending shape axes objects silent".split()


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
@pytest.mark.parametrize("size", [50, pytest.param(2000, marks=pytest.mark.slow)])
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
    options = ["--workers", 2, "--time-limit", 4, "--engine", "openvino"]  # which is measured
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


def decoded(folder: Path, **options: object) -> dict[str, object]:
    """What comes of each file of a folder in one worker: its content, or its failure."""
    pairs = list(from_paths([str(folder)], "audio"))
    with Decoders(WANTED, Decoding(workers=1, **options)) as decoders:  # type: ignore[arg-type]
        found = list(decoders.open_regions(pairs))
    assert [one.item.id for one in found] == [item.id for item, _ in pairs]
    return {Path(one.item.id).name: one.content for one in found}


def sounds(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        soundfile.write(folder / name, clip(0.3, number), RATE)
    return folder


@pytest.mark.usefixtures("crashing")
def test_a_second_try_in_a_fresh_worker(tmp_path: Path) -> None:
    """Each of these fails once, and not when it is the first that a worker reads."""
    names = ["a.wav", "crash-later.wav", "d.wav", "hang-later.wav", "kill-later.wav", "z.wav"]
    found = decoded(sounds(tmp_path / "s", *names, "stale-later.wav"), time_limit=3.0)
    assert len(found) == 7
    for number, name in enumerate([*names, "stale-later.wav"]):
        content = found[name]
        assert isinstance(content, Content), (name, content)
        expected, _ = soundfile.read(tmp_path / "s" / name, dtype="float32")
        assert np.array_equal(content.values, expected), number


@pytest.mark.slow
@pytest.mark.usefixtures("crashing")
def test_a_verdict_or_a_fault_of_the_world(tmp_path: Path) -> None:
    """What is killed, stalls or meets a failing disk says nothing of the file; what crashes its
    decoder twice does. Files between two that fail are read as if they were alone."""
    bad = ["crash-1.wav", "crash-2.wav", "hang.wav", "kill.wav", "stale.wav"]
    good = ["a.wav", "d.wav", "i.wav", "l.wav", "z.wav"]
    found = decoded(sounds(tmp_path / "s", *bad, *good), time_limit=3.0)
    assert all(isinstance(found[name], Content) for name in good)
    kinds = {name: type(found[name]) for name in bad}
    assert [name for name, kind in kinds.items() if kind is DecodeError] == bad[:2]
    assert [name for name, kind in kinds.items() if kind is PassingFault] == bad[2:]
    words = {name: str(found[name]) for name in bad}
    assert "SIGSEGV" in words["crash-1.wav"] and "SIGKILL" in words["kill.wav"]
    assert "takes longer than 3 s" in words["hang.wav"] and "Stale" in words["stale.wav"]


@pytest.mark.usefixtures("crashing")
def test_a_dead_disk_costs_no_worker_for_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, started = workers._start_process, list[int]()

    def counted(*pipes: int) -> Any:
        process = start(*pipes)
        started.append(process.pid)
        return process

    monkeypatch.setattr(workers, "_start_process", counted)
    names = [f"stale-{number:02}.wav" for number in range(30)]
    pairs = list(from_paths([str(sounds(tmp_path / "s", *names))], "audio"))
    with Decoders(WANTED, Decoding(workers=1)) as decoders:
        found = list(decoders.open_regions(pairs))
        assert decoders._workers[0].process.pid != started[0]
    assert len(started) == 3  # two files are tried again, the later ones once
    assert {type(one.content) for one in found} == {PassingFault}


@pytest.mark.usefixtures("crashing")
@pytest.mark.parametrize("kind", FORGED)
def test_a_worker_that_a_file_has_taken_over_answers(kind: str, tmp_path: Path) -> None:
    """Whatever it sends, nothing runs here, nothing is raised, and the other files are read."""
    folder = sounds(tmp_path / "s", "a.wav", f"forged-{kind}.wav", "z.wav")
    found = decoded(folder)
    assert isinstance(found["a.wav"], Content) and isinstance(found["z.wav"], Content)
    assert isinstance(found[f"forged-{kind}.wav"], ItemError)
    assert not (tmp_path / "site" / "exploded").exists()


@pytest.mark.usefixtures("crashing")
def test_bytes_are_decoded_in_workers_too(recordings: Path) -> None:
    good = next(iter(from_paths([str(recordings)], "audio")))
    pair = Item("b", Path(good[0].id).read_bytes()), good[1]
    with Decoders(WANTED, Decoding(workers=1)) as decoders:
        (lost,) = decoders.open_regions([pair])
    assert "SIGSEGV" in str(lost.content)


def test_no_memory_for_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a fault of that file, and of the time; the thread that reads does not end the run."""
    read, number = messages.answer_of, iter(range(100))

    def short(*arguments: Any) -> Any:
        answer = read(*arguments)
        if next(number) in (1, 2, 3):  # with others, alone, and in a fresh worker
            raise MemoryError
        return answer

    monkeypatch.setattr(messages, "answer_of", short)
    found = decoded(sounds(tmp_path / "s", "a.wav", "b.wav", "c.wav"))
    assert type(found["b.wav"]) is PassingFault and "memory" in str(found["b.wav"])
    assert isinstance(found["a.wav"], Content) and isinstance(found["c.wav"], Content)


LATE = """
import sys
import time
if "from penult.data.decoding_process import serve" in " ".join(sys.orig_argv):
    from penult.data import sandbox
    close_system = sandbox.close_system
    def checked(*arguments):
        if "soundfile" not in sys.modules:
            raise RuntimeError("the library is not there yet")
        return close_system(*arguments)
    sandbox.close_system = checked
"""


def test_a_library_may_look_for_its_parts_before_it_is_shut_in(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soundfile does by ldconfig where it comes without its own."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(LATE)
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    assert all(isinstance(one, Content) for one in decoded(recordings).values())


def test_no_worker_comes_up(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = list(from_paths([str(recordings)], "audio"))
    monkeypatch.setattr(workers, "_CODE", "import no_such_module")
    with (
        Decoders(WANTED, Decoding(workers=1)) as decoders,
        pytest.raises(StoreError, match=r"no process for decoding comes up.*--workers 0"),
    ):
        list(decoders.open_regions(pairs))


@given(st.integers(0, 200), st.integers(0, 255), st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_a_changed_answer_is_read_or_refused(place: int, value: int, end: int) -> None:
    """Of a message in which a byte is another, or that ends early, nothing else comes."""
    content = Content(np.ones(3, np.float32), 0.0, 1.5, notes=("a note",))
    answer = _sent(DecodedRegion(Item("a", b""), WHOLE, content, 0.5))
    changed = bytearray(answer)
    changed[place % len(changed)] = value
    with suppress(EOFError, ValueError, KeyError, TypeError):
        read = messages.read_answer(
            io.BytesIO(bytes(changed[: len(answer) - end % 3])), "audio", 99
        )
        assert isinstance(read.content, Content | ItemError)


def _sent(decoded: DecodedRegion) -> bytes:
    reading, writing = os.pipe()
    messages.send_answer(writing, decoded)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123
        return pipe.read()


HOSTILE = "soundfile random json typing logging tempfile ctypes socket av PIL soxr torch typer"


@pytest.mark.parametrize(
    "start",
    [["-m", "penult"], pytest.param(["-c", "import sys; {command}"], marks=pytest.mark.slow)],
)
def test_a_folder_of_recordings_runs_nothing(
    start: list[str], recordings: Path, light: Path, tmp_path: Path
) -> None:
    """Neither in the command nor in its workers, whatever the variables of Python say."""
    ran = tmp_path / "ran"
    ran.mkdir()
    for name in HOSTILE.split():
        (recordings / f"{name}.py").write_text(f"open({str(ran / name)!r}, 'w')")
    (recordings / "numpy").mkdir()
    (recordings / "numpy" / "__init__.py").write_text(f"open({str(ran / 'numpy')!r}, 'w')")
    (recordings / "startup.py").write_text(f"open({str(ran / 'startup')!r}, 'w')")
    source = str(Path(penult.__file__).parents[1])
    # As the script of an installed `penult` starts it, whose own folder comes first.
    command = (
        f"sys.path[0] = {source!r}; sys.argv[0] = 'penult'; from penult.cli import main; main()"
    )
    env = os.environ | {
        "PYTHONPATH": f"{os.pathsep}{source}{os.pathsep}.{os.pathsep}",
        "PYTHONSTARTUP": "startup.py",
        "PYTHONINSPECT": "",
    }
    options = ["--into", str(tmp_path / "c.lance"), "--workers", "2"]
    started = [one.format(command=command) for one in start]
    done = subprocess.run(
        [sys.executable, *started, "embed", str(light), ".", *options],
        cwd=recordings,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in ran.iterdir()] == []
    assert "6 embedded" in done.stderr + done.stdout


def test_no_process_looks_for_modules_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = str(tmp_path / "other")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "relative", other]))
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "relative", other, *sys.path])
    assert environment()["PYTHONPATH"] == other
    found = isolated_path()
    assert other in found and not {"", "relative", str(tmp_path)} & set(found)
    assert str(Path(penult.__file__).parents[1]) in found
    # What a person names in full, they mean.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert str(tmp_path) in isolated_path()


def test_short_files_are_sent_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many to a message, a long one among them by itself; each has its own content."""
    names = [f"{number:03}.wav" for number in range(60)]
    folder = sounds(tmp_path / "s", *names)
    soundfile.write(folder / "030-long.wav", clip(20.0, 7), RATE)
    sent: list[list[str]] = []
    send = messages.send_tasks

    def counted(pipe: int, tasks: list[list[tuple[Item, Region]]]) -> None:
        sent.append([Path(pairs[0][0].id).name for pairs in tasks])
        send(pipe, tasks)

    monkeypatch.setattr(messages, "send_tasks", counted)
    found = decoded(folder)
    assert sorted(name for some in sent for name in some) == sorted(found)
    assert len(sent) < 30 and ["030-long.wav"] in sent
    for name, content in found.items():
        assert isinstance(content, Content)
        assert np.array_equal(content.values, soundfile.read(folder / name, dtype="float32")[0])


@pytest.mark.usefixtures("crashing")
def test_whose_fault_it_is_of_files_that_were_sent_together(tmp_path: Path) -> None:
    """None of those before and behind is lost, and none of them is blamed."""
    names = [f"{number:03}.wav" for number in range(30)]
    bad = ["004-crash.wav", "011-kill.wav", "011-stale.wav", "020-forged-deep.wav"]
    found = decoded(sounds(tmp_path / "s", *names, *bad))
    assert [name for name, content in found.items() if not isinstance(content, Content)] == bad
    assert "SIGSEGV" in str(found[bad[0]]) and "SIGKILL" in str(found[bad[1]])


@pytest.mark.usefixtures("crashing")
def test_as_many_workers_as_it_takes(tmp_path: Path) -> None:
    """One where whoever takes the contents is slower, more where decoding is what takes time."""
    count: dict[str, int] = {}
    for kind, pause, files in (("quick", 0.1, 25), ("slow", 0.0, 40)):
        folder = sounds(tmp_path / kind, *(f"{number}-{kind}.wav" for number in range(files)))
        with Decoders(WANTED, Decoding(workers=3)) as decoders:
            for one in decoders.open_regions(list(from_paths([str(folder)], "audio"))):
                assert isinstance(one, DecodedRegion) and isinstance(one.content, Content)
                if not count.get(kind):
                    decoders._load._since, decoders._load._waited = time.monotonic(), 0.0
                time.sleep(pause)
                count[kind] = len(decoders._workers)
    assert count["quick"] == 1 and count["slow"] > 1
