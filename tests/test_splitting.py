"""The cut: every form of head, what is refused, and that nothing of the model is touched."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import penult
from odd_calls import CALLS
from odd_choices import CHOICES
from odd_heads import (
    CASES,
    Case,
    D,
    Encoder,
    Frames,
    K,
    RecurrentFrames,
    T,
    Then,
    fc,
    waves,
    words,
)
from odd_routes import ROUTES
from odd_scores import FORMS
from oracle import examine
from penult.errors import HeadNotFound, TapError, UsageError
from penult.tracing.certificate import Certificate
from penult.tracing.forward import relative
from penult.tracing.inputs import CallInputs, other_values
from penult.tracing.split import split

ALL = {**CASES, **FORMS, **ROUTES, **CALLS, **CHOICES}


def built(case: Case) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = case.build()
        except (AttributeError, ImportError, RuntimeError) as error:
            pytest.skip(f"this torch can't build it: {error}")
    for p in model.parameters():
        if p.ndim > 1:
            p.data.mul_(2)
    for module in model.modules():  # exported modules have no eval()
        module.training = False
    return model


@pytest.mark.parametrize("name", ALL)
def test_head_form(name: str) -> None:
    case = ALL[name]
    model, inputs = built(case), case.inputs()
    found = examine(model, inputs, weights=not case.hidden, tied=case.tied, **case.how)
    if case.refused:
        assert found.came_to == "refused" and case.refused in found.why
        assert "\n" not in found.why and len(found.why) < 500
        return
    assert found.came_to == "proved", found.why
    assert case.names is None or found.why == ", ".join(case.names)


@pytest.mark.parametrize(
    "name", ["numpy", "masked max after", "first sure exit", "counts its calls"]
)
def test_what_is_refused_gives_nothing(name: str) -> None:
    case = ALL[name]
    cut = split(built(case), case.inputs())
    for ask in (lambda: cut.prelogits(case.inputs()), lambda: cut.logits(torch.zeros(2, D))):
        with pytest.raises(HeadNotFound, match=cut.certificate.refusal[:20]):
            ask()


def linear_on(body: type[nn.Module] = Frames) -> nn.Module:
    torch.manual_seed(0)
    return Then(body(), lambda m, h: m.fc(m.drop(h).mean(1)), fc=fc(), drop=nn.Dropout(0.3))


class Passes:
    count = 0


class Counting(nn.Module):
    """Counts its own forward passes, where nothing puts the count back, and in a buffer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.passes = inner, Passes()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        self.passes.count += 1
        self.seen += 1
        return self.inner(*args, **kwargs)


COSTS = [
    "linear", "einsum", "last token by index", "conv, relu, pool", "graph net, nodes",
    "nodes mixed",
    "first sure exit, never taken", "values looked at", "categories and numbers",
    "class activation maps", "one sample, squeezed", "windows in the batch", "running mean",
]  # fmt: skip


@pytest.mark.parametrize("name", COSTS)
def test_locating_and_proving_take_no_more_than_thirteen_forward_passes(name: str) -> None:
    model = Counting(built(ALL[name]))
    cut = split(model, ALL[name].inputs(), **ALL[name].how)
    assert not cut.certificate.ok or model.passes.count >= 6
    assert model.passes.count <= 13


@pytest.mark.parametrize("reads", ["a boolean", "a number"])
def test_branches_are_inverted_once_unless_a_number_is_read(reads: str) -> None:
    """A number is replaced by a large and by a small one, in two passes; a boolean has one other
    value."""

    def after(m: nn.Module, h: torch.Tensor) -> torch.Tensor:
        loud = float(h.max()) > 1e3 if reads == "a number" else bool((h > 1e3).any())
        return m.fc(h.mean(1).clone() if loud else h.mean(1))

    plain = Counting(built(CASES["linear"]))
    branching = Counting(Then(Frames(), after, fc=fc()))
    first, second = split(plain, waves()).certificate, split(branching, waves()).certificate
    assert first.ok and second.ok, second
    more = 1 if reads == "a boolean" else 2
    assert branching.passes.count == plain.passes.count + more
    assert [check.name for check in second.checks].count("control flow") == more
    assert "control flow" not in {check.name for check in first.checks}


@pytest.mark.parametrize("shape", ["batch", "length"])
def test_what_goes_around_a_linear_head_for_other_shapes_alone_is_found(shape: str) -> None:
    """The example and another input of its shape keep the law."""

    def around(x: torch.Tensor) -> bool:
        return len(x) == 3 if shape == "batch" else x.shape[1] != T

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = Frames(), fc()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.fc(self.body(x).mean(1))
            return y + x.mean((1, 2))[:, None] if around(x) else y

    torch.manual_seed(0)
    certificate = split(Around().eval(), waves()).certificate
    assert not certificate.ok
    assert "around the head (fc)" in certificate.refusal
    assert ("batch 3" if shape == "batch" else "another length") in certificate.refusal


def test_the_model_is_left_as_it_was() -> None:
    model = Counting(linear_on())
    model.inner.drop.eval()  # flags that differ from module to module
    model.inner.body.up.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    random = torch.get_rng_state()
    x = waves()
    kept = x.clone()
    cut = split(model, x)
    cut.logits(cut.prelogits(x))
    cut.statement("inner.body")
    assert str(cut).startswith("head: inner.fc")
    assert [module.training for module in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == grads
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(x, kept)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_logits_remember_nothing() -> None:
    model = built(CASES["last token by index"])
    first, second = words(), other_values(CallInputs.of(words()), seed=4).kwargs
    cut = split(model, first)
    z = cut.prelogits(first)
    alone = cut.logits(z)
    cut.prelogits(second)
    cut.logits(cut.prelogits(second))
    assert torch.equal(cut.logits(z), alone)
    assert torch.equal(split(model, second).logits(z), alone)  # nor anything of the example
    kept = z.clone()
    cut.logits(z)
    assert torch.equal(z, kept)


def test_logits_follow_the_weights_as_they_are_now() -> None:
    model = built(CASES["linear"])
    cut = split(model, waves())
    with torch.no_grad():
        model.fc.weight.mul_(2)
        model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)
        expected = model(waves())
    assert relative(cut.logits(cut.prelogits(waves())), expected) <= 1e-5


def test_every_check_is_named_with_its_figure() -> None:
    certificate = split(built(CASES["last token by index"]), words()).certificate
    names = {check.name for check in certificate.checks}
    assert names == {
        "weights loaded", "same twice", "power", "interchange", "closed form", "round trip",
        "held out", "same afterwards",
    }  # fmt: skip
    notes = {check.note for check in certificate.checks if check.name == "round trip"}
    assert notes == {"other values", "batch 3 and another mask", "batch 1 and another length"}
    unfitted = [check.note for check in certificate.checks if check.name == "held out"]
    assert unfitted == ["batch 5 and a further length", "batch 17 and a further length"]
    assert certificate.power >= 1000 and certificate.max_error <= 1e-5


@pytest.mark.parametrize("name", ["linear", "numpy", "no power"])
def test_a_certificate_survives_json(name: str) -> None:
    certificate = split(built(CASES[name]), CASES[name].inputs()).certificate
    text = json.dumps(certificate.to_dict(), allow_nan=False)
    again = Certificate.from_dict(json.loads(text))
    assert again.to_dict() == certificate.to_dict()
    assert str(again) == str(certificate)


def test_weights_that_were_not_loaded_are_no_proof() -> None:
    model = built(CASES["linear"])
    cut = split(model, waves(), missing=["fc.weight"])
    assert not cut.certificate.ok
    assert "fc.weight" in cut.certificate.refusal
    assert split(model, waves(), missing=["something.else"]).certificate.ok


def _raising(_: torch.Tensor) -> torch.Tensor:
    raise KeyError("no such key")


def test_what_cannot_be_asked_is_one_sentence() -> None:
    model = built(CASES["linear"])
    tasks = built(CASES["two tasks"])
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(K))
    exported = torch.export.export(nn.Linear(5, K), (waves(),))
    for ask, *said in (
        (lambda: split("model.pt", waves()), "not str", "penult.load"),
        (lambda: split(Path("model.pkl"), waves()), "Path", "penult.load"),
        (lambda: split(b"pickle", waves()), "not bytes", "penult.load"),
        (lambda: split(model.state_dict(), waves()), "not OrderedDict", "build the model"),
        (lambda: split(nn.Linear, waves()), "instance"),
        (lambda: split(exported, waves()), ".module()"),
        (lambda: split(lambda x: x, waves()), "not function"),
        (lambda: split(lazy, waves()), "1.weight", "call the model once"),
        (lambda: split(model, ()), "no tensor but nothing"),
        (lambda: split(model, None), "no tensor but NoneType"),
        (lambda: split(model, waves().numpy()), "no tensor but ndarray"),
        (lambda: split(model, waves()[:0]), "is empty, (0, 12, 5)"),
        (lambda: split(model, torch.rand(3, 5).to_sparse()), "sparse"),
        (lambda: split(model, torch.randn(2, 3)), "does not accept", "(2, 3)"),
        (lambda: split(model, (waves(), waves())), "does not accept", "3 were given"),
        (lambda: split(model, {"nonsense": waves()}), "does not accept", "nonsense"),
        (lambda: split(model, waves().half()), "does not accept", "Half and Float"),
        (lambda: split(Then(nn.Identity(), lambda m, h: _raising(h)), waves()), "no such key"),
        (lambda: split(tasks, waves()), "output=", "a (2, 7), b (2, 7)"),
        (lambda: split(tasks, waves(), output="c"), "'c'", "['a', 'b']"),
        (lambda: split(tasks, waves(), output=5), "5"),
        (lambda: split(model, waves(), head="nowhere"), "nowhere"),
        (lambda: split(model.to("meta"), waves()), "meta"),
    ):
        with pytest.raises(UsageError) as caught:
            ask()
        assert all(words in str(caught.value) for words in said), caught.value
        assert "\n" not in str(caught.value)


NO_CLASSIFIERS: dict[str, tuple[nn.Module, str]] = {
    "identity": (nn.Identity(), "no layer with weights"),
    "softmax": (nn.Softmax(-1), "no layer with weights"),
    "encoder of frames": (RecurrentFrames(), "head="),
    "transformer encoder": (Encoder(), "encoder"),
    "table": (nn.Sequential(Frames(), nn.LayerNorm(D)), "encoder"),
}


@pytest.mark.parametrize("name", NO_CLASSIFIERS)
def test_a_module_without_a_classifier_is_refused_in_a_sentence(name: str) -> None:
    model, said = NO_CLASSIFIERS[name]
    refusal = split(model, waves()).certificate.refusal
    assert said in refusal and "head=" in refusal and "\n" not in refusal


def test_a_model_in_train_mode_is_cut_as_it_is_in_eval_mode() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(T * 5, D), nn.BatchNorm1d(D), nn.Dropout(0.5))
    model = nn.Sequential(*body, fc()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = split(model, waves(4))
    assert cut.certificate.ok and cut.head.names == ["4"]
    z = cut.prelogits(waves(4))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())
    assert relative(cut.logits(z), model.eval()(waves(4)).detach()) <= 1e-5


def test_python_attributes_are_left_as_they_were() -> None:
    model = ROUTES["remembers its weights"].build()
    cut = split(model, waves())
    assert cut.certificate.ok and model.cache is None and model.calls == 0
    kept = model.kept = []
    assert split(model, waves()).certificate.ok and model.kept is kept


def test_logits_write_to_no_weight() -> None:
    model = CALLS["trained for quantisation"].build()
    cut = split(model, waves())
    z = cut.prelogits(waves())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut.logits(10 * z)
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.state_dict().items())


def test_foreign_prelogits_are_refused() -> None:
    cut = split(built(CASES["linear"]), waves())
    with pytest.raises(UsageError, match="does not accept this input"):
        cut.prelogits(torch.randn(2, 3))
    for z in (torch.randn(2, D + 1), torch.randn(2, 3, D), (torch.randn(2, D),) * 2):
        with pytest.raises(UsageError):
            cut.logits(z)


class Mixed(nn.Module):
    """A backbone of two layers; the head reads a learned mix of both, or the last alone."""

    def __init__(self, mix: bool) -> None:
        super().__init__()
        self.a, self.b, self.side = nn.Linear(5, D), nn.Linear(D, D), nn.Linear(D, D)
        self.w = nn.Parameter(torch.tensor([0.3, 0.9]))
        self.mix, self.fc = mix, fc()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.tanh(self.a(x))
        b = torch.tanh(self.b(a))
        self.side(b)
        states = torch.stack([a, b])
        h = (self.w.softmax(0)[:, None, None, None] * states).sum(0) if self.mix else b
        return self.fc(h.mean(1))


def test_every_other_tap_gets_a_measured_statement() -> None:
    torch.manual_seed(0)
    plain, mixed = split(Mixed(False), waves()), split(Mixed(True), waves())
    assert plain.statement("b") == "sufficient"
    assert mixed.statement("b") == "partial"
    assert mixed.statement("a") == "sufficient"
    assert mixed.statement("side") == "unused"
    with pytest.raises(TapError):
        plain.statement("nowhere")


@pytest.mark.parametrize("mix", [False, True])
def test_a_mix_of_layers_makes_the_last_hidden_states_partial(mix: bool) -> None:
    transformers = pytest.importorskip("transformers")
    import tiny_configs
    from sweep import rouse

    config = tiny_configs.make_config("wav2vec2", {"use_weighted_layer_sum": mix})
    torch.manual_seed(0)
    model = rouse(transformers.Wav2Vec2ForSequenceClassification(config))
    x = {"input_values": torch.randn(1, 2400, generator=torch.Generator().manual_seed(0))}
    cut = split(model, x)
    assert cut.certificate.ok
    assert cut.statement("backbone") == ("partial" if mix else "sufficient")
    assert ("weighted" in cut.taps) is mix


def test_split_is_what_penult_exports() -> None:
    assert penult.split is split
    assert K == 7


class Checking(nn.Module):
    """Looks at its input, and takes no other way for it; or another head for loud ones."""

    def __init__(self, other: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.fc = nn.Linear(6, 8), nn.Linear(8, 5)
        self.loud = nn.Linear(8, 5) if other else self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.body(x))
        head = self.loud if x.abs().max() > 1000 else self.fc
        return head(h)  # type: ignore[no-any-return]


def test_branches_on_tensor_values_are_a_check_of_their_own() -> None:
    cut = penult.split(Checking(other=False).eval(), torch.randn(3, 6))
    assert cut.certificate.ok, cut.certificate
    assert "  ok control flow 0: branches on tensor values inverted" in str(cut.certificate)
    assert "control flow" in {check["name"] for check in cut.certificate.to_dict()["checks"]}
    refused = penult.split(Checking(other=True).eval(), torch.randn(3, 6)).certificate
    assert not refused.ok
    assert "branches on tensor values (in the model) decide how the scores" in refused.refusal


def test_a_certificate_with_the_name_of_old_is_read() -> None:
    cut = penult.split(Checking(other=False).eval(), torch.randn(3, 6))
    text = json.dumps(cut.certificate.to_dict()).replace("control flow", "decided otherwise")
    again = Certificate.from_dict(json.loads(text))
    assert again.ok and "decided otherwise" in str(again)
