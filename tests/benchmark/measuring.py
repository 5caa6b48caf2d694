"""Times, their ratios, and the fastest product of this machine."""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from tests.benchmark import settings
from utils.machine.allocator import keep_freed_memory

Timed = Callable[[], float]  # does its work and returns its seconds


def be_a_run(device: torch.device) -> None:
    """Make this process one that trains, as a run does."""
    keep_freed_memory()
    if device.type == "cpu":
        torch.set_num_threads(settings.THREADS)


def timed(work: Callable[[], object], device: torch.device, repeats: int = 1) -> Timed:
    """The mean of ``repeats`` times ``work``, waiting for the device only before and after all."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def run() -> float:
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        wait()
        return (time.perf_counter() - start) / repeats

    return run


def take_turns(steps: dict[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Seconds of every step in every round, after a few rounds that do not count."""
    for _ in range(settings.WARM_UP):
        for step in steps.values():
            step()
    found = [{name: step() for name, step in steps.items()} for _ in range(rounds)]
    return {name: [seconds[name] for seconds in found] for name in steps}


def ratio(times: list[float], reference: list[float]) -> float:
    """Median over the rounds of the ratio of the times of a round."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def ceiling(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """FLOP/s of the fastest of some products of two large square matrices.

    As a product and as a 1x1 convolution: on a CPU different libraries do them. On a GPU float32
    products may be TensorFloat-32 where convolutions may.
    """
    size = settings.MATRIX[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    kept = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    image = a.view(-1, 16, 16, size).permute(0, 3, 1, 2)  # a row is a pixel
    products = {
        "mm": timed(lambda: torch.mm(a, b), device),
        "convolution": timed(lambda: F.conv2d(image, b[:, :, None, None]), device),
    }
    with torch.no_grad():
        times = take_turns(products, rounds)
    torch.backends.cuda.matmul.allow_tf32 = kept
    return 2 * size**3 / min(map(min, times.values()))


def share(macs: int, images_per_second: float, flops: float) -> float:
    """Of the ceiling: a step takes a multiply-add forward and two backward, 2 FLOP each."""
    return 6 * macs * images_per_second / flops
