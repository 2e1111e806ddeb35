"""Choices that a model takes by itself: in Python, by masks, over a batch; and what it makes of its
scores afterwards.

The tables read like the one in `odd_heads.py`.
"""

# One line per case: the table is to be read down, not across.
# ruff: noqa: E501
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odd_heads import Case, D, K, Pooled, _case, _sequence, fc, images, one, weight, words


class Chosen(nn.Module):
    """One of two heads, by a gate that all but always says the same. sure: how surely."""

    def __init__(self, choose: Callable[[Any, Tensor], Any], sure: float = 90.0) -> None:
        super().__init__()
        self.body, self.a, self.b, self.gate, self.choose = Pooled(), fc(), fc(), fc(D, 2), choose
        with torch.no_grad():
            self.gate.bias.copy_(torch.tensor([sure, -sure]))

    def forward(self, x: Tensor) -> Tensor:
        return self.choose(self, self.body(x))


def _either(of_gate: Callable[[Tensor], Any]) -> Callable[[], nn.Module]:
    return lambda: Chosen(lambda m, z: (m.a if of_gate(m.gate(z)) else m.b)(z))


def _rows(m: Any, z: Tensor) -> Tensor:
    other = m.gate(z)[:, 1] > 0
    y = m.a(z).clone()
    y[other] = m.b(z[other])
    return y


class Valid(nn.Module):
    """Scores of words; which of them count is said by the mask."""

    def __init__(self, scores: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.emb, self.mix = nn.Embedding(50, D), nn.RNN(D, D, batch_first=True)
        self.fc, self.scores = fc(), scores

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.scores(self, self.mix(self.emb(input_ids))[0], attention_mask)


def _masked_mean(m: Any, h: Tensor, mask: Tensor) -> Tensor:
    y = m.fc(h).masked_fill(mask[..., None] == 0, 0.0)
    return y.sum(1) / mask.sum(1, keepdim=True)


def _of_each_length(m: Any, h: Tensor, mask: Tensor) -> Tensor:
    lengths = mask.sum(1).tolist()
    return torch.stack([m.fc(row[:n]).mean(0) for row, n in zip(h, lengths, strict=True)])


def _packed(m: Any, h: Tensor, mask: Tensor) -> Tensor:
    lengths = mask.sum(1).cpu()
    packed = nn.utils.rnn.pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
    return m.fc(packed.data)


class ZeroShot(nn.Module):
    """The head's weights are made from the classes' own texts, whatever the input is."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.emb = Pooled(), nn.Embedding(50, D)
        self.text = nn.Sequential(fc(D, D), nn.GELU(), fc(D, D))
        self.register_buffer("prompts", torch.randint(0, 50, (K, 4)))

    def forward(self, x: Tensor) -> Tensor:
        classes = F.normalize(self.text(self.emb(self.prompts).mean(1)), dim=-1)
        return 9 * F.normalize(self.body(x), dim=-1) @ classes.T


def _dora(m: Any, h: Tensor) -> Tensor:
    w = m.fc.weight + m.B @ m.A
    return F.linear(h, m.size * w / w.norm(dim=1, keepdim=True), m.fc.bias)


def _soup(m: Any, h: Tensor) -> Tensor:
    return F.linear(h, (m.a.weight + m.b.weight) / 2, (m.a.bias + m.b.bias) / 2)


def _energy(m: Any, h: Tensor) -> Tensor:
    with torch.enable_grad():
        z = h.detach().requires_grad_()
        (slope,) = torch.autograd.grad(m.fc(z).logsumexp(-1).sum(), z)
    return m.fc(z + 0.1 * slope)


def _sinkhorn(m: Any, h: Tensor) -> Tensor:
    q = m.fc(h).exp().T
    for _ in range(3):
        q = q / q.sum(1, keepdim=True)
        q = q / q.sum(0, keepdim=True)
    return q.T


def _standardised(m: Any, h: Tensor) -> Tensor:
    return m.fc((h - h.mean(0)) / (h.std(0, correction=0) + 1e-3))


def _dense(m: Any, h: Tensor) -> Tensor:
    two = torch.relu(m.a(h))
    return m.fc(torch.cat([h, two, torch.relu(m.b(torch.cat([h, two], 1)))], 1))


def _aside(m: Any, h: Tensor) -> Tensor:
    return m.fc(torch.relu(m.up(h))) + 0.1 * m.aux(h).softmax(-1)


def _graph_quantised() -> nn.Module:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model = prepare_fx(_sequence().eval(), get_default_qconfig_mapping("fbgemm"), (images(),))
    model(images())
    return convert_fx(model)


def _smooth(m: Any, h: Tensor) -> Tensor:
    return F.conv1d(m.fc(h)[:, None], torch.tensor([[[0.2, 0.6, 0.2]]]), padding=1)[:, 0]


def _scores(after: Callable[[Any, Tensor], Tensor], *names: str, **rest: Any) -> Case:
    """What becomes of the scores of a linear head."""
    layers = lambda: {"fc": fc(), "a": fc(K, 20), "b": fc(20), "cal": fc(K)}  # noqa: E731
    return _case(lambda m, h: after(m, m.fc(h)), *(names or ("fc",)), layers=layers, **rest)


DECIDED = "decide how the scores are computed"
CHOICES: dict[str, Case] = {
    # in Python
    "head by item()": Case(_either(lambda g: g.mean(0)[0].item() > 0), refused=DECIDED),
    "head by argmax": Case(_either(lambda g: int(g.mean(0).argmax()) == 0), refused=DECIDED),
    "head by the place of the largest": Case(_either(lambda g: g.mean(0).max(0).indices.item() == 0), refused=DECIDED),
    "head by numpy": Case(_either(lambda g: g.numpy().max() > 0), refused=DECIDED),
    "head by a list": Case(_either(lambda g: g.mean(0).tolist()[0] > 0), refused=DECIDED),
    "head by any": Case(_either(lambda g: torch.any(g > 0)), refused=DECIDED),
    "head by a count": Case(_either(lambda g: not len((g[:, 1] > 0).nonzero())), refused=DECIDED),
    "head by equal": Case(_either(lambda g: torch.equal(g.argmax(-1), 0 * g.argmax(-1))), refused=DECIDED),
    "rows to another head": Case(lambda: Chosen(_rows, 0.0)),
    "rows to another head, hardly any": Case(lambda: Chosen(_rows)),
    # by masks
    "valid tokens' scores": Case(lambda: Valid(lambda m, h, mask: m.fc(h)[mask.bool()]), refused="attention_mask", inputs=words),
    "valid tokens, then scores": Case(lambda: Valid(lambda m, h, mask: m.fc(h[mask.bool()])), ("fc",), inputs=words),
    "packed tokens": Case(lambda: Valid(_packed), ("fc",), inputs=words),
    "invalid scores filled": Case(lambda: Valid(lambda m, h, mask: m.fc(h).masked_fill(mask[..., None] == 0, -1e4)), refused="attention_mask", inputs=words),
    "invalid scores zeroed, mean": Case(lambda: Valid(_masked_mean), ("fc",), inputs=words),
    "every text by itself": Case(lambda: Valid(_of_each_length), ("fc",), inputs=words),
    # over the batch
    "scores less the batch's mean": _scores(lambda m, y: y - y.mean(0)),
    "scores balanced over the batch": _case(_sinkhorn, "fc", layers=one()),
    "features standardised over the batch": _case(_standardised, "fc", layers=one()),
    # what the weights are made of
    "texts of the classes": Case(ZeroShot, ()),
    "DoRA": _case(_dora, "fc", layers=lambda: {"fc": fc(), "A": nn.Parameter(weight(2, D)), "B": nn.Parameter(weight(K, 2)), "size": nn.Parameter(weight(K, 1))}),
    "a soup of two heads": _case(_soup, "?", layers=lambda: {"a": fc(), "b": fc()}),
    "a step along the slope": Case(_case(_energy, "fc", layers=one()).build, ("fc",), tied=True),
    "codes, then a table": _case(lambda m, h: m.V[torch.cdist(h, m.W).argmin(-1)], layers=lambda: {"W": nn.Parameter(0.3 * weight(12, D)), "V": nn.Parameter(weight(12, K))}, refused="no layer with weights"),
    "densely connected": _case(_dense, "fc", layers=lambda: {"a": fc(D, D), "b": fc(2 * D, D), "fc": fc(3 * D)}),
    "scores aside, softly": _case(_aside, "fc", "aux", layers=lambda: {"up": fc(D, D), "fc": fc(), "aux": fc()}),
    "quantised as a graph": Case(_graph_quantised, inputs=images, hidden=True),
    "a distribution": _case(lambda m, h: torch.distributions.Categorical(logits=m.fc(h)), "fc", layers=one()),
    # what becomes of the scores
    "scores and an MLP of them": _scores(lambda m, y: y + m.b(torch.relu(m.a(y))), "fc", "b"),
    "scores and their mix": _scores(lambda m, y: y + m.cal(y)),
    "Dirichlet calibration": _scores(lambda m, y: m.cal(y.log_softmax(-1))),
    "correlated sigmoids": _scores(lambda m, y: m.cal(torch.sigmoid(y)), "cal"),
    "scores cut off": _scores(lambda m, y: torch.relu(y)),
    "scores on a sphere": _scores(lambda m, y: F.normalize(y)),
    "scores normed": _scores(lambda m, y: F.layer_norm(y, (K,)), refused="head="),
    "scores normed, named": _scores(lambda m, y: F.layer_norm(y, (K,)), "fc", head="fc"),
    "scores smoothed": _case(_smooth, "fc", layers=one()),
    "scores summed up": _scores(lambda m, y: y.cumsum(-1)),
    "scores centred": _scores(lambda m, y: y - y.mean(-1, keepdim=True)),
}  # fmt: skip
