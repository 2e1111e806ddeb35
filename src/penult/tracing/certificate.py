"""The numeric proof that a cut is right, or the reason why it could not be given.

A certificate holds figures and words only, so it can be saved with an embedder and read again
without the model. How the figures are measured is in `proof.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

TOLERANCE = 1e-5  # largest error that passes, relative to the largest logit
UNFINISHED = "the proof could not be run"
POWER = 1000.0  # two inputs' logits must differ by this many tolerances, or nothing was tested

# A pass over a batch of another size takes at most this many times the memory of the plain one over
# the example, so that with what the proof itself holds it is less than three times; and any pass
# may take SMALL bytes.
_SHARE = 2
SMALL = 2**25


def largest_batch(weights: int, activations: int, inputs: int, batch: int) -> int:
    """The largest batch that a proof runs, one more than the example's at least.

    weights: bytes. activations, inputs: bytes of the example's, a batch of so many items.
    """
    allowed = _SHARE * (weights + activations + inputs) - weights
    # The batch is there as it was drawn, at another length, and as a copy for the pass.
    item = max((activations + 3 * inputs) // batch, 1)
    return max(max(allowed, SMALL) // item, batch + 1)


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a proof. figure: an error relative to the largest logit, or a power; None where
    there is nothing to measure. note: the comparison, in words."""

    name: str
    passed: bool
    figure: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """The proof of a cut, check by check.

    ok: every check passed. max_error: the largest relative error met. power: by how many tolerances
    the logits of the two inputs differ. refusal: empty, or what was seen and what the user can name
    instead. kept: the day of an earlier run here that measured it; empty for this run.
    """

    ok: bool
    max_error: float
    power: float
    checks: tuple[Check, ...]
    refusal: str = ""
    kept: str = ""

    @property
    def untested(self) -> bool:
        """Whether nothing failed but that the inputs hardly change the logits: other inputs may
        prove it."""
        failed = [check.name for check in self.checks if not check.passed]
        return not self.ok and failed == ["power"]

    @property
    def unfinished(self) -> bool:
        """Whether the proof ended with an error, which another run may not meet: of memory, say."""
        return self.refusal.startswith(UNFINISHED)

    @classmethod
    def refused(cls, reason: str, checks: tuple[Check, ...] = ()) -> Certificate:
        """A certificate that proves nothing, and says why."""
        return cls(False, float("nan"), 0.0, checks, reason)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: a figure that is not a number becomes null."""
        document = asdict(self)
        document["checks"] = [asdict(check) for check in self.checks]
        if self.max_error != self.max_error:
            document["max_error"] = None
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Certificate:
        """The certificate that `to_dict` wrote."""
        error = document["max_error"]
        return cls(
            ok=bool(document["ok"]),
            max_error=float("nan") if error is None else float(error),
            power=float(document["power"]),
            checks=tuple(Check(**check) for check in document["checks"]),
            refusal=str(document["refusal"]),
            kept=str(document.get("kept", "")),
        )

    def __str__(self) -> str:
        when = f" here on {self.kept} (kept)" if self.kept else ""
        verdict = (
            f"proved{when} (largest error {self.max_error:.1e}, power {self.power:.0f} tolerances)"
            if self.ok
            else f"not proved{when}: {self.refusal}"
        )
        lines = [verdict]
        for check in self.checks:
            figure = "" if check.figure is None else f" {check.figure:.2g}"
            lines.append(f"  {'ok' if check.passed else 'NO'} {check.name}{figure}: {check.note}")
        return "\n".join(lines)
