"""A torch network as a graph of torch.fx whose nodes know their shapes and where they come from."""

import operator
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from nr.conversion.functions import rewrite
from nr.conversion.hidden import refuse_hidden
from nr.conversion.modes import FOLLOWS, Traces, added, image_channels, traced, varying
from nr.conversion.recording import DROPOUTS, FROZEN, Refusal, Unfit
from nr.conversion.values import RESULT
from nr.network.plain import Size

SHAPE = "nr_shape"  # of the tensor that a node makes, in its meta
VALUE = "nr_value"  # of a node that makes a number, or the sizes of a tensor

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
CATS = (torch.cat, torch.concat)
MEANS = (torch.mean, "mean")
SPATIAL = ({2, 3}, {-1, -2})  # dimensions whose mean is a global average pooling
BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm)
CONVS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d)
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm2d, nn.LocalResponseNorm)


class Traced:
    """The traced ``model``: its nodes in order, the modules they call, shapes and origins.

    ``nodes``: of the evaluation mode, or of the training mode where that computes more.
    ``outputs``: what evaluation and training give, of these nodes. ``bound``: what needs images
    of just this size, or None; it is known when all constants have been asked for.
    """

    def __init__(self, model: nn.Module, size: Size):
        refuse_hidden(model)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.device = next(model.parameters()).device
        self.bound: str | None = None
        self.kind, self.size = type(model).__name__, size
        channels = image_channels(model, size)
        self.traces = self._traced(model, channels)
        self.twins = added(self.traces)
        trace = self.traces.evaluation if self.traces.differs is None else self.traces.training
        self.batched, self.sized = varying(trace, channels, size)
        for node in trace.told:
            self.constant(node, node)
        for each in self.traces[:2]:
            rewrite(each.graph, self.modules)
        self.nodes = trace.nodes
        for node in (*self.traces.evaluation.nodes, *self.traces.training.nodes):
            result = node.meta.get(RESULT)
            if isinstance(result, Tensor):
                node.meta[SHAPE] = result.shape
            elif isinstance(result, int | float | torch.Size):
                node.meta[VALUE] = result

    def _traced(self, model: nn.Module, channels: int) -> Traces:
        """Both modes, or a ValueError that says what is in the way."""
        images = f"images of {channels} channels and {self.size[0]}x{self.size[1]} pixels"
        try:
            return traced(model, channels, self.size)
        except Refusal as error:
            raise ValueError(str(error) if error.path else f"{self.kind}: {error}") from error
        except Unfit as error:
            raise ValueError(
                f"{self.kind}: does not take {images} ({_line(error)}): give another image_size"
            ) from error
        except AssertionError as error:
            raise ValueError(
                f"{self.kind}: its forward does not take {images}: {_line(error)}"
            ) from error
        except Exception as error:  # whatever the forward of a network may raise
            raise ValueError(
                f"{self.kind}: torch.fx cannot trace its forward ({_line(error)}): only networks"
                " whose forward does not depend on values can be converted"
            ) from error

    def constant(self, node: fx.Node, argument: object) -> object:
        """``argument`` of ``node`` with the sizes that are read from tensors as numbers.

        What depends on the size of the images binds the network to it. Raises ValueError for what
        depends on how many there are.
        """

        def number(source: fx.Node) -> object:
            if source in self.batched:
                raise ValueError(
                    f"{self.name(node)}: depends on the number of images, which changes"
                )
            if source in self.sized and self.bound is None:
                self.bound = self.name(node)
            return source.meta.get(VALUE, source)

        return fx.node.map_arg(argument, number)

    def check(self) -> None:
        """Refuse, in the order of computation, what has no exact form in units."""
        if reason := self.mode_reason():
            raise ValueError(f"{self.traces.differs or self.kind}: {reason}")
        for node in self.nodes[:-1]:
            if reason := self.reason(node):
                raise ValueError(f"{self.name(node)}: {reason}")
        for node in self.nodes[:-1]:
            if node.op != "get_attr" and SHAPE in node.meta and not list(readers(node)):
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
        module = self.module(node)
        kind = type(module).__name__
        if isinstance(module, NORMS):
            return (
                f"{kind} (LayerNorm as in convnext and transformers) is no batch norm, whose scales"
                " are measured: only networks with batch norm after their convolutions can be"
                " converted"
            )
        if isinstance(module, CONVS):
            return f"{kind} is no nn.Conv2d, which is the only convolution that units have"
        if kind == FROZEN:
            return (
                "FrozenBatchNorm2d has no scale that is trained, so nothing of it can be measured:"
                " use nn.BatchNorm2d, in eval mode and without gradients where it is to be frozen"
            )
        if node.op == "call_module" and len(inputs(node)) != 1:
            return f"{kind} reads {len(inputs(node))} activations, and units read one"
        if node.target in DROPOUTS and not node.meta[FOLLOWS]:
            return "the mode of this functional dropout is fixed: use nn.Dropout"
        return None

    @property
    def outputs(self) -> tuple[object, object]:
        both = [_unpacked(trace.nodes[-1].args[0]) for trace in self.traces[:2]]
        if self.traces.differs is None:
            return both[0], both[0]
        back = {twin: node for node, twin in self.twins.items()}
        return fx.node.map_arg(both[0], back.__getitem__), both[1]

    def mode_reason(self) -> str | None:
        """What training changes; what it only adds may be further outputs."""
        twins, evaluation = self.twins, self.traces.evaluation.nodes
        if self.traces.differs is None or {*twins.values()} >= {*evaluation[:-1]}:
            return None
        training = self.traces.training.nodes[:-1]
        extra = [self.name(node) for node in training if node not in twins and SHAPE in node.meta]
        return (
            "its forward depends on self.training, and one mode would be lost: in train mode it"
            f" computes something else, as {', '.join(extra[:3]) or 'other outputs'}"
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

    def owner(self, node: fx.Node) -> nn.Module:
        """The module in whose forward the node is called, or the one that it calls."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return self.modules[stack[-1][0] if stack else ""]


def has_tensor(node: fx.Node) -> bool:
    """Whether the node gives a tensor, or several."""
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(node.meta.get(RESULT)))


def is_tuple(node: fx.Node) -> bool:
    """Whether the node makes a named tuple."""
    return isinstance(node.target, type) and issubclass(node.target, tuple)


def _unpacked(output: object) -> object:
    """A named tuple as a list."""
    if isinstance(output, fx.Node) and is_tuple(output):
        return [*output.args, *output.kwargs.values()]
    return output


def inputs(node: fx.Node) -> list[fx.Node]:
    """What a node reads of tensors: shapes that are read of them do not count."""
    return [n for n in node.all_input_nodes if has_tensor(n)]


def shape(node: fx.Node) -> torch.Size:
    return node.meta[SHAPE]


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that read the node's values, not only its shape."""
    return (user for user in node.users if has_tensor(user) or user.op == "output")


def _line(error: Exception) -> str:
    reason = str(error).split("While executing")[0]  # torch.fx adds where in its graph
    return (" ".join(reason.split()) or type(error).__name__)[:160]
