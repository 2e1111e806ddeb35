"""Print how fast things are on this machine, or write it into docs/benchmarks.md.

python scripts/bench.py [--only SECTION]… [--write]

Ways are compared side by side in one run. Nothing is measured while other processes keep the
machine busy: the bench waits (--wait), measures again what was disturbed, and else ends with code 1
and writes nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import auto_choice
import commands
import devices
import exploring
import machine
import operators
import page
import peaks
import proofs
import scale
import serving
import speed
from load_meter import LoadMeter, Meter
from measuring import Bench, Busy, Fault, Section, Unmeasured, tell

SECTIONS: dict[str, Section] = {
    **commands.SECTIONS,
    **speed.SECTIONS,
    **auto_choice.SECTIONS,
    **operators.SECTIONS,
    **devices.SECTIONS,
    **proofs.SECTIONS,
    **scale.SECTIONS,
    **serving.SECTIONS,
    **exploring.SECTIONS,
    **peaks.SECTIONS,
}


def parser() -> argparse.ArgumentParser:
    """The options. What differs from its default stands in the command of a part."""
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--only", action="append", choices=SECTIONS, help="a section; repeatable")
    asked.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    asked.add_argument("--wait", type=float, default=300.0, help="seconds for a quiet machine")
    asked.add_argument(
        "--anyway", action="store_true", help="print figures under load too, marked; write none"
    )
    asked.add_argument("--rounds", type=int, help="in which all ways take turns; default: 1 to 3")
    asked.add_argument("--clips", type=Path, help="a folder of speech at 16 kHz")
    asked.add_argument("--seconds", type=float, default=93.0, help="of sound, of the section audio")
    asked.add_argument(
        "--kinds", action="append", choices=commands.SETTINGS, help="of the section commands"
    )
    asked.add_argument("--long", action="store_true", help="auto: 600 s of work too")
    asked.add_argument("--share", type=float, default=1.0, help="auto: of the work, for a trial")
    asked.add_argument("--short", type=int, default=3_000, help="clips of the section short-clips")
    asked.add_argument("--rows", type=int, default=500_000, help="of the section scale")
    asked.add_argument("--searched", type=int, default=100_000, help="rows of the section search")
    asked.add_argument("--known", type=int, default=100_000, help="files of known-files")
    asked.add_argument("--points", type=int, default=1_000_000, help="of the section explorer")
    asked.add_argument("--folder", type=Path, help="for collections; default: the system's own")
    asked.add_argument("--files", type=int, default=peaks.WHOLE, help="of the section memory")
    asked.add_argument("--bound", default=peaks.BOUND, help="of the memory of all processes")
    asked.add_argument("--memory", help="of the runs that are watched; default: the command's")
    asked.add_argument(
        "--models", action="append", choices=peaks.MODELS, help="of the section memory; repeatable"
    )
    return asked


def command_of(name: str, section: Section, options: argparse.Namespace) -> str:
    """What makes a part anew: the options that the section looks at, where one is no default."""
    words, defaults = f"python scripts/bench.py --only {name} --write", parser()
    for option in section.options:
        value = getattr(options, option)
        if value == defaults.get_default(option):
            continue
        for one in value if isinstance(value, list) else [value]:
            words += f" --{option}" + ("" if one is True else f" {one}")
    return words


def measured(command: str, section: Section, bench: Bench) -> str:
    """The text of a section's part.

    Raises:
        Busy, Fault: it cannot be measured, or breaks a bound.
    """
    try:
        bench.begin()
        section.run(bench)
        peaks_in_words = machine.peaks_in_words(bench.peaks)
        bench.end()
    except Unmeasured as reason:
        line = f"{page.UNMEASURED} ({date.today()}, {machine.features()}): {reason}. `{command}`"
        return page.part(section.title, section.words, None, [line])
    head = page.Head(
        f"{date.today()}",
        command,
        machine.features(),
        machine.versions(),
        peaks_in_words,
        bench.load,
    )
    return page.part(section.title, section.words, head, bench.blocks)


def main(
    arguments: Sequence[str] | None = None,
    meter: Meter | None = None,
    path: Path = page.PAGE,
    sections: Mapping[str, Section] = SECTIONS,
    **more: Any,
) -> int:
    """Run every section, or those that are asked for. meter, path, sections, more: of the bench,
    for tests.

    Returns 1 where a section could not be measured, or breaks a bound.
    """
    asked = parser()
    options = asked.parse_args(arguments)
    if options.write and options.anyway:
        asked.error("--anyway prints figures; leave --write or --anyway out")
    names = options.only or list(sections)
    if len(names) > 1:  # each in a process of its own: what one loads is in no other's memory
        return max([_apart(name, arguments) for name in names])
    name, began = names[0], time.monotonic()
    command = command_of(name, sections[name], options)
    options.rounds = options.rounds or sections[name].rounds
    bench = Bench(options, meter or LoadMeter(), **more)
    try:
        text = measured(command, sections[name], bench)
    except (Busy, Fault) as error:
        print(*bench.blocks, sep="\n\n", flush=True)
        tell(f"{name}: {error}")
        return 1
    print(text, flush=True)
    if options.write:
        page.write(name, text, path)
        for write in bench.written:
            write()
    tell(f"{name}: {(time.monotonic() - began) / 60:.1f} min")
    return 0


def _apart(name: str, arguments: Sequence[str] | None) -> int:
    """One section of several, with the other options as they are."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    kept, words = [], iter(given)
    for word in words:
        if word == "--only":
            next(words)
        elif not word.startswith("--only="):
            kept.append(word)
    command = [sys.executable, str(Path(__file__).resolve()), "--only", name, *kept]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
