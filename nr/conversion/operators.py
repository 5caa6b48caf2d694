"""What each operation of a traced network becomes in the graph: one table, by word or class.

A handler gets the operands and a node, and gives an activation; ValueErrors say reason and remedy.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from nr.conversion import moves
from nr.conversion.building import Activation
from nr.conversion.functions import plain_class, plain_module
from nr.conversion.making import (
    BatchNorms,
    Weighing,
    activations,
    classifier,
    fixed_filter,
    head,
    norm,
    scale,
    unit,
)
from nr.conversion.modes import FOLLOWS
from nr.conversion.operands import BATCH_NORMS, WEIGHING, Blocked, Operands
from nr.conversion.recording import FROZEN
from nr.conversion.words import arguments, first, inputs, shape, word
from nr.network.convolutions import ConvBN
from nr.network.graph import ADD, CAT, MUL
from nr.network.plain import KINDS, Affine

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm2d, nn.LocalResponseNorm)
NORM_WORDS = ("layer_norm", "group_norm", "rms_norm", "instance_norm", "local_response_norm")
NO_SCALES = (
    " (LayerNorm as in convnext and transformers) is no batch norm, whose scales are measured: only"
    " networks with batch norm after their convolutions can be converted"
)
CONVS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d)
SPATIAL = ({2, 3}, {-1, -2})  # dimensions whose mean is a global average pooling
# What treats each element by itself.
ELEMENTWISE = tuple(
    cls for cls, kind in KINDS.items() if not kind.resizes and cls not in (nn.Dropout2d, nn.PReLU)
)


def converted(given: Operands, node: fx.Node) -> object:
    """What ``node`` gives, with all that it needs written down; None for what is not read."""
    module, read = given.module(node), inputs(node)
    if node.op == "get_attr" or (read and all(n in given.fixed for n in read)):
        given.fix(node)
        return None
    if module is not None:
        return called(given, node, module)
    if word(node) in OPERATORS:
        return OPERATORS[word(node)](given, node)
    if word(node) in moves.WORDS:
        return move(given, node)
    if (cls := plain_class(node)) is not None:
        return function(given, node, cls)
    what = getattr(node.target, "__name__", str(node.target))
    if word(node) in NORM_WORDS:
        raise ValueError(what + NO_SCALES)
    raise ValueError(f"{what} is not known to nr: use nn modules")


# Modules.


def called(given: Operands, node: fx.Node, module: nn.Module) -> object:
    refuse_others(node, module)
    if isinstance(module, BATCH_NORMS):
        return normed(given, node, module)
    if isinstance(module, WEIGHING):
        return None if given.is_normed(node) else layer(given, node, module)
    if isinstance(module, moves.MODULES):
        return move(given, node)
    made = plain(given, node, copy.deepcopy(module))
    if [*module.parameters()]:
        given.take(node)
    return made


def refuse_others(node: fx.Node, module: nn.Module) -> None:
    """Refuse the modules of torch that have no exact form in units."""
    kind = type(module).__name__
    if isinstance(module, NORMS):
        raise ValueError(kind + NO_SCALES)
    if isinstance(module, CONVS):
        raise ValueError(f"{kind} is no nn.Conv2d, which is the only convolution that units have")
    if kind == FROZEN:
        raise ValueError(
            "FrozenBatchNorm2d has no scale that is trained, so nothing of it can be measured:"
            " use nn.BatchNorm2d, in eval mode and without gradients where it is to be frozen"
        )
    if len(inputs(node)) != 1:
        raise ValueError(f"{kind} reads {len(inputs(node))} activations, and units read one")


def normed(given: Operands, node: fx.Node, module: BatchNorms) -> Activation:
    """A batch norm: of the unit before it, or one before a convolution; its activations after."""
    if module.weight is None or module.running_mean is None:
        raise ValueError(
            "has no scale or no running statistics: affine=True and track_running_stats=True are"
            " needed"
        )
    after = [] if type(module) in BATCH_NORMS else activations(module)
    before = first(node)
    weighing = given.module(before) if given.is_normed(before) else None
    if isinstance(weighing, WEIGHING) and given.values.get(before) is None:
        try:
            value = layer(given, before, weighing, module)
            cast(ConvBN, given.modules[value.name]).norm_name = str(node.target)
        except ValueError as error:
            raise (error if isinstance(error, Blocked) else Blocked(before, str(error))) from error
    else:
        value = given.put(node, norm(module), given.read(before))
    given.take(node)
    for child in after:
        name = f"{node.target}_{type(child).__name__.lower()}"
        value = given.add(name, copy.deepcopy(child), value.name, shape(node))
    return value


def layer(
    given: Operands, node: fx.Node, module: Weighing, after: BatchNorms | None = None
) -> Activation:
    """A convolution, or a linear layer over a whole map, with the batch norm after it."""
    linear = isinstance(module, nn.Linear)
    name, window = given.whole_map(node) if linear else (given.read(first(node)), None)
    given.take(node)
    made = unit(module, after, window)
    made.linear = linear
    return given.put(node, made, name)


def ending(given: Operands, node: fx.Node, module: nn.Linear | nn.Conv2d) -> Activation:
    """A layer that gives an output."""
    if isinstance(module, nn.Linear):
        name, window = given.whole_map(node)
        given.take(node)
        return given.put(node, classifier(module, window), name)
    name = given.read(first(node))
    given.take(node)
    return given.put(node, head(module), name)


# What changes each channel by itself.


def plain(given: Operands, node: fx.Node, module: nn.Module) -> Activation:
    """A module that treats each channel by itself; wiring tries those it does not know."""
    (before,) = inputs(node)
    if len(shape(node)) == 2 and type(module) not in KINDS:
        raise ValueError(
            f"{type(module).__name__} between linear layers is not known to nr: use one of torch's"
        )
    value = given.values[before]
    if type(module) in ELEMENTWISE and isinstance(value, Activation) and value.moved is not None:
        found = value.channels
        if found is None or found.flat:  # before it is moved it can as well pass it
            if hasattr(module, "inplace") and value.moved.numel() < value.shape.numel():
                vars(module)["inplace"] = False  # others read the rest
            made = given.add(given.traced.name(node), module, value.name, value.shape)
            return made._replace(moved=value.moved)
    return given.put(node, module, given.read(before))


def function(given: Operands, node: fx.Node, cls: type[nn.Module]) -> Activation:
    """A function that is a plain module."""
    if "dropout" in word(node) and not node.meta[FOLLOWS]:
        raise ValueError("the mode of this functional dropout is fixed: use nn.Dropout")
    module = plain_module(node, cls, lambda argument: given.traced.constant(node, argument))
    return plain(given, node, in_mode(given, node, module))


def in_mode(given: Operands, node: fx.Node, module: nn.Module) -> nn.Module:
    """``module`` in the mode of the one in whose forward ``node`` is."""
    return module.train(given.traced.modules[given.traced.path(node)].training)


def mean(given: Operands, node: fx.Node) -> Activation:
    dims = arguments(node, "input", "dim", "keepdim").get("dim")
    if not isinstance(dims, list | tuple) or {*dims} not in SPATIAL:
        raise ValueError("is no mean over H and W in one: use nn.AdaptiveAvgPool2d(1)")
    pool = in_mode(given, node, nn.AdaptiveAvgPool2d(1))
    return given.put(node, pool, given.read(first(node)))


def filtered(given: Operands, node: fx.Node) -> Activation:
    """A convolution with weights that are no parameters."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    options = dict(given.traced.constant(node, arguments(node, *names)))
    x, weight = options.pop("input"), given.fixed.get(options.pop("weight"))
    if weight is None or options.pop("bias", None) is not None:
        raise ValueError("computes the weights that it convolves with: use nn.Conv2d")
    return given.put(node, fixed_filter(weight, options), given.read(x))


def affine(
    given: Operands, node: fx.Node, x: fx.Node, factor: Any = 1.0, term: Any = 0.0
) -> Activation:
    """factor·x + term, with constants."""
    if isinstance(factor, Tensor) or isinstance(term, Tensor):
        raise ValueError("computes with constants of several numbers: use modules of torch")
    return given.put(node, Affine(float(factor), float(term)), given.read(x))


def scaled(given: Operands, node: fx.Node, x: fx.Node, factor: fx.Node) -> Activation:
    """A product with a parameter of one number a channel."""
    weight = given.traced.tensor(factor)
    size = shape(factor)
    wide = len(size) > 1 and size[-2:] != (1, 1)
    if size.numel() != shape(x)[1] or wide or not isinstance(weight, nn.Parameter):
        raise ValueError(
            f"multiplies by {factor.target}, {list(size)}: only a parameter of one number"
            " a channel, [C, 1, 1], is known to nr"
        )
    return given.add(str(factor.target), scale(weight), given.read(x), shape(node))


# What joins and moves channels.


def sides(node: fx.Node) -> tuple[Any, Any]:
    """What a sum, difference, product or quotient is of."""
    found = arguments(node, "input", "other", "alpha")
    if found.get("alpha", 1) != 1:
        raise ValueError("a sum with alpha is not known to nr: multiply before it")
    return found["input"], found["other"]


def add(given: Operands, node: fx.Node) -> Activation:
    """A sum or difference of activations, or with a constant."""
    a, b = sides(node)
    sign = -1 if word(node) == "sub" else 1
    left, right = (given.constant(node, side) for side in (a, b))
    if right is not None:
        return affine(given, node, a, term=sign * right)
    if left is not None:
        return affine(given, node, b, sign, left)
    names = [given.read(side) for side in (a, b)]
    if {shape(a), shape(b)} != {shape(node)}:
        raise ValueError("adds activations of different shapes: give them one")
    if sign < 0:
        name = f"{given.traced.name(node)}_negative"
        names[1] = given.add(name, Affine(-1.0, 0.0), names[1], shape(b)).name
    return given.join(given.traced.name(node), ADD, names, shape(node))


def product(given: Operands, node: fx.Node) -> Activation:
    """A product of two activations, or with a constant or a parameter."""
    a, b = sides(node)
    for one, other in ((a, b), (b, a)):
        if (number := given.constant(node, other)) is not None:
            return affine(given, node, one, number)
        if other.op == "get_attr":
            return scaled(given, node, one, other)
    names = [given.read(side, spread=True) for side in (a, b)]
    return given.join(given.traced.name(node), MUL, names, shape(node))


def quotient(given: Operands, node: fx.Node) -> Activation:
    a, b = sides(node)
    number = given.constant(node, b)
    if number is None:
        raise ValueError("divides by what is no constant: this is not known to nr")
    return affine(given, node, a, 1 / number)


def negative(given: Operands, node: fx.Node) -> Activation:
    return affine(given, node, first(node), -1)


def cat(given: Operands, node: fx.Node) -> Activation:
    found = arguments(node, "tensors", "dim")
    dim = found.get("dim", 0)
    if dim not in (1, 1 - len(shape(node))):
        raise ValueError(f"concatenates along dimension {dim}, not 1: only channels can be")
    names = [given.read(part) for part in found["tensors"]]
    return given.join(given.traced.name(node), CAT, names, shape(node))


def move(given: Operands, node: fx.Node) -> object:
    """What only moves elements, run on their places."""
    value = given.values[inputs(node)[0]]
    if not isinstance(value, Activation):
        return value[node.args[1]]
    read = {n: given.values[n].places for n in inputs(node) if given.values.get(n) is value}
    read |= {n: given.fixed[n].cpu() for n in inputs(node) if n in given.fixed}
    found = given.called_with(node, read)
    return pytree.tree_map(lambda part: value._replace(moved=part.contiguous()), found)


def copied(given: Operands, node: fx.Node) -> object:
    """A copy, which what follows may change in place."""
    value = given.values[first(node)]
    if not isinstance(value, Activation) or value.moved is not None:
        return move(given, node)
    return given.join(given.traced.name(node), CAT, [value.name], shape(node))


OPERATORS: dict[str, Callable[[Operands, fx.Node], object]] = {
    "add": add,
    "sub": add,
    "mul": product,
    "div": quotient,
    "neg": negative,
    "cat": cat,
    "clone": copied,
    "mean": mean,
    "conv2d": filtered,
}
