"""Small classifiers with every form a head takes, and what a cut of each should come to.

EXPECTED names, for each, whether the cut is proved or refused; a refusal also says what its reason
must mention. Every module here is written for these tests.
"""

# One line per case: the table is to be read down, not across.
# ruff: noqa: E501
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

K, D, T = 7, 16, 12  # classes, features, positions


def waves(batch: int = 2) -> Tensor:
    return torch.randn(batch, T, 5, generator=torch.Generator().manual_seed(1))


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def words() -> dict[str, Tensor]:
    ids = torch.randint(5, 50, (2, T), generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, T, dtype=torch.long)
    ids[1, -4:], mask[1, -4:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


class Frames(nn.Module):
    """(B, T, 5) → hidden states (B, T, D), any length. A recurrence over the frames would take ten
    times as many operations; odd_routes.py has those."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, D)
        self.mix = nn.Conv1d(D, D, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mix(torch.tanh(self.up(x)).mT)).mT


class Pooled(Frames):
    """(B, T, 5) → (B, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1)


class RecurrentFrames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, D)
        self.mix = nn.RNN(D, D, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.tanh(self.up(x)))[0]


class RecurrentPooled(RecurrentFrames):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(1)


class Map(nn.Module):
    """(B, 3, H, W) → (B, D, H / 4, W / 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, D, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))))


class Then(nn.Module):
    """A body, then what a function makes of it; the function may use the module's own layers."""

    def __init__(self, body: nn.Module, after: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.body = body
        self.after = after
        for name, layer in layers.items():
            if isinstance(layer, nn.Module | nn.Parameter):
                setattr(self, name, layer)
            elif isinstance(layer, tuple):
                self.register_buffer(name, layer[0])
            else:
                object.__setattr__(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.after(self, self.body(x))


class WithInput(Then):
    def forward(self, x: Tensor) -> Any:
        return self.after(self, self.body(x), x)


def fc(width: int = D, classes: int = K) -> nn.Linear:
    return nn.Linear(width, classes)


def weight(*shape: int) -> Tensor:
    return torch.randn(*(shape or (K, D)))


class LoRA(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


class LoRABody(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.up = LoRA(self.up)  # type: ignore[assignment]


class MIL(nn.Module):
    """Attention-based multiple instance learning, with a gate."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.body, self.v, self.u = Frames(), nn.Linear(D, 8), nn.Linear(D, 8)
        self.w, self.fc, self.gated = nn.Linear(8, 1), fc(), gated

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        a = torch.tanh(self.v(h))
        if self.gated:
            a = a * torch.sigmoid(self.u(h))
        return self.fc((torch.softmax(self.w(a), 1) * h).sum(1))


class Attention(nn.Module):
    """Class-wise attention over frames, as audio taggers do: both layers read every frame."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.att, self.cla = Frames(), nn.Conv1d(D, K, 1), nn.Conv1d(D, K, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).transpose(1, 2)
        return (torch.softmax(self.att(h), -1) * torch.sigmoid(self.cla(h))).sum(-1)


class MoE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate = Pooled(), fc(D, 3)
        self.experts = nn.ModuleList(fc() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        scores = torch.stack([expert(z) for expert in self.experts], 1)
        return (torch.softmax(self.gate(z), -1)[..., None] * scores).sum(1)


class LastToken(nn.Module):
    """Scores for every token, then the last valid one's."""

    def __init__(self, join: str, bias: bool = True) -> None:
        super().__init__()
        self.emb, self.mix = nn.Embedding(50, D), nn.GRU(D, D, batch_first=True)
        self.score, self.join = nn.Linear(D, K, bias=bias), join

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        y = self.score(self.mix(self.emb(input_ids))[0])
        last = attention_mask.sum(1) - 1
        if self.join == "index":
            return y[torch.arange(len(y)), last]
        if self.join == "gather":
            return y.gather(1, last[:, None, None].expand(-1, 1, y.shape[-1]))[:, 0]
        m = attention_mask[..., None].to(y.dtype)
        if self.join == "mean":
            return (y * m).sum(1) / m.sum(1)
        if self.join == "sum":
            return (y * m).sum(1)
        return y.masked_fill(m == 0, float("-inf")).amax(1)


class Overwritten(nn.Module):
    """Zeroes the head's input in place once the head has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Pooled(), fc()

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        y = self.fc(z)
        z.zero_()
        return y + z.sum()


class Loop(nn.Module):
    """The head is called once per step."""

    def __init__(self, stack: bool) -> None:
        super().__init__()
        self.cell, self.fc, self.stack = nn.GRUCell(5, D), fc(), stack

    def forward(self, x: Tensor) -> Tensor:
        h, scores = x.new_zeros(len(x), D), []
        for step in x.unbind(1):
            h = self.cell(step, h)
            scores.append(self.fc(h))
        return torch.stack(scores, 1) if self.stack else sum(scores) / len(scores)


class Ensemble(nn.Module):
    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.a, self.b, self.fa, self.fb, self.soft = Pooled(), Pooled(), fc(), fc(), soft

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fa(self.a(x)), self.fb(self.b(x))
        return (a.softmax(-1) + b.softmax(-1)) / 2 if self.soft else (a + b) / 2


class Encoder(nn.Module):
    def __init__(self, out: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(D, 2, 24, dropout=0.0, batch_first=True)
        self.up, self.layers = nn.Linear(5, D), nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.up(x))


class LanguageModel(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.emb, self.mix = nn.Embedding(50, D), nn.GRU(D, D, batch_first=True)
        self.out = nn.Linear(D, 50, bias=False)
        if tied:
            self.out.weight = self.emb.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.out(self.mix(self.emb(input_ids))[0])}


class ResidualEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Map()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(D, D, 3, padding=1), nn.BatchNorm2d(D)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = torch.relu(h + block(h))
        return h.mean((2, 3))


class KNN(nn.Module):
    def __init__(self, soft: bool) -> None:
        super().__init__()
        self.body, self.soft = Pooled(), soft
        self.register_buffer("bank", 0.3 * torch.randn(40, D))
        self.register_buffer("owner", torch.arange(40) % K)

    def forward(self, x: Tensor) -> Tensor:
        near, which = torch.cdist(self.body(x), self.bank).topk(15, largest=False)
        votes = F.one_hot(self.owner[which], K).float()
        return (votes * near.neg().exp()[..., None]).sum(1) if self.soft else votes.mean(1)


def _numpy(m: Any, h: Tensor) -> Tensor:
    return torch.from_numpy(h.numpy() @ m.W.detach().numpy().T)


def _cosine(m: Any, h: Tensor) -> Tensor:
    return 16 * F.linear(F.normalize(h), F.normalize(m.W))


def _hierarchy(m: Any, h: Tensor) -> Tensor:
    coarse = m.coarse(h).softmax(-1)
    return coarse.repeat_interleave(2, -1) * m.fine(h).view(-1, 3, 2).softmax(-1).flatten(1)


def _per_class(m: Any, h: Tensor) -> Tensor:
    return torch.cat([head(h) for head in m.heads], -1)


def _quantised() -> nn.Module:
    model = Then(Pooled(), lambda m, h: m.fc(h), fc=fc())
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def _plain() -> nn.Module:
    return Then(Pooled(), lambda m, h: m.fc(h), fc=fc())


def _sequence() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, D, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc())


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.y, self.b = Pooled(), Pooled(), nn.Bilinear(D, D, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.x(x), self.y(x))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Pooled(), fc()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.fc(self.body(batch["x"]))


class HardMoE(MoE):
    """Each sample is scored by one expert, looked up in Python."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        which = self.gate(z).argmax(-1).tolist()
        return torch.stack([self.experts[i](row) for i, row in zip(which, z, strict=True)])


@dataclass(frozen=True)
class Case:
    """build: the module. names: of the head's layers, None if any will do. refused: what the
    reason must mention; empty if it has to be proved. tied: weights of the head are used in front
    of it too. hidden: the head's weights are no parameters or buffers."""

    build: Callable[[], nn.Module]
    names: tuple[str, ...] | None = None
    refused: str = ""
    inputs: Callable[[], Any] = waves
    how: dict[str, Any] = field(default_factory=dict)
    tied: bool = False
    hidden: bool = False


def _case(after: Callable[..., Any], *names: str, body: Any = Pooled, layers: Any = None,
          inputs: Any = waves, refused: str = "", cls: Any = Then, hidden: bool = False,
          **how: Any) -> Case:  # fmt: skip
    """names: of the layers, in order; none for a functional head, "?" if any will do."""
    return Case(lambda: cls(body(), after, **(layers() if layers else {})),
                None if names == ("?",) else names, refused, inputs, how, hidden=hidden)  # fmt: skip


def one(name: str = "fc", **kinds: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {name: fc(**kinds)}


def two() -> dict[str, Any]:
    return {"a": fc(), "b": fc()}


def conv() -> dict[str, Any]:
    return {"fc": nn.Conv2d(D, K, 1)}


def parameter() -> dict[str, Any]:
    return {"W": nn.Parameter(weight())}


def tied() -> dict[str, Any]:
    table = fc()
    return {"table": table, "fc": table}


CASES: dict[str, Case] = {
    "linear": _case(lambda m, h: m.fc(h), "fc", layers=one()),
    "logistic regression": Case(lambda: nn.Sequential(nn.Flatten(), fc(T * 5)), ("1",)),
    "conv then pool": _case(lambda m, h: m.fc(h).mean((2, 3)), "fc", body=Map, layers=conv, inputs=images),
    "pool then conv": _case(lambda m, h: m.fc(h.mean((2, 3), keepdim=True)).flatten(1), "fc", body=Map, layers=conv, inputs=images),
    "conv, relu, pool": _case(lambda m, h: F.adaptive_avg_pool2d(torch.relu(m.fc(h)), 1).flatten(1), "fc", body=Map, layers=conv, inputs=images),
    "conv, pool over its size": _case(lambda m, h: F.avg_pool2d(m.fc(h), h.shape[2:]).flatten(1), "fc", body=Map, layers=conv, inputs=images),
    "weight norm": _case(lambda m, h: m.fc(h), "fc", layers=lambda: {"fc": parametrizations.weight_norm(fc())}),
    "weight norm, old": _case(lambda m, h: m.fc(h), "fc", layers=lambda: {"fc": nn.utils.weight_norm(fc())}),
    "spectral norm": _case(lambda m, h: m.fc(h), "fc", layers=lambda: {"fc": parametrizations.spectral_norm(fc())}),
    "spectral norm, old": _case(lambda m, h: m.fc(h), "fc", layers=lambda: {"fc": nn.utils.spectral_norm(fc())}),
    "cosine": _case(_cosine, layers=parameter),
    "prototypes": _case(lambda m, h: -torch.cdist(h, m.W), layers=parameter),
    "prototypes by difference": _case(lambda m, h: -(h[:, None] - m.W).pow(2).sum(-1), layers=parameter),
    "product and sum": _case(lambda m, h: (h[:, None] * m.W).sum(-1), layers=parameter),
    "functional linear": _case(lambda m, h: F.linear(h, m.W), layers=parameter),
    "einsum": _case(lambda m, h: torch.einsum("bd,kd->bk", h, m.W), layers=parameter),
    "einsum over frames": _case(lambda m, h: torch.einsum("btd,kd->bk", h, m.W), body=Frames, layers=parameter),
    "matmul with a buffer": _case(lambda m, h: h @ m.W.T, layers=lambda: {"W": (weight(),)}),
    "matmul with a constant": _case(lambda m, h: h @ m.W.T, layers=lambda: {"W": [weight()][0]}, hidden=True),
    "MLP": _case(lambda m, h: m.fc(torch.relu(m.a(h))), "fc", layers=lambda: {"a": fc(D, 9), "fc": fc(9)}),
    "batch norm after": _case(lambda m, h: m.bn(m.fc(h)), "fc", layers=lambda: {"fc": fc(), "bn": nn.BatchNorm1d(K)}),
    "temperature": _case(lambda m, h: m.fc(h) / m.t, "fc", layers=lambda: {"fc": fc(), "t": nn.Parameter(torch.tensor(1.7))}),
    "vector scaling": _case(lambda m, h: m.fc(h) * m.s + m.o, "fc", layers=lambda: {"fc": fc(), "s": nn.Parameter(weight(K)), "o": nn.Parameter(weight(K))}),
    "matrix scaling": _case(lambda m, h: m.cal(m.fc(h)), "fc", layers=lambda: {"fc": fc(), "cal": fc(K)}),
    "softmax": _case(lambda m, h: m.fc(h).softmax(-1), "fc", layers=one()),
    "log-softmax": _case(lambda m, h: m.fc(h).log_softmax(-1), "fc", layers=one()),
    "sigmoid": _case(lambda m, h: torch.sigmoid(m.fc(h)), "fc", layers=one()),
    "one logit": _case(lambda m, h: m.fc(h).squeeze(-1), "fc", layers=one(classes=1)),
    "two tasks": _case(lambda m, h: {"a": m.a(h), "b": m.b(h)}, "b", layers=two, output="b"),
    "two tasks by place": _case(lambda m, h: (m.a(h), m.b(h)), "a", layers=two, output=0),
    "two heads averaged": _case(lambda m, h: (m.a(h) + m.b(h)) / 2, "a", "b", layers=two),
    "two tokens, two heads": _case(lambda m, h: (m.a(h[:, 0]) + m.b(h[:, 1])) / 2, "a", "b", body=Frames, layers=two),
    "a head per class": _case(_per_class, *(f"heads.{i}" for i in range(K)), layers=lambda: {"heads": nn.ModuleList(fc(D, 1) for _ in range(K))}),
    "ensemble": Case(lambda: Ensemble(False), ("fa", "fb")),
    "ensemble of softmax": Case(lambda: Ensemble(True), ("fa", "fb")),
    "LoRA on the head": _case(lambda m, h: m.fc(h), "fc.base", "fc.up", layers=lambda: {"fc": LoRA(fc())}),
    "LoRA on the body": _case(lambda m, h: m.fc(h), "fc", body=LoRABody, layers=one()),
    "quantised": Case(_quantised, ("fc",), hidden=True),
    "tied": Case(lambda: LanguageModel(True), ("out",), inputs=words, tied=True),
    "language model": Case(lambda: LanguageModel(False), ("out",), inputs=words),
    "called per token": _case(lambda m, h: torch.stack([m.fc(h[:, t]) for t in range(h.shape[1])], 1), "fc", body=Frames, layers=one()),
    "called per step": Case(lambda: Loop(True), ("fc",)),
    "called per step, averaged": Case(lambda: Loop(False), ("fc",)),
    "last token by index": Case(lambda: LastToken("index"), ("score",), inputs=words),
    "last token by gather": Case(lambda: LastToken("gather"), ("score",), inputs=words),
    "masked mean after": Case(lambda: LastToken("mean"), ("score",), inputs=words),
    "masked sum after, no bias": Case(lambda: LastToken("sum", bias=False), ("score",), inputs=words),
    "masked sum after, bias": Case(lambda: LastToken("sum"), refused="does not commute", inputs=words),
    "masked max after": Case(lambda: LastToken("max"), refused="attention_mask", inputs=words),
    "MIL": Case(lambda: MIL(False), ("fc",)),
    "MIL, gated": Case(lambda: MIL(True), ("fc",)),
    "class-wise attention": Case(Attention, ("att", "cla")),
    "hierarchy": _case(_hierarchy, "coarse", "fine", layers=lambda: {"coarse": fc(D, 3), "fine": fc(D, 6)}),
    "gated": _case(lambda m, h: m.a(h) * torch.sigmoid(m.b(h)), "a", "b", layers=two),
    "mixture of experts": Case(MoE, None),
    "coarse scores feed fine ones": _case(lambda m, h: m.b(torch.cat([h, m.a(h)], -1)) , "b", layers=lambda: {"a": fc(D, 3), "b": fc(D + 3)}),
    "residual of the input": _case(lambda m, h, x: m.fc(h) + x.mean((1, 2))[:, None], cls=WithInput, layers=one(), refused="around the head"),
    "gate of the input": _case(lambda m, h, x: m.fc(h) * x.mean((1, 2)).sigmoid()[:, None], cls=WithInput, layers=one(), refused="around the head"),
    "wide and deep": _case(lambda m, h, x: m.fc(h) + m.wide(x.flatten(1)), cls=WithInput, layers=lambda: {"fc": fc(), "wide": fc(T * 5)}, refused="input itself"),
    "fx": Case(lambda: torch.fx.symbolic_trace(Then(Map(), lambda m, h: m.fc(h.mean((2, 3))), fc=fc())), ("fc",), inputs=images),
    "compiled": Case(lambda: torch.compile(Then(Map(), lambda m, h: m.fc(h.mean((2, 3))), fc=fc()), backend="eager"), None, inputs=images),  # type: ignore[return-value]
    "scripted": Case(lambda: torch.jit.script(_sequence()), ("4",), inputs=images),
    "traced by jit": Case(lambda: torch.jit.trace(_sequence(), images()), ("4",), inputs=images),
    "exported": Case(lambda: torch.export.export(_sequence(), (images(),)).module(), None, inputs=images),
    "bilinear": Case(Bilinear, ("b",)),
    "adaptive softmax": _case(lambda m, h: m.a.log_prob(h), "a.head", "a.tail.0.1", "a.tail.1.1", layers=lambda: {"a": nn.AdaptiveLogSoftmaxWithLoss(D, 20, [5, 10])}),
    "nested inputs": Case(Nested, ("fc",), inputs=lambda: ({"x": waves()},)),
    "max over tokens": _case(lambda m, h: m.fc(h).amax(1), "fc", body=Frames, layers=one()),
    "one expert per sample": Case(HardMoE, refused="something else"),
    "DataParallel": Case(lambda: nn.DataParallel(_plain()), ("module.fc",)),
    "numpy": _case(_numpy, layers=parameter, refused="outside of torch"),
    "numpy, a part": _case(lambda m, h: m.fc(h) + _numpy(m, h), layers=lambda: {**parameter(), "fc": fc()}, refused="changes with the input"),
    "kNN, weighted": Case(lambda: KNN(True), ()),
    "kNN, votes": Case(lambda: KNN(False), refused="no layer with weights"),
    "argmax": _case(lambda m, h: m.fc(h).argmax(-1), layers=one(), refused="no float tensor"),
    "transformer encoder": Case(Encoder, refused="encoder"),
    "residual encoder": Case(ResidualEncoder, refused="encoder", inputs=images),
    "segmentation": _case(lambda m, h: F.interpolate(m.fc(h), scale_factor=4.0), "fc", body=Map, layers=conv, inputs=images),
    "head's input overwritten": Case(Overwritten, ("fc",)),
    "dropout": _case(lambda m, h: m.fc(m.drop(h)), "fc", layers=lambda: {"fc": fc(), "drop": nn.Dropout(0.5)}),
    "dropout that never sleeps": _case(lambda m, h: m.fc(F.dropout(h, 0.5, True)), layers=one(), refused="random"),
    "constant scores": _case(lambda m, h: m.fc(torch.ones(2, D)), layers=one(), refused="constant"),
    "no power": _case(lambda m, h: m.fc(1e-6 * h), layers=one(), refused="not proved"),
    "bfloat16": Case(lambda: _plain().bfloat16(), ("fc",), inputs=lambda: waves().bfloat16()),
    "a list": _case(lambda m, h: [m.fc(h)], "fc", layers=one()),
    "a dict": _case(lambda m, h: {"logits": m.fc(h), "hidden": h}, "fc", layers=one()),
    "a module named by the user": _case(lambda m, h: m.mlp(h), "mlp", layers=lambda: {"mlp": nn.Sequential(fc(D, 9), nn.ReLU(), fc(9))}, head="mlp"),
}  # fmt: skip
