"""A torch network as a graph of torch.fx whose nodes know their shapes and origins."""

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn

from nr.conversion.functions import rewrite
from nr.conversion.hidden import hidden
from nr.conversion.modes import Trace, added, image_channels, traced, varying
from nr.conversion.obstacles import Obstacles
from nr.conversion.recording import BATCH, Refusal, Unfit
from nr.conversion.values import RESULT, on_meta
from nr.conversion.words import first, has_tensor, in_place
from nr.network.plain import Size

UNUSED = "what nothing reads is left out of the network: {}"


class Traced:
    """The traced ``model``: its nodes in order, and the modules that they call.

    ``nodes``: of the mode that computes more, without those that no output needs. ``outputs``: what
    evaluation and training give, of these nodes. ``bound``: what needs images of just this size, or
    None; known when all constants have been asked for. ``obstacles`` collects what tracing finds.
    """

    def __init__(self, model: nn.Module, size: Size, obstacles: Obstacles):
        self.obstacles = obstacles
        for place, reason in hidden(model):
            obstacles.add(place, reason)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.device = next(model.parameters()).device
        self.bound: str | None = None
        self.kind, self.size = type(model).__name__, size
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """Trace both modes. Raises ValueError if nothing can be followed."""
        refused: dict[str, str] = {}
        self.image_channels, traces = 3, None
        try:
            called = on_meta(model).eval()
            self.image_channels = image_channels(called, self.size)
            parameter = next(called.parameters())
            images = parameter.new_empty(BATCH, self.image_channels, *self.size)
            traces = traced(model, called, images, refused)
        except Exception as error:  # whatever the forward of a network may raise
            if not refused and not self.obstacles:  # of which it could be a consequence
                refused.setdefault(*self.reason(error))
        else:
            trace = self.trace = traces.fuller
            twins = added(traces)
            self.batched, self.sized = varying(trace, images, refused)
        for path, reason in refused.items():
            self.obstacles.add(path or self.kind, reason)
        if traces is None:
            raise ValueError(": ".join(self.obstacles[-1]))
        if traces.differs is not None and not {*twins.values()} >= {*traces.evaluation.nodes[:-1]}:
            self.obstacles.add(traces.differs or self.kind, self.mode_reason(trace, twins))
        for node in trace.told:
            self.noted(node)
        self.join(trace.graph, traces.evaluation.nodes[-1], twins)
        rewrite(trace.graph, self.modules)
        self.drop_unused(trace.graph)

    def reason(self, error: Exception) -> tuple[str, str]:
        """Where the tracing ended, and why."""
        height, width = self.size
        images = f"images of {self.image_channels} channels and {height}x{width} pixels"
        text = str(error).split("While executing")[0]  # torch.fx adds where in its graph
        line = (" ".join(text.split()) or type(error).__name__)[:160]
        if isinstance(error, Refusal):
            return error.path, str(error)
        if isinstance(error, Unfit):
            return "", f"does not take {images} ({line}): give another image_size"
        if isinstance(error, AssertionError):
            return "", f"its forward does not take {images} ({line}): give such as it takes"
        return "", (
            f"torch.fx cannot trace its forward ({line}): only networks whose forward does not"
            " depend on values can be converted"
        )

    def mode_reason(self, trace: Trace, twins: dict[fx.Node, fx.Node]) -> str:
        """What training changes; what it only adds may be further outputs."""
        extra = [self.name(n) for n in trace.nodes[:-1] if n not in twins and has_tensor(n)]
        return (
            "its forward depends on self.training, and one mode would be lost: in train mode it"
            f" computes something else, as {', '.join(extra[:3]) or 'other outputs'}"
        )

    def join(self, graph: fx.Graph, end: fx.Node, twins: dict[fx.Node, fx.Node]) -> None:
        """Find the outputs of both modes in the graph that computes more."""
        own = first(graph.output_node())
        back = {twin: node for node, twin in twins.items()}
        other = own
        if end.graph is not graph:
            other = fx.node.map_arg(_unpacked(first(end)), lambda node: back.get(node, node))
            if any(n.graph is not graph for n in _nodes(other)):
                other = own
        graph.output_node().args = ((_unpacked(other), _unpacked(own)),)

    def drop_unused(self, graph: fx.Graph) -> None:
        """Leave out what nothing reads; a warning names what has weights."""
        lost = []
        for node in reversed(graph.nodes):
            module = self.module(node)
            changes = in_place(node, module) and len(first(node).users) > 1
            if not node.users and node.op not in ("placeholder", "output") and not changes:
                lost += [str(node.target)] if module and [*module.parameters()] else []
                graph.erase_node(node)
        if lost:
            warnings.warn(UNUSED.format(", ".join(reversed(lost))), stacklevel=6)

    @property
    def nodes(self) -> list[fx.Node]:
        return self.trace.nodes

    @property
    def outputs(self) -> tuple[Any, Any]:
        return first(self.trace.graph.output_node())

    def noted(self, node: fx.Node) -> None:
        """Treat what Python asked for as a constant."""
        try:
            self.constant(node, node)
        except ValueError as error:
            self.obstacles.add(self.name(node), str(error))

    def constant(self, node: fx.Node, argument: Any) -> Any:
        """``argument`` of ``node``, where sizes that are read from tensors have become numbers.

        One that depends on the size of the images binds the network to it. Raises ValueError for
        one that depends on their number.
        """

        def number(source: fx.Node) -> Any:
            if source in self.batched:
                raise ValueError("depends on the number of images, which changes")
            if source in self.sized and self.bound is None:
                self.bound = self.name(node)
            value = source.meta.get(RESULT)
            return value if isinstance(value, int | float | torch.Size) else source

        return fx.node.map_arg(argument, number)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.modules[node.target] if node.op == "call_module" else None

    def name(self, node: fx.Node) -> str:
        """The module of the node, or the one whose forward calls its function."""
        if node.op == "call_module":
            return str(node.target)
        inside = self.path(node)
        return f"{inside}.{node.name}" if inside else node.name

    def path(self, node: fx.Node) -> str:
        """The module whose forward calls the node, or the one that it calls."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        return stack[-1][0] if stack else ""

    def tensor(self, node: fx.Node) -> Tensor | None:
        """The parameter, buffer or constant that a node gives; None for other nodes."""
        path, _, name = str(node.target).rpartition(".")
        if node.op != "get_attr":
            return None
        found = getattr(self.modules[path], name, None)
        return getattr(self.trace.model, name, None) if found is None and not path else found


def _nodes(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(argument, found.append)
    return found


def _unpacked(output: Any) -> Any:
    """A named tuple as a list."""
    if isinstance(output, fx.Node) and isinstance(output.target, type):
        return [*output.args, *output.kwargs.values()]
    return output
