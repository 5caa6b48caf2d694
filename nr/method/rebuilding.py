"""New lists of channels -> fresh units with the old weights in their places, and the swap.

A layout says, for each step and each new stream, which channels stand where. Numbers below
``count`` are of the old network, whose weights they keep; the others are fresh.
"""

from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nr.network.convolutions import ConvBN
from nr.network.graph import ADD, CAT, IMAGE, MUL, Graph, Node, Pick, read_by
from nr.network.layers import Classifier, Concat, Network, Residual
from nr.network.numbers import Lists, count_to, matched, places
from nr.network.retiring import retire
from nr.network.steps import Layer, Step, Wiring
from nr.network.units import Norm, Unit

Made = Callable[[Lists], Lists]  # old lists of one layer or selection -> one list a new stream


@dataclass
class Layout:
    """``lists``: what each step gives, by name, one list a new stream; a step that is not there
    any more has none. ``needs``: (step, which of its inputs) -> the list that it needs of it.
    """

    plan: Wiring
    made: Made
    lists: dict[str, Lists] = field(default_factory=dict)
    needs: dict[tuple[str, int], Lists] = field(default_factory=dict)

    def read(self, name: str, k: int = 0) -> Lists:
        """What the step of this name reads of its input k."""
        given = self.lists[self.plan.steps[name].inputs[k]]
        return self.needs.get((name, k), given)

    def lay(self) -> "Layout":
        """Follow every step of the network."""
        streams = len(self.made(self.plan.steps[IMAGE].numbers))
        self.lists[IMAGE] = (self.plan.steps[IMAGE].numbers[0],) * streams
        for step in self.plan.steps.values():
            if step.op != IMAGE:
                self.follow(step)
        return self

    def follow(self, step: Step) -> None:
        """One step, behind those that it reads."""
        here = {k: self.lists[n] for k, n in enumerate(step.inputs) if n in self.lists}
        if not here or (step.op == MUL and len(here) < len(step.inputs)):
            return
        last = list(here.values())[-1]
        image = len(self.lists[IMAGE][0])
        if isinstance(step.op, Pick) and (step.numbers[0] < image).all():
            self.lists[step.name] = (step.numbers[0],) * len(last)  # of the image, which stays
            return
        if isinstance(step.op, Classifier):  # of classes, which stay too
            self.lists[step.name] = (self.plan.canonical(step.numbers)[0],) * len(last)
            return
        if step.name in self.plan.by_name or isinstance(step.op, Pick):
            found = self.made(self.plan.canonical(step.numbers))
            if not any(map(len, found)):
                return
            need = self.needed(step, found)
        elif step.op == CAT:
            found, need = tuple(map(torch.cat, zip(*here.values(), strict=True))), None
        elif step.op == MUL:
            found, need = self.multiply(step)
        else:
            found, need = last, last if step.op == ADD else None
        self.lists[step.name] = found
        if need is not None:
            for k, given in here.items():
                self.want(step, k, need, given)

    def want(self, step: Step, k: int, need: Lists, given: Lists) -> None:
        """Have the input k of a step in the order ``need``."""
        if not all(map(torch.equal, need, given)):
            self.needs[step.name, k] = need

    def multiply(self, step: Step) -> tuple[Lists, None]:
        """The list of what is multiplied, and of its factors what stands beside it."""
        canonical = self.plan.canonical
        sides = [canonical(self.plan.steps[name].numbers) for name in step.inputs]
        own = canonical(step.numbers)
        main = next(k for k, side in enumerate(sides) if all(map(torch.equal, side, own)))
        found = self.lists[step.inputs[main]]
        for k, side in enumerate(sides):
            if k != main:
                need = tuple(self.beside(own, side, stream) for stream in found)
                self.want(step, k, need, self.lists[step.inputs[k]])
        return found, None

    def beside(self, own: Lists, other: Lists, made: Tensor) -> Tensor:
        """For channels of ``own`` those that stood beside them in ``other``."""
        count = len(self.plan.source)
        given, beside = torch.cat(own), torch.cat(other)
        order = given.argsort(stable=True)
        at = torch.searchsorted(given[order], made % count)
        return beside[order[at]] + made - made % count

    def needed(self, step: Step, made: Lists) -> Lists | None:
        """In which order a step has to read what it makes this of; None: in any."""
        if isinstance(step.op, Pick):
            return made
        layer = self.plan.by_name[step.name]
        if isinstance(layer.unit, Norm):
            width = (1, 1)
        elif layer.unit.group is None:
            return None
        else:
            width = layer.unit.group
        return tuple(self.sources(layer, numbers, *width) for numbers in made)

    def sources(self, layer: Layer, made: Tensor, ins: int, outs: int) -> Tensor:
        """Of groups of outputs, in their order, the inputs."""
        reads = torch.cat(self.plan.canonical(layer.reads)).view(-1, ins)
        first = torch.cat(self.plan.canonical(layer.numbers))[::outs]
        columns = [self.beside((first,), (column,), made[::outs]) for column in reads.unbind(1)]
        return torch.stack(columns, dim=1).flatten()


def remade(
    layout: Layout, form: str, apart: Set[str] = frozenset()
) -> dict[str, Unit | Classifier]:
    """Fresh units and classifiers of a layout, by name; the network keeps its own.

    ``apart``: the layers whose second stream is not connected to the first, and trains.
    """
    found: dict[str, Unit | Classifier] = {}
    for name in layout.lists:
        step = layout.plan.steps[name]
        if name in layout.plan.by_name:
            layer = layout.plan.by_name[name]
            widths = [tuple(map(len, lists)) for lists in (layout.read(name), layout.lists[name])]
            found[name] = layer.unit.remade(form_of(layer, form, apart), *widths)
        elif isinstance(step.op, Classifier):
            found[name] = step.op.remade(tuple(map(len, layout.read(name))))
    weights = [conv.weight for layer in layout.plan.layers for conv in layer.unit.convs]
    if any(not weight.is_contiguous() for weight in weights):
        for unit in found.values():
            unit.to(memory_format=torch.channels_last)
    for name in apart & found.keys():
        for layers in found[name].children():
            layers[1:].requires_grad_(True)
    return found


def form_of(layer: Layer, form: str, apart: Set[str]) -> str:
    """No mode has cross blocks in the stem, which reads the image twice, or between groups."""
    alone = not isinstance(layer.unit, ConvBN) or IMAGE in layer.sources or layer.unit.group
    alone = alone or layer.name in apart
    return "removed" if form != "plain" and alone else form


@torch.no_grad()
def transplant(layout: Layout, made: dict[str, Unit | Classifier]) -> None:
    """Copy the weights and norms of all channels that the old network has, too."""
    for name, unit in made.items():
        step = layout.plan.steps[name]
        reads = layout.read(name)
        old_reads = layout.plan.canonical(layout.plan.steps[step.inputs[0]].numbers)
        if isinstance(unit, Classifier):
            _transplant_classifier(step.op, unit, reads, old_reads)
        else:
            own = layout.lists[name], layout.plan.canonical(step.numbers)
            _transplant_unit(step.op, unit, (reads, old_reads), own)


def _transplant_unit(
    old: Unit, new: Unit, reads: tuple[Lists, Lists], own: tuple[Lists, Lists]
) -> None:
    """The weights and norms of what a unit read and made, and reads and makes: (new, old)."""
    for i, o, block in new.blocks():
        for old_i, old_o, old_block in old.blocks():
            rows = matched(own[0][o], own[1][old_o])
            columns = matched(reads[0][i], reads[1][old_i])
            if old.group is not None:  # a group that lives keeps all its inputs
                columns = (count_to(old_block.shape[1]),) * 2
            _copy(block, old_block, rows, columns)
    for norm, numbers in zip(new.norms, own[0], strict=True):
        for old_norm, old_numbers in zip(old.norms, own[1], strict=True):
            _copy_norm(norm, old_norm, matched(numbers, old_numbers))


def _copy(new: Tensor, old: Tensor, *places: tuple[Tensor, Tensor]) -> None:
    """Copy the entries of the first two dimensions that both have: their (new, old) places."""
    (rows, old_rows), (columns, old_columns) = (
        [side.to(old.device) for side in pair] for pair in places
    )
    if len(rows) and len(columns):
        new[rows[:, None], columns] = old[old_rows][:, old_columns]


def _copy_norm(new: nn.Module, old: nn.Module, places: tuple[Tensor, Tensor]) -> None:
    theirs = old.state_dict()
    for name, tensor in new.state_dict().items():
        here, there = (side.to(tensor.device) for side in places)
        if tensor.ndim and len(here):
            tensor[here] = theirs[name][there]
        elif len(here):
            tensor.copy_(theirs[name])


def _transplant_classifier(old: Classifier, new: Classifier, reads: Lists, were: Lists) -> None:
    """The columns that both have; one stream of several has the bias of each."""
    bias = old.linears[0].bias
    classes = count_to(old.num_classes)
    for stream, block in new.blocks():
        for old_stream, old_block in old.blocks():
            columns = matched(reads[stream], were[old_stream])
            _copy(block, old_block, (classes, classes), columns)
    merged = len(old.linears) > len(new.linears)
    if bias is not None:
        new.linears[0].bias.copy_(bias * len(old.linears) if merged else bias)


def swap(model: Network, layout: Layout, made: dict[str, Unit | Classifier]) -> None:
    """Put everything that was made in its place: nothing here can fail."""
    old = list(model.parameters())
    for name, unit in made.items():
        layout.plan.steps[name].op.adopt(unit)
    modules = dict(model.named_modules())
    for name in dropped(layout):
        container = modules.get(name)
        if isinstance(container, Residual | Concat):
            container.branch = None
    for name, graph in _graphs(model):
        nodes, picks = _rewritten(layout, graph, f"{name}.")
        kept = {node.name for node in nodes}
        graph.rewrite(nodes, {name: pick for name, pick in picks.items() if name in kept})
    retire(model, old)


def dropped(layout: Layout) -> tuple[str, ...]:
    """The sums and concatenations that go on without some of what they read."""
    return tuple(
        name
        for name in layout.lists
        if layout.plan.steps[name].op in (ADD, CAT)
        and any(source not in layout.lists for source in layout.plan.steps[name].inputs)
    )


def check_picks(model: Network, layout: Layout) -> None:
    """Raise ValueError where a container other than a graph would have to move channels."""
    prefixes = tuple(f"{name}." for name, _ in _graphs(model))
    for name, _ in layout.needs:
        if not name.startswith(prefixes or ("\0",)):
            raise ValueError(
                f"{name}: reads channels in an order that its input does not have them in, as of"
                " groups or sums over a concatenation: put a 1x1 nr.ConvBN between them"
            )


def _graphs(model: Network) -> list[tuple[str, Graph]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Graph)]


def _rewritten(layout: Layout, graph: Graph, prefix: str) -> tuple[list[Node], dict[str, Pick]]:
    """The nodes of a graph that stay, with selections where an order is needed.

    A selection of a selection is one, and one of everything is none, but where others read that
    too: what follows may change it in place.
    """
    readers = Counter(source for node in graph.nodes for source in node.inputs)
    known = {node.name: node for node in graph.nodes}
    nodes: dict[str, Node] = {}
    picks: dict[str, Pick] = {}
    names: dict[str, str] = {}  # of the node that now stands for another

    def before(source: str) -> str:
        """What a selection, or several, select from."""
        while source in known and isinstance(graph.module(known[source]), Pick):
            (source,) = known[source].inputs
        return source

    for node in graph.nodes:
        name, inputs = prefix + node.name, []
        for k, source in enumerate(node.inputs):
            given = layout.plan.steps[name].inputs[k]
            if name not in layout.lists or given not in layout.lists:
                continue
            need = layout.needs.get((name, k))
            if need is None and isinstance(graph.module(node), Pick):
                need = layout.lists[name]
            if need is not None:
                source = before(source)
                if source != node.inputs[k]:
                    given = layout.plan.steps[prefix + node.inputs[k]].inputs[0]
                    while isinstance(layout.plan.steps[given].op, Pick):
                        given = layout.plan.steps[given].inputs[0]
                alone = readers[source] == 1 or not isinstance(graph.module(node), Pick)
                if alone and all(map(torch.equal, need, layout.lists[given])):
                    need = None
            source = names.get(source, source)
            if need is not None:
                pick = Pick(map(places, need, layout.lists[given]))
                own = node.name if isinstance(graph.module(node), Pick) else f"{node.name}_pick{k}"
                picks[own], nodes[own] = pick, Node(own, None, (source,))
                source = own
            inputs.append(source)
        if inputs and isinstance(graph.module(node), Pick):
            names[node.name] = inputs[0]
        elif inputs:
            nodes[node.name] = node._replace(inputs=tuple(inputs))
    ends = {[*nodes][-1]} if graph.outputs is None else graph.ends()
    return read_by(list(nodes.values()), ends), picks
