"""Classifiers whose way from the input to the scores is odd: ensembles, exits, routing, recurrence,
attention, pooling, states and randomness.

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
    T,
    _case,
    fc,
    images,
    one,
    two,
    waves,
    weight,
    words,
)


class Deep(nn.Module):
    """Three stages, each with a head of its own. join: what becomes of the three."""

    def __init__(self, join: str, limit: float = 0.9) -> None:
        super().__init__()
        self.up = nn.Linear(5, D)
        self.stages = nn.ModuleList(fc(D, D) for _ in range(3))
        self.heads = nn.ModuleList(fc() for _ in range(3))
        self.join, self.limit = join, limit
        self.mix = nn.Parameter(weight(3))

    def forward(self, x: Tensor) -> Any:
        h, scores = self.up(x).mean(1), []
        for stage, head in zip(self.stages, self.heads, strict=True):
            h = torch.tanh(stage(h))
            scores.append(head(h))
            if self.join == "exit" and float(scores[-1].softmax(-1).amax()) > self.limit:
                return scores[-1]
            if self.join == "exit, bool" and (scores[-1].softmax(-1).amax(-1) > self.limit).all():
                return scores[-1]
        if self.join == "mean":
            return sum(scores) / 3
        if self.join == "mix":
            return (torch.stack(scores, -1) * self.mix.softmax(0)).sum(-1)
        if self.join == "max":
            return torch.stack(scores).amax(0)
        if self.join == "where":
            sure = scores[0].softmax(-1).amax(-1, keepdim=True) > self.limit
            return torch.where(sure, scores[0], scores[-1])
        if self.join == "list":
            return {"logits": scores[-1], "aux": scores[:-1]}
        return scores[-1]


class Several(nn.Module):
    """Bodies and heads in parallel."""

    def __init__(self, join: str) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(Pooled() for _ in range(3))
        self.heads = nn.ModuleList(fc() for _ in range(3))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        features = [body(x) for body in self.bodies]
        if self.join == "features":
            return self.heads[0](sum(features))
        scores = torch.stack([a(h) for a, h in zip(self.heads, features, strict=True)])
        if self.join == "log":
            return scores.log_softmax(-1).logsumexp(0) - torch.tensor(3.0).log()
        if self.join == "vote":
            return F.one_hot(scores.argmax(-1), K).float().mean(0)
        if self.join == "product":
            return scores.softmax(-1).log().sum(0).softmax(-1)
        return scores.median(0).values


class Mapped(nn.Module):
    """An ensemble by vmap over stacked weights."""

    def __init__(self, stacked: bool) -> None:
        super().__init__()
        self.body = Pooled()
        self.heads = nn.ModuleList(fc() for _ in range(3))
        self.w, self.b = nn.Parameter(weight(3, K, D)), nn.Parameter(weight(3, K))
        self.stacked = stacked

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.stacked:
            return torch.vmap(lambda w, b: F.linear(h, w, b))(self.w, self.b).mean(0)
        parameters, buffers = torch.func.stack_module_state(list(self.heads))

        def run(p: Any, b: Any) -> Tensor:
            return torch.func.functional_call(self.heads[0], (p, b), (h,))

        return torch.vmap(run)(parameters, buffers).mean(0)


class Functional(nn.Module):
    """Calls a module with other weights than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Pooled(), fc())
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: p * self.scale for name, p in self.inner.named_parameters()}
        return torch.func.functional_call(self.inner, weights, (x,))


class Crops(nn.Module):
    """Scores of many windows, averaged. fold: windows in the batch axis, or one by one."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.fc, self.how = Pooled(), fc(), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "flip":
            return (self.fc(self.body(x)) + self.fc(self.body(x.flip(1)))) / 2
        windows = x.unfold(1, 4, 2).transpose(2, 3)  # (B, W, 4, C)
        if self.how == "one by one":
            return torch.stack([self.fc(self.body(w)) for w in windows.unbind(1)], 1).mean(1)
        y = self.fc(self.body(windows.flatten(0, 1))).view(*windows.shape[:2], K)
        return y.amax(1) if self.how == "max" else y.mean(1)


class PerSample(nn.Module):
    """A Python loop over the batch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.fc, self.how = Pooled(), fc(), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "whole":
            return torch.cat([self.fc(self.body(row[None])) for row in x])
        rows = [self.fc(row) for row in self.body(x)]
        if self.how == "append":
            out = x.new_zeros(len(x), K)
            for i, row in enumerate(rows):
                out[i] = row
            return out
        return torch.stack(rows)


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        both = kind == "both ways"
        self.rnn = (nn.LSTM if kind != "plain" else nn.RNN)(5, D, batch_first=kind != "time first",
                                                            bidirectional=both, num_layers=2)  # fmt: skip
        self.fc = fc(2 * D if both else D)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.rnn(x)
        if self.kind == "time first":
            return self.fc(y[-1])
        if self.kind == "packed":
            packed = nn.utils.rnn.pack_padded_sequence(
                x, torch.full((len(x),), x.shape[1]), batch_first=True
            )
            return self.fc(self.rnn(packed)[1][0][-1])
        if self.kind == "both ways":
            return self.fc(torch.cat([state[0][-2], state[0][-1]], -1))
        return self.fc(y[:, -1])


class RecurrentScores(nn.Module):
    """The hidden state of a recurrent layer is the scores: its weights run at every step."""

    def __init__(self, cell: bool) -> None:
        super().__init__()
        self.body = RecurrentFrames()
        self.rnn: Any = nn.GRUCell(D, K) if cell else nn.LSTM(D, K, batch_first=True)
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if not self.cell:
            return self.rnn(h)[0][:, -1]
        state = h.new_zeros(len(h), K)
        for step in h.unbind(1):
            state = self.rnn(step, state)
        return state


class Scan(nn.Module):
    """A selective scan, as state-space models do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.norm, self.fc = nn.Linear(5, D), fc(5, D), nn.LayerNorm(D), fc()
        self.a = nn.Parameter(-torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        u, dt = self.up(x), F.softplus(self.gate(x))
        state, out = torch.zeros_like(u[:, 0]), []
        for t in range(x.shape[1]):
            state = state * (dt[:, t] * self.a).exp() + dt[:, t] * u[:, t]
            out.append(state)
        return self.fc(self.norm(torch.stack(out, 1)).mean(1))


class Attend(nn.Module):
    """Pooling by attention of a learned query, then the head."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.fc, self.how = Frames(), fc(), how
        self.query = nn.Parameter(weight(1, 1, D))
        self.mha = nn.MultiheadAttention(D, 4, batch_first=True)
        layer = nn.TransformerEncoderLayer(D, 2, 24, batch_first=True, norm_first=how == "pre-norm")
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        if self.how == "sdpa":
            q = self.query.expand(len(x), -1, -1)
            return self.fc(F.scaled_dot_product_attention(q, h, h)[:, 0])
        if self.how == "mha":
            return self.fc(self.mha(self.query.expand(len(x), -1, -1), h, h)[0][:, 0])
        token = torch.cat([self.query.expand(len(x), -1, -1), h], 1)
        return self.fc(self.layers(token)[:, 0])


class Exchange(nn.Module):
    """A graph classifier: node features and an adjacency that is no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.fc = fc(5, D), fc()

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = torch.relu(adjacency @ self.one(x))
        return self.fc((adjacency @ h).mean(1))


class Stateful(nn.Module):
    """Keeps something from one call to the next."""

    mean: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.fc, self.how = Pooled(), fc(), how
        self.cache: Any = None
        self.calls = 0
        self.register_buffer("mean", torch.zeros(D))

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        self.calls += 1
        if self.how == "running mean":
            self.mean.mul_(0.9).add_(0.1 * z.mean(0))
            return self.fc(z - self.mean)
        if self.how == "running mean, rebound":
            self.mean = 0.9 * self.mean + 0.1 * z.mean(0)
            return self.fc(z - self.mean)
        if self.how == "counts":
            return self.fc(z) * self.calls
        if self.how == "first call":
            self.cache = z.mean(0) if self.cache is None else self.cache
            return self.fc(z - self.cache)
        if self.how == "last call":
            before, self.cache = self.cache, z.mean(0)
            return self.fc(z if before is None else z - before)
        if self.how == "list":
            self.cache = [*(self.cache or []), z.mean(0)]
            return self.fc(z - sum(self.cache) / len(self.cache))
        self.cache = F.normalize(self.fc.weight) if self.cache is None else self.cache
        return F.normalize(z) @ self.cache.T


class Random(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.fc, self.how = Pooled(), fc(), how

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        if self.how == "noise":
            return self.fc(z + 0.1 * torch.randn_like(z))
        if self.how == "noise on scores":
            y = self.fc(z)
            return y + 0.01 * torch.randn_like(y)
        if self.how == "seeded":
            torch.manual_seed(0)
            return self.fc(z + 0.1 * torch.randn_like(z))
        if self.how == "seeded scores":
            torch.manual_seed(0)
            y = self.fc(z)
            return y + 0.1 * torch.randn_like(y)
        if self.how == "seeded dropout":
            torch.manual_seed(0)
            return torch.stack([self.fc(F.dropout(z, 0.3)) for _ in range(4)]).mean(0)
        return torch.stack([self.fc(F.dropout(z, 0.3)) for _ in range(4)]).mean(0)


class Branch(nn.Module):
    """Which head scores a batch, or what becomes of it, is decided in Python; mostly alike."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.a, self.b, self.gate, self.how = Pooled(), fc(), fc(), fc(D, 1), how

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        if self.how == "length":
            return self.a(z) if x.shape[1] > 10 else self.b(z)
        if self.how == "batch":
            return self.a(z) if len(x) > 2 else self.b(z)
        if self.how == "loud":
            return self.a(z) if float(x.abs().amax()) > 2.5 else self.b(z)
        if self.how == "gate":
            return self.a(z) if float(self.gate(z).mean()) > 99 else self.b(z)
        y = self.a(z)
        return y * 2 if float(y.mean()) > 99 else y


class Checked(nn.Module):
    """Looks at values in Python, and nothing comes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Pooled(), fc()

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        if not bool(torch.isfinite(z).all()):
            raise ValueError("not finite")
        y = self.fc(z)
        if y.isnan().any():
            raise ValueError("not a number")
        return y


class HardBody(nn.Module):
    """Hard routing in the body, by a list in Python; the head is as plain as can be."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.fc = Pooled(), fc(D, 3), fc()
        self.experts = nn.ModuleList(fc(D, D) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        which = self.gate(h).argmax(-1)
        out = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            rows = (which == number).nonzero().flatten()
            if len(rows):
                out[rows] = torch.tanh(expert(h[rows]))
        return self.fc(out)


class Tokens(nn.Module):
    """The scores of the classes' own tokens, of a language model's table."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.emb, self.mix = nn.Embedding(50, D), nn.GRU(D, D, batch_first=True)
        self.how = how
        self.register_buffer("classes", torch.arange(5, 5 + K))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = self.mix(self.emb(input_ids))[0]
        last = h[torch.arange(len(h)), attention_mask.sum(1) - 1]
        if self.how == "all, then pick":
            return (h @ self.emb.weight.T)[torch.arange(len(h)), attention_mask.sum(1) - 1][
                :, self.classes
            ]
        if self.how == "rows":
            return last @ self.emb(self.classes).T
        return F.linear(last, self.emb.weight)[:, self.classes]


def _multi_scale(m: Any, h: Tensor) -> Tensor:
    small, large = m.fc(h), m.fc(F.avg_pool2d(h, 2))
    return (small.mean((2, 3)) + large.mean((2, 3))) / 2


def _highway(m: Any, h: Tensor) -> Tensor:
    return m.b(torch.relu(m.c(h))) + m.a(h)


def _two_stage(m: Any, h: Tensor) -> Tensor:
    y = m.a(h)
    return y + 0.5 * m.b(torch.cat([h, y.softmax(-1)], -1))


def _spp(m: Any, h: Tensor) -> Tensor:
    return m.fc(torch.cat([F.adaptive_max_pool2d(h, n).flatten(1) for n in (1, 2)], 1))


def _bilinear_pool(m: Any, h: Tensor) -> Tensor:
    v = h.flatten(2)
    g = (v @ v.mT / v.shape[-1]).flatten(1)
    return m.fc(F.normalize(g.sign() * g.abs().sqrt()))


def _gem(m: Any, h: Tensor) -> Tensor:
    return m.fc(h.clamp(min=1e-6).pow(m.p).mean((2, 3)).pow(1 / m.p))


def _cam(m: Any, h: Tensor) -> Tensor:
    return torch.einsum("bdhw,kd->bkhw", h, m.fc.weight).mean((2, 3))


def _netvlad(m: Any, h: Tensor) -> Tensor:
    a = m.assign(h).softmax(-1)
    v = torch.einsum("btc,btd->bcd", a, h) - a.sum(1)[..., None] * m.centres
    return m.fc(F.normalize(v, dim=-1).flatten(1))


def _statistics(m: Any, h: Tensor) -> Tensor:
    return m.fc(torch.cat([h.mean(1), h.std(1)], -1))


def _class_token(m: Any, h: Tensor) -> Tensor:
    return (m.a(h[:, 0]) + m.b(h[:, 1:].mean(1))) / 2


class Trimmed(nn.Module):
    """Pads to a multiple of four frames, and trims the scores to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Frames(), fc()

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (0, 0, 0, -x.shape[1] % 4))
        return self.fc(self.body(padded))[:, : x.shape[1]]


class Segmented(nn.Module):
    """Scores of every pixel, at the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Map(), nn.Conv2d(D, K, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.fc(self.body(x)), size=x.shape[-2:], mode="bilinear")


class Siamese(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.fc, self.how = Pooled(), fc(D, 1), how

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.body(left), self.body(right)
        return self.fc((a - b).abs()) if self.how == "difference" else self.fc(a * b).sigmoid()


def _pair() -> dict[str, Tensor]:
    return {"left": waves(), "right": waves().flip(1)}


def _nodes() -> tuple[Tensor, Tensor]:
    return waves(), torch.rand(T, T, generator=torch.Generator().manual_seed(5)).softmax(-1)


def _sequence_first() -> Tensor:
    return waves(3).transpose(0, 1).contiguous()


ROUTES: dict[str, Case] = {
    "heads of three stages, averaged": Case(lambda: Deep("mean"), tuple(f"heads.{i}" for i in range(3))),
    "heads of three stages, mixed": Case(lambda: Deep("mix"), tuple(f"heads.{i}" for i in range(3))),
    "heads of three stages, largest": Case(lambda: Deep("max"), tuple(f"heads.{i}" for i in range(3))),
    "heads of three stages, where": Case(lambda: Deep("where")),
    "heads of three stages, the last": Case(lambda: Deep("last"), ("heads.2",)),
    "heads of three stages, all given": Case(lambda: Deep("list"), ("heads.2",)),
    "first sure exit": Case(lambda: Deep("exit"), refused="decide"),
    "first sure exit, never taken": Case(lambda: Deep("exit", 1.1), refused="decide"),
    "first sure exit, bool": Case(lambda: Deep("exit, bool", 0.4), refused="decide"),
    "three bodies, one head": Case(lambda: Several("features"), ("heads.0",)),
    "three models, log of the mean": Case(lambda: Several("log"), tuple(f"heads.{i}" for i in range(3))),
    "three models, product": Case(lambda: Several("product"), tuple(f"heads.{i}" for i in range(3))),
    "three models, median": Case(lambda: Several("median"), tuple(f"heads.{i}" for i in range(3))),
    "three models, votes": Case(lambda: Several("vote"), refused="no layer with weights"),
    "vmap": Case(lambda: Mapped(True)),
    "vmap of modules": Case(lambda: Mapped(False)),
    "functional call": Case(Functional, ("inner.1",), tied=True),
    "a crop and its mirror": Case(lambda: Crops("flip"), ("fc",)),
    "windows one by one": Case(lambda: Crops("one by one"), ("fc",)),
    "windows in the batch": Case(lambda: Crops("mean"), ("fc",)),
    "windows in the batch, largest": Case(lambda: Crops("max"), ("fc",)),
    "sample by sample": Case(lambda: PerSample("rows"), ("fc",)),
    "sample by sample, whole": Case(lambda: PerSample("whole"), ("fc",)),
    "sample by sample, written": Case(lambda: PerSample("append"), ("fc",)),
    "LSTM": Case(lambda: Recurrent("lstm"), ("fc",)),
    "RNN": Case(lambda: Recurrent("plain"), ("fc",)),
    "LSTM both ways": Case(lambda: Recurrent("both ways"), ("fc",)),
    "LSTM, packed": Case(lambda: Recurrent("packed"), ("fc",)),
    "LSTM, time first": Case(lambda: Recurrent("time first"), ("fc",), inputs=_sequence_first),
    "the state of an LSTM": Case(lambda: RecurrentScores(False)),
    "the state of a cell": Case(lambda: RecurrentScores(True), ("rnn",), tied=True),
    "scan": Case(Scan, ("fc",)),
    "attention of a query": Case(lambda: Attend("sdpa"), ("fc",)),
    "multi-head attention of a query": Case(lambda: Attend("mha"), ("fc",)),
    "class token": Case(lambda: Attend("token"), ("fc",)),
    "class token, norm first": Case(lambda: Attend("pre-norm"), ("fc",)),
    "graph as an input": Case(Exchange, ("fc",), inputs=_nodes),
    "running mean": Case(lambda: Stateful("running mean"), refused="keeps a state"),
    "running mean, rebound": Case(lambda: Stateful("running mean, rebound"), refused="keeps a state"),
    "counts its calls": Case(lambda: Stateful("counts"), refused="keeps a state"),
    "remembers the first call": Case(lambda: Stateful("first call"), refused="keeps a state"),
    "remembers the last call": Case(lambda: Stateful("last call"), refused="keeps a state"),
    "remembers all calls": Case(lambda: Stateful("list"), refused="keeps a state"),
    "remembers its weights": Case(lambda: Stateful("weights"), hidden=True),
    "noise": Case(lambda: Random("noise"), refused="random"),
    "noise on the scores": Case(lambda: Random("noise on scores"), refused="random"),
    "seeded noise": Case(lambda: Random("seeded"), ("fc",)),
    "seeded noise on the scores": Case(lambda: Random("seeded scores"), refused="off by"),
    "seeded dropout": Case(lambda: Random("seeded dropout"), ("fc",)),
    "dropout, four times": Case(lambda: Random("dropout"), refused="random"),
    "another head for long inputs": Case(lambda: Branch("length"), refused="with"),
    "another head for batches": Case(lambda: Branch("batch"), refused="with"),
    "another head for loud inputs": Case(lambda: Branch("loud"), refused="decide"),
    "another head by a gate": Case(lambda: Branch("gate"), refused="decide"),
    "scores doubled if they are high": Case(lambda: Branch("scores"), refused="decide"),
    "values looked at": Case(Checked, ("fc",)),
    "hard routing in the body": Case(HardBody, ("fc",)),
    "words of a table": Case(lambda: Tokens("last"), inputs=words, tied=True),
    "words of a table, all tokens": Case(lambda: Tokens("all, then pick"), inputs=words, tied=True),
    "words of a table, looked up": Case(lambda: Tokens("rows"), inputs=words, tied=True),
    "nested outputs": _case(lambda m, h: {"scores": m.a(h), "extra": {"more": m.b(h)}}, "a", layers=two, output="scores"),
    "two scales": _case(_multi_scale, "fc", body=Map, layers=lambda: {"fc": nn.Conv2d(D, K, 1)}, inputs=images),
    "highway": _case(_highway, "b", "a", layers=lambda: {**two(), "c": fc(D, D)}),
    "two stages": _case(_two_stage, "a", "b", layers=lambda: {"a": fc(), "b": fc(D + K)}),
    "pyramid": _case(_spp, "fc", body=Map, layers=one(width=5 * D), inputs=images),
    "bilinear pooling": _case(_bilinear_pool, "fc", body=Map, layers=one(width=D * D), inputs=images),
    "generalised mean": _case(_gem, "fc", body=Map, layers=lambda: {"fc": fc(), "p": nn.Parameter(torch.tensor(3.0))}, inputs=images),
    "class activation maps": _case(_cam, "fc", body=Map, layers=one(), inputs=images),
    "NetVLAD": _case(_netvlad, "fc", body=Frames, layers=lambda: {"assign": fc(D, 4), "centres": nn.Parameter(weight(4, D)), "fc": fc(4 * D)}),
    "mean and spread": _case(_statistics, "fc", body=Frames, layers=one(width=2 * D)),
    "class token and mean, two heads": _case(_class_token, "a", "b", body=Frames, layers=two),
    "padded and trimmed": Case(Trimmed, refused="aten.slice for example"),
    "segmentation at the image's size": Case(Segmented, refused="no size of the prelogits", inputs=images),
    "pair, difference": Case(lambda: Siamese("difference"), ("fc",), inputs=_pair),
    "pair, product": Case(lambda: Siamese("product"), ("fc",), inputs=_pair),
}  # fmt: skip
