"""What each operation of a traced network becomes in the graph: one table, by word or class.

A handler takes the operands and a node, and gives an activation. Its ValueErrors say reason and
remedy.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.utils._pytree as pytree
from torch import fx, nn

from nr.conversion import moves
from nr.conversion.arithmetic import add, negative, product, quotient
from nr.conversion.building import Activation
from nr.conversion.functions import plain_class
from nr.conversion.making import fixed_filter
from nr.conversion.modules import NO_SCALES, NORM_WORDS, called, function, in_mode, pad
from nr.conversion.operands import Operands
from nr.conversion.words import arguments, first, inputs, shape, word
from nr.network.graph import ADD, CAT
from nr.network.plain import Affine

REDUCING = ("input", "dim", "keepdim", "dtype", "_stacklevel")  # arguments of means and sums
MAKING = ("tensor", "as_tensor", "full", "ones", "zeros")  # functions that make constants


def converted(given: Operands, node: fx.Node) -> object:
    """What ``node`` becomes, with all that it needs; None if it is not read."""
    module, read = given.module(node), inputs(node)
    made = word(node) in MAKING or (read and all(n in given.fixed for n in read))
    if node.op == "get_attr" or made:
        given.fix(node)
        return None
    if word(node) in OPERATORS:
        return OPERATORS[word(node)](given, node)
    if isinstance(module, moves.MODULES) or word(node) in moves.WORDS:
        return move(given, node)
    if module is not None:
        return called(given, node, module)
    if (cls := plain_class(node)) is not None:
        return function(given, node, cls)
    what = getattr(node.target, "__name__", str(node.target))
    if word(node) in NORM_WORDS:
        raise ValueError(what + NO_SCALES)
    raise ValueError(f"{what} is not known to nr: use nn modules")


def mean(given: Operands, node: fx.Node) -> Activation:
    """A mean over H, W or both."""
    value, dims = _reduced(given, node)
    whole = moves.averaged(value.places, value.shape, dims)
    if whole is None:
        raise ValueError(
            "is no mean over H and W in one, or over one of them, and mixes channels: use"
            " nn.AdaptiveAvgPool2d(1)"
        )
    sides = 1 if all(whole) else tuple(1 if gone else None for gone in whole)
    pool = in_mode(given, node, nn.AdaptiveAvgPool2d(sides))
    after = [1 if gone else side for side, gone in zip(value.shape[2:], whole, strict=True)]
    size = torch.Size((*value.shape[:2], *after))
    made = given.add(given.traced.name(node), pool, value.name, size)
    kept = value.places
    for dim in sorted(dims, reverse=True):
        kept = kept.select(dim, 0)
    moved = moves.pooled(kept, value.shape, whole).view(shape(node))
    return made if torch.equal(moved, made.places) else made._replace(moved=moved)


def _reduced(given: Operands, node: fx.Node) -> tuple[Activation, set[int]]:
    """The operand of a mean or sum, and the dimensions that it is over."""
    found = arguments(node, *REDUCING)
    value, dims = given.value(found["input"]), found.get("dim")
    dims = (dims,) if isinstance(dims, int) else dims or range(value.places.ndim)
    return value, {dim % value.places.ndim for dim in dims}


def total(given: Operands, node: fx.Node) -> Activation:
    """A sum over parts of the channels, all of the same width."""
    names = _parts(given, node)
    return given.joined(node, ADD, names)


def softmax(given: Operands, node: fx.Node) -> Activation:
    """Of two parts of the channels: the sigmoid of their difference."""
    names = _parts(given, node)
    name, size = given.traced.name(node), given.shapes[names[0]]
    if len(names) != 2:
        raise ValueError(f"softmax of {len(names)} parts mixes channels: take two, or a sigmoid")
    gates = []
    for one, other in (names, names[::-1]):
        minus = given.add(f"{name}_negative", Affine(-1.0, 0.0), other, size)
        both = given.join(f"{name}_difference", ADD, [one, minus.name], size)
        gates.append(given.add(f"{name}_sigmoid", nn.Sigmoid(), both.name, size).name)
    return stacked(given, node, gates, arguments(node, *REDUCING)["dim"])


def _parts(given: Operands, node: fx.Node) -> list[str]:
    """The parts of the channels that stand side by side along a dimension."""
    value, dims = _reduced(given, node)
    found = [
        value._replace(moved=p) for d in dims for p in moves.parts(value.places, value.shape, d)
    ]
    if len(dims) > 1 or found[0].places.shape[1] == 1 or found[0].channels is None:
        raise ValueError(
            f"{word(node)} over something else than two or more parts of whole channels mixes"
            " channels, or depends on the size of the map: use a mean over H and W"
        )
    return [given.part(inputs(node)[0], part) for part in found]


def stack(given: Operands, node: fx.Node) -> Activation:
    found = arguments(node, "tensors", "dim")
    names = [given.read(part) for part in found["tensors"]]
    return stacked(given, node, names, found.get("dim", 0))


def stacked(given: Operands, node: fx.Node, names: list[str], dim: int) -> Activation:
    """Activations side by side along a new dimension."""
    own, size = list(shape(node)), given.shapes[names[0]]
    del own[dim]
    whole = torch.Size((size[0], size[1] * len(names), *size[2:]))
    value = given.join(given.traced.name(node), CAT, names, whole)
    each = [part.reshape(own) for part in value.places.chunk(len(names), 1)]
    return value._replace(moved=torch.stack(each, dim % (len(own) + 1)))


def filtered(given: Operands, node: fx.Node) -> Activation:
    """A convolution whose weights are no parameters."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    options = dict(given.traced.constant(node, arguments(node, *names)))
    x, weight = options.pop("input"), given.fixed.get(options.pop("weight"))
    if weight is None or options.pop("bias", None) is not None:
        raise ValueError("computes the weights that it convolves with: use nn.Conv2d")
    return given.put(node, fixed_filter(weight, options), given.read(x))


def cat(given: Operands, node: fx.Node) -> Activation:
    found = arguments(node, "tensors", "dim")
    dim = found.get("dim", 0)
    if dim not in (1, 1 - len(shape(node))):
        raise ValueError(f"concatenates along dimension {dim}, not 1: only channels can be")
    names = [given.read(part) for part in found["tensors"]]
    return given.join(given.traced.name(node), CAT, names, shape(node))


def move(given: Operands, node: fx.Node) -> object:
    """An operation that only moves elements, run on their places."""
    value = given.values.get(inputs(node)[0])
    if isinstance(value, list | tuple) and not isinstance(value, Activation):
        return value[cast(int, node.args[1])]
    value = given.value(inputs(node)[0])
    read = {n: given.values[n].places for n in inputs(node) if given.values.get(n) is value}
    read |= {n: given.fixed[n].cpu() for n in inputs(node) if n in given.fixed}
    found = given.called_with(node, read)
    return pytree.tree_map(lambda part: value._replace(moved=part.contiguous()), found)


def copied(given: Operands, node: fx.Node) -> object:
    """A copy, which what follows may change in place."""
    value = given.value(first(node))
    if value.moved is not None:
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
    "pad": pad,
    "softmax": softmax,
    "stack": stack,
    "sum": total,
    "conv2d": filtered,
}
