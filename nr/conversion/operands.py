"""What the operations of a traced network read: activations of the new graph, and constants.

Every handler of an operation gets these and a node. Its errors name no module: that is added once.
"""

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from nr.conversion import moves
from nr.conversion.building import Activation, Builder
from nr.conversion.obstacles import opaque
from nr.conversion.tracing import Traced
from nr.conversion.values import RESULT
from nr.conversion.words import first, has_tensor, readers, shape, word
from nr.network.graph import IMAGE

BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm)
WEIGHING = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class Blocked(ValueError):
    """An operand that cannot be read because of the operation ``node``, which made it."""

    def __init__(self, node: fx.Node, reason: str):
        super().__init__(reason)
        self.node = node


class Operands(Builder):
    """The graph so far, and what each traced node has become.

    ``values``: by node an Activation, or several. ``fixed``: what is made of buffers and constants
    alone.
    """

    def __init__(self, traced: Traced):
        image = traced.nodes[0]
        super().__init__(shape(image))
        self.traced = traced
        self.values: dict[fx.Node, Any] = {image: Activation(IMAGE, shape(image))}
        self.images = {IMAGE}  # the image, and what constants have made of it
        self.stand_ins: set[str] = set()
        self.fixed: dict[fx.Node, Tensor] = {}
        self.called: set[str] = set()  # modules with weights that have become part of something

    def put(self, node: fx.Node, module: nn.Module, before: str) -> Activation:
        """Let ``module`` do what ``node`` does."""
        return self.add(self.traced.name(node), module, before, shape(node))

    def stand_in(self, node: fx.Node) -> Any:
        """New channels that stand for what ``node`` gives."""

        def stand_in(tensor: object) -> object:
            if not isinstance(tensor, Tensor):
                return tensor
            module = opaque(tensor.shape, self.traced.image_channels)
            made = self.add(self.traced.name(node), module, IMAGE, tensor.shape)
            self.stand_ins.add(made.name)
            return made

        return pytree.tree_map(stand_in, node.meta[RESULT])

    def joined(self, node: fx.Node, word: str, names: list[str]) -> Activation:
        """What joins activations; as parts of channels if ``node`` gives such."""
        own = shape(node)
        flat = own if own.numel() == 0 or len(own) in (2, 4) else moves.flat(own)
        value = self.join(self.traced.name(node), word, names, flat)
        return value if flat == own else value._replace(moved=moves.places(flat).view(own))

    def value(self, node: fx.Node) -> Activation:
        """The activation that ``node`` gives."""
        if isinstance(value := self.values.get(node), Activation):
            return value
        if node.op == "get_attr" or node in self.fixed:
            name = node.target if node.op == "get_attr" else self.traced.name(node)
            raise ValueError(f"{name} is computed with outside of a module of torch's: use one")
        raise Blocked(node, "gives several activations, or none: read one of them")

    def read(self, before: fx.Node, spread: bool = False) -> str:
        """The name of the activation [B, C, H, W] that ``before`` gives.

        ``spread``: one pixel may stand for the whole map.
        """
        value = self.value(before)
        return value.name if value.moved is None else self.selected(before, value, spread)

    def selected(self, before: fx.Node, value: Activation, spread: bool = False) -> str:
        """The name of the channels that ``value``, of ``before``, is made of."""
        found, pixels = value.channels, value.shape[2:].numel()
        if found and not (found.flat and pixels > 1) and (spread or not found.spread):
            return self.chosen(self.pick_name(before), value, found.chosen)
        if value.name in self.stand_ins:  # of which nothing is known
            self.values[before] = self.stand_in(before)
            return self.values[before].name
        raise Blocked(
            before,
            f"makes {list(value.places.shape)} of something else than whole channels (as pixels or"
            " parts of channels), and units read channels: move whole channels only",
        )

    def part(self, before: fx.Node, value: Activation) -> str:
        """``selected``, or what was concatenated, for what changes nothing in place."""
        found = value.channels
        for name, start, width in self.cats.get(value.name, ()):
            own = torch.arange(start, start + width, device="cpu")
            if found is not None and torch.equal(found.chosen, own):
                return name
        return self.selected(before, value)

    def whole_map(self, node: fx.Node) -> tuple[str, tuple[int, int]]:
        """What a flattened linear layer reads, and its (H, W)."""
        before = first(node)
        value = self.value(before)
        if value.name in self.stand_ins and value.shape != shape(before):
            value = self.values[before] = self.stand_in(before)
        found = value.channels
        if found is None or found.spread or len(shape(node)) != 2:
            raise ValueError(
                f"reads {list(shape(before))}, and only an nn.Linear over a map that was flattened"
                " is a convolution: put nn.Flatten() before it"
            )
        height, width = value.shape[2:] or (1, 1)
        return self.chosen(self.pick_name(node), value, found.chosen), (height, width)

    def pick_name(self, node: fx.Node) -> str:
        """The name of a selection: of the buffer with its places, if there is one."""
        if word(node) == "index_select" and isinstance(node.args[-1], fx.Node):
            return str(node.args[-1].target)
        return f"{self.traced.name(node)}_pick"

    def module(self, node: object) -> nn.Module | None:
        """The module that a node calls."""
        return self.traced.module(node) if isinstance(node, fx.Node) else None

    def is_normed(self, node: fx.Node) -> bool:
        """Whether a batch norm of its own follows a convolution or linear layer."""
        after = list(readers(node))
        return len(after) == 1 and isinstance(self.module(after[0]), BATCH_NORMS)

    def take(self, node: fx.Node) -> None:
        """Take the module of a node. Raises ValueError if it is called a second time."""
        if str(node.target) in self.called:
            raise ValueError(
                "is called more than once, and each place in a network of units has weights of its"
                " own: use a module for each"
            )
        self.called.add(str(node.target))

    def constant(self, node: fx.Node, operand: Any) -> Any:
        """An operand that is a number or a fixed tensor; None if it is not."""
        if operand in self.fixed:
            tensor = self.fixed[operand]
            return tensor.item() if tensor.numel() == 1 else tensor
        if isinstance(operand, fx.Node) and has_tensor(operand):
            return None
        return self.traced.constant(node, operand)

    def fix(self, node: fx.Node) -> None:
        """Keep a tensor as known if it is made of buffers; parameters are trained."""
        if node.op != "get_attr":
            self.traced.constant(node, (node.args, node.kwargs))  # those that bind the network
            self.fixed[node] = self.called_with(node, self.fixed)
        elif type(tensor := self.traced.tensor(node)) is Tensor and not tensor.is_meta:
            self.fixed[node] = tensor

    def called_with(self, node: fx.Node, read: dict[fx.Node, Tensor]) -> Any:
        """What ``node`` gives for these tensors, with the sizes of the trace."""
        known = {n: n.meta[RESULT] for n in node.all_input_nodes} | read
        read_, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        args: Any = read_
        module = self.traced.module(node)
        call: Any = node.target if module is None else module
        if node.op == "call_method":
            return getattr(args[0], call)(*args[1:], **kwargs)
        return call(*args, **kwargs)
