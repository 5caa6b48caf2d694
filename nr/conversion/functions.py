"""Functions of torch that are plain modules, or become modules of torch."""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from nr.conversion.values import LARGER, RESULT
from nr.conversion.words import arguments, first, in_place, word
from nr.network.plain import KINDS
from nr.network.windows import pair

# Plain modules by the word of their function, without underscores.
_PLAIN = {cls.__name__.lower(): cls for cls in KINDS if cls.__module__.startswith("torch.nn")}
_PLAIN |= {"interpolate": nn.Upsample, "pad": nn.ZeroPad2d}
_OTHER = (nn.Identity, nn.PReLU)  # of which there is no function, or one with a parameter
_PADS = {"constant": nn.ZeroPad2d, "reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d}
_WEIGHING: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
}
_WHOLE = {"avg_pool2d": F.adaptive_avg_pool2d, "max_pool2d": F.adaptive_max_pool2d}


def plain_class(node: fx.Node) -> type[nn.Module] | None:
    """The class of plain modules that does the same as a function."""
    cls = _PLAIN.get(word(node).replace("_", ""))
    return None if cls in _OTHER else cls


def plain_module(
    node: fx.Node, cls: type[nn.Module], constant: Callable[[dict[str, Any]], dict[str, Any]]
) -> nn.Module:
    """The plain module of class ``cls`` for a function, whose arguments ``constant`` reads.

    Raises ValueError for arguments that no such module has.
    """
    names = [name for name in KINDS[cls].arguments if name != "inplace"]
    if word(node) == "pad":
        given = constant(arguments(node, "input", "pad", "mode", "value"))
        padding, sides = _PADS.get(given.get("mode", "constant")), list(given["pad"])
        if padding is None or given.get("value") or any(sides[4:]):
            raise ValueError(
                "only zeros, reflected or repeated pixels can be padded, at H and W, and -inf"
                " before a max pooling: use one of these"
            )
        return padding(tuple(sides[:4]) + (0,) * (4 - len(sides)))
    ignored = ["inplace", "training"] if "dropout" in word(node) else ["inplace"]
    given = constant(arguments(node, "input", *names, *ignored))
    here = {"inplace": True} if in_place(node, None) and "inplace" in KINDS[cls].arguments else {}
    return cls(**{name: value for name, value in given.items() if name in names}, **here)


def rewrite(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Replace nodes of ``graph`` by simpler ones that give exactly the same.

    ``contiguous`` changes no value. A pooling whose window is the map that it reads is an adaptive
    pooling to one pixel. F.conv2d and F.linear of parameters are modules.
    """
    for node in list(graph.nodes):
        if node.target in _WEIGHING:
            _weigh(graph, node, modules)
        elif word(node) == "contiguous":
            node.replace_all_uses_with(first(node))
            graph.erase_node(node)
        elif word(node) in _WHOLE and _is_whole(node):
            _replace(graph, node, _WHOLE[word(node)], (first(node), 1))


def _weigh(graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]) -> None:
    """Replace a function of parameters by a module that has them."""
    given = arguments(node, *_WEIGHING[node.target])
    x, *read = (given.pop(name, None) for name in ("input", "weight", "bias"))
    weight, bias = (_parameter(source, modules) for source in read)
    lost = read[1] is not None and bias is None
    if weight is None or lost or any(isinstance(leaf, fx.Node) for leaf in tree_leaves(given)):
        return
    out, width, *window = weight.shape
    options = given | {"bias": bias is not None, "device": "meta"}
    if node.target is F.linear:
        made: nn.Linear | nn.Conv2d = nn.Linear(width, out, **options)
    else:
        sides = window[0], window[1]
        made = nn.Conv2d(width * given.get("groups", 1), out, sides, **options)
    made.weight = weight
    made.register_parameter("bias", bias)
    path = read[0].target.removesuffix(".weight")
    modules[path] = made.train(modules[read[0].target.rpartition(".")[0]].training)
    _replace(graph, node, path, (x,))


def _parameter(node: object, modules: dict[str, nn.Module]) -> nn.Parameter | None:
    """The parameter that a node gives; None for any other node."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    path, _, name = str(node.target).rpartition(".")
    return modules[path]._parameters.get(name)


def _is_whole(node: fx.Node) -> bool:
    """Whether the window of a pooling is the H and W of its input, without padding."""
    around = ("stride", "padding", "divisor_override", "return_indices")
    names = ("input", "kernel_size", *around[:2])
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    if len(node.args) > 4 or given.get("dilation", 1) != 1 or any(map(given.get, around)):
        return False

    def fits(at: str) -> bool:
        window: Any = fx.node.map_arg(given["kernel_size"], lambda n: n.meta.get(at))
        found = getattr(given["input"].meta.get(at), "shape", ())
        return tuple(pair(window)) == tuple(found[2:])

    return LARGER in node.meta and fits(RESULT) and fits(LARGER)


def _replace(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    """Replace ``node`` by a call of a function, or of the module of this path."""
    with graph.inserting_before(node):
        call: Any = graph.call_module if isinstance(target, str) else graph.call_function
        new = call(target, args)
    new.meta = node.meta
    node.replace_all_uses_with(new)
    graph.erase_node(node)
