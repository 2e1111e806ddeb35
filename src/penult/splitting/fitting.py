"""One program for what follows the head, from the cuts of several passes, and how much it errs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from penult.errors import HeadNotFound, UsageError
from penult.splitting.certificate import TOLERANCE
from penult.splitting.passes import Cut, cut
from penult.splitting.program import Program, generalise
from penult.splitting.running import Question, relative
from penult.splitting.variants import Inputs, other_batch, other_lengths


def law_error(question: Question, program: Program, one: Cut, largest: float) -> float:
    """By how much the law fails for one input. largest: see `relative`."""
    try:
        with torch.no_grad():
            again = program.run(one.values, question.weights())
    except (RuntimeError, UsageError, TypeError, ValueError, IndexError):
        return float("inf")  # the tail does not even run for this shape
    return relative(again, one.logits, largest)


@dataclass(frozen=True, slots=True)
class Fitting:
    """Fits a program to the cut of the example, `first`, and to others."""

    question: Question
    first: Cut
    largest: float

    def program(
        self, noted: Sequence[tuple[str, Cut]], inputs: Inputs
    ) -> tuple[Program, list[tuple[str, Cut]]]:
        """A program for all the cuts; where none fits all, one for single samples and one for
        larger batches. With it, the cuts of more inputs that this took, and what they are.

        noted: the cuts of other inputs than the example, and what these are.

        Raises:
            HeadNotFound: no program fits.
        """
        others = [one for _, one in noted]
        reason = HeadNotFound("what follows the head is not the same for every shape")
        try:
            program = self._general([self.first, *others])
            if all(self._fits(program, one) for one in others):
                return program, []
        except HeadNotFound as error:
            reason = error
        lengths = any("another length" in note for note, _ in noted)
        more = list(self._by_batch(inputs)) if lengths else []
        cuts = [self.first, *others, *(one for _, one in more)]
        # Torch's own shortcuts make these two forms: einsum drops axes of size 1.
        single = [one for one in cuts if one.values[0].shape[0] == 1]
        several = [one for one in cuts if one.values[0].shape[0] != 1]
        if not single or not several:
            raise reason
        return replace(self._general(several), single=self._general(single)), more

    def _general(self, cuts: Sequence[Cut]) -> Program:
        ranks = [value.ndim for value in self.first.values]
        return generalise([one.listing for one in cuts], ranks)

    def _fits(self, program: Program, one: Cut) -> bool:
        return law_error(self.question, program, one, self.largest) <= TOLERANCE

    def _by_batch(self, inputs: Inputs) -> Iterator[tuple[str, Cut]]:
        """So that batches of one and of several are both seen at two lengths."""
        one, three = other_batch(inputs, 1), other_batch(inputs, 3)
        if one is None or three is None:
            return
        tries = (("batch 1", [one]), ("batch 3 and another length", [*other_lengths(three)][:2]))
        for note, variants in tries:
            for variant in variants:
                try:
                    yield note, cut(self.question, *self.question.record(variant))
                    break
                except (HeadNotFound, RuntimeError, ValueError, TypeError, IndexError):
                    continue
