"""Pictures of several runs beside each other: differences, and live channels over λ."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from utils.shown import plots


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


def live_over_sparsity(searches: list[tuple[str, list[dict]]], path: Path) -> None:
    """Draw live fraction and error over the epochs of several λ beside each other.

    ``searches``: (label, rows of log.txt).
    """
    colours = matplotlib.colormaps["viridis"].resampled(len(searches) + 1)
    with plots.style():
        figure = Figure((plots.WIDTH, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for index, (label, rows) in enumerate(searches):
            epochs = range(1, len(rows) + 1)
            colour = colours(index)
            left.plot(epochs, [r["Utilization"] for r in rows], color=colour, label=label)
            right.plot(epochs, [100 - r["Valid Acc."] for r in rows], color=colour)
        left.set(xlabel="epoch", title="Live fraction (parameters)", ylim=(0, 1.03))
        right.set(xlabel="epoch", title="Validation error (%)")
        for axes in (left, right):
            axes.grid(axis="y")
        figure.legend(loc="outside right upper")
        plots.save(figure, path)


def live_by_layer(networks: list[tuple[str, dict[str, float]]], path: Path) -> None:
    """Draw the live fraction of every layer, a line a network, into ``path``.

    ``networks``: (label, layer name -> live fraction of its output channels).
    """
    names = list(max((live for _, live in networks), key=len))
    colours = matplotlib.colormaps["viridis"].resampled(len(networks) + 1)
    with plots.style():
        figure = Figure((plots.WIDTH, 4.2), layout="constrained")
        axes = figure.subplots()
        for index, (label, live) in enumerate(networks):
            values = [live.get(name, float("nan")) for name in names]
            axes.plot(range(1, len(names) + 1), values, ".-", color=colours(index), label=label)
        axes.grid(axis="y")
        axes.set(
            ylim=(0, 1.03),
            xlabel="prunable layer, in the order of the network",
            title="Live fraction of the output channels of each layer",
        )
        figure.legend(loc="outside right upper")
        plots.save(figure, path)
