"""Cuts whose right place is known by construction: prelogits and logits in numpy, and each figure
of the certificate by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penult

B, T, C, D, K = 2, 5, 4, 6, 3
TOLERANCE, POWER = 1e-5, 1000.0
X = torch.randn(B, T, C, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(B, T, C, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """tanh of a layer over frames, then whatever `after` makes of it."""

    def __init__(self, after: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.after = nn.Linear(C, D), after
        for name, layer in layers.items():
            setattr(self, name, layer)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Any:
        return self.after(self, torch.tanh(self.up(x)), x)


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def frames(model: Net, x: Tensor = X) -> np.ndarray:
    """(B, T, D) in numpy."""
    return np.tanh(numbers(x) @ numbers(model.up.weight).T + numbers(model.up.bias))


def layer(module: nn.Module, values: np.ndarray) -> np.ndarray:
    weight, bias = numbers(module.weight), numbers(module.bias)  # type: ignore[arg-type]
    return values @ weight.reshape(len(weight), -1).T + bias


def close(found: Tensor, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(numbers(found), expected, rtol=1e-4, atol=1e-5)


def fc(wide: int = D, classes: int = K) -> nn.Linear:
    return nn.Linear(wide, classes)


def softmax(values: np.ndarray) -> np.ndarray:
    exponent = np.exp(values - values.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


# name → the net, the head's names, its prelogits and its logits from the hidden frames, in numpy
FORMS: dict[str, tuple[Callable[[], Net], list[str], Callable[..., Any], Callable[..., Any]]] = {
    "a layer on the mean": (
        lambda: Net(lambda m, h, x: m.fc(h.mean(1)), fc=fc()),
        ["fc"], lambda m, h: h.mean(1), lambda m, z: layer(m.fc, z),
    ),
    "a layer on each frame": (
        lambda: Net(lambda m, h, x: m.fc(h), fc=fc()),
        ["fc"], lambda m, h: h, lambda m, z: layer(m.fc, z),
    ),
    "frames first": (
        lambda: Net(lambda m, h, x: m.fc(h).transpose(0, 1), fc=fc()),
        ["fc"], lambda m, h: h, lambda m, z: layer(m.fc, z).transpose(1, 0, 2),
    ),
    "beside the normed": (
        lambda: Net(lambda m, h, x: (lambda z: m.a(z) + m.b(m.norm(z)))(h.mean(1)), a=fc(), b=fc(),
                    norm=nn.LayerNorm(D, elementwise_affine=False)),
        ["a", "b"], lambda m, h: h.mean(1),
        lambda m, z: layer(m.a, z) + layer(m.b, (z - z.mean(1, keepdims=True))
                                           / np.sqrt(z.var(1, keepdims=True) + 1e-5)),
    ),
    "the largest of a layer on each frame": (
        lambda: Net(lambda m, h, x: m.fc(h).max(1).values, fc=fc()),
        ["fc"], lambda m, h: h, lambda m, z: layer(m.fc, z).max(1),
    ),
    "a softmax": (
        lambda: Net(lambda m, h, x: m.fc(h.mean(1)).softmax(-1), fc=fc()),
        ["fc"], lambda m, h: h.mean(1), lambda m, z: softmax(layer(m.fc, z)),
    ),
    "a bend behind": (
        lambda: Net(lambda m, h, x: 3 * torch.tanh(m.fc(h[:, 0])), fc=fc()),
        ["fc"], lambda m, h: h[:, 0], lambda m, z: 3 * np.tanh(layer(m.fc, z)),
    ),
    "scores that a layer calibrates": (
        lambda: Net(lambda m, h, x: m.mix(m.fc(h.mean(1))), fc=fc(), mix=fc(K)),
        ["fc"], lambda m, h: h.mean(1), lambda m, z: layer(m.mix, layer(m.fc, z)),
    ),
    "a layer behind a softmax": (
        lambda: Net(lambda m, h, x: m.mix(m.fc(h.mean(1)).softmax(-1)), fc=fc(), mix=fc(K, 4)),
        ["fc"], lambda m, h: h.mean(1), lambda m, z: layer(m.mix, softmax(layer(m.fc, z))),
    ),
    "a layer of as many numbers, bent": (
        lambda: Net(lambda m, h, x: m.mix(torch.relu(m.fc(h.mean(1)))), fc=fc(), mix=fc(K)),
        ["mix"], lambda m, h: np.maximum(layer(m.fc, h.mean(1)), 0),
        lambda m, z: layer(m.mix, z),
    ),
    "a wider layer first": (
        lambda: Net(lambda m, h, x: m.mix(m.fc(h.mean(1))), fc=fc(D, 5), mix=fc(5)),
        ["mix"], lambda m, h: layer(m.fc, h.mean(1)), lambda m, z: layer(m.mix, z),
    ),
    "two layers on one thing": (
        lambda: Net(lambda m, h, x: (lambda z: m.a(z) + m.b(z) ** 2)(h.mean(1)), a=fc(), b=fc()),
        ["a", "b"], lambda m, h: h.mean(1), lambda m, z: layer(m.a, z) + layer(m.b, z) ** 2,
    ),
    "two layers on two things": (
        lambda: Net(lambda m, h, x: m.a(h.mean(1)) + m.b(h.amax(1)), a=fc(), b=fc()),
        ["a", "b"], lambda m, h: (h.mean(1), h.max(1)),
        lambda m, z: layer(m.a, z[0]) + layer(m.b, z[1]),
    ),
    "a convolution over frames": (
        lambda: Net(lambda m, h, x: m.fc(h.transpose(1, 2)).amax(2), fc=nn.Conv1d(D, K, 1)),
        ["fc"], lambda m, h: h.transpose(0, 2, 1),
        lambda m, z: layer(m.fc, z.transpose(0, 2, 1)).max(1),
    ),
    "one score": (
        lambda: Net(lambda m, h, x: m.fc(h.mean(1)).squeeze(-1), fc=fc(D, 1)),
        ["fc"], lambda m, h: h.mean(1), lambda m, z: layer(m.fc, z)[:, 0],
    ),
    "frames flattened": (
        lambda: Net(lambda m, h, x: m.fc(h.flatten(1)), fc=fc(T * D)),
        ["fc"], lambda m, h: h.reshape(B, -1), lambda m, z: layer(m.fc, z),
    ),
    "a product with features": (
        lambda: Net(lambda m, h, x: m.fc(h.mean(1)) * h.mean((1, 2))[:, None], fc=fc()),
        ["fc"], lambda m, h: h,  # which both are made from
        lambda m, z: layer(m.fc, z.mean(1)) * z.mean((1, 2))[:, None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_prelogits_and_logits_in_numpy(name: str) -> None:
    build, names, prelogits, logits = FORMS[name]
    model = build().eval()
    cut = penult.split(model, X)
    assert cut.certificate.ok, cut.certificate
    assert cut.head.names == names
    for x in (X, OTHER):
        hidden = frames(model, x)
        expected = prelogits(model, hidden)
        found = cut.prelogits(x)
        pairs = [(found, expected)] if isinstance(found, Tensor) else list(
            zip(found, expected, strict=True))  # fmt: skip
        for one, other in pairs:
            close(one, other)
        close(cut.logits(found), logits(model, expected))
        close(cut.logits(found), numbers(model(x)))


def test_a_pass_of_means_is_moved_in_front() -> None:
    """fc(h).mean(1) = fc(h.mean(1)) for a linear layer: one vector per item is what is cut."""
    model = Net(lambda m, h, x: m.fc(h).mean(1), fc=fc()).eval()
    cut = penult.split(model, X)
    z = cut.prelogits(X)
    hidden = frames(model)
    close(z, hidden if z.ndim == 3 else hidden.mean(1))
    close(cut.logits(z), layer(model.fc, hidden.mean(1)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("behind", ["mean", "first", "half of two"])
def test_frames_in_the_batch_are_taken_out_of_it(behind: str, bias: bool) -> None:
    """A head over (B · T, D) whose scores are averaged or picked: one vector per item."""

    def pick(values: Any) -> Any:
        return {"mean": values.mean(1), "first": values[:, 0],
                "half of two": (values[:, 1] + values[:, 3]) / 2}[behind]  # fmt: skip

    def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
        return pick(m.fc(h.reshape(-1, D)).reshape(len(x), -1, K))

    model = Net(after, fc=nn.Linear(D, K, bias=bias)).eval()
    cut = penult.split(model, X)
    assert cut.certificate.ok, cut.certificate
    assert cut.head.names == ["fc"]
    for x in (X, OTHER, X[:1]):
        z = cut.prelogits(x)
        assert isinstance(z, Tensor) and len(z) == len(x)
        if behind != "half of two":
            close(z, pick(frames(model, x)))
        close(cut.logits(z), numbers(model(x)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_alone(bias: bool) -> None:
    """A model of one layer: the input is its prelogits."""
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv1d(T, K, C, bias=bias), nn.Flatten()).eval()
    linear = nn.Linear(C, K, bias=bias).eval()
    for model, name in ((conv, "0"), (linear, "")):
        cut = penult.split(model, X)
        assert cut.certificate.ok, cut.certificate
        assert cut.head.names == [name] * bool(name)
        close(cut.prelogits(X), numbers(X))
        close(cut.logits(cut.prelogits(X)), numbers(model(X)))


def test_a_named_head() -> None:
    """In front of a block of two layers, or of the last one."""
    block = nn.Sequential(fc(D, 5), nn.Tanh(), fc(5))
    model = Net(lambda m, h, x: m.block(h.mean(1)), block=block).eval()
    pooled = frames(model).mean(1)
    inner = np.tanh(layer(block[0], pooled))
    for asked, names, expected in (
        ("block", ["block"], pooled), ("block.2", ["block.2"], inner), (None, ["block.2"], inner)
    ):  # fmt: skip
        cut = penult.split(model, X, head=asked)
        assert cut.certificate.ok and cut.head.names == names
        close(cut.prelogits(X), expected)
        close(cut.logits(cut.prelogits(X)), layer(block[2], inner))
    refused = penult.split(model, X, head="block.1").certificate
    assert "'block.1' has no weights that its input meets: it is no head" in refused.refusal


def test_what_one_head_is_made_from_is_no_part_of_another() -> None:
    """a(z) + b(tanh(u(z))): two stages, each with a head; but b(u(z)) is one matrix of z."""

    def after(bend: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        def both(m: Any, h: Tensor, x: Tensor) -> Tensor:
            z = h.mean(1)
            return m.a(z) + m.b(bend(m.u(z)))

        return both

    layers = {"a": fc(), "b": fc(4), "u": fc(D, 4)}
    model = Net(after(torch.tanh), **layers).eval()
    cut = penult.split(model, X)
    assert cut.certificate.ok and cut.head.names == ["a", "b"]
    z = frames(model).mean(1)
    for found, expected in zip(cut.prelogits(X), (z, np.tanh(layer(model.u, z))), strict=True):
        close(found, expected)
    straight = penult.split(Net(after(lambda z: z), **layers).eval(), X)
    assert straight.certificate.ok and straight.head.names == ["a", "b"]
    close(straight.prelogits(X), z)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = fc(), fc()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.a(one) + self.b(other)


def test_a_named_head_of_two_inputs() -> None:
    """Both are prelogits, in their order."""
    apart = Net(lambda m, h, x: m.pair(h.mean(1), h.amax(1)), pair=Pair()).eval()
    cut = penult.split(apart, X, head="pair")
    assert cut.certificate.ok
    for found, expected in zip(
        cut.prelogits(X), (frames(apart).mean(1), frames(apart).max(1)), strict=True
    ):
        close(found, expected)


@pytest.mark.parametrize("output", ["b", 1])
def test_one_of_several_outputs(output: str | int) -> None:
    def both(m: Any, h: Tensor, x: Tensor) -> Any:
        found = {"a": m.a(h.mean(1)), "b": m.b(h.amax(1))}
        return found if isinstance(output, str) else tuple(found.values())

    model = Net(both, a=fc(), b=fc()).eval()
    cut = penult.split(model, X, output=output)
    assert cut.certificate.ok and cut.head.names == ["b"]
    close(cut.prelogits(X), frames(model).max(1))
    close(cut.logits(cut.prelogits(X)), layer(model.b, frames(model).max(1)))


REFUSED: dict[str, tuple[Callable[[], Net], str]] = {
    "normed after the last weights": (
        lambda: Net(lambda m, h, x: m.norm(m.fc(h)), fc=fc(), norm=nn.LayerNorm(K)),
        "was normalised after its last weights",
    ),
    "normed and activated": (
        lambda: Net(
            lambda m, h, x: torch.relu(m.norm(m.fc(h.mean(1)))), fc=fc(), norm=nn.BatchNorm1d(K)
        ),
        "was normalised after its last weights",
    ),
    "the input meets weights at the end": (
        lambda: Net(lambda m, h, x: m.fc(h.mean(1)) + m.short(x.flatten(1)), fc=fc(),
                    short=fc(T * C)),
        "the model's input itself meets weights on a short cut to the logits",
    ),
    "no weights": (
        lambda: Net(lambda m, h, x: x.mean(1).softmax(-1)),
        "no layer with weights lies between the input and the logits; seen on the way: ",
    ),
    "constant": (
        lambda: Net(lambda m, h, x: m.fc.bias + torch.zeros(B, K), fc=fc()),
        "no recorded operation leads from the input to the logits",
    ),
    "the input around the head": (
        lambda: Net(lambda m, h, x: m.fc(h.mean(1)) * x.mean((1, 2))[:, None].exp(), fc=fc()),
        "the logits depend on input 0 also around the head (fc)",
    ),
    "not finite": (
        lambda: Net(lambda m, h, x: m.fc(h.mean(1)) * float("nan"), fc=fc()),
        "the logits are not finite",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_classifier(name: str) -> None:
    build, why = REFUSED[name]
    certificate = penult.split(build().eval(), X).certificate
    assert not certificate.ok and why in certificate.refusal
    assert certificate.power == 0 and certificate.max_error != certificate.max_error


def test_a_batch_norm_alone_is_no_encoder() -> None:
    """Scores that are normed and not activated are still scores."""
    model = Net(lambda m, h, x: m.norm(m.fc(h.mean(1))), fc=fc(), norm=nn.BatchNorm1d(K)).eval()
    cut = penult.split(model, X)
    assert cut.certificate.ok and cut.head.names == ["fc"]


def _filled(z: Tensor) -> Tensor:
    return z.masked_fill(torch.zeros(K, dtype=torch.bool), 0.0)


# Scores stay scores through whatever does not bend them, so that the layer behind calibrates them.
STRAIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda z: z.view(len(z), 1, K).view(len(z), K),
    "reshape": lambda z: z.t().reshape(K, -1).t(),
    "unsqueeze and squeeze": lambda z: z.unsqueeze(1).squeeze(1),
    "select": lambda z: torch.stack([z, z])[0],
    "slice": lambda z: torch.cat([z, z], 1)[:, :K],
    "index": lambda z: z[:, [2, 1, 0]],
    "index_select": lambda z: z.index_select(1, torch.tensor([2, 1, 0])),
    "gather": lambda z: z.gather(1, torch.tensor([[2, 1, 0]]).expand(len(z), K)),
    "permute": lambda z: z[:, None].permute(1, 0, 2)[0],
    "transpose": lambda z: z[:, None].transpose(0, 1)[0],
    "expand": lambda z: z[:, None].expand(-1, 4, -1).sum(1),
    "repeat": lambda z: z.repeat(1, 2)[:, K:],
    "cat": lambda z: torch.cat([z, 2 * z], 1)[:, K:],
    "split": lambda z: torch.cat([z, z], 1).split(K, 1)[1],
    "split by sizes": lambda z: torch.cat([z, z], 1).split([K, K], 1)[1],
    "unbind": lambda z: torch.stack([z, z], 1).unbind(1)[1],
    "clone": lambda z: z.clone(),
    "detach": lambda z: z.detach(),
    "contiguous": lambda z: z.t().contiguous().t(),
    "to another type": lambda z: z.double().float(),
    "mean": lambda z: torch.stack([z, 3 * z]).mean(0),
    "sum": lambda z: torch.stack([z, 3 * z]).sum(0),
    "add": lambda z: z + 1,
    "add_": lambda z: z.clone().add_(1),
    "sub": lambda z: z - 1,
    "rsub": lambda z: torch.rsub(z, 1),
    "mul": lambda z: z * 2,
    "mul_": lambda z: z.clone().mul_(2),
    "div": lambda z: z / 2,
    "div_": lambda z: z.clone().div_(2),
    "neg": lambda z: -z,
    "average of pairs": lambda z: F.avg_pool2d(
        z[:, :, None, None].expand(-1, -1, 2, 2), 2)[..., 0, 0],
    "average of a map": lambda z: F.adaptive_avg_pool2d(
        z[:, :, None, None].expand(-1, -1, 2, 3), 1)[..., 0, 0],
    "masked_fill": _filled,
    "masked_fill_": lambda z: z.clone().masked_fill_(torch.zeros(K, dtype=torch.bool), 0.0),
    "copy_": lambda z: torch.empty_like(z).copy_(z),
}  # fmt: skip
BENT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu, "exp": torch.exp, "tanh": torch.tanh, "square": lambda z: z * z,
    "a share": lambda z: z / z.sum(1, keepdim=True), "largest": lambda z: z.clamp(min=0.1),
    "sigmoid": torch.sigmoid, "absolute": torch.abs,
}  # fmt: skip


@pytest.mark.parametrize("name", STRAIGHT)
def test_scores_that_are_not_bent_are_scores(name: str) -> None:
    model = Net(lambda m, h, x: m.mix(STRAIGHT[name](m.fc(h.mean(1)))), fc=fc(), mix=fc(K)).eval()
    assert penult.split(model, X).head.names == ["fc"]


@pytest.mark.parametrize("name", BENT)
def test_what_is_bent_is_features(name: str) -> None:
    model = Net(lambda m, h, x: m.mix(BENT[name](m.fc(h.mean(1)))), fc=fc(), mix=fc(K)).eval()
    assert penult.split(model, X).head.names == ["mix"]


@pytest.mark.parametrize("softmax", [torch.softmax, torch.log_softmax])
@pytest.mark.parametrize("classes", [K, 4])
def test_shares_are_scores(softmax: Any, classes: int) -> None:
    def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
        return m.mix(softmax(m.fc(h.mean(1)), dim=-1))

    cut = penult.split(Net(after, fc=fc(), mix=fc(K, classes)).eval(), X)
    assert cut.head.names == ["fc"] and cut.certificate.ok


@pytest.mark.parametrize("classes", [2, 3, 9])
def test_scores_of_any_number_of_classes_are_calibrated(classes: int) -> None:
    """By a matrix over classes, or by a convolution's scores of each frame before."""

    def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
        return m.mix(m.fc(h.mean(1)))

    model = Net(after, fc=fc(D, classes), mix=fc(classes, classes)).eval()
    assert penult.split(model, X).head.names == ["fc"]
    conv = Net(
        lambda m, h, x: m.mix(m.fc(h.transpose(1, 2)).mean(2)),
        fc=nn.Conv1d(D, classes, 1), mix=fc(classes, classes),
    ).eval()  # fmt: skip
    assert penult.split(conv, X).head.names == ["fc"]
    wider = Net(
        lambda m, h, x: m.mix(m.fc(h.transpose(1, 2)).mean(2)),
        fc=nn.Conv1d(D, classes + 1, 1), mix=fc(classes + 1, classes),
    ).eval()  # fmt: skip
    assert penult.split(wider, X).head.names == ["mix"]


@pytest.mark.parametrize("classes", [2, 3])
def test_features_that_meet_weights_made_from_the_input(classes: int) -> None:
    """Both are prelogits: what the weights are made from, and what meets them."""

    def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
        made = m.gen(h.amax(1)).view(len(h), classes, D)
        return torch.bmm(made, torch.tanh(m.side(h.mean(1)))[:, :, None])[:, :, 0]

    model = Net(after, gen=fc(D, classes * D), side=fc(D, D)).eval()
    cut = penult.split(model, X)
    assert cut.certificate.ok, cut.certificate
    assert cut.head.names == ["gen"]
    hidden = frames(model)
    met = np.tanh(layer(model.side, hidden.mean(1)))
    values = [numbers(value) for value in cut.prelogits(X)]
    assert sorted(value.size for value in values) == [B * D, B * D]
    for expected in (hidden.max(1), met):
        assert any(np.allclose(v.reshape(B, D), expected, atol=1e-5) for v in values)


@pytest.mark.parametrize("returned", [True, False])
def test_what_is_returned_beside_the_logits_is_no_scores(returned: bool) -> None:
    """An embedding of as many numbers as there are classes, and a layer on it."""

    def after(m: Any, h: Tensor, x: Tensor) -> dict[str, Tensor]:
        embedding = m.fc(h.mean(1))
        found = {"logits": m.mix(embedding), "embedding": embedding}
        return found if returned else {"logits": found["logits"]}

    cut = penult.split(Net(after, fc=fc(), mix=fc(K)).eval(), X)
    assert cut.certificate.ok
    assert cut.head.names == (["mix"] if returned else ["fc"])


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros_like": torch.zeros_like,
    "ones_like": torch.ones_like,
    "full_like": lambda v: torch.full_like(v, 0.5),
    "empty_like": lambda v: torch.empty_like(v).fill_(2.0),
    "new_zeros": lambda v: v.new_zeros(v.shape),
    "new_ones": lambda v: v.new_ones(v.shape),
    "new_full": lambda v: v.new_full(v.shape, 0.5),
    "new_empty": lambda v: v.new_empty(v.shape).fill_(2.0),
    "zero_": lambda v: v.clone().zero_(),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("bend", ["not bent", "tanh"])
def test_what_has_only_the_inputs_shape_is_nothing_of_the_input(name: str, bend: str) -> None:
    """Made from the input around the head; no number of it is in there."""

    def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
        scores = m.fc(h.mean(1)) + SHAPES[name](x[:, 0, :K])
        return torch.tanh(scores) if bend == "tanh" else scores

    model = Net(after, fc=fc()).eval()
    cut = penult.split(model, X)
    assert cut.certificate.ok and cut.head.names == ["fc"], cut.certificate.refusal
    close(cut.prelogits(X), frames(model).mean(1))
    scores = layer(model.fc, frames(model).mean(1)) + numbers(SHAPES[name](X[:, 0, :K]))
    close(cut.logits(cut.prelogits(X)), np.tanh(scores) if bend == "tanh" else scores)


VIEWED: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "view": lambda x: x.view(len(x), -1),
    "reshape": lambda x: x.reshape(len(x), -1),
    "permute": lambda x: x.permute(0, 2, 1),
    "transpose": lambda x: x.transpose(1, 2),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "detach": lambda x: x.detach(),
    "expand": lambda x: x[:, None].expand(-1, 2, -1, -1),
}


@pytest.mark.parametrize("name", VIEWED)
def test_the_input_in_any_view_is_the_input(name: str) -> None:
    short = fc(VIEWED[name](X).shape[-1])

    def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
        return m.fc(h.mean(1)) + m.short(VIEWED[name](x)).reshape(len(x), -1, K).mean(1)

    certificate = penult.split(Net(after, fc=fc(), short=short).eval(), X).certificate
    assert "the model's input itself meets weights" in certificate.refusal


@pytest.mark.parametrize("norm", [nn.LayerNorm(K), nn.GroupNorm(1, K)])
def test_features_that_were_normed_are_no_scores(norm: nn.Module) -> None:
    certificate = penult.split(
        Net(lambda m, h, x: m.norm(m.fc(h.mean(1))), fc=fc(), norm=norm).eval(), X
    ).certificate
    assert "was normalised after its last weights (aten." in certificate.refusal
    assert "look like features of an encoder" in certificate.refusal


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), nn.SiLU(), nn.SiLU(inplace=True), nn.Hardswish(),
    nn.Hardtanh(), nn.LeakyReLU(), nn.LeakyReLU(inplace=True), nn.ELU(), nn.Mish(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_batch_norm_and_activation_are_an_encoders_end(activation: nn.Module) -> None:
    def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
        return m.act(m.norm(m.fc(h.mean(1))))

    layers = {"fc": fc(), "norm": nn.BatchNorm1d(K), "act": activation}
    certificate = penult.split(Net(after, **layers).eval(), X).certificate
    assert "was normalised after its last weights" in certificate.refusal
    plain = Net(lambda m, h, x: m.act(m.fc(h.mean(1))), fc=fc(), act=activation).eval()
    assert "normalised" not in penult.split(plain, X).certificate.refusal


def test_where_no_other_input_can_be_made() -> None:
    """A model that takes one content only: no power, and why."""

    def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
        if not torch.equal(x.detach(), X):
            raise RuntimeError("no such content")
        return m.fc(h.mean(1))

    refused = penult.split(Net(after, fc=fc()).eval(), X).certificate
    assert "no other input could be made: no such content" in refused.refusal

    def late(m: Any, h: Tensor, x: Tensor) -> Tensor:
        if float(x.detach().numpy().std()) > 2:  # the bolder second try
            raise RuntimeError("too loud")
        return m.fc(h.mean(1))

    assert penult.split(Net(late, fc=fc()).eval(), X).certificate.ok


def test_a_head_is_one_module_of_several_names() -> None:
    """Parametrised weights belong to their module, tied tables to no one but who runs them."""
    head = torch.nn.utils.parametrizations.weight_norm(fc())
    cut = penult.split(Net(lambda m, h, x: m.fc(h.mean(1)), fc=head).eval(), X)
    assert cut.certificate.ok and cut.head.names == ["fc"]
    direct = Net(lambda m, h, x: F.linear(h.mean(1), m.box.weight, m.box.bias), box=fc()).eval()
    assert penult.split(direct, X).head.names == ["box"]
    inner = nn.Module()
    inner.table = nn.Parameter(torch.zeros(K, D))
    nested = Net(lambda m, h, x: F.linear(h.mean(1), m.inner.table), inner=inner).eval()
    assert penult.split(nested, X).head.names == ["inner"]


# ---- the certificate's figures


def figures(certificate: Any) -> dict[str, float]:
    """The largest figure of each check, by its name."""
    found: dict[str, float] = {}
    for check in certificate.checks:
        if check.figure is not None:
            found[check.name] = max(check.figure, found.get(check.name, 0.0))
    return found


def test_power_by_hand() -> None:
    """The largest change between two given inputs, in tolerances of the first's largest logit."""
    model = Net(lambda m, h, x: m.fc(h.mean(1)), fc=fc()).eval()
    one, other = numbers(model(X)), numbers(model(OTHER))
    expected = np.abs(other - one).max() / np.abs(one).max() / TOLERANCE
    certificate = penult.split(model, X, other_inputs=OTHER).certificate
    assert certificate.ok and certificate.power == pytest.approx(expected, rel=1e-4)
    assert figures(certificate)["power"] == certificate.power
    notes = {check.name: check.note for check in certificate.checks}
    assert notes["power"] == "tolerances between the logits of the two given inputs"
    assert notes["weights loaded"] == "4 tensors lead to the logits, 0 not loaded"


def test_two_inputs_that_are_too_alike_prove_nothing() -> None:
    """A given second input at 900 tolerances is not enough; those that are made up are."""
    model = Net(lambda m, h, x: m.fc(h.mean(1)), fc=fc()).eval()
    certificate = penult.split(model, X, other_inputs=X + 1e-7).certificate
    assert certificate.ok and certificate.power >= POWER
    notes = {check.name: check.note for check in certificate.checks}
    assert notes["power"] == "tolerances between the logits of two inputs"
    flat = Net(lambda m, h, x: m.fc(1e-4 * h.mean(1)) + 1, fc=fc()).eval()
    nn.init.zeros_(flat.fc.bias)
    refused = penult.split(flat, X).certificate
    assert (
        not refused.ok and "not proved: two clearly different inputs differ by" in refused.refusal
    )
    (power,) = [check for check in refused.checks if check.name == "power"]
    assert 0 < (power.figure or 0) < POWER and not power.passed
    assert f"differ by {power.figure:.0f} tolerances" in refused.refusal


@pytest.mark.parametrize(("power", "enough"), [(1100, True), (1900, True), (900, False)])
def test_a_thousand_tolerances_are_needed(power: float, enough: bool) -> None:
    """A second input that differs by so much: taken, or others are made up."""
    model = Net(lambda m, h, x: m.fc(h.mean(1)), fc=fc()).double().eval()
    x, other = X.double(), OTHER.double()
    largest = model(x).detach().abs().max()

    def power_at(share: float) -> float:
        moved = model(x + share * (other - x)) - model(x)
        return float(moved.detach().abs().max() / largest) / TOLERANCE

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power_at(middle) > power else (middle, high)
    given = x + high * (other - x)
    certificate = penult.split(model, x, other_inputs=given).certificate
    assert certificate.ok
    (check,) = [check for check in certificate.checks if check.name == "power"]
    if enough:
        assert certificate.power == pytest.approx(power, rel=1e-3)
        assert check.note.endswith("the two given inputs")
    else:
        assert certificate.power > 1000 and check.note.endswith("of two inputs")


def test_scores_that_are_ruled_out_by_the_input_are_no_power() -> None:
    """Minus infinity for another class with every input: what differs is not a number."""

    def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
        unseen = torch.from_numpy(x.detach().numpy()[:, 0, :K] > 0)
        return m.fc(h.mean(1)).masked_fill(unseen, -torch.inf)

    refused = penult.split(Net(after, fc=fc()).eval(), X).certificate
    assert not refused.ok
    assert "differ by inf tolerances" in refused.refusal


def test_advice_is_given_once() -> None:
    """The head's name helps where a head was not found, and is not asked for elsewhere."""
    model = Net(lambda m, h, x: m.fc(h.mean(1)), fc=fc()).eval()
    refused = penult.split(model, X, missing=["fc.weight"]).certificate.refusal
    assert refused == (
        "fc.weight on the way to the logits was not loaded: the scores are random; name the module "
        "that is the head (head=), or read the model at another tap"
    )
    three = ["fc.weight", "fc.bias", "up.bias"]
    refused = penult.split(model, X, missing=three).certificate.refusal
    assert refused.startswith("fc.bias, fc.weight, up.bias on the way")
    encoder = Net(lambda m, h, x: m.norm(m.fc(h.mean(1))), fc=fc(), norm=nn.LayerNorm(K)).eval()
    assert penult.split(encoder, X).certificate.refusal.count("head=") == 1
    flat = Net(lambda m, h, x: m.fc(1e-4 * h.mean(1)) + 100, fc=fc()).eval()
    refused = penult.split(flat, X).certificate.refusal
    assert refused.endswith("that the model tells apart, or check its weights")
    nan = Net(lambda m, h, x: m.fc(h.mean(1)) * float("nan"), fc=fc()).eval()
    assert "head=" not in penult.split(nan, X).certificate.refusal


def test_inputs_that_the_model_refuses_are_not_held_against_it() -> None:
    """Two of another batch and length: of a fixed length, and of a fixed batch too."""

    def strict(m: Any, h: Tensor, x: Tensor) -> Tensor:
        if x.shape != X.shape:
            raise RuntimeError("two items of five frames")
        return m.fc(h.mean(1))

    for model, refusals in (
        (Net(lambda m, h, x: m.fc(h.flatten(1)), fc=fc(T * D)), 0),
        (Net(strict, fc=fc()), 2),
    ):
        certificate = penult.split(model.eval(), X).certificate
        assert certificate.ok
        trips = [check for check in certificate.checks if check.name == "round trip"]
        assert len(trips) == 3 and all(check.passed for check in trips)
        without = [check for check in trips if check.figure is None]
        assert len(without) == refusals
        assert all(one.note.endswith("not applicable, the model refuses it") for one in without)


def test_what_enters_the_head_has_another_shape_for_the_other_input() -> None:
    """As many frames as the input says: those of another one do not fit."""

    def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
        chosen = h[:, : int((x.detach().numpy()[:, :, 0] > 0).sum())]
        return m.fc(chosen).view(len(h), chosen.shape[1], K).amax(1)

    x, other = X.clone(), X.clone() + 1
    x[:, :, 0], other[:, :, 0] = -1, -1
    x[0, :2, 0], other[0, :4, 0] = 1, 1
    refused = penult.split(Net(after, fc=fc()).eval(), x, other_inputs=other).certificate
    assert not refused.ok
    assert "with the head's input exchanged the logits are off by inf" in refused.refusal


def test_missing_weights_are_counted() -> None:
    model = Net(lambda m, h, x: m.fc(h.mean(1)), fc=fc(), side=fc()).eval()
    names = ["fc.weight", "up.bias", "up.weight", "side.weight", "nowhere"]
    refused = penult.split(model, X, missing=names).certificate
    assert refused.refusal.startswith("fc.weight, up.bias, up.weight on the way to the logits")
    assert figures(refused) == {"weights loaded": 3.0}
    assert refused.checks[0].note == "4 tensors lead to the logits, 3 not loaded"
    every = penult.split(model, X, missing=[n for n, _ in model.named_parameters()]).certificate
    assert every.refusal.startswith("fc.bias, fc.weight, up.bias … on the way to the logits")


def test_a_tied_weight_is_loaded_under_any_of_its_names() -> None:
    model = Net(lambda m, h, x: m.fc(h.mean(1)), fc=fc(), twin=fc()).eval()
    model.twin.weight = model.fc.weight
    assert penult.split(model, X, missing=["fc.weight"]).certificate.ok
    assert penult.split(model, X, missing=["twin.weight"]).certificate.ok
    refused = penult.split(model, X, missing=["fc.weight", "twin.weight"]).certificate
    assert "was not loaded" in refused.refusal


class Off:
    """Counts passes, and says by how much the logits of one of them are off."""

    def __init__(self, number: int, by: float) -> None:
        self.number, self.by, self.count = number, by, 0

    def __call__(self) -> float:
        self.count += 1
        return self.by if self.count == self.number else 0.0


def off_in(number: int, by: float) -> tuple[Any, float]:
    """The certificate of a model of which one pass is off, and the largest logit of that pass."""
    off = Off(number, by)
    state = {"off": off}  # a plain object, which no pass can put back

    def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
        return F.linear(h.mean(1), m.fc.weight, m.fc.bias + state["off"]())

    model = Net(after, fc=fc()).eval()
    certificate = penult.split(model, X, other_inputs=OTHER).certificate
    off.number = -1
    return certificate, float(np.abs(numbers(model(X)) + by).max())


def test_two_passes_that_differ() -> None:
    """The plain pass against the recorded one, off by what is allowed and by more than that."""
    certificate, largest = off_in(1, 8e-6)
    found = figures(certificate)["same twice"]
    assert found == pytest.approx(8e-6 / largest, rel=0.1)
    assert certificate.ok == (8e-6 / largest <= TOLERANCE)
    refused, largest = off_in(1, 0.02)
    assert not refused.ok and f"differ by {0.02 / largest:.1e}" in refused.refusal
    assert figures(refused)["same twice"] == pytest.approx(0.02 / largest, rel=1e-3)


def test_a_first_pass_without_scores() -> None:
    """What a model returns on its first call only is not what is cut."""
    calls = []

    def after(m: Any, h: Tensor, x: Tensor) -> Any:
        calls.append(1)
        return m.fc(h.mean(1)) if len(calls) > 1 else {"ids": x.argmax(1)}

    refused = penult.split(Net(after, fc=fc()).eval(), X).certificate
    assert "two passes over the same input differ by inf" in refused.refusal


def leaking(share: float) -> tuple[Any, float]:
    """The certificate of a model whose logits get something of the input where no trace sees it,
    and how much that is between the two inputs, relative to the largest logit."""

    def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
        return m.fc(h.mean(1)) + share * float(x.detach().numpy().mean())

    model = Net(after, fc=fc()).eval()
    certificate = penult.split(model, X, other_inputs=OTHER).certificate
    gap = abs(float(X.mean() - OTHER.mean())) * share
    return certificate, gap / float(np.abs(numbers(model(X))).max())


def test_what_passes_around_the_head_unseen() -> None:
    refused, expected = leaking(0.5)
    assert not refused.ok and expected > TOLERANCE
    assert f"with the head's input exchanged the logits are off by {expected:.1e}: they depend" in (
        refused.refusal
    )
    assert "than what enters fc" in refused.refusal
    assert figures(refused)["interchange"] == pytest.approx(expected, rel=1e-3)
    assert [check.passed for check in refused.checks] == [True, True, True, False]


def test_the_largest_error_is_that_of_all_checks() -> None:
    model = Net(lambda m, h, x: m.fc(h.mean(1)), fc=fc()).eval()
    certificate = penult.split(model, X).certificate
    errors = [c.figure for c in certificate.checks
              if c.name not in ("power", "weights loaded") and c.figure is not None]  # fmt: skip
    assert certificate.max_error == max(errors) <= TOLERANCE
    assert [check.name for check in certificate.checks] == [
        "weights loaded", "same twice", "power", "interchange", "closed form", "round trip",
        "round trip", "round trip", "held out", "held out", "same afterwards",
    ]  # fmt: skip
    notes = [check.note for check in certificate.checks if check.name == "round trip"]
    assert notes == ["other values", "batch 3", "batch 1 and another length"]


def test_a_certificate_in_words() -> None:
    good = penult.split(Net(lambda m, h, x: m.fc(h.mean(1)), fc=fc()).eval(), X).certificate
    first, *lines = str(good).splitlines()
    assert (
        first == f"proved (largest error {good.max_error:.1e}, power {good.power:.0f} tolerances)"
    )
    assert len(lines) == len(good.checks)
    assert lines[0] == "  ok weights loaded 0: 4 tensors lead to the logits, 0 not loaded"
    bad, expected = leaking(0.5)
    first, *lines = str(bad).splitlines()
    assert first == f"not proved: {bad.refusal}"
    assert lines[-1] == (f"  NO interchange {expected:.2g}: head's input taken from another run")
    document = bad.to_dict()
    assert document["max_error"] is None and document["ok"] is False
    assert list(document) == ["ok", "max_error", "power", "checks", "refusal", "kept"]
    assert isinstance(document["checks"], list)
    assert document["checks"][-1]["figure"] == pytest.approx(expected, rel=1e-3)
    assert type(bad).from_dict(document).to_dict() == document


class Gate(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z if float(z.max()) < 1e9 else 2 * z


def test_decisions_that_change_the_scores() -> None:
    """A branch that this input never takes is tried, and where it changes the scores, named."""

    def branching(share: float) -> Callable[..., Tensor]:
        def after(m: Any, h: Tensor, x: Tensor) -> Tensor:
            logits = m.fc(h.mean(1))
            return logits if float(h.max()) < 5 else logits * share

        return after

    refused = penult.split(Net(branching(2.0), fc=fc()).eval(), X).certificate
    assert not refused.ok
    assert "(in the model) decide how the scores are computed" in refused.refusal
    assert "logits(prelogits(x)) is off by 5.0e-01" in refused.refusal
    within = Net(lambda m, h, x: m.gate(m.fc(h.mean(1))) * (1 + float(h.max() > 5)), fc=fc(),
                 gate=Gate()).eval()  # fmt: skip
    two = penult.split(within, X).certificate
    assert "(in gate, the model) decide how" in two.refusal
    assert refused.checks[-1].name == "control flow" and not refused.checks[-1].passed
    # Twice the scores, relative to the largest of them.
    assert refused.checks[-1].figure == pytest.approx(0.5, rel=1e-3)
    same = penult.split(Net(branching(1.0), fc=fc()).eval(), X).certificate
    assert same.ok and figures(same)["control flow"] <= TOLERANCE
