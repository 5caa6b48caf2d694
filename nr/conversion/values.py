"""Values of a traced network: proxies that Python and torch take for what they stand for.

Tensors are on the meta device, without memory; sizes, and what is computed of them, are numbers.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from nr.network.memory import without_memory

if TYPE_CHECKING:
    from nr.conversion.recording import Tracer

RESULT = "nr_result"  # what a node gives: tensors on the meta device, numbers, or tuples of them
LARGER = "nr_larger"  # what it gives where the images are larger, if it takes them
WHERE = ("device", "is_cuda", "is_cpu", "is_mps", "is_xpu")  # of the network, not of the copy
LIKE = {F.batch_norm, F.relu, torch.relu, Tensor.relu, F.relu6, F.leaky_relu, F.elu, F.mish}
LIKE |= {F.hardtanh, F.hardswish, F.hardsigmoid}  # of nn.ReLU6 the first of these


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of ``model`` without memory for its weights and without hooks."""
    copied = without_memory(model)
    for module in copied.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.clear()
    return copied


def compute(
    node: fx.Node, known: Callable[[fx.Node], object], model: nn.Module, called: nn.Module
) -> object:
    """What ``node`` gives, if ``known`` says what other nodes give.

    Parameters, buffers and constants are those of ``model``, modules those of ``called``, on the
    meta device and in eval mode.
    """

    def given(a: Any) -> Any:
        if isinstance(a, fx.Node):
            return known(a)
        return torch.device("meta") if isinstance(a, torch.device) else a

    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), given)
    target: Any = node.target
    with torch.device("meta"), Quick():
        if node.op == "get_attr":
            value = functools.reduce(getattr, target.split("."), model)
        elif node.op == "call_module":
            value = called.get_submodule(target)(*args, **kwargs)
        elif node.op == "call_method":
            value = getattr(args[0], target)(*args[1:], **kwargs)
        else:
            value = target(*args, **kwargs)
    return value.to("meta") if isinstance(value, Tensor) else value


class Quick(TorchFunctionMode):
    """Gives at once what is like the tensor that a function reads.

    On the meta device torch computes batch norms and many activations in Python.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = None
        if function in LIKE:
            with torch._C.DisableTorchFunction():
                found = _like(function, args, kwargs or {})
        return function(*args, **(kwargs or {})) if found is None else found


def _like(function: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What a function of ``LIKE`` gives; None where it is not sure to take its arguments."""
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    x, *rest = (*args, *kwargs.values())
    here = any(a is True for a in rest)  # in place; of a batch norm, in train mode
    own = [t for t in rest if isinstance(t, Tensor)]
    if function is F.batch_norm:
        known = len(args) > 2 and all(isinstance(a, Tensor) for a in args[:3]) and not here
        if not known or any(t.shape != x.shape[1:2] or t.dtype != x.dtype for t in own):
            return None
    trained = any(t.requires_grad for t in (x, *own))
    if here:
        return x if x.is_contiguous() and not (x.is_leaf and trained) else None
    return x.detach().requires_grad_(trained).clone()


class Value(fx.Proxy):
    """A proxy that Python takes for the number, size or tuple that it stands for."""

    tracer: "Tracer"

    __class__ = property(lambda self: type(self.node.meta[RESULT]))

    def __getattr__(self, name: str) -> Any:
        return _attribute(self, name)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """A call of torch's; the sizes that its parser asks for stay in the graph."""
        place = _place()
        result: Any = super().__torch_function__(function, types, args, kwargs)
        result.tracer.told = [each for each in result.tracer.told if each[1] != place]
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> "Value":
        return self

    def __bool__(self) -> bool:
        return bool(self.tracer.tell(self.node, _place()))

    def __int__(self) -> int:
        return int(self.tracer.tell(self.node, _place()))

    def __float__(self) -> float:
        return float(self.tracer.tell(self.node, _place()))

    def __index__(self) -> int:
        return self.tracer.tell(self.node, _place()).__index__()

    def __round__(self, *digits: int) -> float:
        return round(self.tracer.tell(self.node, _place()), *digits)

    def __format__(self, spec: str) -> str:
        return format(self.node.meta[RESULT], spec)

    def __contains__(self, item: object) -> bool:
        return any(bool(item == own) for own in self)

    def __len__(self) -> int:
        value = self.node.meta[RESULT]
        return int(self.shape[0]) if isinstance(value, Tensor) else len(value)

    def __iter__(self) -> Iterator[Any]:
        own: Any = self  # torch.fx gives it operators when it is imported
        return (own[index] for index in range(len(self)))


class TensorValue(Value, Tensor):  # type: ignore[misc] # of what both have, Value's counts
    """A proxy of a tensor that is a tensor, since torch's own code looks into it."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("node", "tracer") or name.startswith("__"):
            return object.__getattribute__(self, name)
        return _attribute(self, name)


def _place() -> tuple[int, int]:
    """Where the traced code is: its frame, and the instruction there."""
    frame = sys._getframe(2)
    return id(frame), frame.f_lasti


def _attribute(proxy: Value, name: str) -> object:
    """An attribute of what ``proxy`` stands for; methods become calls in the graph."""
    tracer, value = proxy.tracer, proxy.node.meta[RESULT]
    if isinstance(value, Tensor) and name in WHERE:
        return getattr(tracer.like, name)
    found = getattr(value, name)
    if name.startswith("_") or isinstance(found, torch.dtype):
        return found
    if callable(found):
        return lambda *args, **kwargs: tracer.create_proxy(
            "call_method", name, (proxy, *args), kwargs
        )
    return tracer.create_proxy("call_function", getattr, (proxy, name), {})
