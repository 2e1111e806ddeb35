"""Run a model without leaving a mark on it: plainly or recorded, always on copies of its inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from penult.splitting.head import logits_of
from penult.splitting.trace import Trace, record
from penult.splitting.variants import Inputs


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be cut. output: which of several. named: the module that the user calls head."""

    model: nn.Module
    output: str | int | None
    named: str | None

    def logits(self, inputs: Inputs) -> Tensor:
        """f(x), in one plain pass."""
        with torch.no_grad():
            copy = inputs.copy()
            return logits_of(self.model(*copy.args, **copy.kwargs), self.output).clone()

    def record(self, inputs: Inputs) -> tuple[Trace, Inputs]:
        """A recorded pass, and the very tensors that it was run on."""
        copy = inputs.copy()
        return record(self.model, copy.args, copy.kwargs), copy

    def weights(self) -> dict[str, Tensor]:
        """The parameters and buffers, by name."""
        return {
            **dict(self.model.named_buffers(remove_duplicate=False)),
            **dict(self.model.named_parameters(remove_duplicate=False)),
        }


def relative(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest of `other`; not finite numbers must agree."""
    if one.shape != other.shape:
        return float("inf")
    a, b = one.detach().double(), other.detach().double()
    finite = torch.isfinite(b)
    if not torch.equal(finite, torch.isfinite(a)) or not torch.equal(
        torch.nan_to_num(a[~finite]), torch.nan_to_num(b[~finite])
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    return float((a[finite] - b[finite]).abs().max() / b[finite].abs().max().clamp(min=1e-30))


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; modes, buffers and random state are as before afterwards."""
    # A frozen TorchScript module has no mode.
    modes = [(m, m.training) for m in model.modules() if hasattr(m, "training")]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(d or 0 for d in devices)), torch.no_grad():
            for module, _ in modes:
                module.training = False
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        _put_back(buffers)


def _put_back(buffers: list[tuple[nn.Module, str, Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for module, name, buffer, before in buffers:
            if module._buffers.get(name) is not buffer:
                module._buffers[name] = buffer
            if not torch.equal(buffer, before):
                buffer.copy_(before)
