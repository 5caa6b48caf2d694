"""The screen that a program writes to: it may break, be closed, be full, or know no λ."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TextIO

GONE = (OSError, ValueError)  # of a pipe without a reader, a full disk, a closed file


class Screen:
    """A text stream that never fails: what ``stream`` cannot take is left out.

    Characters that it cannot encode become question marks. In all else it is ``stream``.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        with suppress(*GONE):
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding
                self.stream.write(text.encode(encoding, "replace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with suppress(*GONE):
            self.stream.flush()

    def isatty(self) -> bool:
        with suppress(*GONE):
            return self.stream.isatty()
        return False

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


@contextmanager
def unbreakable() -> Iterator[None]:
    """In the block, and when the interpreter ends, no print fails for want of a screen."""
    _open_standard_files()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Screen(_nowhere() if stream is None else stream) for stream in before)
    with suppress(*GONE):
        if isinstance(before[0], TextIOWrapper):  # the stream of a notebook is none
            before[0].reconfigure(line_buffering=True)  # a log file is up to date line by line
    try:
        yield
    finally:
        for stream in before:
            _let_go(stream)
        sys.stdout, sys.stderr = before


def columns(stream: TextIO) -> int:
    """Characters in a line of the terminal ``stream``; 80 where it does not say."""
    with suppress(AttributeError, *GONE):
        if "COLUMNS" not in os.environ and (size := os.get_terminal_size(stream.fileno())).columns:
            return size.columns
    return shutil.get_terminal_size().columns


def _open_standard_files() -> None:
    """Open those that the shell has closed: else a checkpoint would become standard output."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


def _let_go(stream: TextIO | None) -> None:
    """Flush a stream; let one that cannot be flushed write to nowhere, or Python would exit 120."""
    if stream is None:
        return
    try:
        stream.flush()
    except GONE:
        with suppress(*GONE), _nowhere() as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
            stream.flush()
