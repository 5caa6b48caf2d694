"""evaluation.json: the last network of a run on the whole test set, and its live channels."""

import json
import re
from pathlib import Path

import nr
from utils.errors import InputError
from utils.files import write_atomically
from utils.report.runs import EVALUATION

PRINTED = re.compile(
    r"^Valid Loss: (?P<loss>[\d.]+) \| Valid Acc\.: (?P<accuracy>[\d.]+) \|.*"
    r"\| Images: (?P<images>\d+)",
    re.MULTILINE,
)


def parsed(text: str) -> dict:
    """Accuracy in %, loss and number of images that ``cifar.py -e`` printed.

    Raises InputError where there is none.
    """
    found = PRINTED.search(text)
    if found is None:
        raise InputError("-e printed no result")
    figures = {name: float(found[name]) for name in ("accuracy", "loss")}
    return figures | {"images": int(found["images"])}


def live_channels(checkpoint: Path) -> dict[str, float]:
    """Live fraction of the output channels of every prunable layer."""
    usage = nr.utilization(nr.load(checkpoint))
    return {row.name: row.live_out / row.out_channels for row in usage.layers if not row.fixed}


def write(folder: Path, printed: str, checkpoint: str) -> None:
    """Keep what -e printed about ``checkpoint`` of the run in ``folder``."""
    content = parsed(printed) | {
        "checkpoint": checkpoint,
        "live": live_channels(folder / checkpoint),
    }
    write_atomically(folder / EVALUATION, (json.dumps(content) + "\n").encode())
