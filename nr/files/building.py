"""A network made anew from its description, once everything in it is checked."""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any

import torch
from torch import nn

from nr.files.structure import CUSTOM, ENDS, HELD, NORM, OPTIONS, WINDOW
from nr.files.values import (
    LARGEST_WIDTH,
    is_number,
    read_flag,
    read_int,
    read_keys,
    read_name,
    read_widths,
    read_window,
)
from nr.network.checks import image_hw
from nr.network.convolutions import Conv, ConvBN
from nr.network.graph import Graph, Node, Outputs, Pick
from nr.network.layers import Chain, Classifier, Concat, Head, Network, Residual
from nr.network.plain import BY_NAME
from nr.network.units import FORMS, Norm
from nr.network.windows import pair
from nr.network.wiring import wiring

READ = (1, 2)  # versions; the first has neither graphs nor norms before convolutions
MOST_MODULES = 10_000
DEEPEST = 64  # containers in containers
Custom = Callable[[str, str], nn.Module]  # (place, class) -> the module


@torch.inference_mode(False)
def build(structure: Mapping[str, object]) -> Network:
    """Make the network that ``structure`` describes, with fresh weights.

    Raises ValueError for anything that nr.structure would not write or that does not fit together.
    It takes no memory for weights until all of it is checked.
    """
    build_on_meta(structure)
    return _built(structure, _no_custom)


def build_on_meta(structure: Mapping[str, object], custom: Custom | None = None) -> Network:
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


def _built(structure: Mapping[str, Any], custom: Custom) -> Network:
    needed = ("version", "image_size", "features", "classifier")
    read_keys("the network", structure, needed, "frozen", *HELD)
    if structure["version"] not in READ:
        raise ValueError(f"structure: version {structure['version']!r}, expected one of {READ}")
    size = image_hw(structure["image_size"])
    described = structure["classifier"]
    head = None if described is None else _head("classifier", described)
    features = _Builder(custom).module("features", structure["features"], DEEPEST)
    square = isinstance(structure["image_size"], int)
    network = Network(features, head, size[0] if square else size)
    if "frozen" in structure:  # older descriptions do not say it
        freeze(network, structure["frozen"])
    for name in HELD:
        patterns = structure.get(name, [])
        if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
            raise ValueError(f"structure: {name}: a list of patterns is needed")
        setattr(network, name, tuple(patterns))
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
                return _plain(place, node)
            case kind if kind == CUSTOM:
                read_keys(place, node, ("type", "class"))
                return self.custom(place, str(node["class"]))
        raise ValueError(f"structure: {place}: unknown type {node['type'][:100]!r}")

    def chain(self, place: str, node: dict[str, Any], depth: int) -> Chain:
        read_keys(place, node, ("type", "modules"))
        chain = Chain()
        for name, child in node["modules"].items():
            chain.add_module(name, self.module(f"{place}.{name}", child, depth - 1))
        return chain

    def container(self, place: str, node: dict[str, Any], depth: int) -> Residual | Concat:
        linear = node["type"] == "Residual" and "activation" in node
        read_keys(place, node, ("type", "branch", "shortcut", *["activation"] * linear))
        branch, shortcut = (
            None if node[name] is None else self.module(f"{place}.{name}", node[name], depth - 1)
            for name in ("branch", "shortcut")
        )
        if node["type"] == "Residual":
            return Residual(branch, shortcut, node.get("activation", "relu"))
        if shortcut is not None:
            raise ValueError(f"structure: {place}: a Concat has no shortcut")
        return Concat(branch)

    def graph(self, place: str, node: dict[str, Any], depth: int) -> Graph:
        read_keys(place, node, ("type", "nodes"), *ENDS)
        nodes, modules = [], {}
        for inner in node["nodes"]:
            read_keys(place, inner, ("name", "op", "inputs"))
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


def _head(place: str, node: dict[str, Any], maps: bool = False) -> Classifier:
    windows = ("stride", "padding", "dilation") if maps else ()
    read_keys(place, node, ("in_channels", "num_classes", *windows), "bias", "window", "name")
    in_channels = read_widths(place, node["in_channels"])
    classes = read_int(f"{place} num_classes", node["num_classes"], 1)
    bias = read_flag(place, node, "bias", True)
    window = pair(read_window(f"{place} window", node.get("window", [1, 1]), 1))
    options = {n: pair(read_window(f"{place} {n}", node[n], n != "padding")) for n in windows}
    head = Classifier(1, classes, bias, window)
    if maps:
        head = Head(1, classes, window, **options, bias=bias)
    head.build(in_channels)
    head.name = read_name(place, node, "name")
    return head


def _norm(place: str, node: dict[str, Any]) -> Norm:
    options = NORM if node.get("eps") is not None else ("gamma", "eps")
    read_keys(place, node, ("type", "channels", *options))
    widths = read_widths(f"{place} channels", node["channels"])
    _check_norm(place, node, options)
    norm = Norm(1, **{name: node[name] for name in options})
    norm.build("plain" if len(widths) == 1 else "removed", widths, widths)
    return norm


def _pick(place: str, node: dict[str, Any]) -> Pick:
    read_keys(place, node, ("type", "places"))
    lists = node["places"]
    if not isinstance(lists, list) or not 1 <= len(lists) <= 2:
        raise ValueError(f"structure: {place}: a list of places a stream is needed")
    for places in lists:
        if not isinstance(places, list) or not 0 < len(places) <= LARGEST_WIDTH:
            raise ValueError(f"structure: {place}: a list of places is needed")
        for value in places:
            read_int(f"{place} places", value, 0)
    return Pick(lists)


def _check_norm(place: str, node: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        value = node[name]
        finite = is_number(value) and math.isfinite(value)
        if not finite and not (value is None and name in ("momentum", "eps")):
            raise ValueError(f"structure: {place}: {name} {value!r} is no number")
    if "momentum" in names and (node["eps"] is None or node["eps"] <= 0):
        raise ValueError(f"structure: {place}: eps {node['eps']!r} is not positive")


def _unit(place: str, node: dict[str, Any]) -> ConvBN:
    norm = NORM if node["type"] == "ConvBN" else ()
    given = [name for name in OPTIONS if name in node]
    optional = OPTIONS if norm else (*OPTIONS, "bias")
    read_keys(
        place, node, ("type", *WINDOW, "form", "in_channels", "out_channels", *norm), *optional
    )
    windows = (*WINDOW, *(name for name in ("dilation", "output_padding") if name in given))
    least = {"padding": 0, "output_padding": 0}
    options: dict[str, Any] = {
        n: read_window(f"{place} {n}", node[n], least.get(n, 1)) for n in windows
    }
    options["transposed"] = read_flag(place, node, "transposed", False)
    _check_norm(place, node, norm)
    in_channels, out_channels = (
        read_widths(f"{place} {name}", node[name]) for name in ("in_channels", "out_channels")
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
    if isinstance(unit, Conv) and not read_flag(place, node, "bias", True):
        unit.drop_bias()
    unit.norm_name = read_name(place, node, "norm_name")
    unit.linear = read_flag(place, node, "linear", False)
    if unit.linear and (unit.group or unit.transposed or unit.stride != 1 or unit.padding != 0):
        raise ValueError(f"structure: {place}: a linear layer has no groups, strides or padding")
    return unit


def _group(
    place: str, value: object, ins: tuple[int, ...], outs: tuple[int, ...]
) -> tuple[int, int]:
    """The (input, output) channels of one group; every stream has whole groups."""
    pair = read_widths(f"{place} group", value)
    if len(pair) != 2:
        raise ValueError(f"structure: {place}: group {value!r} is not (input, output) channels")
    counts = [(i // pair[0], o // pair[1]) for i, o in zip(ins, outs, strict=True)]
    whole = all(
        (n * pair[0], m * pair[1]) == (i, o) and n == m
        for (n, m), i, o in zip(counts, ins, outs, strict=True)
    )
    if not whole:
        raise ValueError(f"structure: {place}: {ins} and {outs} are not whole groups of {pair}")
    return pair[0], pair[1]


def _plain(place: str, node: dict[str, Any]) -> nn.Module:
    """A module of the table, tried: some wrong arguments show only then."""
    kind = BY_NAME[node["type"]]
    read_keys(place, node, ("type", *kind.arguments))
    for name in kind.arguments:
        value = node[name]
        items = value if isinstance(value, list) and 0 < len(value) <= 4 else [value]
        if not all(item is None or isinstance(item, str) or is_number(item) for item in items):
            raise ValueError(f"structure: {place}: {name} {str(value)[:100]} is no argument")
    arguments = {n: tuple(v) if isinstance(v, list) else v for n, v in node.items() if n != "type"}
    if not kind.resizes:
        with torch.device("meta"):  # where torch loads its compiler, but weights take no memory
            trial = kind.cls(**arguments).eval()  # which draws nothing
        trial(torch.zeros(1, 1, 2, 2, device="meta" if trial._parameters else "cpu"))
    return kind.cls(**arguments)
