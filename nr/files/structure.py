"""A network as plain data, and back.

A description consists of dicts, lists, strings, numbers, bools and None. Each module is a dict with
its ``type``. The only types are those of this page and of the table in nr.network.plain, so a
description from anywhere is safe to build.
"""

from typing import Any

from torch import nn

from nr.network.convolutions import Conv, ConvBN
from nr.network.graph import Graph, Node, Pick
from nr.network.layers import Classifier, Concat, Head, Network, Residual, is_chain
from nr.network.plain import KINDS
from nr.network.units import Norm
from nr.network.wiring import wiring

VERSION = 2
WINDOW = ("kernel_size", "stride", "padding")
# What most units do not have, and what they have instead.
OPTIONS = {
    "dilation": 1,
    "group": None,
    "transposed": False,
    "output_padding": 0,
    "norm_name": None,
    "linear": False,
}
NORM = ("gamma", "eps", "momentum")
HELD = ("keep", "freeze")  # patterns of names, of nr.hold
ENDS = ("outputs", "training_outputs")  # of a graph
CUSTOM = "custom"  # a plain module that is in no table: it has to be given to nr.load


def structure(model: Network) -> dict[str, object]:
    """The whole network without its weights, as plain data for nr.build.

    Of each unit: window, form, widths (one for each stream), batch norm. ``frozen``: the names of
    the parameters that do not train. ``keep``, ``freeze``: as of nr.hold, if there are any. A plain
    module that nr does not know is stored by its name; nr.load takes it from the network that it
    loads into. Raises ValueError for a network that nr cannot follow.
    """
    wiring(model)
    size = model.image_size
    return {
        "version": VERSION,
        "image_size": size if isinstance(size, int) else list(size),
        "features": _described(model.features),
        "classifier": model.classifier and _described_head(model.classifier),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
        **{name: list(getattr(model, name)) for name in HELD if getattr(model, name)},
    }


def _described(module: nn.Module | None) -> dict[str, Any] | None:
    """A module and everything in it."""
    if module is None:
        return None
    if isinstance(module, ConvBN):
        return _described_unit(module)
    if isinstance(module, Norm):
        return _described_norm(module)
    if isinstance(module, Pick):
        return {"type": "Pick", "places": [list(chosen) for chosen in module.places]}
    if isinstance(module, Graph):
        nodes = [_described_node(module, node) for node in module.nodes]
        ends = {name: getattr(module, name) for name in ENDS if getattr(module, name) is not None}
        return {"type": "Graph", "nodes": nodes, **ends}
    if isinstance(module, Classifier):
        return {"type": type(module).__name__, **_described_head(module)}
    if is_chain(module):
        modules = {name: _described(child) for name, child in module._modules.items()}
        return {"type": "Chain", "modules": modules}
    if isinstance(module, Residual | Concat):
        children = {name: _described(child) for name, child in module._modules.items()}
        kind = "Residual" if isinstance(module, Residual) else "Concat"
        found = {"type": kind, "branch": None, "shortcut": None} | children
        linear = isinstance(module, Residual) and module.activation is None
        return found | ({"activation": None} if linear else {})
    if type(module) in KINDS:
        arguments = {name: getattr(module, name) for name in KINDS[type(module)].arguments}
        lists = {n: list(v) if isinstance(v, tuple) else v for n, v in arguments.items()}
        return {"type": type(module).__name__, **lists}
    return {"type": CUSTOM, "class": class_name(module)}


def _described_head(head: Classifier) -> dict[str, Any]:
    maps = head.options() if isinstance(head, Head) else {}
    return {
        "in_channels": list(head.in_channels),
        "num_classes": head.num_classes,
        **({"bias": False} if head.linears[0].bias is None else {}),
        **({"name": head.name} if head.name else {}),
        **({"window": list(head.window)} if head.taps > 1 or maps else {}),
        **{name: list(side) for name, side in maps.items()},
    }


def _described_node(graph: Graph, node: Node) -> dict[str, Any]:
    op = node.op or _described(graph.module(node))
    return {"name": node.name, "op": op, "inputs": list(node.inputs)}


def _described_unit(unit: ConvBN) -> dict[str, Any]:
    """A unit; what most units do not have is named only if it is there."""
    found = {
        "type": "Conv" if isinstance(unit, Conv) else "ConvBN",
        **{name: _listed(getattr(unit, name)) for name in WINDOW},
        "form": unit.form,
        "in_channels": list(unit.in_channels),
        "out_channels": list(unit.out_channels),
    }
    for name, usual in OPTIONS.items():
        if getattr(unit, name, usual) != usual:
            found[name] = _listed(getattr(unit, name))
    if isinstance(unit, Conv):
        return found | ({"bias": False} if unit.norms[0].bias is None else {})
    norm = unit.norms[0]
    return found | {"gamma": unit.gamma, "eps": norm.eps, "momentum": norm.momentum}


def _described_norm(norm: Norm) -> dict[str, Any]:
    found = {"type": "Norm", "channels": list(norm.out_channels), "gamma": norm.gamma}
    own = norm.norms[0]
    batch = isinstance(own, nn.BatchNorm2d)
    return found | ({"eps": own.eps, "momentum": own.momentum} if batch else {"eps": None})


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
