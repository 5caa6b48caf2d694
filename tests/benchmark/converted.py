"""Networks of torchvision beside themselves, converted: what nr's graph costs."""

import statistics
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

import nr
from nr.network.graph import Pick
from nr.network.steps import Wiring
from nr.network.wiring import wiring
from tests.benchmark import settings
from tests.benchmark.measuring import ratio, take_turns, timed
from tests.benchmark.settings import OPTIMIZER, SPARSITY

NAMES = ("resnet50", "googlenet", "densenet121", "efficientnet_b0")
SIZE, BATCH = 224, 8
AT_MOST = 1.05  # of a step of the original
SELECTIONS = "densenet121"  # which has the most
PICKED = 0.1  # at most, of a step, for selections
SELECTING = ("aten::index_select", "aten::index_add_", "aten::index_add")  # there and back


def original(name: str) -> nn.Module:
    slow = {"init_weights": False} if name == "googlenet" else {}  # half a minute with them
    return torchvision.models.get_model(name, **slow)


def heads_loss(outputs: object, labels: torch.Tensor) -> torch.Tensor:
    """Of all heads, of one stream."""
    return sum(F.cross_entropy(head, labels) for head in tree_leaves(outputs))


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable) -> Callable:
    """A training step on random images, in the memory order of a run."""
    device = next(model.parameters()).device
    order = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    images = torch.randn(BATCH, 3, SIZE, SIZE, device=device).to(memory_format=order)
    labels = torch.randint(1000, (BATCH,), device=device)
    model.train().to(memory_format=order)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(model(images), labels).backward()
        optimizer.step()

    return step


def original_step(model: nn.Module) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), **OPTIMIZER, fused=True)
    return stepper(model, optimizer, heads_loss)


def search_step(network: nr.Network) -> Callable[[], None]:
    optimizer = nr.SGD(network, **OPTIMIZER, sparsity=SPARSITY, fused=True)
    return stepper(network, optimizer, nr.loss)


def conversion_row(name: str, rounds: int, device: torch.device) -> tuple:
    """A search step of the converted network beside a step of the original."""
    model = original(name).to(device)
    network = nr.convert(model, SIZE)
    steps = {
        "plain": timed(original_step(model), device),
        "search": timed(search_step(network), device),
    }
    times = take_turns(steps, rounds)
    speed = BATCH / statistics.median(times["search"])
    value = f"{ratio(times['search'], times['plain']):.2f}"
    return name, "converted, search", f"{speed:.1f}", "-", "-", value, "torchvision's", AT_MOST


def worn(name: str, device: torch.device) -> nr.Network:
    """Half of all scales 0, at random places, and rejuvenated."""
    network = nr.convert(original(name), SIZE).to(device)
    plan: Wiring = wiring(network)
    with torch.no_grad():
        for layer in plan.prunable:
            dead = torch.rand(layer.unit.out_channels) < 0.5
            for parameter in layer.unit.norms[0].parameters():
                parameter[dead] = 0
    nr.rejuvenate(network, "removed")
    return network


def selections_row(device: torch.device) -> tuple:
    """The part of a step of the rejuvenated network that selects channels, both ways."""
    network = worn(SELECTIONS, device)
    step = search_step(network)
    for _ in range(settings.WARM_UP):
        step()
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=kinds) as found:
        step()
    spent = {event.key: event for event in found.key_averages()}
    attribute = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    whole = sum(getattr(event, attribute) for event in spent.values())
    part = sum(getattr(spent[name], attribute) for name in SELECTING if name in spent)
    picks = sum(isinstance(module, Pick) for module in network.modules())
    phase, value = f"removed, {picks} selections", f"{100 * part / whole:.1f} %"
    return SELECTIONS, phase, "-", "-", "-", value, "its step", f"{100 * PICKED:.0f} %"


def converted_rows(rounds: int, device: torch.device) -> Iterator[tuple]:
    for name in NAMES:
        yield conversion_row(name, rounds, device)
    yield selections_row(device)
