"""Figures of one pass over the data, and how they are shown while it runs."""

import sys
import time
from dataclasses import dataclass

import torch
from progress.bar import Bar
from torch import Tensor

from utils.shown.screen import columns

REFRESH = 0.5  # seconds between two looks at the figures: each look waits for the device
PLAIN_REFRESH = 30.0  # seconds between two lines where the screen is no terminal
BAR, SHORT_BAR = 32, 10  # characters
# What a line that is too narrow for all goes without, one after the other.
DISPENSABLE = ("Data", "Batch", "img/s", "Total", "top5", "top1", "Loss", "ETA")
COLUMNS = 4  # images, summed loss, top-1 hits, top-5 hits


@dataclass(frozen=True)
class Figures:
    """Means over the images of a pass: the loss, top-1 and top-5 accuracy in percent."""

    loss: float
    top1: float
    top5: float
    images: int

    @classmethod
    def of(cls, sums: Tensor) -> "Figures":
        """From sums [4] over images: count, loss, top-1 hits, top-5 hits."""
        images, loss, top1, top5 = sums.tolist()
        count = max(images, 1)  # a process may have had none
        return cls(loss / count, 100 * top1 / count, 100 * top5 / count, int(images))


def batch_sums(logits: Tensor, labels: Tensor, loss: Tensor) -> Tensor:
    """Sums [4] of one batch, without waiting for the device.

    ``logits``: [B, S, classes], predicted by their sum over S; ``loss``: the batch's mean.
    """
    scores = logits.detach().sum(dim=1)  # [B, classes]
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]  # [B, 5]
    hits1, hits5 = best[:, 0].sum(), best.sum()
    count = torch.full_like(loss.detach(), len(labels), dtype=torch.float64)
    return torch.stack(
        [count, loss.detach().double() * len(labels), hits1.double(), hits5.double()]
    )


class Display:
    """One pass on the screen: a progress bar on a terminal, a few plain lines elsewhere."""

    def __init__(self, label: str, batches: int, first: int = 0):
        self.label, self.batches, self.first = label, batches, first
        self.start = self.shown = time.perf_counter()
        self.data_seconds = 0.0
        self.bar = None
        if sys.stdout.isatty():
            self.bar = Bar("Processing", max=batches, index=first, file=sys.stdout)

    def due(self, batch: int) -> bool:
        """Whether it is time to show ``batch`` (the last one always is)."""
        wait = PLAIN_REFRESH if self.bar is None else REFRESH
        return batch == self.batches or time.perf_counter() - self.shown >= wait

    def show(self, batch: int, sums: Tensor) -> None:
        """Show the state after ``batch`` batches; ``sums`` [4] as in batch_sums."""
        self.shown = time.perf_counter()
        parts = self._parts(batch, sums)
        if self.bar is None:
            print(f"{self.label} {self._text(batch, parts)}", flush=True)
        else:
            self._fit(self.bar, batch, parts)
            self.bar.goto(batch)
            if batch == self.batches:
                self.bar.finish()

    def _fit(self, bar: Bar, batch: int, parts: dict[str, str]) -> None:
        """Shorten the bar, then the figures beside it, to one line of the terminal."""
        around = len(bar.message + bar.bar_prefix + bar.bar_suffix)
        room = columns(bar.file) - around - 1  # in the last column the cursor may wrap
        bar.width = BAR if BAR + len(self._text(batch, parts)) <= room else SHORT_BAR
        room = max(0, room - bar.width)
        for name in DISPENSABLE:
            if len(self._text(batch, parts)) > room:
                del parts[name]
        bar.suffix = self._text(batch, parts)[:room]

    def _text(self, batch: int, parts: dict[str, str]) -> str:
        return f"({batch}/{self.batches}) " + " | ".join(parts.values())

    def _parts(self, batch: int, sums: Tensor) -> dict[str, str]:
        """What is shown after ``batch`` batches, by name, in the order of the line."""
        figures, done = Figures.of(sums), max(1, batch - self.first)
        seconds = time.perf_counter() - self.start
        images = sums[0].item() * done / batch
        left = seconds / done * (self.batches - batch)
        return {
            "Data": f"Data: {self.data_seconds / done:.3f}s",
            "Batch": f"Batch: {seconds / done:.3f}s",
            "Total": f"Total: {_clock(seconds)}",
            "ETA": f"ETA: {_clock(left)}",
            "Loss": f"Loss: {figures.loss:.4f}",
            "top1": f"top1: {figures.top1:.4f}",
            "top5": f"top5: {figures.top5:.4f}",
            "img/s": f"{images / seconds:.0f} img/s",
        }


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
