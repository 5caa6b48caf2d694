"""One network: converted, compared, worn down, rejuvenated and merged, as a row of the table."""

import copy
import platform
import resource
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import nr
from nr.network.wiring import wiring
from tests.helpers import logits_of, random_norms, relative_difference, wear

SIZES = (64, 96, 128, 224)  # pixels: the first that the network takes
IMAGES = 4
IN_DOUBLE = 70e6  # parameters: larger networks are measured in float32
EXACT = {"float64": 1e-9, "float32": 1e-2}  # of the largest logit: that a row works
BUDGET = (0.9, 1.005)  # where every layer grows by one part at least, it may end a little above


def measured(name: str, make: Callable[[str], nn.Module]) -> dict:
    """The row of one network; ``reason`` says why it has no numbers, None where it has."""
    begun = time.process_time()
    row = {"name": name, "reason": None}
    try:
        torch.manual_seed(0)
        model = make(name)
        row["params"] = nr.count_params(model)
        small = row["params"] < IN_DOUBLE
        model = model.to(torch.float64 if small else torch.float32)
        row["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
        random_norms(model)
        row |= {"size": taken(model), "stage": "conversion"}
        _measure(row, model)
    except Exception as error:  # whatever a network may raise is its row
        row["reason"] = " ".join(f"{error}".split())[:300] or type(error).__name__
        if not isinstance(error, ValueError):
            row["reason"] = f"{type(error).__name__}: {row['reason']}"
    row["seconds"] = round(time.process_time() - begun, 1)
    row["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return row


def works(row: dict) -> bool:
    """Whether a network is converted, grown and merged with the same outputs, at its budget."""
    if row["reason"] is not None:
        return False
    differences = (row[key] for key in ("eval", "train", "survived", "merged"))
    low, high = BUDGET
    return max(differences) <= EXACT[row["dtype"]] and low <= row["budget"] <= high


def taken(model: nn.Module) -> int:
    """The first of SIZES that a copy of the network takes."""
    for size in SIZES:
        try:
            copy.deepcopy(model).eval()(images(size, model))
        except Exception:  # whatever a forward may raise
            continue
        return size
    raise ValueError(f"takes images of none of {SIZES} pixels")


def images(size: int, model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(IMAGES, 3, size, size, generator=generator)
    return drawn.to(next(model.parameters()).dtype)


def _measure(row: dict, model: nn.Module) -> None:
    """Fill ``row`` in; ``stage`` is what was being done when something is raised."""
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    network = nr.convert(model, row["size"], scales=not normed)
    drawn = images(row["size"], network)
    for mode in ("eval", "train"):
        row[mode] = _difference(network, model, drawn, mode == "train")
    del model
    row["weights"], row["macs"] = (prunable_share(network, flops) for flops in (False, True))
    row["stage"] = "rejuvenation"
    before = outputs_of(wear(network), drawn)
    report = nr.rejuvenate(network, "removed")
    row["survived"] = relative_difference(outputs_of(network, drawn)[:, :1], before)
    row["budget"] = report.budget
    row["stage"] = "merging"
    before = outputs_of(network, drawn).sum(1)
    nr.merge(network)
    row["merged"] = relative_difference(outputs_of(network, drawn)[:, 0], before)
    del row["stage"]


def _difference(network: nr.Network, model: nn.Module, drawn: Tensor, training: bool) -> float:
    """Of the outputs, with the same random numbers for both."""
    outputs = []
    for each in (network, model):
        torch.manual_seed(1)
        outputs.append(outputs_of(each, drawn, training))
    return relative_difference(outputs[0][:, 0], outputs[1])


def outputs_of(model: nn.Module, drawn: Tensor, training: bool = False) -> Tensor:
    """All outputs side by side: [B, numbers] of torch's, [B, S, numbers] of a network of nr's."""
    first = 2 if isinstance(model, nr.Network) else 1
    leaves = tree_leaves(logits_of(model, drawn, training))
    return torch.cat([leaf.flatten(first) if leaf.ndim > first else leaf for leaf in leaves], first)


def prunable_share(network: nr.Network, flops: bool) -> float:
    """Of the weights (multiply-adds) of all units: those with a prunable channel at either side."""
    plan = wiring(network)
    prunable = torch.zeros(len(plan.source), dtype=torch.bool)
    for layer in plan.prunable:
        prunable[torch.cat(layer.numbers)] = True
    some = every = 0.0
    for layer in plan.layers:
        (reads,), (numbers,) = layer.reads, layer.numbers
        ins, outs = (prunable[n].double().mean().item() for n in (reads, numbers))
        weights = next(iter(layer.unit.convs)).weight.numel() * (layer.pixels if flops else 1)
        every += weights
        some += weights * (ins + outs - ins * outs)
    return some / every


def machine() -> str:
    """The versions and the machine, in a line."""
    import torchvision

    found = [f"torch {torch.__version__}", f"torchvision {torchvision.__version__}"]
    try:
        import timm

        found.append(f"timm {timm.__version__}")
    except ImportError:
        pass
    with open("/proc/cpuinfo") as file:
        kinds = {line.partition(": ")[2].strip() for line in file if line.startswith("model name")}
    return f"{', '.join(found)}; {' '.join(kinds) or platform.processor()}, one thread a network"
