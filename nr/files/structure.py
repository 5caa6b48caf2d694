"""A network whole as plain data, and back.

A description is made of dicts, lists, strings, numbers, bools and None only. Each module is a dict
with its ``type``; the types that exist are those of this page and of nr.network.plain's table, so a
description from anywhere is safe to build.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import count

import torch
from torch import nn

from nr.network.checks import image_hw
from nr.network.graph import Graph, Node, Outputs, Pick
from nr.network.layers import Chain, Classifier, Concat, Head, Network, Residual, is_chain
from nr.network.plain import BY_NAME, KINDS
from nr.network.units import FORMS, Conv, ConvBN, Norm, pair
from nr.network.wiring import wiring

VERSION = 2
READ = (1, 2)  # versions; the first has neither graphs nor norms before convolutions
# Bounds on what a description may ask for; the widest published networks stay far below.
LARGEST_WIDTH = 2**20  # channels or classes
LARGEST_WINDOW = 2**10  # pixels of a kernel, stride or padding
MOST_MODULES = 10_000
DEEPEST = 64  # containers in containers
WINDOW = ("kernel_size", "stride", "padding")
# What most units do not have, and what they have instead.
OPTIONS = {
    "dilation": 1,
    "group": None,
    "transposed": False,
    "output_padding": 0,
}
NORM = ("gamma", "eps", "momentum")
ENDS = ("outputs", "training_outputs")  # of a graph
CUSTOM = "custom"  # a plain module that is in no table: it has to be given to nr.load

Custom = Callable[[str, str], nn.Module]  # (place, class) -> the module


def structure(model: Network) -> dict:
    """The whole network but for its weights, as plain data that nr.build takes.

    Of each unit: window, form, widths (one a stream), batch norm. ``frozen``: the names of the
    parameters that do not train. A plain module that nr does not know is named only; nr.load takes
    it from the model that it loads into. Raises ValueError for a network that nr cannot follow.
    """
    wiring(model)
    size = model.image_size
    return {
        "version": VERSION,
        "image_size": size if isinstance(size, int) else list(size),
        "features": _described(model.features),
        "classifier": model.classifier and _described_head(model.classifier),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
    }


def _described(module: nn.Module | None) -> dict | None:
    """One module and all in it."""
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


def _described_head(head: Classifier) -> dict:
    maps = isinstance(head, Head)
    return {
        "in_channels": list(head.in_channels),
        "num_classes": head.num_classes,
        **({"bias": False} if head.linears[0].bias is None else {}),
        **({"window": list(head.window)} if head.taps > 1 or maps else {}),
        **({name: list(side) for name, side in head.options().items()} if maps else {}),
    }


def _described_node(graph: Graph, node: Node) -> dict:
    op = node.op or _described(graph.module(node))
    return {"name": node.name, "op": op, "inputs": list(node.inputs)}


def _described_unit(unit: ConvBN) -> dict:
    """A unit; what most units do not have is named only where it is there."""
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


def _described_norm(norm: Norm) -> dict:
    found = {"type": "Norm", "channels": list(norm.out_channels), "gamma": norm.gamma}
    own = norm.norms[0]
    batch = isinstance(own, nn.BatchNorm2d)
    return found | ({"eps": own.eps, "momentum": own.momentum} if batch else {"eps": None})


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


@torch.inference_mode(False)
def build(structure: Mapping) -> Network:
    """Make the network that ``structure`` describes, with fresh weights.

    Raises ValueError for anything that nr.structure would not write or that does not fit together;
    no memory is taken for weights before all of it was checked.
    """
    build_on_meta(structure)
    return _built(structure, _no_custom)


def build_on_meta(structure: Mapping, custom: Custom | None = None) -> Network:
    """Build without memory for weights, with ``custom`` modules, and walk the result."""
    try:
        with torch.device("meta"):
            network = _built(structure, custom or _no_custom)
    except ValueError:
        raise
    except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"structure: not as nr.structure writes it: {reason}") from error
    wiring(network)
    return network


def _no_custom(place: str, name: str) -> nn.Module:
    raise ValueError(
        f"structure: {place} is a {name[:100]}, which nr does not know: give a network that has it"
        " to nr.load(path, into=network)"
    )


def _built(structure: Mapping, custom: Custom) -> Network:
    _keys("the network", structure, ("version", "image_size", "features", "classifier"), "frozen")
    if structure["version"] not in READ:
        raise ValueError(f"structure: version {structure['version']!r}, expected one of {READ}")
    size = image_hw(structure["image_size"])
    described = structure["classifier"]
    head = None if described is None else _head("classifier", described)
    features = _Builder(custom).module("features", structure["features"], DEEPEST)
    size = size[0] if isinstance(structure["image_size"], int) else size
    network = Network(features, head, size)
    if "frozen" in structure:  # older descriptions do not say it
        freeze(network, structure["frozen"])
    return network


def freeze(network: Network, names: object) -> None:
    """Freeze the parameters ``names`` of ``network``, and no others. Raises ValueError."""
    parameters = dict(network.named_parameters())
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("structure: frozen: a list of names of parameters is needed")
    if odd := sorted({*names} - parameters.keys()):
        raise ValueError(f"structure: frozen: {odd[0][:100]!r} is no parameter of this network")
    frozen = {*names}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in frozen)


class _Builder:
    """Makes modules from their descriptions, and counts them."""

    def __init__(self, custom: Custom):
        self.custom, self.count = custom, count(1)
        self.tried: set[tuple[type, str]] = set()  # plain modules with arguments that work

    def module(self, place: str, node: object, depth: int) -> nn.Module:
        """One module and all in it."""
        if not isinstance(node, dict) or not isinstance(node.get("type"), str):
            raise ValueError(f"structure: {place}: a dict with a type is needed")
        if depth == 0 or next(self.count) > MOST_MODULES:
            raise ValueError(f"structure: {place}: too many modules")
        match node["type"]:
            case "ConvBN" | "Conv":
                return _unit(place, node)
            case "Chain":
                return self.chain(place, node, depth)
            case "Residual" | "Concat":
                return self.container(place, node, depth)
            case "Graph":
                return self.graph(place, node, depth)
            case "Classifier" | "Head":
                own = {name: value for name, value in node.items() if name != "type"}
                return _head(place, own, maps=node["type"] == "Head")
            case "Norm":
                return _norm(place, node)
            case "Pick":
                return _pick(place, node)
            case kind if kind in BY_NAME:
                return _plain(place, node, self.tried)
            case kind if kind == CUSTOM:
                _keys(place, node, ("type", "class"))
                return self.custom(place, str(node["class"]))
        raise ValueError(f"structure: {place}: unknown type {node['type'][:100]!r}")

    def chain(self, place: str, node: dict, depth: int) -> Chain:
        _keys(place, node, ("type", "modules"))
        chain = Chain()
        for name, child in node["modules"].items():
            chain.add_module(name, self.module(f"{place}.{name}", child, depth - 1))
        return chain

    def container(self, place: str, node: dict, depth: int) -> Residual | Concat:
        linear = node["type"] == "Residual" and "activation" in node
        _keys(place, node, ("type", "branch", "shortcut", *["activation"] * linear))
        branch, shortcut = (
            None if node[name] is None else self.module(f"{place}.{name}", node[name], depth - 1)
            for name in ("branch", "shortcut")
        )
        if node["type"] == "Residual":
            return Residual(branch, shortcut, node.get("activation", "relu"))
        if shortcut is not None:
            raise ValueError(f"structure: {place}: a Concat has no shortcut")
        return Concat(branch)

    def graph(self, place: str, node: dict, depth: int) -> Graph:
        _keys(place, node, ("type", "nodes"), *ENDS)
        nodes, modules = [], {}
        for inner in node["nodes"]:
            _keys(place, inner, ("name", "op", "inputs"))
            name, op, inputs = inner["name"], inner["op"], inner["inputs"]
            if not all(isinstance(text, str) and text for text in (name, *inputs)):
                raise ValueError(f"structure: {place}: the name of a node is no text")
            if not isinstance(op, str):
                modules[name] = self.module(f"{place}.{name}", op, depth - 1)
            nodes.append(Node(name, op if isinstance(op, str) else None, tuple(inputs)))
        return Graph(nodes, modules, *(_outputs(place, node.get(name), 2) for name in ENDS))


def _outputs(place: str, value: object, depth: int) -> Outputs:
    """The outputs of a graph: a name, or a list or dict of such."""
    if isinstance(value, list | dict) and depth and value:
        if isinstance(value, list):
            return [_outputs(place, part, depth - 1) for part in value]
        return {str(name): _outputs(place, part, depth - 1) for name, part in value.items()}
    if value is not None and not isinstance(value, str):
        raise ValueError(f"structure: {place}: outputs {value!r:.100} are no names of nodes")
    return value


def _head(place: str, node: dict, maps: bool = False) -> Classifier:
    windows = ("stride", "padding", "dilation") if maps else ()
    _keys(place, node, ("in_channels", "num_classes", *windows), "bias", "window")
    in_channels = _widths(place, node["in_channels"])
    classes = _int(f"{place} num_classes", node["num_classes"], 1)
    bias = _flag(place, node, "bias", True)
    window = pair(_window(f"{place} window", node.get("window", [1, 1]), 1))
    options = {n: pair(_window(f"{place} {n}", node[n], n != "padding")) for n in windows}
    if maps:
        head = Head(1, classes, window, **options, bias=bias)
    else:
        head = Classifier(1, classes, bias, window)
    head.build(in_channels)
    return head


def _norm(place: str, node: dict) -> Norm:
    options = NORM if node.get("eps") is not None else ("gamma", "eps")
    _keys(place, node, ("type", "channels", *options))
    widths = _widths(f"{place} channels", node["channels"])
    _check_norm(place, node, options)
    norm = Norm(1, **{name: node[name] for name in options})
    norm.build("plain" if len(widths) == 1 else "removed", widths, widths)
    return norm


def _pick(place: str, node: dict) -> Pick:
    _keys(place, node, ("type", "places"))
    lists = node["places"]
    if not isinstance(lists, list) or not 1 <= len(lists) <= 2:
        raise ValueError(f"structure: {place}: a list of places a stream is needed")
    for places in lists:
        if not isinstance(places, list) or not 0 < len(places) <= LARGEST_WIDTH:
            raise ValueError(f"structure: {place}: a list of places is needed")
        for value in places:
            _int(f"{place} places", value, 0)
    return Pick(lists)


def _check_norm(place: str, node: dict, names: Iterable[str]) -> None:
    for name in names:
        value = node[name]
        finite = _is_number(value) and math.isfinite(value)
        if not finite and not (value is None and name in ("momentum", "eps")):
            raise ValueError(f"structure: {place}: {name} {value!r} is no number")
    if "momentum" in names and (node["eps"] is None or node["eps"] <= 0):
        raise ValueError(f"structure: {place}: eps {node['eps']!r} is not positive")


def _unit(place: str, node: dict) -> ConvBN:
    norm = NORM if node["type"] == "ConvBN" else ()
    given = [name for name in OPTIONS if name in node]
    optional = OPTIONS if norm else (*OPTIONS, "bias")
    _keys(place, node, ("type", *WINDOW, "form", "in_channels", "out_channels", *norm), *optional)
    windows = (*WINDOW, *(name for name in ("dilation", "output_padding") if name in given))
    least = {"padding": 0, "output_padding": 0}
    options = {n: _window(f"{place} {n}", node[n], least.get(n, 1)) for n in windows}
    options["transposed"] = _flag(place, node, "transposed", False)
    _check_norm(place, node, norm)
    in_channels, out_channels = (
        _widths(f"{place} {name}", node[name]) for name in ("in_channels", "out_channels")
    )
    form = node["form"]
    streams = 1 if form == "plain" else 2
    if form not in FORMS or {len(in_channels), len(out_channels)} != {streams}:
        raise ValueError(f"structure: {place}: form {form!r} with {len(in_channels)} streams")
    if "group" in given:
        options["group"] = _group(place, node["group"], in_channels, out_channels)
        if form not in ("plain", "removed"):
            raise ValueError(f"structure: {place}: form {form!r} connects groups")
    options |= {name: node[name] for name in norm}
    unit = (ConvBN if norm else Conv).formed(form, in_channels, out_channels, **options)
    if not _flag(place, node, "bias", True):
        unit.drop_bias()
    return unit


def _window(place: str, value: object, least: int) -> int | tuple[int, int]:
    """An int, or the height and width of what is no square."""
    if not isinstance(value, list):
        return _int(place, value, least, LARGEST_WINDOW)
    if len(value) != 2:
        raise ValueError(f"structure: {place}: {value!r} is not (height, width)")
    return tuple(_int(place, side, least, LARGEST_WINDOW) for side in value)


def _group(place: str, value: object, ins: tuple[int, ...], outs: tuple[int, ...]) -> tuple:
    """(input, output) channels of one group, of which every stream has whole ones."""
    pair = _widths(f"{place} group", value)
    if len(pair) != 2:
        raise ValueError(f"structure: {place}: group {value!r} is not (input, output) channels")
    counts = [(i // pair[0], o // pair[1]) for i, o in zip(ins, outs, strict=True)]
    whole = all(
        (n * pair[0], m * pair[1]) == (i, o) and n == m
        for (n, m), i, o in zip(counts, ins, outs, strict=True)
    )
    if not whole:
        raise ValueError(f"structure: {place}: {ins} and {outs} are not whole groups of {pair}")
    return pair


def _plain(place: str, node: dict, tried: set[tuple[type, str]]) -> nn.Module:
    """A module of the table, tried once, since wrong arguments may show only then."""
    kind = BY_NAME[node["type"]]
    _keys(place, node, ("type", *kind.arguments))
    for name in kind.arguments:
        value = node[name]
        items = value if isinstance(value, list) and 0 < len(value) <= 4 else [value]
        if not all(item is None or isinstance(item, str) or _is_number(item) for item in items):
            raise ValueError(f"structure: {place}: {name} {str(value)[:100]} is no argument")
    arguments = {n: tuple(v) if isinstance(v, list) else v for n, v in node.items() if n != "type"}
    key = (kind.cls, repr(arguments))
    if not kind.resizes and key not in tried:
        with torch.device("meta"):
            kind.cls(**arguments)(torch.empty(1, 1, 2, 2))
        tried.add(key)
    return kind.cls(**arguments)


def _flag(place: str, node: Mapping, name: str, usual: bool) -> bool:
    """True or false, ``usual`` where a description does not say it."""
    found = node.get(name, usual)
    if type(found) is not bool:
        raise ValueError(f"structure: {place}: {name} {found!r:.100} is no bool")
    return found


def _keys(place: str, node: object, keys: tuple[str, ...], *optional: str) -> None:
    if not isinstance(node, Mapping) or {*node} - {*optional} != {*keys}:
        found = sorted(map(str, node))[:10] if isinstance(node, Mapping) else type(node).__name__
        raise ValueError(f"structure: {place}: expected {', '.join(keys)}, found {found}")


def _int(place: str, value: object, least: int, most: int = LARGEST_WIDTH) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"structure: {place}: {value!r} is no int of {least} to {most}")
    return value


def _is_number(value: object) -> bool:
    """A bool, or a number of sensible size; infinity is one where a Hardtanh has no bound."""
    return (
        isinstance(value, bool | int | float)
        and not math.isnan(value)
        and (math.isinf(value) or abs(value) <= LARGEST_WIDTH)
    )


def _widths(place: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 2:
        raise ValueError(f"structure: {place}: a list of one width a stream is needed")
    return tuple(_int(place, width, 1) for width in value)
