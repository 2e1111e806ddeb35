"""Several patches of one item: pooled to one row, or a row for each, as a loop by hand has them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

import penult
from conftest import clip
from penult import Collection, Embedder
from penult.cli.main import run
from penult.collection.add import RunSettings, add
from penult.collection.ingest import Options, Seen, ingest
from penult.data.regions import Region, unpatched
from penult.data.sources import from_objects, from_paths
from penult.data.windows import Layout
from penult.embedding.check import check
from penult.errors import FingerprintMismatch, MissingExtra, ModelError, UsageError
from penult.models.patches import PatchGrid, find_grid, patched

RATE = 8_000
LENGTH, HOP = 2_048, 1_024  # samples of a patch

FRONT = """
import numpy as np
import torch
from torch import nn

def patches(samples):
    '''(n, 1, 32, 64): 2048 samples each, every 1024; none of what is shorter.'''
    if len(samples) < 2048:
        return torch.zeros(0, 1, 32, 64)
    found = np.lib.stride_tricks.sliding_window_view(samples, 2048)[::1024]
    return torch.from_numpy(found.reshape(-1, 1, 32, 64).copy())

def told(samples):
    one = patches(samples)
    starts = np.arange(len(one)) * 0.5
    return {"x": one, "patch_times": np.stack([starts, starts + 0.25], 1)}

def for_keras(samples):
    return patches(samples).permute(0, 2, 3, 1)

class Ears(nn.Module):
    def __init__(self, num_classes=5):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 5, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(torch.tanh(4 * self.conv(x)).mean((2, 3)))

def ears():
    return Ears()
"""


@pytest.fixture(autouse=True)
def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "front_of_patches.py").write_text(FRONT)
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("front_of_patches")
    sys.modules.pop("front_of_patches", None)


def ears(front: Any) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = front.Ears()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
    return module.eval()


def counted(samples: int) -> int:
    return max(0, (samples - LENGTH) // HOP + 1)


SECONDS = (1.0, 0.3, 0.26, 0.1, 2.37)  # 6, 1, 1, 0 and 17 patches


def sounds() -> list[np.ndarray]:
    return [clip(seconds, at, RATE) for at, seconds in enumerate(SECONDS)]


ByHand = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def by_hand(module: Any, front: Any) -> ByHand:
    """Vectors in front of the last layer (n, 8) and logits (n, 5), patch by patch."""

    def each(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hidden, logits = [], []
        with torch.no_grad():
            for one in front.patches(samples):
                z = torch.tanh(4 * module.conv(one[None])).mean((2, 3))
                hidden.append(z[0].numpy())
                logits.append(module.fc(z)[0].numpy())
        return np.array(hidden), np.array(logits)

    return each


def opened(loader: str, module: nn.Module, front: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """(spec, options) of the same network, of one loader."""
    x = torch.zeros(2, 1, 32, 64)
    asked: dict[str, Any] = {"preprocess": "front_of_patches:patches", "sample_rate": RATE}
    if loader == "module":
        return module, asked
    if loader == "factory":
        torch.save(module.state_dict(), folder / "m.pt")
        return "front_of_patches:ears", asked | {"checkpoint": folder / "m.pt"}
    if loader == "exported":
        sizes = {"x": {0: torch.export.Dim("n", min=1, max=64)}}
        program = torch.export.export(module, (x,), dynamic_shapes=sizes)
        torch.export.save(program, folder / "m.pt2")
        return folder / "m.pt2", asked
    if loader == "onnx":
        return in_onnx(module, folder), asked
    if loader == "keras":
        return in_keras(module, folder), asked | {"preprocess": "front_of_patches:for_keras"}
    script: Any = torch.jit.trace(module, x) if loader == "traced" else torch.jit.script(module)
    torch.jit.save(script, folder / "m.ts")
    return folder / "m.ts", asked


def in_onnx(module: Any, folder: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    state["four"] = np.float32(4)
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], strides=[3, 3]),
        helper.make_node("Mul", ["c", "four"], ["m"]),
        helper.make_node("Tanh", ["m"], ["t"]),
        helper.make_node("GlobalAveragePool", ["t"], ["g"]),
        helper.make_node("Flatten", ["g"], ["z"]),
        helper.make_node("Gemm", ["z", "fc.weight", "fc.bias"], ["y"], transB=1),
    ]
    value = helper.make_tensor_value_info
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in state.items()]
    graph = helper.make_graph(
        nodes, "net", [value("x", kind, ("n", 1, 32, 64))], [value("y", kind, None)], weights
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "m.onnx")
    return folder / "m.onnx"


def in_keras(module: Any, folder: Path) -> Path:
    from penult.models.loaders.keras import imported_keras

    try:
        keras = imported_keras()
    except MissingExtra as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))
    layers = keras.layers
    x = keras.Input((32, 64, 1))
    h = layers.Conv2D(8, 5, 3, name="conv")(x)
    h = layers.Activation("tanh")(layers.Rescaling(4.0)(h))
    model = keras.Model(x, layers.Dense(5, name="fc")(layers.GlobalAveragePooling2D()(h)))
    conv, fc = module.conv, module.fc
    model.get_layer("conv").set_weights(
        [conv.weight.detach().permute(2, 3, 1, 0).numpy(), conv.bias.detach().numpy()]
    )
    model.get_layer("fc").set_weights([fc.weight.detach().T.numpy(), fc.bias.detach().numpy()])
    model.save(folder / "m.keras")
    return folder / "m.keras"


LOADERS = ["module", "factory", "scripted", "traced", "exported", "onnx", "keras"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("loader", LOADERS)
def test_one_contract_for_every_loader(loader: str, front: Any, tmp_path: Path) -> None:
    module = ears(front)
    each = by_hand(module, front)
    spec, asked = opened(loader, module, front, tmp_path)
    with pytest.raises(UsageError, match=r"6 patches for one item.*--patches mean.*--window"):
        penult.load(spec, **asked)
    for how in ("mean", "max", "rows"):
        clf = penult.load(spec, **asked, patches=how)
        embedder = Embedder.from_classifier(clf, tap="prelogits")
        assert embedder.certificate.ok, embedder.certificate.refusal
        found = embedder.run(sounds(), on_error="skip")
        hand = [each(one) for one in sounds() if counted(len(one))]
        if how == "rows":
            vectors, logits = (np.concatenate(both) for both in zip(*hand, strict=True))
            assert [one.key for one in found.regions[:7]] == [f"patch:{i}" for i in [*range(6), 0]]
            assert found.item_index.tolist() == [0] * 6 + [1, 2] + [4] * 17
        else:
            pooled = [[getattr(values, how)(axis=0) for values in one] for one in hand]
            vectors, logits = (np.stack(both) for both in zip(*pooled, strict=True))
            assert found.item_index.tolist() == [0, 1, 2, 4]
            assert {one.key for one in found.regions} == {"whole"}
        np.testing.assert_allclose(found.vectors, vectors, rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(found.logits, logits, rtol=1e-5, atol=1e-5)
        (failure,) = found.failures
        assert (failure.error, failure.region) == ("TooShort", "whole")
        assert failure.message == (
            "0.100 s is too short for one patch of the preprocessing, which needs 0.256 s"
        )
        answers = clf.classify(sounds(), on_error="skip")
        assert [one.index for one in answers] == logits.argmax(axis=1).tolist()
        assert embedder.fingerprint["patches"] == how
        if loader != "module":
            again = Embedder.load(embedder.save(tmp_path / f"{loader} {how}"))
            assert again.fingerprint == embedder.fingerprint
            np.testing.assert_array_equal(
                again.run(sounds(), on_error="skip").vectors, found.vectors
            )


def test_a_library_model_with_a_function_of_the_users(front: Any, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=5, in_chans=1).eval()
    torch.save(model.state_dict(), tmp_path / "r.pt")
    (tmp_path / "front_of_timm.py").write_text(
        "import timm\n"
        "def net():\n"
        "    return timm.create_model('resnet10t', num_classes=5, in_chans=1)\n"
    )
    clf = penult.load(
        "front_of_timm:net", checkpoint=tmp_path / "r.pt", sample_rate=RATE, patches="mean",
        preprocess=front.patches,
    )  # fmt: skip
    found = Embedder.from_classifier(clf, tap="prelogits").embed([sounds()[0]])
    with torch.no_grad():
        each = [
            model.forward_head(model.forward_features(one[None]), pre_logits=True)[0].numpy()
            for one in front.patches(sounds()[0])
        ]
    np.testing.assert_allclose(found[0], np.mean(each, axis=0), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"--patches mean: nothing gives .*several patches"):
        penult.load("timm:resnet10t", random=True, patches="mean")


@pytest.mark.parametrize("how", ["mean", "max", "rows"])
def test_the_same_rows_in_any_batch(how: str, front: Any) -> None:
    """Items of none, one and many patches, together, in batches of any size and each alone."""
    embedder = Embedder.from_classifier(
        penult.load(ears(front), preprocess=front.patches, sample_rate=RATE, patches=how)
    )
    items = [one for seed in range(3) for one in sounds()]
    expected = embedder.run(items, on_error="skip", alone=True)
    assert len(expected.failures) == 3
    for budget in (1, 3 * LENGTH, 7 * LENGTH, 1_000 * LENGTH):
        embedder.runner.budget = budget
        found = embedder.run(items[::-1], on_error="skip")
        order = np.argsort(-found.item_index, kind="stable")
        assert (len(items) - 1 - found.item_index[order]).tolist() == expected.item_index.tolist()
        np.testing.assert_allclose(found.vectors[order], expected.vectors, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.logits[order], expected.logits, rtol=1e-5, atol=1e-6)


def test_a_patch_that_fails_fails_its_item(front: Any) -> None:
    def broken(samples: np.ndarray) -> Tensor:
        found: Tensor = front.patches(samples)
        if len(found) == 6:
            found[3] = torch.nan
        return found

    for how in ("mean", "rows"):
        clf = penult.load(ears(front), preprocess=broken, sample_rate=RATE, patches=how)
        found = Embedder.from_classifier(clf).run(
            [sounds()[1], clip(0.9, 1, RATE), sounds()[4]], "skip"
        )
        (failure,) = found.failures
        assert (failure.region, failure.error) == ("whole", "EmptyItem")
        assert "patch 3 of 6: the model gave values that are not finite" in failure.message
        assert set(found.item_index.tolist()) == {0, 2}


def test_what_is_refused(front: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="patches 'each' is not known; choose mean or max"):
        penult.load(ears(front), preprocess=front.patches, sample_rate=RATE, patches="each")
    with pytest.raises(UsageError, match="--patches rows: nothing gives"):
        penult.load("demo", patches="rows")
    with pytest.raises(ModelError, match="one patch: the first axis of the tensors counts"):
        penult.load(ears(front), preprocess=lambda x: x[:2048].reshape(1, 32, 64),
                    sample_rate=RATE, patches="rows")  # fmt: skip
    with pytest.raises(UsageError, match=r"x \(6, 1, 32, 64\), y \(1,\).*be of one length"):
        penult.load(ears(front), sample_rate=RATE, patches="mean",
                    preprocess=lambda x: {"x": front.patches(x), "y": torch.ones(1)})  # fmt: skip
    timed = lambda x: {"x": front.patches(x), "patch_times": [0, 1]}  # noqa: E731
    with pytest.raises(UsageError, match=r"patch_times of shape \(2,\) for 6 patches.*\(n, 2\)"):
        penult.load(ears(front), sample_rate=RATE, patches="rows", preprocess=timed)
    clf = penult.load(ears(front), preprocess=front.patches, sample_rate=RATE, patches="rows")
    with pytest.raises(UsageError, match="one row of each item"):
        penult.choose(clf, sounds(), [*"aabbc"])


# ---- when patches lie in their recording


def test_times_follow_from_noise_where_patches_are_one_hop_apart(front: Any) -> None:
    def grid(function: Callable[[np.ndarray], Any]) -> PatchGrid | None:
        return find_grid(lambda samples: patched({"x": function(samples)}, None), RATE)

    def padded(samples: np.ndarray) -> Any:
        return front.patches(np.pad(samples, (0, -len(samples) % LENGTH)))[::2]

    def moved(samples: np.ndarray) -> Any:
        n = max(1, -(-len(samples) // LENGTH))
        starts = [min(i * LENGTH, max(0, len(samples) - LENGTH)) for i in range(n)]
        return torch.stack([torch.from_numpy(samples[s : s + LENGTH].copy()) for s in starts])

    def normalised(samples: np.ndarray) -> Any:
        return front.patches(samples / np.abs(samples).max())

    assert grid(front.patches) == PatchGrid(HOP, LENGTH, RATE)
    assert grid(padded) == PatchGrid(LENGTH, LENGTH, RATE)
    assert grid(moved) is None
    assert grid(normalised) is None
    assert grid(lambda samples: torch.zeros(3, 5)) is None


def test_rows_have_their_times(front: Any) -> None:
    def spans(preprocess: Any, **cut: Any) -> list[tuple[str, Any, Any]]:
        clf = penult.load(ears(front), preprocess=preprocess, sample_rate=RATE, patches="rows")
        runner = Embedder.from_classifier(clf).runner
        pairs = Layout(**cut).of(from_objects([sounds()[0]], "audio"), clf.input)
        with closing(runner.stream(pairs)) as outcomes:
            return [(one.region.key, one.start, one.end) for one in outcomes]  # type: ignore[union-attr]

    expected = [(f"patch:{i}", i * 0.128, round(i * 0.128 + 0.256, 6)) for i in range(6)]
    assert spans(front.patches) == expected
    assert spans(front.told) == [(f"patch:{i}", i / 2, i / 2 + 0.25) for i in range(6)]
    assert spans(lambda x: front.patches(x / np.abs(x).max()))[5] == ("patch:5", None, None)
    cut = spans(front.patches, window=0.5)
    assert cut == [
        (f"{first:g}-{first + 0.5:g}:patch:{i}", first + i * 0.128, first + i * 0.128 + 0.256)
        for first in (0.0, 0.5)
        for i in range(2)
    ]


KEYS = """patch:3 1.5-2.25:patch:0 ch0:patch:2 ch1:1.5-end:patch:0 box:0,0,5,9:patch:1
page:2:patch:0 chars:0-9:patch:0 patch:3#2"""


@pytest.mark.parametrize("key", KEYS.split())
def test_keys_of_patches(key: str) -> None:
    region = Region.of_key(key)
    assert (region.kind, region.key) == ("patch", key)
    assert region.base.key == unpatched(key)
    assert Region.of_key(key, "patch") == region


# ---- collections


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    folder.mkdir()
    for at, sound in enumerate(sounds()):
        soundfile.write(folder / f"{at}.wav", sound, RATE, subtype="FLOAT")
    return folder


def rows(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    for batch in Collection.open(path).reader.scan():
        for row in batch.to_pylist():
            key = Path(row["id"]).name, row["region"]
            assert key not in found, f"twice: {key}"
            found[key] = row
    return found


def embedder_of(front: Any, how: str, preprocess: Any = None) -> Embedder:
    function = preprocess or front.patches
    clf = penult.load(ears(front), preprocess=function, sample_rate=RATE, patches=how)
    return Embedder.from_classifier(clf, tap="prelogits")


def test_a_collection_of_patches(front: Any, recordings: Path, tmp_path: Path) -> None:
    spec, asked = opened("factory", ears(front), front, tmp_path)
    embedder = Embedder.from_classifier(penult.load(spec, **asked, patches="rows"), tap="prelogits")
    each = by_hand(ears(front), front)
    collection = Collection.open(tmp_path / "c")
    summary = collection.add(embedder, recordings, summary="mean")
    assert (summary.done, summary.failed) == (25 + 4, 1)  # with the summaries
    found = rows(tmp_path / "c")
    for at, sound in enumerate(sounds()):
        vectors, _ = each(sound)
        own = {region: row for (name, region), row in found.items() if name == f"{at}.wav"}
        assert own.keys() == {f"patch:{i}" for i in range(len(vectors))} | (
            {"summary"} if len(vectors) else set()
        )
        for i, vector in enumerate(vectors):
            row = own[f"patch:{i}"]
            np.testing.assert_allclose(row["vector"], vector, rtol=1e-5, atol=2e-6)
            assert (row["kind"], row["start"]) == ("patch", pytest.approx(i * 0.128))
            assert row["end"] == pytest.approx(i * 0.128 + 0.256)
    again = collection.add(embedder, recordings, summary="mean")
    assert (again.done, again.skipped, again.failed) == (0, 25, 1)
    soundfile.write(recordings / "3.wav", clip(0.6, 9, RATE), RATE)
    soundfile.write(recordings / "4.wav", clip(0.5, 9, RATE), RATE)
    later = collection.add(embedder, recordings)
    assert (later.done + later.replaced, later.skipped, later.failed) == (3 + 2, 8, 0)
    names = [name for name, region in rows(tmp_path / "c") if region != "summary"]
    assert [names.count(f"{i}.wav") for i in range(5)] == [6, 1, 1, 3, 2]
    assert not collection.failures().num_rows
    with pytest.raises(FingerprintMismatch, match="patches"):
        collection.add(embedder_of(front, "mean"), recordings)
    (hit, *_) = collection.search(str(recordings / "1.wav"), k=1)
    assert (Path(hit.id).name, hit.region) == ("1.wav", "patch:0")


def test_what_was_stopped_has_whole_items_and_goes_on(
    front: Any, recordings: Path, tmp_path: Path
) -> None:
    """Wherever a run ends: of each item all patches are there, or none, and the next run embeds
    the others alone."""
    embedder = embedder_of(front, "rows")
    Collection.open(tmp_path / "whole").add(embedder, recordings)
    expected, counts = rows(tmp_path / "whole"), [6, 1, 1, 0, 17]
    for stop in (1, 2, 3):
        path = tmp_path / f"c{stop}"
        commits = 0

        def end(step: Any, summary: Any, stop: int = stop) -> None:
            nonlocal commits
            commits += 1
            if commits == stop:
                raise KeyboardInterrupt

        source, options = from_paths([recordings], "audio"), Options(commit_rows=1, patient=False)
        reader = Collection.open(path).reader
        with pytest.raises(KeyboardInterrupt):
            add(reader, embedder, source, options, RunSettings(follow=end))
        there = [name for name, _ in rows(path)]
        kept = [there.count(f"{i}.wav") for i in range(5)]
        assert all(one in (0, count) for one, count in zip(kept, counts, strict=True))
        assert 0 < sum(kept) < 25
        summary = add(reader, embedder, source, options)
        assert summary.done == 25 - sum(kept)
        found = rows(path)
        assert found.keys() == expected.keys()
        for key, row in found.items():
            np.testing.assert_allclose(row["vector"], expected[key]["vector"], rtol=1e-5, atol=1e-6)


def test_no_commit_ends_within_an_item(front: Any, recordings: Path) -> None:
    embedder = embedder_of(front, "rows")
    source = from_paths([recordings], "audio")
    steps = list(ingest(embedder, source, lambda ids: Seen(), Options(commit_rows=1)))
    assert [len(step.rows) for step in steps if step.rows] == [6, 1, 1, 17]


def test_each_patch_is_an_example(front: Any, recordings: Path, tmp_path: Path) -> None:
    spec, asked = opened("factory", ears(front), front, tmp_path)
    embedder = Embedder.from_classifier(penult.load(spec, **asked, patches="rows"))
    collection = Collection.open(tmp_path / "c")
    collection.add(embedder, [recordings / "1.wav"])
    for space in (penult.ClassSpace(embedder), penult.ClassSpace(collection)):
        keys = space.add("long", recordings / "0.wav")
        assert [region for _, region in keys] == [f"patch:{i}" for i in range(6)]
        space.add("short", recordings / "1.wav")
        found = list(space.predict([recordings / "0.wav", recordings / "1.wav"]))
        assert [one.region for one in found] == [*(f"patch:{i}" for i in range(6)), "patch:0"]


def test_another_model_makes_its_own_patches(front: Any, recordings: Path, tmp_path: Path) -> None:
    old, new = Collection.open(tmp_path / "old"), Collection.open(tmp_path / "new")
    old.add(embedder_of(front, "rows"), recordings)
    new.add(embedder_of(front, "mean"), like=old)
    assert set(rows(tmp_path / "new")) == {(f"{i}.wav", "whole") for i in (0, 1, 2, 4)}


@pytest.mark.parametrize("how", ["mean", "rows"])
def test_check_looks_at_patches_of_items_of_several_lengths(
    how: str, front: Any, recordings: Path
) -> None:
    embedder = embedder_of(front, how)
    pairs = list(from_paths([recordings], "audio"))
    kept = {(one.item.id, one.region.key): one.vector
            for one in embedder.runner.stream(pairs) if hasattr(one, "vector")}  # fmt: skip
    asked = []

    def stored(id: str, region: str) -> Any:
        asked.append(region)
        return kept.get((id, region))

    report = check(embedder, pairs, embedder.certificate, stored=stored)
    assert not report.broken
    assert [Path(id).name for id in report.items] == ["0.wav", "1.wav", "2.wav", "4.wav"]
    assert sum(report.batches) == 6 + 1 + 1 + 8 and max(report.batches) > 8
    assert report.against["stored rows"].ok
    assert set(asked) == ({"whole"} if how == "mean" else {f"patch:{i}" for i in range(8)})
    kept = {key: vector + 0.1 for key, vector in kept.items()}
    assert any("as the collection has it" in line for line in
               check(embedder, pairs, embedder.certificate, stored=stored).broken)  # fmt: skip


def test_the_command(
    front: Any, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(ears(front).state_dict(), tmp_path / "m.pt")
    model = ["front_of_patches:ears", "--checkpoint", tmp_path / "m.pt", "--sample-rate", RATE]
    model += ["--preprocess", "front_of_patches:patches"]

    def ask(command: str, *arguments: object) -> tuple[int, str, str]:
        code = run([command, *(str(argument) for argument in arguments)])
        return code, *capsys.readouterr()

    code, _, words = ask("embed", *model, recordings, "--into", tmp_path / "c")
    assert code == 2 and "--patches mean" in words
    code, out, _ = ask("embed", *model, recordings, "--into", tmp_path / "c", "--patches", "rows",
                       "--json")  # fmt: skip
    assert code == 3 and json.loads(out)["done"] == 25
    code, out, _ = ask("classify", *model, recordings, "--patches", "max", "--json")
    assert code == 3 and len(json.loads(out)["predictions"]) == 4
    code, out, _ = ask("inspect", *model, "--patches", "mean", "--verify", recordings / "0.wav")
    assert code == 0 and "the mean of its patches" in " ".join(out.split())
    code, _, words = ask("embed", *model, recordings, "--into", tmp_path / "c", "--patches", "each")
    assert code == 2 and "choose mean or max" in words


def test_a_file_that_is_named_in_a_list_is_part_of_the_fingerprint(
    front: Any, tmp_path: Path
) -> None:
    (tmp_path / "filters").mkdir()
    (tmp_path / "front_with_files.py").write_text(
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from front_of_patches import patches\n"
        "FILES = ['filters/mel_64.npy']\n"
        "SCALE = [np.load(one) for one in Path(__file__).parent.glob('fil*/mel_*')]\n"
        "def scaled(samples):\n"
        "    return patches(samples * SCALE[0])\n"
    )
    asked = {"preprocess": "front_with_files:scaled", "sample_rate": RATE, "patches": "mean"}
    codes = []
    for scale in (1.0, 1.0, 2.0):
        np.save(tmp_path / "filters" / "mel_64.npy", np.float32(scale))
        sys.modules.pop("front_with_files", None)
        codes.append(penult.load(ears(front), **asked).identity()["code"])
    assert codes[0] == codes[1] != codes[2]
