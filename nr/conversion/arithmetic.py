"""Sums, differences, products and quotients: of activations, constants and parameters."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from nr.conversion.building import Activation
from nr.conversion.making import gain, scale
from nr.conversion.operands import Operands
from nr.conversion.words import arguments, first, inputs, shape, word
from nr.network.graph import ADD, CAT, MUL
from nr.network.plain import Affine


def sides(node: fx.Node) -> tuple[Any, Any]:
    """The operands of a sum, difference, product or quotient."""
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
    for side in (a, b):
        if side.op == "get_attr":
            raise ValueError(
                f"adds {side.target}, a parameter, which a dead channel would go on saying: use the"
                " bias of a batch norm"
            )
    names = [given.read(side) for side in (a, b)]
    if {shape(a), shape(b)} != {shape(node)}:
        raise ValueError("adds activations of different shapes: give them one")
    if sign < 0:
        name = f"{given.traced.name(node)}_negative"
        names[1] = given.add(name, Affine(-1.0, 0.0), names[1], shape(b)).name
    return given.joined(node, ADD, names)


def product(given: Operands, node: fx.Node) -> Activation:
    """A product of two activations, or with a constant or a parameter."""
    a, b = sides(node)
    for one, other in ((a, b), (b, a)):
        if (number := given.constant(node, other)) is not None:
            return affine(given, node, one, number)
        if other.op == "get_attr":
            return scaled(given, node, one, other)
    if len(shape(node)) > 4 and shape(a)[:-2] != shape(b)[:-2]:
        raise ValueError("multiplies activations of different parts: give them one shape")
    names = [given.read(side, spread=True) for side in (a, b)]
    return given.joined(node, MUL, names)


def quotient(given: Operands, node: fx.Node) -> Activation:
    a, b = sides(node)
    number = given.constant(node, b)
    if number is None:
        raise ValueError("divides by what is no constant: this is not known to nr")
    return affine(given, node, a, 1 / number)


def negative(given: Operands, node: fx.Node) -> Activation:
    return affine(given, node, first(node), -1)


def affine(
    given: Operands, node: fx.Node, x: fx.Node, factor: Any = 1.0, term: Any = 0.0
) -> Activation:
    """factor·x + term with constants: numbers, or for an image one for each channel."""
    before = given.read(x)
    if isinstance(factor, Tensor) or isinstance(term, Tensor):
        made = channelwise(given, node, Activation(before, shape(x)), factor, term)
    else:
        made = given.put(node, Affine(float(factor), float(term)), before)
    if before in given.images:
        given.images.add(made.name)
    return made


def channelwise(given: Operands, node: fx.Node, x: Activation, *constants: Any) -> Activation:
    """factor·x + term of an image, with constants of one number for each channel."""
    count, name = x.shape[1], given.traced.name(node)
    tensors = [torch.as_tensor(constant, device="cpu") for constant in constants]
    if x.name not in given.images or any(t.shape[-3:] not in ((), (count, 1, 1)) for t in tensors):
        raise ValueError(
            f"{_named(given, node)} is computed with outside of a module of torch's, and only"
            " images take constants of one number a channel, [C, 1, 1]: use a module"
        )
    numbers = [tensor.flatten().expand(count).tolist() for tensor in tensors]
    size, parts = torch.Size((x.shape[0], 1, *x.shape[2:])), []
    for channel, (factor, term) in enumerate(zip(*numbers, strict=True)):
        part = given.chosen(f"{name}_pick", x, torch.tensor([channel], device="cpu"))
        parts.append(given.add(f"{name}_channel", Affine(factor, term), part, size).name)
    return given.join(name, CAT, parts, shape(node))


def _named(given: Operands, node: fx.Node) -> str:
    """The constants that an operation reads."""
    fixed = [n for n in inputs(node) if n in given.fixed]
    return ", ".join(str(n.target if n.op == "get_attr" else given.traced.name(n)) for n in fixed)


def scaled(given: Operands, node: fx.Node, x: fx.Node, factor: fx.Node) -> Activation:
    """A product with a parameter of one number, or of one for each channel."""
    weight, size = given.traced.tensor(factor), shape(factor)
    wide = len(size) > 1 and size[-2:] != (1, 1)
    each = size.numel() == shape(x)[1] and not wide
    if not isinstance(weight, nn.Parameter) or not (each or size.numel() == 1):
        raise ValueError(
            f"multiplies by {factor.target}, {list(size)}: only a parameter of one number,"
            " or of one a channel, [C, 1, 1], is known to nr"
        )
    made = scale(weight) if each else gain(weight)
    return given.add(str(factor.target), made, given.read(x), shape(node))
