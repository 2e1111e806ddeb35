"""What is said of a model: both ways to the prelogits, reads, statements, and `penult inspect`."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

import penult
import sweep
from conftest import RATE, clip, thinned
from odd_heads import CASES, D, Frames, Then, fc, waves
from penult.errors import HeadNotFound, TapError, UsageError
from penult.tracing.cut import cut as recorded
from penult.tracing.forward import still
from penult.tracing.graph_anatomy import GraphCut
from penult.tracing.graph_proof import state_graph
from penult.tracing.inputs import CallInputs, other_batch, other_lengths, other_values
from penult.tracing.onnx_graph import OnnxGraph
from penult.tracing.split import Split, split
from test_cli import ask
from test_splitting import built

# ---- the prelogits, by hooks and recorded


def others(x: Any) -> list[CallInputs]:
    example = CallInputs.of(x)
    more = [other_values(example, seed=9), other_batch(example, 5), other_batch(example, 1)]
    return [example, *(i for i in more if i), *list(other_lengths(example))[:1]]


def both_ways(cut: Split, x: Any) -> None:
    """To the bit, on the first input of a kind and on later ones."""
    compared = 0
    for inputs in others(x):
        with still(cut._target.model):
            try:
                trace, copies = cut._target.record(inputs)
            except Exception:
                continue  # the model takes one shape only
            wanted = recorded(cut._target, trace, copies).values
        for _ in range(2):
            got = cut.prelogits(inputs.args or inputs.kwargs)
            got = got if isinstance(got, tuple) else (got,)
            assert len(got) == len(wanted)
            assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))
            compared += 1
    assert compared


PROVED = [name for name, case in CASES.items() if not case.refused]


def by_hooks(cut: Split) -> set[bool]:
    return {plan is not None for plan in cut._deliver._plans.values()}


@pytest.mark.parametrize("name", thinned(PROVED, PROVED[::3]))
def test_hooks_give_what_a_recorded_pass_gives(name: str) -> None:
    cut = split(built(CASES[name]), CASES[name].inputs(), **CASES[name].how)
    assert cut.certificate.ok, cut.certificate
    both_ways(cut, CASES[name].inputs())


@pytest.mark.parametrize(
    ("name", "hooked"),
    [("linear", True), ("two heads averaged", True), ("einsum", False),
     ("last token by index", False), ("masked mean after", False)],
)  # fmt: skip
def test_hooks_where_a_module_is_the_head(name: str, hooked: bool) -> None:
    cut = split(built(CASES[name]), CASES[name].inputs())
    cut.prelogits(CASES[name].inputs())
    assert by_hooks(cut) == {hooked}


@pytest.mark.parametrize(
    ("task", "kind", "hooked"),
    [(sweep.AUDIO, "wav2vec2", True), (sweep.IMAGE, "deit", True), (sweep.TEXT, "bert", True),
     (sweep.TEXT, "gpt2", False)],
)  # fmt: skip
def test_real_architectures_both_ways(task: str, kind: str, hooked: bool) -> None:
    model, inputs = sweep.build_transformers(task, kind)
    cut = split(model, inputs)
    both_ways(cut, inputs)
    assert by_hooks(cut) == {hooked}


BEHIND: list[int] = []  # one for each pass that went on behind the head; no model holds it


class Counting(nn.Module):
    """Counts what runs behind the head, and can be made to fail in front of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        BEHIND.clear()
        self.body, self.fc = Frames(), fc()
        self.register_buffer("seen", torch.zeros(()))
        self.fails: str = ""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        h = self.body(x)
        if self.fails == "front":
            raise ValueError("in front of the head")
        try:
            y = self.fc(h.mean(1))
        except Exception as error:  # a model that swallows errors does not swallow the stop
            raise AssertionError("the stop was taken for an error") from error
        BEHIND.append(1)
        return y


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_pass_ends_where_nothing_more_is_needed() -> None:
    model = Counting()
    cut = split(model, waves())
    z = cut.prelogits(waves())  # the first of its kind is recorded, and runs whole
    for _ in range(3):
        behind = len(BEHIND)
        assert torch.equal(cut.prelogits(waves()), z)
        assert len(BEHIND) == behind
    longer = torch.cat([waves(), waves()], dim=1)
    behind = len(BEHIND)
    cut.prelogits(longer)  # of a new length: counts how often each module runs
    assert len(BEHIND) == behind + 1
    cut.prelogits(longer)
    assert len(BEHIND) == behind + 1


def test_nothing_is_left_behind() -> None:
    model = Counting()
    model.body.train()
    cut = split(model, waves())
    cut.prelogits(waves())
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    foreign = model.fc.register_forward_pre_hook(lambda *_: None)
    count = hooks_of(model)
    for fails in ("", "front", ""):
        model.fails = fails
        for ask_for in (
            lambda: cut.prelogits(waves()),
            lambda: cut.read(waves(), ["fc", "body.up"]),
            lambda: cut.statement("body"),
        ):
            if fails:
                with pytest.raises((UsageError, ValueError), match="in front of the head"):
                    ask_for()
            else:
                ask_for()
            assert hooks_of(model) == count
            assert [module.training for module in model.modules()] == flags
            assert all(torch.equal(v, kept[n]) for n, v in model.state_dict().items())
    foreign.remove()


def test_a_pass_inside_of_a_pass_is_not_read() -> None:
    class Twice(Counting):
        cut: Split | None = None
        inner: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.cut is not None and self.inner is None:
                self.inner = torch.zeros(0)
                self.__dict__["found"] = self.cut.prelogits(-x)
            return super().forward(x)

    model = Twice()
    cut = split(model, waves())
    z, other = cut.prelogits(waves()), cut.prelogits(-waves())
    object.__setattr__(model, "cut", cut)
    assert torch.equal(cut.prelogits(waves()), z)
    assert not torch.equal(z, other)


def test_threads_share_a_model() -> None:
    model = Counting().train()
    cut = split(model, waves())
    inputs = [waves() * (1 + number) for number in range(4)]
    expected = [cut.prelogits(x) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            if not torch.equal(cut.prelogits(inputs[number]), expected[number]):
                wrong.append(number)

    def run_plainly() -> None:  # somebody else's passes of the same model are not touched
        for _ in range(30):
            with torch.no_grad():
                if model(inputs[0]).shape != (2, 7):
                    wrong.append(-1)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    threads.append(threading.Thread(target=run_plainly))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert model.training and hooks_of(model) == 0


# ---- several taps in one pass


def test_read_several_taps_in_one_pass() -> None:
    model = Counting()
    cut = split(model, waves())
    cut.taps  # noqa: B018  located before passes are counted
    cut.statements(["body.up", "body"])
    behind = len(BEHIND)
    seen: list[torch.Tensor] = []
    handle = model.body.up.register_forward_hook(lambda *a: seen.append(a[2].clone()))
    found = cut.read(waves(), ["body.up", "body"])
    assert len(seen) == 1 and len(BEHIND) == behind
    handle.remove()
    assert list(found) == ["body.up", "body"]
    with torch.no_grad():
        assert torch.equal(found["body"], model.eval().body(waves()))
        assert torch.equal(found["body.up"], model.body.up(waves()))
    assert torch.equal(cut.read(waves(), ["prelogits"])["prelogits"], cut.prelogits(waves()))
    with pytest.raises(TapError, match="nowhere"):
        cut.read(waves(), ["nowhere"])
    with pytest.raises(UsageError, match="does not accept"):
        cut.read(torch.randn(2, 3), ["body"])


def test_read_takes_the_call_that_is_meant() -> None:
    """A module that runs once for each step: the last one, however long the input is."""
    torch.manual_seed(0)

    def steps(m: Any, h: torch.Tensor) -> torch.Tensor:
        return torch.stack([m.step(h[:, t]) for t in range(h.shape[1])], 1).mean(1)

    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Then(Frames(), steps, step=nn.Linear(D, D))
            self.fc = fc()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.inner(x))

    model = Stepped().eval()
    cut = split(model, waves())
    for x in (waves(), torch.cat([waves(), waves()], 1), waves()[:, :5]):
        with torch.no_grad():
            wanted = model.inner.step(model.inner.body(x)[:, -1])
        for _ in range(2):
            assert torch.equal(cut.read(x, ["inner.step"])["inner.step"], wanted)


def test_an_unproved_head_gives_no_prelogits_but_other_taps() -> None:
    cut = split(built(CASES["linear"]), waves(), missing=["fc.weight"])
    with pytest.raises(HeadNotFound):
        cut.read(waves(), ["prelogits"])
    assert cut.read(waves(), ["body"])["body"].shape[0] == 2


# ---- statements


class Passes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.side, self.fc = nn.Linear(5, D), nn.Linear(D, D), nn.Linear(D, D), fc()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = self.b(torch.tanh(self.a(x)))
        self.side(b)
        return self.fc((b + self.a(x).square()).mean(1))


def test_statements_of_many_taps_share_passes() -> None:
    model = Passes()
    cut = split(model, waves())
    names = ["b", "side", "fc"]
    for name in names:
        cut.tap(name)
    counts: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: counts.append(1))
    assert cut.statements(names) == {"b": "partial", "side": "unused", "fc": "sufficient"}
    handle.remove()
    assert len(counts) <= 2 + len(names)


def test_a_pooler_inside_of_the_base_model_is_no_reason_to_call_its_states_unused() -> None:
    """BERT's base model returns hidden states and what its pooler made of them."""
    model, inputs = sweep.build_transformers(sweep.TEXT, "bert")
    assert split(model, inputs).statement("backbone") == "sufficient"
    model, inputs = sweep.build_transformers(sweep.TEXT, "bart")
    found = split(model, inputs).statements(["layer:0", "backbone"])
    assert found == {"layer:0": "partial", "backbone": "sufficient"}


def test_no_power_no_statement() -> None:
    model = built(CASES["no power"])
    cut = split(model, CASES["no power"].inputs())
    assert set(cut.statements(["body"]).values()) == {"not proved"}


def graph_of(parts: str, *weights: tuple[str, tuple[int, ...]]) -> GraphCut:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[n,6,5] x) => (float[n,k] y) {{{parts}}}'
    )
    for name, shape in weights:
        value = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    feeds = [{"x": random.standard_normal((1, 6, 5)).astype(np.float32)} for _ in range(3)]
    return GraphCut(OnnxGraph(model), "y", "y", feeds)


def test_statements_of_a_graph() -> None:
    cut = graph_of(
        """
        a = MatMul(x, A)
        b = Tanh(a)
        c = MatMul(b, B)
        left, right = Split<axis = 2>(c)
        d = Mul(left, right)
        e = ReduceMean<axes = [1], keepdims = 0>(d)
        y = MatMul(e, C)
        """,
        ("A", (5, 8)), ("B", (8, 80)), ("C", (40, 7)),
    )  # fmt: skip
    assert cut.certificate.ok, cut.certificate
    taps = [cut.tap(name, name) for name in ("a", "b", "left", "d", "e")]
    assert state_graph(cut, taps) == {
        "a": "sufficient", "b": "sufficient", "left": "partial", "d": "sufficient",
        "e": "sufficient",
    }  # fmt: skip


def test_sessions_share_weights_and_give_the_same() -> None:
    onnx, onnxruntime = map(pytest.importorskip, ("onnx", "onnxruntime"))
    cut = graph_of(
        "a = MatMul(x, A)\n b = Tanh(a)\n e = ReduceMean<axes = [1], keepdims = 0>(b)\n"
        "y = MatMul(e, C)",
        ("A", (5, 600)), ("C", (600, 7)),
    )  # fmt: skip
    shared = cut.graph.parts.session(["y", "b"])
    assert isinstance(cut.graph, OnnxGraph)
    model = onnx.ModelProto.FromString(cut.graph.parts.model.SerializeToString())
    model.graph.output.append(onnx.ValueInfoProto(name="b"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    whole = onnxruntime.InferenceSession(model.SerializeToString(), options)
    expected = whole.run(["y", "b"], {"x": cut.examples[0]["x"]})
    for one, other in zip(shared(cut.examples[0]), expected, strict=True):
        np.testing.assert_array_equal(one, other)


# ---- penult inspect


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two clips of one length, and a longer one."""
    folder = tmp_path_factory.mktemp("two")
    for number, seconds in enumerate((0.5, 0.5, 0.9)):
        soundfile.write(folder / f"{number}.wav", clip(seconds, number), RATE)
    return [folder / f"{number}.wav" for number in range(3)]


def statements_in(facts: Any) -> dict[str, str | None]:
    return {tap["name"]: tap["statement"] for tap in facts["taps"]}


def test_inspect_says_what_the_logits_need(tiny: Path) -> None:
    said = ask("inspect", tiny)
    assert said.code == 0 and "synthetic input" in said.out
    assert "sufficient: the logits depend on this tap alone" in said.out
    assert "… 1 more" in said.out
    facts = ask("inspect", tiny, "--json").json
    assert statements_in(facts) == {
        "backbone": "sufficient", "prelogits": "sufficient", "layer:0": "sufficient",
        "layer:1": None, "layer:2": "sufficient",
    }  # fmt: skip
    assert facts["head"]["proved_on"] is None and facts["notes"] == []
    facts = ask("inspect", tiny, "--json", "--all-taps").json
    assert None not in statements_in(facts).values()
    assert "… 1 more" not in ask("inspect", tiny, "--all-taps").out
    # A layer that is named is measured, too, and a module is listed beside the named taps.
    facts = ask("inspect", tiny, "--tap", "layer:1", "--tap", "projector", "--json").json
    found = statements_in(facts)
    assert found["layer:1"] == found["projector"] == "sufficient"
    said = ask("inspect", tiny, "--tap", "projector")
    assert "output of projector" in said.out


def test_inspect_verifies_on_files(tiny: Path, two: list[Path]) -> None:
    said = ask("inspect", tiny, "--verify", two[0])
    assert said.code == 0 and f"measured on {two[0]}\n" in said.out
    said = ask("inspect", tiny, "--verify", two[0], "--verify", two[1])
    assert f"measured on {two[0]} and {two[1]}\n" in said.out and "the two given" in said.out
    facts = ask("inspect", tiny, "--verify", two[0], "--verify", two[1], "--json").json
    assert facts["head"]["proved_on"] == [str(two[0]), str(two[1])]
    assert facts["head"]["certificate"]["ok"]
    facts = ask("inspect", tiny, "--verify", two[0], "--verify", two[2], "--json").json
    assert facts["head"]["proved_on"] == [str(two[0])]
    assert "another shape" in facts["notes"][0]


def test_what_verify_does_not_take(tiny: Path, two: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_text("no sound")
    for files, says in (
        ([tmp_path / "none.wav"], "no such file"),
        ([tmp_path / "bad.wav"], "not readable as audio"),
        (two, "one or two files, and was given 3"),
    ):
        said = ask("inspect", tiny, *(part for file in files for part in ("--verify", file)))
        assert said.code == 2 and says in said.error and said.out == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--head", "nowhere"], "no module of that name"),
        (["--tap", "nowhere"], "no tap 'nowhere'"),
        (["--output", "nowhere"], "no float tensor of what the model returned"),
    ],
)
def test_what_is_not_there(tiny: Path, options: list[str], says: str) -> None:
    said = ask("inspect", tiny, *options)
    assert said.code == 2 and says in said.error


FACTORY = '''
import torch
from torch import nn

class Encoder(nn.Module):
    """What it returns was normalised: no scores, so the head is refused until it is named."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 8, 9, stride=4)
        self.up = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x):
        h = torch.relu(self.conv(x[:, None])).mean(-1)
        return self.norm(self.up(h))

def encoder():
    torch.manual_seed(0)
    return Encoder()

class Named(nn.Module):
    """The library says that another layer is its classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 8, 9, stride=4)
        self.fc, self.other = nn.Linear(8, 5), nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x[:, None])).mean(-1) * 20)

    def get_classifier(self):
        return self.other

def named():
    torch.manual_seed(0)
    return Named()
'''


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[object]]:
    (tmp_path / "inspected_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)

    def arguments(name: str) -> list[object]:
        import inspected_factory

        weights = tmp_path / f"{name}.pt"
        torch.save(getattr(inspected_factory, name)().state_dict(), weights)
        return [f"inspected_factory:{name}", "--checkpoint", weights, "--sample-rate", RATE]

    return arguments


def test_a_refused_head_can_be_named(factory: Callable[[str], list[object]]) -> None:
    asked = factory("encoder")
    said = ask("inspect", *asked)
    assert said.code == 0 and "head not proved" in said.out and "--head" in said.out
    assert "head=" not in said.out
    facts = ask("inspect", *asked, "--head", "up", "--json").json
    assert facts["head"]["certificate"]["ok"], facts["head"]
    assert facts["head"]["last_weight_layers"] == ["up"]
    assert statements_in(facts)["prelogits"] == "sufficient"


def test_inspect_says_where_the_library_disagrees(factory: Callable[[str], list[object]]) -> None:
    asked = factory("named")
    remark = "get_classifier() names other; the head that was found is fc"
    assert remark in ask("inspect", *asked).out
    assert ask("inspect", *asked, "--json").json["head"]["remark"] == remark


def test_an_architecture_without_weights() -> None:
    pytest.importorskip("torchvision")
    for options, says in (
        ([], "published weights cannot be fetched: random weights, nothing here is trained"),
        (["--random"], "random weights, nothing here is trained"),
    ):
        said = ask("inspect", "torchvision:squeezenet1_1", "--depth", 1, *options)
        assert said.code == 0
        assert f"note {says}\n" in said.out and "features Sequential" in said.out
        assert "head not proved: random weights" in said.out
    facts = ask("inspect", "torchvision:squeezenet1_1", "--json").json
    assert facts["notes"] and not facts["head"]["certificate"]["ok"]
    # Only to look at: nothing is computed with weights that nobody trained.
    assert ask("classify", "torchvision:squeezenet1_1", "a.png").code == 2
    said = ask("inspect", "torchvision:no_such_model")
    assert said.code == 2 and "no classifier 'no_such_model'" in said.error


def test_timm_without_weights() -> None:
    pytest.importorskip("timm")
    said = ask("inspect", "timm:convnext_atto", "--random", "--depth", 1)
    assert said.code == 0 and "random weights" in said.out and "head.fc" in said.out


# ---- real weights


def test_the_keyword_transformer(shared: Path, tmp_path: Path) -> None:
    model = shared / "w_kwt1" / "kwt1.onnx"
    said = ask("inspect", model)
    assert said.code == 0 and "12 × block" in said.out and "head proved" in said.out
    clips = sorted((shared / "kws_words" / "words").glob("*.wav"))[:2]
    options = ["--sample-rate", RATE, "--verify", clips[0], "--verify", clips[1]]
    facts = ask("inspect", model, *options, "--json", "--all-taps").json
    assert facts["head"]["certificate"]["ok"]
    assert facts["head"]["proved_on"] == [str(path) for path in clips]
    found = statements_in(facts)
    assert set(found.values()) == {"sufficient"} and len(found) == 15
    for options, says in (
        (["--verify", clips[0]], "--sample-rate"),
        (["--head", "x"], "an ONNX file has tensors and no modules"),
        (["--output", "nope"], "'nope' is no output"),
    ):
        said = ask("inspect", model, *options)
        assert said.code == 2 and says in said.error
    facts = ask("inspect", model, "--tap", "/proj/MatMul_output_0", "--json").json
    assert statements_in(facts)["/proj/MatMul_output_0"] == "sufficient"


SQUEEZE = '''
import numpy as np
import torch

def caffe(image):
    """Shorter side 256, centre 227, BGR minus the channel means."""
    width, height = image.size
    scale = 256 / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), 2)
    left, top = (image.size[0] - 227) // 2, (image.size[1] - 227) // 2
    pixels = np.asarray(image.crop((left, top, left + 227, top + 227)), np.float32)[:, :, ::-1]
    return torch.from_numpy((pixels - (104, 117, 123)).astype(np.float32)).permute(2, 0, 1)
'''


@pytest.fixture
def squeezenet(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], list[Path]]:
    """What SqueezeNet's own weights are opened with, and every image, in the order of classes."""
    pytest.importorskip("torchvision")
    (tmp_path / "caffe_for_inspect.py").write_text(SQUEEZE)
    monkeypatch.syspath_prepend(tmp_path)
    with zipfile.ZipFile(shared / "imagenet_sample_1000" / "images.zip") as archive:
        names = sorted(archive.namelist())
        archive.extractall(tmp_path / "images", names)
    weights = shared / "w_squeezenet_dc" / "squeezenet1_0_dc_fp16.safetensors"
    return [str(weights), "caffe_for_inspect:caffe"], [tmp_path / "images" / n for n in names]


def test_squeezenet_is_proved_on_an_image(squeezenet: tuple[list[str], list[Path]]) -> None:
    (weights, prepare), images = squeezenet
    said = ask(
        "inspect", "torchvision:squeezenet1_0", "--checkpoint", weights, "--preprocess", prepare,
        "--verify", images[0], "--json",
    )  # fmt: skip
    facts = said.json
    assert facts["head"]["certificate"]["ok"] and facts["head"]["proved_on"] == [str(images[0])]
    assert facts["head"]["last_weight_layers"] == ["classifier.1"]
    prelogits = next(tap for tap in facts["taps"] if tap["name"] == "prelogits")
    assert prelogits["shape"] == [1, 512, 13, 13] and prelogits["statement"] == "sufficient"


@pytest.mark.slow
def test_squeezenet_on_all_images(squeezenet: tuple[list[str], list[Path]]) -> None:
    """62.5 % top-1, as measured elsewhere; a resize by another library moves a few."""
    (weights, prepare), images = squeezenet
    clf = penult.load("torchvision:squeezenet1_0", checkpoint=weights, preprocess=prepare)
    right = sum(p.index == truth for truth, p in enumerate(clf.classify(images)))
    assert len(images) == 1000
    assert 615 <= right <= 635, right
