"""Where hidden states are read: a tap, and the spot at which a hook finds it.

Plain descriptions: they are saved, and read again without the model.
"""

from __future__ import annotations

from dataclasses import dataclass

INPUT, OUTPUT = "input", "output"

ModuleSide = tuple[str, str]  # a module and a side of it


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a tensor is read: the same fields as in `Tap`, and nothing of the tensor itself."""

    module: str
    side: str
    index: int
    call: int = 0
    operation: str = ""
    later: int = 0

    @property
    def place(self) -> ModuleSide:
        """The module and its side."""
        return self.module, self.side

    @property
    def words(self) -> str:
        """`input of classifier`, `input of addmm in the model`."""
        module = self.module or "the model"
        if not self.operation:
            return f"{self.side} of {module}"
        number = f", {self.later} before the last" if self.later else ""
        return f"{self.side} of {self.operation.removeprefix('aten.')}{number} in {module}"


@dataclass(frozen=True, slots=True)
class Tap:
    """A place to read hidden states.

    module: qualified name. side: what enters it or what leaves it. index: which of the tensors
    there, flattened. call: which call of the module, counted from the last (0 is the last).
    shape: as measured on the example, batch first. channel: the axis that pooling never touches.
    operation: where it is not empty, side and index are of this operation, inside of the module.
    later: how many operations of that name run in that module after it.
    """

    name: str
    module: str
    side: str
    index: int
    shape: tuple[int, ...]
    channel: int
    call: int = 0
    operation: str = ""
    later: int = 0

    @property
    def place(self) -> str:
        """Where it is read, in words: `input of classifier`, `input of addmm in the model`."""
        return self.spot.words

    @property
    def spot(self) -> Spot:
        """Where it is read."""
        return Spot(self.module, self.side, self.index, self.call, self.operation, self.later)

    @property
    def width(self) -> int:
        """Numbers per position."""
        return self.shape[self.channel]

    @property
    def positions(self) -> tuple[int, ...]:
        """Axes over which pooling runs: time, tokens, or height and width."""
        return tuple(i for i in range(1, len(self.shape)) if i != self.channel)

    def describe(self, sequence: str = "position") -> str:
        """The shape in words: `time 49 × channel 768`. sequence: what a single axis counts."""
        names = {0: (), 1: (sequence,), 2: ("height", "width"), 3: ("time", "height", "width")}
        roles = dict(zip(self.positions, names.get(len(self.positions), ()), strict=False))
        roles[self.channel] = "channel"
        return " × ".join(
            f"{roles.get(axis, 'position')} {self.shape[axis]}"
            for axis in range(1, len(self.shape))
        )
