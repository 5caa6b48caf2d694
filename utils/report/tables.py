"""Runs beside the published figures, as markdown and as csv."""

import csv
import io
import statistics
from collections.abc import Iterable
from itertools import zip_longest

from utils.report.runs import Run, refuse_same_seed

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
NOT_RUN = ["not run"] * 3  # search + train epochs, error of the last and of the best epoch
FIRST_COLUMNS = (
    "model|run|parameters|with cross-connections|multiply-adds|data|λ|epochs (search + train)"
)


def spread(values: Iterable[float]) -> str:
    """Mean ± standard deviation, or the one value there is."""
    values = list(values)
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def exact(values: Iterable[int]) -> str:
    """A count, or the least and the largest of several."""
    least, largest = min(values), max(values)
    return f"{least:,}" if least == largest else f"{least:,} to {largest:,}"


def epochs_text(runs: list[Run]) -> str:
    """The epochs of search and train phase, round by round."""
    phases = zip_longest(*(run.epochs for run in runs), fillvalue=0)
    return " + ".join(exact(counts) for counts in phases)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table; what would end a cell or a line is kept from doing so."""
    rows = [[" ".join(cell.replace("|", r"\|").split()) for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grouped(runs: list[Run]) -> list[list[Run]]:
    """The seeds of each command together, the first first; InputError for a seed twice."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.setting, []).append(run)
    for group in groups.values():
        refuse_same_seed(group)
    return [sorted(group, key=lambda run: run.seed) for group in groups.values()]


def measured(group: list[Run], published: str) -> list[str]:
    """The cells of one command."""
    first = group[0]
    cells = [first.model, first.arm]
    for name in ("params", "params_with_cross", "macs"):
        cells.append(exact([getattr(run, name) for run in group]))
    cells += [first.data, first.sparsity, epochs_text(group)]
    cells += [spread(run.last for run in group), spread(run.best for run in group)]
    if top5 := [run.last5 for run in group if run.last5 is not None]:
        cells.append(spread(top5))
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


def table(
    runs: list[Run], arm: str, columns: str, not_run: dict[tuple[str, str], list[str]]
) -> str:
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
    writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(run) | {"epochs": epochs_text([run])} for run in runs)
    return text.getvalue()
