"""Lengths of examples beside those of what is predicted, and the background of a class file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import penult
from penult.collection.collection import Collection
from penult.embedding.embedder import Embedder
from penult.fewshot.classspace import ClassSpace
from test_cli import ask
from test_versions import TAUGHT, clips_of

CLIPS = Path(penult.__file__).parent / "demo" / "clips"
DEMO = ("--model", "demo", "--tap", "prelogits")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four words by one voice, joined: about two seconds."""
    path = tmp_path_factory.mktemp("long") / "four.wav"
    clips = [soundfile.read(clip) for clip in clips_of("scottish-man")[:4]]
    soundfile.write(path, np.concatenate([values for values, _ in clips]), clips[0][1])
    return path


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.from_classifier(penult.load("demo"), tap="prelogits", device="cpu")


@pytest.fixture(params=["collection", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path, embedder: Embedder) -> Path:
    if request.param == "file":
        return tmp_path / "words.npz"
    Collection.open(tmp_path / "words.lance").add(embedder, clips_of(*TAUGHT))
    return tmp_path / "words.lance"


def test_other_lengths_are_told_and_examples_are_cut(place: Path, long: Path) -> None:
    begun = DEMO if place.suffix == ".npz" else ()
    assert ask("teach", place, "words", long, *begun).code == 0
    seconds = soundfile.info(long).duration
    window = ("--window", "400ms", "--unknown", 0)
    done = ask("predict", place, long, *window, "--json")
    lengths = done.json["lengths"]
    assert lengths["examples"] == pytest.approx(seconds, abs=0.01)
    assert lengths["predicted"] == pytest.approx(0.4, abs=0.05)
    assert "--window 0.4s makes examples of that length" in lengths["note"]
    assert "examples are" in ask("predict", place, long, *window).err
    # Whole clips against whole clips: nothing to tell.
    alike = ask("predict", place, long, "--unknown", 0, "--json").json["lengths"]
    assert alike["note"] is None and alike["examples"] == alike["predicted"]
    assert ask("teach", place, "--undo").code == 0
    done = ask("teach", place, "words", long, "--window", "400ms", "--hop", "200ms", "--json")
    assert done.json["taught"]["words"] >= 8
    cut = ask("predict", place, long, *window, "--json").json["lengths"]
    assert cut["note"] is None and cut["examples"] == pytest.approx(0.4, abs=0.01)


def test_files_of_a_folder_are_cut_too(place: Path, long: Path) -> None:
    begun = DEMO if place.suffix == ".npz" else ()
    done = ask("teach", place, long, "--from", "{}.wav", "--window", "500ms", *begun, "--json")
    assert done.code == 0 and done.json["taught"]["four"] >= 4
    if place.suffix == ".lance":
        done = ask("teach", place, "--from", "folder", "--window", "500ms")
        assert done.code == 2 and "rows of the collection are cut already" in done.error


def test_a_class_file_says_what_it_lacks_and_takes_it(
    tmp_path: Path, embedder: Embedder, long: Path
) -> None:
    file, words = tmp_path / "words.npz", ("one", "two", "five")
    examples = clips_of(*TAUGHT[:2], words=words)
    assert ask("teach", file, *examples, "--from", "{}_*", *DEMO).code == 0
    asked = clips_of("scottish-man")
    bare = ask("predict", file, *asked, "--json").json
    assert bare["space"] == "raw" and bare["background"]["rows"] is None
    assert "nothing is centred: 6 examples" in bare["background"]["note"]
    assert "--background" in ask("predict", file, *asked).err
    others = clips_of("american-woman", "new-york-man", words=("zero", "four", "yes", "no"))
    others += clips_of("american-woman", "new-york-man", words=("six", "seven", "apple", "banana"))
    folder = tmp_path / "others"
    folder.mkdir()
    for other in others:
        (folder / other.name).symlink_to(other)
    done = ask("teach", file, "--background", folder, "--json")
    assert done.code == 0 and done.json["version"]["change"] == "background of 16 items"
    given = ask("predict", file, *asked, "--json").json
    assert given["background"] == {"rows": 16, "note": None}
    ask("teach", file, "three", *clips_of(*TAUGHT[:2], words=("three",)))
    assert ask("predict", file, *asked, "--json").json["background"]["rows"] == 16  # kept
    ask("teach", file, "--undo")
    assert ask("teach", file, "--undo", "--json").json["undone"] == "background of 16 items"
    again = ask("predict", file, *asked, "--json").json
    assert again["background"] == bare["background"]
    assert again["predictions"] == bare["predictions"]
    # A collection of the same embedder serves as well, and gives the space that it has itself.
    path = tmp_path / "rows.lance"
    Collection.open(path).add(
        embedder, [*others, *clips_of("british-man", words=("no", "yes", "zero", "four"))]
    )
    assert ask("teach", file, "--background", path).code == 0
    space = ClassSpace.load(file)
    assert space.history.background == 20 and space.fitted.space.recipe != "raw"


def test_what_cannot_be_a_background_is_refused(place: Path, long: Path, tmp_path: Path) -> None:
    begun = DEMO if place.suffix == ".npz" else ()
    ask("teach", place, "words", long, *begun)
    if place.suffix == ".lance":
        done = ask("teach", place, "--background", long)
        assert done.code == 2 and "has rows of its own" in done.error
        done = ask("teach", place, "--background", "5", "--json")
        assert done.code == 0 and done.json["taught"] == {"*": 5}
        assert ask("teach", place, "--undo", "--json").json["undone"] == "teach: * +5 no"
        return
    done = ask("teach", place, "--background", "50")
    assert done.code == 2 and "drawn from a collection" in done.error
    done = ask("teach", place, "--background", "50", "--background", long)
    assert done.code == 2 and "takes a number, one collection" in done.error
    done = ask("teach", place, "--background", long)
    assert done.code == 2 and "no other item" in done.error
    other = tmp_path / "other.lance"
    Collection.open(other).add(
        Embedder.from_classifier(penult.load("demo"), device="cpu"), clips_of(TAUGHT[0])[:1]
    )
    done = ask("teach", place, "--background", other)
    assert done.code == 2 and "tap: prelogits" in done.error
