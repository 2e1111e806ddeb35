"""Classes that were never taught: by their names, and pairs as same or different.

Numpy in, small dataclasses out; knows no model but a function from texts to vectors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from penult.errors import LabelsError
from penult.measuring.pairs import Pairs, cosines, equal_error, find_pairs
from penult.space import unit

Floats = npt.NDArray[np.float64]
Embed = Callable[[list[str]], npt.ArrayLike]  # n texts → (n, e)

TOP = 10  # labels that are mixed, as in the paper
PAIRS = 2_000_000  # that are compared at most
_PLACEHOLDER = re.compile(r"(label|class)?[_ -]?\d+", re.IGNORECASE)


def conse(
    probabilities: npt.ArrayLike,
    labels: Sequence[str],
    names: Sequence[str],
    embed: Embed,
    top: int = TOP,
) -> Floats:
    """Scores (n, C) of unseen classes by their names: the cosine between a name and the mix of the
    classifier's `top` most probable labels, weighted by their probabilities (convex combination of
    semantic embeddings; Norouzi et al., 2013).

    probabilities: (n, K) of the classifier. labels: its K names. names: C others.

    Raises:
        LabelsError: labels that say nothing (LABEL_0), a name that is empty or comes twice,
            probabilities that do not fit.
    """
    shares = np.asarray(probabilities, np.float64)
    if shares.ndim != 2 or shares.shape[1] != len(labels):
        raise LabelsError(f"probabilities of shape {shares.shape} for {len(labels)} labels")
    if not np.isfinite(shares).all() or (shares < 0).any():
        raise LabelsError("probabilities have values that are negative or not finite")
    wanted = checked(names)
    if nameless := [label for label in labels if _PLACEHOLDER.fullmatch(label.strip())]:
        raise LabelsError(
            f"the classifier's labels say nothing of what they are ({nameless[0]!r}), so no other "
            "name can be compared with them; give their names with --class-names FILE"
        )
    if top < 1:
        raise LabelsError(f"{top} labels cannot be mixed; give one or more")
    words = [worded(text) for text in (*labels, *wanted)]
    vectors = unit(np.asarray(embed(words), np.float64))
    known, unseen = vectors[: len(labels)], vectors[len(labels) :]
    order = np.argsort(-shares, axis=1, kind="stable")
    kept = np.zeros_like(shares)
    best = order[:, :top]
    np.put_along_axis(kept, best, np.take_along_axis(shares, best, axis=1), axis=1)
    total = kept.sum(axis=1, keepdims=True)
    mixed = (kept / np.where(total > 0, total, 1.0)) @ known
    return np.asarray(unit(mixed) @ unseen.T)


def checked(names: Sequence[str]) -> list[str]:
    """The names without spaces around them.

    Raises:
        LabelsError: none, an empty one, or one that comes twice.
    """
    wanted = [name.strip() for name in names]
    if not wanted or not all(wanted):
        raise LabelsError(f"names of classes are needed, and none empty; received {list(names)}")
    if len(set(wanted)) < len(wanted):
        twice = next(name for name in wanted if wanted.count(name) > 1)
        raise LabelsError(f"the name {twice!r} comes twice; name each class once")
    return wanted


def worded(label: str) -> str:
    """A label as words: `_silence_` → `silence`, `GreatTit` → `great tit`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label.replace("_", " ").replace("-", " "))
    return " ".join(spaced.split()).lower() or label


@dataclass(frozen=True, slots=True)
class Verification:
    """How well cosines tell pairs of the same name from pairs of different ones.

    eer: the error rate at the threshold where as many of the same are taken for different as of
    the different for the same; low, high: its 95 % interval. missed: the share of the same that is
    missed where false_accepts of the different are accepted, at `strict`.
    """

    eer: float
    low: float
    high: float
    threshold: float
    auc: float
    same: int
    different: int
    names: int
    false_accepts: float
    missed: float
    strict: float

    def to_dict(self) -> dict[str, float]:
        """As JSON has it."""
        return asdict(self)


def verify(
    vectors: npt.ArrayLike,
    names: Sequence[str | None],
    groups: Sequence[str | None] | None = None,
    false_accepts: float = 0.01,
    seed: int = 0,
) -> Verification:
    """Compare pairs of vectors (n, d), those without a name left out.

    groups: two of one group are no pair, so that one recording is never compared with itself. The
    interval is a bootstrap over names, not over pairs, which are not independent.

    Raises:
        LabelsError: no pair of the same, or none of different ones.
    """
    if not 0 <= false_accepts <= 1:
        raise LabelsError(f"false accepts = {false_accepts}: a rate lies between 0 and 1, as 0.01")
    rows, named, grouped = _named(vectors, names, groups)
    pairs = find_pairs(named, grouped, PAIRS, seed)
    alike, same = cosines(rows, pairs), pairs.same
    if not same.any() or same.all():
        missing = "same" if not same.any() else "different"
        raise LabelsError(
            f"{len(rows)} named items in {len(set(named))} "
            f"{'name' if len(set(named)) == 1 else 'names'} give no pair of the {missing} name"
            + (" from two groups" if grouped is not None else "")
            + "; two names are needed, and two items of one"
        )
    eer, threshold, auc = equal_error(alike, same)
    low, high = _interval(alike, Pairs(named[pairs.left], named[pairs.right], same), seed)
    strict = float(np.quantile(alike[~same], 1 - false_accepts))
    return Verification(
        eer, low, high, threshold, auc, int(same.sum()), int((~same).sum()), len(set(named)),
        false_accepts, float((alike[same] <= strict).mean()), strict)  # fmt: skip


def _named(
    vectors: npt.ArrayLike, names: Sequence[str | None], groups: Sequence[str | None] | None
) -> tuple[Floats, npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    rows = np.asarray(vectors, np.float64)
    if rows.ndim != 2 or len(rows) != len(names) or (groups and len(groups) != len(names)):
        raise LabelsError(f"{rows.shape} vectors do not fit {len(names)} names and their groups")
    kept = [i for i, name in enumerate(names) if name is not None]
    if not np.isfinite(rows[kept]).all():
        raise LabelsError("vectors have values that are not finite; leave them out")
    if len(kept) < 2:
        raise LabelsError(f"{len(kept)} named items are no pair; two names are needed, and two "
                          "items of one")  # fmt: skip
    _, named = np.unique([str(names[i]) for i in kept], return_inverse=True)
    if groups is None:
        return unit(rows[kept]), named, None
    # An item without a group is a group of its own.
    texts = [f"g{groups[i]}" if groups[i] is not None else f"i{i}" for i in kept]
    return unit(rows[kept]), named, np.unique(texts, return_inverse=True)[1]


def _interval(alike: Floats, names: Pairs, seed: int, rounds: int = 200) -> tuple[float, float]:
    """The 95 % interval of the error rate, by drawing names with replacement.

    names: of both sides of each pair, as numbers.
    """
    random = np.random.default_rng(seed)
    count = int(max(names.left.max(), names.right.max())) + 1
    if len(alike) > 200_000:  # of very many pairs, as many as give the interval its two digits
        chosen = np.sort(random.choice(len(alike), 200_000, replace=False))
        alike, left, right = alike[chosen], names.left[chosen], names.right[chosen]
        names = Pairs(left, right, names.same[chosen])
    order = np.argsort(-alike, kind="stable")
    found = []
    for _ in range(rounds):
        drawn = np.bincount(random.integers(0, count, count), minlength=count).astype(float)
        left, right = drawn[names.left], drawn[names.right]
        weights = np.where(names.same, left, left * right)
        if weights[names.same].sum() > 0 and weights[~names.same].sum() > 0:
            found.append(equal_error(alike, names.same, weights, order).rate)
    return (float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975)))
