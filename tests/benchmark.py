"""Times of training steps and what surrounds them: python -m tests.benchmark [--device cuda].

Half of each layer is live. The phases take turns, one step each a round (on a GPU a group of them),
and a ratio is the median over the rounds of two times of the same round, so a machine that slows
down for a while does not matter.
"""

import argparse
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import models
import nr
from nr.network.layers import Network
from nr.network.units import CROSS
from nr.network.wiring import wiring
from tests import plain, real
from tests.launches import launches
from utils.data import photographs
from utils.data.batches import TrainBatches
from utils.data.images import ImageSet
from utils.machine import compiler
from utils.machine.allocator import keep_freed_memory
from utils.training.engine import stream_loss
from utils.training.folder import RunFolder
from utils.training.trainer import Trainer

THREADS = 2  # of a CPU
BATCH = {"cpu": 16, "cuda": 64}
GROUP = {"cpu": 1, "cuda": 20}  # steps of a phase in a round; a GPU is waited for after the last
ROUNDS = 9
WARM_UP = 4  # rounds
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns of the product that is the ceiling
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OPTIMIZER = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
SPARSITY = 1e-4

NETWORKS = {
    "VGG-19": (plain.vgg19, "vgg19_bn", {}),
    "ResNet-164": (plain.resnet164, "resnet", {"depth": 110}),
    "DenseNet-100-40": (plain.densenet100, "densenet", {"depth": 100, "growth_rate": 40}),
}
# phase -> what its time is compared to: phases, each with a name in FIGURES or None
PHASES = {
    "plain torch": (),
    "plain torch, defaults": (("plain torch", None),),
    "search": (("plain torch", "search"),),
    "search --amp": (("search", "amp"),),
    "new widths": (("search", None),),
    "removed": (("search", "removed"), ("new widths", "removed, same widths")),
    "attention": (("search", "attention"), ("new widths", "attention, same widths")),
    "new widths --nr-round-to 8": (("search", None),),
    "removed --nr-round-to 8": (
        ("search", None),
        ("new widths --nr-round-to 8", "removed, same widths"),
    ),
    "attention --nr-round-to 8": (
        ("search", None),
        ("new widths --nr-round-to 8", "attention, same widths"),
    ),
    "removed --amp": (("removed", "amp"),),
    "attention --amp": (("attention", "amp"),),
    "search --compile": (("search", None),),
    "removed --compile": (("search", None),),
    "attention --compile": (("search", None),),
}
# Phases that take turns, few at once: the processes of ten would not fit in 16 GB.
TURNS = (
    ("plain torch", "plain torch, defaults", "search", "search --amp"),
    ("search", "new widths", "removed", "attention"),
    (
        "search",
        "new widths --nr-round-to 8",
        "removed --nr-round-to 8",
        "attention --nr-round-to 8",
    ),
    ("removed", "attention", "removed --amp", "attention --amp"),
    ("search", "search --compile", "removed --compile", "attention --compile"),
)
NEW_WIDTHS = "new widths"  # the plain network of the widths that survived and rejuvenated have
ROUND_TO = 8  # of the phases that say so
GPU_ONLY = ("removed --amp", "attention --amp")
COMPILED = "ResNet-164"  # whose many small kernels gain the most
FIGURES = {
    "VGG-19": {"search": 1.03, "removed": 0.55, "attention": 1.1, "amp": 0.5},
    "ResNet-164": {"search": 1.05, "removed": 1.2, "attention": 1.9, "amp": 0.65},
    "DenseNet-100-40": {"search": 1.05, "removed": 0.85, "attention": 1.4, "amp": 0.7},
}
SAME_WIDTHS = {"removed, same widths": 1.05, "attention, same widths": 2.0}
HEADER = ("network", "phase", "img/s", "launches", "of the ceiling", "ratio", "to", "figure")
NOT_MEASURED = "not measured"

IMAGENET_BATCH, IMAGENET_REPEATS = 16, 8  # each photograph, so that start and end weigh little

Timed = Callable[[], float]  # does its work and returns its seconds


class Step(NamedTuple):
    """A training step of a phase."""

    seconds: Timed  # of one step, as the mean over a group of them
    launches: Callable[[], int | None]  # of one step; None where it is compiled


# --- measuring


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
    for _ in range(WARM_UP):
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
    size = MATRIX[device.type]
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


# --- networks and their steps


def half_dead(arch: str, keywords: dict, device: torch.device) -> Network:
    model = models.build("cifar", arch, **keywords).to(device)
    for layer in wiring(model).layers:
        if not layer.fixed:
            gamma = layer.unit.norms[0].weight.data
            gamma[len(gamma) // 2 :] = 0
    return model


def phase_network(arch: str, keywords: dict, phase: str, device: torch.device) -> Network:
    """The network of this phase; of the search, unless its name says that it is rejuvenated."""
    name, _, option = phase.partition(" --")
    if name not in (*CROSS, NEW_WIDTHS):
        return models.build("cifar", arch, **keywords)
    model = half_dead(arch, keywords, device)
    plainly = name == NEW_WIDTHS
    round_to = ROUND_TO if option.startswith("nr-round-to") else 1
    nr.rejuvenate(model, "removed" if plainly else name, from_scratch=plainly, round_to=round_to)
    return model


def in_use(
    network: Network, device: torch.device, amp: bool = False, compiled: bool = False
) -> Trainer:
    """A network and its optimizer as a run has them."""
    mode = compiler.DEFAULT if compiled else None
    trainer = Trainer([device], amp=amp, compiled=mode, **OPTIMIZER)
    trainer.use(network)
    return trainer


def stepper(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable,
    device: torch.device,
    batch: int,
    amp: bool = False,
) -> Callable[[], None]:
    """A training step on random images."""
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.randint(10, (batch,), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits = model(images)
        optimizer.zero_grad(set_to_none=True)
        loss(logits, labels).backward()
        optimizer.step()

    return step


def run_step(
    network: Network,
    device: torch.device,
    batch: int,
    *,
    amp: bool = False,
    compiled: bool = False,
    sparsity: float = 0.0,
) -> Callable[[], None]:
    """A training step as in a run."""
    run = in_use(network, device, amp, compiled)
    run.optimizer.sparsity = sparsity
    return stepper(run.model, run.optimizer, stream_loss, device, batch, amp)


def plain_step(
    build: Callable, tuned: bool, device: torch.device, batch: int
) -> Callable[[], None]:
    """Of the network in plain torch; ``tuned``: memory order and optimizer as in a run."""
    order = torch.channels_last if tuned and device.type == "cpu" else torch.contiguous_format
    model = build().to(device, memory_format=order)
    optimizer = torch.optim.SGD(model.parameters(), **OPTIMIZER, fused=True if tuned else None)
    return stepper(model, optimizer, F.cross_entropy, device, batch)


def phase_step(network: tuple, phase: str, device: torch.device, batch: int) -> Step:
    """A training step of a phase."""
    build, arch, keywords = network
    name, _, option = phase.partition(" --")
    compiled = option == "compile"
    if name.startswith("plain"):
        step = plain_step(build, name == "plain torch", device, batch)
    else:
        step = run_step(
            phase_network(arch, keywords, phase, device),
            device,
            batch,
            amp=option == "amp",
            compiled=compiled,
            sparsity=SPARSITY if name == "search" else 0.0,
        )
    return Step(
        timed(step, device, GROUP[device.type]), lambda: None if compiled else launches(step)
    )


def phases(network: str, device: torch.device, compiled: bool) -> list[str]:
    """The phases that are measured on this device."""
    return [
        phase
        for phase in PHASES
        if not (phase in GPU_ONLY and device.type == "cpu")
        and not (phase.endswith("--compile") and not (compiled and network == COMPILED))
    ]


def home(phase: str) -> tuple[str, ...]:
    """The phases that this one takes turns with, among them all that it is compared to."""
    together = {phase, *(reference for reference, _ in PHASES[phase])}
    return next(group for group in TURNS if together <= {*group})


def prepare(network: tuple, phase: str, device: torch.device, batch: int) -> None:
    """Make this process one that trains this network, as a run does."""
    keep_freed_memory()
    if device.type == "cpu":
        torch.set_num_threads(THREADS)
    prepared["step"] = phase_step(network, phase, device, batch)


prepared: dict[str, Step] = {}


def ask_prepared_step(what: str) -> float | int | None:
    """The seconds or the launches of this process's step."""
    return getattr(prepared["step"], what)()


@contextmanager
def in_processes(
    network: tuple, names: list[str], device: torch.device, batch: int
) -> Iterator[dict[str, Step]]:
    """A step of each phase, each in a process of its own.

    In one process the larger networks leave the memory of the others in pieces.
    """
    with ExitStack() as stack:
        executors = {
            phase: stack.enter_context(
                ProcessPoolExecutor(
                    1, get_context("spawn"), prepare, (network, phase, device, batch)
                )
            )
            for phase in names
        }
        wait([executor.submit(int) for executor in executors.values()])  # all start at once
        yield {
            phase: Step(*map(partial(asking, executor), Step._fields))
            for phase, executor in executors.items()
        }


def asking(executor: ProcessPoolExecutor, what: str) -> Callable[[], float | int | None]:
    """``ask_prepared_step`` in the process of ``executor``."""
    return lambda: executor.submit(ask_prepared_step, what).result()


# --- rows of the table


def network_rows(
    name: str,
    rounds: int,
    device: torch.device,
    ceilings: dict[str, float],
    compiled: bool = False,
) -> Iterator[tuple]:
    network, batch = NETWORKS[name], BATCH[device.type]
    measured = phases(name, device, compiled)
    found = {}
    for group in {home(phase): None for phase in measured}:
        names = [phase for phase in group if phase in measured]
        with in_processes(network, names, device, batch) as steps:
            times = take_turns({phase: step.seconds for phase, step in steps.items()}, rounds)
            found[group] = times, {phase: step.launches() for phase, step in steps.items()}
    for phase, comparisons in PHASES.items():
        option = phase.partition(" --")[2]
        if phase not in measured:
            if option != "compile" or name == COMPILED:
                yield name, phase, NOT_MEASURED
            continue
        times, asked = found[home(phase)]
        macs = nr.count_macs(phase_network(*network[1:], phase, torch.device("cpu")))
        speed = batch / statistics.median(times[phase])
        part = share(macs, speed, ceilings["bf16" if option == "amp" else "fp32"])
        row = (name, phase, f"{speed:.1f}", asked[phase] or "-", f"{part:.3f}")
        if not comparisons:
            yield row
        for reference, figure in comparisons:
            value = ratio(times[phase], times[reference])
            to = f"fp32 {reference}" if option == "amp" else reference
            limit = (FIGURES[name] | SAME_WIDTHS)[figure] if figure else "-"
            yield *row, f"{value:.2f}", to, limit


def method_rows(rounds: int, device: torch.device) -> Iterator[tuple]:
    """The two calls between a search epoch and the train phase."""
    _, arch, keywords = NETWORKS["ResNet-164"]
    fresh = [half_dead(arch, keywords, device) for _ in range(WARM_UP + rounds + 1)]
    measured = fresh.pop()
    calls = {
        "nr.utilization": timed(lambda: nr.utilization(measured), device),
        "nr.rejuvenate": timed(lambda: nr.rejuvenate(fresh.pop()), device),
    }
    for (name, times), limit in zip(take_turns(calls, rounds).items(), (10, 500), strict=True):
        milliseconds = 1e3 * statistics.median(times)
        yield "ResNet-164", name, "-", "-", "-", f"{milliseconds:.1f} ms", "-", f"{limit} ms"


def augmentation_row(rounds: int, device: torch.device, batch: int = 64, batches: int = 16):
    """An augmented batch, its part of drawing the epoch included, beside a narrow VGG-19."""
    count = batch * batches
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    images = ImageSet(pixels, torch.randint(10, (count,)), tuple("0123456789")).to(device)
    series = TrainBatches(images, batch, seed=0)
    model = models.build("cifar", "vgg19_bn", width_mult=0.25)
    steps = {
        "epoch": timed(lambda: sum(1 for _ in series.epoch(0)), device),
        "step": timed(run_step(model, device, batch), device),
    }
    times = take_turns(steps, rounds)
    part = ratio(times["epoch"], times["step"]) / batches
    to = f"step of vgg19_bn --width-mult 0.25, batch {batch}"
    return "-", f"augmented CIFAR batch of {batch}", "-", "-", "-", f"{100 * part:.2f} %", to, "3 %"


def decode(file: bytes) -> None:
    """What no loader can do without."""
    transform = photographs.train_transform(224)
    with photographs.open_image(os.fsdecode(file)) as image:
        transform(image.convert("RGB"))


def loader_row(rounds: int, device: torch.device) -> tuple:
    """The batches of a folder of photographs beside a bare loop in as many processes."""
    phase, workers = "imagenet loader", torch.get_num_threads()
    archive = real.archive(real.PHOTOGRAPHS)
    if archive is None:
        return "-", phase, NOT_MEASURED, "-", "-", "-", "bare loop", 0.9
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
        Path(folder, "train").symlink_to("val")
        images, _ = photographs.load_imagenet(folder, 224)
        images = replace(
            images,
            files=np.tile(images.files, IMAGENET_REPEATS),
            labels=images.labels.repeat(IMAGENET_REPEATS),
        )
        series = photographs.TrainBatches(images, IMAGENET_BATCH, 0, workers, device)
        files = images.files.tolist()
        # Forked like the workers of the loader, each with one thread like them.
        with get_context("fork").Pool(workers, torch.set_num_threads, (1,)) as pool:
            steps = {
                "loader": timed(lambda: sum(1 for _ in series.epoch(0)), device),
                "bare": timed(lambda: pool.map(decode, files, IMAGENET_BATCH), device),
            }
            times = take_turns(steps, rounds)
    speed = len(files) / statistics.median(times["loader"])
    value = ratio(times["bare"], times["loader"])  # of images/s, so of the inverse times
    return "-", phase, f"{speed:.1f}", "-", "-", f"{value:.2f}", "bare loop", 0.9


def saving_row(rounds: int, device: torch.device) -> tuple:
    """Seconds for which a run waits when an epoch is saved, beside those of the whole write."""
    _, arch, keywords = NETWORKS["VGG-19"]
    trainer = in_use(models.build("cifar", arch, **keywords), device)
    stepper(trainer.model, trainer.optimizer, stream_loss, device, 2)()  # for the momentum
    with tempfile.TemporaryDirectory() as path:
        folder = RunFolder(Path(path))
        steps = {
            "blocked": timed(lambda: folder.save("saved", trainer.payload()), device),
            "rest": timed(folder.writer.wait, device),
        }
        times = take_turns(steps, rounds)
        size = Path(path, "saved").stat().st_size / 1e6
    whole = statistics.median(map(sum, zip(*times.values(), strict=True)))
    to = f"writing {size:.1f} MB in {whole:.2f} s"
    blocked = f"{statistics.median(times['blocked']):.3f} s"
    return "VGG-19", "blocked by saving", "-", "-", "-", blocked, to, "0.3 s"


def footprint(
    arch: str, keywords: dict, phase: str, device: str, batch: int, steps: int = 3
) -> tuple[int, int]:
    """Peak memory of this process (of a GPU: of its tensors) and size of a checkpoint, in bytes."""
    device = torch.device(device)
    keep_freed_memory()
    torch.set_num_threads(THREADS)
    run = in_use(phase_network(arch, keywords, phase, device), device)
    step = stepper(run.model, run.optimizer, stream_loss, device, batch)
    for _ in range(steps):
        step()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:  # not getrusage's ru_maxrss, which a child inherits from its parent
        status = Path("/proc/self/status").read_text()
        peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
    file = io.BytesIO()
    torch.save([run.network.state_dict(), run.optimizer.state_dict()], file)
    return peak, file.tell()


def footprint_in_child(*arguments) -> tuple[int, int]:
    """``footprint`` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(footprint, *arguments).result()


def footprint_rows(device: torch.device) -> Iterator[tuple]:
    _, arch, keywords = NETWORKS["VGG-19"]
    found = [
        footprint_in_child(arch, keywords, phase, device.type, BATCH[device.type])
        for phase in ("removed", "search")
    ]
    names = (("removed, peak memory", "< 1"), ("removed, checkpoint", 0.5))
    for (phase, figure), (removed, search) in zip(names, zip(*found, strict=True), strict=True):
        yield "VGG-19", phase, "-", "-", "-", f"{removed / search:.2f}", "search", figure


def all_rows(
    networks: list[str],
    rounds: int,
    device: torch.device,
    ceilings: dict[str, float],
    compiled: bool,
) -> Iterator[tuple]:
    for name in networks:
        yield from network_rows(name, rounds, device, ceilings, compiled)
    yield from method_rows(rounds, device)
    yield augmentation_row(rounds, device)
    yield loader_row(min(rounds, 3), device)
    yield saving_row(rounds, device)
    yield from footprint_rows(device)


# --- the table


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "CPU")


def print_row(row: tuple) -> None:
    cells = [*map(str, row), *["-"] * (len(HEADER) - len(row))]
    print(f"| {' | '.join(cells)} |", flush=True)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=list(BATCH), default="cpu")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--compile", action="store_true", help=f"{COMPILED} compiled, too: slow")
    args = parser.parse_args(words)
    device = torch.device(args.device)
    keep_freed_memory()
    if device.type == "cpu":
        torch.set_num_threads(THREADS)
    ceilings = {name: ceiling(device, dtype) for name, dtype in DTYPES.items()}
    limits = ", ".join(f"{flops / 1e12:.3g} in {name}" for name, flops in ceilings.items())
    print(
        f"{hardware(device)}, {torch.get_num_threads()} threads, torch {torch.__version__},"
        f" batch {BATCH[device.type]} at 32x32; ceiling {limits} TFLOP/s\n",
        flush=True,
    )
    print_row(HEADER)
    print_row(("---",) * len(HEADER))
    for row in all_rows(args.networks, args.rounds, device, ceilings, args.compile):
        print_row(row)


if __name__ == "__main__":
    main()
