"""What lies elsewhere: a collection is what is in its folder, and nothing that a command imports
looks for code or settings where the process stands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file

import penult
from penult.cli.main import run
from penult.collection import journal
from penult.collection.collection import Collection
from penult.collection.writer import writing
from penult.errors import StoreError
from penult.models.specs import demo_folder
from test_collection import MANIFEST, batch

NAMES = [f"/recordings/{place}.wav" for place in range(20)]


def write(path: Path, names: list[str]) -> None:
    with writing(path, MANIFEST) as writer:
        writer.write(batch(names, seed=0))
        writer.finish("done", {"done": len(names)})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("written") / "c.lance"
    write(path, NAMES)
    return path


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "inner" / "c.lance"))


@pytest.mark.parametrize("place", ["here", "s3://a-bucket/x"])
def test_a_table_whose_files_lie_elsewhere(
    written: Path, store: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Lance's shallow clones are, in folders or on the network."""
    import lance

    items, own = written / "items.lance", str(written / "items.lance")
    shutil.move(store / "items.lance" / "data", store / "data")
    shutil.rmtree(store / "items.lance")
    lance.dataset(own).shallow_clone(str(store / "items.lance"), lance.dataset(own).version)
    # Seemingly whole: the files are there, and no journal knows of others.
    shutil.rmtree(store / "journal")
    shutil.move(store / "data", store / "items.lance" / "data")
    if place != "here":
        other = place + "y" * (len(own) - len(place))
        for file in (store / "items.lance" / "_versions").glob("*.manifest"):
            file.write_bytes(file.read_bytes().replace(own.encode(), other.encode()))
    before = sorted(items.rglob("*"))
    for command in (["info"], ["search", "/recordings/1.wav"], ["repair"]):
        assert run([command[0], str(store), *command[1:]]) != 0
        said = capsys.readouterr().err
        assert "lie in another place" in said and place.replace("here", "written") in said
    assert sorted(items.rglob("*")) == before


def test_a_table_that_names_a_file_above(store: Path) -> None:
    """Repair moves torn files, and only those of the collection."""
    own = next(iter((store / "items.lance" / "data").iterdir()))
    above = "../../../".ljust(len(own.name) - len(".lance"), "a") + ".lance"
    for file in (store / "items.lance" / "_versions").glob("*.manifest"):
        file.write_bytes(file.read_bytes().replace(own.name.encode(), above.encode()))
    victim = store.parent / Path(above).name
    victim.write_text("of somebody else")
    shutil.rmtree(store / "journal")
    run(["info", str(store)])
    assert run(["repair", str(store)]) == 0
    assert victim.read_text() == "of somebody else"


@pytest.mark.parametrize(
    "part", ["journal/runs.jsonl", "journal", "items.lance", "runs.lance/data"]
)
def test_links_inside_of_a_collection_are_not_written_through(store: Path, part: str) -> None:
    outside = store.parents[1] / "outside"
    (store / part).rename(outside)
    (store / part).symlink_to(outside)
    files = [outside] if outside.is_file() else sorted(outside.rglob("*"))
    before = {file: file.read_bytes() for file in files if file.is_file()}
    with pytest.raises(StoreError, match="is a link to"):
        write(store, ["/recordings/new.wav"])
    assert Collection.open(store, must_exist=True).count == 20
    assert run(["repair", str(store)]) != 0
    files = [outside] if outside.is_file() else sorted(outside.rglob("*"))
    assert {file: file.read_bytes() for file in files if file.is_file()} == before


def test_a_collection_behind_a_link_and_files_that_are_links(store: Path, tmp_path: Path) -> None:
    """As archives of large files have them: whole folders elsewhere, rows that are links."""
    data = next(iter((store / "items.lance" / "data").iterdir()))
    data.rename(tmp_path / data.name)
    data.symlink_to(tmp_path / data.name)
    (tmp_path / "link.lance").symlink_to(store)
    write(tmp_path / "link.lance", ["/recordings/new.wav"])
    assert Collection.open(tmp_path / "link.lance", must_exist=True).count == 21
    assert journal.last(store, "items") is not None


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(penult.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


LIBRARY = """
#include <stdio.h>
__attribute__((constructor)) static void go(void) { fclose(fopen("%s", "w")); }
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the loader of Linux")
def test_compiled_code_in_the_working_folder(tmp_path: Path) -> None:
    """A part of CUDA looks for the driver there, when torch is imported."""
    if shutil.which("gcc") is None:
        pytest.skip("no compiler")
    mark, folder = tmp_path / "mark", tmp_path / "recordings"
    folder.mkdir()
    (tmp_path / "a.c").write_text(LIBRARY % mark)
    driver = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1")]
    subprocess.run(["gcc", *driver, str(tmp_path / "a.c")], check=True)
    done = python(folder, "-m", "penult", "doctor")
    assert done.returncode == 0, done.stderr
    assert not mark.exists()


LOOKS = """
import os, sys
sys.argv[0] = 'penult'
import penult, matplotlib, numba
from numba.core import config
before = os.getcwd()
config.reload_config()
print([matplotlib.rcParams['text.usetex'], config.CACHE_DIR, before])
"""


def test_settings_of_libraries_in_the_working_folder(tmp_path: Path) -> None:
    """Such as a program that sets texts, and a folder of compiled functions, which are pickles."""
    pytest.importorskip("numba"), pytest.importorskip("matplotlib")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True")
    (tmp_path / ".numba_config.yaml").write_text(f"cache_dir: {tmp_path}")
    done = python(tmp_path, "-c", LOOKS)
    assert done.stdout.strip() == str([False, "", str(tmp_path)]), done.stderr


def test_weights_in_parts_lie_in_their_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(demo_folder(), model)
    names = [*load_file(model / "model.safetensors")]
    (model / "model.safetensors").rename(model / "part-1.safetensors")
    sound = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(tmp_path / "a.wav", sound.astype(np.float32), 16_000)
    shutil.copy(model / "part-1.safetensors", tmp_path / "above.safetensors")
    for part, code in (("part-1.safetensors", 0), ("../above.safetensors", 2)):
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, part)}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        assert run(["classify", str(model), str(tmp_path / "a.wav")]) == code
    assert "'../above.safetensors', which are not in its folder" in capsys.readouterr().err
