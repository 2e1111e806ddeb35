"""Measure how much of a class answers find that begin with one example, on real data.

    penult embed kwt1.onnx fsdd/recordings --sample-rate 16000 --seconds 1 --tap prelogits \\
        --into prelogits.lance
    python scripts/measure_loop.py prelogits.lance --by '{}_*' --each 42

A user who knows the truth answers what `penult suggest` lists. The figures are the share of the
other members that are among the answers, and the share of the class among as many rows as it has
in the ranking after them (rows answered yes first, no last).
"""

from __future__ import annotations

import argparse

import numpy as np

from penult.analysis.space import Space, fit, unit
from penult.collection.collection import Collection
from penult.collection.labels import labelled
from penult.fewshot import scorers
from penult.fewshot.examples import Examples
from penult.fewshot.predictions import Location
from penult.fewshot.suggestions import Ranking


class Search:
    """One class of a set of vectors, looked for from one example."""

    def __init__(
        self, space: Space, vectors: np.ndarray, member: np.ndarray, random: np.random.Generator
    ) -> None:
        self.space, self.vectors, self.member, self.random = space, vectors, member, random
        self.rows = unit(space(vectors).astype(np.float64))
        self.places = [Location(str(i), "whole") for i in range(len(vectors))]
        self.yes, self.no = [int(random.choice(np.flatnonzero(member)))], list[int]()

    def ask(self, numbers: list[int]) -> None:
        """Take the true answers for these rows."""
        for i in numbers:
            (self.yes if self.member[i] else self.no).append(i)

    @property
    def found(self) -> float:
        """The share of the other members that were answered."""
        return (len(self.yes) - 1) / (self.member.sum() - 1)

    def ranking(self) -> Ranking:
        """As `penult.fewshot.suggestions.suggest` makes it."""
        examples = Examples.empty(self.vectors.shape[1])
        for numbers, mark in ((self.yes, "yes"), (self.no, "no")):
            keys = [(str(i), "whole") for i in numbers]
            examples = examples.with_marks("class", keys, self.vectors[numbers], mark)
        others = np.setdiff1d(np.arange(len(self.vectors)), [*self.yes, *self.no])
        weak = self.random.permutation(others)[: scorers.WEAK]
        return Ranking.of(examples, "class", self.space, self.vectors[weak])

    def suggested(self, k: int) -> list[int]:
        """The rows that are suggested."""
        best = self.ranking().best([(self.places, self.vectors)], k)
        return [int(one.id) for one in best]

    def nearest(self, scores: np.ndarray, k: int) -> list[int]:
        """The rows of the highest scores (n,) that were not answered."""
        order = np.argsort(-scores, kind="stable")
        return [int(i) for i in order[~np.isin(order, [*self.yes, *self.no])][:k]]

    def ranked(self) -> float:
        """The share of the class among as many rows as it has, in the ranking."""
        scores = self.ranking().scorer(self.rows)[:, 0]
        scores[self.yes], scores[self.no] = np.inf, -np.inf
        best = np.argsort(-scores, kind="stable")[: int(self.member.sum())]
        return float(self.member[best].mean())


def one_query(search: Search, k: int) -> list[int]:
    """Further hits of `penult search` with the first example."""
    return search.nearest(search.rows @ search.rows[search.yes[0]], k)


def mean_of_yes(search: Search, k: int) -> list[int]:
    """The rows nearest to the mean of all that were answered yes."""
    return search.nearest(search.rows @ search.rows[search.yes].mean(axis=0), k)


def suggestions(search: Search, k: int) -> list[int]:
    """What `penult suggest` lists."""
    return search.suggested(k)


WAYS = {"one query": one_query, "mean of yes": mean_of_yes, "penult suggest": suggestions}


def drawn(names: np.ndarray, each: int, random: np.random.Generator) -> np.ndarray:
    """`each` rows of each class, or all of them with 0."""
    if not each:
        return np.arange(len(names))
    parts = [random.permutation(np.flatnonzero(names == name))[:each] for name in np.unique(names)]
    return np.sort(np.concatenate(parts))


def main() -> None:
    """Print a line for each space and way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("collections", nargs="+")
    parser.add_argument("--by", required=True)
    parser.add_argument("--spaces", nargs="+", default=["centre", "shrink"])
    parser.add_argument("--answers", type=int, default=50)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--each", type=int, default=0, help="rows of each class; 0: all")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    print(f"{asked.answers} answers in batches of {asked.batch}, {asked.seeds} seeds; mean over "
          "classes and seeds, (worst class, mean over seeds)")  # fmt: skip
    for path in asked.collections:
        table = labelled(Collection.open(path, must_exist=True), [asked.by])
        every = np.array(table.names[asked.by])
        for recipe in asked.spaces:
            for way, choose in WAYS.items():
                results = []
                for seed in range(asked.seeds):
                    random = np.random.default_rng(seed)
                    rows = drawn(every, asked.each, random)
                    vectors, names = table.vectors[rows], every[rows]
                    space, line = fit(recipe, vectors), []
                    for name in np.unique(names):
                        search = Search(space, vectors, names == name, random)
                        for done in range(0, asked.answers, asked.batch):
                            search.ask(choose(search, min(asked.batch, asked.answers - done)))
                        line.append((search.found, search.ranked()))
                    results.append(line)
                figures = np.array(results).mean(axis=0)  # (classes, 2)
                (found, ranked), worst = figures.mean(axis=0), figures.min(axis=0)
                print(f"{path} {recipe:7} {way:14} found {found:.3f} ({worst[0]:.3f}), "
                      f"ranked {ranked:.3f} ({worst[1]:.3f})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
