"""What is a layer with weights: an operation that contracts features with the model's own numbers.

Most are matrix products and convolutions. The others are recognised by what they do, not by name: a
product or difference that is summed up afterwards, or an operator that torch does not know.
"""

from __future__ import annotations

from collections.abc import Iterator

from penult.tracing.living import TracedTensor
from penult.tracing.trace import Op, TensorRead, Trace

# Operations that contract an operand with another. Which of the two is a weight is read off the
# trace: the one that does not depend on the input. Those that write in place count too.
CONTRACTIONS = frozenset(
    f"aten.{name}"
    for name in (
        "addmm", "mm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "linear",
        "matmul", "convolution", "_convolution", "_cdist_forward", "_euclidean_dist",
        "mkldnn_linear", "mkldnn_rnn_layer", "_int_mm", "_sparse_mm", "_sparse_addmm",
        "_scaled_mm", "_weight_int8pack_mm", "_weight_int4pack_mm",
    )
)  # fmt: skip

# Contractions that add their product to their first operand.
_BIASED = {f"aten.{name}" for name in ("addmm", "baddbmm", "addbmm", "addmv", "_sparse_addmm")}

# Contractions with packed weights, which no tensor operand shows.
PACKED = ("quantized.linear", "quantized.conv")

# Elementwise operations that begin a contraction, if a sum over an axis ends it.
_MEETS = {"aten.mul", "aten.sub", "aten.rsub", "aten.div"}
_SUMS = {
    f"aten.{name}"
    for name in ("sum", "mean", "norm", "linalg_vector_norm", "amax", "logsumexp", "max")
}


def carries(tensor: TracedTensor) -> bool:
    """Whether a tensor can carry features: numbers that are no indices."""
    return tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized


def plain_name(op: Op) -> str:
    """An operation's name, whether it writes in place or not."""
    return op.name.rstrip("_")


def carriers(op: Op) -> Iterator[TensorRead]:
    """The operands that can carry features."""
    return (read for read in op.reads if carries(read.tensor))


def operands(op: Op) -> list[TensorRead]:
    """The tensors that a contraction contracts, most often two (a bias is not one of them)."""
    if op.name == "aten._trilinear":  # a bilinear layer: both of its inputs, and its weight
        return op.reads[:3]
    return op.reads[1:3] if plain_name(op) in _BIASED else op.reads[:2]


def is_weight_layer(trace: Trace, op: Op, n_logits: int = 0) -> bool:
    """Whether an operation contracts something that depends on the input with something that
    does not. n_logits: how many scores are looked for, where it matters."""
    if op.name.startswith(PACKED):
        return op.depends
    if op.name == "aten._trilinear":
        return op.depends and not all(read.depends for read in operands(op))
    if plain_name(op) in CONTRACTIONS:
        pair = operands(op)
        return len(pair) == 2 and sum(read.depends for read in pair) == 1
    if not op.name.startswith(("aten.", "prim", "quantized.")):
        pair = list(carriers(op))  # somebody's own operator: with a matrix, it is taken for a layer
        matrices = [read for read in pair if not read.depends and read.tensor.ndim > 1]
        return op.depends and bool(matrices)
    return (spreads(op) and _is_summed(trace, op)) or _is_dot(trace, op, n_logits)


def entering(op: Op) -> TensorRead:
    """The input-dependent operand of a weight layer: the prelogits, if it is the last one."""
    return next(read for read in operands(op) if read.depends)


def weight_of(op: Op) -> TensorRead | None:
    """The weight operand of a weight layer; None where the weights are packed."""
    return next((read for read in operands(op) if not read.depends), None)


def _aligned(op: Op) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The sizes of z and of the weight in an elementwise operation, as torch lays them out."""
    reads = list(carriers(op))
    if plain_name(op) not in _MEETS or len(reads) != 2 or sum(read.depends for read in reads) != 1:
        return None
    rank = max(read.tensor.ndim for read in reads)
    z, weight = (
        (1,) * (rank - read.tensor.ndim) + tuple(read.tensor.shape)
        for read in sorted(reads, key=lambda read: not read.depends)
    )
    return z, weight


def spreads(op: Op) -> bool:
    """Whether an elementwise operation meets every feature with one weight per class and feature.

    `(z[:, None] * W).sum(-1)` and `(z[:, None] - prototypes).norm(dim=-1)` contract without a
    matrix product: the weight brings an axis that z lacks, and shares another one with it.
    """
    sizes = _aligned(op)
    pairs = list(zip(*sizes, strict=True)) if sizes else []
    return any(a == 1 < b for a, b in pairs) and any(a == b > 1 for a, b in pairs)


def _is_summed(trace: Trace, op: Op) -> bool:
    """Whether a spread is summed over an axis that both share, as far as can be seen."""
    sizes, axes = _aligned(op), _summed_axes(trace, op)
    assert sizes is not None
    shared = {axis for axis, (a, b) in enumerate(zip(*sizes, strict=True)) if a == b > 1}
    return axes is None or bool(shared & axes)


def _is_dot(trace: Trace, op: Op, n_logits: int) -> bool:
    """Whether a product is the first half of a dot product: with one weight vector, or with one
    for each class, `(z * W).sum(-1)` with z (B, K, D) and W (K, D)."""
    sizes = _aligned(op)
    if sizes is None or plain_name(op) != "aten.mul":
        return False
    z, weight = sizes
    last = len(z) - 1
    if not weight[last] == z[last] > 1 or last not in (_summed_axes(trace, op) or ()):
        return False
    rows = [size for size in weight[:last] if size > 1]
    if rows:
        return any(size % max(n_logits, 1) == 0 for size in rows)
    # Weights of layers or frames meet scores that are there already: they are no head.
    return n_logits <= 1 or n_logits not in z[1:last]


def _summed_axes(trace: Trace, op: Op) -> set[int] | None:
    """The axes over which an elementwise operation's result is summed next; None: unknown."""
    tensor = op.writes[0]
    rank = tensor.ndim
    for later in trace.ops[op.index + 1 :]:
        if not any(read.tensor is tensor for read in later.reads):
            continue
        name = plain_name(later)
        if name in _SUMS:
            place = 2 if name.endswith("norm") else 1
            axes = later.args[place] if len(later.args) > place else later.kwargs.get("dim")
            axes = range(rank) if axes is None or axes == [] else axes
            return {axis % rank for axis in ([axes] if isinstance(axes, int) else axes)}
        if not later.writes or later.writes[0].shape != tensor.shape:
            return None
        tensor = later.writes[0]
    return set()
