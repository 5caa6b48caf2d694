"""Names for the nodes of a traced graph: one word for all forms of an operation."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from nr.conversion.values import RESULT

SAME = {
    "truediv": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "negative": "neg",
    "concat": "cat",
    "concatenate": "cat",
}


def word(node: fx.Node) -> str:
    """The name of the function or method of torch that a node calls; "" for other nodes.

    In-place forms have the same name, without the underscore.
    """
    target = node.target
    if node.op == "call_function":
        name = getattr(target, "__name__", "")
        places = (operator, torch, F)
        known = target is getattr or any(getattr(p, name, None) is target for p in places)
        target = name if known else ""
    elif node.op != "call_method":
        return ""
    name = str(target).rstrip("_")
    return SAME.get(name, name)


def in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node changes what it reads."""
    called = getattr(node.target, "__name__", str(node.target))
    here = getattr(module, "inplace", False) or node.kwargs.get("inplace", False)
    return bool(here) or (node.op != "call_module" and called.endswith("_"))


def first(node: fx.Node) -> Any:
    """The first argument of a call; the function says of what kind it is."""
    return node.args[0]


def arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """The given arguments of a call, by name. Raises ValueError for others."""
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | node.kwargs
    odd = sorted(name for name in {*given} - {*names} if given[name])  # None, False change nothing
    if odd or len(node.args) > len(names):
        raise ValueError(f"{word(node)} with {', '.join(odd) or 'more'} is not known to nr")
    return {name: value for name, value in given.items() if name in names}


def has_tensor(node: fx.Node) -> bool:
    """Whether the node gives a tensor, or several."""
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(node.meta.get(RESULT)))


def inputs(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node reads; to read a shape does not count."""
    return [n for n in node.all_input_nodes if has_tensor(n)]


def shape(node: fx.Node) -> torch.Size:
    return node.meta[RESULT].shape


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that read the node's values, not only its shape."""
    return (user for user in node.users if has_tensor(user) or user.op == "output")
