"""What a process that decodes strangers' files can still do: read. Each way out is tried in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image, features

import penult
from conftest import RATE, clip
from penult.data.decode import Content, DecodeTarget, Decoding, open_regions
from penult.data.items import file_item
from penult.data.regions import WHOLE
from penult.data.workers import Decoders, measure_bounds
from test_cli import ask

SOURCE = str(Path(penult.__file__).parents[1])
BOUNDS = measure_bounds().kept_from
kept = {
    name: pytest.mark.skipif(not by, reason=f"this system keeps no worker from {name}")
    for name, by in BOUNDS.items()
}

# What a worker does first, and then every way out: in its first thread, and in one that was there
# before the last bounds were, as a library's own. Its pipe is the standard output.
START = """
import sys, threading
from penult.data import sandbox
sandbox.close_files()
import ctypes, fcntl, json, mmap, os, resource, signal, socket, subprocess
ready, folder, ways = threading.Event(), sys.argv[1], json.loads(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    given = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    if libc.syscall(*given) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "done"
def attempt(code):
    try:
        eval(code)
        return "done"
    except (OSError, MemoryError, ValueError) as error:
        return type(error).__name__
late = {}
def from_early_thread():
    ready.wait()
    late.update({name: attempt(code) for name, code in ways.items()})
thread = threading.Thread(target=from_early_thread, daemon=True)
thread.start()
sandbox.close_system(memory=1 << 26)
first = {name: attempt(code) for name, code in ways.items()}
ready.set()
thread.join()
sys.stdout.write(json.dumps([first, late]))
"""


def tried(ways: dict[str, str], folder: Path) -> list[dict[str, str]]:
    """What comes of each way in the first thread, and in the other one."""
    done = subprocess.run(
        [sys.executable, "-c", START, str(folder), json.dumps(ways)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": SOURCE},
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


WRITES = {
    "a new file": "open(folder + '/new', 'w')",
    "a new file, by its call": "os.open(folder + '/new', os.O_CREAT | os.O_RDONLY)",
    "an old file": "open(folder + '/file', 'r+')",
    "cut short": "os.truncate(folder + '/file', 0)",
    "emptied as it is opened": "os.open(folder + '/file', os.O_RDONLY | os.O_TRUNC)",
    "nameless": "os.open(folder, os.O_TMPFILE | os.O_WRONLY)",
    "removed": "os.unlink(folder + '/file')",
    "renamed": "os.rename(folder + '/file', folder + '/other')",
    "linked": "os.symlink('file', folder + '/link')",
    "a folder": "os.mkdir(folder + '/made')",
    "rights": "os.chmod(folder + '/file', 0o777)",
    "times": "os.utime(folder + '/file', (0, 0))",
    "attributes": "os.setxattr(folder + '/file', 'user.one', b'1')",
    "a pipe with a name": "os.mkfifo(folder + '/pipe')",
    "by openat2": "call(437, -100, f'{folder}/new'.encode(), (ctypes.c_uint64 * 3)(65, 6, 0), 24)",
    "the memory of another process": "open(f'/proc/{os.getppid()}/mem', 'r+b')",
    "by a ring": "call(425, 4, ctypes.create_string_buffer(120))",
    "a lock that others wait for": "fcntl.flock(open(folder + '/file'), 2)",
    "memory without a name": "os.memfd_create('one')",
}
NETWORK = {
    "a connection": "socket.create_connection(('127.0.0.1', 9))",
    "a datagram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "version 6": "socket.socket(socket.AF_INET6)",
    "of this machine": "socket.socket(socket.AF_UNIX)",
    "a pair": "socket.socketpair()",
    "to the kernel": "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "a name": "socket.getaddrinfo('localhost.example', 80)",
}
PROCESSES = {
    "a fork": "os.fork() or os._exit(0)",
    "another program": "subprocess.run([sys.executable, '-c', ''])",
    "in its own place": "os.execv(sys.executable, [sys.executable, '-c', 'print(1)'])",
    "a spawn": "os.posix_spawn(sys.executable, [sys.executable, '-c', ''], {})",
    "a shell": "os.fork() if os.system('true') else None",
    "by clone3": "call(435, (ctypes.c_uint64 * 11)(), 88)",
    "a signal to its parent": "os.kill(os.getppid(), 0)",
    "a signal to its group": "os.kill(0, 0)",
    "signals about a pipe": "fcntl.fcntl(0, 8, os.getppid())",
    "keys for a terminal": "fcntl.ioctl(0, 0x5412, b'x')",
    "limits of its parent": "resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))",
    "a namespace": "call({'x86_64': 272, 'aarch64': 97}[os.uname().machine], 0x10000000)",
    "another user": "os.setuid(os.getuid())",
    "a handle of its parent": "os.pidfd_open(os.getppid())",
    "a raised limit": "resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))",
}


MEMORY = {"more than there is": "bytearray(1 << 27)", "shared": "mmap.mmap(-1, 3 << 30)"}
WAYS = {"writes": WRITES, "network": NETWORK, "processes": PROCESSES, "memory": MEMORY}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=kept[kind]) for kind in WAYS])
def test_every_way_out_is_closed(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("as it was")
    before = (tmp_path / "file").stat()
    for outcomes in tried(WAYS[kind], tmp_path):
        assert outcomes.keys() == WAYS[kind].keys()
        assert [name for name, outcome in outcomes.items() if outcome == "done"] == []
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    after = (tmp_path / "file").stat()
    assert (tmp_path / "file").read_text() == "as it was"
    assert (before.st_mode, before.st_mtime_ns) == (after.st_mode, after.st_mtime_ns)


NEEDED = {
    "a file": "open(folder + '/file').read()",
    "a folder": "os.listdir(folder)",
    "a signal to itself": "os.kill(os.getpid(), 0)",
    "a thread": "threading.Thread(target=int).start()",
    "memory": "bytearray(1 << 24)",
    "what kind of file it is": "os.isatty(0)",
    "a module": "__import__('zipfile')",
}


def test_what_decoders_need_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    for outcomes in tried(NEEDED, tmp_path):
        assert set(outcomes.values()) == {"done"}, outcomes


# In a system whose kernel has neither: as these calls are answered there.
WITHOUT = """
import ctypes, json, platform, struct
numbers = {"x86_64": 317, "aarch64": 277}[platform.machine()], 444
steps = [(0x20, 0, 0, 0), *((0x15, 2 - at, 0, n) for at, n in enumerate(numbers))]
steps += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050026)]
code = b"".join(struct.pack("=HBBI", *step) for step in steps)
kept = ctypes.create_string_buffer(code, len(code))
program = struct.pack("@HP", len(steps), ctypes.addressof(kept))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0) == 0
from penult.data.workers import measure_bounds
print(json.dumps(measure_bounds().to_dict()))
"""


@kept["writes"]
@kept["network"]
def test_doctor_tells_what_was_tried() -> None:
    here = ask("doctor", "--json").json["workers"]
    assert {name: one["by"] for name, one in here.items()} == BOUNDS
    assert set(here) == {"network", "writes", "processes", "memory"}
    assert "workers and network: kept out by seccomp" in ask("doctor").out
    env = os.environ | {"PYTHONPATH": SOURCE}
    command = [sys.executable, "-c", WITHOUT]
    bare = json.loads(subprocess.run(command, capture_output=True, env=env, check=True).stdout)
    kept_from = {name: one["kept"] for name, one in bare.items()}
    assert kept_from == {"network": False, "writes": False, "processes": False, "memory": True}


def _sounds(folder: Path) -> list[Path]:
    samples = clip(0.5, 3)
    for name in ("wav", "flac", "mp3", "ogg", "aiff"):
        soundfile.write(folder / f"one.{name}", samples, RATE)
    soundfile.write(folder / "one.opus", samples, RATE, format="OGG", subtype="OPUS")
    soundfile.write(folder / "other.wav", samples, 44_100)  # resampled
    _m4a(folder / "one.m4a", samples)
    return sorted(folder.iterdir())


def _m4a(path: Path, samples: np.ndarray) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def _pictures(folder: Path) -> list[Path]:
    values = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    picture = Image.fromarray(values)
    names = ["jpg", "png", "tif", "webp", "gif", "bmp", "ppm"]
    names += ["avif"] if features.check("avif") else []
    names += ["jp2"] if features.check("jpg_2000") else []
    for name in names:
        picture.save(folder / f"one.{name}")
    picture.convert("LA").save(folder / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=exif)
    picture.convert("CMYK").save(folder / "print.jpg")
    Image.fromarray(values[..., 0].astype(np.uint16) * 256).save(folder / "deep.png")
    pages = [Image.fromarray(np.full((20, 20, 3), at * 50, np.uint8)) for at in range(3)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    return sorted(folder.iterdir())


def _films(folder: Path) -> list[Path]:
    av = pytest.importorskip("av")
    with av.open(str(folder / "one.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            values = np.full((48, 64, 3), number * 12, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(values)):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return [folder / "one.mp4"]


def _texts(folder: Path) -> list[Path]:
    (folder / "one.txt").write_text("Fünf Wörter, und 😀\n" * 9000, encoding="utf-8")
    return [folder / "one.txt"]


MAKERS = {"audio": _sounds, "image": _pictures, "video": _films, "text": _texts}


@pytest.mark.parametrize("modality", MAKERS)
@pytest.mark.parametrize("given", ["paths", "bytes"])
def test_every_format_is_read_to_the_bit(modality: str, given: str, tmp_path: Path) -> None:
    paths = MAKERS[modality](tmp_path)
    items = [file_item(path) for path in paths]
    if given == "bytes":
        items = [type(one)(one.id, Path(one.id).read_bytes()) for one in items]
    target = DecodeTarget(modality, RATE, frames=4)
    expected = list(open_regions([(item, WHOLE) for item in items], target))
    decoding = Decoding(workers=1, worker_memory=1 << 30)
    with Decoders(target, decoding) as decoders:
        found = list(decoders.open_regions([(item, WHOLE) for item in items]))
        ready = decoders._workers[0].ready
    assert ready is not None and set(ready.bounds) >= {by for one in BOUNDS.values() for by in one}
    assert len(found) == len(paths)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one.content, Content), one
        assert isinstance(other.content, Content)
        if modality == "text":
            assert one.content.values == other.content.values
        else:
            got, wanted = np.asarray(one.content.values), np.asarray(other.content.values)
            assert got.dtype == wanted.dtype and np.array_equal(got, wanted)
        if modality == "image":
            found_info, own_info = one.content.values.info, other.content.values.info
            assert found_info.get("exif") == own_info.get("exif")
        assert (one.content.start, one.content.end) == (other.content.start, other.content.end)
        assert (one.content.pages, one.content.notes) == (other.content.pages, other.content.notes)


@kept["memory"]
def test_what_does_not_fit_into_a_worker_is_too_long(tmp_path: Path) -> None:
    Image.new("L", (12_000, 12_000)).save(tmp_path / "a-large.png")
    Image.new("L", (20, 20), 128).save(tmp_path / "b-small.png")
    items = [file_item(path) for path in sorted(tmp_path.iterdir())]
    decoding = Decoding(workers=1, worker_memory=100_000_000)
    with Decoders(DecodeTarget("image"), decoding) as decoders:
        large, small = decoders.open_regions([(item, WHOLE) for item in items])
        process = decoders._workers[0].process
        assert process.poll() is None  # the same one went on
    assert type(large.content).__name__ == "TooLong" and "memory" in str(large.content)
    assert isinstance(small.content, Content)
