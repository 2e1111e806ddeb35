"""The page of figures: a part for each section of the bench, none of them taken under load."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))
import bench  # noqa: E402
import machine  # noqa: E402
import measuring  # noqa: E402
import page  # noqa: E402
from load_meter import QUIET, Mark, share_of  # noqa: E402
from measuring import Bench, Busy, Section, Unmeasured, Way  # noqa: E402


class Shares:
    """A meter that tells these shares, the last one for good."""

    def __init__(self, *shares: float | None) -> None:
        self.left = list(shares)

    def mark(self) -> Mark:
        return Mark(0.0, 0.0, 0.0, 0.0)

    def share(self, since: Mark) -> float | None:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


PEAKS = {"torch f32": 100.0, "torch bf16": 400.0, "openvino f32": 120.0}
PAGE = (
    "# Figures\r\nä \\1 \\g<0>\n<!-- section: one -->\n## One\n\nold\n<!-- end -->\nbetween\n\n"
    "<!-- section: two -->\n## Two\n\nkept, to the byte \\n\r\n<!-- end -->\n\nlast, without an end"
)


class Trial:
    """A bench of sections of ours, on a page of ours, that waits in no time."""

    def __init__(self, folder: Path, run: object) -> None:
        self.path, self.slept = folder / "page.md", 0.0
        self.path.write_bytes(PAGE.encode())
        section = Section("One", "What is measured.", run, ("rounds", "clips"))  # type: ignore[arg-type]
        self.sections = {"one": section, "two": replace(section, title="Two")}

    def __call__(self, meter: Shares, *arguments: str) -> int:
        def sleep(seconds: float) -> None:
            self.slept += seconds

        return bench.main(
            ["--only", "one", *arguments],
            meter=meter,
            path=self.path,
            sections=self.sections,
            sleep=sleep,
            measure_peaks=lambda: PEAKS,
        )

    @property
    def text(self) -> str:
        return self.path.read_bytes().decode()


@pytest.fixture(autouse=True)
def sections_by_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--only` takes the sections of a trial too."""
    real = bench.parser

    def parser() -> argparse.ArgumentParser:
        found = real()
        for action in found._actions:
            if action.dest == "only":
                action.choices = [*bench.SECTIONS, "one", "two"]
        return found

    monkeypatch.setattr(bench, "parser", parser)


def measures(bench: Bench) -> None:
    times = bench.paired({"first": lambda: None, "second": lambda: None}, warm=False)
    assert len(times) == 2
    bench.show(page.Table(("what", "seconds"), [["first", "1.5"], ["second", "3"]]))


# ---- the page of this repository


def page_text() -> str:
    return page.PAGE.read_text("utf-8")


def test_each_section_of_the_bench_has_its_part_of_the_page_and_no_part_is_stale() -> None:
    text = page_text()
    assert list(page.parts(text)) == list(bench.SECTIONS)
    assert text.count("<!-- section:") == len(bench.SECTIONS) == text.count("<!-- end -->")


@pytest.mark.parametrize("name", bench.SECTIONS)
def test_a_part_names_its_command_and_what_it_is_of(name: str) -> None:
    body, section = page.parts(page_text())[name], bench.SECTIONS[name]
    assert body.startswith(f"## {section.title}\n\n")
    commands = re.findall(r"`(python scripts/bench\.py [^`]*)`", body)
    assert len(commands) == 1
    options = bench.parser().parse_args(shlex.split(commands[0])[2:])
    assert options.only == [name] and options.write and not options.anyway
    assert bench.command_of(name, section, options) == commands[0]
    if f"\n{page.UNMEASURED}" not in body:
        assert_head(body)
    assert "under load" not in body


def assert_head(body: str) -> None:
    """What a head promises: date, machine, versions, peaks, load."""
    assert re.search(r"^- \d{4}-\d\d-\d\d: `python scripts/bench\.py ", body, re.MULTILINE)
    assert re.search(r"^- Machine: .+, \d+ cores \(\d+ threads\);", body, re.MULTILINE)
    assert re.search(r"^- Machine: .*[\d.]+ GB of memory; CUDA: ", body, re.MULTILINE)
    for package in machine.PACKAGES:
        assert re.search(rf"^- Versions: .*({package} \d|no {package})", body, re.MULTILINE)
    assert re.search(r"^- Peaks: torch f32 \d+, .*GFLOP/s", body, re.MULTILINE)
    assert re.search(
        r"^- Load: other processes took [\d.]+% of the processors before and [\d.]+% after, "
        r"[\d.]+% meanwhile .*; load average [\d.]+ and [\d.]+$",
        body,
        re.MULTILINE,
    )


def documents() -> Iterable[Path]:
    """Pages about the present; decisions are dated."""
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md"))
    yield from sorted((ROOT / "docs").glob("*.md"))


def test_commands_that_documents_name_beside_figures_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    seen = 0
    for path in documents():
        text = path.read_text("utf-8")
        for script in re.findall(r"python scripts/(\w+\.py)", text):
            assert (SCRIPTS / script).is_file(), f"{path.name}: {script}"
            seen += 1
        for target in re.findall(r"`make ([a-z-]+)", text):
            assert target in targets, f"{path.name}: make {target}"
        for section in re.findall(r"scripts/bench\.py --only ([a-z-]+)", text):
            assert section in bench.SECTIONS, f"{path.name}: {section}"
    assert seen > len(bench.SECTIONS)


# A figure of speed or size that was measured; promises to users and options are none.
MEASURED = re.compile(r"\d[\d.,]* ?× (?!\d)|times as fast|\d GFLOP|\d items/s|× as fast")


def test_measured_speeds_stand_on_pages_that_name_a_command() -> None:
    """README has none without `make bench` in the same paragraph."""
    for paragraph in (ROOT / "README.md").read_text("utf-8").split("\n\n"):
        if MEASURED.search(paragraph):
            assert "scripts/" in paragraph or "make bench" in paragraph, paragraph


# ---- one part is replaced


def test_a_part_is_replaced_and_every_other_byte_stays() -> None:
    changed = page.replaced(PAGE, "one", "## One\n\nnew \\1 \\g<1>\n")
    assert changed == PAGE.replace("## One\n\nold\n", "## One\n\nnew \\1 \\g<1>\n")
    assert page.replaced(changed, "one", "## One\n\nold\n") == PAGE


@pytest.mark.parametrize(
    ("text", "body"),
    [
        (PAGE.replace("section: one", "section: other"), "new\n"),
        (PAGE + "\n<!-- section: one -->\n<!-- end -->\n", "new\n"),
        (PAGE, "new\n<!-- end -->\n"),
    ],
    ids=["no such part", "two of them", "a marker in the text"],
)
def test_a_page_without_the_one_place_is_left_alone(text: str, body: str) -> None:
    with pytest.raises(ValueError, match="'one'"):
        page.replaced(text, "one", body)


def test_a_table_is_read_as_it_is_and_by_markdown() -> None:
    table = page.Table(("what", "s"), [["a long name", "1"], ["b", "22.5"]])
    assert table.markdown().splitlines() == [
        "| what        |    s |",
        "| ----------- | ---: |",
        "| a long name |    1 |",
        "| b           | 22.5 |",
    ]


# ---- load


def test_figures_of_a_quiet_machine_are_written_with_their_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = Trial(tmp_path, measures)
    assert trial(Shares(0.01), "--write", "--rounds", "2") == 0
    body = page.parts(trial.text)["one"]
    assert_head(body)
    assert f"- {date.today()}: `python scripts/bench.py --only one --write --rounds 2`\n" in body
    assert "- Peaks: torch f32 100, torch bf16 400, openvino f32 120 GFLOP/s" in body
    assert "| second |       3 |" in body and "What is measured." in body
    assert body in capsys.readouterr().out
    assert trial.text == page.replaced(PAGE, "one", body)


def test_without_write_the_page_stays_and_no_picture_is_written(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"

    def run(bench: Bench) -> None:
        measures(bench)
        bench.written.append(picture.touch)

    trial = Trial(tmp_path, run)
    assert trial(Shares(0.01)) == 0
    assert trial(Shares(*[0.0] * 4, 0.5), "--write", "--wait", "5") == 1
    assert trial.text == PAGE and not picture.exists()
    assert trial(Shares(0.01), "--write") == 0
    assert trial.text != PAGE and picture.exists()


def test_under_load_nothing_is_measured_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(bench: Bench) -> None:
        raise AssertionError("measured under load")

    trial = Trial(tmp_path, never)
    assert trial(Shares(0.4), "--write", "--wait", "20") == 1
    assert trial.text == PAGE
    assert 20 <= trial.slept <= 22
    told = capsys.readouterr().err
    assert "other processes take 40% of the processors" in told and "20 s" in told


def test_it_waits_until_the_machine_is_quiet(tmp_path: Path) -> None:
    trial = Trial(tmp_path, measures)
    assert trial(Shares(*[0.5] * 30, 0.01, 0.6, 0.02), "--write", "--wait", "100") == 0
    assert "before and 2.0% after" in trial.text


def test_a_disturbed_round_is_measured_again(tmp_path: Path) -> None:
    calls: list[float] = []

    def run(bench: Bench) -> None:
        bench.options.rounds = 3
        found = [bench.once(lambda: calls.append(1.0) or len(calls)) for _ in range(3)]
        bench.show(page.Table(("what", "call"), [["kept", str(found)]]))

    trial = Trial(tmp_path, run)
    # Three windows before; of the rounds the second is disturbed; three windows until it is again.
    shares = [0.0, 0.0, 0.0, 0.01, 0.2, 0.0, 0.0, 0.0, 0.02, 0.03, 0.0, 0.0]
    assert trial(Shares(*shares), "--write") == 0
    body = page.parts(trial.text)["one"]
    assert "[1, 3, 4]" in body
    assert "(at most 3.0% in one of 4 rounds); disturbed rounds repeated: 1;" in body


@pytest.mark.parametrize("back", [0.2, None], ids=["load", "not told"])
def test_load_that_comes_back_ends_the_section(
    tmp_path: Path, back: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = Trial(tmp_path, measures)
    assert trial(Shares(0.0, 0.0, 0.0, 0.0, back), "--write", "--wait", "9") == 1
    assert trial.text == PAGE
    told = capsys.readouterr().err
    assert ("does not tell" in told) == (back is None)


def test_rounds_that_are_disturbed_each_time_are_given_up(tmp_path: Path) -> None:
    quiet, loud = [0.0] * 3, [0.3]
    trial = Trial(tmp_path, measures)
    assert trial(Shares(*quiet, *(loud + quiet) * 9, 0.0), "--write", "--rounds", "2") == 1
    assert trial.text == PAGE


def test_figures_under_load_are_printed_on_demand_and_never_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = Trial(tmp_path, measures)
    assert trial(Shares(0.4), "--anyway") == 0
    assert trial(Shares(None), "--anyway") == 0  # where the system does not tell
    assert capsys.readouterr().out.count("**under load**") == 2
    assert trial.text == PAGE and trial.slept <= 8
    with pytest.raises(SystemExit) as ended:
        trial(Shares(0.0), "--anyway", "--write")
    assert ended.value.code == 2 and trial.text == PAGE


def test_a_broken_bound_is_told_with_its_figures_and_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(bench: Bench) -> None:
        measures(bench)
        raise measuring.Fault("3 GB, more than 2 GB")

    trial = Trial(tmp_path, run)
    assert trial(Shares(0.0), "--write") == 1
    told = capsys.readouterr()
    assert "3 GB, more than 2 GB" in told.err and "| second |" in told.out
    assert trial.text == PAGE


def test_what_a_machine_lacks_is_told_in_the_place_of_figures(tmp_path: Path) -> None:
    def run(bench: Bench) -> None:
        raise Unmeasured("no CUDA device here")

    trial = Trial(tmp_path, run)
    assert trial(Shares(0.0), "--write") == 0
    body = page.parts(trial.text)["one"]
    assert f"\n{page.UNMEASURED} ({date.today()}, " in body and "): no CUDA device here." in body
    assert "`python scripts/bench.py --only one --write`" in body


def test_ways_take_turns_and_what_comes_before_one_is_not_timed() -> None:
    order: list[str] = []
    options = argparse.Namespace(rounds=2, wait=0, anyway=False)
    bench = Bench(options, Shares(0.0), measure_peaks=lambda: PEAKS)
    slow = Way(lambda: order.append("b"), lambda: (order.append("before"), time.sleep(0.05)))
    times = bench.rounds({"a": lambda: order.append("a"), "b": slow}, warm=False)
    assert order == ["a", "before", "b"] * 2
    assert len(times["a"]) == 2 and max(times["b"]) < 0.05
    with pytest.raises(Busy):
        Bench(options, Shares(QUIET)).begin()


# ---- the meter


def test_load_is_what_is_busy_and_not_of_this_tree() -> None:
    before = Mark(0.0, 10.0, 100.0, 5.0)
    assert share_of(before, Mark(10.0, 18.02, 120.0, 12.0), 2) == pytest.approx(0.05)
    assert share_of(before, Mark(10.0, 30.02, 120.0, 5.0), 2) == pytest.approx(1.0)
    assert share_of(before, Mark(10.0, 17.0, 120.0, 12.0), 2) == 0.0
    assert share_of(before, Mark(10.0, 10.0, 100.0, 12.0), 2) is None  # counters that stand still


WATCH = """
import subprocess, sys, time
from load_meter import LoadMeter, processors
meter = LoadMeter()
print("ready", flush=True)
sys.stdin.readline()
mark = meter.mark()
spin = "import time; end = time.process_time() + {own}\\nwhile time.process_time() < end: pass"
# A process whose parent is gone before it ends.
orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {{spin!r}}])"
subprocess.run([sys.executable, "-c", orphan], check=True)
until = time.monotonic() + 20
while meter.mark().own - mark.own < {own} and time.monotonic() < until:
    time.sleep(0.25)
share = meter.share(mark)
print(None if share is None else share * len(processors()), meter.mark().own - mark.own)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted there only")
def test_the_meter_tells_its_own_processes_from_others() -> None:
    """This test is the other process, and spins; what the meter's orphan takes is its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", WATCH.format(own=0.6)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=SCRIPTS,
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()
    began = time.process_time()
    while process.poll() is None:
        pass
    spun = time.process_time() - began
    others, own = process.stdout.read().split()
    if others == "None":
        pytest.skip("this system does not tell how busy its processors are")
    assert float(own) >= 0.6
    assert float(others) >= 0.25 * min(1.0, spun)
