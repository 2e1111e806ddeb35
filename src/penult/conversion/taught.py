"""Spaces and taught classes as torch modules: what numpy computes from a vector, in a graph.

Knows no classifier and no runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from penult.analysis.space import Space
from penult.errors import UsageError
from penult.fewshot.calibration import Probabilities
from penult.fewshot.fitted import FittedClasses
from penult.fewshot.scorers import NEIGHBOURS, Linear, NearestExamples, Prototypes, Scorer


class Arrays(nn.Module):
    """Arrays of numpy as buffers, in double precision. rows: how many each has; one without any is
    no buffer, which torch.export cannot write."""

    def __init__(self, values: Sequence[Any]) -> None:
        super().__init__()
        self.rows = [len(value) for value in values]
        for number, value in enumerate(values):
            if len(value):
                array = np.array(value, np.float64, order="C")
                self.register_buffer(f"value{number}", torch.from_numpy(array))

    def __getitem__(self, at: int) -> Tensor:
        value: Tensor = getattr(self, f"value{at}")
        return value

    def __len__(self) -> int:
        return len(self.rows)


class SpaceModule(nn.Module):
    """A fitted space: raw vectors (n, d) → (n, d')."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.steps = nn.ModuleList(
            Arrays([part for part in (step.mean, step.factor, step.along) if part is not None])
            for step in space.steps
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, d) → (n, d') float32; a zero vector stays zero under l2."""
        rows = vectors.double()
        for step in self.steps:
            rows = _step(rows, step)  # type: ignore[arg-type]
        return rows.float()


def _step(rows: Tensor, parts: Arrays) -> Tensor:
    if not len(parts):
        return unit(rows)
    moved = rows - parts[0]
    if len(parts) == 3:
        return moved + ((moved @ parts[2].T) * (parts[1] - 1)) @ parts[2]
    return moved * parts[1] if parts[1].ndim == 1 else moved @ parts[1]


def unit(rows: Tensor) -> Tensor:
    """Each row divided by its length; a row of zeros stays."""
    lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(lengths > 0, lengths, 1.0)


class ClassesModule(nn.Module):
    """Fitted classes: raw vectors (n, d) → the probability of each class (n, K), as
    `penult predict` has it.

    Raises:
        UsageError: a method that is not known here.
    """

    def __init__(self, fitted: FittedClasses) -> None:
        super().__init__()
        self.space = SpaceModule(fitted.space)
        scorer = fitted._scorer
        make = _SCORERS.get(type(scorer))
        if make is None:
            raise UsageError(f"classes by {fitted.method} cannot be a part of a graph")
        self.scorer = make(scorer)
        self.probabilities: Probabilities = fitted.probabilities

    def forward(self, vectors: Tensor) -> Tensor:
        """(n, d) → (n, K) float32."""
        scores: Tensor = self.scorer(unit(self.space(vectors).double()))
        values: Tensor = (scores - self.probabilities.offset) / self.probabilities.temperature
        if self.probabilities.several:
            return torch.sigmoid(values).float()
        # Where every class is ruled out, all are 0: no softmax has that.
        top = values.amax(dim=1, keepdim=True)
        exponent = (values - torch.where(top.isinf(), torch.zeros_like(top), top)).exp()
        total = exponent.sum(dim=1, keepdim=True)
        shares: Tensor = exponent / torch.where(total > 0, total, torch.ones_like(total))
        return shares.float()


class _PrototypesModule(nn.Module):
    def __init__(self, scorer: Prototypes) -> None:
        super().__init__()
        self.means, self.negatives = Arrays([scorer.means]), Arrays(scorer.negatives)

    def forward(self, rows: Tensor) -> Tensor:
        scores = rows @ self.means[0].T
        return _ruled_out(rows, scores, scores, self.negatives)


class _NeighboursModule(nn.Module):
    def __init__(self, scorer: NearestExamples) -> None:
        super().__init__()
        self.members, self.negatives = Arrays(scorer.members), Arrays(scorer.negatives)

    def forward(self, rows: Tensor) -> Tensor:
        best = []
        for k in range(len(self.members)):
            members = self.members[k]
            best.append((rows @ members.T).topk(min(NEIGHBOURS, len(members)), dim=1).values)
        nearest = torch.stack([one[:, 0] for one in best], dim=1)
        scores = torch.stack([one.mean(dim=1) for one in best], dim=1)
        return _ruled_out(rows, scores, nearest, self.negatives)


class _LinearModule(nn.Module):
    def __init__(self, scorer: Linear) -> None:
        super().__init__()
        self.values = Arrays([scorer.weights, scorer.offsets])

    def forward(self, rows: Tensor) -> Tensor:
        scores: Tensor = rows @ self.values[0].T + self.values[1]
        return scores


def _ruled_out(rows: Tensor, scores: Tensor, nearest: Tensor, negatives: Arrays) -> Tensor:
    """Minus infinity where a negative example is nearer than the class is."""
    columns = []
    for k in range(len(negatives)):
        column = scores[:, k]
        if negatives.rows[k]:
            against = (rows @ negatives[k].T).amax(dim=1)
            column = column.masked_fill(against > nearest[:, k], -torch.inf)
        columns.append(column)
    return torch.stack(columns, dim=1)


_SCORERS: dict[type[Scorer], Callable[[Any], nn.Module]] = {
    Prototypes: _PrototypesModule,
    NearestExamples: _NeighboursModule,
    Linear: _LinearModule,
}
