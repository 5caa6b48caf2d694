"""Time of a training step against the same network in plain torch: python -m tests.benchmark.

Two threads, batch 16 at 32x32, half of each layer live. Steps alternate, and the median of the
ratios of neighbours is printed, so a machine that slows down for a while does not matter.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import models
import nr
from nr.wiring import wiring
from tests import plain
from utils.engine import stream_loss

THREADS, BATCH, PAIRS = 2, 16, 9
NETWORKS = {
    "VGG-19": (plain.vgg19, "vgg19_bn", {}),
    "ResNet-164": (plain.resnet164, "resnet", {"depth": 110}),
    "DenseNet-100-40": (plain.densenet100, "densenet", {"depth": 100, "growth_rate": 40}),
}


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable) -> Callable:
    """A function that trains one step on random images and returns its seconds."""
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss(model(images), labels).backward()
        optimizer.step()
        return time.perf_counter() - start

    return step


def search_step(arch: str, keywords: dict) -> Callable:
    model = models.build("cifar", arch, **keywords)
    return stepper(model, nr.SGD(model, 0.1, 0.9, 1e-4, sparsity=1e-4), stream_loss)


def train_step(arch: str, keywords: dict, cross: str) -> Callable:
    model = models.build("cifar", arch, **keywords)
    for layer in wiring(model).layers:
        if not layer.unit.fixed:
            gamma = layer.unit.norms[0].weight.data
            gamma[len(gamma) // 2 :] = 0
    nr.rejuvenate(model, cross)
    return stepper(model, nr.SGD(model, 0.1, 0.9, 1e-4), stream_loss)


def plain_step(build: Callable) -> Callable:
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-4)
    return stepper(model, optimizer, F.cross_entropy)


def ratio(first: Callable, second: Callable) -> float:
    """Median of first / second over alternating steps, after one of each."""
    first(), second()
    return statistics.median(first() / second() for _ in range(PAIRS))


def main() -> None:
    torch.set_num_threads(THREADS)
    print("| network | search / plain | removed / search | attention / search |")
    print("|---|---|---|---|")
    for name, (build, arch, keywords) in NETWORKS.items():
        search = search_step(arch, keywords)
        ratios = [ratio(search, plain_step(build))]
        ratios += [ratio(train_step(arch, keywords, c), search) for c in ("removed", "attention")]
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in ratios)} |", flush=True)


if __name__ == "__main__":
    main()
