"""A network of nr's as a module of torch's own layers."""

import copy
import operator
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from nr.given.layers import batch_norm, convolution, head
from nr.given.tape import Tape
from nr.network.checks import refuse_sharded
from nr.network.convolutions import ConvBN
from nr.network.graph import CAT, FLAT, IMAGE, Graph, Outputs, Pick
from nr.network.layers import Classifier, Network, Residual
from nr.network.norms import Bias, Follower, Scale
from nr.network.numbers import Lists
from nr.network.plain import Affine, Filter, FixedSize
from nr.network.steps import Step
from nr.network.units import FORMS, Norm
from nr.network.wiring import wiring

FEATURES, CLASSIFIER = "features.", "classifier"  # what the names of steps begin with
STREAMS = ("", "_rejuvenated")  # what the names of a stream's layers end in
Nodes = tuple[fx.Node, ...]  # an activation, one node a stream


@torch.inference_mode(False)
@torch.no_grad()
def to_torch(model: Network) -> fx.GraphModule:
    """``model`` as a module of torch's layers: images [B, C, H, W] -> logits [B, classes, ...].

    The output is the sum over the streams. Several heads come in the network's dict or tuple, as in
    the mode that the network is in. The module consists of nn.Conv2d, nn.BatchNorm2d, nn.Linear and
    the like and of functions of torch, so it can be pickled, traced, quantized, exported and
    trained without nr. A plain module of your own class needs that class.

    Layers have the names that they had in the network that nr.convert was given. In a network built
    of units, a convolution has its unit's name, and the norm this name and _norm. Rejuvenated
    layers end in _rejuvenated. Outputs and running statistics are the same up to rounding, in eval
    and in train mode. ``model`` stays as it is and shares nothing with the result. Raises
    ValueError for a network that is sharded or that nr cannot follow.
    """
    refuse_sharded(model)
    return _Writer(model).module()


class _Writer(Tape):
    """Writes each step of a network, in order, into a graph of torch.fx."""

    def __init__(self, model: Network):
        super().__init__()
        self.model, self.steps = model, wiring(model).steps
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.values: dict[str, Nodes] = {}

    def module(self) -> fx.GraphModule:
        """The whole network."""
        ends: Outputs = CLASSIFIER
        if isinstance(self.model.features, Graph) and self.model.classifier is None:
            given = self.model.features.given(self.model.training)
            ends = tree_map(lambda name: name and FEATURES + name, given)
        needed = {*tree_leaves(ends)}
        for step in reversed(self.steps.values()):
            needed |= {*step.inputs} if step.name in needed else set()
        self.values[IMAGE] = (self.graph.placeholder("images"),) * self.model.streams
        for name, step in self.steps.items():
            if name in needed and name != IMAGE:
                self.values[name] = self.step(step, name.removeprefix(FEATURES))
        self.graph.output(self.joined(ends))
        made = fx.GraphModule(self.parts, self.graph)
        for part in made.modules():
            if type(part) is nn.Module or part is made:  # the others have modes of their own
                part.training = self.model.training
        return made

    def joined(self, ends: Outputs) -> Any:
        """The outputs, each the sum over its streams."""
        if isinstance(ends, dict):
            return {name: self.joined(part) for name, part in ends.items()}
        if not isinstance(ends, str):
            return None if ends is None else tuple(map(self.joined, ends))
        flat = ends == CLASSIFIER or self.steps[ends].op == FLAT
        streams = self.values[ends] if flat else map(self.map, self.values[ends])
        return reduce(lambda a, b: self.call(operator.add, a, b), streams)

    def step(self, step: Step, name: str) -> Nodes:
        """What a step gives for what it reads."""
        reads, op = [self.values[source] for source in step.inputs], step.op
        if isinstance(op, str):
            return self.word(step, name, reads)
        (x,) = reads
        if isinstance(op, ConvBN):
            return self.unit(op, name, x)
        if isinstance(op, Norm):
            parts = enumerate(zip(op.norms, x, strict=True))
            return tuple(self.norm(name + STREAMS[s], *pair) for s, pair in parts)
        if isinstance(op, Classifier):
            return tuple(
                self.layer(self.free((op.name or name) + STREAMS[s]), head(op, s), part)
                for s, part in enumerate(x)
            )
        return self.plain(op, name, x, step.numbers)

    # What joins.

    def word(self, step: Step, name: str, reads: list[Nodes]) -> Nodes:
        """A sum, product or concatenation in each stream; a copy if only one part is there."""
        if step.op == FLAT:
            return tuple(map(self.flattened, reads[0]))
        made = tuple(self.join(str(step.op), parts) for parts in zip(*reads, strict=True))
        container = self.modules.get(step.name)
        if isinstance(container, Residual) and container.activation is not None:
            made = self.plain(nn.ReLU(), f"{name}.relu", made)
        return made

    # What has weights.

    def unit(self, unit: ConvBN, name: str, x: Nodes) -> Nodes:
        """The convolutions of a unit, in any form, and its norms."""
        blocks: dict[tuple[int, int], fx.Node] = {}  # (first stream read, stream written)
        for place, (reads, writes) in enumerate(FORMS[unit.form]):
            read = self.join(CAT, x) if len(reads) > 1 else x[reads[0]]
            path = self.free(name + STREAMS[reads[0]])
            made, begin = self.layer(path, convolution(unit, place), read), 0
            for stream in writes:
                width, part = unit.out_channels[stream], made
                if len(writes) > 1:
                    part = self.copied(self.call(torch.narrow, made, 1, begin, width))
                blocks[reads[0], stream] = part
                begin += width
        found = []
        for stream, norm in enumerate(unit.norms):
            part = blocks[(stream, stream) if (stream, stream) in blocks else (0, stream)]
            if unit.form == "attention":
                gate = self.call(torch.sigmoid, part)
                part = self.call(torch.addcmul, part, gate, blocks[1 - stream, stream], value=2)
            path = (unit.norm_name or f"{name}_norm") + STREAMS[stream]
            if not isinstance(norm, Bias) or unit.form == "attention":
                part = self.norm(path, norm, part)
            found.append(part)
        return tuple(found)

    def norm(self, name: str, norm: Follower, x: fx.Node) -> fx.Node:
        """The norm behind a convolution, or before one."""
        if isinstance(norm, Scale):
            return self.call(operator.mul, self.map(x), self.tensor(name, _spread(norm.weight)))
        if not isinstance(norm, Bias):
            return self.layer(self.free(name), batch_norm(norm, x in self.flat), x)
        if norm.bias is None:
            return x
        return self.call(operator.add, self.map(x), self.tensor(name, _spread(norm.bias)))

    # What has none.

    def plain(self, module: nn.Module, name: str, x: Nodes, numbers: Lists = ()) -> Nodes:
        """A plain module, written once if all streams are the same."""
        if isinstance(module, Pick | Filter):
            pairs = enumerate(zip(x, numbers, strict=True))
            return tuple(self.selected(module, name, s, *pair) for s, pair in pairs)
        writers: dict[type, Any] = {Affine: self.affine, FixedSize: self.checked}
        write = writers.get(type(module))
        if write is None:
            path, module = self.free(name), copy.deepcopy(module)
            made = {part: self.layer(path, module, part) for part in dict.fromkeys(x)}
        else:
            made = {part: write(part, module) for part in dict.fromkeys(x)}
        return tuple(made[part] for part in x)

    def selected(
        self, module: Pick | Filter, name: str, stream: int, x: fx.Node, numbers: Tensor
    ) -> fx.Node:
        """A selection of channels, or each convolved with a fixed window."""
        x, name = self.map(x), name + STREAMS[stream]
        if isinstance(module, Pick):
            places = torch.tensor(module.places[stream], device=next(module.buffers()).device)
            return self.call(torch.index_select, x, 1, self.tensor(name, places))
        window = self.tensor(name, module.window.repeat(len(numbers), 1, 1, 1))
        rest = (None, module.stride, module.padding, 1, len(numbers))
        return self.call(F.conv2d, x, window, *rest)

    def affine(self, x: fx.Node, module: Affine) -> fx.Node:
        x = x if module.factor == 1 else self.call(operator.mul, x, module.factor)
        return x if module.term == 0 else self.call(operator.add, x, module.term)

    def checked(self, x: fx.Node, module: FixedSize) -> fx.Node:
        """Images of one size."""
        for dim, side in enumerate(module.size, start=2):
            same = self.call(operator.eq, self.graph.call_method("size", (x, dim)), side)
            said = f"images of {module.size[0]}x{module.size[1]} are needed, as {module.reader} is"
            self.call(torch._assert, same, f"{said} made for them")
        return x


def _spread(values: Tensor) -> nn.Parameter:
    """One number for each channel, as a factor of maps: [C, 1, 1]."""
    spread = values.detach().clone()[:, None, None]
    return nn.Parameter(spread, requires_grad=values.requires_grad)
