"""Programs that several processes run together, as torchrun starts them."""

import subprocess
import sys
from pathlib import Path

from tests.running import ENVIRONMENT, ROOT

LIMIT = 300  # seconds: a program that hangs is a failure


def start(module: str, *words: str | Path, processes: int = 2) -> subprocess.CompletedProcess:
    """Run ``module`` with ``words`` in so many processes to their end.

    Raises subprocess.TimeoutExpired where one of them hangs.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [sys.executable, *launcher, "-m", module, *map(str, words)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def succeed(module: str, *words: str | Path, processes: int = 2) -> None:
    """``start``, where every assertion of the program has to hold."""
    result = start(module, *words, processes=processes)
    assert result.returncode == 0, result.stdout + result.stderr
