"""When recordings were made: names and headers of recorders, the column `recorded_at` of rows, and
what filters, exports, events and searches do with it."""

from __future__ import annotations

import csv
import json
import shutil
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from conftest import RATE, clip
from penult.collection.collection import Collection
from penult.collection.export import to_arrow
from penult.data.recording_times import in_header, in_name, parse_zone
from penult.errors import UsageError
from test_cli import ask
from zoo import save_image

QUIET = ("--workers", "0", "--engine", "torch")


def utc(*numbers: int) -> datetime:
    return datetime(*numbers, tzinfo=UTC)  # type: ignore[misc, arg-type]


NAMES = {
    # Open Acoustic Devices: https://www.openacousticdevices.info, firmware 1.2.1 and later, before
    "20210605_043000.WAV": datetime(2021, 6, 5, 4, 30),
    "20210605_043000T.WAV": datetime(2021, 6, 5, 4, 30),
    "5E90A4D4.WAV": utc(2020, 4, 10, 16, 54, 44),
    "5DFB6DFC.WAV": utc(2019, 12, 19, 12, 33),
    # Wildlife Acoustics
    "SITE_20210605_043000.wav": datetime(2021, 6, 5, 4, 30),
    "SMM01234_20210605_043000.wav": datetime(2021, 6, 5, 4, 30),
    "S4A02641_20250220_170000.wav": datetime(2025, 2, 20, 17, 0),
    "SM2_0+1_20210605$043000.wav": datetime(2021, 6, 5, 4, 30),
    # SWIFT, BAR-LT, telephones, others
    "S1088_20210605_043000Z.wav": utc(2021, 6, 5, 4, 30),
    "20210605T043000+1000_REC.wav": utc(2021, 6, 4, 18, 30),
    "20210605T043000-0330.flac": utc(2021, 6, 5, 8, 0),
    "PXL_20210605_043000123.jpg": datetime(2021, 6, 5, 4, 30, 0, 123000),
    "site 2021-06-05 04-30-00.wav": datetime(2021, 6, 5, 4, 30),
    "2021-06-05T04:30:00Z.wav": utc(2021, 6, 5, 4, 30),
    "20211305_043000_20210605_043000.wav": datetime(2021, 6, 5, 4, 30),
}
UNDATED = (
    *("20211305_043000.wav", "20210230_043000.wav", "20210605_243000.wav", "20210605_046000.wav"),
    *("19700101_000012.WAV", "00000012.WAV", "20210605.wav", "20210605_0430.wav", "12345678.wav"),
    *("x120210605_043000.wav", "55667788.wav", "deadbeef.wav", "7_jackson_32.wav", "recording.wav"),
)


@pytest.mark.parametrize("name", NAMES)
def test_recorders_name_files_by_their_beginning(name: str) -> None:
    found = in_name(name)
    assert found == NAMES[name]
    assert found is not None and (found.tzinfo is None) == (NAMES[name].tzinfo is None)


@pytest.mark.parametrize("name", UNDATED)
def test_what_is_no_date_gives_no_time(name: str) -> None:
    assert in_name(name) is None


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def comment(text: str) -> bytes:
    return chunk(b"LIST", b"INFO" + chunk(b"ICMT", text.encode() + b"\0"))


def wamd(text: str) -> bytes:
    fields = [(0, struct.pack("<H", 1)), (1, b"SM4"), (5, text.encode())]
    return chunk(b"wamd", b"".join(struct.pack("<HI", n, len(c)) + c for n, c in fields))


def bext(date: str, time: str) -> bytes:
    return chunk(b"bext", b"\0" * 320 + date.encode() + time.encode() + b"\0" * 264)


def guano(text: str) -> bytes:
    return chunk(b"guan", f"GUANO|Version: 1.0\nMake: Pettersson\nTimestamp: {text}\n".encode())


def recording(path: Path, *chunks: bytes, behind: bool = True, seed: int = 0) -> Path:
    """A WAV file with further chunks behind its sound, or before it."""
    soundfile.write(path, clip(0.5, seed), RATE)
    data = path.read_bytes()
    extra = b"".join(chunks)
    body = data[12:] + extra if behind else data[12:36] + extra + data[36:]
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body) + 4) + b"WAVE" + body)
    assert soundfile.info(path).frames == RATE // 2
    return path


BY = "by AudioMoth 24E144055DDD3203 at medium gain while battery was 4.5V."
HEADERS: dict[str, tuple[tuple[bytes, ...], datetime | None]] = {
    "AudioMoth": ((comment(f"Recorded at 19:17:30 06/04/2018 (UTC) {BY}"),),
                  utc(2018, 4, 6, 19, 17, 30)),
    "AudioMoth in a zone": ((comment(f"Recorded at 19:22:55 14/12/2020 (UTC-5) {BY}"),),
                            utc(2020, 12, 15, 0, 22, 55)),
    "AudioMoth in half an hour": ((comment(f"Recorded at 04:30:00 05/06/2021 (UTC+5:30) {BY}"),),
                                  utc(2021, 6, 4, 23, 0)),
    "AudioMoth without a clock": ((comment(f"Recorded at 00:00:12 01/01/1970 (UTC) {BY}"),), None),
    "Wildlife Acoustics": ((wamd("2014-04-02 22:59:14-05:00"),), utc(2014, 4, 3, 3, 59, 14)),
    "Wildlife Acoustics, local": ((wamd("2014-04-02 22:59:14.500"),),
                                  datetime(2014, 4, 2, 22, 59, 14, 500000)),
    "GUANO": ((guano("2021-06-05T04:30:00+02:00"),), utc(2021, 6, 5, 2, 30)),
    "GUANO, local": ((guano("2021-06-05 04:30:00"),), datetime(2021, 6, 5, 4, 30)),
    "broadcast": ((bext("2021-06-05", "04:30:00"),), datetime(2021, 6, 5, 4, 30)),
    "a zone goes first": ((guano("2021-06-05 04:30:00"), wamd("2021-06-05 04:30:00+02:00")),
                          utc(2021, 6, 5, 2, 30)),
    "no time that can be": ((bext("2021-13-05", "04:30:00"), guano("yesterday")), None),
    "no zone of this earth": ((comment(f"Recorded at 04:30:00 05/06/2021 (UTC+99) {BY}"),), None),
    "another list": ((chunk(b"LIST", b"adtl" + b"\0" * 8),), None),
}  # fmt: skip


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_recorders_give_the_beginning(name: str, behind: bool, tmp_path: Path) -> None:
    chunks, when = HEADERS[name]
    found = in_header(recording(tmp_path / "a.wav", *chunks, behind=behind))
    assert found == when
    assert found is None or when is None or (found.tzinfo is None) == (when.tzinfo is None)


def test_a_header_that_breaks_off_or_is_none_gives_no_time(tmp_path: Path) -> None:
    whole = recording(tmp_path / "a.wav", wamd("2014-04-02 22:59:14")).read_bytes()
    path = tmp_path / "b.wav"
    for end in (0, 5, 12, 17, 40, len(whole) - 3, len(whole) - 30):
        path.write_bytes(whole[:end])
        in_header(path)
    path.write_bytes(whole[:12] + b"wamd\xff\xff\xff\xff" + whole[20:])
    assert in_header(path) is None
    path.write_text("no sound")
    assert in_header(path) is None


TAKEN, OFFSET, FRACTION, FOLDER, CHANGED = 0x9003, 0x9011, 0x9291, 0x8769, 0x0132


def picture(path: Path, tags: dict[int, str]) -> Path:
    """A picture with EXIF as Pillow writes it, which also has when it was last changed."""
    exif = Image.Exif()
    exif[CHANGED] = "2024:01:01 00:00:00"
    exif.get_ifd(FOLDER).update(tags)
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif"])
def test_exif_of_a_picture_gives_when_it_was_taken(suffix: str, tmp_path: Path) -> None:
    path, when = tmp_path / f"a.{suffix}", "2021:06:05 04:30:00"
    assert in_header(picture(path, {TAKEN: when})) == datetime(2021, 6, 5, 4, 30)
    exact = {TAKEN: when, OFFSET: "+02:00", FRACTION: "256789"}
    assert in_header(picture(path, exact)) == utc(2021, 6, 5, 2, 30, 0, 256000)
    whole = path.read_bytes()
    for end in range(0, len(whole), max(1, len(whole) // 200)):  # a copy that breaks off
        path.write_bytes(whole[:end])
        assert in_header(path) in (None, utc(2021, 6, 5, 2, 30, 0, 256000),
                                   utc(2021, 6, 5, 2, 30), datetime(2021, 6, 5, 4, 30))  # fmt: skip
    for wrong in (
        "    :  :     :  :  ",
        "0000:00:00 00:00:00",
        "2021:06:05",
        "2021:13:05 04:30:00",
    ):
        assert in_header(picture(path, {TAKEN: wrong})) is None
    assert in_header(picture(path, {TAKEN: when, OFFSET: "+99:00"})) == datetime(2021, 6, 5, 4, 30)
    assert (
        in_header(picture(path, {})) is None
    )  # when it was changed says nothing of when it was taken


@pytest.mark.parametrize("order", [">", "<"])
def test_exif_in_either_order_of_bytes_and_places_that_lead_nowhere(
    order: str, tmp_path: Path
) -> None:
    def tiff(*, inner: int = 26, value: int = 56) -> bytes:
        head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", 8)
        main = struct.pack(order + "HHHII", 1, FOLDER, 4, 1, inner) + b"\0" * 4
        own = struct.pack(order + "HHHII", 1, TAKEN, 2, 20, value) + b"\0" * 16
        return head + main + own + b"2021:06:05 04:30:00\0"

    path = tmp_path / "a.tif"
    path.write_bytes(tiff())
    assert in_header(path) == datetime(2021, 6, 5, 4, 30)
    for places in ({"inner": 1 << 31}, {"value": 0xFFFFFFFF}, {"inner": 8}, {"inner": 0}):
        path.write_bytes(tiff(**places))
        assert in_header(path) is None


def box(kind: bytes, *content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(b"".join(content)), kind) + b"".join(content)


@pytest.mark.parametrize("is_new", [False, True])
def test_exif_of_an_avif_by_either_form_of_its_boxes(is_new: bool, tmp_path: Path) -> None:
    """Numbers of two and four bytes, places in the file and in `idat`, lengths of eight bytes."""
    main = struct.pack(">HHHII", 1, FOLDER, 4, 1, 26) + b"\0" * 4
    own = struct.pack(">HHHII", 1, TAKEN, 2, 20, 44) + b"\0" * 4
    block = b"MM\0*" + struct.pack(">I", 8) + main + own + b"2021:06:05 04:30:00\0"
    item = struct.pack(">I", 6) + b"Exif\0\0" + block
    number, version = (">I", b"\3") if is_new else (">H", b"\2")

    def infe(id: int, kind: bytes) -> bytes:
        return box(b"infe", version, b"\0\0\0", struct.pack(number, id), b"\0\0", kind, b"\0")

    def file(place: int, length: int = len(item)) -> bytes:
        info = box(b"iinf", b"\0\0\0\0\0\2", infe(1, b"av01"), infe(2, b"Exif"))
        if is_new:
            one = struct.pack(">IHHHII", 2, 1, 0, 1, place, length)
            where = box(b"iloc", b"\2\0\0\0\x44\0\0\0\0\1", one)
            parts = [info, where, box(b"idat", b"four", item)]
        else:
            one = struct.pack(">HHQHII", 2, 0, place, 1, 0, length)
            parts = [info, box(b"iloc", b"\0\0\0\0\x44\x80\0\1", one)]
        meta = box(b"meta", b"\0\0\0\0", *parts)
        start = box(b"ftyp", b"avif\0\0\0\0mif1") + meta
        return start + struct.pack(">I4sQ", 1, b"mdat", 16 + len(item)) + item

    path = tmp_path / "a.avif"
    right = 4 if is_new else len(file(0)) - len(item)
    path.write_bytes(file(right))
    assert in_header(path) == datetime(2021, 6, 5, 4, 30)
    for place, length in ((right + 1, len(item)), ((1 << 32) - 1, len(item)), (right, 1 << 31)):
        path.write_bytes(file(place, length))
        assert in_header(path) is None


@pytest.mark.parametrize(("suffix", "subtype"), [("flac", None), ("ogg", None), ("opus", "OPUS")])
def test_comments_of_flac_vorbis_and_opus_give_the_beginning(
    suffix: str, subtype: str | None, tmp_path: Path
) -> None:
    def tagged(**tags: str) -> Path:
        path = tmp_path / f"a.{suffix}"
        container = "FLAC" if suffix == "flac" else "OGG"
        with soundfile.SoundFile(path, "w", 48000, 1, subtype, format=container) as file:
            for name, text in tags.items():
                setattr(file, name, text)
            file.write(clip(0.5))
        return path

    assert in_header(tagged(date="2021-06-05T04:30:00+02:00")) == utc(2021, 6, 5, 2, 30)
    assert in_header(tagged(date="2021-06-05 04:30:00")) == datetime(2021, 6, 5, 4, 30)
    text = f"Recorded at 19:22:55 14/12/2020 (UTC-5) {BY}"
    much = "x" * (1_000 if subtype else 70_000)  # over more than one page of Ogg
    long = tagged(artist=much, comment=text)
    assert in_header(long) == utc(2020, 12, 15, 0, 22, 55)
    for wrong in ("2021-06-05", "2021", "20210605", "yesterday"):  # a day alone is no beginning
        assert in_header(tagged(date=wrong)) is None
    whole = tagged(date="2021-06-05T04:30:00Z").read_bytes()
    for end in range(0, 400, 7):
        (tmp_path / "b").write_bytes(whole[:end])
        in_header(tmp_path / "b")


def test_times_of_pictures_are_a_column(tmp_path: Path) -> None:
    """EXIF goes before the name, and what carries its zone before what carries none."""
    folder, model = tmp_path / "trap", save_image(tmp_path / "m")
    folder.mkdir()
    picture(folder / "IMG_20210605_043000.jpg", {TAKEN: "2021:06:05 04:30:20"})
    picture(folder / "b.jpg", {TAKEN: "2021:06:05 12:00:00", OFFSET: "+02:00"})
    into = tmp_path / "c.lance"
    asked = ("--times", "--time-zone", "Europe/Berlin", "--json")
    done = ask("embed", model, folder, "--into", into, *asked, *QUIET)
    assert done.code == 0, done.error
    wanted = {"zone": "Europe/Berlin", "dated": 2, "undated": 0, "without_zone": 1}
    assert {name: done.json["times"][name] for name in wanted} == wanted
    rows = to_arrow(Collection.open(into), vectors=False).to_pylist()
    assert {Path(row["id"]).name: row["recorded_at"] for row in rows} == {
        "IMG_20210605_043000.jpg": utc(2021, 6, 5, 2, 30, 20),
        "b.jpg": utc(2021, 6, 5, 10),
    }


def test_zones() -> None:
    assert parse_zone("+02:00").utcoffset(None) == timedelta(hours=2)
    assert parse_zone("-0330").utcoffset(None) == -timedelta(hours=3, minutes=30)
    assert parse_zone("UTC") is UTC
    for wrong in ("Mars/Olympus", "+25:00", "../etc/passwd", "2"):
        with pytest.raises(UsageError, match="no time zone"):
            parse_zone(wrong)


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three recordings with dates in their names and one without, and a collection of windows."""
    return made_in(tmp_path_factory.mktemp("times"), tiny)


def made_in(folder: Path, tiny: Path) -> Path:
    (folder / "recs").mkdir()
    names = ("20210605_043000", "20210605_053000", "20211205_043000", "undated")
    for number, name in enumerate(names):
        soundfile.write(folder / "recs" / f"{name}.wav", clip(1.0, number), RATE)
    done = ask("embed", tiny, folder / "recs", "--into", folder / "c.lance", "--window", "0.5s",
               "--summary", "mean", "--time-zone", "Europe/Berlin", "--json", *QUIET)  # fmt: skip
    assert done.code == 0, done.err
    times = json.loads(done.out)["times"]
    assert (times["dated"], times["undated"], times["without_zone"]) == (3, 1, 3)
    assert times["zone"] == "Europe/Berlin"
    return folder


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return made_in(tmp_path, tiny)


# In June Berlin is two hours ahead of UTC, in December one.
BEGINNINGS = {
    "recs/20210605_043000.wav": utc(2021, 6, 5, 2, 30),
    "recs/20210605_053000.wav": utc(2021, 6, 5, 3, 30),
    "recs/20211205_043000.wav": utc(2021, 12, 5, 3, 30),
}


def stored(path: Path) -> list[dict[str, Any]]:
    columns = ["id", "kind", "start", "recorded_at", "run_id"]
    table = Collection.open(path).reader.scan(columns)
    return [row for batch in table for row in batch.to_pylist()]


def test_rows_have_the_beginning_of_their_region_in_utc(made: Path) -> None:
    reader = Collection.open(made / "c.lance").reader
    assert str(reader.schema.field("recorded_at").type) == "timestamp[us, tz=UTC]"
    rows = stored(made / "c.lance")
    assert {row["kind"] for row in rows} == {"window", "summary"}
    assert len(rows) == 12
    for row in rows:
        begin = BEGINNINGS.get(row["id"])
        expected = None if begin is None else begin + timedelta(seconds=row["start"])
        assert row["recorded_at"] == expected


def found(folder: Path, where: str) -> set[str]:
    said = ask("search", folder / "c.lance", folder / "recs/undated.wav", "-k", 50, "--where",
               where, "--json")  # fmt: skip
    assert said.code == 0, said.err
    return {hit["id"] for hit in json.loads(said.out)["hits"]}


def test_filters_by_time_hour_and_local_hour(made: Path) -> None:
    early, later, december = BEGINNINGS
    assert found(made, "recorded_at >= timestamp '2021-06-05 03:00:00'") == {later, december}
    assert found(made, "recorded_at < timestamp '2021-06-05 03:00:00'") == {early}
    assert found(made, "date_part('hour', recorded_at) = 3") == {later, december}
    local = "date_part('hour', recorded_at AT TIME ZONE 'Europe/Berlin')"
    assert found(made, f"{local} = 4") == {early, december}
    assert found(made, "recorded_at IS NULL") == {"recs/undated.wav"}


def test_searches_exports_and_events_tell_the_time(folder: Path) -> None:
    said = ask("search", folder / "c.lance", folder / "recs/20210605_043000.wav", "-k", 50,
               "--where", "start = 0.5", "--json")  # fmt: skip
    hits = {hit["id"]: hit["metadata"]["recorded_at"] for hit in json.loads(said.out)["hits"]}
    assert hits["recs/20210605_043000.wav"] == "2021-06-05 02:30:00.500000+00:00"
    assert hits["recs/undated.wav"] is None
    out = folder / "items.csv"
    assert ask("export", folder / "c.lance", out).code == 0
    with out.open() as file:
        times = [row["recorded_at"] for row in csv.DictReader(file)]
    assert sum(one.startswith("2021-06-05 02:30:00") for one in times) == 3
    for name in ("20210605_043000", "20211205_043000"):
        path = folder / "recs" / f"{name}.wav"
        done = ask("teach", folder / "c.lance", name, path, "--window", "0.5s")
        assert done.code == 0, done.err
    out = folder / "events.csv"
    said = ask("predict", folder / "c.lance", "--out", out)
    assert said.code == 0, said.err
    with out.open() as file:
        events = list(csv.DictReader(file))
    assert events
    for event in events:
        begin = BEGINNINGS.get(f"recs/{Path(event['path']).name}")
        if begin is not None:
            start = begin + timedelta(seconds=float(event["start"]))
            assert datetime.fromisoformat(event["recorded_at"]) == start


def test_later_runs_go_on_with_the_zone_and_embed_nothing_anew(tiny: Path, folder: Path) -> None:
    into = folder / "c.lance"
    soundfile.write(folder / "recs/20210701_120000.wav", clip(0.5, 9), RATE)
    arguments = ("embed", tiny, folder / "recs", "--into", into, "--window", "0.5s",
                 "--summary", "mean", *QUIET)  # fmt: skip
    done = json.loads(ask(*arguments, "--json").out)
    assert (done["done"], done["times"]["zone"]) == (2, "Europe/Berlin")
    assert done["times"]["dated"] == 1  # only the new one is read
    rows = {row["id"]: row for row in stored(into)}
    assert rows["recs/20210701_120000.wav"]["recorded_at"] == utc(2021, 7, 1, 10, 0)
    runs = {row["run_id"] for row in rows.values()}
    done = json.loads(ask(*arguments, "--time-zone", "UTC", "--json").out)
    assert (done["done"], done["replaced"], done["updated"]) == (0, 0, 11)
    rows = {row["id"]: row for row in stored(into)}
    assert rows["recs/20210701_120000.wav"]["recorded_at"] == utc(2021, 7, 1, 12, 0)
    assert {row["run_id"] for row in rows.values()} == runs
    done = json.loads(ask(*arguments, "--no-times", "--json").out)
    assert done["times"] is None


def test_migrate_fills_the_times_of_a_collection_that_has_none(tiny: Path, tmp_path: Path) -> None:
    recs, into = tmp_path / "recs", tmp_path / "c.lance"
    recs.mkdir()
    soundfile.write(recs / "20210605_043000.wav", clip(1.0, 1), RATE)
    recording(recs / "a.wav", wamd("2014-04-02 22:59:14-05:00"), seed=2)
    done = ask("embed", tiny, recs, "--into", into, "--window", "0.5s", "--json", *QUIET)
    assert done.code == 0 and json.loads(done.out)["times"] is None
    assert "recorded_at" not in Collection.open(into).reader.schema.names
    dry = json.loads(ask("migrate", into, "--times", "--dry-run", "--json").out)
    assert (dry["rows"], dry["changed"], dry["written"]) == (3, 3, False)
    assert "recorded_at" not in Collection.open(into).reader.schema.names
    shutil.move(recs / "20210605_043000.wav", tmp_path)  # the name is enough
    before = Collection.open(into).vectors()[1]
    did = json.loads(ask("migrate", into, "--time-zone", "+02:00", "--json").out)
    assert (did["changed"], did["written"], did["times"]["dated"]) == (3, True, 2)
    assert (Collection.open(into).vectors()[1] == before).all()
    times = {(row["id"], row["start"]): row["recorded_at"] for row in stored(into)}
    assert times == {
        ("recs/20210605_043000.wav", 0.0): utc(2021, 6, 5, 2, 30),
        ("recs/20210605_043000.wav", 0.5): utc(2021, 6, 5, 2, 30) + timedelta(seconds=0.5),
        ("recs/a.wav", 0.0): utc(2014, 4, 3, 3, 59, 14),
    }
    again = json.loads(ask("migrate", into, "--time-zone", "+02:00", "--json").out)
    assert again["changed"] == 0


def test_headers_win_unless_only_the_name_has_a_zone(tiny: Path, tmp_path: Path) -> None:
    recs, into = tmp_path / "recs", tmp_path / "c.lance"
    recs.mkdir()
    local = f"Recorded at 06:30:00 05/06/2021 (UTC+2) {BY}"
    recording(recs / "20210605_043000.wav", comment(local), seed=1)  # the same instant
    recording(recs / "20210605_053000.wav", comment(local), seed=2)  # another one
    recording(recs / "20210605T043000+1000.wav", bext("2021-06-05", "04:30:00"), seed=3)
    done = ask("embed", tiny, recs, "--into", into, "--times", "--json", *QUIET)
    assert done.code == 0, done.err
    times = {row["id"].removeprefix("recs/"): row["recorded_at"] for row in stored(into)}
    assert times == {
        "20210605_043000.wav": utc(2021, 6, 5, 4, 30),
        "20210605_053000.wav": utc(2021, 6, 5, 4, 30),
        "20210605T043000+1000.wav": utc(2021, 6, 4, 18, 30),
    }
    told = json.loads(done.out)["times"]["contradictions"]
    assert told["count"] == 2
    first = told["first"]["recs/20210605_053000.wav"]
    assert first == "2021-06-05 04:30:00, not 2021-06-05 05:30:00"


def test_what_is_wrong_about_times_is_refused(tiny: Path, made: Path, tmp_path: Path) -> None:
    arguments = ("embed", tiny, made / "recs", "--into", tmp_path / "c.lance", *QUIET)
    said = ask(*arguments, "--time-zone", "Mars/Olympus")
    assert said.code == 2 and "Europe/Berlin" in said.err
    said = ask(*arguments, "--no-times", "--time-zone", "UTC")
    assert said.code == 2 and "--no-times" in said.err
    table = tmp_path / "t.csv"
    table.write_text(f"path,recorded_at\n{made}/recs/undated.wav,dawn\n")
    said = ask("embed", tiny, table, "--into", tmp_path / "c.lance", "--times", *QUIET)
    assert said.code == 2 and "recorded_at" in said.err
    assert ask("embed", tiny, table, "--into", tmp_path / "c.lance", *QUIET).code == 0
    assert stored(tmp_path / "c.lance")[0]["recorded_at"] == "dawn"
    said = ask("migrate", tmp_path / "c.lance", "--times")
    assert said.code == 2 and "of type string" in said.err


def test_offsets_and_summer_time() -> None:
    berlin = parse_zone("Europe/Berlin")
    twice = datetime(2021, 10, 31, 2, 30, tzinfo=berlin)  # an hour that comes twice: the first one
    assert twice.astimezone(UTC) == utc(2021, 10, 31, 0, 30)
