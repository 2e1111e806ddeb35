"""One of n parts of the items, the same on every machine: by a hash of their ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from penult.errors import UsageError
from penult.sources import Source
from penult.sources.items import Entry, Failure


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` of `of_all`, counted from 1. All regions of an item are in one part."""

    number: int
    of_all: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`2/4` as the second of four.

        Raises:
            UsageError: it is no such part.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.of_all:
            raise UsageError(f"{text!r} is no part of a whole; of four they are 1/4, 2/4, 3/4, 4/4")
        return shard

    def has(self, id: str) -> bool:
        """Whether an item is in this part."""
        digest = hashlib.blake2b(id.encode("utf-8", "backslashreplace"), digest_size=8).digest()
        return int.from_bytes(digest) % self.of_all == self.number - 1

    def of(self, source: Source) -> Source:
        """The source with only the items, and the failures, of this part."""

        def start() -> Iterator[Entry]:
            for entry in source:
                if self.has(entry.id if isinstance(entry, Failure) else entry[0].id):
                    yield entry

        return replace(source, start=start, total=None)
