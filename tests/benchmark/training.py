"""Training steps of the phases, each in a process of its own."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import models
import nr
from nr.network.layers import Network
from nr.network.units import CROSS
from nr.network.wiring import wiring
from tests.benchmark import settings
from tests.benchmark.measuring import Timed, be_a_run, timed
from tests.benchmark.settings import NEW_WIDTHS, OPTIMIZER, ROUND_TO, SPARSITY
from tests.launches import launches
from utils.machine import compiler
from utils.training.engine import stream_loss
from utils.training.trainer import Trainer


class Step(NamedTuple):
    """A training step of a phase."""

    seconds: Timed  # of one step, as the mean over a group of them
    launches: Callable[[], int | None]  # of one step; None where it is compiled


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
        timed(step, device, settings.GROUP[device.type]),
        lambda: None if compiled else launches(step),
    )


def prepare(network: tuple, phase: str, device: torch.device, batch: int) -> None:
    """Make this process one that trains this network."""
    be_a_run(device)
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


def footprint(
    arch: str, keywords: dict, phase: str, device: str, batch: int, steps: int = 3
) -> tuple[int, int]:
    """Peak memory of this process (of a GPU: of its tensors) and size of a checkpoint, in bytes."""
    device = torch.device(device)
    be_a_run(device)
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
