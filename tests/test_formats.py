"""docs/formats.md is what is measured here, now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from test_media import pyav

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_of_formats_is_what_is_measured() -> None:
    """`python scripts/make_formats.py` writes it anew."""
    pyav()
    spec = importlib.util.spec_from_file_location("make_formats", ROOT / "scripts/make_formats.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    kept = (ROOT / "docs" / "formats.md").read_text("utf-8")
    assert script.page() == kept
    assert "up to the cut" not in "".join(
        line for line in kept.splitlines() if line.startswith("| ") and "AC-3" not in line
        and "ADTS" not in line and "AMR" not in line
    )  # fmt: skip
