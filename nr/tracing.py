"""A torch network as a graph of torch.fx whose nodes know their shapes and where they come from."""

import copy
import operator
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize

from nr.plain import Size

SHAPE = "nr_shape"  # of the tensor that a node makes, in its meta
VALUE = "nr_value"  # of a node that makes a size: an int, or several
BATCH = 2  # images whose shapes are followed; with one, a forward could squeeze it away

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
FLATTENS = (torch.flatten, "flatten", "view", "reshape", torch.reshape, torch.squeeze, "squeeze")
MEANS = (torch.mean, "mean")
SPATIAL = ({2, 3}, {-1, -2})  # dimensions whose mean is a global average pooling
MULTIPLIES = ("mul", "mul_", "imul", "matmul", "bmm", "einsum")
MOVES = ("chunk", "split", "transpose", "permute", "getitem", "channel_shuffle")
BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm)
CONVS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm2d, nn.LocalResponseNorm)


class Graph:
    """The traced ``model``: its nodes in order, the modules they call, shapes and origins."""

    def __init__(self, model: nn.Module, size: Size):
        _refuse_hidden(model)
        try:
            graph = _Tracer().trace(model)
        except Exception as error:  # whatever the forward of a network may raise
            raise ValueError(
                f"{type(model).__name__}: torch.fx cannot trace its forward ({_line(error)}): only"
                " networks whose forward does not depend on values can be converted"
            ) from error
        self.modules = dict(model.named_modules(remove_duplicate=False))
        called = (self.module(node) for node in graph.nodes)
        first = next((m for m in called if isinstance(m, nn.Conv2d)), None)
        if first is None:
            raise ValueError(f"{type(model).__name__}: there is no nn.Conv2d in it")
        channels, self.device = first.in_channels, first.weight.device
        try:
            with torch.device("meta"):  # shapes alone; in train mode momentum=None asks for values
                like = next(model.parameters())
                images = torch.empty(BATCH, channels, *size, dtype=like.dtype)
                _Shapes(copy.deepcopy(model).to("meta").eval(), graph=graph).run(images)
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__}: does not take images of {channels} channels and"
                f" {size[0]}x{size[1]} pixels ({_line(error)}): give another image_size"
            ) from error
        self.nodes = list(graph.nodes)
        self.dominator = _dominators(self.nodes)

    def check(self) -> None:
        """Refuse, in the order of computation, what has no exact form in units."""
        for node in self.nodes[:-1]:
            if reason := self.reason(node):
                raise ValueError(f"{self.name(node)}: {reason}")
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

    def reason(self, node: fx.Node) -> str | None:
        """Why the operation of ``node``, whatever is around it, has no exact form in units."""
        name = getattr(node.target, "__name__", str(node.target))
        kind = type(self.module(node)).__name__
        if isinstance(self.module(node), NORMS):
            return (
                f"{kind} (LayerNorm as in convnext and transformers) is no batch norm, whose scales"
                " are measured: only networks with batch norm after their convolutions can be"
                " converted"
            )
        if isinstance(self.module(node), CONVS):
            return f"{kind} is no nn.Conv2d, which is the only convolution that units have"
        if isinstance(self.module(node), BATCH_NORMS):
            if type(self.module(node)) not in BATCH_NORMS:
                return f"{kind} may do more than nn.BatchNorm2d, which units have: use that itself"
            before = node.args[0]
            weighs = isinstance(self.module(before), nn.Conv2d | nn.Linear)
            if not weighs or len(list(readers(before))) > 1:
                return (
                    "this batch norm does not follow a convolution or linear layer of its own"
                    " (pre-activation order, as in torchvision's densenet), and only scales right"
                    " after one are measured: use conv-BN-ReLU order, as models.imagenet does"
                )
        if node.op not in ("call_function", "call_method") or VALUE in node.meta:
            return None
        if name in MULTIPLIES:
            return (
                f"{name} multiplies activations: squeeze-excite (as in efficientnet, regnet_y and"
                " mobilenet_v3) ties each channel to all others, use a variant without it; for an"
                " activation x·f(x) use an nn module, as nn.SiLU"
            )
        if name in MOVES or (node.target in FLATTENS and not self.is_flatten(node)):
            return (
                f"{name} splits or moves channels (to shuffle them as in shufflenet, or for the"
                " LayerNorm of convnext and transformers), so they do not stay in their places when"
                " widths change: use a variant without it"
            )
        if node.target in CATS and not self.is_concat(node):
            return (
                f"concatenates {len(node.args[0])} activations other than one and what is made of"
                " it (n-way, as in googlenet, inception, squeezenet and shufflenet): only a branch"
                " of an activation can be put behind it"
            )
        if node.target in MEANS and not self.is_global_mean(node):
            return "is no mean over H and W in one: use nn.AdaptiveAvgPool2d(1)"
        if name == "dropout":
            return "the mode of a functional dropout is fixed by tracing: use nn.Dropout"
        return None

    def is_flatten(self, node: fx.Node) -> bool:
        """Whether the node makes [B, C·H·W] of [B, C, H, W], or takes a 1 from [B, C, 1, 1]."""
        if node.target not in FLATTENS and type(self.module(node)) is not nn.Flatten:
            return False
        before, after = shape(self.dominator[node]), shape(node)
        pooled = before[2:].numel() == 1 and after[:2] == before[:2]
        return pooled or after == (before[0], before[1:].numel())

    def is_concat(self, node: fx.Node) -> bool:
        """Whether the node puts what is made of an activation behind it."""
        parts, fork = node.args[0], self.dominator[node]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if len(parts) == 1:
            return True  # as it is
        return len(parts) == 2 and parts[0] is fork and parts[1] is not fork and dim == 1

    def is_global_mean(self, node: fx.Node) -> bool:
        """Whether the node is the mean over H and W."""
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return node.target in MEANS and isinstance(dims, list | tuple) and {*dims} in SPATIAL

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


class _Tracer(fx.Tracer):
    """Does not look into convolutions and batch norms of a user's own class, either."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        own = isinstance(module, (nn.Conv2d, *BATCH_NORMS))
        return own or super().is_leaf_module(module, name)


class _Shapes(fx.Interpreter):
    """Writes down the shape of every tensor, and every number that is one of their sizes."""

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        if isinstance(result, torch.Tensor):
            node.meta[SHAPE] = result.shape
        elif isinstance(result, int | torch.Size):
            node.meta[VALUE] = result
        return result


def inputs(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node reads: shapes that are read of them do not count."""
    return [n for n in node.all_input_nodes if SHAPE in n.meta]


def known(argument: object) -> object:
    """An argument of a node with the sizes that are read from tensors as numbers."""
    return fx.node.map_arg(argument, lambda node: node.meta.get(VALUE, node))


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


def _refuse_hidden(model: nn.Module) -> None:
    """Refuse what changes a network without being seen in its graph."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"{model!r:.100}: is no nn.Module, and only those can be converted")
    if any(map(nn.parameter.is_lazy, [*model.parameters(), *model.buffers()])):
        raise ValueError(
            f"{type(model).__name__}: has lazy modules without weights yet: run a batch first"
        )
    for name, module in model.named_modules():
        place = name or type(module).__name__
        if parametrize.is_parametrized(module):
            raise ValueError(
                f"{place}: its weights are made of others: use"
                " torch.nn.utils.parametrize.remove_parametrizations first"
            )
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(
                f"{place}: has a forward hook (as of torch.nn.utils.prune and weight_norm), which"
                " would be lost: remove it first"
            )


def _line(error: Exception) -> str:
    reason = str(error).split("While executing")[0]  # torch.fx adds where in its graph
    return (" ".join(reason.split()) or type(error).__name__)[:160]
