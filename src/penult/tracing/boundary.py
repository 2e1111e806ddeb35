"""Where exactly to cut: the tensors that carry everything the logits need of the input.

`head.py` finds the last operations with weights. Here the tensors that enter them become
a boundary: none of them computable from the others, and nothing of the input reaching the logits
around them. What does reach them around is listed, in words, as the reason to refuse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from penult.errors import HeadNotFound, UsageError
from penult.tracing.head import (
    LINEAR_AFTER,
    VIEWS,
    Head,
    find_head,
    logits_of,
    read_logits,
)
from penult.tracing.living import TracedTensor
from penult.tracing.trace import SHAPE_ONLY, Op, TensorRead, Trace
from penult.tracing.weight_layers import carries, entering, is_weight_layer, operands

_NORMS = {"aten.native_layer_norm", "aten.native_group_norm", "aten.native_batch_norm",
          "aten._native_batch_norm_legit_no_training", "aten.cudnn_batch_norm",
          "aten._native_batch_norm_legit", "aten._fused_rms_norm"}  # fmt: skip
_FEATURE_NORMS = {"aten.native_layer_norm", "aten.native_group_norm", "aten._fused_rms_norm"}
_ACTIVATIONS = {f"aten.{name}{suffix}" for suffix in ("", "_") for name in (
    "relu", "gelu", "silu", "hardswish", "hardtanh", "leaky_relu", "elu", "mish",
    "clamp_min")}  # fmt: skip

# Operations that take parts of a tensor.
_PARTS = frozenset(
    f"aten.{name}" for name in ("unbind", "select", "slice", "split", "split_with_sizes")
)
_COPIES = VIEWS | {"aten.clone"}


@dataclass(frozen=True, slots=True)
class CutPoint:
    """A tensor of the trace, as it was when operation number `at` was about to run."""

    read: TensorRead
    at: int

    @property
    def tensor(self) -> TracedTensor:
        """The tensor, which later operations may have overwritten: see `Trace.values`."""
        return self.read.tensor


@dataclass(frozen=True, slots=True)
class Subgraph:
    """The operations between a boundary and a tensor. open: the model's inputs that reach the
    tensor around the boundary."""

    ops: tuple[Op, ...]
    open: tuple[TensorRead, ...]


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where to cut. tail: what runs between the cut and the logits. joined: the head ran over parts
    of the batch, and what these were taken from is cut."""

    head: Head
    places: tuple[CutPoint, ...]
    logits: TensorRead
    tail: Subgraph
    joined: bool = False


def subgraph(trace: Trace, root: TensorRead, places: Iterable[CutPoint]) -> Subgraph:
    """Everything that `root` is computed from, back to `places`."""
    limits = {place.tensor: place.at for place in places}
    ops: dict[int, Op] = {}
    reached: list[TensorRead] = []
    pending = [root]
    while pending:
        read = pending.pop()
        limit = limits.get(read.tensor)
        if limit is not None and (read.producer is None or read.producer.index < limit):
            continue
        # What wrote the value last, and what made this view of it: both are needed to replay.
        makers = {read.producer, trace.makers.get(read.tensor)} - {None}
        if not makers and read.depends:
            reached.append(read)
        for op in makers:
            if op is not None and op.index not in ops:
                ops[op.index] = op
                if op.name not in SHAPE_ONLY:
                    pending += op.reads
    return Subgraph(tuple(ops[index] for index in sorted(ops)), tuple(reached))


def find_boundary(
    trace: Trace, output: str | int | None = None, named: str | None = None
) -> Boundary:
    """The tensors to cut at. named: the module that the user calls the head.

    Raises:
        HeadNotFound: there is no such boundary, and why.
    """
    head = find_head(trace, output) if named is None else _named_head(trace, output, named)
    root = read_logits(trace, output)
    sizes = tuple(root.tensor.shape)
    if named is None:
        entered = [*_entered(head, sizes)]
        joined = _joined(entered, sizes)
        places = _places(trace, head, sizes, joined)
        _refuse_encoders(trace, head, root, places)
    else:
        calls = trace.calls_of(named)
        inputs = [CutPoint(read, call.first) for call in calls for read in call.inputs]
        entered = [p for p in inputs if p.read.depends and carries(p.tensor)]
        joined = _joined(entered, sizes)
        places = _independent(trace, _once(joined))
    tail = subgraph(trace, root, places)
    parted = any(one is not other for one, other in zip(joined, entered, strict=True))
    return Boundary(head, tuple(places), root, tail, parted)


def _entered(head: Head, sizes: Sequence[int]) -> Iterator[CutPoint]:
    for op in head.ops:
        yield from (stepped_back(op, sizes, read) for read in operands(op) if read.depends)


def _joined(places: Sequence[CutPoint], sizes: Sequence[int]) -> list[CutPoint]:
    """The same, but parts of a batch, such as its samples one by one, become what they are parts
    of. sizes: of the logits, the batch first."""
    batch = (*sizes, 1)[0]
    wholes = [_whole(place, batch) for place in places]
    parts = Counter(whole.tensor for whole in wholes if whole is not None)
    found = []
    for place, whole in zip(places, wholes, strict=True):
        is_part = whole is not None and (
            not _leads(place.read, batch) or parts[whole.tensor] >= batch > 1
        )
        found.append(whole if whole is not None and is_part else place)
    return found


def _whole(place: CutPoint, batch: int) -> CutPoint | None:
    """The batch that a tensor is a part of, along the first axis; None if it is no part of one."""
    read = place.read
    while (op := read.producer) is not None and op.name in _PARTS | _COPIES:
        source = next((r for r in op.reads if r.depends), None)
        if source is None or (op.name in _PARTS and not _along_first_axis(op)):
            break
        if op.name in _PARTS and _leads(source, batch):
            return CutPoint(source, op.index)
        read = source
    return None


def _along_first_axis(op: Op) -> bool:
    """Whether an operation takes parts along the first axis."""
    place = 1 if op.name in {"aten.unbind", "aten.select", "aten.slice"} else 2
    axis = op.args[place] if len(op.args) > place else op.kwargs.get("dim", 0)
    return axis in (0, -op.reads[0].tensor.ndim)


def _places(
    trace: Trace, head: Head, sizes: Sequence[int], entered: Sequence[CutPoint]
) -> list[CutPoint]:
    """What enters the head's layers, and the features that meet weights made from the input."""
    entered = _once(entered)
    # LoRA's second matrix reads A·z, the base weight z itself. But the stages of a backbone that
    # has a head after each of them are no part of a head, so what bends is not put into it.
    met = _once(stepped_back(op, sizes, read) for op, read in head.features)
    met = [place for place in met if subgraph(trace, place.read, entered).open]
    return _independent(trace, _once([*entered, *met]), head)


def _once(places: Iterable[CutPoint]) -> list[CutPoint]:
    return list({place.tensor: place for place in places}.values())


def _named_head(trace: Trace, output: str | int | None, named: str) -> Head:
    calls = trace.calls_of(named)
    if not calls:
        raise UsageError(f"head={named!r}: no module of that name ran in the forward pass")
    inside = (named, named + ".")
    ops = [op for op in trace.ops if op.module == named or op.module.startswith(inside[1])]
    layers = tuple(op for op in ops if is_weight_layer(trace, op))
    if not layers:
        raise HeadNotFound(f"{named!r} has no weights that its input meets: it is no head")
    logits = logits_of(trace.output, output)
    n_logits = logits.shape[-1] if logits.ndim > 1 else 1
    return Head(layers, (named,), tuple(entering(op) for op in layers), n_logits, ())


def stepped_back(op: Op, sizes: Sequence[int], operand: TensorRead | None = None) -> CutPoint:
    """What enters a weight layer, before it was folded into a matrix product's shape.

    A linear layer over (B, T, D) is a product of (B·T, D); users expect (B, T, D). sizes: of the
    logits, where the batch comes first, or second if time does.
    """
    read = operand or entering(op)
    batches = sizes[:-1][:2] or (*sizes, 1)[:1]
    tries = [(_back_to(op, batch, read), batch) for batch in batches]
    in_front = [(found.tensor.ndim, found) for found, batch in tries if _leads(found, batch)]
    _, best = max(in_front, key=itemgetter(0), default=(0, tries[0][0]))
    return CutPoint(best, 0 if best.producer is None else best.producer.index + 1)


def _leads(read: TensorRead, batch: int) -> bool:
    return read.tensor.ndim > 0 and read.tensor.shape[0] == batch


def _back_to(op: Op, batch: int, read: TensorRead) -> TensorRead:
    best = read
    while (
        read.producer is not None
        and (read.producer.name in VIEWS or read.producer.name == "aten.clone")
        and read.producer.module == op.module
        and (source := next((r for r in read.producer.reads if r.depends), None)) is not None
    ):
        read = source
        folded = not _leads(best, batch)
        folded = folded or (batch == 1 and op.name == "aten.bmm")  # an einsum: both readings fit
        if _leads(read, batch) and (folded or _wide_axes(read) <= _wide_axes(best)):
            best = read
    return best


def _wide_axes(read: TensorRead) -> int:
    return sum(size != 1 for size in read.tensor.shape)


def _independent(trace: Trace, places: list[CutPoint], head: Head | None = None) -> list[CutPoint]:
    """Drop what is computed from the others alone. With a head: by its own layers, without
    weights, or linearly."""
    for place in list(places):
        others = [other for other in places if other is not place]
        between = subgraph(trace, place.read, others)
        if others and not between.open and (head is None or _is_short(trace, between.ops, head)):
            places = others
    return places


def _is_short(trace: Trace, ops: Sequence[Op], head: Head) -> bool:
    used = [op for op in ops if op.depends]
    layers = [op for op in used if is_weight_layer(trace, op)]
    if not layers or set(layers) & set(head.ops):
        return True
    # What gives no features picks rows.
    bends = [op for op in used if op not in layers and op.name not in LINEAR_AFTER]
    return not any(carries(tensor) for op in bends for tensor in op.writes)


def _refuse_encoders(
    trace: Trace, head: Head, root: TensorRead, places: Sequence[CutPoint]
) -> None:
    """Refuse what has the form of a head and is the end of an encoder.

    Raises:
        HeadNotFound: a residual stream with norms in it, features that were normed and activated,
            or an input that meets weights right before the output.
    """
    name = "name the head's module (head=), or read the model at one of its modules"
    outputs = [CutPoint(op.result(), op.index + 1) for op in head.ops]
    after = {op.name for op in subgraph(trace, root, outputs).ops if op.depends}
    if after & _FEATURE_NORMS or (after & _NORMS and after & _ACTIVATIONS):
        raise HeadNotFound(
            "what the model returns was normalised after its last weights "
            f"({', '.join(sorted(after & (_NORMS | _ACTIVATIONS)))}): these look like features of "
            f"an encoder, not like scores of a classifier; {name}"
        )
    found = {op.index for op in head.ops}
    for op in head.ops:
        between = subgraph(trace, entering(op), places).ops
        if found & {o.index for o in between} and _NORMS & {o.name for o in between}:
            through = op.module or op.name
            raise HeadNotFound(
                f"a residual stream with norms in it reaches the output (through {through}): this "
                f"looks like an encoder without a classifier; {name}"
            )
    raw = [place for place in places if _is_input(place.read)]
    if raw and not all(_is_input(entering(op)) for op in head.ops):
        raise HeadNotFound(
            "the model's input itself meets weights on a short cut to the logits, so nothing less "
            f"than the whole input would do as prelogits; {name}"
        )


def _is_input(read: TensorRead) -> bool:
    while read.producer is not None and read.producer.name in VIEWS:
        read = next(
            (r for r in read.producer.reads if r.depends), TensorRead(read.tensor, None, False)
        )
    return read.producer is None and read.depends
