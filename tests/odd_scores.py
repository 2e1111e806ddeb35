"""More forms of a head: how the weights meet the features, and what becomes of the scores.

The tables read like the one in `odd_heads.py`.
"""

# One line per case: the table is to be read down, not across.
# ruff: noqa: E501
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odd_heads import (
    Case,
    D,
    Frames,
    K,
    Map,
    Pooled,
    RecurrentFrames,
    RecurrentPooled,
    T,
    Then,
    _case,
    fc,
    images,
    one,
    parameter,
    two,
    weight,
    words,
)


class Text(nn.Module):
    """Token ids → (B, D), a bag of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.up = nn.EmbeddingBag(50, D), fc(D, D)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.tanh(self.up(self.emb(input_ids)))


class ByWords(nn.Module):
    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.fc = body, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.fc(self.body(input_ids, attention_mask))


class Queries(nn.Module):
    """One learned query per class, and one row of weights for each: multi-label decoders."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.body, self.queries = Frames(), nn.Parameter(weight())
        self.attend = nn.MultiheadAttention(D, 2, batch_first=True)
        self.rows, self.bias, self.spelling = (
            nn.Parameter(weight()),
            nn.Parameter(weight(K)),
            spelling,
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        z = self.attend(self.queries.expand(len(x), -1, -1), h, h, need_weights=False)[0]
        if self.spelling == "sum":
            return (z * self.rows).sum(-1) + self.bias
        if self.spelling == "einsum":
            return torch.einsum("bkd,kd->bk", z, self.rows) + self.bias
        out = z.new_zeros(len(x), K)
        for k in range(K):
            out[:, k] = z[:, k] @ self.rows[k]
        return out + self.bias


class Mahalanobis(nn.Module):
    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.body, self.spelling = Pooled(), spelling
        self.register_buffer("means", 0.3 * weight())
        self.register_buffer("precision", (lambda a: a @ a.T / D)(weight(D, D)))

    def forward(self, x: Tensor) -> Tensor:
        d = self.body(x)[:, None] - self.means
        if self.spelling == "einsum":
            return -torch.einsum("bkd,de,bke->bk", d, self.precision, d)
        return -((d @ self.precision) * d).sum(-1)


class RBF(nn.Module):
    def __init__(self, then: bool) -> None:
        super().__init__()
        self.body, self.then = Pooled(), then
        self.centres, self.fc = nn.Parameter(0.3 * weight(24 if then else K, D)), fc(24)

    def forward(self, x: Tensor) -> Tensor:
        near = (-(torch.cdist(self.body(x), self.centres) ** 2)).exp()
        return self.fc(near) if self.then else near


class RandomFeatures(nn.Module):
    """A Gaussian process by random features, with the variance that it expects."""

    def __init__(self, variance: bool) -> None:
        super().__init__()
        self.body, self.variance, self.fc = Pooled(), variance, fc(32)
        self.register_buffer("w", weight(D, 32))
        self.register_buffer("b", 6 * torch.rand(32))
        self.register_buffer("covariance", (lambda a: a @ a.T / 32)(weight(32, 32)))

    def forward(self, x: Tensor) -> Tensor:
        phi = (2 / 32) ** 0.5 * torch.cos(self.body(x) @ self.w + self.b)
        y = self.fc(phi)
        if not self.variance:
            return y
        return y / (1 + 0.4 * ((phi @ self.covariance) * phi).sum(-1, keepdim=True)).sqrt()


class Hyper(nn.Module):
    """The head's weights are made from the input: from the same features, or from a context."""

    def __init__(self, context: bool) -> None:
        super().__init__()
        self.body, self.make = Pooled(), fc(D, K * D)
        self.context = Pooled() if context else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        c = h if self.context is None else self.context(x)
        return torch.bmm(self.make(c).view(-1, K, D), h[:, :, None])[..., 0]


class Spread(nn.Module):
    """Scores of nodes or frames, mixed by a fixed matrix afterwards."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.body, self.fc, self.spelling = Frames(), fc(), spelling
        self.register_buffer("graph", torch.rand(T, T).softmax(-1))
        self.frames = nn.Parameter(torch.rand(T))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(self.body(x))
        if self.spelling == "graph":
            return self.graph @ y
        if self.spelling == "graph, by hand":
            return torch.stack([self.graph @ row for row in y])
        if self.spelling == "einsum":
            return torch.einsum("t,btk->bk", self.frames, y)
        return (self.frames[:, None] * y).sum(1)


class GraphNet(nn.Module):
    """Two graph convolutions over a fixed adjacency: the second one gives the scores."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.register_buffer("a", torch.rand(T, T).softmax(-1))
        self.one, self.two, self.last = fc(5, D), fc(), last

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a @ self.one(x))
        if self.last == "nodes":
            return self.a @ self.two(h)
        return self.two((self.a @ h).mean(1))


def _cat_out(m: Any, h: Tensor) -> Tensor:
    out = h.new_empty(len(h), K)
    torch.mm(h, m.W.T, out=out)
    return out


def _subcenters(m: Any, h: Tensor) -> Tensor:
    return 16 * F.linear(F.normalize(h), F.normalize(m.W)).view(-1, K, 3).amax(-1)


def _ordinal(m: Any, h: Tensor) -> Tensor:
    above = torch.sigmoid(m.fc(h) - m.steps)
    ends = torch.ones_like(above[:, :1])
    return torch.cat([ends, above], 1) - torch.cat([above, 0 * ends], 1)


def _crf(m: Any, h: Tensor) -> Tensor:
    return m.fc(h)[:, :, None, :] + m.moves


def _crf_difference(m: Any, h: Tensor) -> Tensor:
    return m.fc(h)[..., None] - m.moves


def _noise_layer(m: Any, h: Tensor) -> Tensor:
    return (m.fc(h).softmax(-1) @ m.confusion.softmax(-1)).log()


def _parents(m: Any, h: Tensor) -> Tensor:
    y = m.fc(h)
    return torch.cat([y, y @ m.tree], -1)


def _only_parents(m: Any, h: Tensor) -> Tensor:
    return m.fc(h).softmax(-1) @ m.tree


def _heads(n: int, width: int = D, classes: int = K) -> dict[str, Any]:
    return {"heads": nn.ModuleList(fc(width, classes) for _ in range(n))}


def _log_mean(m: Any, h: Tensor) -> Tensor:
    return torch.logsumexp(torch.stack([a(h).log_softmax(-1) for a in m.heads]), 0) - 1.0986


def _prior(m: Any, h: Tensor) -> Tensor:
    p = m.fc(h).softmax(-1) * m.prior
    return p / p.sum(-1, keepdim=True)


def _in_place(m: Any, h: Tensor) -> Tensor:
    y = m.fc(h)
    y.mul_(2.0).add_(m.o)
    y -= y.amax(-1, keepdim=True)
    y[:, 0] = -9.0
    return y.clamp_(min=-30)


def _scatter(m: Any, h: Tensor) -> Tensor:
    return h.new_full((len(h), 10), -5.0).scatter(1, m.places.expand(len(h), -1), m.fc(h))


def _index_add(m: Any, h: Tensor) -> Tensor:
    return h.new_zeros(len(h), 3).index_add_(1, m.places % 3, m.fc(h))


def _banned(m: Any, h: Tensor) -> Tensor:
    return torch.where(m.allowed, m.fc(h), torch.tensor(-1e4))


def _top(m: Any, h: Tensor) -> Tensor:
    return m.fc(h).topk(3, dim=1).values.mean(1)


def _noisy_or(m: Any, h: Tensor) -> Tensor:
    return 1 - (1 - torch.sigmoid(m.fc(h))).prod(1)


def _linear_softmax(m: Any, h: Tensor) -> Tensor:
    p = torch.sigmoid(m.fc(h))
    return (p * p).sum(1) / p.sum(1)


def _cumulative(m: Any, h: Tensor) -> Tensor:
    y = m.fc(h)
    count = torch.arange(1, y.shape[1] + 1)[None, :, None]
    return y.cumsum(1) / count


def _routed(m: Any, h: Tensor) -> Tensor:
    p, which = m.gate(h).softmax(-1).topk(2, -1)
    scores = torch.stack([a(h) for a in m.heads], 1)
    return (scores.gather(1, which[..., None].expand(-1, -1, K)) * p[..., None]).sum(1)


def _where(m: Any, h: Tensor) -> Tensor:
    return torch.where(m.gate(h) > 0, m.a(h), m.b(h))


def _sparse() -> nn.Module:
    w = weight() * (torch.rand(K, D) > 0.5)
    return Then(Pooled(), lambda m, h: torch.sparse.mm(m.W, h.T).T, W=[w.to_sparse()][0])


def _pruned() -> nn.Module:
    from torch.nn.utils import prune

    model = Then(Pooled(), lambda m, h: m.fc(h), fc=fc())
    prune.l1_unstructured(model.fc, "weight", 0.4)
    return model


def _fused() -> nn.Module:
    fused = nn.utils.fusion.fuse_linear_bn_eval(fc().eval(), nn.BatchNorm1d(K).eval())
    return Then(Pooled(), lambda m, h: m.fc(h), fc=fused)


def _hyperbolic(m: Any, h: Tensor) -> Tensor:
    z, w = 0.1 * h, 0.1 * m.W
    room = (1 - z.pow(2).sum(-1, keepdim=True)) * (1 - w.pow(2).sum(-1))
    return -torch.acosh(1 + 2 * (z[:, None] - w).pow(2).sum(-1) / room)


def _machine(m: Any, h: Tensor) -> Tensor:
    pairs = (h @ m.V).pow(2) - h.pow(2) @ m.V.pow(2)
    return m.fc(h) + 0.5 * pairs.sum(-1, keepdim=True)


def _tree(m: Any, h: Tensor) -> Tensor:
    p, reach, first = torch.sigmoid(m.gates(h)), torch.ones(len(h), 1), 0
    for depth in range(3):
        q = p[:, first : first + 2**depth]
        reach = torch.stack([reach * q, reach * (1 - q)], -1).flatten(1)
        first += 2**depth
    return reach @ m.leaves


def _near(m: Any, h: Tensor) -> Tensor:
    far, which = torch.cdist(h, m.W).topk(4, largest=False)
    return (far.neg().softmax(-1)[..., None] * m.V[which]).sum(1)


def _viterbi(m: Any, h: Tensor) -> Tensor:
    emissions = m.fc(h)
    best = emissions[:, 0]
    for t in range(1, h.shape[1]):
        best = (best[:, :, None] + m.moves).amax(1) + emissions[:, t]
    return best


def _spread_of_scores(m: Any, h: Tensor) -> Tensor:
    mean, spread = m.fc(h).chunk(2, -1)
    return mean / (1 + spread.exp()).sqrt()


def _mixture(m: Any, h: Tensor) -> Tensor:
    parts = m.fc(torch.tanh(m.latent(h)).view(-1, 3, D)).softmax(-1)
    return (m.pi(h).softmax(-1)[..., None] * parts).sum(1)


class Doubled(nn.Module):
    """A parametrization of its own."""

    def forward(self, w: Tensor) -> Tensor:
        return w + w.tanh()


def _parametrized() -> nn.Module:
    layer = fc()
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return Then(Pooled(), lambda m, h: m.fc(h), fc=layer)


def _orthogonal() -> nn.Module:
    return Then(Pooled(), lambda m, h: m.fc(h), fc=nn.utils.parametrizations.orthogonal(fc()))


class OwnFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor) -> Tensor:
        return h @ w.T

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        raise NotImplementedError


@torch.library.custom_op("penult_tests::scores", mutates_args=())
def _own_operator(h: Tensor, w: Tensor) -> Tensor:
    return h @ w.T


def _factors() -> dict[str, Any]:
    return {"A": nn.Parameter(weight(D, 3)), "B": nn.Parameter(weight(3, K))}


def _conv1d(kernel: int = 1) -> Any:
    return lambda: {"fc": nn.Conv1d(D, K, kernel, padding=kernel // 2)}


def _steps() -> dict[str, Any]:
    return {"fc": fc(D, 1), "steps": nn.Parameter(torch.linspace(-1, 1, K - 1))}


FORMS: dict[str, Case] = {
    # how the weights meet the features
    "conv1d, mean over time": _case(lambda m, h: m.fc(h.mT).mean(-1), "fc", body=Frames, layers=_conv1d()),
    "mean over time, conv1d": _case(lambda m, h: m.fc(h.mT.mean(-1, keepdim=True)).squeeze(-1), "fc", body=Frames, layers=_conv1d()),
    "conv1d of three frames": _case(lambda m, h: m.fc(h.mT).mean(-1), "fc", body=Frames, layers=_conv1d(3)),
    "conv1d, log-sum-exp": _case(lambda m, h: m.fc(h.mT).logsumexp(-1), "fc", body=Frames, layers=_conv1d()),
    "functional conv": _case(lambda m, h: F.conv2d(h, m.W[:, :, None, None]).mean((2, 3)), body=Map, layers=parameter, inputs=images),
    "conv as wide as its map": _case(lambda m, h: m.fc(F.adaptive_avg_pool2d(h, 4)).flatten(1), "fc", body=Map, layers=lambda: {"fc": nn.Conv2d(D, K, 4)}, inputs=images),
    "mm with out=": _case(_cat_out, layers=parameter),
    "addmm": _case(lambda m, h: torch.addmm(m.b, h, m.W.T), layers=lambda: {**parameter(), "b": nn.Parameter(weight(K))}),
    "addmm_": _case(lambda m, h: m.b.expand(len(h), -1).clone().addmm_(h, m.W.T), layers=lambda: {**parameter(), "b": nn.Parameter(weight(K))}),
    "baddbmm": _case(lambda m, h: torch.baddbmm(m.b, h[:, None], m.W.T.expand(len(h), -1, -1))[:, 0], layers=lambda: {**parameter(), "b": nn.Parameter(weight(1, 1, K))}),
    "einsum of three": _case(lambda m, h: torch.einsum("bd,kd,k->bk", h, m.W, m.s), layers=lambda: {**parameter(), "s": nn.Parameter(weight(K))}),
    "tensordot": _case(lambda m, h: torch.tensordot(h, m.W, dims=([1], [1])), layers=parameter),
    "inner": _case(lambda m, h: torch.inner(h, m.W), layers=parameter),
    "multi_dot": _case(lambda m, h: torch.linalg.multi_dot([h, m.A, m.B]), layers=_factors),
    "two factors": _case(lambda m, h: h @ m.A @ m.B, layers=_factors),
    "weight on the left": _case(lambda m, h: (m.W @ h.T).T, layers=parameter),
    "scores first, batch last": _case(lambda m, h: m.W @ h.T, layers=parameter),
    "vector times matrix": _case(lambda m, h: torch.stack([m.W @ row for row in h]), layers=parameter),
    "one class at a time": _case(lambda m, h: torch.stack([(h * row).sum(-1) for row in m.W], -1), layers=parameter),
    "one logit by a product": _case(lambda m, h: (h * m.w).sum(-1), layers=lambda: {"w": nn.Parameter(weight(D))}),
    "one logit by mv": _case(lambda m, h: torch.mv(h, m.w), layers=lambda: {"w": nn.Parameter(weight(D))}),
    "weight by .data": _case(lambda m, h: h.data @ m.W.data.T, layers=parameter),
    "weight by .detach()": _case(lambda m, h: F.linear(h.detach(), m.W.detach()), layers=parameter),
    "cosine, learned temperature": _case(lambda m, h: F.normalize(h) @ F.normalize(m.W).T * m.t.exp(), layers=lambda: {**parameter(), "t": nn.Parameter(torch.tensor(2.0))}),
    "cosine by cosine_similarity": _case(lambda m, h: F.cosine_similarity(h[:, None], m.W[None], dim=-1), layers=parameter),
    "sub-centres, max": _case(_subcenters, layers=lambda: {"W": nn.Parameter(weight(3 * K, D))}),
    "maxout": _case(lambda m, h: m.fc(h).view(-1, K, 3).amax(-1), "fc", layers=one(classes=3 * K)),
    "queries, product and sum": Case(lambda: Queries("sum"), ()),
    "queries, einsum": Case(lambda: Queries("einsum"), ()),
    "queries, row by row": Case(lambda: Queries("rows"), ()),
    "Mahalanobis": Case(lambda: Mahalanobis("matmul"), ()),
    "Mahalanobis, einsum": Case(lambda: Mahalanobis("einsum"), ()),
    "RBF": Case(lambda: RBF(False), ()),
    "RBF, linear": Case(lambda: RBF(True), ("fc",)),
    "random features": Case(lambda: RandomFeatures(False), ("fc",)),
    "random features, variance": Case(lambda: RandomFeatures(True)),
    "hypernetwork": Case(lambda: Hyper(False), ("make",)),
    "hypernetwork of a context": Case(lambda: Hyper(True)),
    "bilinear of itself": _case(lambda m, h: m.b(h, h), "b", layers=lambda: {"b": nn.Bilinear(D, D, K)}),
    "quadratic": _case(lambda m, h: torch.einsum("bd,kde,be->bk", h, m.Q, h), layers=lambda: {"Q": nn.Parameter(weight(K, D, D))}),
    "codes of bits": _case(lambda m, h: m.a(h).sign() @ m.code, layers=lambda: {"a": fc(D, 10), "code": (weight(10, K),)}),
    "complex weight": _case(lambda m, h: (h.to(torch.complex64) @ m.C).abs(), layers=lambda: {"C": nn.Parameter(torch.randn(D, K, dtype=torch.complex64))}),
    "spectrum": _case(lambda m, h: m.fc(torch.fft.rfft(h).abs()), "fc", layers=one(width=D // 2 + 1)),
    "spectrum of scores": _case(lambda m, h: torch.fft.rfft(m.fc(h)).abs(), "fc", layers=one()),
    "sparse weight": Case(_sparse, (), hidden=True),
    "pruned": Case(_pruned, ("fc",)),
    "fused with a norm": Case(_fused, ("fc",)),
    "parametrized": Case(_parametrized, ("fc",)),
    "orthogonal": Case(_orthogonal, ("fc",)),
    "a function of its own": _case(lambda m, h: OwnFunction.apply(h, m.W), layers=parameter),
    "an operator of its own": _case(lambda m, h: torch.ops.penult_tests.scores(h, m.W), layers=parameter),
    "a bag of embeddings": Case(lambda: ByWords(Text(), fc()), ("fc",), inputs=words),
    "cosine by division": _case(lambda m, h: (h @ m.W.T) / (h.norm(dim=-1, keepdim=True) * m.W.norm(dim=-1)), layers=parameter),
    "direction and length": _case(lambda m, h: m.fc(F.normalize(h)) * h.norm(dim=-1, keepdim=True), "fc", layers=one()),
    "distance, expanded": _case(lambda m, h: 2 * h @ m.W.T - h.pow(2).sum(-1, keepdim=True) - m.W.pow(2).sum(-1), layers=parameter),
    "hyperbolic distance": _case(_hyperbolic, layers=parameter),
    "city block": _case(lambda m, h: -torch.cdist(h, m.W, p=1), layers=parameter),
    "norm of the difference": _case(lambda m, h: -(h.unsqueeze(1) - m.W).norm(dim=-1), layers=parameter),
    "Gaussians": _case(lambda m, h: torch.distributions.Normal(m.W, 1.3).log_prob(h[:, None]).sum(-1), layers=parameter),
    "factorisation machine": _case(_machine, "fc", layers=lambda: {"fc": fc(), "V": nn.Parameter(weight(D, 4))}),
    "circulant": _case(lambda m, h: torch.fft.irfft(torch.fft.rfft(h) * torch.fft.rfft(m.c), n=D)[:, :K], body=RecurrentPooled, layers=lambda: {"c": nn.Parameter(weight(D))}, refused="around the head"),
    "Kronecker": _case(lambda m, h: h @ torch.kron(m.a, m.b), layers=lambda: {"a": nn.Parameter(weight(4, 1)), "b": nn.Parameter(weight(4, K))}),
    "soft tree": _case(_tree, layers=lambda: {"gates": fc(D, 7), "leaves": nn.Parameter(weight(8, K))}),
    "near prototypes": _case(_near, layers=lambda: {"W": nn.Parameter(0.3 * weight(20, D)), "V": nn.Parameter(weight(20, K))}),
    "splines": _case(lambda m, h: torch.einsum("bdg,kdg->bk", torch.exp(-((h[..., None] - m.g) ** 2)), m.W), layers=lambda: {"g": nn.Parameter(torch.linspace(-1, 1, 5)), "W": nn.Parameter(weight(K, D, 5))}),
    "as wide as the map": _case(lambda m, h: m.fc(h).flatten(1), "fc", body=Map, layers=lambda: {"fc": nn.Conv2d(D, K, 8)}, inputs=images),
    "transposed conv": _case(lambda m, h: m.fc(h).mean((2, 3)), "fc", body=Map, layers=lambda: {"fc": nn.ConvTranspose2d(D, K, 2)}, inputs=images),
    "a group per class": _case(lambda m, h: m.fc(h.repeat(1, K, 1, 1)).mean((2, 3)), "fc", body=Map, layers=lambda: {"fc": nn.Conv2d(D * K, K, 1, groups=K)}, inputs=images),
    "pairs of vectors": _case(lambda m, h: torch.stack([torch.stack([torch.dot(row, w) for w in m.W]) for row in h]), layers=parameter),
    # sizes
    "one class": _case(lambda m, h: m.fc(h), "fc", layers=one(classes=1)),
    "two classes": _case(lambda m, h: m.fc(h), "fc", layers=one(classes=2)),
    "two classes from one score": _case(lambda m, h: torch.cat([-m.fc(h), m.fc(h)], -1), "fc", layers=one(classes=1)),
    "two probabilities from one": _case(lambda m, h: (lambda p: torch.stack([1 - p, p], -1))(torch.sigmoid(m.fc(h))[:, 0]), "fc", layers=one(classes=1)),
    "more classes than features": _case(lambda m, h: m.fc(h), "fc", layers=one(classes=40)),
    "as many classes as features": _case(lambda m, h: m.fc(torch.tanh(h)), "fc", layers=one(classes=D)),
    "as many classes as frames": _case(lambda m, h: m.fc(h).mean(1), "fc", body=Frames, layers=one(classes=T)),
    "square twice": _case(lambda m, h: m.b(torch.relu(m.a(h))), "b", layers=lambda: {"a": fc(D, K), "b": fc(K)}),
    "squeezed": _case(lambda m, h: m.fc(h).squeeze(), "fc", layers=one(classes=1)),
    "calibrated twice": _case(lambda m, h: m.b(m.a(m.fc(h))), "fc", layers=lambda: {"fc": fc(), "a": fc(K), "b": fc(K)}),
    # what becomes of the scores
    "bounded by tanh": _case(lambda m, h: 30 * torch.tanh(m.fc(h) / 30), "fc", layers=one()),
    "ordinal": _case(_ordinal, "fc", layers=_steps),
    "emissions and transitions": _case(_crf, "fc", body=Frames, layers=lambda: {"fc": fc(), "moves": nn.Parameter(weight(K, K))}),
    "emissions less transitions": _case(_crf_difference, "fc", body=Frames, layers=lambda: {"fc": fc(), "moves": nn.Parameter(weight(K, K))}),
    "noise layer": _case(_noise_layer, "fc", layers=lambda: {"fc": fc(), "confusion": nn.Parameter(weight(K, K))}),
    "scores of parents too": _case(_parents, "fc", layers=lambda: {"fc": fc(), "tree": (torch.eye(3)[torch.arange(K) % 3],)}),
    "scores of parents only": _case(_only_parents, "fc", layers=lambda: {"fc": fc(), "tree": (torch.eye(3)[torch.arange(K) % 3],)}),
    "log of the mean": _case(_log_mean, "heads.0", "heads.1", "heads.2", layers=lambda: _heads(3)),
    "prior": _case(_prior, "fc", layers=lambda: {"fc": fc(), "prior": (torch.rand(K) + 0.1,)}),
    "in place": _case(_in_place, "fc", layers=lambda: {"fc": fc(), "o": nn.Parameter(weight(K))}),
    "scattered": _case(_scatter, "fc", layers=lambda: {"fc": fc(), "places": (torch.tensor([[1, 0, 4, 3, 9, 7, 5]]),)}),
    "added by index": _case(_index_add, "fc", layers=lambda: {"fc": fc(), "places": (torch.arange(K),)}),
    "banned classes": _case(_banned, "fc", layers=lambda: {"fc": fc(), "allowed": (torch.arange(K) != 2,)}),
    "best frames": _case(_top, "fc", body=Frames, layers=one()),
    "noisy or": _case(_noisy_or, "fc", body=RecurrentFrames, layers=one()),
    "linear softmax": _case(_linear_softmax, "fc", body=Frames, layers=one()),
    "median over time": _case(lambda m, h: m.fc(h).median(1).values, "fc", body=Frames, layers=one()),
    "log-mean-exp over time": _case(lambda m, h: m.fc(h).logsumexp(1) - torch.tensor(float(h.shape[1])).log(), "fc", body=Frames, layers=one()),
    "best path": _case(_viterbi, body=Frames, layers=lambda: {"fc": fc(), "moves": nn.Parameter(weight(K, K))}, refused="loop over samples or positions"),
    "time first": _case(lambda m, h: m.fc(h).log_softmax(-1).transpose(0, 1), "fc", body=Frames, layers=one()),
    "mean and spread of scores": _case(_spread_of_scores, "fc", layers=one(classes=2 * K)),
    "a mixture of softmaxes": _case(_mixture, "fc", "pi", layers=lambda: {"pi": fc(D, 3), "latent": fc(D, 3 * D), "fc": fc()}),
    "evidence": _case(lambda m, h: (lambda a: a / a.sum(-1, keepdim=True))(F.softplus(m.fc(h)) + 1), "fc", layers=one()),
    "a class for the unknown": _case(lambda m, h: F.pad(m.fc(h), (0, 1)), "fc", layers=one()),
    "median filter": _case(lambda m, h: F.pad(m.fc(h).mT, (1, 1)).unfold(-1, 3, 1).median(-1)[0].mT, "fc", body=Frames, layers=one()),
    "mean so far": _case(_cumulative, "fc", body=Frames, layers=one()),
    "largest so far": _case(lambda m, h: m.fc(h).cummax(1).values, "fc", body=Frames, layers=one()),
    "nodes mixed": Case(lambda: Spread("graph"), ("fc",)),
    "nodes mixed, by hand": Case(lambda: Spread("graph, by hand"), ("fc",)),
    "frames weighted": Case(lambda: Spread("product"), ("fc",)),
    "frames weighted, einsum": Case(lambda: Spread("einsum"), ("fc",)),
    "graph net, nodes": Case(lambda: GraphNet("nodes"), ("two",), tied=True),
    "graph net, whole": Case(lambda: GraphNet("graph"), ("two",)),
    "two of three experts": _case(_routed, "?", layers=lambda: {"gate": fc(D, 3), **_heads(3)}),
    "one of two heads by where": _case(_where, "a", "b", layers=lambda: {"gate": fc(D, 1), **two()}),
    "experts, bmm": _case(lambda m, h: (m.gate(h).softmax(-1)[:, None] @ torch.einsum("bd,ekd->bek", h, m.E))[:, 0], layers=lambda: {"gate": fc(D, 3), "E": nn.Parameter(weight(3, K, D))}),
    "attention over prototypes": _case(lambda m, h: (h @ m.W.T).softmax(-1) @ m.V, layers=lambda: {"W": nn.Parameter(weight(9, D)), "V": nn.Parameter(weight(9, K))}),
}  # fmt: skip
