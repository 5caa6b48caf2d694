"""What tracing fixes without saying so: the mode, the size of the images, and their number.

A network is traced in both modes, and its graph is computed again for other images. If the modes
differ in a small module without weights (stochastic depth, noise), the module is kept as it is.
"""

import copy
import operator
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from nr.conversion.recording import BATCH, CONSTANT, DROPOUTS, Drawn, Refusal, Tracer, is_plain
from nr.conversion.values import LARGER, RESULT, compute, on_meta
from nr.network.plain import Size

TIMES, MORE = 2, (256, 384)  # of H and W, pixels on top: more than the strides of a network
FOLLOWS = "nr_follows"  # of a functional dropout: whether it is on in train mode only


class Trace(NamedTuple):
    """A network traced in one mode, and the values that Python asked for."""

    graph: fx.Graph
    model: nn.Module  # what it was made of, without memory, with constants that it needs
    called: nn.Module  # the same in eval mode, whose modules give what nodes are
    told: list[fx.Node]
    log: list[tuple[Any, ...]]

    @property
    def nodes(self) -> list[fx.Node]:
        return list(self.graph.nodes)


class Traces(NamedTuple):
    """Both modes; ``differs``: the module whose forward differs between them, or None."""

    evaluation: Trace
    training: Trace
    differs: str | None

    @property
    def fuller(self) -> Trace:
        """The trace that computes more."""
        return self.evaluation if self.differs is None else self.training


def traced(model: nn.Module, called: nn.Module, images: Tensor, refused: dict[str, str]) -> Traces:
    """``model`` traced in both modes. Raises Refusal, Unfit, and whatever its forward raises.

    ``called``: see Tracer. ``refused`` collects, by module, what would be lost; a module that
    cannot be followed is taken whole.
    """
    whole: frozenset[type | str] = frozenset()
    modules = dict(model.named_modules())
    while True:
        try:
            training, evaluation = (  # what is drawn, and taken whole, shows in train mode
                _trace(model, called, images, mode, whole, refused) for mode in (True, False)
            )
            differs = _parting(evaluation.log, training.log)
        except Drawn as error:
            differs = error.path
        except Refusal as error:
            if error.path not in modules or error.path in ("", *whole):
                raise
            refused[error.path] = str(error)
            whole |= {error.path}
            continue
        if differs is None or not is_plain(modules[differs]):
            traces = Traces(evaluation, training, differs)
            _follow_dropouts(traces)
            return traces
        whole |= {type(modules[differs])}


def image_channels(model: nn.Module, size: Size) -> int:
    """The channels of the images: three if the first convolution takes them.

    ``model`` is on the meta device.
    """

    def first(conv: nn.Conv2d, inputs: tuple[Any, ...]) -> None:
        fits = inputs[0].shape[1] == conv.in_channels
        raise _First(3 if fits else conv.in_channels)

    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    if not convs:
        raise Refusal("", "there is no nn.Conv2d in it: only convolutional networks have units")
    hooks = [conv.register_forward_pre_hook(first) for conv in convs]
    try:
        model(next(model.parameters()).new_empty(BATCH, 3, *size))
    except _First as found:
        return found.args[0]
    except Exception:  # whatever it is, tracing will say it
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return convs[0].in_channels


class _First(Exception):
    """The number of channels that the first convolution takes."""


def added(traces: Traces) -> dict[fx.Node, fx.Node]:
    """Node of the training graph -> the same node of the evaluation graph, if it is there."""
    found = {_key(node, {}): node for node in traces.evaluation.nodes}
    twins: dict[fx.Node, fx.Node] = {}
    for node in traces.training.nodes:
        if (twin := found.get(_key(node, twins))) is not None:
            twins[node] = twin
    return twins


def _key(node: fx.Node, twins: dict[fx.Node, fx.Node]) -> str:
    args, keywords = fx.node.map_arg((node.args, node.kwargs), lambda n: twins.get(n, n))
    if node.target in DROPOUTS:
        keywords = {name: value for name, value in keywords.items() if name != "training"}
    return repr((node.op, node.target, args, keywords))


def varying(
    trace: Trace, images: Tensor, refused: dict[str, str]
) -> tuple[set[fx.Node], set[fx.Node]]:
    """The numbers that depend on how many images there are, and those that depend on their size.

    Found by computing the graph for other images. The larger size changes every map that strides
    and windows make. If the graph cannot take it, every number that is read from a shape counts.
    """
    _, channels, *size = images.shape
    larger = (TIMES * side + more for side, more in zip(size, MORE, strict=True))
    values = [
        _values(trace, images.new_empty(shape))
        for shape in ((BATCH + 1, channels, *size), (BATCH, channels, *larger))
    ]
    if values[0] is None:
        refused.setdefault("", f"the forward takes only {BATCH} images at a time")
    for node, value in (values[1] or {}).items():
        node.meta[LARGER] = value
    batched, sized = (_varying(trace.nodes, other) for other in values)
    return batched, sized


def _values(trace: Trace, images: Tensor) -> dict[fx.Node, object] | None:
    """What every node gives for ``images``; None if the graph does not take them."""
    values: dict[fx.Node, object] = {}
    try:
        for node in trace.nodes[:-1]:
            first = node.op == "placeholder"
            values[node] = (
                images if first else compute(node, values.__getitem__, trace.model, trace.called)
            )
    except Exception:  # whatever an operation may raise
        return None
    return values


def _varying(nodes: list[fx.Node], other: dict[fx.Node, object] | None) -> set[fx.Node]:
    """The numbers that differ in ``other``, or are made of such."""
    found: set[fx.Node] = set()
    for node in nodes[:-1]:
        value, sources = node.meta[RESULT], node.all_input_nodes
        if _has_tensor(value) or not sources:
            continue
        read = all(_has_tensor(n.meta[RESULT]) for n in sources)
        if read or (
            node.target is operator.getitem and isinstance(sources[0].meta[RESULT], torch.Size)
        ):
            varies = other is None or other[node] != value
        else:
            varies = any(n in found for n in sources)
        if varies:
            found.add(node)
    return found


def _has_tensor(value: object) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _trace(
    model: nn.Module,
    called: nn.Module,
    images: Tensor,
    training: bool,
    whole: frozenset[type | str],
    refused: dict[str, str],
) -> Trace:
    copied = on_meta(model).train(training)
    for name, module in copied.named_modules():
        if module.training != training:
            refused.setdefault(
                name,
                f"train({training}) leaves it in the other mode (by a train method of its own),"
                " and a converted network would not: use nn.Module's, and eval() where needed",
            )
    tracer = Tracer(copied, called, next(model.parameters()), whole, refused)
    graph = tracer.run(images)
    if tracer.changed is not None:
        _call_again(tracer, images, *tracer.changed)
    return Trace(graph, copied, called, [node for node, _ in tracer.told], tracer.log)


def _call_again(tracer: Tracer, images: Tensor, path: str, attribute: str) -> None:
    """Refuse a forward that sets an attribute and computes something else the next time."""
    model = copy.deepcopy(tracer.model)
    for name in [name for name in vars(model) if name.startswith(CONSTANT)]:
        delattr(model, name)
    again = Tracer(model, tracer.called, tracer.like, tracer.whole, tracer.refused)
    try:
        again.run(images)
    except Exception:  # whatever a forward may raise that has been called
        again.log = []
    if again.log != tracer.log:
        reason = f"sets {attribute} in its forward, and computes something else the next time"
        tracer.refuse(reason, path)


def _parting(log: list[tuple[Any, ...]], other: list[tuple[Any, ...]]) -> str | None:
    """The module in which two logs of calls first differ."""
    stack = [""]
    for event, found in zip(log, other, strict=False):
        if event != found:
            return stack[-1]
        if event[0] == "enter":
            stack.append(event[1])
        elif event[0] == "exit":
            stack.pop()
    return None if len(log) == len(other) else stack[-1]


def _follow_dropouts(traces: Traces) -> None:
    """Mark functional dropouts that are on in train mode, and off or absent in the other."""
    twins = added(traces)
    for node in traces.evaluation.nodes:
        node.meta[FOLLOWS] = False
    for on in traces.training.nodes:
        off = twins.get(on)
        off_too = off is None or off.kwargs.get("training") is False
        on.meta[FOLLOWS] = on.kwargs.get("training") is True and off_too
        if off is not None:
            off.meta[FOLLOWS] = on.meta[FOLLOWS]
