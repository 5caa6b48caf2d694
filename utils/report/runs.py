"""A finished run, read from the files that it leaves."""

import json
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path

import torch

import models
import nr
from nr.files.archive import modules_of
from nr.files.building import build_on_meta
from nr.network.graph import IMAGE
from nr.network.wiring import wiring
from utils.errors import InputError, one_line
from utils.files import Plain
from utils.shown.log import Row, phases, read_log, rounds
from utils.training.older import upgraded
from utils.training.options import NO_REJUVENATION, PLAIN

PUBLISHED_DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}  # torchvision's, of -d
IMAGENET = "ImageNet"
IMAGENET_SIZE = {"classes": 1000, "images": [1281167, 50000]}  # of ILSVRC2012
DATA_NAMES = {  # folders
    "cifar10-heldout": "CIFAR-10, held-out training images",
    "cifar10-jpeg": "CIFAR-10 (JPEG)",
    "cifar10-jpeg-heldout": "CIFAR-10 (JPEG), held-out training images",
}
ARMS = {"removed": "NR-CR", "attention": "NR-CA", "full": "NR, full", "none": "pruned only"}
EVALUATION = "evaluation.json"  # what -e printed about the last network, where it was asked
# Flags that do not make two runs different ones.
INCIDENTAL = ("manualSeed", "checkpoint", "resume", "gpu_id", "workers", "test_batch", "evaluate")
SEARCH_FLAGS = ("nr_sparsity", "nr_max_epochs", "nr_compress_only", "start_epoch")


@dataclass(frozen=True)
class Run:
    """A finished run, from its run.json and log.txt. Errors in %, multiply-adds of one image."""

    folder: str
    command: str
    family: str
    model: str
    arm: str
    data: str
    digest: str | None  # of the data set; None where the run is too old to know it
    sparsity: str
    search: int  # epochs of all rounds, as train
    train: int
    params: int
    params_with_cross: int
    macs: int
    last: float
    best: float
    last5: float | None
    train_accuracy: float  # %, of the last epoch
    tested: float | None  # error of the last network on tested_images, from evaluation.json
    tested_images: int | None
    training_macs: int  # forward passes of every phase, of one image an epoch
    minutes: float
    seed: int
    epochs: tuple[int, ...]  # of search and train phase, round by round
    setting: str  # equal for the seeds of one command
    rows: list[Row]


def read_run(folder: Path) -> Run:
    """The run in ``folder``. Raises InputError naming the folder if it is broken or unfinished."""
    try:
        description = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        args, spec = description["args"], description["network"]
        rows = read_log(folder / "log.txt")
        size = args["image_size"]
        counts = counted(json.dumps([spec, description["structure"]]), size)
        _, _, searched = counted(json.dumps([spec]), size)
        return summary(folder, description, rows, counts, searched)
    except InputError as error:
        raise InputError(f"{folder}: {str(error).removeprefix(f'{folder}: ')}") from error
    except OSError as error:
        raise InputError(f"{folder}: broken: {error.filename}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}: broken: {one_line(error)}") from error


def summary(
    folder: Path, description: Plain, rows: list[Row], counts: tuple[int, int, int], searched: int
) -> Run:
    """The figures of a finished run. Raises InputError for an unfinished one.

    ``counts``: as ``count`` gives them; ``searched``: multiply-adds of the searched network.
    """
    args, spec, known = description["args"], description["network"], description.get("data")
    if state := unfinished(args, rows):
        raise InputError(f"unfinished: {state}")
    train = [row for row in rows if row["Phase"] == "train"]
    epochs = tuple(chain.from_iterable(rounds(rows)))
    params, params_with_cross, macs = counts
    top5 = "Valid 5 Acc." in train[-1]
    kept = {k: v for k, v in args.items() if k not in (*INCIDENTAL, *SEARCH_FLAGS, "data")}
    usual = {"nr_budget": "flops" if args["nr_flops"] else "params", "nr_latency_batch": 1}
    kept = PLAIN | usual | kept  # older runs do not have all flags
    data = known["digest"] if known else data_name(args)
    sparsity = sparsity_text(rows)
    evaluation = read_evaluation(folder)
    costs = [searched, *description.get("macs", []), macs]  # of the network of each phase
    return Run(
        folder=folder.as_posix(),
        command=description["command"],
        family=spec["family"],
        model=model_name(spec),
        arm=arm_name(args),
        data=data_name(args, known),
        digest=known and known["digest"],
        sparsity=sparsity,
        search=sum(epochs[::2]),
        train=len(train),
        params=params,
        params_with_cross=params_with_cross,
        macs=macs,
        last=100 - train[-1]["Valid Acc."],
        best=100 - max(row["Valid Acc."] for row in train),
        last5=100 - train[-1]["Valid 5 Acc."] if top5 else None,
        train_accuracy=train[-1]["Train Acc."],
        tested=100 - evaluation["accuracy"] if evaluation else None,
        tested_images=evaluation["images"] if evaluation else None,
        training_macs=sum(cost * count for cost, count in zip(costs, epochs, strict=True)),
        minutes=sum(row["Seconds"] for row in rows) / 60,
        seed=description["seed"],
        epochs=epochs,
        setting=json.dumps([spec, kept, sparsity, data], sort_keys=True),
        rows=rows,
    )


def unfinished(args: Plain, rows: list[Row]) -> str | None:
    """Where a run of these flags stands by its log; None at the end of its last round."""
    lengths, last = rounds(rows) or [(0, 0)], (PLAIN | args)["nr_rounds"]
    search, train = lengths[-1]
    if len(lengths) >= last and train >= args["epochs"]:
        return None
    where = f"{train} of {args['epochs']} epochs of the train phase"
    if search and not train:
        where = f"search at utilization {rows[-1]['Utilization']:.3f} after {search} epochs"
    return where if last == 1 else f"round {len(lengths)} of {last}, {where}"


def read_evaluation(folder: Path) -> Plain | None:
    """What evaluation.json says, or None where the run was not evaluated."""
    path = folder / EVALUATION
    return json.loads(path.read_text()) if path.exists() else None


def described(spec: Plain, structure: Plain | None = None) -> nr.Network:
    """The network of a run.json without memory; as it was built where there is no structure."""
    if structure is not None and "widths" in structure:
        structure = upgraded(spec, structure)
    try:
        if structure is not None:
            return build_on_meta(structure)
    except ValueError:  # of modules that nr does not know
        if not models.converted.split(spec["arch"]):
            raise
    with torch.device("meta"):
        built = models.build(spec["family"], spec["arch"], **spec["options"])
    return built if structure is None else build_on_meta(structure, modules_of(built))


@cache
def counted(network: str, image_size: int) -> tuple[int, int, int]:
    """``count`` of a network from JSON, the arguments of ``described``: once for its many runs."""
    return count(described(*json.loads(network)), image_size)


def count(network: nr.Network, image_size: int) -> tuple[int, int, int]:
    """Parameters, those with the gated connections where they were removed, multiply-adds."""
    params = with_cross = nr.count_params(network)
    for layer in wiring(network).layers:
        unit = layer.unit
        if unit.form == "removed" and IMAGE not in layer.sources and not unit.group:
            (i, j), (o, p) = unit.in_channels, unit.out_channels
            with_cross += unit.taps * (i * p + j * o)
    return params, with_cross, nr.count_macs(network, image_size)


def model_name(spec: Plain) -> str:
    """As in the published tables, or as -a takes it, with the width where it is not 1."""
    if ":" in (name := models.full_name(spec["arch"])):
        return name
    arch, options = spec["arch"].removesuffix("_nr").removesuffix("_bn"), spec["options"]
    if spec["family"] == "cifar" and arch == "resnet":
        depth = options.get("depth", 110)
        arch += str(depth if depth < 44 else (depth - 2) // 6 * 9 + 2)  # layers of bottlenecks
    if spec["family"] == "cifar" and arch == "densenet":
        arch += f"{options.get('depth', 100)}-{options.get('growth_rate', 12)}"
    for name in ("VGG", "ResNet", "DenseNet"):
        arch = arch.replace(name.lower(), f"{name}-")
    width = options.get("width_mult", 1)
    return arch if width == 1 else f"{arch} x{width:g}"


def arm_name(args: Plain) -> str:
    """Which form of the method a run is."""
    if args["nr_target"] >= NO_REJUVENATION:
        return "baseline"
    args = PLAIN | args  # older runs do not have all flags
    arm = "NR-FS" if args["nr_from_scratch"] else ARMS[args["nr_cross"]]
    if args["nr_bn_target"] is not None:
        arm += f" + NR-BR {args['nr_bn_target']:g}"
    arm += ", by FLOPs" if args["nr_flops"] else ""
    arm += f", multiples of {args['nr_round_to']}" if args["nr_round_to"] > 1 else ""
    arm += ", by latency" if args.get("nr_budget") == "latency" else ""
    arm += f", {' '.join(args['nr_keep'])} kept" if args["nr_keep"] else ""
    arm += ", momentum carried" if args["nr_carry"] else ""
    arm += ", pretrained" if args.get("pretrained") else ""
    return arm if args["nr_rounds"] == 1 else f"{arm}, {args['nr_rounds']} rounds"


def data_name(args: Plain, known: Plain | None = None) -> str:
    """The data set, and how many images of it; ``known``: what it is known by, if it is.

    Only the published sets have the names of the published tables.
    """
    name = args.get("dataset") or ("synthetic" if args.get("synthetic") else "folder")
    if name in PUBLISHED_DATA:
        name = PUBLISHED_DATA[name]
    elif known and IMAGENET_SIZE.items() <= known.items() and args.get("dataset") is None:
        name = IMAGENET
    elif name == "folder":
        name = known["name"] if known else Path(args["data"]).name
        named = name in (IMAGENET, *PUBLISHED_DATA.values())
        name = f"{name} (folder)" if named else DATA_NAMES.get(name, name)
    return name if args["subset"] is None else f"{name}, {args['subset']:,} images"


def told_apart(runs: list[Run]) -> list[Run]:
    """The runs, those of different data sets of one name with their digests after it."""
    digests: dict[str, set[str | None]] = {}
    for run in runs:
        digests.setdefault(run.data, set()).add(run.digest)
    return [
        replace(run, data=f"{run.data} [{run.digest[:8]}]")
        if run.digest and len(digests[run.data]) > 1
        else run
        for run in runs
    ]


def refuse_same_seed(runs: list[Run]) -> None:
    """InputError where two of the runs that are taken for seeds of one command have one seed."""
    folders: dict[int, str] = {}
    for run in runs:
        other = folders.setdefault(run.seed, run.folder)
        if other != run.folder:
            raise InputError(
                f"{other} and {run.folder}: the same command with the same seed {run.seed};"
                " leave one of them out"
            )


def sparsity_text(rows: list[Row]) -> str:
    """λ of the searches, first and last where it grew; those of several rounds if they differ."""
    texts = []
    for phase in phases(rows):
        if phase.searching:
            first, last = (rows[i]["Sparsity"] for i in (phase.start, phase.stop - 1))
            texts.append(f"{first:g}" if first == last else f"{first:g} to {last:g}")
    return ", ".join(dict.fromkeys(texts)) or "-"
