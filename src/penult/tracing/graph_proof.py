"""Prove the cut of a graph by running it, and measure what its logits need of a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from penult.errors import HeadNotFound
from penult.tracing.anatomy import Statement
from penult.tracing.certificate import POWER, SMALL, TOLERANCE, Certificate, Check, largest_batch
from penult.tracing.graph import Array, Feeds, Graph, Node, Session
from penult.tracing.graph_head import GraphHead
from penult.tracing.spots import Tap

HELD_OUT = (5, 17, 7, 11, 4, 3)  # batch sizes; two of them, as memory allows
LENGTHS = (0.9, 0.6)  # of the example's


def prove(cut: GraphHead) -> Certificate:
    """Run both halves and the whole on several inputs, and compare.

    Raises:
        HeadNotFound: there is nothing to prove.
    """
    require_unrandom(cut)
    places = cut.cut.places
    outputs = list(dict.fromkeys([cut.logits, cut.output]))
    tolerance = tolerance_of(cut)
    needed = needed_power(tolerance)
    whole, front = cut.graph.parts.session(outputs), cut.graph.parts.session([*outputs, *places])
    head = cut.open_head()
    halves = Halves(whole, front, head, places, tolerance)
    expected = [whole(feeds) for feeds in cut.examples[:2]]
    power = _power([values[0] for values in expected], tolerance)
    if power < needed:  # two that the graph hardly tells apart: the others as well
        expected += [whole(feeds) for feeds in cut.examples[2:]]
        power = _power([values[0] for values in expected], tolerance)
    checks = [
        _round_trip(halves, cut.examples[: len(expected)], expected),
        Check("power", power >= needed, power, "the logits of two inputs differ"),
    ]
    if closed := _closed_form(cut, [front(one)[-len(places) :] for one in cut.examples[:2]]):
        checks.append(closed)
    if cut.graph.any_batch:
        examples, rows = cut.examples[:2], expected[:2]
        checks.append(_batch(halves, examples, rows, "other batch size"))
        for size in _held_out(cut):
            more = _repeated(examples, size), _repeated(rows, size)
            checks.append(_batch(halves, *more, "held out"))
    for name, part in (("other length", 0.75), *(("held out", part) for part in LENGTHS)):
        if shorter := _shorter(cut.graph, cut.examples[0], part):
            checks.append(_other_length(halves, shorter, name))
    return _judged(checks, power, needed)


def _held_out(cut: GraphHead) -> Sequence[int]:
    """Sizes of larger batches that fit into about twice the memory of a plain run; three items
    where none does."""
    weights, activations = cut.graph.memory(cut.shapes)
    inputs = sum(value.nbytes for value in cut.examples[0].values())
    batch = len(next(iter(cut.examples[0].values())))
    most = largest_batch(weights, activations, inputs, max(batch, 1))
    return [size for size in HELD_OUT if size <= most][:2] or HELD_OUT[-1:]


def _repeated(values: Sequence[Any], size: int) -> list[Any]:
    return [values[number % len(values)] for number in range(size)]


def require_unrandom(cut: GraphHead) -> None:
    """Refuse a graph that draws random numbers on the way to its logits.

    Raises:
        HeadNotFound: the operations that draw them.
    """
    found = (*cut.drawn.get(cut.logits, ()), *cut.drawn.get(cut.output, ()))
    if found:
        named = ", ".join(dict.fromkeys(found))
        raise HeadNotFound(
            f"random numbers reach the logits ({named}), so no cut can give what the graph "
            "returns; export the model in eval mode"
        )


_EPSILONS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}  # from 1 to the next number
_HALF_POWER = 10.0  # tolerances of numbers of 16 bits, by which the logits of two inputs differ


def tolerance_of(cut: GraphHead) -> float:
    """The largest relative error that passes: four roundings of the shortest numbers on the way
    from the cut to the output; that of fp32 where there are none of 16 bits."""
    names = {cut.logits, cut.output}
    with suppress(HeadNotFound):
        names |= {*cut.cut.places, *(name for node in cut.cut.tail for name in node.writes)}
    types = cut.graph.parts.types
    used = {types.get(name, "") for name in names}
    return max(TOLERANCE, *(4 * _EPSILONS.get(kind, 0.0) for kind in used), 0.0)


def needed_power(tolerance: float) -> float:
    """By how many tolerances the logits of two inputs have to differ."""
    return POWER if tolerance == TOLERANCE else _HALF_POWER


def _judged(checks: Sequence[Check], power: float, needed: float) -> Certificate:
    errors = [c.figure for c in checks if c.name != "power" and c.figure is not None]
    failed = sorted(
        (check for check in checks if not check.passed), key=lambda c: c.name == "power"
    )
    refusal = f"{failed[0].name}: {failed[0].note}" if failed else ""
    if [check.name for check in failed] == ["power"]:
        refusal = (
            f"the logits hardly change with the input (by {power:.0f} tolerances, and {needed:.0f} "
            "are needed), so nothing was tested"
        )
    return Certificate(not failed, max(errors, default=0.0), power, tuple(checks), refusal)


@dataclass(frozen=True, slots=True)
class Halves:
    """The whole and its halves, open. places: what enters the head. tolerance: of its numbers."""

    whole: Session
    front: Session
    head: Session
    places: Sequence[str]
    tolerance: float

    def error(self, feeds: Feeds, expected: Sequence[Array]) -> float:
        """The largest difference that the cut makes, relative to the largest value."""
        found = self.front(feeds)
        entering = dict(zip(self.places, found[len(expected) :], strict=True))
        errors = [*map(relative, expected, found)]
        del found  # large scores make room for those of the head alone
        again = self.head(entering)
        return max(*errors, *(relative(*pair) for pair in zip(expected, again, strict=True)))


_PIECE = 2**17  # numbers that are compared at once


def relative(expected: Array, found: Array) -> float:
    """Largest difference over the largest value; infinite where shapes differ or values are not
    finite."""
    if expected.shape != found.shape:
        return float("inf")
    difference = largest = 0.0
    flat = expected.reshape(-1), found.reshape(-1)
    for at in range(0, expected.size, _PIECE):
        one, other = (values[at : at + _PIECE].astype(np.float64) for values in flat)
        sizes = float(np.abs(one - other).max()), float(np.abs(one).max())
        if not np.isfinite(sizes).all():
            return float("inf")
        difference, largest = max(difference, sizes[0]), max(largest, sizes[1])
    return difference / max(largest, 1e-30) if difference else 0.0


def _power(logits: Sequence[Array], tolerance: float) -> float:
    """By how many tolerances the logits of the inputs differ; 0 where that cannot be told."""
    pairs = [(a, b) for i, a in enumerate(logits) for b in logits[i + 1 :] if a.shape == b.shape]
    found = [relative(a, b) for a, b in pairs]
    return max((value / tolerance for value in found if np.isfinite(value)), default=0.0)


def _round_trip(
    halves: Halves, examples: Sequence[Feeds], expected: Sequence[Sequence[Array]]
) -> Check:
    pairs = zip(examples, expected, strict=True)
    error = max(halves.error(feeds, values) for feeds, values in pairs)
    note = f"head(encoder(x)) against the file's own output, {len(examples)} inputs"
    return Check("round trip", error <= halves.tolerance, error, note)


def _closed_form(cut: GraphHead, entering: Sequence[Sequence[Array]]) -> Check | None:
    """The logits by numpy out of the weights in the file, where the head is one linear layer and
    the graph tells its weights. entering: what the cut gives of the first examples."""
    graph, heads = cut.graph, cut.cut.heads
    found = graph.linear(heads[0]) if len(heads) == 1 and not cut.cut.after else None
    if found is None or not _is_copy(graph, cut.logits, heads[0]):
        return None
    weight, bias = found
    whole, limits = graph.parts.session([cut.logits]), graph.limits(cut.logits)
    step = graph.resolution(cut.logits)  # the kernel rounds twice, by half of it each time
    errors, passed = [], True
    for (values,), feeds in zip(entering, cut.examples, strict=False):
        if values.ndim != 2 or values.shape[1] != weight.shape[1]:
            return None
        theirs = whole(feeds)[0].reshape(-1, len(bias)).astype(np.float64)
        ours = np.clip(values.astype(np.float64) @ weight.T + bias, *limits)
        errors.append(relative(theirs, ours))
        passed &= errors[-1] <= TOLERANCE or np.abs(theirs - ours).max() <= 1.01 * step
    own = f", whose integers are {step:.2g} apart" if step else ""
    note = f"prelogits · weights + bias in numpy against the file's own logits{own}"
    return Check("closed form", bool(passed), max(errors), note)


def _is_copy(graph: Graph, name: str, maker: Node) -> bool:
    """Whether a tensor has the values that an operation makes, in whatever shape."""
    while (node := graph.producers.get(name)) is not None and node is not maker:
        if node.op not in graph.copies - {"Transpose", "QuantizeLinear"}:
            return False
        name = node.reads[0]
    return node is maker


def _batch(
    halves: Halves, examples: Sequence[Feeds], expected: Sequence[Sequence[Array]], name: str
) -> Check:
    """Another batch size, and every item in it as it is alone."""
    batch = {name: np.concatenate([feeds[name] for feeds in examples]) for name in examples[0]}
    note = f"a batch of {len(examples)} against the same items alone"
    try:
        error = halves.error(batch, [np.concatenate(rows) for rows in zip(*expected, strict=True)])
    except ValueError as problem:
        return _unless_whole(halves, batch, name, problem)
    return Check(name, error <= halves.tolerance, error, note)


def _unless_whole(halves: Halves, feeds: Feeds, name: str, problem: ValueError) -> Check:
    """A failure, unless the whole does not take such an input either."""
    try:
        halves.whole(feeds)
    except ValueError:
        size = len(next(iter(feeds.values())))
        return Check(name, True, None, f"batch {size}: the graph itself does not take it")
    return Check(name, False, None, f"the whole takes it, its halves don't: {problem}")


def _shorter(graph: Graph, feeds: Feeds, part: float) -> dict[str, Array] | None:
    """A shorter input, where the graph leaves a length free."""
    port = graph.inputs[0]
    if len(graph.inputs) != 1 or port.shape is None or port.shape[-1] is not None:
        return None
    values = feeds[port.name]
    length = max(1, int(values.shape[-1] * part))
    return {port.name: np.ascontiguousarray(values[..., :length])}


def _other_length(halves: Halves, feeds: Feeds, name: str) -> Check:
    try:
        expected = halves.whole(feeds)
    except ValueError:
        return Check(name, True, None, "a shorter input: the graph itself does not take it")
    try:
        error = halves.error(feeds, expected)
    except ValueError as problem:
        return Check(name, False, None, f"the head alone does not take it: {problem}")
    return Check(name, error <= halves.tolerance, error, "a shorter input")


def state_graph(cut: GraphHead, taps: Sequence[Tap]) -> dict[str, Statement]:
    """For each tap: what enters from the first example, everything else from another one."""
    if not taps:
        return {}
    whole = cut.graph.parts.session([cut.logits])
    mine = whole(cut.examples[0])[0]
    tolerance = tolerance_of(cut)
    other, theirs = _other(cut, whole, mine, needed_power(tolerance) * tolerance)
    if other is None or theirs is None:
        return {tap.name: "not proved" for tap in taps}
    stated: dict[str, Statement] = {}  # by tensor
    for names in _held_together(cut, dict.fromkeys(tap.module for tap in taps)):
        values = cut.graph.parts.session(names)(cut.examples[0])
        for name, value in zip(names, values, strict=True):
            mixed = exchanged(cut, other, name, value)
            if mixed is None:
                stated[name] = "not proved"
            elif relative(mine, mixed) <= tolerance:
                stated[name] = "sufficient"
            else:
                stated[name] = "unused" if relative(theirs, mixed) <= tolerance else "partial"
    return {tap.name: stated[tap.module] for tap in taps}


def _held_together(cut: GraphHead, names: Iterable[str]) -> Iterator[list[str]]:
    """The tensors in groups, each of which takes no more memory than a plain run, or than `SMALL`;
    a larger one is alone."""
    most = max(SMALL, cut.graph.memory(cut.shapes)[1])
    group: list[str] = []
    held = 0
    for name in names:
        size = cut.graph.nbytes(name, cut.shapes)
        if group and held + size > most:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _other(
    cut: GraphHead, whole: Session, mine: Array, least: float
) -> tuple[Feeds | None, Array | None]:
    """Another example of the same shapes whose logits differ by at least so much, relatively, and
    its logits."""
    first = cut.examples[0]
    for feeds in cut.examples[1:]:
        if any(feeds[name].shape != first[name].shape for name in first):
            continue
        theirs = whole(feeds)[0]
        if least <= relative(mine, theirs) < float("inf"):
            return feeds, theirs
    return None, None


def exchanged(cut: GraphHead, other: Feeds, name: str, value: Array) -> Array | None:
    """The other input's logits with the tensor `name` taken from elsewhere; None if that does not
    run."""
    graph = cut.graph
    if name == cut.logits:
        return value
    nodes = _around(cut, name)
    read = {tensor for node in nodes for tensor in node.reads}
    ports = {port.name for port in graph.inputs} & read
    try:
        tail = graph.parts.tail(nodes, [name, *sorted(ports)], [cut.logits], cut.shapes)
        return tail({**other, name: value})[0]
    except ValueError:
        return None


def _around(cut: GraphHead, name: str) -> list[Node]:
    """Every node that the logits need once the tensor `name` is given."""
    found: dict[int, Node] = {}
    pending = [cut.logits]
    while pending:
        tensor = pending.pop()
        node = cut.graph.producers.get(tensor)
        if tensor != name and node is not None and node.index not in found:
            found[node.index] = node
            pending += node.reads
    return [found[index] for index in sorted(found)]
