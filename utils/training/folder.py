"""The folder of a run, and what a person reads there: log.txt, run.json and the pictures."""

import itertools
import json
import shutil
from pathlib import Path

import torch

from nr.layers import Network
from nr.utilization import DEAD_RATIO, relative_scales
from utils.errors import InputError
from utils.files import write_atomically
from utils.shown import plots
from utils.shown.log import write_log
from utils.training.state import RunState

FILES = ("*.pth.tar", "log.txt", "run.json", "*.png")  # what a run leaves in its folder


def claim_folder(folder: Path, resumed: Path | None) -> None:
    """Make the folder; put another run's files in it aside, since this one would overwrite them.

    ``resumed``: the checkpoint that goes on; if it lies in the folder, the files are its own.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--checkpoint {folder}: {error.strerror}") from error
    for temporary in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
        temporary.unlink()
    if resumed is not None and resumed.parent.samefile(folder):
        return
    old = [path for pattern in FILES for path in folder.glob(pattern)]
    if old:
        names = (folder / f"earlier-{number}" for number in itertools.count(1))
        aside = next(name for name in names if not name.exists())
        aside.mkdir()
        for path in old:
            shutil.move(path, aside)
        print(f"==> {folder} held another run: kept in {aside}")


def scale_histogram(network: Network) -> list[int]:
    """How many prunable scales lie in each of the bins of ``plots.scales``."""
    decades = relative_scales(network).log10().clamp(min=plots.LEAST_DECADE)
    return torch.histc(decades, plots.SCALE_BINS, plots.LEAST_DECADE, 0).int().tolist()


def write_description(folder: Path, description: dict) -> None:
    """run.json, which utils.report reads: what the run is, as plain data, an entry a line."""
    entries = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in description.items())
    write_atomically(folder / "run.json", ("{\n" + ",\n".join(entries) + "\n}\n").encode())


def write_outputs(folder: Path, state: RunState, searched: bool, due: bool) -> None:
    """log.txt and the pictures, from the state.

    ``searched``: the search is over, and an earlier call has drawn it. Pictures that are there
    are drawn again only where they are ``due`` and have changed.
    """

    def outdated(path: Path, final: bool) -> bool:
        return not path.exists() or (due and not final)

    if state.rows:
        write_log(folder / "log.txt", state.rows)
    if state.rows and outdated(path := folder / "curves.png", False):
        plots.curves(state.rows, path)
    if state.live and outdated(path := folder / "utilization.png", searched):
        plots.utilization(state.live, path)
    if state.scales and outdated(path := folder / "scales.png", searched):
        plots.scales(state.scales, DEAD_RATIO, path)
    if state.widths and outdated(path := folder / "widths.png", searched):
        plots.widths([tuple(row) for row in state.widths], path)
