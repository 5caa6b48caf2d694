"""Layers that a user names: some keep their width, some do not change at all."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch

from nr.network.layers import Classifier, Network
from nr.network.units import Unit


class Held(NamedTuple):
    """Names of units and classifiers: ``keep`` live and keep their width; ``freeze`` stay."""

    keep: frozenset[str] = frozenset()
    freeze: frozenset[str] = frozenset()

    @property
    def all(self) -> frozenset[str]:
        return self.keep | self.freeze


NOTHING = Held()


def hold(model: Network, keep: Iterable[str] = (), freeze: Iterable[str] = ()) -> None:
    """Name layers of ``model`` that stay. This replaces what was named before; files keep it.

    - ``keep``: glob patterns for the names of modules, "features." in front or not. A module that
      matches stands for all layers in it. These layers are never dead and not penalised. They grow
      by the least that a second stream needs, and more only if a sum, group or product ties them to
      layers that grow.
    - ``freeze``: the same, and their parameters and all channels that they read stay too, so
      nothing of them changes. What is rejuvenated beside them is not connected to them, and trains.

    Call it before you make an optimizer. Raises ValueError for a pattern that no layer matches; the
    network is then as it was.
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
    """The layers that the patterns of ``model`` match."""
    if not model.keep and not model.freeze:
        return NOTHING
    return Held(*(_matching(model, patterns) for patterns in (model.keep, model.freeze)))


def _matching(model: Network, patterns: tuple[str, ...]) -> frozenset[str]:
    return frozenset(n for n in _layers(model) if any(_matches(p, n) for p in patterns))


def _layers(model: torch.nn.Module) -> Iterator[str]:
    return (name for name, m in model.named_modules() if isinstance(m, Unit | Classifier))


def _matches(pattern: str, name: str) -> bool:
    """Whether the pattern is the name of the layer, or of a module around it."""
    parts = name.split(".")
    paths = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    short = [path.removeprefix("features.") for path in paths]
    return any(fnmatchcase(path, pattern) for path in (*paths, *short))


def _patterns(name: str, given: Iterable[str]) -> tuple[str, ...]:
    found = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    if odd := [pattern for pattern in found if not isinstance(pattern, str) or not pattern]:
        raise ValueError(f"{name}: {odd[0]!r} is no pattern of names, such as 'layer4.*'")
    return found
