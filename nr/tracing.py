"""A torch network as a graph of torch.fx whose nodes know their shapes and where they come from."""

import copy
import operator
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import fx, nn

from nr.plain import Size

SHAPE = "nr_shape"  # of the tensor that a node makes, in its meta
BATCH = 2  # images whose shapes are followed; batch norm of 1x1 maps needs two in train mode

_POOL = ("kernel_size", "stride", "padding")
# Functions and methods that are plain modules: the module, and their arguments in order.
PLAIN = {
    function: (cls, arguments)
    for functions, cls, arguments in (
        ((F.relu, torch.relu, torch.relu_, "relu", "relu_"), nn.ReLU, ()),
        ((F.relu6,), nn.ReLU6, ()),
        ((F.leaky_relu,), nn.LeakyReLU, ("negative_slope",)),
        ((F.silu,), nn.SiLU, ()),
        ((F.hardswish,), nn.Hardswish, ()),
        ((F.gelu,), nn.GELU, ("approximate",)),
        ((torch.tanh, F.tanh, "tanh"), nn.Tanh, ()),
        ((F.max_pool2d,), nn.MaxPool2d, (*_POOL, "dilation", "ceil_mode")),
        ((F.avg_pool2d,), nn.AvgPool2d, (*_POOL, "ceil_mode", "count_include_pad")),
        ((F.adaptive_avg_pool2d,), nn.AdaptiveAvgPool2d, ("output_size",)),
        ((F.adaptive_max_pool2d,), nn.AdaptiveMaxPool2d, ("output_size",)),
    )
    for function in functions
}
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
CATS = (torch.cat, torch.concat)
FLATTENS = (torch.flatten, "flatten", "view", "reshape", torch.reshape)
MEANS = (torch.mean, "mean")


class Graph:
    """The traced ``model``: its nodes in order, the modules they call, shapes and origins."""

    def __init__(self, model: nn.Module, channels: int, size: Size):
        try:
            graph = fx.Tracer().trace(model)
        except Exception as error:  # whatever the forward of a network may raise
            raise ValueError(
                f"{type(model).__name__}: torch.fx cannot trace its forward ({_line(error)}): only"
                " networks whose forward does not depend on values can be converted"
            ) from error
        self.modules = dict(model.named_modules(remove_duplicate=False))
        try:
            with torch.device("meta"):  # shapes alone
                like = next(model.parameters())
                images = torch.empty(BATCH, channels, *size, dtype=like.dtype)
                _Shapes(copy.deepcopy(model).to("meta"), graph=graph).run(images)
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__}: does not take images of {channels} channels and"
                f" {size[0]}x{size[1]} pixels ({_line(error)}): give another image_size"
            ) from error
        self.nodes = list(graph.nodes)
        self.dominator = _dominators(self.nodes)
        self.check_use()

    def check_use(self) -> None:
        """Refuse what a graph of values does not show: what is changed where it stands."""
        for node in self.nodes[:-1]:
            if SHAPE in node.meta and not list(readers(node)):
                raise ValueError(f"{self.name(node)}: what it gives is not used: leave it out")
            module, called = self.module(node), getattr(node.target, "__name__", str(node.target))
            here = getattr(module, "inplace", False) or node.kwargs.get("inplace", False)
            here = here or called.endswith("_") or node.target is operator.iadd
            if here and SHAPE in node.meta and len(list(readers(node.args[0]))) > 1:
                raise ValueError(
                    f"{self.name(node)}: changes in place what others read too: use inplace=False"
                )

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.modules[node.target] if node.op == "call_module" else None

    def name(self, node: fx.Node) -> str:
        """The module of the node, or the one in whose forward its function is called."""
        if node.op == "call_module":
            return str(node.target)
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        inside = stack[-1][0] if stack else ""
        return f"{inside}.{node.name}" if inside else node.name

    def block(self, node: fx.Node) -> str:
        """The module in whose forward the node is called, as one word."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return (stack[-1][0] if stack else "").replace(".", "_") or node.name


class _Shapes(fx.Interpreter):
    """Writes down the shape of every tensor."""

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        if isinstance(result, torch.Tensor):
            node.meta[SHAPE] = result.shape
        return result


def inputs(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node reads: shapes that are read of them do not count."""
    return [n for n in node.all_input_nodes if SHAPE in n.meta]


def shape(node: fx.Node) -> torch.Size:
    return node.meta[SHAPE]


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that read the node's values, not only its shape."""
    return (user for user in node.users if SHAPE in user.meta or user.op == "output")


def _dominators(nodes: list[fx.Node]) -> dict[fx.Node, fx.Node]:
    """For each node the last one before it through which all that it reads has come."""
    place = {node: index for index, node in enumerate(nodes)}
    found: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        sides = inputs(node)
        if sides:
            common = sides[0]
            for side in sides[1:]:
                while common is not side:  # up the tree of dominators, from the later one
                    later = max(common, side, key=place.get)
                    if later not in found:
                        break
                    common, side = found[later], min(common, side, key=place.get)
            found[node] = common
    return found


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]
