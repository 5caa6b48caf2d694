"""shown.meters: figures by hand, and what is shown with and without a terminal."""

import fcntl
import io
import os
import re
import struct
import termios
from types import SimpleNamespace

import pytest
import torch
from progress.bar import Bar

from utils.shown import meters
from utils.shown.meters import Display, Figures, batch_sums
from utils.shown.screen import Screen, columns

PARTS = ["Data:", "Batch:", "Total:", "ETA:", "Loss:", "top1:", "top5:", "img/s"]
SUMS = torch.tensor([200.0, 300.0, 50.0, 150.0], dtype=torch.float64)  # of 2 batches of 100


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """time.perf_counter under the control of a test."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(meters.time, "perf_counter", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch):
    """Standard output and error on one terminal of long lines; returns what it shows."""
    screen = Tty()
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(meters, "sys", SimpleNamespace(stdout=screen, stderr=screen))
    monkeypatch.setattr(Bar, "file", screen)  # progress takes stderr when it is imported
    return screen


def sums_of(scores: list, labels: list[int], loss: float = 0.0) -> list[float]:
    """batch_sums of logits given as nested lists [B, S, classes]."""
    return batch_sums(torch.tensor(scores), torch.tensor(labels), torch.tensor(loss)).tolist()


@pytest.mark.parametrize(
    ("sums", "loss", "top1", "top5"),
    [
        ([4, 6, 1, 3], 1.5, 25.0, 75.0),
        ([1, 0, 1, 1], 0.0, 100.0, 100.0),
        ([10000, 23026, 0, 5000], 2.3026, 0.0, 50.0),
    ],
)
def test_figures_are_means(sums, loss, top1, top5):
    found = Figures.of(torch.tensor(sums, dtype=torch.float64))
    assert found == Figures(loss=loss, top1=top1, top5=top5, images=int(sums[0]))


def test_figures_keep_a_loss_that_is_not_finite():
    assert Figures.of(torch.tensor([2.0, float("inf"), 0, 0])).loss == float("inf")


def test_one_stream_by_hand():
    """Predictions 1, 0, 1 for the labels 1, 1, 1; three classes, so top 5 is everything."""
    scores = [[[0.0, 2.0, 1.0]], [[3.0, 2.0, 1.0]], [[-3.0, -1.0, -2.0]]]
    assert sums_of(scores, [1, 1, 1], loss=0.5) == [3.0, 1.5, 2.0, 3.0]


def test_the_prediction_is_the_argmax_of_the_sum_over_streams():
    """The streams say 0 and 1; their sum says 2, the second choice of both."""
    scores = [[[5.0, 0.0, 4.0], [0.0, 5.0, 4.0]]]
    assert sums_of(scores, [2])[2] == 1
    assert sums_of(scores, [0])[2] == sums_of(scores, [1])[2] == 0


def test_two_streams_by_hand():
    """Sums [1, 2] and [4, 3] are the predictions 1 and 0; no argmax of one stream decides."""
    scores = [[[1.0, 0.0], [0.0, 2.0]], [[0.0, 1.0], [4.0, 2.0]]]
    assert sums_of(scores, [1, 0], loss=2.0) == [2.0, 4.0, 2.0, 2.0]
    assert sums_of(scores, [0, 1], loss=2.0) == [2.0, 4.0, 0.0, 2.0]


@pytest.mark.parametrize(("label", "top1", "top5"), [(6, 1, 1), (5, 0, 1), (2, 0, 1), (1, 0, 0)])
def test_top_five_of_seven_classes(label, top1, top5):
    scores = [[[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]]
    assert sums_of(scores, [label]) == [1, 0, top1, top5]


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_with_at_most_five_classes_top_five_is_always_right(classes):
    scores = torch.arange(classes).float().repeat(classes, 1, 1)  # [B, 1, classes]
    sums = batch_sums(scores, torch.arange(classes), torch.tensor(1.0))
    assert sums.tolist() == [classes, classes, 1, classes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_float64_without_gradient(dtype):
    logits = torch.zeros(3, 2, 10, dtype=dtype, requires_grad=True)
    sums = batch_sums(logits, torch.zeros(3, dtype=torch.int64), logits.float().sum())
    assert sums.dtype == torch.float64
    assert sums.shape == (meters.COLUMNS,)
    assert not sums.requires_grad


def test_counts_beyond_float32_are_exact():
    sums = torch.tensor([2.0**24 + 1, 0, 2.0**24 + 1, 2.0**24 + 1], dtype=torch.float64)
    assert Figures.of(sums).top1 == 100.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (59.4, "0:00:59"),
        (59.6, "0:01:00"),
        (3599.7, "1:00:00"),
        (90061, "25:01:01"),
    ],
)
def test_clock(seconds, text):
    assert meters._clock(seconds) == text


def test_a_line_without_a_terminal_word_for_word(capsys, clock):
    """2 of 5 batches in 8 s, 1 s of them for data: 4 s a batch, 12 s to go, 25 img/s."""
    display = Display("Training", 5)
    clock.now += 8
    display.data_seconds = 1.0
    display.show(2, SUMS)
    assert capsys.readouterr().out == (
        "Training (2/5) Data: 0.500s | Batch: 4.000s | Total: 0:00:08 | ETA: 0:00:12"
        " | Loss: 1.5000 | top1: 25.0000 | top5: 75.0000 | 25 img/s\n"
    )


def test_a_pass_that_goes_on_counts_its_own_time(capsys, clock):
    """Batch 2 of 3, the first done before the interruption: 100 images and one batch in 4 s."""
    display = Display("Training", 3, first=1)
    clock.now += 4
    display.show(2, SUMS)
    line = capsys.readouterr().out
    assert "(2/3)" in line and "Batch: 4.000s" in line
    assert "ETA: 0:00:04" in line and "25 img/s" in line


def test_every_part_is_on_a_plain_line(capsys):
    display = Display("Evaluating", 1)
    display.show(1, SUMS)
    line = capsys.readouterr().out
    assert line.startswith("Evaluating (1/1) ") and line.count("\n") == 1
    assert [part for part in PARTS if part not in line] == []
    assert "\r" not in line and "\x1b" not in line


@pytest.mark.parametrize(
    ("batch", "seconds", "due"),
    [(1, 0, False), (1, 29.9, False), (1, 30, True), (4, 29.9, False), (5, 0, True)],
)
def test_plain_lines_are_few(clock, batch, seconds, due):
    display = Display("Training", 5)
    clock.now += seconds
    assert display.due(batch) is due


def test_the_wait_begins_again_after_each_line(capsys, clock):
    display = Display("Training", 5)
    clock.now += 31
    display.show(1, SUMS)
    assert not display.due(2)
    clock.now += 30
    assert display.due(2)


@pytest.mark.parametrize(("seconds", "due"), [(0.4, False), (0.5, True)])
def test_a_terminal_is_refreshed_twice_a_second(clock, terminal, seconds, due):
    display = Display("Training", 5)
    clock.now += seconds
    assert display.due(1) is due


def test_a_bar_named_processing_on_a_terminal(terminal):
    display = Display("Training", 2)
    assert type(display.bar) is Bar
    display.show(1, SUMS / 2)
    display.show(2, SUMS)
    *_, half, whole = re.split("\r", terminal.getvalue())
    for text, fill in ((half, 16), (whole, 32)):
        assert text.startswith("Processing |")
        assert text.count("#") == fill
        assert [part for part in PARTS if part not in text] == []
    assert "(1/2)" in half and "(2/2)" in whole
    assert "\n" not in half and whole.count("\n") == 1  # one line for the whole pass


@pytest.mark.parametrize("columns", [20, 50, 80, 100, 131])
def test_a_bar_keeps_to_one_line(monkeypatch, terminal, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    display = Display("Training", 1000)
    for batch in (1, 500, 1000):
        display.show(batch, SUMS)
    shown = re.sub(r"\x1b\[\?25[lh]", "", terminal.getvalue())
    lines = [text for text in re.split("[\r\n]", shown) if text]
    assert lines[-1].startswith("Processing |##########")
    if columns >= 50:
        assert "(1000/1000) " in lines[-1]
    if columns >= 80:
        assert [part for part in ("ETA:", "Loss: 1.5000") if part not in lines[-1]] == []
    assert max(map(len, lines)) < max(columns, 25)


def test_the_width_is_that_of_the_terminal_shown_on(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as screen, os.fdopen(ours):
        assert columns(screen) == 80  # it has not been told any
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 61, 0, 0))
        assert columns(Screen(screen)) == 61
    assert columns(io.StringIO()) > 0


def test_the_bar_of_a_pass_that_goes_on_begins_there(terminal):
    display = Display("Training", 4, first=2)
    display.show(3, SUMS)
    assert re.split("\r", terminal.getvalue())[-1].count("#") == 24


def test_the_cursor_comes_back(terminal):
    display = Display("Training", 1)
    display.show(1, SUMS)
    shown = terminal.getvalue()
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


def test_figures_are_shown_where_only_stdout_is_a_terminal(monkeypatch, terminal):
    """As in `python cifar.py … 2> errors.txt`."""
    monkeypatch.setattr(Bar, "file", io.StringIO())
    Display("Training", 1).show(1, SUMS)
    assert "Loss: 1.5000" in terminal.getvalue()
