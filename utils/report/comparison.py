"""Arms of a study against each other, paired by seed: differences with their intervals.

A study's run folders are named SETTING-ARM-seedN, SETTING without a hyphen.
"""

import math
import re
import statistics
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path

from utils.errors import InputError
from utils.report.runs import Run, refuse_same_seed
from utils.report.tables import epochs_text, exact, markdown, spread

FOLDER = re.compile(r"(?P<setting>[^-]+)-(?P<arm>.+)-seed\d+")
# 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom.
T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
BILLION = 1e9
CONVERGED = 95.0  # %, of the training images: below this a network could have learnt on
COLUMNS = "arm|n|parameters|epochs (search + train)|training, 10⁹ multiply-adds an image"
COLUMNS += "|train accuracy, %|error, %"


@dataclass(frozen=True)
class Difference:
    """Of n paired differences; one pair has no deviation and no interval: both are NaN."""

    n: int
    mean: float
    deviation: float
    half: float  # of the width of the 95 % interval

    @property
    def open(self) -> bool:
        """Whether the sign is not settled: the 95 % interval holds 0, or there is none."""
        return not abs(self.mean) > self.half

    def __str__(self) -> str:
        if self.n == 1:
            return f"{self.mean:+.2f} (n = 1, open)"
        low, high = self.mean - self.half, self.mean + self.half
        verdict = ", open" if self.open else ""
        return f"{self.mean:+.2f} ± {self.deviation:.2f} [{low:+.2f}, {high:+.2f}]{verdict}"


def difference(ours: dict[int, float], base: dict[int, float]) -> Difference | None:
    """``ours`` - ``base``, seed -> value, over the seeds of both; None where they share none.

    The interval is mean ± t · deviation / √n, t of n - 1 degrees of freedom (for n > 21 that of
    20, which is a little too wide).
    """
    pairs = [value - base[seed] for seed, value in ours.items() if seed in base]
    if not pairs:
        return None
    n, mean = len(pairs), statistics.mean(pairs)
    deviation = statistics.stdev(pairs) if n > 1 else math.nan
    t = T975[min(n - 1, len(T975)) - 1]
    return Difference(n, mean, deviation, t * deviation / math.sqrt(n))


def arms(runs: list[Run]) -> dict[str, dict[str, list[Run]]]:
    """Setting -> arm -> runs by seed, of the runs whose folder is named as the study names it.

    Raises InputError naming two folders of an arm with one seed, or of a setting with other data.
    """
    found: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if name := FOLDER.fullmatch(Path(run.folder).name):
            found.setdefault(name["setting"], {}).setdefault(name["arm"], []).append(run)
    for by_arm in found.values():
        for group in by_arm.values():
            refuse_same_seed(group)
        for run, other in combinations(chain.from_iterable(by_arm.values()), 2):
            known = run.digest and other.digest
            if run.data != other.data or (known and run.digest != other.digest):
                raise InputError(
                    f"{run.folder} and {other.folder}: one setting, but different data"
                    f" ({run.data}, {other.data})"
                )
    return found


def errors(runs: list[Run]) -> dict[int, float]:
    """Seed -> error in % of the last network, on the whole test set."""
    return {run.seed: run.tested for run in runs if run.tested is not None}


def differences(by_arm: dict[str, list[Run]], base: str) -> dict[str, Difference]:
    """Arm -> difference of its error to arm ``base``'s, in points, of those that share a seed."""
    base_errors = errors(by_arm.get(base, []))
    others = [(arm, errors(runs)) for arm, runs in by_arm.items() if arm != base]
    return {arm: found for arm, own in others if (found := difference(own, base_errors))}


def comparison_table(by_arm: dict[str, list[Run]], bases: list[str]) -> str:
    """A row an arm: what it cost, its error on all test images, its difference to each base."""
    against = {base: differences(by_arm, base) for base in bases if base in by_arm}
    header = [*COLUMNS.split("|"), *(f"minus {base}" for base in against)]
    rows = []
    for arm, runs in by_arm.items():
        tested = errors(runs).values()
        cells = [arm, str(len(tested)), exact([run.params for run in runs]), epochs_text(runs)]
        cells.append(spread(run.training_macs / BILLION for run in runs))
        cells.append(spread(run.train_accuracy for run in runs))
        cells.append(spread(tested) if tested else "not evaluated")
        rows.append([*cells, *(str(found.get(arm, "-")) for found in against.values())])
    return markdown(header, rows)


def comparisons(runs: list[Run], bases: list[str]) -> str:
    """The table of every setting, between its network and data and what has not converged."""
    texts = []
    for setting, by_arm in arms(runs).items():
        tested = [run.tested_images for group in by_arm.values() for run in group]
        images = exact([count for count in tested if count is not None] or [0])
        first = next(iter(by_arm.values()))[0]
        widest = max((run for group in by_arm.values() for run in group), key=lambda r: r.params)
        head = f"Setting {setting}: {widest.model}, {first.data}; {images} test images."
        head += " Differences in points, paired by seed: mean ± sd [95 % interval]."
        texts += [head, comparison_table(by_arm, bases)]
        least = {arm: min(run.train_accuracy for run in group) for arm, group in by_arm.items()}
        if short := [f"{arm} ({x:.1f})" for arm, x in least.items() if x < CONVERGED]:
            below = f"least train accuracy below {CONVERGED:g} %"
            texts.append(f"Not converged, {below}: {', '.join(short)}.")
    return "\n\n".join(texts)
