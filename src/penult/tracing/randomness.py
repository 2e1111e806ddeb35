"""Random numbers in a recorded pass: which operations draw them, and whether they reach a tensor.

Looked for in what ran and never in values: a dropout of one in a thousand changes no value in most
passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from penult.tracing.trace import SHAPE_ONLY, Op, TensorRead, Trace


@dataclass(frozen=True, slots=True)
class Randomness:
    """reaching: the operations whose draws reach a tensor. elsewhere: those whose draws do not.
    read: modules in which Python read a random value. states: of the generator, at each draw."""

    reaching: tuple[str, ...]
    elsewhere: tuple[str, ...]
    read: tuple[str, ...]
    states: tuple[int, ...]

    @classmethod
    def of(cls, trace: Trace, read: TensorRead) -> Randomness:
        """What a pass draws, and what of it reaches `read`."""
        drawing = [op for op in trace.ops if op.drawn is not None]
        reaching = sources(trace, read)
        indices = {op.index for op in reaching}
        return cls(
            words(reaching),
            words(op for op in drawing if op.index not in indices),
            tuple(dict.fromkeys(name or "the model" for name in trace.chances)),
            states_of(trace),
        )


def states_of(trace: Trace) -> tuple[int, ...]:
    """Of the generator at each draw; the same in another pass only where the model sets them."""
    return tuple(op.drawn for op in trace.ops if op.drawn is not None)


def sources(trace: Trace, read: TensorRead) -> list[Op]:
    """The operations that drew random numbers which reach a tensor, in order."""
    if not read.random:
        return []
    found: dict[int, Op] = {}
    pending, seen = [read.producer], set()
    while pending:
        op = pending.pop()
        if op is None or op.index in seen or not op.random:
            continue
        seen.add(op.index)
        if op.drawn is not None:
            found[op.index] = op
        if op.name not in SHAPE_ONLY:
            pending += [source.producer for source in op.reads]
    return [found[index] for index in sorted(found)]


def words(ops: Iterable[Op]) -> tuple[str, ...]:
    """`bernoulli_ in encoder.drop`, each once."""
    named = (f"{op.name.removeprefix('aten.')} in {op.module or 'the model'}" for op in ops)
    return tuple(dict.fromkeys(named))
