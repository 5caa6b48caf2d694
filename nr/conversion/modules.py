"""What modules of torch, and functions that are plain modules, become in the graph.

A handler takes the operands and a node, and gives an activation. Its ValueErrors say reason and
remedy.
"""

import copy
import math
from typing import cast

from torch import fx, nn

from nr.conversion.building import Activation
from nr.conversion.functions import plain_class, plain_module
from nr.conversion.making import BatchNorms, Weighing, activations, classifier, head, norm, unit
from nr.conversion.modes import FOLLOWS
from nr.conversion.operands import BATCH_NORMS, WEIGHING, Blocked, Operands
from nr.conversion.recording import FROZEN
from nr.conversion.words import first, inputs, readers, shape, word
from nr.network.convolutions import ConvBN
from nr.network.plain import KINDS, PaddedMaxPool2d

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm2d, nn.LocalResponseNorm)
NORM_WORDS = ("layer_norm", "group_norm", "rms_norm", "instance_norm", "local_response_norm")
NO_SCALES = (
    " (LayerNorm as in convnext and transformers) is no batch norm, whose scales are measured: only"
    " networks with batch norm after their convolutions can be converted"
)
CONVS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose3d)
# What treats each element by itself.
ELEMENTWISE = tuple(
    cls for cls, kind in KINDS.items() if not kind.resizes and cls not in (nn.Dropout2d, nn.PReLU)
)


def called(given: Operands, node: fx.Node, module: nn.Module) -> object:
    refuse_others(node, module)
    if isinstance(module, BATCH_NORMS):
        return normed(given, node, module)
    if isinstance(module, WEIGHING):
        return None if given.is_normed(node) else layer(given, node, module)
    made = pooled_or_plain(given, node, copy.deepcopy(module))
    if [*module.parameters()]:
        given.take(node)
    return made


def refuse_others(node: fx.Node, module: nn.Module) -> None:
    """Refuse modules of torch that have no exact form in units."""
    kind = type(module).__name__
    if isinstance(module, NORMS):
        raise ValueError(kind + NO_SCALES)
    if isinstance(module, CONVS):
        over = " and mixes channels where it slides over them, as attention over channels (eca)"
        raise ValueError(
            f"{kind} is no nn.Conv2d, the only convolution that units have,"
            f"{over if kind.endswith('1d') else ''}: use squeeze-excite with 1x1 convolutions"
        )
    if kind == FROZEN:
        raise ValueError(
            "FrozenBatchNorm2d has no scale that is trained, so nothing of it can be measured:"
            " use nn.BatchNorm2d, in eval mode and without gradients where it is to be frozen"
        )
    if len(inputs(node)) != 1:
        raise ValueError(f"{kind} reads {len(inputs(node))} activations, and units read one")


def normed(given: Operands, node: fx.Node, module: BatchNorms) -> Activation:
    """A batch norm, of the unit before it or before a convolution, and its activations."""
    if module.weight is None or module.running_mean is None:
        raise ValueError(
            "has no scale or no running statistics: affine=True and track_running_stats=True are"
            " needed"
        )
    after = [] if type(module) in BATCH_NORMS else activations(module)
    before = first(node)
    weighing = given.module(before) if given.is_normed(before) else None
    if isinstance(weighing, WEIGHING) and given.values.get(before) is None:
        try:
            value = layer(given, before, weighing, module)
            cast(ConvBN, given.modules[value.name]).norm_name = str(node.target)
        except ValueError as error:
            raise (error if isinstance(error, Blocked) else Blocked(before, str(error))) from error
    else:
        value = given.put(node, norm(module), given.read(before))
    given.take(node)
    for child in after:
        name = f"{node.target}_{type(child).__name__.lower()}"
        value = given.add(name, copy.deepcopy(child), value.name, shape(node))
    return value


def layer(
    given: Operands, node: fx.Node, module: Weighing, after: BatchNorms | None = None
) -> Activation:
    """A convolution, or a linear layer over a whole map, with the batch norm behind it."""
    linear = isinstance(module, nn.Linear)
    name, window = given.whole_map(node) if linear else (given.read(first(node)), None)
    given.take(node)
    made = unit(module, after, window)
    made.linear = linear
    return given.put(node, made, name)


def ending(given: Operands, node: fx.Node, module: nn.Linear | nn.Conv2d) -> Activation:
    """A layer that gives an output."""
    if isinstance(module, nn.Linear):
        name, window = given.whole_map(node)
        given.take(node)
        return given.put(node, classifier(module, window), name)
    name = given.read(first(node))
    given.take(node)
    return given.put(node, head(module), name)


def plain(given: Operands, node: fx.Node, module: nn.Module) -> Activation:
    """A module that treats each channel by itself; wiring tries those it does not know."""
    before = inputs(node)[0]
    if len(shape(node)) == 2 and type(module) not in KINDS:
        raise ValueError(
            f"{type(module).__name__} between linear layers is not known to nr: use one of torch's"
        )
    value = given.value(before)
    known = value.name not in given.stand_ins
    if type(module) in ELEMENTWISE and value.moved is not None and known:
        found = value.channels
        if (
            found is None or found.flat or value.moved.ndim > 4
        ):  # before it is moved it can as well pass it
            if hasattr(module, "inplace") and value.moved.numel() < value.shape.numel():
                vars(module)["inplace"] = False  # others read the rest
            made = given.add(given.traced.name(node), module, value.name, value.shape)
            return made._replace(moved=value.moved)
    return given.put(node, module, given.read(before))


def function(given: Operands, node: fx.Node, cls: type[nn.Module]) -> Activation:
    """A function that is a plain module."""
    if "dropout" in word(node) and not node.meta[FOLLOWS]:
        raise ValueError("the mode of this functional dropout is fixed: use nn.Dropout")
    module = plain_module(node, cls, lambda argument: given.traced.constant(node, argument))
    return pooled_or_plain(given, node, in_mode(given, node, module))


def in_mode(given: Operands, node: fx.Node, module: nn.Module) -> nn.Module:
    """``module`` in the mode of the module in whose forward ``node`` is."""
    return module.train(given.traced.modules[given.traced.path(node)].training)


def pooled_or_plain(given: Operands, node: fx.Node, module: nn.Module) -> Activation:
    """A plain module; a max pooling takes in the -inf that is padded before it."""
    before = inputs(node)[0]
    if not (isinstance(module, nn.MaxPool2d) and _endless(before)):
        return plain(given, node, module)
    sides = given.traced.constant(before, before.args[1])
    own = {name: getattr(module, name) for name in KINDS[nn.MaxPool2d].arguments}
    made = in_mode(given, node, PaddedMaxPool2d(sides, **own))
    return given.put(node, made, given.read(first(before)))


def pad(given: Operands, node: fx.Node) -> Activation | None:
    """Padding; -inf becomes part of the max poolings that read it."""
    after = (plain_class(n) or type(given.module(n)) for n in readers(node))
    if _endless(node) and all(issubclass(cls, nn.MaxPool2d) for cls in after):
        return None
    return function(given, node, nn.ZeroPad2d)


def _endless(node: fx.Node) -> bool:
    return word(node) == "pad" and bool(node.kwargs.get("value") == -math.inf)
