"""A torch network, traced, as a network of nr's units with the same weights and logits.

Read backwards from the logits: a convolution and its batch norm become a unit, a sum a Residual
of what lies between it and where its two sides parted, a hidden linear layer a convolution over
the whole map. What is left over has no exact form in units and is refused by name.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import fx, nn

from nr.checks import image_hw
from nr.functions import PLAIN, plain_module
from nr.layers import Chain, Classifier, Concat, Network, Residual
from nr.norms import norm_like, take_after
from nr.plain import KINDS, FixedSize, Size
from nr.tracing import BATCH_NORMS, CATS, SUMS, Graph, inputs, readers, shape
from nr.units import Conv, ConvBN
from nr.wiring import wiring

HOLDERS = (Chain, Residual, Concat, Classifier, nn.ModuleList)  # what has no mode of its own
Named = list[tuple[str, nn.Module]]


@torch.inference_mode(False)
def convert(model: nn.Module, image_size: int | Size) -> Network:
    """``model`` as a network of units with the same weights: [B, C, H, W] -> [B, 1, classes].

    ``image_size``: H = W of its images, or (H, W); where a linear layer reads a whole map, only
    this size will do; where its forward made constants of sizes, images of another size are a
    ValueError. The logits are the same up to rounding, in eval and in train mode (see nr.ConvBN on
    strided 1x1 convolutions), and parts keep their modes; ``model`` stays as it is and shares
    nothing with the result. A bias before a batch norm moves into its running mean. Taken are
    convolutions with batch norms after them, grouped ones too, sums of two, concatenations of an
    activation with what is made of it, what nr.plain knows, modules without weights, and linear
    layers at the end. Raises ValueError naming the module, what is wrong and what helps, for all
    else.
    """
    if isinstance(model, Network):
        raise ValueError("the network is an nr.Network already: it needs no conversion")
    for inside in ("module", "_orig_mod"):
        if isinstance(getattr(model, inside, None), nn.Module) and len(model._modules) == 1:
            raise ValueError(
                f"the network is wrapped in {type(model).__name__}: pass what is in it,"
                f" model.{inside}"
            )
    size = image_hw(image_size)
    graph = Graph(model, size)
    graph.check()
    with torch.no_grad(), graph.device:
        network = _Converter(graph).network()
    network.image_size = image_size if isinstance(image_size, int) else size
    parts = [m for m in network.modules() if not isinstance(m, (Network, ConvBN, *HOLDERS))]
    modes = [part.training for part in parts]  # a frozen batch norm is in eval mode
    network.train(model.training)
    for part, mode in zip(parts, modes, strict=True):
        part.training = mode
    if any(not parameter.is_contiguous() for parameter in model.parameters()):
        network.to(memory_format=torch.channels_last)
    if all(layer.fixed for layer in wiring(network).layers):
        raise ValueError(
            f"{type(model).__name__}: has no batch norm whose channels could go, so nothing can be"
            " measured: use a variant with batch norm"
        )
    return network


class _Converter:
    """Makes units of the nodes of one graph."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.taken: set[str] = set()  # modules with weights that have become part of a unit

    def network(self) -> Network:
        """The whole network: features up to the last linear layer, which is the classifier."""
        output, image = self.graph.nodes[-1], self.graph.nodes[0]
        last = output.args[0]
        linear = self.graph.module(last) if isinstance(last, fx.Node) else None
        if type(linear) is not nn.Linear:
            what = self.graph.name(last) if isinstance(last, fx.Node) else type(last).__name__
            raise ValueError(
                f"{what}: the network gives this, and has to give the logits of an nn.Linear alone"
            )
        features = Chain()
        for name, module in self.chain(last.args[0], image, ""):
            features.add_module(_free(name, features), module)
        bias = linear.bias is not None
        classifier = Classifier(linear.in_features, linear.out_features, bias)
        own = classifier.linears[0]
        side = self.whole_map(last)[1]
        if side != 1:
            raise ValueError(
                f"{last.target}: the last nn.Linear reads a whole map of {side}x{side} pixels, and"
                " nr's classifier reads one number a channel: put nn.AdaptiveAvgPool2d(1), or a"
                " hidden nn.Linear, before it"
            )
        take_after(own, linear)
        self.take(last)
        own.weight.copy_(linear.weight)
        _copy_bias(own.bias, linear)
        if self.graph.bound is not None:
            first = FixedSize(self.graph.size, self.graph.bound)
            named = [(_free("size", features), first), *features.named_children()]
            features = Chain(OrderedDict(named))
        return Network(features, classifier, shape(image)[-1])

    def chain(self, node: fx.Node, start: fx.Node, prefix: str) -> Named:
        """The modules from ``start`` to ``node``, by name."""
        modules: Named = []
        while node is not start:
            named, node = self.step(node)
            modules += [(n.removeprefix(prefix), module) for n, module in reversed(named)]
        return modules[::-1]

    def step(self, node: fx.Node) -> tuple[Named, fx.Node]:
        """What makes ``node``, and the node before it."""
        module, target = self.graph.module(node), node.target
        name = str(target).replace(".", "_") if module is not None else node.name
        before = self.graph.dominator.get(node)
        if isinstance(module, BATCH_NORMS):
            return self.unit(node)
        if isinstance(module, nn.Conv2d):
            return [(name, self.plain_unit(self.window, node, module))], before
        if type(module) is nn.Linear:
            return [(name, self.plain_unit(self.whole, node, module))], before
        if self.graph.is_flatten(node):
            return [], before
        if module is not None:
            return [(name, self.plain(node, module))], before
        if target in PLAIN:
            if sums := self.sum_under(node):
                return self.residual(sums, node, "relu")
            return [(name, self.function(node))], before
        if target in SUMS and len(inputs(node)) == 2:
            return self.residual(node, node, None)
        if target in CATS:
            return ([], before) if len(node.args[0]) == 1 else self.concat(node)
        if self.graph.is_global_mean(node):
            return [(name, nn.AdaptiveAvgPool2d(1).train(self.graph.owner(node).training))], before
        what = getattr(target, "__name__", target)
        raise ValueError(f"{self.graph.name(node)}: {what} is not known to nr: use nn modules")

    def unit(self, node: fx.Node) -> tuple[Named, fx.Node]:
        """A convolution, or a linear layer, and the batch norm ``node`` after it."""
        norm, before = self.graph.module(node), node.args[0]
        conv = self.graph.module(before)
        if norm.weight is None or norm.running_mean is None:
            raise ValueError(
                f"{node.target}: has no scale or no running statistics: affine=True and"
                " track_running_stats=True are needed"
            )
        made = self.whole if type(conv) is nn.Linear else self.window
        unit = made(ConvBN, before, conv, eps=norm.eps, momentum=norm.momentum)
        self.take(node)
        if isinstance(norm, nn.SyncBatchNorm):
            unit.norms[0] = norm_like(norm, norm.num_features)
        own = unit.norms[0]
        take_after(own, norm)
        own.load_state_dict(norm.state_dict())
        if conv.bias is not None:
            own.running_mean.sub_(conv.bias)  # a constant that the batch norm takes off again
        return [(str(before.target).replace(".", "_"), unit)], before.args[0]

    def plain_unit(self, made: Callable[..., ConvBN], node: fx.Node, layer: nn.Module) -> Conv:
        """A convolution or linear layer without a batch norm."""
        unit = made(Conv, node, layer, bias=layer.bias is not None)
        take_after(unit.norms[0], layer)
        _copy_bias(unit.norms[0].bias, layer)
        return unit

    def window(self, cls: type[ConvBN], node: fx.Node, conv: nn.Conv2d, **options) -> ConvBN:
        """A unit with the weights of ``conv``."""
        name = node.target
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or conv.dilation != (1, 1):
            raise ValueError(
                f"{name}: {conv} is no plain nn.Conv2d without dilation, padded with zeros, which"
                " is the only one that units have"
            )
        same = conv.padding == "same" and conv.kernel_size[0] % 2 == 1  # its stride is 1
        padding = {"valid": 0, "same": None if same else "same"}.get(conv.padding, conv.padding)
        try:
            unit = cls(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                conv.stride,
                padding=padding,
                groups=conv.groups,
                **options,
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self.take(node)
        take_after(unit.convs[0], conv)
        unit.convs[0].weight.copy_(conv.weight)
        return unit

    def whole(self, cls: type[ConvBN], node: fx.Node, linear: nn.Linear, **options) -> ConvBN:
        """A unit with the weights of a linear layer before the last one: over the whole map."""
        channels, side = self.whole_map(node)
        unit = cls(channels, linear.out_features, side, padding=0, **options)
        self.take(node)
        take_after(unit.convs[0], linear)
        unit.convs[0].weight.copy_(linear.weight.view_as(unit.convs[0].weight))
        return unit

    def whole_map(self, node: fx.Node) -> tuple[int, int]:
        """Channels and side of the square map that a linear layer reads, flattened."""
        before = node.args[0]
        while len(shape(before)) < 4:
            if type(self.graph.module(before)) is nn.Linear or self.graph.is_global_mean(before):
                return shape(before)[1], 1
            before = self.graph.dominator[before]
        channels, *sides = shape(before)[1:]
        if len(sides) != 2 or sides[0] != sides[1] or len(shape(node)) != 2:
            raise ValueError(
                f"{node.target}: reads {list(shape(node.args[0]))} of {list(shape(before))}, and"
                " only an nn.Linear over a square map that was flattened is a convolution: put"
                " nn.Flatten() before it, and an adaptive pooling to a square before that"
            )
        return channels, sides[0]

    def plain(self, node: fx.Node, module: nn.Module) -> nn.Module:
        """A copy of a module that treats each channel by itself; nr.wiring looks at the others."""
        if [*module.parameters()]:
            self.take(node)
        if len(shape(node)) == 2 and type(module) not in KINDS:
            raise ValueError(
                f"{node.target}: {type(module).__name__} between linear layers is not known to nr"
            )
        return copy.deepcopy(module)

    def function(self, node: fx.Node) -> nn.Module:
        """The plain module that a function is."""
        arguments, keywords = self.graph.constant(node, (node.args[1:], node.kwargs))
        try:
            module = plain_module(node.target, arguments, keywords)
        except ValueError as error:
            raise ValueError(f"{self.graph.name(node)}: {error}") from error
        return module.train(self.graph.owner(node).training)

    def sum_under(self, node: fx.Node) -> fx.Node | None:
        """The sum of which ``node`` is the ReLU and the only reader."""
        before = self.graph.dominator[node]
        alone = (
            before.target in SUMS and len(inputs(before)) == 2 and len(list(readers(before))) == 1
        )
        return before if PLAIN.get(node.target, (None,))[0] is nn.ReLU and alone else None

    def residual(
        self, node: fx.Node, end: fx.Node, activation: str | None
    ) -> tuple[Named, fx.Node]:
        """The sum of two sides, which parted at the node that is returned."""
        fork, prefix = self.graph.dominator[node], self.graph.block(node) + "_"
        if node.kwargs.get("alpha", 1) != 1:
            raise ValueError(f"{self.graph.name(node)}: a sum with alpha is not known to nr")
        sides = [self.chain(side, fork, prefix) for side in node.args]
        branch, shortcut = sorted(sides, key=_as_branch, reverse=True)
        if not _units(branch):
            raise ValueError(f"{self.graph.name(node)}: a sum without a convolution in either side")
        if not _as_branch(branch)[0]:
            raise ValueError(
                f"{self.graph.name(node)}: neither side of this sum ends in a convolution, with or"
                f" without its batch norm: put {type(branch[-1][1]).__name__} behind the sum"
            )
        residual = Residual(_chain(branch), _chain(shortcut) if shortcut else None, activation)
        return [(self.graph.block(node), residual)], fork

    def concat(self, node: fx.Node) -> tuple[Named, fx.Node]:
        """An activation and, behind it, what is made of it."""
        fork = self.graph.dominator[node]
        branch = self.chain(node.args[0][1], fork, self.graph.block(node) + "_")
        return [(self.graph.block(node), Concat(_chain(branch)))], fork

    def take(self, node: fx.Node) -> None:
        """Refuse a module that is called twice: its copies would not share their weights."""
        if node.target in self.taken:
            raise ValueError(
                f"{node.target}: is called more than once, and each place in a network of units has"
                " weights of its own: use a module for each"
            )
        self.taken.add(node.target)


def _as_branch(side: Named) -> tuple[bool, int]:
    """How well a side of a sum is a branch, which ends in a unit."""
    return bool(side) and isinstance(side[-1][1], ConvBN), _units(side)


def _units(named: Named) -> int:
    return sum(isinstance(m, ConvBN) for _, module in named for m in module.modules())


def _chain(named: Named) -> nn.Module:
    """One module of several; a unit alone stays alone."""
    if len(named) == 1:
        return named[0][1]
    chain = Chain()
    for name, module in named:
        chain.add_module(_free(name, chain), module)
    return chain


def _free(name: str, chain: Chain) -> str:
    """``name``, or it with the first number that makes it new in ``chain``."""
    names = [name, *(f"{name}_{number}" for number in range(1, len(chain) + 1))]
    return next(n for n in names if n not in chain._modules)


def _copy_bias(bias: nn.Parameter | None, layer: nn.Conv2d | nn.Linear) -> None:
    """The bias of ``layer``, if it has one."""
    if layer.bias is not None:
        bias.copy_(layer.bias).requires_grad_(layer.bias.requires_grad)
