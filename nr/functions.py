"""Functions and methods of torch in a traced graph that are plain modules, or can become one."""

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx, nn

from nr.recording import DROPOUTS
from nr.values import RESULT

_POOL = ("kernel_size", "stride", "padding")
# Functions and methods that are plain modules: the module, and their arguments in order.
PLAIN = {
    function: (cls, arguments)
    for functions, cls, arguments in (
        ((F.relu, torch.relu, torch.relu_, "relu", "relu_"), nn.ReLU, ()),
        ((F.relu6,), nn.ReLU6, ()),
        ((F.leaky_relu,), nn.LeakyReLU, ("negative_slope",)),
        ((F.hardtanh,), nn.Hardtanh, ("min_val", "max_val")),
        ((F.silu,), nn.SiLU, ()),
        ((F.mish,), nn.Mish, ()),
        ((F.hardswish,), nn.Hardswish, ()),
        ((F.gelu,), nn.GELU, ("approximate",)),
        ((F.elu,), nn.ELU, ("alpha",)),
        ((F.celu,), nn.CELU, ("alpha",)),
        ((F.selu,), nn.SELU, ()),
        ((torch.tanh, F.tanh, "tanh"), nn.Tanh, ()),
        ((torch.sigmoid, F.sigmoid, "sigmoid"), nn.Sigmoid, ()),
        ((F.hardsigmoid,), nn.Hardsigmoid, ()),
        ((F.softsign,), nn.Softsign, ()),
        ((F.softplus,), nn.Softplus, ("beta", "threshold")),
        ((F.dropout,), nn.Dropout, ("p",)),
        ((F.dropout2d,), nn.Dropout2d, ("p",)),
        ((F.max_pool2d,), nn.MaxPool2d, (*_POOL, "dilation", "ceil_mode")),
        (
            (F.avg_pool2d,),
            nn.AvgPool2d,
            (*_POOL, "ceil_mode", "count_include_pad", "divisor_override"),
        ),
        ((F.adaptive_avg_pool2d,), nn.AdaptiveAvgPool2d, ("output_size",)),
        ((F.adaptive_max_pool2d,), nn.AdaptiveMaxPool2d, ("output_size",)),
        ((F.interpolate,), nn.Upsample, ("size", "scale_factor", "mode", "align_corners")),
        ((F.pad,), nn.ZeroPad2d, ("padding", "mode", "value")),
    )
    for function in functions
}
_OTHER_NAMES = {"pad": "padding"}
_PADS = {"constant": nn.ZeroPad2d, "reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}
_SIGMOIDS = (torch.sigmoid, F.sigmoid, "sigmoid")
_PRODUCTS = (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_")
_WHOLE = {F.avg_pool2d: F.adaptive_avg_pool2d, F.max_pool2d: F.adaptive_max_pool2d}


def plain_module(function: object, arguments: tuple, keywords: dict) -> nn.Module:
    """The plain module that a function of PLAIN is, with its arguments but the first.

    Raises ValueError for arguments that no such module has.
    """
    cls, names = PLAIN[function]
    given = dict(zip(names, arguments, strict=False))
    given |= {_OTHER_NAMES.get(name, name): value for name, value in keywords.items()}
    given = {name: value for name, value in given.items() if name not in ("input", "inplace")}
    if function in DROPOUTS:
        given.pop("training", None)
    if function is F.pad:
        cls = _PADS.get(given.pop("mode", "constant"))
        sides = given["padding"]
        if cls is None or given.pop("value", None) or any(sides[4:]):
            raise ValueError("only zeros, reflected or repeated pixels can be padded, at H and W")
        given["padding"] = tuple(sides[:4]) + (0,) * (4 - len(sides))
    odd = {name for name in {*given} - {*names} if given[name]}  # None and False change nothing
    if odd:
        raise ValueError(f"{sorted(odd)} are not known to nr here")
    return cls(**{name: value for name, value in given.items() if name in names})


def rewrite(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Put the nodes of ``graph`` that have a simpler form into it, exactly.

    ``contiguous`` changes no value; x·sigmoid(x) is silu; a window that is as large as the map
    that it reads, whatever that is, is an adaptive pooling to one pixel.
    """
    for node in list(graph.nodes):
        if (node.op, node.target) == ("call_method", "contiguous"):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in _PRODUCTS and len(node.args) == 2:
            a, b = node.args
            for x, gate in ((a, b), (b, a)):
                if _is_sigmoid(gate, modules) and gate.args[0] is x and len(gate.users) == 1:
                    _replace(graph, node, F.silu, (x,))
                    graph.erase_node(gate)
                    break
        elif node.target in _WHOLE and _is_whole(node):
            _replace(graph, node, _WHOLE[node.target], (node.args[0], 1))


def _is_sigmoid(node: object, modules: dict[str, nn.Module]) -> bool:
    if not isinstance(node, fx.Node):
        return False
    called = node.op == "call_module" and type(modules[node.target]) is nn.Sigmoid
    return called or node.target in _SIGMOIDS


def _is_whole(node: fx.Node) -> bool:
    """Whether the window of a pooling is its own input's H and W, and nothing is around it."""
    given = dict(zip(("kernel_size",), node.args[1:], strict=False)) | node.kwargs
    window, dilation = given.pop("kernel_size", ()), given.pop("dilation", 1)
    given.pop("count_include_pad", None)
    if len(node.args) > 2 or dilation != 1 or any(given.values()):
        return False
    parts = window if isinstance(window, list | tuple) else [window]
    return [dim for part in parts for dim in _dims(part)] == [(node.args[0], 2), (node.args[0], 3)]


def _dims(node: object) -> list[tuple[fx.Node, int]]:
    """The dimensions of which tensors a number, or several, is."""
    if not isinstance(node, fx.Node):
        return [(node, -1)]
    source = node.args[0]
    if node.target is operator.getitem:
        found = _dims(source)[node.args[1]] if isinstance(source, fx.Node) else []
        return found if isinstance(found, list) else [found]
    rank = getattr(source.meta.get(RESULT), "ndim", 0) if isinstance(source, fx.Node) else 0
    every = [(source, dim) for dim in range(rank)]
    if (node.target, node.args[1:]) in ((getattr, ("shape",)), ("size", ())):
        return every
    return [every[node.args[1]]] if node.target == "size" and rank else [(node, -1)]


def _replace(graph: fx.Graph, node: fx.Node, target: Callable, args: tuple) -> None:
    with graph.inserting_before(node):
        new = graph.call_function(target, args)
    new.meta = node.meta
    node.replace_all_uses_with(new)
    graph.erase_node(node)
