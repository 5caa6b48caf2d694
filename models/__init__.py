"""The networks of the paper, built from nr's units; those of torchvision and timm, converted."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial

from models import converted
from nr.network.layers import Network

FAMILIES = ("cifar", "imagenet")


def archs(family: str) -> Mapping[str, Callable[..., Network]]:
    """The builders of ``models.<family>`` by name."""
    return importlib.import_module(f"models.{family}").ARCHS


def file_name(arch: str) -> str:
    """``arch`` as in names of files: torchvision_<name> for torchvision:<name>."""
    found = converted.split(arch)
    return "_".join(found) if found else arch


def full_name(arch: str) -> str:
    """``arch`` as -a takes it: torchvision:<name> for torchvision_<name>."""
    found = converted.split(arch)
    return ":".join(found) if found else arch


def builder(family: str, arch: str) -> Callable[..., Network]:
    """The builder of ``models.<family>.<arch>``. Raises ValueError for an unknown name."""
    if family in FAMILIES and (found := converted.split(arch)):
        return partial(converted.network, family, *found)
    if family not in FAMILIES or arch not in archs(family):
        raise ValueError(f"arch {arch}: models.{family} has no such network")
    return archs(family)[arch]


def options(family: str, arch: str) -> set[str]:
    """The keyword arguments that a builder takes."""
    return set(inspect.signature(builder(family, arch)).parameters)


def build(family: str, arch: str, **keywords: object) -> Network:
    """Build ``models.<family>.<arch>``. Raises ValueError for an unknown name or value."""
    unknown = sorted(keywords.keys() - options(family, arch))
    if unknown:
        raise ValueError(f"{unknown[0]}: {arch} takes no such option")
    return builder(family, arch)(**keywords)
