"""A model's repeated blocks: modules of one class, each of which runs on what the one before left.

Found in a recorded forward pass and the module tree; knows no model and no tap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from torch import nn

from penult.splitting.head import logits_of
from penult.splitting.trace import Call, Read, Trace


def find_blocks(trace: Trace, before: set[int], module: nn.Module) -> list[str]:
    """The names of the repeated blocks, in the order in which they run.

    Blocks are modules of one class with numbered names, each of which runs on what the one before
    it left: in one container, or in several (a ResNet's stages). Blocks inside of blocks are none;
    of several kinds, those count that hold most of the weights.
    """
    modules = dict(module.named_modules())
    ran = {call.module for call in trace.calls}
    numbered = [n for n in modules if n.rpartition(".")[2].isdigit() and n in ran]
    kinds = Counter(type(modules[name]) for name in numbered)
    repeated = [name for name in numbered if kinds[type(modules[name])] > 1]
    alike: dict[type[nn.Module], list[str]] = {}
    for name in repeated:
        if not any(name.startswith(f"{other}.") for other in repeated):
            alike.setdefault(type(modules[name]), []).append(name)
    best: tuple[int, list[str]] = (0, [])
    for names in alike.values():
        for chain in _chains(trace, names, before):
            size = sum(p.numel() for name in chain for p in modules[name].parameters())
            if len(chain) > 1 and size > best[0]:
                best = (size, chain)
    return best[1]


def first_float(reads: Sequence[Read], least: int = 2) -> int | None:
    """Index of the first float tensor that depends on the input; least: axes that it has."""
    for index, read in enumerate(reads):
        if read.depends and read.tensor.is_floating_point() and read.tensor.ndim >= least:
            return index
    return None


def _chains(trace: Trace, names: Sequence[str], before: set[int]) -> Iterator[list[str]]:
    """Runs of modules, each of which reads what the one before it left."""
    batch = logits_of(trace.output).shape[0]
    chain: list[str] = []
    last: Read | None = None
    for name in sorted(names, key=lambda name: trace.calls_of(name)[-1].first):
        edges = _edges(trace.calls_of(name)[-1])
        if edges is None:
            continue
        entry, left = edges
        if left.producer is None or left.producer.index not in before:
            continue
        if left.tensor.shape[0] != batch:  # batch folded into another axis
            continue
        if last is not None and not _leads(trace, last, entry):
            yield chain
            chain = []
        chain.append(name)
        last = left
    yield chain


def _edges(call: Call) -> tuple[Read, Read] | None:
    """The hidden states that enter a block, and those that leave it."""
    entry, leave = first_float(call.inputs, least=3), first_float(call.outputs, least=3)
    if entry is None or leave is None:
        return None
    return call.inputs[entry], call.outputs[leave]


def _leads(trace: Trace, source: Read, target: Read) -> bool:
    """Whether one tensor is made from another."""
    assert source.producer is not None
    for op in trace.upstream([target]):
        if op.index <= source.producer.index:
            return op is source.producer
    return False
