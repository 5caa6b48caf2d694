"""What keeps a network from being converted: by module, each with its reason and remedy."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from nr.network.convolutions import Conv
from nr.network.plain import Size

# Where a reason names none.
REMEDY = "do this outside of the network, or with modules of torch that nr/README.md names"


class Obstacle(NamedTuple):
    """``module``: its name in the network; for an operation, of the module around it."""

    module: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return ": ".join(filter(None, self))


class Obstacles(list[Obstacle]):
    """All obstacles of a network, in its order; printed, a table with a line for each."""

    def __str__(self) -> str:
        if not self:
            return "no obstacles"
        rows = [Obstacle._fields, *self]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return "\n".join(
            f"{module:{widths[0]}}  {reason:{widths[1]}}  {remedy}".rstrip()
            for module, reason, remedy in rows
        )

    def has(self, module: str) -> bool:
        return any(module == obstacle.module for obstacle in self)

    def add(self, module: str, text: str) -> None:
        """Note a ``reason: remedy`` of a module; only its first one counts."""
        if not self.has(module):
            reason, _, remedy = text.rpartition(": ")
            self.append(Obstacle(module, reason, remedy) if reason else Obstacle(module, text, ""))

    def ordered(self, names: Iterable[str]) -> "Obstacles":
        """In the order of the operations ``names``; those of the whole network first."""
        names = list(names)

        def place(obstacle: Obstacle) -> int:
            module = obstacle.module
            while module:
                for number, name in enumerate(names):
                    if f"{name}.".startswith(f"{module}."):
                        return number
                module = module.rpartition(".")[0]
            return -1

        return Obstacles(sorted(self, key=place))

    def told(self) -> "Obstacles":
        """The same with a remedy for each."""
        return Obstacles(row._replace(remedy=row.remedy or REMEDY) for row in self)


class Opaque(Conv):
    """Stands for an unknown operation: it gives channels of its own, of any size."""

    def __init__(self, image_channels: int, channels: int, size: Size):
        super().__init__(image_channels, channels, 1)
        self.size = size

    def out_size(self, size: Size) -> Size:
        return self.size


def opaque(shape: tuple[int, ...], image_channels: int) -> nn.Module:
    """A stand-in for an activation of this shape."""
    size = (shape[2], shape[3]) if len(shape) == 4 else (1, 1)
    return Opaque(image_channels, shape[1] if len(shape) > 1 else 1, size)
