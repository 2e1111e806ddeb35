"""The cut: every form of head, what is refused, and that nothing of the model is touched."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn

import penult
from odd_heads import CASES, Case, D, Frames, K, Then, fc, waves, words
from penult.errors import HeadNotFound, TapError, UsageError
from penult.splitting.certificate import Certificate
from penult.splitting.cut import split
from penult.splitting.head import logits_of
from penult.splitting.running import relative
from penult.splitting.variants import Inputs, other_batch, other_lengths, other_values


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


@pytest.mark.parametrize("name", CASES)
def test_head_form(name: str) -> None:
    case = CASES[name]
    model, inputs = built(case), case.inputs()
    cut = split(model, inputs, **case.how)
    if case.refused:
        assert not cut.certificate.ok
        assert case.refused in cut.certificate.refusal
        with pytest.raises(HeadNotFound):
            cut.prelogits(inputs)
        return
    assert cut.certificate.ok, cut.certificate.refusal
    if case.names is not None:
        assert tuple(cut.head.names) == case.names
    example = Inputs.of(inputs)
    others = [example, other_values(example, seed=9), other_batch(example, 5)]
    for x in [*others, *list(other_lengths(example))[:1]]:
        with torch.no_grad():
            try:
                expected = logits_of(model(*x.args, **x.kwargs), case.how.get("output"))
            except Exception:
                continue  # the model takes one length only
        z = cut.prelogits(x.args or x.kwargs)
        assert relative(cut.logits(z), expected) <= 1e-5
        for part in z if isinstance(z, tuple) else (z,):
            assert part.shape != expected.shape or not torch.allclose(part, expected)


def linear_on(body: type[nn.Module] = Frames) -> nn.Module:
    torch.manual_seed(0)
    return Then(body(), lambda m, h: m.fc(m.drop(h).mean(1)), fc=fc(), drop=nn.Dropout(0.3))


class Counting(nn.Module):
    """Counts its own forward passes, and keeps the count in a buffer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.passes = inner, 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        self.seen += 1
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("name", ["linear", "einsum", "last token by index", "conv, relu, pool"])
def test_locating_and_proving_stay_under_twelve_forward_passes(name: str) -> None:
    model = Counting(built(CASES[name]))
    cut = split(model, CASES[name].inputs())
    assert cut.certificate.ok
    assert model.passes < 12


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
    first, second = words(), other_values(Inputs.of(words()), seed=4).kwargs
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
    }  # fmt: skip
    notes = {check.note for check in certificate.checks if check.name == "round trip"}
    assert notes == {"other values", "batch 3 and another mask", "batch 1 and another length"}
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


def test_what_cannot_be_asked_is_one_sentence() -> None:
    model = built(CASES["linear"])
    tasks = built(CASES["two tasks"])
    for ask, said in (
        (lambda: split("model", waves()), "not str"),
        (lambda: split(model, ()), "no tensor"),
        (lambda: split(model, torch.randn(2, 3)), "does not accept"),
        (lambda: split(model, {"nonsense": waves()}), "does not accept"),
        (lambda: split(tasks, waves()), "output="),
        (lambda: split(tasks, waves(), output="c"), "'c'"),
        (lambda: split(model, waves(), head="nowhere"), "nowhere"),
        (lambda: split(model.to("meta"), waves()), "meta"),
    ):
        with pytest.raises(UsageError) as caught:
            ask()
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


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
    from test_conformance import rouse

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
