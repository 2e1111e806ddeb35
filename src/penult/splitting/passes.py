"""Cut one recorded pass: the prelogits that it had, and what led from them to its logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from penult.errors import HeadNotFound
from penult.splitting.boundary import Boundary, Place, find_boundary
from penult.splitting.moving import Move, affine
from penult.splitting.program import Lister, Listing
from penult.splitting.running import Question
from penult.splitting.trace import Trace
from penult.splitting.variants import Inputs


@dataclass(frozen=True, slots=True)
class Cut:
    """A pass, cut. values: the prelogits. listing: what led from them to the logits."""

    values: tuple[Tensor, ...]
    listing: Listing
    logits: Tensor
    names: tuple[str, ...]


def cut(question: Question, trace: Trace, inputs: Inputs) -> Cut:
    """Cut a recorded pass.

    Raises:
        HeadNotFound: it can't be cut, and why.
    """
    boundary = find_boundary(trace, question.output, question.named)
    names = {id(tensor): name for name, tensor in question.weights().items()}
    move = _move(trace, boundary, inputs)
    lister = Lister(trace, names)
    if move is None:
        values = tuple(trace.value(p.tensor, p.at).clone() for p in boundary.places)
        for place in boundary.places:
            lister.enter(place.tensor)
        lister.add_up_to(boundary.logits, boundary.places)
    else:
        values = (move.prelogits,)
        _list_moved(lister, move, values[0], boundary)
    sizes = [size for value in values for size in value.shape]
    logits = boundary.logits.tensor
    listing = lister.finish(sizes, logits)
    return Cut(values, listing, logits.detach().clone(), boundary.head.names)


def _move(trace: Trace, boundary: Boundary, inputs: Inputs) -> Move | None:
    """Picking and averaging behind the head, where there is some to be moved in front of it."""
    around = boundary.tail.open
    if not around and len(boundary.places) == 1 and not _is_folded(boundary):
        return None
    try:
        return Move(trace, boundary)
    except HeadNotFound as error:
        if not around:
            return None
        keys = {
            id(tensor): key if isinstance(key, str) else f"input {key}"
            for key, tensor in inputs.tensors().items()
        }
        seen = sorted({keys.get(id(read.tensor), "the input") for read in around})
        raise HeadNotFound(
            f"the logits depend on {', '.join(seen)} also around the head "
            f"({', '.join(boundary.head.names) or boundary.head.ops[-1].name}), {error}"
        ) from error


def _is_folded(boundary: Boundary) -> bool:
    """Whether windows or frames are folded into the batch where the head reads them, so that the
    number of samples can't be told from what enters."""
    entered, logits = boundary.places[0].tensor, boundary.logits.tensor
    if not entered.ndim or not logits.ndim or not logits.shape[0]:
        return False
    return entered.shape[0] > logits.shape[0] and entered.shape[0] % logits.shape[0] == 0


def _list_moved(lister: Lister, move: Move, z: Tensor, boundary: Boundary) -> None:
    """The moved head as a layer over the last axis, then everything behind the joint."""
    joint = move.joint
    lister.enter(z)
    weight, bias = move.parameters
    for read in (weight, bias):
        if read is not None:
            lister.add_up_to(read, ())
    operands = [z, weight.tensor] + ([] if bias is None else [bias.tensor])
    made = z.new_empty(0)  # stands for the layer's output
    lister.add(affine, "affine", (tuple(operands), {}), [made])
    shape = [*joint.tensor.shape]
    lister.add(torch.reshape, "reshape", ((made, shape), {}), [joint.tensor])
    index = len(boundary.tail.ops) and joint.producer and joint.producer.index + 1
    lister.add_up_to(boundary.logits, [Place(joint, int(index or 0))])
