"""The networks of the paper, built from nr's units."""

import importlib
import inspect
from collections.abc import Mapping

from nr.layers import Network

FAMILIES = ("cifar", "imagenet")


def archs(family: str) -> Mapping:
    """The builders of ``models.<family>`` by name."""
    return importlib.import_module(f"models.{family}").ARCHS


def options(family: str, arch: str) -> set[str]:
    """The keyword arguments that a builder takes."""
    return set(inspect.signature(archs(family)[arch]).parameters)


def build(family: str, arch: str, **keywords) -> Network:
    """Build ``models.<family>.<arch>``. Raises ValueError for an unknown name or value."""
    if family not in FAMILIES or arch not in archs(family):
        raise ValueError(f"arch {arch}: models.{family} has no such network")
    unknown = sorted(keywords.keys() - options(family, arch))
    if unknown:
        raise ValueError(f"{unknown[0]}: {arch} takes no such option")
    return archs(family)[arch](**keywords)
