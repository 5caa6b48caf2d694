"""What is done and what is left, read from the folders of the runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.study.jobs import (
    Job,
    Places,
    Searched,
    Shape,
    block_macs,
    macs,
    parsed_spec,
    read_searched,
    shape,
    words,
)
from tests.study.settings import NR_CR, SEARCH, TWO_ROUNDS
from utils.report.runs import EVALUATION
from utils.shown.log import read_log, rounds
from utils.training.checkpoint import LAST

# States of a run. READY and TRAINED are those in which there is something to do.
DONE, TRAINED, READY = "done", "to be evaluated", "ready"
WAITING, BLOCKED = "waits for its search", "its search gave up"
GAVE_UP, NOT_NEEDED = "gave up", "not needed: as long as plain-long"
# The blocks that an arm trains after its search; the others train all.
OWN = ("survived", "rejuvenated")
BLOCKS = {NR_CR: OWN, TWO_ROUNDS: OWN, "pruned": ("survived",)}
FINAL = (DONE, BLOCKED, GAVE_UP, NOT_NEEDED)


@dataclass(frozen=True)
class Progress:
    """Where a run stands: its state, the epochs in its log, its seed's search if that is done."""

    state: str
    rows: tuple[dict, ...] = ()
    searched: Searched | None = None
    shaped: Shape | None = None


def progress(job: Job, runs: Path) -> Progress:
    """Where ``job`` stands, from its folder and its search's."""
    folder = runs / job.name
    rows = tuple(read_log(folder / "log.txt")) if (folder / "log.txt").exists() else ()
    searched = read_searched(runs / job.search.name) if job.arm.needs_search else None
    if job.arm.needs_search and searched is None:
        gave_up = progress(job.search, runs).state == GAVE_UP
        return Progress(BLOCKED if gave_up else WAITING, rows)
    shaped = shape(job, searched)
    if shaped is None:
        return Progress(NOT_NEEDED, rows, searched)
    return Progress(_state(job, folder, rows, shaped), rows, searched, shaped)


def _state(job: Job, folder: Path, rows: tuple[dict, ...], shaped: Shape) -> str:
    lengths = rounds(rows) or [(0, 0)]
    number, (search, train) = len(lengths), lengths[-1]
    if job.arm.name == SEARCH:
        trained = read_searched(folder) is not None
    else:
        trained = number >= job.arm.rounds and train >= shaped.epochs
    evaluated = (folder / EVALUATION).exists() or not job.setting.evaluated
    if not trained:
        own = job.arm.searches_in(number) and not train
        all_searched = own and search >= job.setting.max_epochs
        low = bool(search) and rows[-1]["Utilization"] <= job.setting.target
        if low or not all_searched:
            return READY
        # How much a λ that is too small left alive is worth knowing, too.
        return GAVE_UP if evaluated or job.arm.name != SEARCH else TRAINED
    return DONE if evaluated else TRAINED


def begun(job: Job, runs: Path) -> bool:
    """Whether the run has a checkpoint to go on from."""
    return (runs / job.name / LAST).exists()


# What is left, and how long it will take.


@dataclass(frozen=True)
class Cost:
    """Of a run, in multiply-adds of training passes: done, left; and the seconds that it took."""

    network: str
    done: float
    left: float
    seconds: float


def cost(job: Job, stands: Progress, places: Places) -> Cost:
    """What ``job`` has cost and will; a search that is not over counts as long as it may be."""
    shaped = stands.shaped or Shape(job.setting.epochs, job.setting.schedule, job.setting.width)
    plain, train = _macs_of_phases(job, stands, places, shaped)
    images = job.setting.train_images
    lengths = rounds(stands.rows) or [(0, 0)]
    others = 0 if job.arm.searches else lengths[0][0]  # epochs of its seed's search
    seconds = sum(row["Seconds"] for row in stands.rows[others:])
    searched, trained = map(sum, zip(*lengths, strict=True))
    left = 0.0
    if stands.state not in (*FINAL, TRAINED):
        number, (search, training) = len(lengths), lengths[-1]
        to_come, longest = job.arm.rounds - number, job.setting.max_epochs
        present = longest - search if job.arm.searches_in(number) and not training else 0
        left_search = max(present, 0) + to_come * longest
        left_train = max(shaped.epochs - training, 0) + to_come * shaped.epochs
        left = plain * left_search + (0 if job.arm.name == SEARCH else train * left_train)
    done = plain * (searched - others) + train * trained
    return Cost(job.setting.network, done * images, left * images, seconds)


def _macs_of_phases(
    job: Job, stands: Progress, places: Places, shaped: Shape
) -> tuple[float, float]:
    """Multiply-adds of an image in the search and in the train phase of ``job``."""
    plain = macs(parsed_spec(words(job, places, shaped)))
    if not job.arm.resumes or stands.searched is None:
        return plain, plain
    blocks = block_macs(stands.searched)
    return plain, sum(blocks[name] for name in BLOCKS.get(job.arm.name, blocks))


def seconds_left(costs: Iterable[Cost], cores: int) -> float | None:
    """Estimated from the multiply-adds a second of the runs of the same network, or of all.

    None while nothing has been logged.
    """
    costs = list(costs)
    if not sum(cost.done for cost in costs):
        return None

    def rate(network: str) -> float:
        same = [c for c in costs if c.network == network and c.done] or costs
        return sum(c.seconds for c in same) / sum(c.done for c in same)

    return sum(c.left * rate(c.network) for c in costs if c.left) / cores


def report(jobs: list[Job], places: Places, cores: int) -> str:
    """A line a setting and the time that is left; below them, runs that are not done."""
    stands = {job: progress(job, places.runs) for job in jobs}
    lines = []
    for setting in dict.fromkeys(job.setting for job in jobs):
        states = [stands[job].state for job in jobs if job.setting == setting]
        finished = sum(state in FINAL for state in states)
        lines.append(f"{setting.name}: {finished} of {len(states)} runs done")
    for job, stand in stands.items():
        if stand.state != DONE:
            epochs = f", {len(stand.rows)} epochs in its log" if stand.rows else ""
            lines.append(f"  {job.name}: {stand.state}{epochs}")
    left = seconds_left([cost(job, stand, places) for job, stand in stands.items()], cores)
    known = "unknown before the first epoch" if left is None else f"about {left / 3600:.1f} hours"
    lines.append(f"Left: {known} on {cores} core(s), searches at their longest")
    return "\n".join(lines)
