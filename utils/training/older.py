"""Checkpoints and descriptions of format 1, which name a builder and what rejuvenation changed."""

from collections.abc import Mapping
from typing import Any

import torch

import models
import nr
from nr.network.graph import IMAGE
from nr.network.wiring import wiring
from utils.files import Plain


def upgraded(spec: Mapping[str, Any], old: Mapping[str, Any]) -> Plain:
    """The whole description of the network that ``spec`` builds and ``old`` reshapes.

    ``old``: ``form``, ``widths`` (layer -> one a stream) and ``dropped`` (containers without
    branch). Raises ValueError, KeyError or TypeError where they do not fit.
    """
    with torch.device("meta"):
        network = models.build(spec["family"], spec["arch"], **spec["options"])
    description: Plain = nr.structure(network)
    plan = wiring(network)
    form, dropped, widths = old["form"], old["dropped"], dict(old["widths"])
    stay = {layer.name for layer in plan.layers if layer.branch not in dropped}
    odd = sorted(stay ^ widths.keys())
    if odd:
        raise ValueError(f"structure: its layers are not this network's, for example {odd[0]}")
    widths[IMAGE] = [3] * (1 if form == "plain" else 2)
    for layer in plan.layers:
        if layer.name in stay:
            node = _node(description, layer.name)
            node["form"] = "removed" if form != "plain" and IMAGE in layer.sources else form
            node["in_channels"] = _inputs(widths, layer.sources)
            node["out_channels"] = widths[layer.name]
    for name in dropped:
        _node(description, name)["branch"] = None
    description["classifier"]["in_channels"] = _inputs(widths, plan.steps["classifier"].sources)
    return description


def _inputs(widths: Mapping[str, Any], sources: tuple[str, ...]) -> list[int]:
    """Input width of each stream: the sum over the concatenated sources that stay."""
    columns = zip(*(widths[source] for source in sources if source in widths), strict=True)
    return list(map(sum, columns))


def _node(description: Plain, name: str) -> Plain:
    """The part of a description that is called ``name``."""
    node = description
    for part in name.split("."):
        node = node["modules"][part] if "modules" in node else node[part]
    return node
