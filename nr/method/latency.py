"""Seconds of a forward pass, predicted: each operation is timed by itself, and the times add up.

A table holds the times at some widths; between these they are interpolated. Whole passes correct
the sum (nr.method.costs).
"""

import hashlib
import json
import os
import platform
import statistics
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor, nn

from nr.method.operations import Operation, operations
from nr.network.checks import image_hw
from nr.network.layers import Network
from nr.network.plain import Size
from nr.network.wiring import image_shape

Machine = dict[str, object]
Timer = Callable[[Callable[..., object], tuple[Tensor, ...]], float]
# Widths that are timed: each up to 8, and four from one power of two to the next.
LADDER = (*range(1, 9), *(2**n * k // 4 for n in range(3, 18) for k in (5, 6, 7, 8)))
REPEATS = 7  # runs of which the median counts
ALIGNED = 8  # channels: multiples of them are faster, in convolutions by groups above all
UNEVEN = (*LADDER[:ALIGNED], *(width - 1 for width in LADDER[ALIGNED:]))  # for other widths
COPIES = 2  # of inputs and outputs
SHORTEST = 5e-4  # seconds of a run; shorter operations are repeated
WHOLE = 7  # forward passes of a network of which the median counts


class Latency:
    """Seconds of a forward pass in eval mode on ``batch`` images, on the network's device.

    A budget for nr.plan and nr.rejuvenate. Operations that are not in the ``table``, (operation at
    its widths) -> seconds, are timed when they are needed, each by itself as a network in eager
    mode runs it. So are whole passes, which correct the sum; without them if a ``timer`` is given.
    ``file``: keeps the table; it is read if it is there. Raises ValueError for a batch that is no
    int from 1 on, and for a file of another batch, of another device, or with no such table.
    """

    def __init__(
        self,
        batch: int = 1,
        file: str | Path | None = None,
        table: dict[str, float] | None = None,
        timer: Timer | None = None,
    ):
        if type(batch) is not int or batch < 1:
            raise ValueError(f"batch: {batch!r} is not a whole number of at least 1")
        self.batch, self.file, self.timer = batch, None if file is None else Path(file), timer
        self.table = dict(table or {})
        self.machine: Machine | None = None  # of the table
        if self.file is not None and self.file.exists():
            self.read(self.file)

    def read(self, file: Path) -> None:
        """Take over the table of a file."""
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            self.table |= {str(key): float(value) for key, value in found["seconds"].items()}
            self.machine, batch = dict(found["machine"]), found["batch"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: is no table of nr.Latency: {error}") from error
        if batch != self.batch:
            raise ValueError(
                f"{file}: was timed with batches of {batch}, not {self.batch}: give batch"
                f" {batch}, or another file"
            )

    def write(self) -> None:
        """Write the table to the file, whole or not at all."""
        if self.file is not None:
            found = {"batch": self.batch, "machine": self.machine, "seconds": self.table}
            part = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            part.write_text(json.dumps(found, indent=0), encoding="utf-8")
            os.replace(part, self.file)

    def seconds(self, model: Network, image_size: int | Size | None = None) -> float:
        """The prediction for a network."""
        return self.add_up(model, operations(model, image_size))

    def add_up(self, model: Network, found: Iterator[Operation]) -> float:
        """The prediction for operations, on the device of ``model``."""
        like = next(model.parameters())
        machine = _machine(like)
        if self.machine not in (None, machine) and self.timer is None:
            raise ValueError(
                f"{self.file or 'table'}: was timed on {self.machine}, this is {machine}:"
                " remove it, or give another file"
            )
        self.machine, known = machine, len(self.table)
        weights = [p for p in model.parameters() if p.ndim == 4]
        last = any(not weight.is_contiguous() for weight in weights)
        order = torch.channels_last if last else torch.contiguous_format
        with torch.random.fork_rng(devices=[]):
            total = sum(self.interpolated(op, like, order) for op in found)
        if len(self.table) > known:
            self.write()
        return total

    def interpolated(self, op: Operation, like: Tensor, order: torch.memory_format) -> float:
        """The seconds of an operation, from the timed widths beside its own."""
        sides = [_beside(width) for width in op.widths]
        total = 0.0
        for corner in _corners(sides):
            widths = tuple(width for width, _ in corner)
            share = 1.0
            for _, part in corner:
                share *= part
            if share:
                total += share * self.at(op, widths, like, order)
        return total

    def at(
        self, op: Operation, widths: tuple[int, ...], like: Tensor, order: torch.memory_format
    ) -> float:
        key = f"{op.name} {' '.join(map(str, widths))}"
        if key not in self.table:
            work, shapes = op.make(widths, self.batch)
            if isinstance(work, nn.Module):
                work = work.eval().to(like.device, like.dtype).to(memory_format=order)
            inputs = tuple(torch.randn(s).to(like.device, like.dtype) for s in shapes)
            ordered = tuple(x.to(memory_format=order) if x.ndim == 4 else x for x in inputs)
            self.table[key] = (self.timer or timed)(work, ordered)
        return self.table[key]

    def whole(self, model: Network, image_size: int | Size | None = None) -> float:
        """Seconds of a whole forward pass, timed once for all networks of these widths."""
        shapes = [tuple(parameter.shape) for parameter in model.parameters()]
        digest = hashlib.sha256(f"{image_size} {shapes}".encode()).hexdigest()
        key = f"network of {model.streams} {digest[:16]}"
        if key not in self.table:
            with torch.random.fork_rng(devices=[]):
                self.table[key] = self.measure(model, image_size)
            self.write()
        return self.table[key]

    def measure(self, model: Network, image_size: int | Size | None = None) -> float:
        """Seconds of a whole forward pass, the median of several."""
        channels, *usual = image_shape(model)
        size = usual if image_size is None else image_hw(image_size)
        like = next(model.parameters())
        modes = {module: module.training for module in model.modules()}
        images = torch.zeros(self.batch, channels, *size, device=like.device, dtype=like.dtype)
        try:
            found = timed(model.eval(), (images,), WHOLE)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return found


@torch.inference_mode()
def timed(work: Callable[..., object], inputs: tuple[Tensor, ...], repeats: int = REPEATS) -> float:
    """Seconds of ``work(*inputs)``: the median of several runs.

    Runs take turns on copies of the inputs, and the last outputs are kept, because in a network
    neither would be in the nearest cache.
    """
    device = inputs[0].device
    copies = cycle([tuple(x.clone() for x in inputs) for _ in range(COPIES)])
    kept: deque[object] = deque(maxlen=COPIES)

    def run(count: int) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(count):
            kept.append(work(*next(copies)))
        _wait(device)
        return (time.perf_counter() - start) / count

    for _ in range(COPIES):
        run(1)
    count = max(1, int(SHORTEST / max(run(1), 1e-9)))
    return statistics.median(run(count) for _ in range(repeats))


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _machine(like: Tensor) -> Machine:
    """What seconds depend on beside the batch."""
    name = platform.processor() or platform.machine()
    if like.device.type == "cuda":
        name = torch.cuda.get_device_name(like.device)
    threads = torch.get_num_threads() if like.device.type == "cpu" else None
    return {"device": f"{like.device.type} {name}", "threads": threads, "dtype": str(like.dtype)}


def _beside(width: int) -> list[tuple[int, float]]:
    """The timed widths next to a width, each with its share."""
    ladder = LADDER if width % ALIGNED == 0 else UNEVEN
    place = bisect_left(ladder, width)
    high = ladder[min(place, len(ladder) - 1)]
    if high <= width:  # one of them, or beyond all, where it grows in proportion
        return [(high, width / high)]
    low = ladder[place - 1]
    part = (width - low) / (high - low)
    return [(low, 1 - part), (high, part)]


def _corners(sides: list[list[tuple[int, float]]]) -> Iterator[tuple[tuple[int, float], ...]]:
    """Every combination of one timed width, with its share, from each side."""
    if not sides:
        yield ()
        return
    for first in sides[0]:
        for rest in _corners(sides[1:]):
            yield (first, *rest)
