"""The values in a description: what nr.structure would not write is refused."""

import math
from collections.abc import Mapping
from typing import Any

# Bounds on what a description may ask for; the widest published networks stay far below.
LARGEST_WIDTH = 2**20  # channels or classes
LARGEST_WINDOW = 2**10  # pixels of a kernel, stride or padding


def read_keys(place: str, node: object, keys: tuple[str, ...], *optional: str) -> None:
    if not isinstance(node, Mapping) or {*node} - {*optional} != {*keys}:
        found = sorted(map(str, node))[:10] if isinstance(node, Mapping) else type(node).__name__
        raise ValueError(f"structure: {place}: expected {', '.join(keys)}, found {found}")


def read_flag(place: str, node: Mapping[str, Any], name: str, usual: bool) -> bool:
    """True or false; ``usual`` if a description does not say it."""
    found = node.get(name, usual)
    if type(found) is not bool:
        raise ValueError(f"structure: {place}: {name} {found!r:.100} is no bool")
    return found


def read_name(place: str, node: Mapping[str, Any], name: str) -> str | None:
    """A path of a module; None if a description does not say it."""
    found = node.get(name)
    if found is not None and not (isinstance(found, str) and all(found.split("."))):
        raise ValueError(f"structure: {place}: {name} {found!r:.100} is no path of a module")
    return found


def read_int(place: str, value: object, least: int, most: int = LARGEST_WIDTH) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"structure: {place}: {value!r} is no int of {least} to {most}")
    return value


def read_window(place: str, value: object, least: int) -> int | tuple[int, int]:
    """An int, or the height and width of a window that is not square."""
    if not isinstance(value, list):
        return read_int(place, value, least, LARGEST_WINDOW)
    if len(value) != 2:
        raise ValueError(f"structure: {place}: {value!r} is not (height, width)")
    height, width = (read_int(place, side, least, LARGEST_WINDOW) for side in value)
    return height, width


def read_widths(place: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 2:
        raise ValueError(f"structure: {place}: a list of one width a stream is needed")
    return tuple(read_int(place, width, 1) for width in value)


def is_number(value: object) -> bool:
    """Whether it is a bool, or a number of sensible size (infinity: a Hardtanh without bound)."""
    return (
        isinstance(value, bool | int | float)
        and not math.isnan(value)
        and (math.isinf(value) or abs(value) <= LARGEST_WIDTH)
    )
