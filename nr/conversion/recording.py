"""Tracing by torch.fx with known values: tensors are on the meta device, sizes are numbers.

The forward of a copy without memory runs once. Its operations on tensors become a graph. When
Python asks for a size it gets it, and the graph records which one that was. What a graph cannot
hold (no_grad, autocast, checkpointing, random numbers) is refused by name.
"""

from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.autograd.graph import saved_tensors_hooks

from nr.conversion.hidden import CHANGED, drawn_from, same_random, surroundings
from nr.conversion.values import RESULT, TensorValue, Value, compute

BATCH = 2  # images that are followed; with one, a forward could squeeze it away
CONSTANT = "_tensor_constant"  # what torch.fx calls the tensors that a forward makes
VALUES = (
    "asks for the values of an activation, so that torch.fx cannot trace it: only networks whose"
    " forward does not depend on values can be converted"
)
LEAVES = (nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm)
DROPOUTS = (F.dropout, F.dropout2d)
FROZEN = "FrozenBatchNorm2d"  # as in torchvision and detectron2


# What activation checkpointing calls, with use_reentrant and without.
CHECKPOINTING = ("CheckpointFunction", "_NoopSaveInputs")
# Contexts, on or off, whose operations look in the graph like any others.
UNSEEN: dict[Any, str] = {
    torch.autocast: "torch.autocast",
    saved_tensors_hooks: "activation checkpointing, or other hooks on what is saved for the"
    " backward pass",
}


class Refusal(ValueError):
    """What cannot be traced; ``path``: the module whose forward does it, "" for the whole."""

    def __init__(self, path: str, reason: str):
        super().__init__(reason)
        self.path = path


class Drawn(Refusal):
    """A forward that draws random numbers."""


class Unfit(ValueError):
    """An operation that does not take what it is given."""


class Tracer(fx.Tracer):
    """Traces ``model``, a copy made by ``on_meta``, in the mode that it is in.

    ``called``: another copy, in eval mode, whose modules are called: in train mode a norm may ask
    for values. ``like``: a parameter of the original. ``whole``: classes, and names of modules,
    that are not looked into. ``refused`` collects, by module, what would be lost.

    Afterwards ``log`` has what was called, entered and left, in order; ``told`` the nodes whose
    values Python asked for, and where; ``changed`` a module and an attribute that the forward has
    set.
    """

    def __init__(
        self,
        model: nn.Module,
        called: nn.Module,
        like: Tensor,
        whole: Set[type | str],
        refused: dict[str, str],
    ):
        super().__init__(autowrap_functions=())
        self.proxy_buffer_attributes = True
        self.model, self.called, self.like = model, called, like
        self.whole, self.refused = whole, refused
        self.names = {module: name for name, module in model.named_modules()}
        self.computing = False
        self.log: list[tuple[Any, ...]] = []
        self.changed: tuple[str, str] | None = None
        self.told: list[tuple[fx.Node, tuple[int, ...]]] = []

    def run(self, images: Tensor) -> fx.Graph:
        """The graph for ``images``. Raises Refusal, Unfit, and whatever the forward raises."""
        self.images, held = images, _held(self.model)
        with torch.enable_grad(), _watched(self), same_random():
            self.around, self.drawn = surroundings(), drawn_from(self.like)
            graph = self.trace(lambda images: self.model(images))
        _compare(self, *held)
        return graph

    def refuse(self, reason: str, path: str | None = None) -> None:
        """Note what would be lost, and go on."""
        self.refused.setdefault(self.path if path is None else path, reason)

    def create_args_for_root(self, fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Look names up in ``model``, though torch.fx is given a function that calls it.

        So the defaults of its arguments count, and so does a forward that was set on the instance.
        """
        self.root, self.submodule_paths = self.model, self.names
        for name, module in self.model.named_modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor):
                    self.tensor_attrs[value] = f"{name}.{key}" if name else key
        return super().create_args_for_root(fn, is_module, concrete_args)

    def proxy(self, node: fx.Node) -> Value:
        value = node.meta.get(RESULT)
        if not isinstance(value, Tensor):
            return Value(node, self)
        proxy = Tensor._make_subclass(TensorValue, value.detach())
        proxy.node, proxy.tracer = node, self
        return proxy

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, Tensor) and a.is_meta and not _owns(self.model, a):
            raise Refusal(self.path, "computes with what was made of its parameters elsewhere")
        return super().create_arg(a)

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any
    ) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **options)
        if kind == "output":
            return node
        self._check_surroundings()
        node.meta[RESULT] = self.images if kind == "placeholder" else self.result(node)
        if target is torch._assert and isinstance(node.args[0], fx.Node):
            self.tell(node.args[0], ())
        if target in DROPOUTS:
            kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        made = kind == "get_attr" and vars(self.model).get(target)  # in the forward
        content = made.tolist() if isinstance(made, Tensor) else None
        self.log.append(("node", kind, target, repr((args, kwargs, content))))
        return node

    def result(self, node: fx.Node) -> object:
        """What ``node`` gives. Raises Unfit, or Refusal if that depends on values."""
        self.computing = True
        try:
            return compute(node, lambda n: n.meta[RESULT], self.model, self.called)
        except Exception as error:  # whatever an operation may raise
            if isinstance(error, NotImplementedError) or "meta tensor" in str(error).lower():
                raise Refusal(self.path, VALUES) from error
            raise Unfit(f"{self.path or node.name}: {error}") from error
        finally:
            self.computing = False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if not name:
            return False
        known = isinstance(module, LEAVES) and not _own_forward(module)
        whole = type(module) in self.whole or name in self.whole or type(module).__name__ == FROZEN
        if (leaf := known or whole or super().is_leaf_module(module, name)) and "forward" in vars(
            module
        ):
            self.refuse("has a forward put on the instance, which would be lost", name)
        return leaf

    def call_module(self, module: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Log what is entered and left, and notice random numbers drawn in it."""
        if self.computing:
            return forward(*args, **kwargs)
        path = self.names.get(module)
        if path is None:
            raise Refusal(
                self.path,
                f"calls a {type(module).__name__} that is no part of it, or is one of the network"
                " that a forward put on the instance holds: make it an attribute, or use self",
            )
        self.log.append(("enter", path))
        result = super().call_module(module, forward, args, kwargs)
        if (drawn := drawn_from(self.like)) != self.drawn:
            self.drawn = drawn
            if not is_plain(module):
                self.refuse("draws random numbers in its forward, and tracing would fix them", path)
            elif type(module) not in self.whole:
                raise Drawn(path, "draws random numbers in its forward")
        self._check_surroundings()
        self.log.append(("exit", path, repr(pytree.tree_map(_name, result))))
        return result

    @property
    def path(self) -> str:
        """The module whose forward is running."""
        return next(reversed(self.module_stack.values()), ("",))[0]

    def tell(self, node: fx.Node, place: tuple[int, ...]) -> Any:
        """The value of ``node``, which Python asks for at ``place``."""
        value = node.meta[RESULT]
        if isinstance(value, Tensor):
            raise Refusal(self.path, VALUES)
        self.told.append((node, place))
        return value

    def _check_surroundings(self) -> None:
        for was, found, what in zip(self.around, surroundings(), CHANGED, strict=True):
            if found != was:
                self.refuse(f"computes under {what}, which would be lost")


Held = dict[str, dict[str, object]]
Versions = dict[str, tuple[Tensor, int]]


def _held(model: nn.Module) -> tuple[Held, Versions]:
    """The attributes of all modules, and all tensors with their versions."""
    held = {name: dict(vars(module)) for name, module in model.named_modules()}
    return held, {name: (tensor, tensor._version) for name, tensor in _tensors(model).items()}


def _compare(tracer: Tracer, held: Held, before: Versions) -> None:
    """See what the forward has changed."""
    for name, module in tracer.model.named_modules():
        for key, value in vars(module).items():
            made = key.startswith(CONSTANT) or isinstance(value, fx.Proxy)
            if not made and held[name].get(key, tracer) is not value:
                tracer.changed = (name, key)
    for name, (old, version) in before.items():
        path, _, own = name.rpartition(".")
        module = tracer.model.get_submodule(path)
        tensor = getattr(module, own)
        if tensor is not old or tensor._version != version:
            tracer.refuse("is changed by the forward itself, which would be lost", name)
            module._buffers[own] = old


@contextmanager
def _watched(tracer: Tracer) -> Iterator[None]:
    """Notice the contexts of ``UNSEEN``, and autograd functions, that the forward uses."""
    enters = {cls: cls.__enter__ for cls in UNSEEN}
    apply = vars(torch.autograd.Function)["apply"]

    def noticed(context: Any) -> Any:
        cls = next(cls for cls in UNSEEN if isinstance(context, cls))
        if not tracer.computing:
            tracer.refuse(f"computes under {UNSEEN[cls]}, which would be lost")
        return enters[cls](context)

    def refused(cls: type, *args: object, **kwargs: object) -> Any:
        if tracer.computing:
            return apply.__get__(None, cls)(*args, **kwargs)
        what = f"calls {cls.__name__}, an autograd function, whose gradient would be lost"
        if cls.__name__ in CHECKPOINTING:
            what = "computes under activation checkpointing, which would be lost"
        raise Refusal(tracer.path, what)

    for cls in UNSEEN:
        cls.__enter__ = noticed  # for a while
    torch.autograd.Function.apply = classmethod(refused)
    try:
        yield
    finally:
        for cls, enter in enters.items():
            cls.__enter__ = enter
        torch.autograd.Function.apply = apply


def is_plain(module: nn.Module) -> bool:
    """Whether ``module`` can stay as it is: nothing in it is trained, counted or called."""
    return not [*module.parameters(), *module.buffers(), *module.children()]


def _own_forward(module: nn.Module) -> bool:
    """Whether a class derived from torch's convolution computes something of its own."""
    return isinstance(module, nn.Conv2d) and type(module).forward is not nn.Conv2d.forward


def _name(value: object) -> str:
    return str(value.node) if isinstance(value, fx.Proxy) else type(value).__name__


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers()])


def _owns(model: nn.Module, tensor: Tensor) -> bool:
    return any(tensor is own for own in _tensors(model).values())
