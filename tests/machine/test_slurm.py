"""The batch file of utils/machine/README.md, with stand-ins for what SLURM brings."""

import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed import run

import imagenet
from tests.running import LIMIT, ROOT

PAGE = (ROOT / "utils" / "machine" / "README.md").read_text(encoding="utf-8")
BATCH_FILE = re.search(r"^#!/bin/bash\n.*?(?=^```)", PAGE, re.MULTILINE | re.DOTALL)[0]
# srun's steps: they end by themselves where there is a file `done`, else after a SIGTERM.
STAND_INS = {
    "scontrol": 'if [ $1 = show ]; then printf "node7\\nnode9\\n"; else echo "$@" >> asked; fi',
    "scancel": 'echo "$@" >> asked; kill "${1/--signal=/-}" "$(cat steps)"',
    "srun": """trap 'exit 143' TERM; echo $$ > steps
        printf '%s\\n' "$@" > writing; mv writing words
        for _ in {1..3000}; do if [ -f done ]; then exit "$(cat done)"; fi; sleep 0.01; done""",
}


@pytest.fixture
def job(tmp_path):
    """Starts the batch file in a folder of its own."""
    for name, script in {**STAND_INS, "batch": BATCH_FILE}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"JOB_ID": "12", "JOB_NODELIST": "node[7,9]", "JOB_NUM_NODES": "2"}
    environment = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
    environment["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    with subprocess.Popen(["bash", "batch"], cwd=tmp_path, env=environment) as process:
        end = time.monotonic() + LIMIT
        while not (tmp_path / "words").exists() and time.monotonic() < end:
            time.sleep(0.01)
        yield process
        process.kill()


def asked(folder: Path) -> list[str]:
    """What the batch file has asked SLURM for."""
    return (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []


def test_the_batch_file_is_short():
    assert len(BATCH_FILE.splitlines()) <= 20


def test_after_a_signal_the_steps_end_and_the_job_is_queued_again(job, tmp_path):
    job.send_signal(signal.SIGTERM)
    assert job.wait(LIMIT) == 143
    assert asked(tmp_path) == ["--signal=TERM 12", "requeue 12"]


@pytest.mark.parametrize("status", [0, 1])
def test_a_run_that_ends_by_itself_is_not_queued_again(job, tmp_path, status):
    (tmp_path / "done").write_text(str(status))
    assert job.wait(LIMIT) == status
    assert asked(tmp_path) == []


def test_the_command_is_understood(job, tmp_path):
    """By torchrun and by the script; so is that for two nodes without SLURM."""
    launcher, *words = (tmp_path / "words").read_text().splitlines()
    command = re.search(r"^torchrun --.*$", PAGE, re.MULTILINE)[0]
    given = [run.parse_args(part) for part in (words, shlex.split(command)[1:])]
    assert launcher == "torchrun"
    assert [part.rdzv_endpoint for part in given] == ["node7:29500", "first-node:29500"]
    assert given[0].rdzv_id == "12"
    for part in given:
        assert (part.nnodes, part.nproc_per_node, part.rdzv_backend) == ("2", "4", "c10d")
        assert part.training_script == "imagenet.py"
        args, _ = imagenet.parse(part.training_script_args)
        assert args.resume == "auto" and args.checkpoint == "checkpoints/imagenet/resnet50"
