"""The optimizer of a rebuilt network: the old one's class, with the state of what survived."""

import copy
from inspect import isroutine
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nr.method.rebuilding import Move
from nr.method.sparsity import SGD, prunable_units
from nr.network.retiring import GONE

Parameters = dict[str, nn.Parameter]  # of one unit or classifier, by name in it
NAMES = "param_names"  # of an optimizer's group, where it was given names


Made = TypeVar("Made", bound=Optimizer)


@torch.inference_mode(False)
@torch.no_grad()
def carry(optimizer: Made) -> Made:
    """A new optimizer like ``optimizer``, for its network as it has been rebuilt since.

    Call it after nr.rejuvenate or nr.merge. It has the class, groups, options and hooks of
    ``optimizer``; each parameter is in the group of the one that it comes from. What survived keeps
    its rows of every state tensor that has its parameter's shape (momentum, averages); fresh rows
    are 0; numbers (step counts) stay. An nr.SGD keeps its sparsity. Make a new learning rate
    scheduler. What trains beside frozen layers is in no group, if ``optimizer`` did not hold these:
    use add_param_group.

    Raises ValueError for what is no optimizer, for parameters that nr.load replaced, and for state
    that is neither a number nor of its parameter's shape.
    """
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"optimizer: a {type(optimizer).__name__} is no torch.optim.Optimizer")
    carried = _Carried(optimizer)
    while carried.gone():
        carried.follow()
    new = type(optimizer).__new__(type(optimizer))
    own = {name: value for name, value in vars(optimizer).items() if not isroutine(value)}
    vars(new).update(own | {"defaults": copy.copy(optimizer.defaults), "state": carried.state})
    new.param_groups = carried.groups
    if isinstance(new, SGD):
        new.units = prunable_units(new.model)
    return new


class _Carried:
    """Groups and state of an optimizer, moved to the parameters that the network has now."""

    def __init__(self, optimizer: Optimizer):
        self.kind, self.state = type(optimizer).__name__, copy.copy(optimizer.state)
        self.groups = [dict(group) for group in optimizer.param_groups]

    def gone(self) -> list[nn.Parameter]:
        return [p for group in self.groups for p in group["params"] if GONE in vars(p)]

    def follow(self) -> None:
        """Move through the next rebuild of each parameter that is gone."""
        moves: dict[int, tuple[Move, Parameters]] = {}
        gone = self.gone()
        for parameter in gone:
            if (origin := vars(parameter)[GONE]) is None:
                raise ValueError(
                    f"{self.kind}: its network was loaded anew (nr.load with into) after it was"
                    " made, which says nothing of its state: make a new one"
                )
            if origin:
                move, path = origin
                moves.setdefault(id(move), (move, {}))[1][path] = parameter
        for move, held in moves.values():
            self.state.update(self.carried(move, held))
        for parameter in gone:
            self.state.pop(parameter, None)
        for group in self.groups:
            names = group.get(NAMES, [""] * len(group["params"]))
            pairs = self.replaced(dict(zip(group["params"], names, strict=True)), moves)
            group["params"] = [heir for heir, _ in pairs]
            if NAMES in group:
                group[NAMES] = [name for _, name in pairs]

    @staticmethod
    def replaced(
        group: dict[nn.Parameter, str], moves: dict[int, tuple[Move, Parameters]]
    ) -> list[tuple[nn.Parameter, str]]:
        """The parameters of a group, with names; those of a unit in the unit's order.

        So an optimizer of all parameters has them in the order of its network.
        """
        found, done = [], set()
        for parameter, name in group.items():
            if GONE not in vars(parameter):
                found.append((parameter, name))
            elif origin := vars(parameter)[GONE]:
                move, path = origin
                _, held = moves[id(move)]
                for new, heir in move.heirs.items() if id(move) not in done else ():
                    kin = _kin(new, move, held)
                    if kin and held[kin[0]] in group:
                        found.append((heir, name.removesuffix(path) + new))
                done.add(id(move))
        return found

    def carried(self, move: Move, held: Parameters) -> dict[Tensor, dict[str, object]]:
        """The state of the heirs of one move, whose old parameters are ``held``."""
        states = {path: self.state[p] for path, p in held.items() if self.state.get(p)}
        found = {}
        for path, heir in move.heirs.items():
            if kin := [old for old in _kin(path, move, held) if old in states]:
                entry = states[kin[0]].items()
                found[path] = {n: self.fresh(n, v, held[kin[0]], heir) for n, v in entry}
        shaped = {
            name: value
            for path, entry in states.items()
            for name, value in entry.items()
            if isinstance(value, Tensor) and value.shape == move.before[path]
        }
        for name, like in shaped.items() if move.kept else ():
            zero, theirs, ours = like.new_zeros(()), {}, {}
            for path, shape in move.before.items():
                theirs[path] = _tensor(states, path, name, zero.expand(shape))
            for path, heir in move.heirs.items():
                ours[path] = _tensor(found, path, name, torch.zeros_like(heir))
            move.copy(ours, theirs)
        return {move.heirs[path]: entry for path, entry in found.items()}

    def fresh(self, name: str, value: object, old: nn.Parameter, heir: nn.Parameter) -> object:
        """The state of an heir of which nothing survived: zeros, or the same number."""
        if not isinstance(value, Tensor):
            if value is None or isinstance(value, bool | int | float):
                return value
        elif value.shape == old.shape:
            return torch.zeros_like(heir, dtype=value.dtype)
        elif value.ndim == 0 or value.numel() == 1:
            return value.clone()
        raise ValueError(
            f"{self.kind}: its state {name!r} is neither a number nor of the shape of its"
            f" parameter, {list(old.shape)}, so nobody knows which part of it survived: make a new"
            " one"
        )


def _kin(path: str, move: Move, held: Parameters) -> list[str]:
    """The ``held`` parameters of the kind of an heir; any of its unit if there was none."""

    def kind(name: str) -> tuple[str, str]:
        return name.split(".")[0], name.split(".")[-1]

    if any(kind(old) == kind(path) for old in move.before):
        return [old for old in held if kind(old) == kind(path)]
    return list(held)[:1]


def _tensor(entries: dict[str, dict[str, object]], path: str, name: str, default: Tensor) -> Tensor:
    """One state of one parameter, if it has it."""
    value = entries.get(path, {}).get(name)
    return value if isinstance(value, Tensor) else default
