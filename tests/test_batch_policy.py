"""Which way of batching holds, for models whose right one is known by construction; its name and
figures, as an embedder and the command line give them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import penult
from conftest import clip
from penult.cli.main import run
from penult.engines.base import Readout
from penult.engines.batch_policy import (
    axes_of,
    disagreement,
    find_batch_policy,
)
from penult.engines.batching import Batch, BatchPolicy
from penult.engines.parity import relative_error

RATE = 8000
MODELS = '''
import torch
from torch import nn

SIZES = []

class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.head = nn.Conv1d(1, 6, 1), nn.Linear(6, 3)
        self.norm = nn.Identity()

    def hidden(self, x):
        SIZES.append(tuple(x.shape))
        return torch.tanh(self.norm(self.up(x[:, None]))).transpose(1, 2)

class Masked(Base):
    """The mean over what the mask allows."""
    def forward(self, x, attention_mask=None):
        mask = torch.ones_like(x) if attention_mask is None else attention_mask
        return self.head((self.hidden(x) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

class Normed(Masked):
    """The same behind a group norm over time."""
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 6)

class Last(Base):
    """The last position, whatever the mask says: only padding in front leaves it alone."""
    def forward(self, x, attention_mask=None):
        return self.head(self.hidden(x)[:, -1])

class Deaf(Base):
    """The mean over everything; a mask is taken and not used."""
    def forward(self, x, attention_mask=None):
        return self.head(self.hidden(x).mean(1))

class Plain(Base):
    """The mean over everything, without a mask."""
    def forward(self, x):
        return self.head(self.hidden(x).mean(1))

class Mixing(Base):
    """Every item sees the others of its batch."""
    def forward(self, x):
        pooled = self.hidden(x).mean(1)
        return self.head(pooled + pooled.std(0, correction=0))
'''
EXPECTED = {  # name, padded in front, the ways that were tried in their order, in words
    "Masked": ("padded", False, ["padded"], "padded together, with the model's own mask"),
    "Normed": ("masked norms", False, ["padded", "padded, left", "masked norms"],
               "padded together, with masks and group norms over each item's own frames"),
    "Last": ("padded", True, ["padded", "padded, left"],
             "padded together, with the model's own mask"),
    "Deaf": ("equal lengths", False, ["padded", "padded, left", "equal lengths"],
             "together where their inputs have the same shape"),
    "Plain": ("equal lengths", False, ["equal lengths"],
              "together where their inputs have the same shape"),
    "Mixing": ("alone", False, ["equal lengths"], "one at a time"),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "policy_models.py").write_text(MODELS)
    sys.path.insert(0, str(folder))
    import policy_models  # type: ignore[import-not-found]

    yield policy_models
    sys.path.remove(str(folder))
    sys.modules.pop("policy_models")


@pytest.mark.parametrize("name", EXPECTED)
def test_the_way_that_holds(models: Any, name: str) -> None:
    module = getattr(models, name)().eval()
    models.SIZES.clear()
    law = penult.Embedder.from_classifier(penult.load(module, sample_rate=RATE)).runner.policy
    way, left, tried, words = EXPECTED[name]
    assert (law.name, law.left, law.words) == (way, left, words)
    assert list(law.errors) == tried
    *worse, chosen = law.errors.values()
    assert all(error > 1e-4 for error in worse)
    assert (chosen > 1e-4) if way == "alone" else (chosen <= 5e-6)
    assert law.pads is (way in ("padded", "masked norms"))
    assert dict(law.axes) == {"x": 1}
    # Four items, the last two of one shape: each alone; then those of several lengths together, or
    # those of one length, in both orders where the first one holds.
    expected = [(1, round(share * RATE)) for share in (0.313, 0.787, 0.471, 0.471)]
    for tries in tried:
        shape = (3, 6296) if tries.startswith(("padded", "masked")) else (2, 3768)
        expected += [shape] * (2 if law.errors[tries] <= 5e-6 else 1)
    assert models.SIZES[-len(expected) :] == expected
    assert law.shortest == (2504 if law.pads else 0)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_command_line_says_which(
    models: Any, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(getattr(models, name)().state_dict(), tmp_path / "w.pt")
    for number in range(3):
        samples = clip((0.5, 0.5, 0.65)[number], number, RATE)
        soundfile.write(tmp_path / f"{number}.wav", samples, RATE, subtype="FLOAT")
    command = ["check", f"policy_models:{name}", *(str(tmp_path / f"{n}.wav") for n in range(3)),
               "--checkpoint", str(tmp_path / "w.pt"), "--sample-rate", str(RATE)]  # fmt: skip
    way, left, _, words = EXPECTED[name]
    assert run([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["law"]["name"], document["law"]["left"]) == (way, left)
    batches = {"padded": [3], "masked norms": [3], "equal lengths": [2, 1], "alone": [1, 1, 1]}
    assert document["batches"] == batches[way]
    assert run(command) == 0
    assert words in " ".join(capsys.readouterr().out.split())


def law(**changes: Any) -> BatchPolicy:
    return BatchPolicy(**{"name": "padded", "axes": {"x": 1}, "shortest": 3, **changes})


def item(length: int, **more: Tensor) -> dict[str, Tensor]:
    return {"x": torch.arange(1.0, length + 1)[None], **more}


def test_which_items_may_share_a_batch() -> None:
    """Those of any length from the shortest that was proved; else those of one shape."""
    padded = law()
    assert padded.kind(item(3)) == padded.kind(item(7))
    assert padded.kind(item(2)) != padded.kind(item(7))
    assert padded.kind(item(2)) == padded.kind(item(2)) != padded.kind(item(1))
    assert padded.kind(item(3)) != padded.kind({"x": torch.zeros(1, 3, dtype=torch.long)})
    assert padded.kind(item(3)) != padded.kind(item(3, y=torch.zeros(1, 2)))
    assert padded.kind(item(3, y=torch.zeros(1, 1))) != padded.kind(item(3, y=torch.zeros(1, 2)))
    assert padded.kind({"x": torch.zeros(1, 3, 4)}) != padded.kind({"x": torch.zeros(1, 3, 5)})
    for name in ("equal lengths", "alone"):
        one = law(name=name)
        assert one.kind(item(3)) != one.kind(item(7)) and one.kind(item(7)) == one.kind(item(7))
    assert law(name="masked norms").kind(item(3)) == law(name="masked norms").kind(item(7))


def test_lengths() -> None:
    assert law().length(item(5)) == 5
    assert law(axes={"y": 2}).length(item(5, y=torch.zeros(1, 3, 8))) == 8
    assert law(axes={}).length(item(5)) == 1


def test_a_batch_by_hand() -> None:
    found = law(fill={"x": 9}).batch([item(2), item(3)])
    assert found.tensors["x"].tolist() == [[1, 2, 9], [1, 2, 3]]
    assert found.tensors["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert (list(found.lengths or ()), found.left, found.norms) == ([2, 3], False, False)
    left = law(left=True, name="masked norms").batch([item(2), item(3)])
    assert left.tensors["x"].tolist() == [[0, 1, 2], [1, 2, 3]]
    assert left.tensors["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert left.left and left.norms
    own = law().batch([item(n, attention_mask=torch.ones(1, n)) for n in (2, 3)])
    assert own.tensors["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    equal = law().batch([item(3), item(3)])
    assert list(equal.tensors) == ["x"] and equal.lengths is None and len(equal) == 2


def summing(batch: Batch) -> Readout:
    """Two numbers of each item: the sum of its row, and how many rows share the batch."""
    rows = batch.tensors["x"].sum(dim=1).numpy()
    logits = [np.array([row, 10.0], np.float32) for row in rows]
    return Readout(logits, [np.full((len(rows), 1), 4.0 * len(rows), np.float32)])


def test_figures_by_hand() -> None:
    items = [item(2), item(3)]
    alone = [summing(Batch(one)) for one in items]
    # With a filling of 9 the shorter one's sum is 12, and was 3: 9 off, of 10 at most. Both are 8
    # in the vectors where they were 4.
    assert disagreement(summing, law(), items, alone) == pytest.approx(1.0)
    assert disagreement(summing, law(fill={"x": 50}), items, alone) == pytest.approx(5.0)
    assert disagreement(summing, law(name="equal lengths"), items[:1], alone[:1]) == 0

    def refuses(batch: Batch) -> Readout:
        raise ValueError("one at a time")

    assert disagreement(refuses, law(), items, alone) == float("inf")


def test_both_orders_are_tried() -> None:
    items = [item(3), item(3) | {"x": torch.full((1, 3), 5.0)}]

    def first_is_special(batch: Batch) -> Readout:
        logits = list(batch.tensors["x"].numpy().copy())
        if len(logits) > 1 and logits[0][0] == 5:
            logits[1] = logits[1] + 0.3
        return Readout(logits, [])

    alone = [first_is_special(Batch(one)) for one in items]
    found = disagreement(first_is_special, law(), items, alone)
    assert found == pytest.approx(0.1)  # 0.3 off, of 3 at most


def test_differences_by_hand() -> None:
    one, other = np.array([1.0, -4.0]), np.array([1.0, -5.0])
    assert relative_error([one, other], [other, other]) == pytest.approx(0.2)
    assert relative_error([other, one], [other, other]) == pytest.approx(0.2)
    assert relative_error([other], [one]) == pytest.approx(0.25)
    assert relative_error([one], [np.array([np.inf, 1.0])]) == float("inf")
    assert relative_error([one], [one[:1]]) == float("inf")


def test_axes_that_differ() -> None:
    shapes = [(1, 2, 5, 3), (1, 2, 7, 3), (1, 2, 5, 3)]
    items = [{"x": torch.zeros(s), "y": torch.zeros(1, n, n), "z": torch.zeros(1, 4)}
             for n, s in enumerate(shapes, 1)]  # fmt: skip
    assert axes_of(items) == {"x": 2}  # y grows along two axes, z along none


@pytest.mark.parametrize(
    ("first", "tried"),
    [
        (BatchPolicy("padded", {"x": 1}), ["padded", "equal lengths"]),
        (BatchPolicy("padded", {"x": 1}, left=True), ["padded, left", "equal lengths"]),
        (BatchPolicy("equal lengths", {"x": 1}), ["equal lengths"]),
        (BatchPolicy("alone", {"x": 1}), []),
    ],
)
def test_another_engine_tries_what_holds_in_torch_and_less(
    models: Any, first: BatchPolicy, tried: list[str]
) -> None:
    classifier = penult.Embedder.from_classifier(
        penult.load(models.Plain().eval(), sample_rate=RATE)
    ).classifier

    class Never:
        """Runs items alone and nothing else."""

        def __call__(self, batch: Batch, logits: bool = True) -> Readout:
            if len(batch) > 1:
                raise RuntimeError("a batch of one")
            return Readout([np.zeros(3, np.float32)], [])

    found = find_batch_policy(classifier, Never(), first)
    assert found.name == "alone" and list(found.errors) == tried
    assert all(error == float("inf") for error in found.errors.values())
    assert BatchPolicy.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_the_bar_is_the_largest_difference_that_passes(models: Any) -> None:
    classifier = penult.Embedder.from_classifier(
        penult.load(models.Plain().eval(), sample_rate=RATE)
    ).classifier

    off = 0.01

    class Coarse:
        """Off by a little where items share a batch."""

        def __call__(self, batch: Batch, logits: bool = True) -> Readout:
            value = 1.0 if len(batch) == 1 else 1.0 + off
            return Readout([np.full(3, value, np.float64)] * len(batch), [])

    error = find_batch_policy(classifier, Coarse()).errors["equal lengths"]
    assert error == pytest.approx(0.01)
    assert find_batch_policy(classifier, Coarse(), bar=error).name == "equal lengths"
    assert find_batch_policy(classifier, Coarse(), bar=error * 0.999).name == "alone"
    off = 4e-6
    assert find_batch_policy(classifier, Coarse()).name == "equal lengths"
    off = 7e-6  # half of what the law allows is 5e-6
    assert find_batch_policy(classifier, Coarse()).name == "alone"


def test_figures_as_json() -> None:
    """A way that does not run has no figure."""
    document = law(errors={"padded": float("inf"), "equal lengths": 2e-7}).to_dict()
    assert document["errors"] == {"padded": None, "equal lengths": 2e-7}
