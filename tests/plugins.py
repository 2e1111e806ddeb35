"""Another package as a folder on the path: a module, and the entry points that it registers."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent


def write_package(
    folder: Path, name: str, code: str, entries: dict[str, dict[str, str]], version: str = "1.0"
) -> None:
    """Write package `name`: a module of that name with dashes as underscores, and its metadata.

    entries: {group: {name: module:object}}.
    """
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(dedent(code), "utf-8")
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, points in entries.items():
        lines.append(f"[{group}]")
        lines += [f"{point} = {value}" for point, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
