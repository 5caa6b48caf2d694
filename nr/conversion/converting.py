"""A torch network, traced, as a graph of nr's units with the same weights and outputs.

Every traced node becomes one of the graph: a convolution and the batch norm after it a unit, what
moves channels a selection, the last linear layer the classifier. Modules keep their names.
"""

import copy
import operator
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from nr.conversion import moves
from nr.conversion.functions import PLAIN, parameter, plain_module
from nr.conversion.making import activations, classifier, fixed_filter, head, norm, scale, unit
from nr.conversion.tracing import (
    BATCH_NORMS,
    CATS,
    MEANS,
    SPATIAL,
    SUMS,
    Traced,
    has_tensor,
    inputs,
    is_tuple,
    readers,
    shape,
)
from nr.conversion.values import RESULT
from nr.method.scaling import add_scales
from nr.network.checks import image_hw
from nr.network.graph import ADD, CAT, FLAT, IMAGE, MUL, Graph, Node, Outputs, Pick
from nr.network.layers import Classifier, Network
from nr.network.plain import KINDS, Affine, FixedSize, Size
from nr.network.units import Unit
from nr.network.wiring import wiring

CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_")
DIFFERENCES = (operator.sub, operator.isub, torch.sub, "sub", "sub_")
QUOTIENTS = (operator.truediv, operator.itruediv, torch.div, "div", "div_")
# What treats each element by itself.
ELEMENTWISE = tuple(
    cls for cls, kind in KINDS.items() if not kind.resizes and cls not in (nn.Dropout2d, nn.PReLU)
)
HOLDERS = (Graph, Classifier, nn.ModuleList)  # what has no mode of its own


@torch.inference_mode(False)
def convert(model: nn.Module, image_size: int | Size, scales: bool = False) -> Network:
    """``model`` as a network of units with the same weights: [B, C, H, W] -> [B, 1, classes].

    ``image_size``: H = W of its images, or (H, W); where a linear layer reads a whole map, or the
    forward computes with sizes, only this size will do. The logits are the same up to rounding, in
    eval and in train mode (see nr.ConvBN on strided 1x1 convolutions); ``model`` stays as it is and
    shares nothing with the result. A bias before a batch norm moves into its running mean.
    ``scales``: where there is no batch norm, a scale γ = 1 behind each activation whose channels
    are free, which is measured, penalised and rebuilt as any γ. What is taken is in nr/README.md.
    Raises ValueError naming the module, what is wrong and what helps, for all else.
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
    traced = Traced(model, size)
    traced.check()
    with torch.no_grad(), traced.device:
        network = _Converter(traced).network()
        if scales:
            add_scales(network)
    network.image_size = image_size if isinstance(image_size, int) else size
    _keep_modes(network, model.training)
    if any(not parameter.is_contiguous() for parameter in model.parameters()):
        network.to(memory_format=torch.channels_last)
    if not wiring(network).prunable:
        remedy = "give scales=True, or use a variant with batch norm"
        if scales:
            remedy = "sums and products hold all that a scale could stand behind"
        raise ValueError(
            f"{type(model).__name__}: has no batch norm whose channels could go, so nothing can be"
            f" measured: {remedy}"
        )
    return network


def _keep_modes(network: Network, training: bool) -> None:
    """Put the network in its mode, but a frozen batch norm stays in eval mode."""
    parts = [m for m in network.modules() if not isinstance(m, (Network, Unit, *HOLDERS))]
    own = [part for part in parts if type(part) is not nn.Module]  # not the names on a path
    modes = [part.training for part in own]
    network.train(training)
    for part, mode in zip(own, modes, strict=True):
        part.training = mode


class _Value(NamedTuple):
    """A tensor: an activation that a node of the graph gives, and how it was moved since.

    ``source``: the traced node whose shape the activation has. ``moved``: see moves; None where
    it is as it was.
    """

    name: str
    source: fx.Node
    moved: Tensor | None = None

    @property
    def places(self) -> Tensor:
        return moves.places(shape(self.source)) if self.moved is None else self.moved


class _Converter:
    """Makes nodes of the traced ones, in order."""

    def __init__(self, traced: Traced):
        self.traced = traced
        self.nodes: list[Node] = []
        self.modules: dict[str, nn.Module] = {}
        self.values: dict[fx.Node, object] = {}  # a _Value, or several
        self.fixed: dict[fx.Node, Tensor] = {}  # buffers, and what is made of them alone
        self.called: set[str] = set()  # modules with weights that have become part of something

    def network(self) -> Network:
        """The whole network: features up to the last linear layer, which is the classifier."""
        image, outputs = self.traced.nodes[0], self.traced.outputs
        self.values[image] = _Value(IMAGE, image)
        last, alone = outputs[0], self.traced.traces.differs is None
        while alone and isinstance(last, fx.Node) and self.keeps(last):
            last = last.args[0]
        alone = alone and isinstance(last, fx.Node)
        alone = alone and type(self.traced.module(last)) is nn.Linear
        self.heads = {last} if alone else self.found_heads(outputs)
        end = self.traced.nodes.index(last) if alone else -1
        for node in self.traced.nodes[1:end]:
            if has_tensor(node):
                self.values[node] = self.convert(node)
        made, ends = None, (None, None)
        if alone:
            name, window = self.whole_map(last)
            self.take(last)
            made = classifier(self.traced.module(last), window)
            if not self.nodes:
                raise ValueError(f"{last.target}: there is no convolution before it")
            self.end_with(name)
        else:
            ends = self.ends(outputs)
        if self.traced.bound is not None:
            self.bind(FixedSize(self.traced.size, self.traced.bound))
        return Network(Graph(self.nodes, self.modules, *ends), made, self.traced.size)

    def found_heads(self, outputs: object) -> set[fx.Node]:
        """The layers, without a norm behind them, that give the outputs."""
        found: set[fx.Node] = set()
        for end in pytree.tree_leaves(outputs):
            open_ = [end]
            while open_:
                node = open_.pop()
                module = self.traced.module(node) if isinstance(node, fx.Node) else None
                if type(module) in (nn.Linear, nn.Conv2d):
                    found.add(node)
                elif node is None or self.follows(node, module):
                    open_ += [] if node is None else inputs(node)
                else:
                    named = isinstance(end, fx.Node)
                    raise ValueError(
                        f"{self.traced.name(end) if named else type(end).__name__}: the network"
                        " gives this, and has to give the logits of an nn.Linear alone, the maps of"
                        " an nn.Conv2d, or several of them"
                    )
        return found

    def follows(self, node: object, module: nn.Module | None) -> bool:
        """Whether what a node gives is still the output of the layer before it."""
        if not isinstance(node, fx.Node) or node.op in ("placeholder", "get_attr"):
            return False
        weighs = module is not None and [*module.parameters()]
        return not weighs and not isinstance(module, (*BATCH_NORMS, *CONVOLUTIONS))

    def ends(self, outputs: tuple) -> tuple[Outputs, Outputs]:
        """The outputs of eval and of train mode as names of nodes; None where they are the same."""
        names: dict[fx.Node, str] = {}

        def name(node: fx.Node) -> str:
            if node not in names:
                given = self.map(node, node)
                flat = len(shape(node)) == 2
                names[node] = self.join(node, FLAT, [given]).name if flat else given
            return names[node]

        def named(part: object) -> Outputs:
            if isinstance(part, Mapping):
                return {str(key): named(inner) for key, inner in part.items()}
            if isinstance(part, list | tuple):
                return [named(inner) for inner in part]
            return None if part is None else name(part)

        evaluation, training = map(named, outputs)
        return evaluation, training if training != evaluation else None

    def keeps(self, node: fx.Node) -> bool:
        """Whether ``node``, behind the logits, gives just what it reads."""
        flat = isinstance(self.traced.module(node), nn.Identity | nn.Flatten)
        flat = flat or node.target in (torch.flatten, "flatten")
        return flat and len(inputs(node)) == 1 and shape(node) == shape(inputs(node)[0])

    def bind(self, fixed: FixedSize) -> None:
        """Have the image pass ``fixed`` first."""
        name = self.free("size")
        self.modules[name] = fixed
        renamed = [
            node._replace(inputs=tuple(name if n == IMAGE else n for n in node.inputs))
            for node in self.nodes
        ]
        self.nodes = [Node(name, None, (IMAGE,)), *renamed]

    def end_with(self, name: str) -> None:
        """Have the node of this name at the end, which is the output."""
        if self.nodes[-1].name != name:
            self.add("output", nn.Identity(), name)

    def convert(self, node: fx.Node) -> object:
        """What ``node`` gives, with all that it needs written down."""
        module, target = self.traced.module(node), node.target
        read = inputs(node)
        if node.op == "get_attr" or (read and all(n in self.fixed for n in read)):
            return self.fix(node)
        if is_tuple(node):
            return None
        if isinstance(module, BATCH_NORMS):
            return self.norm(node, module)
        if node in self.heads:
            return self.head(node, module)
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            return None if self.is_normed(node) else self.layer(node)
        if module is not None and not isinstance(module, moves.MODULES):
            return self.plain(node, copy.deepcopy(module), [*module.parameters()] != [])
        if target is F.conv2d:
            return self.filter(node)
        if target in PLAIN:
            return self.plain(node, self.function(node))
        if module is not None or target in (*moves.FUNCTIONS, *moves.METHODS):
            return self.move(node)
        if target in CATS:
            return self.cat(node)
        if target in MEANS:
            return self.mean(node)
        if target in SUMS or target in DIFFERENCES:
            return self.sum(node, -1 if target in DIFFERENCES else 1)
        if target in PRODUCTS:
            return self.product(node)
        if target in QUOTIENTS and not isinstance(node.args[1], fx.Node):
            return self.affine(node, 1 / node.args[1], 0)
        what = getattr(target, "__name__", target)
        raise ValueError(f"{self.traced.name(node)}: {what} is not known to nr: use nn modules")

    # What makes channels.

    def is_normed(self, node: fx.Node) -> bool:
        """Whether a batch norm of its own follows a convolution or linear layer."""
        after = list(readers(node))
        return len(after) == 1 and isinstance(self.traced.module(after[0]), BATCH_NORMS)

    def norm(self, node: fx.Node, module: nn.Module) -> _Value:
        """A batch norm: of the unit before it, or one before a convolution."""
        if module.weight is None or module.running_mean is None:
            raise ValueError(
                f"{node.target}: has no scale or no running statistics: affine=True and"
                " track_running_stats=True are needed"
            )
        try:
            after = [] if type(module) in BATCH_NORMS else activations(module)
        except ValueError as error:
            raise ValueError(f"{node.target}: {error}") from error
        before = node.args[0]
        weighs = isinstance(self.traced.module(before), (*CONVOLUTIONS, nn.Linear))
        self.take(node)
        if weighs and self.is_normed(before):
            value = self.layer(before, module)._replace(source=node)
        else:
            value = self.add(str(node.target), norm(module), self.map(node, before), node)
        for child in after:
            name = f"{node.target}_{type(child).__name__.lower()}"
            value = self.add(name, copy.deepcopy(child), value.name, node)
        return value

    def layer(self, node: fx.Node, after: nn.Module | None = None) -> _Value:
        """A convolution, or a linear layer over a whole map, with the batch norm after it."""
        layer = self.traced.module(node)
        if isinstance(layer, nn.Linear):
            name, window = self.whole_map(node)
        else:
            name, window = self.map(node, node.args[0]), None
        self.take(node)
        try:
            made = unit(layer, after, window)
        except ValueError as error:
            raise ValueError(f"{node.target}: {error}") from error
        return self.add(str(node.target), made, name, node)

    def head(self, node: fx.Node, layer: nn.Module) -> _Value:
        """A layer that gives an output."""
        if isinstance(layer, nn.Linear):
            name, window = self.whole_map(node)
            made = classifier(layer, window)
        else:
            name = self.map(node, node.args[0])
            try:
                made = head(layer)
            except ValueError as error:
                raise ValueError(f"{node.target}: {error}") from error
        self.take(node)
        return self.add(str(node.target), made, name, node)

    def whole_map(self, node: fx.Node) -> tuple[str, Size]:
        """What a linear layer reads, flattened, and its (H, W)."""
        value = self.values[node.args[0]]
        found = moves.channels(value.places, shape(value.source)) if value else None
        sides = tuple(shape(value.source)[2:]) or (1, 1) if value else ()
        if found is None or found.spread or len(shape(node)) != 2:
            raise ValueError(
                f"{node.target}: reads {list(shape(node.args[0]))}, and only an nn.Linear over a"
                " map that was flattened is a convolution: put nn.Flatten() before it"
            )
        return self.chosen(node, value, found), sides

    # What changes each channel by itself.

    def plain(self, node: fx.Node, module: nn.Module, weighs: bool = False) -> _Value:
        """A module that treats each channel by itself; wiring tries those it does not know."""
        if weighs:
            self.take(node)
        if len(inputs(node)) != 1:
            kind = type(module).__name__
            raise ValueError(
                f"{self.traced.name(node)}: {kind} reads {len(inputs(node))} activations, and units"
                " read one"
            )
        if len(shape(node)) == 2 and type(module) not in KINDS:
            raise ValueError(
                f"{node.target}: {type(module).__name__} between linear layers is not known to nr"
            )
        value = self.values[inputs(node)[0]]
        if type(module) in ELEMENTWISE and isinstance(value, _Value) and value.moved is not None:
            found = moves.channels(value.moved, shape(value.source))
            if found is not None and found.flat:  # the map itself can as well pass it
                made = self.add(self.traced.name(node), module, value.name, value.source)
                return made._replace(moved=value.moved)
        before = self.map(node, inputs(node)[0])
        return self.add(self.traced.name(node), module, before, node)

    def function(self, node: fx.Node) -> nn.Module:
        """The plain module that a function is."""
        arguments, keywords = self.traced.constant(node, (node.args[1:], node.kwargs))
        try:
            module = plain_module(node.target, arguments, keywords)
        except ValueError as error:
            raise ValueError(f"{self.traced.name(node)}: {error}") from error
        return module.train(self.traced.owner(node).training)

    def mean(self, node: fx.Node) -> _Value:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if not isinstance(dims, list | tuple) or {*dims} not in SPATIAL:
            raise ValueError(
                f"{self.traced.name(node)}: is no mean over H and W in one: use"
                " nn.AdaptiveAvgPool2d(1)"
            )
        pool = nn.AdaptiveAvgPool2d(1).train(self.traced.owner(node).training)
        return self.add(self.traced.name(node), pool, self.map(node, node.args[0]), node)

    def fix(self, node: fx.Node) -> None:
        """A buffer, or what is made of buffers, is known; a parameter is trained."""
        if node.op != "get_attr":
            self.fixed[node] = self.called_with(node, self.fixed)
        elif type(tensor := parameter(node, self.traced.modules)) is Tensor:
            self.fixed[node] = tensor

    def filter(self, node: fx.Node) -> _Value:
        """A convolution with weights that are no parameters."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = dict(zip(names, node.args, strict=False)) | node.kwargs
        given = dict(self.traced.constant(node, given))
        x, weight = given.pop("input"), self.fixed.get(given.pop("weight"))
        if weight is None or given.pop("bias", None) is not None:
            raise ValueError(
                f"{self.traced.name(node)}: computes the weights that it convolves with"
            )
        try:
            made = fixed_filter(weight, given)
        except ValueError as error:
            raise ValueError(f"{self.traced.name(node)}: {error}") from error
        return self.add(self.traced.name(node), made, self.map(node, x), node)

    def affine(self, node: fx.Node, factor: float, term: float) -> _Value:
        """factor·x + term, with constants."""
        (before,) = inputs(node)
        factor, term = self.traced.constant(node, (factor, term))
        module = Affine(float(factor), float(term))
        return self.add(self.traced.name(node), module, self.map(node, before), node)

    # What joins and moves channels.

    def sum(self, node: fx.Node, sign: int) -> _Value:
        """A sum or difference of activations, or with a constant."""
        if node.kwargs.get("alpha", 1) != 1:
            raise ValueError(f"{self.traced.name(node)}: a sum with alpha is not known to nr")
        sides = list(node.args)
        if len(inputs(node)) < 2 and not all(isinstance(side, fx.Node) for side in sides):
            return self.with_constant(node, sign)
        names = [self.map(node, side) for side in sides]
        if sign < 0:
            names[1] = self.add(
                f"{self.traced.name(node)}_negative", Affine(-1.0, 0.0), names[1]
            ).name
        if {tuple(shape(side)) for side in sides} != {tuple(shape(node))}:
            raise ValueError(f"{self.traced.name(node)}: adds activations of different shapes")
        return self.join(node, ADD, names)

    def with_constant(self, node: fx.Node, sign: int) -> _Value:
        a, b = node.args
        if isinstance(a, fx.Node) and has_tensor(a):
            return self.affine(node, 1, -b if sign < 0 else b)
        return self.affine(node, sign, a)

    def product(self, node: fx.Node) -> _Value:
        """A product of two activations, or with a constant or a parameter."""
        a, b = node.args
        for one, other in ((a, b), (b, a)):
            if not (isinstance(other, fx.Node) and has_tensor(other)):
                return self.affine(node, other, 0)
            if other.op == "get_attr":
                return self.scaled(node, one, other)
        return self.join(node, MUL, [self.map(node, side, spread=True) for side in (a, b)])

    def scaled(self, node: fx.Node, value: fx.Node, factor: fx.Node) -> _Value:
        """A product with a parameter of one number a channel."""
        weight = parameter(factor, self.traced.modules)
        wide = weight.ndim > 1 and weight.shape[-2:] != (1, 1)
        if weight.numel() != shape(value)[1] or wide or not isinstance(weight, nn.Parameter):
            raise ValueError(
                f"{self.traced.name(node)}: multiplies by {factor.target}, {list(weight.shape)}:"
                " only a parameter of one number a channel, [C, 1, 1], is known to nr"
            )
        return self.add(self.traced.name(node), scale(weight), self.map(node, value), node)

    def cat(self, node: fx.Node) -> _Value:
        parts = node.args[0] if node.args else node.kwargs["tensors"]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if dim not in (1, 1 - len(shape(node))):
            raise ValueError(f"{self.traced.name(node)}: concatenates along dimension {dim}, not 1")
        return self.join(node, CAT, [self.map(node, part) for part in parts])

    def join(self, node: fx.Node, word: str, names: list[str]) -> _Value:
        name = self.free(self.traced.name(node))
        self.nodes.append(Node(name, word, tuple(names)))
        return _Value(name, node)

    def move(self, node: fx.Node) -> object:
        """What only moves elements, run on their places."""
        value = self.values[inputs(node)[0]]
        if not isinstance(value, _Value):
            return value[node.args[1]]
        read = {n: value.places for n in inputs(node) if self.values.get(n) is value}
        moved = self.called_with(node, read)
        return pytree.tree_map(lambda part: value._replace(moved=part.contiguous()), moved)

    def called_with(self, node: fx.Node, read: dict[fx.Node, Tensor]) -> object:
        """What ``node`` gives for these tensors, with the sizes that it was traced with."""
        known = {n: n.meta[RESULT] for n in node.all_input_nodes} | read
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        module = self.traced.module(node)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return (node.target if module is None else module)(*args, **kwargs)

    def map(self, node: fx.Node, before: fx.Node, spread: bool = False) -> str:
        """The name of the activation [B, C, H, W] that ``node`` reads."""
        value = self.values.get(before)
        found = None
        if isinstance(value, _Value):
            if value.moved is None:
                return value.name
            found = moves.channels(value.moved, shape(value.source))
        if before.op == "get_attr":
            raise ValueError(
                f"{self.traced.name(node)}: {before.target} is computed with outside of a module of"
                " torch's"
            )
        pixels = shape(value.source)[2:].numel() if found else 1
        if found is None or (found.flat and pixels > 1) or (found.spread and not spread):
            raise ValueError(
                f"{self.traced.name(before)}: makes {list(before.meta[RESULT].shape)} of something"
                " else than whole channels, and units read channels"
            )
        return self.chosen(before, value, found)

    def chosen(self, node: fx.Node, value: _Value, found: moves.Channels) -> str:
        """The name of a selection of channels; that of the activation where it is all of them."""
        if torch.equal(found.chosen, torch.arange(shape(value.source)[1], device="cpu")):
            return value.name
        return self.add(
            f"{self.traced.name(node)}_pick", Pick([found.chosen]), value.name, node
        ).name

    # Bookkeeping.

    def add(
        self, name: str, module: nn.Module, before: str, source: fx.Node | None = None
    ) -> _Value:
        """Write down a node that calls a module."""
        name = self.free(name)
        self.nodes.append(Node(name, None, (before,)))
        self.modules[name] = module
        return _Value(name, source)

    def free(self, name: str) -> str:
        """``name``, or it with the first number that makes it new."""
        taken = {node.name for node in self.nodes}

        def clash(text: str) -> bool:
            return any(
                f"{other}.".startswith(f"{text}.") or f"{text}.".startswith(f"{other}.")
                for other in taken
            )

        number, found = 0, name
        while clash(found):
            number += 1
            found = f"{name}_{number}"
        return found

    def take(self, node: fx.Node) -> None:
        """Refuse a module that is called twice: its copies would not share their weights."""
        if node.target in self.called:
            raise ValueError(
                f"{node.target}: is called more than once, and each place in a network of units has"
                " weights of its own: use a module for each"
            )
        self.called.add(node.target)
