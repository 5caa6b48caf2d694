"""shown.screen: prints that cannot fail, in this process and in processes of their own."""

import io
import os
import subprocess
import sys

import pytest

from tests.running import ROOT
from utils.shown import screen
from utils.shown.screen import Screen

PRINTING = """
import sys
from utils.shown import screen
with screen.unbreakable():
    print("first", flush=True)
    for _ in range(5):
        print("λ" * 3000)
        print("an error", file=sys.stderr)
sys.exit(7)
"""


class Failing(io.StringIO):
    """A screen of which every use fails with ``error``."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def write(self, *_):
        raise self.error

    flush = isatty = write


def status_of(shell: str, **environment: str) -> subprocess.CompletedProcess:
    """Print in a process of its own; ``shell``: a command line with $RUN in it."""
    named = {"RUN": f"{sys.executable} -c '{PRINTING}'", "PYTHONIOENCODING": "utf-8"}
    shell = shell.replace("$RUN", named["RUN"])
    words = ["bash", "-c", f"set -o pipefail; {shell}"]
    return subprocess.run(
        words, cwd=ROOT, env=os.environ | named | environment, capture_output=True, timeout=120
    )


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, ""), OSError(28, ""), OSError(5, ""), ValueError("closed file")]
)
def test_a_screen_that_fails_is_done_without(error):
    broken = Screen(Failing(error))
    print("text", file=broken, flush=True)
    assert broken.write("text") == 4
    assert broken.isatty() is False


def test_other_errors_are_no_fault_of_the_screen():
    with pytest.raises(TypeError):
        Screen(io.StringIO()).write(None)


def test_a_letter_that_is_unknown_becomes_a_question_mark():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print("λ = 1, 3×3", file=Screen(stream), flush=True)
    assert stream.buffer.getvalue() == b"? = 1, 3?3\n"


def test_in_all_else_it_is_the_stream():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert Screen(stream).encoding == "latin-1"
    assert not hasattr(Screen(io.StringIO()), "reconfigure")


def test_the_streams_come_back(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # which has no reconfigure
    monkeypatch.setattr(sys, "stderr", None)
    before = sys.stdout
    with screen.unbreakable():
        print("shown")
        print("lost", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == (before, None)
    assert before.getvalue() == "shown\n"


@pytest.mark.parametrize(
    "shell", ["$RUN >&-", "$RUN >&- 2>&-", "$RUN > /dev/full", "$RUN > /dev/full 2> /dev/full"]
)
def test_no_screen_and_no_room_leave_the_exit_status(shell):
    assert status_of(shell).returncode == 7


def test_a_reader_that_goes_away_leaves_the_exit_status():
    result = status_of("{ $RUN; echo status $? >&2; } | head -1")
    assert result.stdout == b"first\n"
    assert result.stderr.splitlines()[-1] == b"status 7"
    assert b"rror:" not in result.stderr


def test_an_encoding_without_greek_leaves_the_exit_status():
    result = status_of("$RUN", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stdout[:9]) == (7, b"first\n???")


def test_a_file_opened_later_is_not_taken_for_the_screen(tmp_path):
    """Where the shell has closed standard output, the next file would have its number."""
    code = """
import os, sys
from utils.shown import screen
with screen.unbreakable(), open(sys.argv[1], "w") as file:
    os.write(1, b"of some library")
"""
    words = ["bash", "-c", 'exec "$@" >&-', "-", sys.executable, "-c", code, tmp_path / "file"]
    subprocess.run(words, cwd=ROOT, check=True, timeout=120)
    assert (tmp_path / "file").read_bytes() == b""
