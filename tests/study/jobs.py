"""A run of an arm: its folder, and the command that its setting, arm, seed and search say."""

import json
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cifar
import imagenet
import nr
from nr.network.graph import IMAGE
from nr.network.wiring import wiring
from tests.study.settings import ARMS, BOTH, COMPUTE, SEARCH, TRAIN, Arm, Setting
from utils.report.runs import data_name, described
from utils.shown.log import read_log

WIDTH_STEP = 1000  # --width-mult of a narrow network is a multiple of 1 / WIDTH_STEP
COMPUTE_TOLERANCE = 0.1  # plain-compute is left out where it is this close to plain-long
CIFAR = "cifar10"  # of -d, and of the study's --data where that is no folder
CLASSES = {"cifar100": 100, "ILSVRC2012": 1000}  # of the data sets that have not 10


@dataclass(frozen=True)
class Places:
    """Where things are, as paths that the scripts can use from the checkout.

    ``data``: a folder of images, or None for torchvision's CIFAR-10 in ``downloads``; ``extra``:
    flags for every run.
    """

    runs: Path
    data: Path | None
    imagenet: Path
    extra: str = ""
    downloads: Path = Path("data")

    @property
    def held_out(self) -> Path:
        """The folder of the pilots' images."""
        return Path(f"{self.data or self.downloads / CIFAR}-heldout")

    def filled(self, flags: str) -> str:
        """``flags`` with the data sets filled in."""
        downloads = shlex.quote(str(self.downloads))
        folder = f"-d folder --data {shlex.quote(str(self.data))}"
        return flags.format(
            images=folder if self.data else f"-d {CIFAR} --data {downloads}",
            heldout=shlex.quote(str(self.held_out)),
            torchvision=downloads,
            imagenet=shlex.quote(str(self.imagenet)),
        )


@dataclass(frozen=True)
class Searched:
    """What a finished search leaves to those that come after it."""

    epochs: int
    spec: str  # of the network, as JSON
    structure: str  # of the NR-CR network, as JSON


@dataclass(frozen=True)
class Shape:
    """What can depend on the search: epochs of the train phase, their schedule, the width."""

    epochs: int
    schedule: tuple[int, ...]
    width: float


@dataclass(frozen=True)
class Job:
    """One run: ``arm`` of ``setting`` with ``seed``."""

    setting: Setting
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        return f"{self.setting.name}-{self.arm.name}-seed{self.seed}"

    @property
    def search(self) -> "Job":
        """The search of its seed."""
        return Job(self.setting, ARMS[SEARCH], self.seed)

    @property
    def before(self) -> str:
        """The file of a search's last network, before it is rejuvenated."""
        arch = self.setting.network.split()[1]
        return f"NR_{arch}_before_{self.setting.target:g}.pth.tar"


def all_jobs(settings: tuple[Setting, ...], seeds: list[int] | None) -> list[Job]:
    """Every run in order: a setting's first seed whole before its second."""
    return [
        Job(setting, ARMS[name], seed)
        for setting in settings
        for seed in seeds or setting.seeds
        for name in setting.arms
    ]


# Lengths, schedules and widths.


def shape(job: Job, searched: Searched | None) -> Shape | None:
    """The run's length and width; None where it would be nearly the same as plain-long.

    ``searched``: of its seed, needed where ``job.arm.needs_search``.
    """
    setting, arm = job.setting, job.arm
    epochs, width = setting.epochs, setting.width
    if arm.length != TRAIN:
        both = searched.epochs + setting.epochs
        epochs = both if arm.length == BOTH else compute_epochs(searched, setting.epochs)
        if arm.length == COMPUTE and abs(epochs - both) <= COMPUTE_TOLERANCE * both:
            return None
    if arm.narrow:
        width = narrow_width(searched, setting.width)
    schedule = setting.search_schedule if arm.name == SEARCH else setting.schedule
    return Shape(epochs, stretched(schedule, setting.epochs, epochs), width)


def stretched(schedule: tuple[int, ...], epochs: int, longer: int) -> tuple[int, ...]:
    """The milestones at the same fractions of a run of another length, halves rounded up."""
    return tuple((2 * epoch * longer + epochs) // (2 * epochs) for epoch in schedule)


def compute_epochs(searched: Searched, train: int) -> int:
    """Epochs of the plain network with as many multiply-adds as NR-CR's search and training."""
    plain, rejuvenated = macs(searched.spec), macs(searched.spec, searched.structure)
    return round(searched.epochs + train * rejuvenated / plain)


def narrow_width(searched: Searched, width: float) -> float:
    """--width-mult of the plain network whose parameters are nearest to NR-CR's."""
    wanted = nr.count_params(network(searched.spec, searched.structure))
    spec = json.loads(searched.spec)

    def parameters(step: int) -> int:
        options = spec["options"] | {"width_mult": step / WIDTH_STEP}
        return nr.count_params(network(json.dumps(spec | {"options": options})))

    low, high = 1, round(width * WIDTH_STEP)  # parameters grow with the width: bisect
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if parameters(middle) >= wanted else (middle + 1, high)
    nearest = min((max(low - 1, 1), low), key=lambda step: abs(parameters(step) - wanted))
    return nearest / WIDTH_STEP


@cache
def network(spec: str, structure: str | None = None) -> nr.Network:
    """A network without memory, from JSON."""
    return described(json.loads(spec), structure and json.loads(structure))


def macs(spec: str, structure: str | None = None) -> int:
    return nr.count_macs(network(spec, structure))


def block_macs(searched: Searched) -> dict[str, int]:
    """Multiply-adds of the convolutions of a rejuvenated network: survived, rejuvenated, cross."""
    found = {"survived": 0, "rejuvenated": 0, "cross": 0}
    for layer in wiring(network(searched.spec, searched.structure)).layers:
        window = layer.unit.taps * layer.pixels
        (i, j), (o, p) = layer.unit.in_channels, layer.unit.out_channels
        found["survived"] += window * i * o
        found["rejuvenated"] += window * j * p
        found["cross"] += 0 if IMAGE in layer.sources else window * (i * p + j * o)
    return found


# Command lines.


def words(job: Job, places: Places, shaped: Shape) -> list[str]:
    """Script and flags of the run, without --resume."""
    setting, arm = job.setting, job.arm
    flags = [setting.network, places.filled(setting.data), setting.flags]
    if setting.images is not None:
        flags.append(f"--subset {setting.images}")
    if shaped.width != 1:
        flags.append(f"--width-mult {shaped.width:g}")
    flags.append(f"--epochs {shaped.epochs} --schedule {' '.join(map(str, shaped.schedule))}")
    if "--nr-target" not in arm.flags:
        flags.append(f"--nr-target {setting.target:g}")
    searches = arm.searches_in(arm.rounds)
    if searches and setting.sparsity is not None:
        flags.append(f"--nr-sparsity {setting.sparsity:g}")
    if searches:
        flags.append(f"--nr-max-epochs {setting.max_epochs}")
    flags += [arm.flags, f"--manualSeed {job.seed}", places.extra]
    split = [word for part in flags for word in shlex.split(part)]
    return [setting.script, *split, "-c", str(places.runs / job.name)]


def start_words(job: Job, places: Places, shaped: Shape, begun: bool) -> list[str]:
    """The command that starts the run or goes on with it (``begun``: it has a checkpoint)."""
    resume = "auto"
    if job.arm.resumes and not begun:
        resume = str(places.runs / job.search.name / job.before)
    return [*words(job, places, shaped), "--resume", resume]


def evaluation_words(job: Job, places: Places, shaped: Shape, last: str) -> list[str]:
    """The command that evaluates checkpoint ``last`` of the run on the whole test set."""
    line = words(job, places, shaped)
    if "--subset" in line:
        at = line.index("--subset")
        del line[at : at + 2]
    return [*line, "--resume", str(places.runs / job.name / last), "-e"]


def parsed_spec(line: list[str]) -> str:
    """The network of a command line, as JSON, as the script itself understands it."""
    script = cifar if line[0] == "cifar.py" else imagenet
    args, keywords = script.parse(line[1:])
    classes = CLASSES.get(getattr(args, "dataset", "ILSVRC2012"), 10)
    options = keywords | {"num_classes": classes}
    return json.dumps({"family": Path(line[0]).stem, "arch": args.arch, "options": options})


def data_of(setting: Setting, places: Places) -> str:
    """The data set of its runs, as tables name it."""
    script = cifar if setting.script == "cifar.py" else imagenet
    args, _ = script.parse(shlex.split(f"{setting.network} {places.filled(setting.data)}"))
    return data_name(vars(args) | {"subset": None})


def data_in(folder: Path) -> str:
    """The data set of the run in ``folder``, as ``data_of``."""
    args = json.loads((folder / "run.json").read_text())["args"]
    return data_name(args | {"subset": None})


def read_searched(folder: Path) -> Searched | None:
    """What the search in ``folder`` found, or None while it has not rejuvenated."""
    if not (folder / "run.json").exists() or not (folder / "log.txt").exists():
        return None
    description = json.loads((folder / "run.json").read_text())
    spec, structure = (json.dumps(description[name]) for name in ("network", "structure"))
    if network(spec, structure).streams == 1:
        return None
    epochs = sum(row["Phase"] == "search" for row in read_log(folder / "log.txt"))
    return Searched(epochs, spec, structure)
