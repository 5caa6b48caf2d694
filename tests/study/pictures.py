"""Pictures of several runs beside each other: differences, and live channels over λ."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from utils.shown import plots
from utils.shown.log import Row


def differences(groups: dict[str, dict[str, tuple[float, float]]], path: Path) -> None:
    """Draw differences of error with their intervals into ``path``, a panel for each base.

    ``groups``: base -> arm -> (mean, half the interval, NaN where there is none), in points.
    """
    groups = {base: rows for base, rows in groups.items() if rows}
    if not groups:
        return
    with plots.style():
        rows = max(map(len, groups.values()))
        figure = Figure((plots.WIDTH, 1.8 + 0.35 * rows), layout="constrained")
        panels = figure.subplots(1, len(groups), squeeze=False)[0]
        for axes, (base, found) in zip(panels, groups.items(), strict=True):
            for place, (mean, half) in enumerate(found.values()):
                axes.errorbar(
                    mean, place, xerr=half, fmt="o", color=plots.SURVIVED, capsize=4, linewidth=1.5
                )
            axes.axvline(0, color=plots.REJUVENATED, linewidth=1.5)
            axes.set_yticks(range(len(found)), list(found))
            axes.set_ylim(len(found) - 0.5, -0.5)
            axes.grid(axis="x")
            axes.set(xlabel="points of error, 95 % interval", title=f"minus {base}")
        plots.save(figure, path)


@dataclass(frozen=True)
class Live:
    """A network that was trained with λ ``sparsity``, before any rejuvenation.

    ``rows``: of its log.txt; ``layers``: name -> live fraction of the layer's output channels at
    the end, empty where it is not known.
    """

    sparsity: float
    rows: list[Row]
    layers: dict[str, float]


def live(networks: list[Live], path: Path) -> None:
    """Draw what lives over the epochs and in each layer, and the error, a colour for each λ."""
    sparsities = sorted({network.sparsity for network in networks})
    palette = matplotlib.colormaps["viridis"].resampled(len(sparsities) + 1)
    colours = {value: palette(index) for index, value in enumerate(sparsities)}
    with plots.style():
        figure = Figure((plots.WIDTH, 4.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for network in networks:
            epochs, colour = range(1, len(network.rows) + 1), colours[network.sparsity]
            left.plot(epochs, [row["Utilization"] for row in network.rows], color=colour)
            middle.plot(epochs, [100 - row["Valid Acc."] for row in network.rows], color=colour)
            places = range(1, len(network.layers) + 1)
            right.plot(places, list(network.layers.values()), ".-", color=colour)
        left.set(xlabel="epoch", title="Live fraction (parameters)", ylim=(0, 1.03))
        middle.set(xlabel="epoch", title="Validation error (%)")
        right.set(xlabel="layer", title="Live channels of each layer, at the end", ylim=(0, 1.03))
        for axes in (left, middle, right):
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(plots.whole_numbers())
        handles = [Line2D([], [], color=colours[value], label=f"λ {value:g}") for value in colours]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        plots.save(figure, path)
