"""Programs that several processes run together, as torchrun starts them."""

import shlex
import subprocess
from pathlib import Path

from tests.machine import nodes


def start(module: str, *words: str | Path, processes: int = 2) -> subprocess.CompletedProcess:
    """Run ``module`` with ``words`` in so many processes to their end, or to that of their time."""
    return nodes.torchrun(module, shlex.join(map(str, words)), processes)


def succeed(module: str, *words: str | Path, processes: int = 2) -> None:
    """``start``, where every assertion of the program has to hold."""
    result = start(module, *words, processes=processes)
    assert result.returncode == 0, result.stdout + result.stderr
