"""Classifiers that are odd from the outside: what they take, what they give, how they are wrapped.

The tables read like the one in `odd_heads.py`.
"""

# One line per case: the table is to be read down, not across.
# ruff: noqa: E501
from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odd_heads import (
    Case,
    D,
    K,
    Map,
    Pooled,
    RecurrentPooled,
    Then,
    _case,
    _plain,
    _sequence,
    fc,
    images,
    one,
    waves,
)

Named = namedtuple("Named", "scores hidden")


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


@dataclass
class Other:
    scores: Tensor
    hidden: Tensor


class Box:
    """No dataclass, no mapping: an object with attributes."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Lazy:
    """Makes its logits when it is asked."""

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    @property
    def logits(self) -> Tensor:
        return 2 * self.scores


class KeywordsOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Pooled(), fc()

    def forward(self, *, x: Tensor, scale: Tensor | None = None, flag: bool = True) -> Tensor:
        z = self.body(x)
        return self.fc(z if scale is None else z * scale[:, None])


class Many(nn.Module):
    """Any number of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Pooled(), fc()

    def forward(self, *xs: Tensor) -> Tensor:
        return self.fc(sum(self.body(x) for x in xs) / len(xs))


class Listed(nn.Module):
    """A list of samples, each of its own length."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Pooled(), fc()

    def forward(self, samples: list[Tensor]) -> Tensor:
        return self.fc(torch.cat([self.body(sample[None]) for sample in samples]))


class Offsets(nn.Module):
    """All words of a batch in one row, and where each text begins."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.fc = nn.EmbeddingBag(50, D), fc()

    def forward(self, text: Tensor, offsets: Tensor) -> Tensor:
        return self.fc(self.emb(text, offsets))


class Table(nn.Module):
    """Categories and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.ModuleList(nn.Embedding(9, 4) for _ in range(3))
        self.body = nn.Sequential(nn.Linear(12 + 5, D), nn.BatchNorm1d(D), nn.ReLU())
        self.fc = fc()

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        parts = [emb(categories[:, i]) for i, emb in enumerate(self.emb)]
        return self.fc(self.body(torch.cat([*parts, numbers], 1)))


class Bag(nn.Module):
    """Counts of words."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(60, D), nn.ReLU(), nn.Dropout(0.5))
        self.fc = fc()

    def forward(self, counts: Tensor) -> Tensor:
        return self.fc(self.body(counts / counts.sum(1, keepdim=True)))


class Whole(nn.Module):
    """Whole numbers as they come from a file: 8-bit images."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Map(), fc()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc(self.body(pixels.permute(0, 3, 1, 2).float() / 255).mean((2, 3)))


class Single(nn.Module):
    """No batch axis at all."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Linear(5, D), nn.Tanh()), fc()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean(0))


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Map(), fc()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.fc(self.body(x).mean((2, 3))).float()


class Inference(nn.Module):
    """A body that is run in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = Pooled(), fc()

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            z = self.body(x)
        return self.fc(z.clone())


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.body, self.fc, self.reentrant = Pooled(), fc(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        return self.fc(checkpoint(self.body, x, use_reentrant=self.reentrant))


class OwnEval(nn.Module):
    """Its train flag does nothing; it asks another one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.fc = Pooled(), nn.Dropout(0.5), fc()

    def forward(self, x: Tensor) -> Tensor:
        z = self.drop(self.body(x))
        return self.fc(z) if not self.training else self.fc(z) + 1


def _hooked(pre: bool) -> nn.Module:
    model = _plain()
    if pre:
        model.fc.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    else:
        model.fc.register_forward_hook(lambda m, args, out: torch.tanh(out))
    return model


def _static() -> nn.Module:
    quantisation = torch.ao.quantization
    model = nn.Sequential(
        quantisation.QuantStub(), nn.Conv2d(3, D, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), fc(), quantisation.DeQuantStub(),
    ).eval()  # fmt: skip
    model.qconfig = quantisation.get_default_qconfig("fbgemm")
    prepared = quantisation.prepare(model)
    prepared(images())
    return quantisation.convert(prepared)


def _float_head() -> nn.Module:
    return nn.Sequential(*list(_static())[:-2], torch.ao.nn.quantized.DeQuantize(), fc())  # type: ignore[call-overload]


def _aware(watching: bool) -> nn.Module:
    quantisation = torch.ao.quantization
    model = nn.Sequential(Pooled(), fc())
    model[1].qconfig = quantisation.get_default_qat_qconfig("fbgemm")
    model = quantisation.prepare_qat(model.train())
    model(waves())
    if not watching:
        model.apply(quantisation.disable_observer)
    return model.eval()


class Int8(nn.Module):
    """Weights kept as whole numbers with a scale per class."""

    def __init__(self) -> None:
        super().__init__()
        self.body: Pooled | RecurrentPooled = Pooled()
        self.register_buffer("w", torch.randint(-127, 128, (K, D), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(K, 1) / 99)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) @ (self.w.float() * self.scale).T


class WholeProduct(Int8):
    """The product itself is one of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = RecurrentPooled()

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        step = z.abs().amax(-1, keepdim=True) / 127
        return (z / step).round().long() @ self.w.long().T * self.scale[:, 0] * step


def _frozen() -> nn.Module:
    return torch.jit.freeze(torch.jit.script(_sequence().eval()))


def _part_scripted() -> nn.Module:
    return nn.Sequential(torch.jit.trace(Pooled().eval(), waves()), fc())


def _scripted_head() -> nn.Module:
    return nn.Sequential(Pooled(), torch.jit.script(fc()))


def _compiled_body() -> nn.Module:
    return Then(torch.compile(Map(), backend="eager"), lambda m, h: m.fc(h.mean((2, 3))), fc=fc())


def _compiled_in_place() -> nn.Module:
    model = _sequence()
    model.compile(backend="eager")
    return model


def _double(module: nn.Module) -> nn.Module:
    return module.double()


def _give(what: str) -> Any:
    forms = {
        "tuple": lambda m, h: (None, m.fc(h)),
        "dataclass": lambda m, h: Output(m.fc(h), h),
        "other dataclass": lambda m, h: Other(m.fc(h), h),
        "named tuple": lambda m, h: Named(m.fc(h), h),
        "object": lambda m, h: Box(m.fc(h)),
        "lazy": lambda m, h: Lazy(m.fc(h)),
        "ordered": lambda m, h: OrderedDict(logits=m.fc(h), z=h),
        "list in a dict": lambda m, h: {"out": [m.fc(h)]},
        "float64": lambda m, h: m.fc(h).double(),
        "bfloat16": lambda m, h: m.fc(h).bfloat16(),
        "transposed": lambda m, h: m.fc(h).T,
        "one axis more": lambda m, h: m.fc(h)[:, None],
        "with its features": lambda m, h: (m.fc(h), h),
        "labels and scores": lambda m, h: {"label": m.fc(h).argmax(-1), "score": m.fc(h)},
        "sorted": lambda m, h: m.fc(h).sort(-1, descending=True).values,
        "best three": lambda m, h: m.fc(h).softmax(-1).topk(3, -1),
        "nothing": lambda m, h: None,
        "text": lambda m, h: "a label",
        "a number": lambda m, h: float(m.fc(h).sum()),
        "not a number": lambda m, h: m.fc(h) * float("nan"),
        "infinite": lambda m, h: m.fc(h) / 0,
        "a loss": lambda m, h: m.fc(h).square().mean(),
    }
    return forms[what]


def _gives(what: str, *names: str, **rest: Any) -> Case:
    return _case(_give(what), *(names or ("fc",)), layers=one(), **rest)


def _texts() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    return torch.randint(0, 50, (20,), generator=random), torch.tensor([0, 7, 12])


def _rows() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    categories = torch.randint(0, 9, (4, 3), generator=random)
    return categories, torch.randn(4, 5, generator=random)


def _counts() -> Tensor:
    return torch.rand(3, 60, generator=torch.Generator().manual_seed(1)) * 5


def _pixels() -> Tensor:
    return torch.randint(
        0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


def _keywords(**more: Any) -> Any:
    return lambda: {"x": waves(), **more}


def _samples() -> tuple[list[Tensor]]:
    return ([waves()[0], waves()[1, :9]],)


CALLS: dict[str, Case] = {
    # what they give
    "a tuple with nothing in front": _gives("tuple"),
    "a dataclass": _gives("dataclass"),
    "a dataclass, named": _gives("other dataclass", output="scores"),
    "a named tuple": _gives("named tuple", output="scores"),
    "an object": _gives("object"),
    "an object that computes": _gives("lazy", refused="output="),
    "an object that computes, named": _gives("lazy", output="scores"),
    "an ordered mapping": _gives("ordered"),
    "a list in a mapping": _gives("list in a dict"),
    "scores as float64": _gives("float64"),
    "scores as bfloat16": _gives("bfloat16"),
    "transposed": _gives("transposed"),
    "one axis more": _gives("one axis more"),
    "with its features": _gives("with its features", output=0),
    "labels and scores": _gives("labels and scores"),
    "sorted scores": _gives("sorted"),
    "best three": _gives("best three"),
    "nothing": _gives("nothing", refused="no float tensor"),
    "a text": _gives("text", refused="no float tensor"),
    "a number": _gives("a number", refused="no float tensor"),
    "not a number": _gives("not a number", refused="not finite"),
    "infinite": _gives("infinite", refused="not finite"),
    "a loss": _gives("a loss"),
    # what they take
    "keywords only": Case(KeywordsOnly, ("fc",), inputs=_keywords()),
    "keywords, one of them None": Case(KeywordsOnly, ("fc",), inputs=_keywords(scale=None, flag=False)),
    "keywords, a scale": Case(KeywordsOnly, ("fc",), inputs=_keywords(scale=torch.tensor([0.5, 2.0]))),
    "three inputs": Case(Many, ("fc",), inputs=lambda: (waves(), waves().flip(1), 2 * waves())),
    "a list of samples": Case(Listed, ("fc",), inputs=_samples),
    "words and offsets": Case(Offsets, ("fc",), inputs=_texts),
    "categories and numbers": Case(Table, ("fc",), inputs=_rows),
    "counts of words": Case(Bag, ("fc",), inputs=_counts),
    "8-bit images": Case(Whole, ("fc",), inputs=_pixels),
    "no batch axis": Case(Single, ("fc",), inputs=lambda: waves()[0]),
    "one sample": _case(lambda m, h: m.fc(h), "fc", layers=one(), inputs=lambda: waves(1)),
    "one sample, squeezed": _case(lambda m, h: m.fc(h).squeeze(), "fc", layers=one(), inputs=lambda: waves(1)),
    "two samples, squeezed": _case(lambda m, h: m.fc(h).squeeze(), "fc", layers=one()),
    "two samples, one class, squeezed": _case(lambda m, h: m.fc(h).squeeze(), "fc", layers=one(classes=1)),
    # how they run
    "float64": Case(lambda: _double(_plain()), ("fc",), inputs=lambda: waves().double()),
    "float16": Case(lambda: _plain().half(), ("fc",), inputs=lambda: waves().half()),
    "float16 images": Case(lambda: _sequence().half(), ("4",), inputs=lambda: images().half()),
    "autocast": Case(Autocast, ("fc",), inputs=images),
    "inference mode": Case(Inference, ("fc",)),
    "checkpointed": Case(lambda: Checkpointed(False), ("fc",)),
    "checkpointed, re-entrant": Case(lambda: Checkpointed(True), ("fc",)),
    "train mode asked": Case(OwnEval, ("fc",)),
    "a hook on the head's input": Case(lambda: _hooked(True), ("fc",)),
    "a hook on the head's output": Case(lambda: _hooked(False), ("fc",)),
    # how they are wrapped
    "quantised throughout": Case(_static, ("5",), inputs=images, hidden=True),
    "quantised body": Case(_float_head, ("6",), inputs=images),
    "trained for quantisation": Case(lambda: _aware(False), ("1",)),
    "trained for quantisation, still watching": Case(lambda: _aware(True), refused="keeps a state"),
    "8-bit weights": Case(Int8, ()),
    "a product of whole numbers": Case(WholeProduct, refused="around the head"),
    "frozen": Case(_frozen, inputs=images, hidden=True),
    "traced body": Case(_part_scripted, ("1",)),
    "scripted head": Case(_scripted_head, ("1",)),
    "compiled body": Case(_compiled_body, ("fc",), inputs=images),
    "compiled in place": Case(_compiled_in_place, ("4",), inputs=images),
    "DataParallel twice": Case(lambda: nn.DataParallel(nn.DataParallel(_plain())), ("module.module.fc",)),
    "fx, renamed": Case(lambda: torch.fx.symbolic_trace(nn.Sequential(OrderedDict(m=_sequence()))), ("m.4",), inputs=images),
    "exported with a free batch": Case(lambda: torch.export.export(_sequence(), (images(),), dynamic_shapes=({0: torch.export.Dim("b")},)).module(), None, inputs=images),
}  # fmt: skip
