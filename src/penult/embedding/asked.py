"""What was asked of an embedder, checked: a pooling for each tap, and over which positions."""

from __future__ import annotations

from collections.abc import Sequence

from penult.batches.pooling import POOLINGS, unknown
from penult.classifiers.base import Classifier
from penult.errors import TapError
from penult.splitting.anatomy import Anatomy
from penult.splitting.taps import Tap


def poolings_for(taps: Sequence[Tap], pooling: str) -> tuple[str, ...]:
    """One pooling for each tap: the same for all, or as many as there are taps.

    Raises:
        TapError: unknown, of another number, or nothing to pool.
    """
    named = tuple(pooling.split(","))
    if not taps or len(named) not in (1, len(taps)):
        raise TapError(f"{len(named)} poolings ({pooling}) for {len(taps)} taps; give one for each")
    named = named * len(taps) if len(named) == 1 else named
    for tap, how in zip(taps, named, strict=True):
        if how not in POOLINGS:
            raise TapError(unknown(how))
        if how == "none" and len(taps) > 1:
            raise TapError("pooling none keeps every position, so several taps cannot be joined")
        if not tap.positions and how == "mean+std":
            raise TapError(
                f"tap {tap.name!r} gives one vector per item, so there is nothing to pool: "
                "choose pooling mean, or a tap with positions"
            )
    return named


def entry_for(classifier: Classifier, anatomy: Anatomy, tap: Tap, pool_over: str) -> Tap:
    """The tap in front of the first block, if only the positions are pooled that a clip fills.

    Raises:
        TapError: not `valid`, or it cannot be measured which positions of the tap these are.
    """
    if pool_over != "valid":
        raise TapError(f"pooling over {pool_over!r} is not known; choose all or valid")
    if classifier.modality != "audio" or classifier.holds is None:
        raise TapError(
            "pooling over valid positions is for models that take every clip at one length; "
            "this one takes each at its own, and pools its own positions always"
        )
    entry = anatomy.taps.get("layer:0") if classifier.engine == "torch" else None
    if entry is None or [entry.shape[a] for a in entry.positions] != [
        tap.shape[a] for a in tap.positions
    ]:
        raise TapError(
            f"which positions of tap {tap.name!r} are valid cannot be measured: it has "
            "not the positions that enter the first block; pool over all of them"
        )
    return entry
