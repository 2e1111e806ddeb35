"""Power cuts on a device of its own: a file system in an image file, mounted, written to, and
copied as it is at one moment, which is what a disk has when the power goes. Needs root, loop
devices and mkfs; `unavailable()` says what is missing.

`python tests/power_cut.py 20 ext4 xfs btrfs` does 20 cuts on each and prints one line per cut.
"""

from __future__ import annotations

import contextlib
import logging.handlers
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

MEGABYTES = {"ext4": 96, "xfs": 320, "btrfs": 160}
_OPTIONS = {"ext4": ["-q", "-F"], "xfs": ["-q", "-f"], "btrfs": ["-q", "-f"]}


def unavailable(kind: str = "ext4") -> str:
    """Why there can be no power cuts here; empty where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "power cuts need root on Linux"
    for tool in (f"mkfs.{kind}", "losetup", "mount", "umount"):
        if shutil.which(tool) is None:
            return f"power cuts need {tool}"
    try:
        with tempfile.TemporaryDirectory() as folder, device(Path(folder), kind):
            return ""
    except subprocess.CalledProcessError as error:
        return f"no loop device can be mounted here: {error.stderr.decode().strip()}"


def _do(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return done.stdout.decode().strip()


@contextlib.contextmanager
def device(folder: Path, kind: str = "ext4", image: Path | None = None) -> Iterator[Path]:
    """A mounted file system in an image, a new one unless an image is given; gives its place."""
    fresh = image is None
    image = image or folder / "disk.img"
    place = folder / f"mounted-{image.stem}"
    place.mkdir(exist_ok=True)
    if fresh:
        with image.open("wb") as file:
            file.truncate(MEGABYTES[kind] << 20)
        _do(f"mkfs.{kind}", *_OPTIONS[kind], image)
    loop = _do("losetup", "--find", "--show", image)
    try:
        # A copy has the same name of its own as the file system that it is of.
        options = ["-o", "nouuid"] if kind == "xfs" else []
        _do("mount", "-t", kind, *options, loop, place)
        try:
            yield place
        finally:
            _do("umount", "-l", place)
    finally:
        _do("losetup", "--detach", loop)


def cut(image: Path, copy: Path) -> Path:
    """The device as it is at this moment, without what the system still has in its memory."""
    shutil.copyfile(image, copy)
    return copy


@dataclass(frozen=True, slots=True)
class Cut:
    """What was found after a power cut. promised: commits that were on the disk when the cut came,
    by the writer's own word; found: rows that are read there; said: warnings; is_cut: whether a
    file that nobody flushed is not there, as it is after a cut and not after a mere kill."""

    promised: int
    rows: int
    said: str
    error: str = ""
    is_cut: bool = True

    @property
    def is_kept(self) -> bool:
        """Whether the collection opens with all that was promised."""
        return not self.error and self.rows >= self.promised


ROWS, DIM = 16, 64
UNFLUSHED = bytes(range(256)) * 512
_WRITER = """
import sys, time
import numpy as np, pyarrow as pa
from pathlib import Path
from penult.collection import schema
from penult.collection.manifest import Manifest
from penult.collection.writer import writing
rows, dim, commits = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
manifest = Manifest({"weights": "a"}, dim, 3, {"spec": "x"}, ("a", "b", "c"))
columns = schema.row_schema(dim, 3, "all", "float32")
rng = np.random.default_rng(int(sys.argv[5]))
def lists(width):
    values = pa.array(rng.random(rows * width, dtype=np.float32))
    return pa.FixedSizeListArray.from_arrays(values, width)
def batch(number):
    given = {"id": pa.array([f"/{number}/{i}.wav" for i in range(rows)]),
             "region": pa.array(["whole"] * rows), "kind": pa.array(["whole"] * rows),
             "content_hash": pa.array([f"{number}"] * rows),
             "vector": lists(dim), "logits": lists(3)}
    return pa.RecordBatch.from_arrays(
        [given.get(f.name, pa.nulls(rows, f.type)) for f in columns], schema=columns)
said = 0
with writing(Path(sys.argv[1]), manifest) as writer:
    for number in range(commits):
        writer.write(batch(number))
        print(number, flush=True)  # the commit before this one is on the disk
        if number % 7 == 3:
            time.sleep(0.05)
print("done", flush=True)
"""


def trial(
    folder: Path, kind: str = "ext4", commits: int = 40, seed: int = 0, cuts: int = 2
) -> list[Cut]:
    """Cuts at random moments of one run, and one at its end."""
    draw = random.Random(seed)
    found: list[Cut] = []
    promises: list[int] = []
    with device(folder, kind) as place:
        os.sync()
        command = [sys.executable, "-c", _WRITER, str(place / "c.lance"), str(ROWS), str(DIM)]
        process = subprocess.Popen(
            [*command, str(commits), str(seed)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        moments = sorted(draw.sample(range(1, commits), cuts))
        for line in process.stdout:
            word = line.strip()
            if word == "done":
                break
            if int(word) in moments:
                time.sleep(draw.random() * 0.02)
                process.send_signal(signal.SIGSTOP)  # so that the copy is of one moment
                (place / f"unflushed{len(promises)}").write_bytes(UNFLUSHED)
                cut(folder / "disk.img", folder / f"cut{len(promises)}.img")
                process.send_signal(signal.SIGCONT)
                promises.append(int(word) * ROWS)
        assert process.wait(60) == 0
        (place / f"unflushed{len(promises)}").write_bytes(UNFLUSHED)
        cut(folder / "disk.img", folder / f"cut{len(promises)}.img")
        promises.append(commits * ROWS)
    for number, promised in enumerate(promises):
        image = folder / f"cut{number}.img"
        with device(folder, kind, image) as place:
            one, beside = _opened(place / "c.lance", promised, seed), place / f"unflushed{number}"
            is_cut = not beside.exists() or beside.read_bytes() != UNFLUSHED
            found.append(replace(one, is_cut=is_cut))
        image.unlink()
    return found


def _written(seed: int, commits: int) -> dict[str, np.ndarray]:
    """The vectors that the writer draws, by row."""
    found: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(seed)
    for number in range(commits):
        vectors = rng.random(ROWS * DIM, dtype=np.float32).reshape(ROWS, DIM)
        rng.random(ROWS * 3, dtype=np.float32)
        found |= {f"/{number}/{i}.wav": vector for i, vector in enumerate(vectors)}
    return found


def _opened(path: Path, promised: int, seed: int) -> Cut:
    from penult.collection.collection import Collection
    from penult.errors import PenultError

    said = logging.handlers.BufferingHandler(100)
    logging.getLogger("penult").addHandler(said)
    try:
        table, vectors = Collection.open(path, must_exist=True).vectors()
    except PenultError as error:
        return Cut(promised, 0, "", str(error))
    finally:
        logging.getLogger("penult").removeHandler(said)
    words = "; ".join(record.getMessage() for record in said.buffer)
    ids, commits = table["id"].to_pylist(), max([len(table) // ROWS, 1])
    written = _written(seed, commits)
    if {*ids} != {*written} or len(ids) != len(written):
        return Cut(promised, 0, words, f"{len(ids)} rows that are not those of {commits} commits")
    if any(
        not np.array_equal(written[id], vector) for id, vector in zip(ids, vectors, strict=True)
    ):
        return Cut(promised, 0, words, "rows with other vectors than were written")
    return Cut(promised, len(table), words)


def main(arguments: list[str]) -> int:
    """Cuts on each file system; the exit code is 1 where something was lost."""
    times, kinds = int((arguments or ["20"])[0]), arguments[1:] or ["ext4"]
    lost = 0
    for kind in kinds:
        if reason := unavailable(kind):
            print(f"{kind}: not tried, {reason}")
            continue
        done = 0
        while done < times:
            with tempfile.TemporaryDirectory(prefix="penult-cut-") as folder:
                for found in trial(Path(folder), kind, seed=done):
                    done += 1
                    lost += not found.is_kept
                    state = "kept" if found.is_kept else "LOST"
                    print(f"{kind} {done}: {state}: {found.rows} of {found.promised} rows",
                          found.error or found.said)  # fmt: skip
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
