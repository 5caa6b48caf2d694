"""The rows of the table."""

import os
import statistics
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

import models
import nr
from tests import real
from tests.benchmark import settings
from tests.benchmark.converted import converted_rows
from tests.benchmark.measuring import ratio, share, take_turns, timed
from tests.benchmark.settings import (
    COMPILED,
    FIGURES,
    NOT_MEASURED,
    PHASES,
    SAME_WIDTHS,
    home,
    phases,
)
from tests.benchmark.training import (
    footprint_in_child,
    half_dead,
    in_processes,
    in_use,
    phase_network,
    run_step,
    stepper,
)
from utils.data import photographs
from utils.data.batches import TrainBatches
from utils.data.images import ImageSet
from utils.training.engine import stream_loss
from utils.training.folder import RunFolder

IMAGENET_BATCH, IMAGENET_REPEATS = 16, 8  # each photograph, so that start and end weigh little


def network_rows(
    name: str,
    rounds: int,
    device: torch.device,
    ceilings: dict[str, float],
    compiled: bool = False,
) -> Iterator[tuple]:
    network, batch = settings.NETWORKS[name], settings.BATCH[device.type]
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


METHOD_LIMITS = (10, 500, 500, 500, 60_000)  # ms


def method_rows(rounds: int, device: torch.device) -> Iterator[tuple]:
    """The calls between a search epoch and the train phase, and the table of their seconds."""
    _, arch, keywords = settings.NETWORKS["ResNet-164"]
    fresh = [half_dead(arch, keywords, device) for _ in range(settings.WARM_UP + rounds + 1)]
    measured = fresh.pop()
    calls = {
        "nr.utilization": timed(lambda: nr.utilization(measured), device),
        "nr.rejuvenate": timed(lambda: nr.rejuvenate(fresh.pop()), device),
    }
    rebuilt = half_dead(arch, keywords, device)
    optimizer = nr.SGD(rebuilt, **settings.OPTIMIZER)
    for parameter in rebuilt.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    nr.rejuvenate(rebuilt)
    calls["nr.plan"] = timed(lambda: nr.plan(measured), device)
    calls["nr.carry"] = timed(lambda: nr.carry(optimizer), device)
    found = take_turns(calls, rounds)
    table = timed(lambda: nr.plan(measured, budget=nr.Latency(settings.BATCH[device.type])), device)
    found["nr.Latency"] = [table()]
    for (name, times), limit in zip(found.items(), METHOD_LIMITS, strict=True):
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
    _, arch, keywords = settings.NETWORKS["VGG-19"]
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


def footprint_rows(device: torch.device) -> Iterator[tuple]:
    _, arch, keywords = settings.NETWORKS["VGG-19"]
    found = [
        footprint_in_child(arch, keywords, phase, device.type, settings.BATCH[device.type])
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
    yield from converted_rows(rounds, device)
