"""What a walk has met so far: steps, channels, and what each activation has passed."""

from typing import NamedTuple

from torch import Tensor, nn

from nr.network.checks import LARGEST_SIDE
from nr.network.graph import IMAGE
from nr.network.layers import Network
from nr.network.numbers import Lists, count_to
from nr.network.plain import Size
from nr.network.steps import Layer, Step
from nr.network.units import Unit

Pending = dict[str, str]  # source -> the module that its channels have passed


class At(NamedTuple):
    """An activation: the step that gives it, and what it passed since its channels were made."""

    step: Step
    curved: Pending
    lifted: Pending

    @property
    def size(self) -> Size:
        return self.step.size


class Record:
    """What the walk has met so far."""

    def __init__(self, model: Network):
        self.streams, self.count = model.streams, 0
        self.outputs = model.classifier is None
        self.makers: list[Layer] = []
        self.steps: dict[str, Step] = {}
        self.curved: Pending = {}
        self.lifted: Pending = {}
        self.owners: dict[int, str] = {}  # id of a unit or a parameter -> where it was met
        self.heads: set[str] = set()  # the classifiers in a graph

    def start(self, channels: int, size: Size) -> At:
        """The image, which all streams read."""
        return self.step(IMAGE, IMAGE, (), (self.new(channels),) * self.streams, (IMAGE,), size)

    def new(self, channels: int) -> Tensor:
        self.count += channels
        return count_to(self.count, first=self.count - channels)

    def step(
        self,
        name: str,
        op: nn.Module | str,
        inputs: tuple[str, ...],
        numbers: Lists,
        sources: tuple[str, ...],
        size: Size,
        fork: str | None = None,
    ) -> At:
        """Record a step; its activation has passed nothing since."""
        self.steps[name] = Step(name, op, inputs, numbers, sources, size, fork)
        return At(self.steps[name], {}, {})

    def maker(self, unit: Unit, name: str, at: At, size: Size, branch: str | None) -> At:
        """Record a step that makes channels of its own."""
        self.refuse_classes(name, at)
        self.consume(at)
        numbers = tuple(map(self.new, unit.out_channels))
        size = fit(size, name, at.size)
        reads, sources = at.step.numbers, at.step.sources
        windows = at.size if unit.transposed else size
        self.makers.append(Layer(name, unit, sources, reads, numbers, size, windows, branch))
        return self.step(name, unit, (at.step.name,), numbers, (name,), size)

    def consume(self, *sides: At) -> None:
        """Keep for good what the activation that is read here has passed."""
        for at in sides:
            self.curved = at.curved | self.curved
            self.lifted = at.lifted | self.lifted

    def fits(self, name: str, in_channels: tuple[int, ...], at: At) -> None:
        copies = len(at.step.sources)
        if not self.makers and len(at.step.numbers[0]) == copies * in_channels[0] > in_channels[0]:
            if in_channels[0] % copies:
                raise ValueError(f"{name}: reads {copies} copies of the image, unevenly")
            raise Copies(in_channels[0] // copies)
        if tuple(map(len, at.step.numbers)) != tuple(in_channels):
            raise ValueError(
                f"{name}: reads {' + '.join(map(str, in_channels))} channels, but"
                f" {', '.join(at.step.sources)} give {text(at.step.numbers)}"
            )

    def own(self, thing: object, name: str, what: str) -> None:
        """Refuse a unit or a parameter that is used in two places."""
        other = self.owners.setdefault(id(thing), name)
        if other != name:
            raise ValueError(
                f"{name}: its {what} is that of {other} too: each place needs one of its own"
            )

    def of_classes(self, name: str, sides: tuple[At, ...]) -> bool:
        """Whether the joined activations are of classes; ValueError if only some are."""
        found = {source in self.heads for side in sides for source in side.step.sources}
        if len(found) > 1:
            raise ValueError(f"{name}: joins features with what a classifier gives")
        return found == {True}

    def refuse_classes(self, name: str, at: At) -> None:
        if not self.heads.isdisjoint(at.step.sources):
            raise ValueError(
                f"{name}: reads what {at.step.sources[0]} gives, a classifier, whose classes do not"
                " grow: only plain modules, sums and concatenations may follow one"
            )


class Copies(Exception):
    """The first unit reads several copies of an image of so many ``channels``."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels


def fit(size: Size, name: str, before: Size) -> Size:
    """``size``. Raises ValueError if it is empty or absurd."""
    if not all(0 < side <= LARGEST_SIDE for side in size):
        raise ValueError(
            f"{name}: makes maps of {size[0]}x{size[1]} of {before[0]}x{before[1]}: another image"
            " size is needed"
        )
    return size


def text(lists: Lists) -> str:
    return " + ".join(str(len(numbers)) for numbers in lists)
