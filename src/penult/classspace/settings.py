"""How a class space judges: the recipe of its space, its method, its level of unknown. Knows no
example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from penult.errors import LabelsError, UsageError
from penult.teaching.calibration import LEVEL
from penult.teaching.classes import METHODS
from penult.teaching.taught import AUTO


@dataclass(frozen=True, slots=True)
class Settings:
    """See `penult.ClassSpace`, which takes these."""

    space: str = AUTO
    method: str | None = None
    several: bool | None = None
    unknown: float = LEVEL
    groups: str | None = None

    def __post_init__(self) -> None:
        level = self.unknown
        if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 <= level < 1:
            raise LabelsError(f"unknown = {level}: it lies between 0 and 1, as 0.05")
        if self.method is not None and self.method not in METHODS:
            raise LabelsError(
                f"method {self.method!r} is not known; {', '.join(METHODS)} work, and without one "
                "it is chosen"
            )

    @classmethod
    def of(cls, saved: Mapping[str, Any], changed: Mapping[str, Any]) -> Settings:
        """Those that were saved, with changes.

        Raises:
            UsageError: a change of what is no setting.
            LabelsError: a value that cannot be.
        """
        names = cls.__dataclass_fields__
        if odd := [name for name in changed if name not in names]:
            raise UsageError(f"a class space has no setting {odd[0]!r}; {', '.join(names)} are")
        return cls(**{**{n: v for n, v in saved.items() if n in names}, **changed})

    def to_dict(self) -> dict[str, Any]:
        """As a file keeps them."""
        return asdict(self)
