"""Figures of docs/archive.md on novel sounds of machines: made-up rotating machines and valves,
over days with their own speed, recorder level and background, with planted faults. Five draws; days
and machines are kept apart. Needs ../shared/data.

    python scripts/machine_novelty.py [demo kwt1 yamnet]
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from scripts.real_models import SHARED
from sklearn.metrics import roc_auc_score

from penult import Embedder, load
from penult.analysis.novelty import (
    AUTO,
    KNN,
    METHODS,
    NEW,
    choose_method,
    fold_scores,
    folds_of,
    novelty_scores,
    p_values,
)

RATE, LENGTH, SEEDS, ALPHA, PARTIAL = 16_000, 16_000, 5, 0.05, 0.1
NORMAL = "normal"
TIME = np.arange(LENGTH) / RATE
Random = np.random.Generator
Array = np.ndarray


class Rotating:
    """Harmonics of a shaft's speed, a gear's tone and coloured noise, of the machine's own."""

    faults = ("bearing", "rattle", "speed", "tone", "imbalance")

    def __init__(self, random: Random) -> None:
        self.speed = random.uniform(25, 60)
        self.levels = np.arange(1, 41) ** -random.uniform(0.8, 1.4) * random.lognormal(0, 0.5, 40)
        self.teeth, self.gear = int(random.integers(17, 41)), random.uniform(0.1, 0.4)
        self.colour, self.noise = random.uniform(0.3, 0.8), random.uniform(0.1, 0.3)

    def clip(self, speed: float, fault: str, random: Random) -> Array:
        """A second, at this share of the machine's speed."""
        speed *= self.speed * (1.12 if fault == "speed" else 1)
        levels = self.levels.copy()
        levels[0] *= 4 if fault == "imbalance" else 1
        turns = 2 * np.pi * speed * TIME + 0.02 * np.cumsum(random.standard_normal(LENGTH)) / 10
        phases = random.uniform(0, 2 * np.pi, 41)
        sound = sum(a * np.sin(k * turns + phases[k]) for k, a in enumerate(levels, 1))
        sound = sound + self.gear * np.sin(self.teeth * turns + phases[0])
        sound += self.noise * coloured(random, self.colour)
        if fault == "bearing":
            sound += 0.5 * pulses(
                np.arange(random.uniform(0, 0.02), 1, 1 / (3.57 * speed)), 3400, 400
            )
        return sound + common(fault, random, 0.3)


class Valve:
    """Regular clicks with resonances of the machine's own, over noise."""

    faults = ("missing click", "bounce", "rattle", "speed", "tone")

    def __init__(self, random: Random) -> None:
        self.rate = random.uniform(5, 8)
        self.tones, self.fade = random.uniform(400, 4000, 3), random.uniform(40, 120)
        self.colour, self.noise = random.uniform(0.3, 0.8), random.uniform(0.02, 0.06)

    def clip(self, speed: float, fault: str, random: Random) -> Array:
        """A second, at this share of the machine's speed."""
        rate = self.rate * speed * (1.3 if fault == "speed" else 1)
        times = np.arange(random.uniform(0, 1 / rate), 1, 1 / rate)
        times += 0.003 * random.standard_normal(len(times))
        if fault == "missing click":
            times = np.delete(times, random.integers(len(times)))
        if fault == "bounce":
            times = np.concatenate([times, times + 0.03])
        sound = sum(pulses(times, tone, self.fade) for tone in self.tones)
        sound = sound + self.noise * coloured(random, self.colour)
        return sound + common(fault, random, 0.05)


def common(fault: str, random: Random, level: float) -> Array:
    """Faults of either kind: ten short bursts of noise a second, or a tone of 1.8 kHz."""
    if fault == "rattle":
        bursts = pulses(random.uniform(0, 1, 10), 0, 60)
        return 3 * level * bursts * random.standard_normal(LENGTH)
    return level * np.sin(2 * np.pi * 1800 * TIME) if fault == "tone" else np.zeros(LENGTH)


def pulses(times: Array, tone: float, fade: float) -> Array:
    """At each time a tone in Hz (0: one without) that fades at this rate per second."""
    sound = np.zeros(LENGTH)
    for one in times[(times >= 0) & (times < 1)]:
        since = TIME[int(one * RATE) :] - TIME[int(one * RATE)]
        sound[int(one * RATE) :] += np.exp(-fade * since) * np.cos(2 * np.pi * tone * since)
    return sound


def coloured(random: Random, power: float) -> Array:
    """Noise of deviation 1 whose amplitude falls with this power of the frequency."""
    spectrum = np.fft.rfft(random.standard_normal(LENGTH))
    spectrum /= np.maximum(np.arange(len(spectrum)), 20) ** power
    sound = np.fft.irfft(spectrum, LENGTH)
    return sound / sound.std()


def day_of(machine: Rotating | Valve, wanted: list[str], random: Random) -> list[Array]:
    """Clips of a day: speed by ±4 %, recorder level by ±6 dB, its own background."""
    speed, level = random.uniform(0.96, 1.04), 0.1 * 2 ** random.uniform(-1, 1)
    colour, loud = random.uniform(0, 1), random.uniform(0.01, 0.1)
    found = []
    for fault in wanted:
        clip = machine.clip(speed * random.uniform(0.995, 1.005), fault, random)
        clip = level * (clip / np.sqrt((clip**2).mean()) ** 0.5 + loud * coloured(random, colour))
        found.append(np.clip(clip, -1, 1).astype(np.float32))
    return found


def draw(
    kind: type[Rotating] | type[Valve], of: str, seed: int
) -> tuple[list[Array], Array, Array]:
    """Clips, with the group and what is wrong with each. days: of one machine, known days 0 to 9 of
    twelve, new ones with faults. machines: the same of machines, of three days each."""
    random = np.random.default_rng([seed, kind is Valve, of == "days"])
    asked = [NORMAL] * 6 + [fault for fault in kind.faults for _ in range(2)]
    clips, groups, faults = list[Array](), list[int](), list[str]()
    machine = kind(random)
    for group in range(20):
        wanted = [NORMAL] * 12 if group < 10 else asked
        machine = kind(random) if of == "machines" else machine
        days = [wanted] if of == "days" else [wanted[day::3] for day in range(3)]
        for day in days:
            clips += day_of(machine, day, random)
            groups += [group] * len(day)
            faults += day
    return clips, np.array(groups), np.array(faults)


Line = dict[str, dict[str, float]]


def measure(vectors: Array, groups: Array, faults: Array, seed: int) -> tuple[Line, str, str]:
    """Of each method its figures; the method that auto takes; the change heard least."""
    known = groups < 10
    normal, asked, wrong = vectors[known], vectors[~known], faults[~known]
    names = groups[known].astype(str).tolist()
    folds, none = folds_of(names, len(normal)), np.full(len(asked), NEW)
    choice = choose_method(normal, folds, names, seed)
    found: Line = {}
    for method in METHODS:
        held = novelty_scores(method, normal, folds, normal, folds)
        alike = np.tile(held, (folds.max() + 1, 1))
        low = p_values(held, folds, fold_scores(method, normal, folds, asked, none), none) <= ALPHA
        scores = novelty_scores(method, normal, folds, asked, none)
        line = {"stated": float((p_values(held, folds, alike, folds) <= ALPHA).mean()),
                "real": float(low[wrong == NORMAL].mean()),
                "faults": float(low[wrong != NORMAL].mean()),
                "planted": choice.means()[method]}  # fmt: skip
        each = [fault for fault in np.unique(wrong) if fault != NORMAL]
        for fault in each:
            pair = np.isin(wrong, (NORMAL, fault))
            truth = wrong[pair] == fault
            line[f"auroc {fault}"] = float(roc_auc_score(truth, scores[pair]))
            line[f"partial {fault}"] = float(roc_auc_score(truth, scores[pair], max_fpr=PARTIAL))
        for name in ("auroc", "partial"):
            line[name] = float(np.mean([line[f"{name} {fault}"] for fault in each]))
        found[method] = line
    return found, choice.taken, min(choice.auroc[choice.taken].items(), key=lambda one: one[1])[0]


def readers(names: list[str]) -> dict[str, Callable[[list[Array]], Array]]:
    made = {}
    for name in names:
        if name == "demo":
            embedder = Embedder.from_classifier(load("demo"))
        elif name == "kwt1":
            clf = load(SHARED / "w_kwt1/kwt1.onnx", sample_rate=RATE, seconds=1.0)
            embedder = Embedder.from_classifier(clf, "prelogits")
        else:
            clf = load(SHARED / "w_yamnet_hf", preprocess="scripts.real_models:yamnet",
                       sample_rate=RATE, modality="audio")  # fmt: skip
            embedder = Embedder.from_classifier(clf, "prelogits")
        made[name] = lambda clips, own=embedder: own.embed([(clip, RATE) for clip in clips])
    return made


def main() -> None:
    read = readers(sys.argv[1:] or ["demo", "kwt1", "yamnet"])
    lines: dict[tuple[str, ...], list[dict[str, float]]] = defaultdict(list)
    for kind in (Rotating, Valve):
        for of in ("days", "machines"):
            for seed in range(SEEDS):
                clips, groups, faults = draw(kind, of, seed)
                for name, embed in read.items():
                    found, taken, least = measure(embed(clips), groups, faults, seed)
                    for method in METHODS:
                        lines[kind.__name__, of, name, method].append(found[method])
                    lines[kind.__name__, of, name, AUTO].append(found[taken])
                    print(kind.__name__, of, seed, name, "auto takes", taken, "least", least,
                          flush=True)  # fmt: skip
    head = ("machine", "new", "reading", "method", "AUROC (worst)", "partial", "stated",
            "real (range)", "faults", "planted")  # fmt: skip
    print(f"\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for key, own in lines.items():
        mean = {name: float(np.mean([one[name] for one in own])) for name in own[0]}
        worst, real = min(one["auroc"] for one in own), [one["real"] for one in own]
        cells = (*key, f"{mean['auroc']:.3f} ({worst:.3f})", f"{mean['partial']:.3f}",
                 f"{mean['stated']:.1%}",
                 f"{mean['real']:.1%} ({min(real):.1%} to {max(real):.1%})",
                 f"{mean['faults']:.0%}", f"{mean['planted']:.3f}")  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    print("\nEach fault by k-NN: AUROC, mean of five draws (worst)\n")
    for key, own in lines.items():
        if key[-1] == KNN:
            each = [name for name in own[0] if name.startswith("auroc ")]
            values = [[one[name] for one in own] for name in each]
            said = [f"{name.removeprefix('auroc ')} {np.mean(v):.2f} ({min(v):.2f})"
                    for name, v in zip(each, values, strict=True)]  # fmt: skip
            print(f"{' '.join(key[:3])}: {', '.join(said)}")


if __name__ == "__main__":
    main()
