"""The tutorial runs as it stands, and its outputs are those that its cells give."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook, run in a new kernel and another folder. An assert in a cell fails here."""
    notebook = read()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    folder = tmp_path_factory.mktemp("tutorial")
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: Any) -> str:
    return "".join(one.text for one in cell.outputs if one.output_type == "stream")


def shown(cell: Any) -> list[list[str]]:
    """The kinds of what a cell shows."""
    return [sorted(one.data) for one in cell.outputs if one.output_type == "display_data"]


def test_its_outputs_are_what_its_cells_give(fresh: Any) -> None:
    """Words to the letter; numbers as far as processors agree on them."""
    kept = code_cells(read())
    for before, now in zip(kept, code_cells(fresh), strict=True):
        one, other = printed(before), printed(now)
        assert NUMBER.sub("#", one) == NUMBER.sub("#", other), before.source
        numbers, again = (
            np.array([float(n.replace(",", "")) for n in NUMBER.findall(text)])
            for text in (one, other)
        )
        np.testing.assert_allclose(again, numbers, rtol=0.05, atol=0.05, err_msg=before.source)
        assert shown(before) == shown(now), before.source
    assert [cell.execution_count for cell in kept] == list(range(1, len(kept) + 1))


def test_it_shows_what_it_promises(fresh: Any) -> None:
    """Pictures, sounds, no error and no warning."""
    kinds = [kind for cell in code_cells(fresh) for kinds in shown(cell) for kind in kinds]
    assert kinds.count("image/png") == 3
    sounds = [one for cell in code_cells(fresh) for one in cell.outputs
              if "<audio" in one.get("data", {}).get("text/html", "")]  # fmt: skip
    assert len(sounds) >= 6
    names = {one.get("name") for cell in code_cells(fresh) for one in cell.outputs}
    assert "stderr" not in names
    assert sum("assert" in cell.source for cell in code_cells(fresh)) >= 10


def test_no_figure_stands_in_its_prose() -> None:
    """A figure in a sentence would be right on the day it was written."""
    for cell in read().cells:
        if cell.cell_type == "markdown":
            text = re.sub(r"`[^`]*`|```.*?```", "", cell.source, flags=re.S)
            assert not re.search(r"\d\s?%|\d\.\d", text), text
            assert "superb/wav2vec2-base-superb-er" in read().cells[0].source
