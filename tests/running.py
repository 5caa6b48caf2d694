"""Running the scripts as a user does, and comparing the runs."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def command(flags: str, folder: Path, script: str = "cifar.py", processes: int = 0) -> list[str]:
    """The words of a command line; ``processes``: how many torchrun starts, 0 without it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [*(launcher if processes else []), script, *shlex.split(flags), "-c", str(folder)]
    return [sys.executable, *words]


def run(flags: str, folder: Path, status: int = 0, **how) -> subprocess.CompletedProcess:
    """Run a script to its end and check its exit status; ``how``: as in ``command``."""
    words = command(flags, folder, **how)
    result = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == status, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same_run(first: Path, second: Path) -> None:
    """Equal weights, momentum, log rows (but for the seconds) and best accuracy, bit for bit."""
    a, b = (load(folder / "checkpoint.pth.tar") for folder in (first, second))
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name
    momentum_a, momentum_b = (x["optimizer"]["state"] for x in (a, b))
    assert momentum_a.keys() == momentum_b.keys()
    for index, state in momentum_a.items():
        assert torch.equal(state["momentum_buffer"], momentum_b[index]["momentum_buffer"])
    rows = [[row | {"Seconds": 0} for row in x["run"]["rows"]] for x in (a, b)]
    assert rows[0] == rows[1]
    assert (a["best_acc"], a["epoch"]) == (b["best_acc"], b["epoch"])
