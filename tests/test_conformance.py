"""The cut of every classifier that can be built here: proved, or rightly refused, and never wrong.

A few of each kind run by default; `-m slow` runs them all, and the table stands at the end of the
run. Whether what was proved is right is measured by `oracle.py`, not by the certificate.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from conftest import thinned
from oracle import examine
from sweep import (
    AUDIO,
    FAMILIES,
    FRAMES,
    IMAGE,
    TEXT,
    TOKENS,
    VIDEO,
    XVECTOR,
    Row,
    build_timm,
    build_torchvision,
    build_transformers,
    line,
    rows,
)

SOME = [
    (AUDIO, "wav2vec2"),
    (AUDIO, "audio-spectrogram-transformer"),
    (FRAMES, "wavlm"),
    (XVECTOR, "unispeech-sat"),
    (IMAGE, "deit"),
    (IMAGE, "mobilevit"),
    (IMAGE, "pp_lcnet"),
    (IMAGE, "swin"),
    (VIDEO, "vivit"),
    (TEXT, "bert"),
    (TEXT, "gpt2"),
    (TEXT, "bart"),
    (TEXT, "eurobert"),
    (TEXT, "mra"),
    (TOKENS, "roberta"),
]
SOME_TIMM = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "levit_128s"]
SOME_TORCHVISION = ["squeezenet1_1", "resnet18", "mobilenet_v3_small"]


@pytest.mark.parametrize(("task", "model_type"), SOME)
def test_some_of_transformers(task: str, model_type: str) -> None:
    found = examine(*build_transformers(task, model_type))
    assert found.came_to == "proved", found.why


@pytest.mark.parametrize("name", thinned(SOME_TIMM, ["test_resnet", "test_vit"]))
def test_some_of_timm(name: str) -> None:
    pytest.importorskip("timm")
    found = examine(*build_timm(name))
    assert found.came_to == "proved", found.why


@pytest.mark.parametrize("name", thinned(SOME_TORCHVISION, ["squeezenet1_1"]))
def test_some_of_torchvision(name: str) -> None:
    pytest.importorskip("torchvision")
    found = examine(*build_torchvision(name))
    assert found.came_to == "proved", found.why


# What may be refused, and what the refusal says.
REFUSED = {
    # it pads to multiples of eight frames and trims the scores to the frames that came in
    "nemotron3_diarization": "depends on more than the prelogits",
}

# What can't be built, and why: a library that is not installed, or a configuration of its own.
NOT_BUILT = {
    "dinat": "requires the natten library",
    "layoutlmv2": "requires the detectron2 library",
    "shieldgemma2": "input_ids",  # a language model that is asked for yes or no, not a classifier
}

# Where the library names another layer than the last with weights, and why it is not the head.
EXPLAINED: dict[str, str] = {}

# Where more than a third of the parameters lie behind the cut, and why.
LARGE: dict[str, str] = {}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_of(family: str, record_property: Callable[[str, object], None]) -> None:
    found = list(rows(family))
    record_property("conformance", line(family, found))
    complaints = [said for row in found if (said := complaint(row))]
    assert not complaints, "\n".join(complaints)


def complaint(row: Row) -> str:
    """What is not right with a row of the sweep, if anything."""
    known = {"refused": REFUSED, "not built": NOT_BUILT}.get(row.came_to, {})
    if row.came_to != "proved":
        expected = known.get(row.name)
        return "" if expected and expected in row.why else f"{row.name}: {row.came_to}: {row.why}"
    if row.agrees is False and row.name not in EXPLAINED:
        return f"{row.name}: the library's classifier is not behind the cut at {row.why}"
    if row.share > 1 / 3 and row.name not in LARGE:
        return f"{row.name}: {row.share:.0%} of the parameters lie behind the cut at {row.why}"
    return ""
