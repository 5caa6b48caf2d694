"""Small networks, and the handles that the tests turn: dead channels, random scales, silence."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nr
from models.cifar import densenet, resnet, vgg11_bn
from nr.method.life import life
from nr.method.rejuvenation import Report
from nr.method.utilization import live_masks
from nr.network.convolutions import ConvBN
from nr.network.graph import MUL
from nr.network.layers import Chain, Classifier, Network
from nr.network.norms import Scale
from nr.network.steps import Layer, Step, Wiring
from nr.network.units import Norm
from nr.network.wiring import wiring
from tests.copies import copied


def bottleneck(**options) -> Network:
    """The CIFAR ResNet with bottlenecks at any depth; the real threshold of 44 is slow to test."""
    with mock.patch.object(import_module("models.cifar.resnet"), "BOTTLENECK_FROM", 0):
        return resnet(**options)


FAMILIES = {
    "vgg": partial(vgg11_bn, width_mult=1 / 16),  # 4, 8, 16 16, 32 32, 32 32
    "basic": partial(resnet, depth=14, width_mult=0.25),  # two blocks of 4, 8, 16
    "bottleneck": partial(bottleneck, depth=14, width_mult=0.25),  # two blocks of 4, 8, 16 (x4)
    "dense": partial(densenet, depth=16, growth_rate=4),  # stem 8, three blocks of two layers
}
PARTS = {"vgg": 3, "basic": 3, "bottleneck": 3, "dense": 4}  # with two stages of each kind
MODES = ("removed", "attention", "full")
CLASSES = 10
FIRST, SECOND = "features.first", "features.second"  # of ``tiny``


@copied
def build(family: str, seed: int = 0) -> Network:
    """A small network of this family with its own initial weights."""
    torch.manual_seed(seed)
    return FAMILIES[family]()


def beginning(family: str, model: Network) -> Network:
    """The first ``PARTS``, classified: tracing and compiling take as long as a network is deep."""
    parts = list(model.features.named_children())[: PARTS[family]]
    features = Chain(OrderedDict(parts, pool=nn.AdaptiveAvgPool2d(1)))
    with torch.no_grad():
        (maps,) = features((torch.zeros(2, 3, 8, 8),))  # [2, C, 1, 1]
    return Network(features, Classifier(maps.shape[1], CLASSES), image_size=32)


def tiny(width: int = 4, classes: int = 2) -> Network:
    """3x3 conv 3 -> width, 2x2 max pooling, 3x3 conv width -> width; all counts fit on paper."""
    torch.manual_seed(0)
    parts = OrderedDict(
        first=ConvBN(3, width, 3),
        relu1=nn.ReLU(),
        halve=nn.MaxPool2d(2, 2),
        second=ConvBN(width, width, 3),
        relu2=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
    )
    return Network(Chain(parts), Classifier(width, classes), image_size=8)


def half_dead(width: int = 10) -> Network:
    """``tiny``, varied, with the first half of each layer dead."""
    model = vary(tiny(width))
    kill(model, dict.fromkeys((FIRST, SECOND), slice(width // 2)))
    return model


def layers(model: Network) -> dict[str, Layer]:
    """Every ConvBN in its place, by name."""
    return {layer.name: layer for layer in wiring(model).layers}


def whole(model: nn.Module) -> dict:
    """Everything that a rebuild could change: modules, tensors themselves, and shapes."""
    return {
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "tensors": [
            (name, id(t)) for name, t in (*model.named_parameters(), *model.named_buffers())
        ],
        "shapes": nr.structure(model),
    }


def described(structure: Mapping) -> dict[str, dict]:
    """The description of every ConvBN, by name."""

    def walk(node: object, name: str) -> Iterator[tuple[str, dict]]:
        if isinstance(node, dict) and node["type"] == "ConvBN":
            yield name, node
        elif isinstance(node, dict):
            for child, inner in (node.get("modules") or node).items():
                yield from walk(inner, f"{name}.{child}")

    return dict(walk(structure["features"], "features"))


def form(structure: Mapping) -> str:
    """The form of the layers behind the stem."""
    (found,) = {node["form"] for node in list(described(structure).values())[1:]}
    return found


def widths(structure: Mapping) -> dict[str, list[int]]:
    """The output widths of every ConvBN, by name."""
    return {name: node["out_channels"] for name, node in described(structure).items()}


def prunable(model: Network) -> dict[str, Layer]:
    """The layers whose channels can die."""
    return {name: layer for name, layer in layers(model).items() if not layer.fixed}


def ends(names: Iterable[str]) -> list[str]:
    """Of the layers in branches, those of the first and the last block of each stage."""
    blocks: dict[str, dict[str, list[str]]] = {}
    for name in names:
        if ".branch." in name:
            stage, index = name.split(".")[1:3]
            blocks.setdefault(stage, {}).setdefault(index, []).append(name)
    chosen = []
    for stage in blocks.values():
        first, *_, last = stage.values()
        chosen += first + last
    return chosen


@torch.no_grad()
def kill(model: Network, dead: Mapping[str, object], gamma: float = 0.0) -> None:
    """Set γ of the channels (an index, a slice or a list of indices) of each named layer."""
    for name, channels in dead.items():
        model.get_submodule(name).norms[0].weight[channels] = gamma


@torch.no_grad()
def vary(model: Network, seed: int = 1) -> Network:
    """Random γ (0.5 to 1.5, both signs), β and running statistics: batch norm is no identity."""
    generator = torch.Generator().manual_seed(seed)
    for norm in norms(model):
        sign = torch.rand(norm.weight.shape, generator=generator).sub_(0.3).sign_()
        norm.weight.uniform_(0.5, 1.5, generator=generator).mul_(sign)
        norm.bias.normal_(0, 0.2, generator=generator)
        norm.running_mean.normal_(0, 0.2, generator=generator)
        norm.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def kill_random(model: Network, seed: int = 2, share: float = 0.4) -> None:
    """Give about this share of the prunable channels a tiny γ."""
    generator = torch.Generator().manual_seed(seed)
    for name, layer in prunable(model).items():
        parts = layer.unit.out_channels[0] // layer.part  # a group dies as a whole
        mask = (torch.rand(parts, generator=generator) < share).repeat_interleave(layer.part)
        kill(model, {name: mask}, gamma=1e-4)


@copied
def worn(family: str, seed: int = 0) -> Network:
    """A network at the end of a search: varied scales, dead channels, one dead branch."""
    model = vary(build(family, seed), seed + 1)
    kill_random(model, seed + 2)
    branches = [name for name in prunable(model) if ".branch." in name]
    kill(model, dict.fromkeys(branches[1:2], slice(None)))
    return model


@copied
def rebuilt(family: str, mode: str, **options) -> tuple[Network, Report]:
    """``worn``, rebuilt by ``options`` (mode "scratch": ``from_scratch``), and the report."""
    model = worn(family)
    way = {"from_scratch": True} if mode == "scratch" else {"cross": mode}
    return model, nr.rejuvenate(model, **way, **options)


@torch.no_grad()
def silence(model: Network) -> None:
    """γ = β = 0 for every channel outside the live masks, dead branches as a whole included."""
    plan = wiring(model)
    masks = live_masks(plan)
    for layer in plan.makers:
        for norm, live in zip(layer.unit.norms, masks[layer.name], strict=True):
            for parameter in norm.parameters():
                parameter[~live] = 0


@torch.no_grad()
def wear(network: Network, share: float = 1 / 3) -> Network:
    """Silence about this share of all parts and pairs; what a norm before a convolution says stays.

    Its β may be anything where the convolution has no padding, and is below 0 elsewhere; what
    is multiplied says nothing where it is dead.
    """
    generator, signs = (torch.Generator().manual_seed(seed) for seed in (2, 3))
    plan = wiring(vary(network))
    for layer in plan.norms:
        if isinstance(layer.unit.norms[0], Scale):
            gamma = layer.unit.norms[0].weight.uniform_(-1, 1, generator=signs)
            gamma.add_(gamma.sign() * 0.3)
    for layer in plan.prunable:
        (norm,) = layer.unit.norms
        part = plan.ties.part[layer.numbers[0]]
        label = part.unique(return_inverse=True)[1]
        dead = (torch.rand(len(part), generator=generator) < share)[label]
        norm.weight[dead] = 0
        padded = any(padded_reader(plan, step, layer.name) for step in plan.steps.values())
        if padded and isinstance(layer.unit, Norm) and hasattr(norm, "bias"):
            norm.bias[dead] = -norm.bias[dead].abs()
    found = life(plan)
    for layer in plan.layers:
        for norm, live in zip(layer.unit.norms, found.masks(layer), strict=True):
            for parameter in norm.parameters() if layer.scaled else ():
                parameter[~live] = 0
    multiplied = {
        source
        for step in plan.steps.values()
        if step.op == MUL
        for side in step.inputs
        for source in plan.steps[side].sources
    }
    for layer in plan.norms:
        if layer.name in multiplied:
            (norm,), (live,) = layer.unit.norms, found.masks(layer)
            for parameter in norm.parameters():
                parameter[~live] = 0
    return network


def padded_reader(plan: Wiring, step: Step, name: str) -> bool:
    """Whether ``step`` is a convolution with padding that reads what ``name`` makes."""
    padded = isinstance(step.op, ConvBN) and step.op.padding != 0
    return padded and name in plan.steps[step.inputs[0]].sources


@torch.no_grad()
def open_cross_blocks(model: Network, std: float = 0.05) -> None:
    """Give the cross blocks, which are born 0, random weights."""
    for layer in wiring(model).layers:
        for i, o, block in layer.unit.blocks():
            if i != o:
                block.normal_(0, std)


def norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def branches(model: nn.Module) -> dict[str, nn.Module]:
    """Residual and dense containers by name."""
    return {n: m for n, m in model.named_modules() if hasattr(m, "branch")}


def dropped(model: nn.Module) -> list[str]:
    """The containers whose branch is gone."""
    return [name for name, module in branches(model).items() if module.branch is None]


def batch(count: int = 8, size: int = 8, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] and labels [B]."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def loss_of(model: Network, images: Tensor, labels: Tensor) -> Tensor:
    """Sum over the streams of the cross-entropies (spec section 2)."""
    return sum(F.cross_entropy(logits, labels) for logits in model(images).unbind(1))


@torch.no_grad()
def logits_of(model: Network, images: Tensor, training: bool = False) -> Tensor:
    """Logits [B, S, classes] in eval mode, or in train mode."""
    return model.train(training)(images)


def same_tensors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    """Equal names and equal values, bit for bit."""
    return before.keys() == after.keys() and all(
        torch.equal(t, after[n]) for n, t in before.items()
    )


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """Largest absolute difference over the largest absolute value of the reference."""
    return ((value - reference).abs().max() / reference.abs().max()).item()


def random_norms(model: nn.Module) -> None:
    """Scales, shifts and running statistics with which no batch norm is the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.1)


def copy_plain(source: nn.Module, target: Network, linear: nn.Linear) -> None:
    """Copy the layers of a network in plain torch, met in the same order of computation."""
    convs = [m for m in source.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in source.modules() if isinstance(m, nn.BatchNorm2d)]
    for layer, conv, norm in zip(wiring(target).layers, convs, norms, strict=True):
        layer.unit.convs[0].load_state_dict(conv.state_dict())
        layer.unit.norms[0].load_state_dict(norm.state_dict())
    target.classifier.linears[0].load_state_dict(linear.state_dict())


def pooled(model: nn.Module, size: int) -> Network:
    """``nr.convert`` of a network that pools by a size that it reads, if this torch traces that."""
    try:
        return nr.convert(model, size)
    except ValueError as error:
        if "cannot trace its forward (avg_pool2d(): argument 'kernel_size'" in str(error):
            pytest.skip("this torch takes no traced size for a kernel")
        raise
