"""Layers that a user names: those that keep their width, and those that do not change at all."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch

from nr.network.layers import Classifier, Network
from nr.network.units import Unit


class Held(NamedTuple):
    """Names of units and classifiers: ``keep`` live and keep their width, ``freeze`` all else."""

    keep: frozenset[str] = frozenset()
    freeze: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        return self.keep | self.freeze


NOTHING = Held()


def hold(model: Network, keep: Iterable[str] = (), freeze: Iterable[str] = ()) -> None:
    """Name layers of ``model`` that stay, from here on and in files, in place of those before.

    ``keep``: glob patterns over the names of modules, with or without "features." before them; one
    that a module matches matches all in it. Such layers are never dead and not penalised, and grow
    by the least that a second stream needs, but where a sum, group or product ties them to others
    that grow. ``freeze``: the same, and their parameters and all channels that they read stay too,
    so that nothing of them changes: they are frozen, and what is rejuvenated beside them is not
    connected to them and trains. Call it before an optimizer is made. Raises ValueError for a
    pattern that no layer matches; the network is then as it was.
    """
    patterns = [_patterns("keep", keep), _patterns("freeze", freeze)]
    for name, given in zip(("keep", "freeze"), patterns, strict=True):
        for pattern in given:
            if not any(_matches(pattern, layer) for layer in _layers(model)):
                known = ", ".join([*_layers(model)][:3])
                raise ValueError(f"{name}: {pattern!r} matches no layer of {known}, ...")
    model.keep, model.freeze = patterns
    for name in held(model).freeze:
        model.get_submodule(name).requires_grad_(False)


def held(model: Network) -> Held:
    """The layers that the patterns of ``model`` name."""
    if not model.keep and not model.freeze:
        return NOTHING
    return Held(*(_matching(model, patterns) for patterns in (model.keep, model.freeze)))


def _matching(model: Network, patterns: tuple[str, ...]) -> frozenset[str]:
    return frozenset(n for n in _layers(model) if any(_matches(p, n) for p in patterns))


def _layers(model: torch.nn.Module) -> Iterator[str]:
    return (name for name, m in model.named_modules() if isinstance(m, Unit | Classifier))


def _matches(pattern: str, name: str) -> bool:
    """Whether a layer, or a module that it is in, is called so."""
    parts = name.split(".")
    paths = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    short = [path.removeprefix("features.") for path in paths]
    return any(fnmatchcase(path, pattern) for path in (*paths, *short))


def _patterns(name: str, given: Iterable[str]) -> tuple[str, ...]:
    found = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    if odd := [pattern for pattern in found if not isinstance(pattern, str) or not pattern]:
        raise ValueError(f"{name}: {odd[0]!r} is no pattern of names, such as 'layer4.*'")
    return found
