"""Functions and methods of torch in a traced graph that are plain modules, or can become one."""

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from nr.conversion.recording import DROPOUTS
from nr.conversion.values import RESULT

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
_WEIGHING = {
    F.linear: ("weight", "bias"),
    F.conv2d: ("weight", "bias", "stride", "padding", "dilation", "groups"),
}
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
    that it reads, whatever that is, is an adaptive pooling to one pixel; F.conv2d and F.linear with
    parameters are modules; a part of several that nobody reads goes.
    """
    for node in list(graph.nodes):
        if node.target is operator.getitem and not node.users:
            graph.erase_node(node)
        elif node.target in _WEIGHING:
            _weigh(graph, node, modules)
        elif (node.op, node.target) == ("call_method", "contiguous"):
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
    _logits(graph, modules)


def parameter(node: fx.Node, modules: dict[str, nn.Module]) -> object:
    """The parameter or buffer that a node gives; None for what a forward makes, or any other."""
    path, _, name = str(node.target).rpartition(".")
    return getattr(modules[path], name, None) if node.op == "get_attr" else None


def _weigh(graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Have a function with parameters as a module, in the place of the one that has them."""
    given = dict(zip(("input", *_WEIGHING[node.target]), node.args, strict=False)) | node.kwargs
    x, *read = (given.pop(name, None) for name in ("input", "weight", "bias"))
    weight, bias = (parameter(n, modules) if isinstance(n, fx.Node) else n for n in read)
    lost = isinstance(read[1], fx.Node) and bias is None
    if not isinstance(weight, nn.Parameter) or lost or any(_is_node(a) for a in given.values()):
        return
    out, width, *window = weight.shape
    options = given | {"bias": bias is not None, "device": "meta"}
    if node.target is F.linear:
        made = nn.Linear(width, out, **options)
    else:
        made = nn.Conv2d(width * given.get("groups", 1), out, window, **options)
    made.weight, made.bias = weight, bias
    path = read[0].target.removesuffix(".weight")
    modules[path] = made.train(modules[read[0].target.rpartition(".")[0]].training)
    _replace(graph, node, path, (x,))
    for source in read:
        if isinstance(source, fx.Node) and not source.users:
            graph.erase_node(source)


def _logits(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Have a 1x1 convolution of one pixel, flattened at the end, as a linear layer."""
    flat = next(reversed(graph.nodes)).args[0]
    conv = flat.args[0] if isinstance(flat, fx.Node) and flat.args else None
    layer = modules.get(conv.target) if isinstance(conv, fx.Node) else None
    flattens = type(modules.get(flat.target)) is nn.Flatten if layer is not None else False
    if type(layer) is not nn.Conv2d or not (flattens or flat.target in (torch.flatten, "flatten")):
        return
    alone = layer.kernel_size == (1, 1) and layer.groups == 1 and len(conv.users) == 1
    (x,) = conv.args
    if not alone or x.meta[RESULT].shape[2:] != (1, 1) or flat.meta[RESULT].ndim != 2:
        return
    made = nn.Linear(*layer.weight.shape[1::-1], bias=layer.bias is not None, device="meta")
    frozen = not layer.weight.requires_grad
    made.weight = nn.Parameter(layer.weight.detach().flatten(1), requires_grad=not frozen)
    made.bias = layer.bias
    modules[conv.target] = made.train(layer.training)
    with graph.inserting_before(conv):
        read = graph.call_function(torch.flatten, (x, 1))
        read.meta = dict(conv.meta) | {RESULT: x.meta[RESULT].flatten(1)}
    conv.args = (read,)
    conv.meta[RESULT] = flat.meta[RESULT]
    flat.replace_all_uses_with(conv)
    graph.erase_node(flat)


def _is_node(argument: object) -> bool:
    return any(isinstance(leaf, fx.Node) for leaf in tree_leaves(argument))


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


def _replace(graph: fx.Graph, node: fx.Node, target: Callable | str, args: tuple) -> None:
    """Have a call of a function, or of the module of this path, in the place of ``node``."""
    with graph.inserting_before(node):
        call = graph.call_module if isinstance(target, str) else graph.call_function
        new = call(target, args)
    new.meta = node.meta
    node.replace_all_uses_with(new)
    graph.erase_node(node)
