"""training.script: how the scripts end, whatever has become of the screen."""

import io
import itertools
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cifar
from tests.helpers import tiny
from tests.running import (
    ENVIRONMENT,
    ROOT,
    command,
    drive,
    load,
    started,
    wait_for,
    wait_for_text,
    watched,
)
from utils.data.images import ImageSet
from utils.errors import DataError, InputError
from utils.shown import plots
from utils.training import checkpoint, engine, script
from utils.training.script import exit_status
from utils.training.signals import Stopped

NETWORK = "-a resnet --depth 8 --width-mult 0.25 --nr-target 1 --manualSeed 1"
FLAGS = f"{NETWORK} --epochs 1 --train-batch 8 --test-batch 5 -j 0"
LONG = f"-d synthetic --subset 400 {NETWORK} --train-batch 4 --epochs 500"
SHORT = f"-d synthetic --subset 60 {NETWORK} --train-batch 20 --epochs 2"


class NotebookStream(io.TextIOBase):
    """As ipykernel's: no terminal, no file descriptor, nothing to configure."""

    def __init__(self):
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)


def raising(error: BaseException):
    def main():
        raise error

    return main


@pytest.fixture
def small(monkeypatch, tmp_path):
    """cifar.main on a few images and without pictures; returns how to run it to its status."""
    for name in ("curves", "scales", "utilization", "widths"):
        monkeypatch.setattr(plots, name, lambda *_: None)
    images = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8)
    both = [ImageSet(images, torch.arange(16) % 10, tuple("abcdefghij"))] * 2
    monkeypatch.setattr(cifar, "load_cifar", lambda *_, **__: both)

    def run(flags: str = "") -> int:
        words = [*FLAGS.split(), "-c", str(tmp_path / "run"), *flags.split()]
        return exit_status(lambda: cifar.main(words))

    return run


def interrupt(monkeypatch, signum: int) -> None:
    """Let a signal come in every batch."""
    batch_sums = engine.batch_sums

    def signalled(*arguments):
        os.kill(os.getpid(), signum)
        monkeypatch.setattr(engine, "batch_sums", batch_sums)
        return batch_sums(*arguments)

    monkeypatch.setattr(engine, "batch_sums", signalled)


def test_bad_input_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cifar.py"])
    assert exit_status(raising(InputError("--data: nothing there"))) == 1
    assert capsys.readouterr().err == "cifar.py: --data: nothing there\n"
    monkeypatch.setattr(sys, "argv", [])
    assert exit_status(raising(InputError("--data: nothing there"))) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Stopped(signal.SIGINT)])
def test_a_stop_of_what_is_not_saved_says_nothing_of_it(capsys, error):
    assert exit_status(raising(error)) == 130
    assert capsys.readouterr().out == "\nStopped by SIGINT\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_is_saved_and_says_so(small, monkeypatch, capsys, tmp_path, signum):
    interrupt(monkeypatch, signum)
    assert small() == 128 + signum
    assert "the run is saved: go on with --resume auto" in capsys.readouterr().out
    assert len(load(tmp_path / "run" / "checkpoint.pth.tar")["partial"]) == 1
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_stopped_evaluation_saves_nothing_and_says_nothing_of_it(
    small, monkeypatch, capsys, tmp_path
):
    assert small() == 0
    before = (tmp_path / "run" / "checkpoint.pth.tar").read_bytes()
    capsys.readouterr()
    interrupt(monkeypatch, signal.SIGINT)
    assert small("-e --resume auto") == 130
    shown = capsys.readouterr().out
    assert shown.endswith("\nStopped by SIGINT\n") and "saved" not in shown
    assert (tmp_path / "run" / "checkpoint.pth.tar").read_bytes() == before


def test_a_search_that_gives_up_says_that_its_checkpoint_is_kept_once_it_is(
    small, monkeypatch, capsys
):
    search = "--nr-target 0.01 --nr-max-epochs 1"
    assert small(search) == 3
    assert "The checkpoint is kept in" in capsys.readouterr().err

    def full(path, payload):
        raise InputError(f"{path}: could not be written: No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    assert small(search) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("could not be written: No space left on device")


def test_a_run_whose_data_break_off_is_saved_and_says_so(small, monkeypatch, capsys, tmp_path):
    def broken(self, epoch, first=0):
        yield from itertools.islice(whole(self, epoch, first), max(0, 1 - first))
        raise DataError("--workers 2: DataLoader worker (pid 7) was ended by SIGKILL")

    whole = cifar.TrainBatches.epoch
    with monkeypatch.context() as patch:
        patch.setattr(cifar.TrainBatches, "epoch", broken)
        for saved in (True, False):  # the second time nothing is new
            assert small("--resume auto") == 1
            (line,) = capsys.readouterr().err.splitlines()
            assert "was ended by SIGKILL" in line
            assert line.endswith("; the run is saved: go on with --resume auto") == saved
            assert len(load(tmp_path / "run" / "checkpoint.pth.tar")["partial"]) == 1
    assert small("--resume auto") == 0


def test_weights_that_are_not_finite_are_named_before_any_work(small, capsys, tmp_path):
    """Not by the loss that they give, which would blame the learning rate."""
    assert small() == 0
    path = tmp_path / "run" / "checkpoint.pth.tar"
    payload = load(path)
    name, *_ = payload["state_dict"]
    payload["state_dict"][name][0] = torch.nan
    checkpoint.save(path, payload)
    for flags in ("--epochs 2", "-e"):
        capsys.readouterr()
        assert small(f"--resume {path} {flags}") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path}: {name} holds numbers that are not finite" in line


@pytest.mark.parametrize(("file", "named"), [("w.pth", "--pretrained w.pth: "), (True, "torch")])
def test_pretrained_weights_that_are_not_finite_are_named(monkeypatch, file, named):
    network = tiny()
    network.features.first.norms[0].running_var[1] = torch.inf
    monkeypatch.setattr(script.pretrained, "read", lambda *_: {})
    monkeypatch.setattr(script.pretrained, "load", lambda *_: True)
    args = SimpleNamespace(pretrained=file)
    run = SimpleNamespace(resumed=False, args=args, spec={"arch": "resnet18_nr"}, network=network)
    with pytest.raises(InputError, match=rf"{named}.*first\.norms\.0\.running_var holds numbers"):
        script.begin_pretrained(run)


def test_a_run_in_a_thread_of_a_notebook(small, monkeypatch, tmp_path):
    stream = NotebookStream()
    monkeypatch.setattr(sys, "stdout", stream)
    with ThreadPoolExecutor() as threads:
        assert threads.submit(small).result(timeout=300) == 0
    assert sys.stdout is stream
    assert "Best acc:" in stream.text
    assert (tmp_path / "run" / "model_best.pth.tar").exists()


def without_greek() -> None:
    """The screen, as Python opens it for PYTHONIOENCODING=ascii."""
    screen = open(1, "w", encoding="ascii", errors="strict", closefd=False)  # noqa: SIM115
    sys.stdout = screen


def test_help_on_a_screen_without_greek():
    with watched(["cifar.py", "--help"], without_greek) as process:
        shown, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert "? of the penalty on scales" in shown
    assert "checkpoints/<data set>/<arch>" in " ".join(shown.split())


TRAINED_AND_EVALUATED = """
import os, runpy, sys
last = os.path.join(sys.argv[-1], "checkpoint.pth.tar")
words = sys.argv[1:]
for sys.argv in words, [*words, "-e", "--resume", last]:
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
"""


def test_a_folder_with_a_greek_name_on_an_ascii_machine(tmp_path):
    """With a space in it, too, and no UTF-8 in the whole process."""
    machine = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    folder = tmp_path / "λ = 1"
    words = command(SHORT, folder)[1:]
    result = subprocess.run(
        [sys.executable, "-c", TRAINED_AND_EVALUATED, *words],
        cwd=ROOT,
        env=ENVIRONMENT | machine,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "Best acc:" in result.stdout and "Valid Acc.:" in result.stdout
    assert {"log.txt", "run.json", "curves.png"} <= {path.name for path in folder.iterdir()}


def piped(flags: str, folder: Path, reader: str) -> subprocess.Popen:
    """Start a run whose output a ``reader`` reads, in a group of their own.

    Its exit status is then in folder/status.
    """
    folder.mkdir(exist_ok=True)
    script = f'trap : INT; "$@" 2> {folder}/errors | {reader}; echo ${{PIPESTATUS[0]}}'
    words = ["bash", "-c", f"{script} > {folder}/status", "-", *command(flags, folder)]
    return subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, start_new_session=True)


def test_ctrl_c_where_the_reader_of_the_output_dies_first(tmp_path):
    process = piped(LONG, tmp_path, f"tee {tmp_path}/shown > /dev/null")
    wait_for_text(tmp_path / "shown", "Epoch")
    os.killpg(process.pid, signal.SIGINT)
    process.wait(timeout=300)
    assert (tmp_path / "status").read_text() == "130\n"
    assert (tmp_path / "errors").read_text() == ""
    assert (tmp_path / "checkpoint.pth.tar").exists()


def test_a_run_goes_on_where_the_reader_of_the_output_ends(tmp_path):
    piped(SHORT, tmp_path, "head -1 > /dev/null").wait(timeout=300)
    assert (tmp_path / "status").read_text() == "0\n"
    assert (tmp_path / "errors").read_text() == ""
    assert load(tmp_path / "checkpoint.pth.tar")["epoch"] == 2


def test_a_second_run_is_refused_while_the_first_lives(tmp_path):
    with started(LONG, tmp_path) as first:
        wait_for("Epoch", first)
        result = drive(SHORT, tmp_path, status=1)
        first.send_signal(signal.SIGHUP)  # its terminal is closed
        first.communicate()
    assert first.returncode == 129
    (line,) = result.stderr.splitlines()
    assert f"process {first.pid} " in line and "is at work in it" in line
    assert load(tmp_path / "checkpoint.pth.tar")["args"]["epochs"] == 500
    assert not list(tmp_path.glob("earlier-*")) and not (tmp_path / ".lock").exists()
