"""Whether a cut that was called proved really is one, measured without the library's own checks.

It knows `split` by its public face alone: the inputs, the law and the weights are tried anew here.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from penult.errors import UsageError
from penult.tracing.split import Split, split

TOLERANCE = 1e-5


@dataclass
class Finding:
    """came_to: proved, refused or wrong. why: the refusal, what is wrong, or the head's names.

    head: names of the parameters and buffers that the second half needs. tried: how many inputs
    the law held for. figures: of the certificate, and of the weights behind the cut.
    """

    came_to: str
    why: str
    head: tuple[str, ...] = ()
    tried: int = 0
    share: float = 0.0  # of all parameters, those behind the cut
    power: float = 0.0
    widths: list[tuple[int, ...]] = field(default_factory=list)


def called(model: nn.Module, x: Any) -> Any:
    """The model's own answer, on a copy of the input."""
    x = tree_map_tensors(x, Tensor.clone)
    with torch.no_grad():
        if isinstance(x, dict):
            return model(**x)
        return model(*x) if isinstance(x, tuple | list) else model(x)


def answer(model: nn.Module, x: Any, output: str | int | None = None) -> Tensor:
    """f(x): the logits, in eval mode, read by the plainest rule there is."""
    given = called(model, x)
    if isinstance(output, str):
        return given[output] if isinstance(given, dict) else getattr(given, output)
    if isinstance(output, int):
        return list(given.values() if isinstance(given, dict) else given)[output]
    named = given.get("logits") if isinstance(given, dict) else getattr(given, "logits", None)
    if isinstance(named, Tensor):
        return named
    return next(leaf for leaf in tree_leaves(given) if is_float(leaf))


def plain(value: Tensor) -> Tensor:
    return value.dequantize() if value.is_quantized else value


def is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def tree_map_tensors(x: Any, change: Any) -> Any:
    leaves, spec = tree_flatten(x)
    return tree_unflatten([change(v) if isinstance(v, Tensor) else v for v in leaves], spec)


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest finite number of `other`."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    wide = torch.complex128 if one.is_complex() else torch.float64
    a, b = one.to(wide).flatten(), other.to(wide).flatten()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    if not bool((a.isfinite() & b.isfinite())[~same].all()):
        return float("inf")
    return float((a - b)[~same].abs().max() / b[b.isfinite()].abs().max().clamp(min=1e-30))


# ---- other inputs


def fresh(x: Any, seed: int = 77) -> Iterator[tuple[str, Any]]:
    """Other inputs: other values, other batch sizes, other lengths or image sizes, other masks."""
    yield "other values", redrawn(x, seed)
    yield "quieter", redrawn(x, seed + 1, gain=0.3)
    for batch in (1, 4):
        yield f"batch {batch}", redrawn(resized(x, 0, batch), seed + batch)
    for axis, size in reshapes(x):
        yield f"axis {axis} of {size}", redrawn(resized(x, axis, size), seed + size)


def reshapes(x: Any) -> list[tuple[int, int]]:
    tensors = [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]
    largest = max(tensors, key=lambda v: (v.ndim, v.numel()))
    if largest.ndim == 4 and largest.is_floating_point():
        return [(-1, largest.shape[-1] + 32), (-2, largest.shape[-2] + 64)]
    sizes = (largest.shape[1] - 3, largest.shape[1] + 5) if largest.ndim > 1 else ()
    return [(1, size) for size in sizes if size > 0]


def resized(x: Any, axis: int, size: int) -> Any:
    """Every tensor that is as long as the largest one along this axis is cut or repeated."""
    tensors = [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]
    length = max(tensors, key=lambda v: (v.ndim, v.numel())).shape[axis]
    if axis == 0:
        length = tensors[0].shape[0] if tensors[0].ndim else 0
    places = torch.arange(size) % max(length, 1)

    def change(value: Tensor) -> Tensor:
        fits = value.ndim > (axis if axis >= 0 else -axis - 1) and value.shape[axis] == length
        return value.index_select(axis, places) if fits else value

    return tree_map_tensors(x, change)


def redrawn(x: Any, seed: int, gain: float = 1.0) -> Any:
    """Other content: noise for floats, other ids where ids are no markers, shorter masks."""
    generator = torch.Generator().manual_seed(seed)

    def change(value: Tensor) -> Tensor:
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            offset = torch.randn(value.shape[:1] + (1,) * (value.ndim - 1), generator=generator)
            binary = bool(((value == 0) | (value == 1)).all())
            return value if binary else (gain * (noise + 0.3 * offset)).to(value.dtype)
        if value.dtype == torch.bool or value.numel() == 0 or value.ndim == 3 or value.max() < 5:
            return value  # markers, masks, boxes
        low = 5 if value.ndim == 2 else int(value.min())
        drawn = torch.randint(low, int(value.max()) + 1, value.shape, generator=generator)
        return torch.where(value >= low, drawn.to(value.dtype), value)

    return tree_map_tensors(x, change)


# ---- the weights


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    both = [*model.named_parameters(), *model.named_buffers()]
    return [(n, t) for n, t in both if is_float(t) or (isinstance(t, Tensor) and t.is_complex())]


class _Moved:
    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def __enter__(self) -> None:
        self.before = [t.detach().clone() for t in self.tensors]
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for t in self.tensors:
                size = float(t.abs().double().mean()) if t.numel() else 0.0
                noise = torch.randn(t.shape, generator=generator).to(t.dtype)
                t.copy_(t + (0.3 * size + 0.1) * noise)

    def __exit__(self, *_: Any) -> None:
        with torch.no_grad():
            for t, before in zip(self.tensors, self.before, strict=True):
                t.copy_(before)


def needed(model: nn.Module, cut: Split, z: Any) -> tuple[str, ...]:
    """Which parameters and buffers the second half reads: those that change what it returns."""
    before = cut.logits(z)

    def among(weights: list[tuple[str, Tensor]]) -> list[str]:
        with _Moved([tensor for _, tensor in weights]):
            try:
                after = cut.logits(z)
            except UsageError:
                after = before * float("nan")
        if difference(after, before) == 0:
            return []
        if len(weights) == 1:
            return [weights[0][0]]
        half = len(weights) // 2
        return among(weights[:half]) + among(weights[half:])

    return tuple(name for some in _parts(_weights(model)) for name in among(some))


def _parts(weights: list[tuple[str, Tensor]], most: int = 2**26) -> Iterator[list[Any]]:
    """Weights in parts of so many numbers, since a copy is kept of what is changed."""
    part: list[Any] = []
    for name, tensor in weights:
        part.append((name, tensor))
        if sum(t.numel() for _, t in part) > most:
            yield part
            part = []
    if part:
        yield part


# ---- the verdict


def examine(
    model: nn.Module,
    x: Any,
    *,
    weights: bool = True,
    tied: bool = False,
    **how: Any,
) -> Finding:
    """Split the model and try whatever is proved on inputs that the proof never saw.

    weights: find what the second half reads, by changing it. tied: the first half may read it too.
    """
    for module in model.modules():  # exported modules have no eval()
        module.training = False
    before = fingerprint(model)
    kept = tree_map_tensors(x, Tensor.clone)
    cut = split(model, x, **how)
    if fingerprint(model) != before:
        return Finding("wrong", "the model's state has changed")
    if not all(torch.equal(a, b) for a, b in zip(tensors_of(x), tensors_of(kept), strict=True)):
        return Finding("wrong", "the example has changed")
    if not cut.certificate.ok:
        return Finding("refused", cut.certificate.refusal, power=cut.certificate.power)
    found = Finding("proved", ", ".join(cut.head.names), power=cut.certificate.power)
    wrong = _law(model, cut, x, how.get("output"), found)
    if not wrong and weights:
        wrong = _behind(model, cut, x, found, tied)
    if not wrong and fingerprint(model) != before:
        wrong = "the model's state has changed"
    if wrong:
        found.came_to, found.why = "wrong", wrong
    return found


def tensors_of(x: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]


def fingerprint(model: nn.Module) -> dict[str, int]:
    """A checksum of every parameter and buffer."""
    tensors = {n: t.detach() for n, t in model.state_dict().items() if isinstance(t, Tensor)}
    return {
        n: zlib.crc32(t.contiguous().flatten().view(torch.uint8).numpy())
        for n, t in tensors.items()
        if t.layout == torch.strided and t.numel() and not t.is_quantized
    }


def _law(model: nn.Module, cut: Split, x: Any, output: Any, found: Finding) -> str:
    """What is wrong with the law, if anything. All the first halves run before any second one."""
    cases = []
    for note, other in [("the example", x), *fresh(x)]:
        try:
            expected = answer(model, other, output)
        except Exception:  # the model takes no such input
            continue
        try:
            z = cut.prelogits(tree_map_tensors(other, Tensor.clone))
        except Exception as error:
            return f"no prelogits for {note}: {type(error).__name__}: {error}"
        cases.append((note, expected, z))
    random.Random(0).shuffle(cases)
    for note, expected, z in cases:
        try:
            again = cut.logits(z)
        except Exception as error:
            return f"no logits for {note}: {type(error).__name__}: {error}"
        error = difference(again, expected)
        if not error <= TOLERANCE:
            return f"off by {error:.1e} for {note}"
        if trivial(z, expected):
            return f"trivial: {trivial(z, expected)} for {note}"
        if note == "the example":
            found.widths = [tuple(v.shape) for v in tensors_of(z)]
    found.tried = len(cases)
    return "" if found.tried > 1 else "no other input was taken"


def trivial(z: Any, logits: Tensor) -> str:
    """In what way prelogits are the logits under another name."""
    for part in tensors_of(z):
        if part.numel() != logits.numel() or not is_float(part):
            continue
        flat, wanted = part.double().flatten(), logits.double().flatten()
        if part.shape[-1] == logits.shape[-1]:
            for name, form in (
                ("its softmax", part.double().softmax(-1)),
                ("its log-softmax", part.double().log_softmax(-1)),
            ):
                if torch.allclose(form.flatten(), wanted, 1e-4, 1e-6):
                    return f"the logits are {name}"
        for name, form in (
            ("the prelogits", flat),
            ("their negatives", -flat),
            ("their sigmoid", flat.sigmoid()),
            ("their tanh", flat.tanh()),
            ("their exponential", flat.exp()),
        ):
            if torch.allclose(form, wanted, 1e-4, 1e-6):
                return f"the logits are {name}"
        if part.shape != logits.shape and torch.allclose(
            flat.sort().values, wanted.sort().values, 1e-5, 1e-7
        ):
            return "the logits are the prelogits in another order"
        if logits.ndim > 1 and part.shape == logits.shape and len(logits) > 3:
            line = torch.stack([flat, torch.ones_like(flat)], 1)
            fit = line @ torch.linalg.lstsq(line, wanted[:, None]).solution
            if torch.allclose(fit[:, 0], wanted, 1e-4, 1e-6):
                return "the logits are a multiple of the prelogits"
    return ""


def _behind(model: nn.Module, cut: Split, x: Any, found: Finding, tied: bool) -> str:
    """What is wrong with the weights behind the cut."""
    z = cut.prelogits(x)
    found.head = needed(model, cut, z)
    sizes = {n: t.numel() for n, t in model.named_parameters()}
    found.share = sum(sizes.get(n, 0) for n in found.head) / max(sum(sizes.values()), 1)
    if not found.head and any(t.ndim > 1 for t in model.parameters()):
        return "trivial: no weight lies behind the cut"
    if not tied:
        heads = [t for n, t in _weights(model) if n in found.head]
        with _Moved(heads):
            after = cut.prelogits(x)
        for one, other in zip(tensors_of(after), tensors_of(z), strict=True):
            if difference(plain(one), plain(other)) > 0:
                return "a weight lies on both sides of the cut"
    return ""
