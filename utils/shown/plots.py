"""The pictures in the checkpoint folder, drawn from plain data without pyplot or a display.

Colours mean the same in every picture, the matplotlibrc of the user changes none of them, and
equal input gives equal bytes.
"""

import io
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.files import write_atomically
from utils.shown.log import Phase, Row, phases

SURVIVED, REJUVENATED, BEFORE = "#2f6fa8", "#f2962e", "#1f2933"
TRAIN, VALID, USAGE, SEARCH = "#8d99a6", "#a3195b", "#2a9d6f", "#eef1f4"
DROPPED = "#d3d9df"

WIDTH = 11  # inches, at DPI dots each
DPI = 100
MAX_LABELS = 36  # layer names on an axis, the others stay unnamed
LEVELS = 20  # colours of the heat map, 5 percentage points each: steps can be told, files are small
LEAST_DECADE, SCALE_BINS = -4, 40  # of the histograms of log10 |γ| / largest of the layer
FEW_EPOCHS = 10  # a phase this short gets a dot an epoch
STYLE = matplotlib.RcParams(
    {
        "axes.axisbelow": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "figure.dpi": DPI,
        "font.size": 10,
        "grid.color": "#dfe4e8",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
    }
)


def curves(rows: list[Row], path: Path) -> None:
    """Draw losses, errors and utilization over the epochs, rejuvenation marked, into ``path``.

    ``rows``: the rows of log.txt in order, accuracies in percent. No rows, no picture.
    """
    if not rows:
        return
    spans = phases(rows)
    errors = [
        ("train", "Train Acc.", TRAIN, "-"),
        ("validation", "Valid Acc.", VALID, "-"),
        ("validation, top 5", "Valid 5 Acc.", VALID, ":"),
    ]
    with style():
        figure = Figure((WIDTH, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        for label, key, colour, line in errors:
            if key in rows[0]:
                values = [100 - row[key] for row in rows]
                _line(right, values, spans, colour, label, line)
        for key, colour in (("Train Loss", TRAIN), ("Valid Loss", VALID)):
            _line(left, [row[key] for row in rows], spans, colour)
        usage = right.twinx()
        values = [row["Utilization"] for row in rows]
        _line(usage, values, spans, USAGE, "utilization", width=1)
        usage.set(ylim=(0, 1.03))
        usage.set_ylabel("utilization", color=USAGE)
        usage.tick_params(axis="y", colors=USAGE)
        _epochs(left, spans, label="search phase")
        _epochs(right, spans)
        left.set_title("Loss (sum over streams)", pad=22)
        right.set_title(_error_title(rows), pad=22)
        figure.legend(loc="outside lower center", ncols=len(errors) + 2)
        save(figure, path)


def utilization(history: list[dict[str, float]], path: Path) -> None:
    """Draw the live fraction of every layer over the search epochs as a heat map into ``path``.

    ``history``: one dict an epoch, layer name -> live fraction of its output channels, in the
    order of the network. No history, no picture.
    """
    if not history:
        return
    names = list(history[0])
    rows = [[epoch[name] for epoch in history] for name in names]
    with style():
        figure = Figure((WIDTH, _height(len(names))), layout="constrained")
        label = "live fraction of the output channels"
        axes = _heat_map(figure, rows, (len(names) - 0.5, -0.5), Normalize(0, 1), label)
        _name_layers(axes, names)
        axes.set_title("Live channels of each layer during the search")
        save(figure, path)


def scales(history: list[list[int]], dead: float, path: Path) -> None:
    """Draw how the batch-norm scales spread over the search epochs as a heat map into ``path``.

    ``history``: one histogram an epoch, counts in SCALE_BINS bins of log10(|γ| / largest of its
    layer) from LEAST_DECADE, which holds all smaller ones, to 0; ``dead``: the ratio below which
    a channel is. No history, no picture.
    """
    if not history:
        return
    share = [[100 * count / sum(epoch) for count in epoch] for epoch in history]
    rows, norm = [*map(list, zip(*share, strict=True))], LogNorm(0.1, 100, clip=True)
    with style():
        figure = Figure((WIDTH, 4), layout="constrained")
        axes = _heat_map(figure, rows, (LEAST_DECADE, 0), norm, "% of the channels", "lower")
        axes.axhline(math.log10(dead), color=REJUVENATED, linewidth=1.5)
        decades = range(LEAST_DECADE, 1)
        axes.set_yticks(decades, [f"{10.0**decade:g}" for decade in decades])
        axes.set_ylabel("|γ| / largest of its layer")
        axes.set_title("Batch-norm scales during the search; channels below the line are dead")
        save(figure, path)


def _heat_map(
    figure: Figure,
    rows: list[list[float]],
    edges: tuple[float, float],
    norm: Normalize,
    label: str,
    origin: Literal["upper", "lower"] = "upper",
) -> Axes:
    """``rows`` over the search epochs, the first at ``origin``, between these ``edges`` of y."""
    axes = figure.subplots()
    image = axes.imshow(
        rows,
        cmap=matplotlib.colormaps["viridis"].resampled(LEVELS),
        norm=norm,
        aspect="auto",
        interpolation="nearest",
        origin=origin,
        extent=(0.5, len(rows[0]) + 0.5, *edges),
    )
    figure.colorbar(image, label=label, pad=0.01)
    axes.xaxis.set_major_locator(whole_numbers())
    axes.set_xlabel("search epoch")
    return axes


def comparison(runs: list[tuple[str, list[Row]]], path: Path) -> None:
    """Draw the validation errors of several runs over each other into ``path``.

    ``runs``: (label, rows of log.txt); epoch 0 is the start of the first train phase, the first
    search lies before it. Runs with equal labels share a colour.
    """
    labels = list(dict.fromkeys(label for label, _ in runs))
    colours = matplotlib.color_sequences["tab10"]
    with style():
        figure = Figure((WIDTH, 5), layout="constrained")
        axes = figure.subplots()
        named = set()
        for label, rows in runs:
            spans = phases(rows)
            search = spans[0].stop if spans[0].searching else 0
            colour = colours[labels.index(label) % len(colours)]
            for span in spans:
                epochs = [epoch - search + 1 for epoch in range(span.start, span.stop)]
                errors = [100 - row["Valid Acc."] for row in rows[span.start : span.stop]]
                line = ":" if span.searching else "-"
                text = label if line == "-" and label not in named else None
                named.add(text)
                dots = "." if len(errors) <= FEW_EPOCHS else None
                axes.plot(
                    epochs, errors, line, marker=dots, color=colour, linewidth=1.2, label=text
                )
        axes.axvline(0.5, color=REJUVENATED, linewidth=1.5, zorder=1)
        axes.grid(axis="y")
        axes.set(
            xlabel="epoch of the train phase (dotted: search)",
            ylabel="validation error (%)",
            title="Validation error, aligned at the start of the train phase",
        )
        figure.legend(loc="outside right upper")
        save(figure, path)


def widths(layers: list[tuple[str, int, int, int]], path: Path) -> None:
    """Draw the output channels of every layer before and after rejuvenation into ``path``.

    ``layers``: (name, before, survived, after) in the order of the network; a dropped layer has
    survived = after = 0. No layers, no picture.
    """
    if not layers:
        return
    names, before, survived, after = zip(*layers, strict=True)
    rejuvenated = [a - s for a, s in zip(after, survived, strict=True)]
    lost = [0 if a else b for a, b in zip(after, before, strict=True)]
    rows = range(len(names))
    with style():
        figure = Figure((WIDTH, _height(len(names))), layout="constrained")
        axes = figure.subplots()
        bars = [("survived", survived, SURVIVED), ("rejuvenated", rejuvenated, REJUVENATED)]
        left = [0] * len(names)
        for label, channels, colour in [*bars, ("dropped", lost, DROPPED)]:
            if any(channels):
                axes.barh(rows, channels, 0.85, left, color=colour, label=label)
            left = [x + c for x, c in zip(left, channels, strict=True)]
        low, high = [row - 0.5 for row in rows], [row + 0.5 for row in rows]
        axes.vlines(before, low, high, color=BEFORE, linewidth=2, label="before")
        axes.set_xlim(0, 1.02 * max(*before, *after))
        axes.grid(axis="x")
        _name_layers(axes, names)
        axes.set(
            xlabel="output channels", title="Width of each layer before and after rejuvenation"
        )
        figure.legend(loc="outside lower center", ncols=4)
        save(figure, path)


def style() -> AbstractContextManager[None]:
    """A context in which only STYLE differs from matplotlib's defaults.

    The backend stays as it is: to set it, even to its default, would load pyplot.
    """
    wanted = (*matplotlib.rcParamsDefault.items(), *STYLE.items())
    return matplotlib.rc_context({k: v for k, v in wanted if k != "backend"})


def _line(
    axes: Axes,
    values: list[float],
    spans: list[Phase],
    colour: str,
    label: str | None = None,
    line: str = "-",
    width: float = 1.5,
) -> None:
    """Plot one value an epoch, broken between two phases; a short phase gets dots as well."""
    epochs: list[float] = []
    broken: list[float] = []
    dots: list[int] = []
    for span in spans:
        if span.epochs <= FEW_EPOCHS:
            dots += range(len(epochs), len(epochs) + span.epochs)
        epochs += [*range(span.start + 1, span.stop + 1), span.stop + 0.5]
        broken += [*values[span.start : span.stop], float("nan")]
    (drawn,) = axes.plot(epochs, broken, line, color=colour, label=label, linewidth=width)
    drawn.set(marker=".", markersize=7, markevery=dots)


def _epochs(axes: Axes, spans: list[Phase], label: str | None = None) -> None:
    """The x axis of a curve: whole epochs, search phases shaded, rejuvenations marked."""
    epochs = spans[-1].stop
    axes.set(xlim=(0.5, epochs + 0.5), xlabel="epoch")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.xaxis.set_major_locator(whole_numbers())
    above = axes.get_xaxis_transform()
    for span in (span for span in spans if span.searching):
        at = span.stop + 0.5
        axes.axvspan(span.start + 0.5, at, color=SEARCH, zorder=0, label=label)
        label = None  # once in the legend
        if span.stop < epochs:
            axes.axvline(at, color=REJUVENATED, linewidth=1.5, zorder=1)
            axes.text(at, 1.01, "rejuvenation", color=REJUVENATED, ha="center", transform=above)


def whole_numbers() -> MaxNLocator:
    """Ticks for an axis of epochs."""
    return MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def _error_title(rows: list[Row]) -> str:
    """The best validation error of the train phases is the result, so the title states it."""
    trained = [epoch for epoch, row in enumerate(rows) if row["Phase"] == "train"]
    if not trained:
        return "Error (%)"
    epoch = max(trained, key=lambda epoch: rows[epoch]["Valid Acc."])
    return f"Error (%), best {100 - rows[epoch]['Valid Acc.']:.2f} in epoch {epoch + 1}"


def _height(layers: int) -> float:
    """Inches for a picture with one row a layer."""
    return min(max(1.8 + 0.2 * layers, 3.5), 9)


def _name_layers(axes: Axes, names: Sequence[str]) -> None:
    """The y axis of layers, the first on top, every n-th one named."""
    rows = range(0, len(names), -(-len(names) // MAX_LABELS))
    axes.set_yticks(rows, [names[row].removeprefix("features.") for row in rows], fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)


def save(figure: Figure, path: Path) -> None:
    """Write a whole PNG or nothing."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    write_atomically(path, picture.getvalue())
