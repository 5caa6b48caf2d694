"""Tables, pictures and exports of runs: python -m utils.report checkpoints/*/*"""

import argparse
import csv
import io
import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

import models
import nr
from nr.layers import Network
from utils import plots
from utils.checkpoint import BEST, LAST, load_network
from utils.errors import InputError, one_line
from utils.logger import read_log, write_atomically
from utils.options import NO_REJUVENATION

# Specification section 11, error in %: (model, parameters, data set, λ, error).
PUBLISHED_CIFAR = (
    ("VGG-19", "9.99M", "CIFAR-10", "1.5e-4", "4.19"),
    ("VGG-19", "10.04M", "CIFAR-100", "3e-4", "21.53"),
    ("ResNet-164", "0.88M", "CIFAR-10", "1.5e-4", "5.13"),
    ("ResNet-164", "0.92M", "CIFAR-100", "2.5e-4", "23.84"),
    ("DenseNet-100-40", "4.12M", "CIFAR-10", "1e-4", "3.40"),
    ("DenseNet-100-40", "4.31M", "CIFAR-100", "2e-4", "18.59"),
)
# (model, parameters, multiply-adds, top-1 error, top-5 error).
PUBLISHED_IMAGENET = (
    ("DenseNet-121", "8.22M", "3.13G", "24.50", "7.49"),
    ("VGG-16", "36.4M", "23.5G", "23.11", "6.69"),
    ("ResNet-18", "11.9M", "2.16G", "28.86", "9.93"),
    ("ResNet-34", "21.9M", "3.77G", "25.77", "8.10"),
    ("ResNet-50", "26.4M", "3.90G", "22.93", "6.47"),
    ("ResNet-101", "46.6M", "6.96G", "21.22", "5.76"),
)
DATA_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "cifar10-jpeg": "CIFAR-10 (JPEG)"}
NOT_RUN = ["not run"] * 3  # search + train epochs, error of the last and of the best epoch
FIRST_COLUMNS = (
    "model|run|parameters|with cross-connections|multiply-adds|data|λ|epochs (search + train)"
)
# Flags that do not make two runs different ones.
INCIDENTAL = ("manualSeed", "checkpoint", "resume", "gpu_id", "workers", "test_batch", "evaluate")
SEARCH_FLAGS = ("nr_sparsity", "nr_max_epochs", "nr_compress_only", "start_epoch")
TOLERANCE = 1e-4  # relative difference of the exported logits


@dataclass(frozen=True)
class Run:
    """A finished run, from its run.json and log.txt. Errors in %, multiply-adds of one image."""

    folder: str
    command: str
    family: str
    model: str
    arm: str
    data: str
    sparsity: str
    search: int
    train: int
    params: int
    params_with_cross: int
    macs: int
    last: float
    best: float
    last5: float | None
    minutes: float
    seed: int
    setting: str  # equal for the seeds of one command
    rows: list[dict]


def read_run(folder: Path) -> Run:
    """The run in ``folder``. Raises InputError naming the folder if it is broken or unfinished."""
    try:
        description = json.loads((folder / "run.json").read_text())
        args, spec = description["args"], description["network"]
        rows = read_log(folder / "log.txt")
        structure = description["structure"]
        counts = [count(spec, structure, args["image_size"], cross) for cross in (False, True)]
        return summary(folder, description, rows, counts)
    except InputError as error:
        raise InputError(f"{folder}: {str(error).removeprefix(f'{folder}: ')}") from error
    except OSError as error:
        raise InputError(f"{folder}: broken: {error.filename}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{folder}: broken: {one_line(error)}") from error


def summary(folder: Path, description: dict, rows: list[dict], counts: list[tuple]) -> Run:
    """The figures of a finished run. Raises InputError for an unfinished one."""
    args, spec = description["args"], description["network"]
    train = [row for row in rows if row["Phase"] == "train"]
    search = [row for row in rows if row["Phase"] == "search"]
    if len(train) < args["epochs"]:
        state = f"{len(train)} of {args['epochs']} epochs of the train phase"
        if not train and search:
            state = (
                f"search at utilization {search[-1]['Utilization']:.3f} after {len(search)} epochs"
            )
        raise InputError(f"unfinished: {state}")
    (params, macs), (params_with_cross, _) = counts
    top5 = "Valid 5 Acc." in train[-1]
    kept = {k: v for k, v in args.items() if k not in (*INCIDENTAL, *SEARCH_FLAGS, "data")}
    sparsity = sparsity_text(search)
    return Run(
        folder=folder.as_posix(),
        command=description["command"],
        family=spec["family"],
        model=model_name(spec),
        arm=arm_name(args),
        data=data_name(args),
        sparsity=sparsity,
        search=len(search),
        train=len(train),
        params=params,
        params_with_cross=params_with_cross,
        macs=macs,
        last=100 - train[-1]["Valid Acc."],
        best=100 - max(row["Valid Acc."] for row in train),
        last5=100 - train[-1]["Valid 5 Acc."] if top5 else None,
        minutes=sum(row["Seconds"] for row in rows) / 60,
        seed=description["seed"],
        setting=json.dumps([spec, kept, sparsity], sort_keys=True),
        rows=rows,
    )


def count(spec: dict, structure: dict, image_size: int, cross: bool) -> tuple[int, int]:
    """Parameters and multiply-adds of a network, with ``cross`` those with gated connections."""
    if cross and structure["form"] == "removed":
        structure = structure | {"form": "attention"}
    with torch.device("meta"):
        network = models.build(spec["family"], spec["arch"], **spec["options"])
        nr.restore(network, structure)
    return nr.count_params(network), nr.count_macs(network, image_size)


# --- names


def model_name(spec: dict) -> str:
    """As in the published tables, with the width where it is not 1."""
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


def arm_name(args: dict) -> str:
    """Which form of the method a run is."""
    if args["nr_target"] >= NO_REJUVENATION:
        return "baseline"
    arm = {"removed": "NR-CR", "attention": "NR-CA", "full": "NR, full"}[args["nr_cross"]]
    if args["nr_from_scratch"]:
        arm = "NR-FS"
    if args["nr_bn_target"] is not None:
        arm += f" + NR-BR {args['nr_bn_target']:g}"
    return arm + (", by FLOPs" if args["nr_flops"] else "")


def data_name(args: dict) -> str:
    """The data set, and how many images of it."""
    name = args.get("dataset") or ("synthetic" if args.get("synthetic") else "ImageNet")
    if name == "folder":
        name = Path(args["data"]).name
    name = DATA_NAMES.get(name, name)
    return name if args["subset"] is None else f"{name}, {args['subset']:,} images"


def sparsity_text(search: list[dict]) -> str:
    """λ of the search, first and last where it grew."""
    if not search:
        return "-"
    first, last = search[0]["Sparsity"], search[-1]["Sparsity"]
    return f"{first:g}" if first == last else f"{first:g} to {last:g}"


# --- tables


def spread(values: Iterable[float]) -> str:
    """Mean ± standard deviation, or the one value there is."""
    values = list(values)
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def exact(values: Iterable[int]) -> str:
    """A count, or the least and the largest of several."""
    least, largest = min(values), max(values)
    return f"{least:,}" if least == largest else f"{least:,} to {largest:,}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grouped(runs: list[Run]) -> list[list[Run]]:
    """The seeds of each command together, in the order in which the commands came."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.setting, []).append(run)
    return [sorted(group, key=lambda run: run.seed) for group in groups.values()]


def measured(group: list[Run], published: str) -> list[str]:
    """The cells of one command."""
    first = group[0]
    cells = [
        first.model,
        first.arm,
        exact([run.params for run in group]),
        exact([run.params_with_cross for run in group]),
        exact([run.macs for run in group]),
        first.data,
        first.sparsity,
        exact([run.search for run in group]) + f" + {first.train}",
        spread(run.last for run in group),
        spread(run.best for run in group),
    ]
    if first.family == "imagenet":
        cells.append(spread(run.last5 for run in group))
    minutes = statistics.mean(run.minutes for run in group)
    return [*cells, str(len(group)), f"{minutes:.0f}", published]


def cifar_table(runs: list[Run]) -> str:
    """The CIFAR runs and the published figures."""
    not_run = {
        (model, data): [model, "NR-CR", params, "-", "-", data, sparsity, *NOT_RUN, "0", "-", error]
        for model, params, data, sparsity, error in PUBLISHED_CIFAR
    }
    columns = "error, last epoch|best epoch|n|minutes|published error"
    return table([run for run in runs if run.family == "cifar"], "NR-CR", columns, not_run)


def imagenet_table(runs: list[Run]) -> str:
    """The ImageNet runs and the published figures."""
    not_run = {
        (model, "ImageNet"): [
            *(model, "NR-CA", "-", params, macs, "ImageNet", "grows"),
            *(*NOT_RUN, "not run", "0", "-", f"{top1}, {top5}"),
        ]
        for model, params, macs, top1, top5 in PUBLISHED_IMAGENET
    }
    columns = "top-1 error, last epoch|best epoch|top-5, last|n|minutes|published top-1, top-5"
    return table([run for run in runs if run.family == "imagenet"], "NR-CA", columns, not_run)


def table(runs: list[Run], arm: str, columns: str, not_run: dict[tuple, list[str]]) -> str:
    """A row a command, then those of ``not_run``, (model, data) -> cells, that no run is of.

    A run of the published ``arm`` has the published figure in its last cell.
    """
    rows, done = [], set()
    for group in grouped(runs):
        name = (group[0].model, group[0].data)
        ours = name in not_run and group[0].arm == arm
        rows.append(measured(group, not_run[name][-1] if ours else "-"))
        done |= {name} if ours else set()
    rows += [cells for name, cells in not_run.items() if name not in done]
    return markdown(f"{FIRST_COLUMNS}|{columns}".split("|"), rows)


def csv_text(runs: list[Run]) -> str:
    """A row a run, with everything that the tables are made of."""
    fields = [name for name in Run.__dataclass_fields__ if name not in ("rows", "setting")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    writer.writerows([getattr(run, name) for name in fields] for run in runs)
    return text.getvalue()


# --- export


def export(folder: Path, path: Path) -> float:
    """Write a run's best network (or its last) with torch.export; return its logits' deviation.

    The program maps images [B, 3, H, W], B ≥ 1, to logits [B, S, classes]. Raises InputError if
    its logits differ from the network's by more than TOLERANCE of the largest.
    """
    found = [folder / name for name in (BEST, LAST) if (folder / name).exists()]
    if not found:
        raise InputError(f"{folder}: neither {BEST} nor {LAST} is there")
    network: Network = load_network(found[0])
    images = torch.randn(4, 3, network.image_size, network.image_size)
    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("B")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_atomically(path, buffer.getvalue())
    again, images = torch.export.load(path).module(), images[:3]
    with torch.no_grad():
        expected, logits = network(images), again(images)
    deviation = float((logits - expected).abs().max() / expected.abs().max())
    if not deviation <= TOLERANCE:
        raise InputError(f"{path}: its logits differ by {deviation:.1e} of the largest")
    return deviation


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m utils.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a checkpoint folder")
    parser.add_argument("--csv", action="store_true", help="a row a run instead of the tables")
    parser.add_argument(
        "--plot", type=Path, metavar="OUT.png", help="draw the runs over each other"
    )
    parser.add_argument(
        "--export", type=Path, metavar="OUT.pt2", help="write the one RUN's network (torch.export)"
    )
    args = parser.parse_args(argv)
    if args.export and len(args.runs) > 1:
        parser.error("--export takes one RUN")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        if args.export:
            deviation = export(args.runs[0], args.export)
            print(f"{args.export}: logits within {deviation:.1e} of the largest")
            return 0
        runs, left_out = [], []
        for folder in args.runs:
            if folder.is_file():  # that a pattern such as checkpoints/*/* took along
                continue
            try:
                runs.append(read_run(folder))
            except InputError as error:
                left_out.append(str(error))
        if args.csv:
            print(csv_text(runs), end="")
        else:
            print(cifar_table(runs), imagenet_table(runs), sep="\n\n")
        for line in left_out:
            print(f"not in the tables: {line}", file=sys.stderr)
        if args.plot:
            pairs = [(f"{run.model} {run.arm}", run.rows) for run in runs]
            plots.comparison(pairs, args.plot)
    except InputError as error:
        print(f"utils.report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
