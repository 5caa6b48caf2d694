"""The pictures: whole, small, equal for equal input, readable, and drawn without pyplot."""

import os
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from tests.running import save_unrendered
from utils.shown import plots

MAX_BYTES = 150_000
MAX_PIXELS = 1200


def log_rows(search: int, train: int, **extra) -> list[dict]:
    """Rows of log.txt: errors fall, and so does utilization in the search phase."""
    return [
        {
            "Learning Rate": 0.1,
            "Train Loss": 2 / epoch,
            "Valid Loss": 2.3 / epoch,
            "Train Acc.": 100 - 60 / epoch,
            "Valid Acc.": 100 - 70 / epoch,
            "Phase": "search" if epoch <= search else "train",
            "Utilization": 1 / epoch if epoch <= search else 1.0,
            "Sparsity": 1e-4,
            "Params": 20_035_018,
            "Seconds": 12.5,
            **extra,
        }
        for epoch in range(1, search + train + 1)
    ]


def layer_names(count: int) -> list[str]:
    return [f"features.stage{i // 54 + 1}.{i // 3}.branch.{i % 3}" for i in range(count)]


def live_history(layers: int, epochs: int) -> list[dict[str, float]]:
    names = layer_names(layers)
    return [
        {name: 1 / (1 + epoch * i / layers) for i, name in enumerate(names)}
        for epoch in range(epochs)
    ]


def layer_widths(layers: int) -> list[tuple[str, int, int, int]]:
    """Every fifth layer dropped, the others between one survivor and all."""
    names = enumerate(layer_names(layers))
    return [(n, 64, 0, 0) if i % 5 == 4 else (n, 64, i % 64 + 1, i + 8) for i, n in names]


def draw_scales(history: list[list[int]], path: Path) -> None:
    plots.scales(history, 0.01, path)


def scale_histograms(epochs: int) -> list[list[int]]:
    """Channels move from the highest bin to the lowest, one epoch after the other."""
    return [[epoch] + [0] * (plots.SCALE_BINS - 2) + [epochs - epoch] for epoch in range(epochs)]


def two_rounds(*lengths: int) -> list[dict]:
    """Rows of two rounds: epochs of search, train, search and train phase."""
    return log_rows(*lengths[:2]) + log_rows(*lengths[2:])


CASES = {
    "curves": (plots.curves, log_rows(30, 60)),
    "curves of imagenet": (plots.curves, log_rows(3, 9, **{"Valid 5 Acc.": 90.0})),
    "curves of 1 search epoch": (plots.curves, log_rows(1, 0)),
    "curves of 1 train epoch": (plots.curves, log_rows(0, 1)),
    "curves of 1 + 1 epochs": (plots.curves, log_rows(1, 1)),
    "curves without train": (plots.curves, log_rows(12, 0)),
    "curves without search": (plots.curves, log_rows(0, 12)),
    "curves of two rounds": (plots.curves, two_rounds(25, 40, 12, 40)),
    "curves of a second search": (plots.curves, two_rounds(3, 4, 2, 0)),
    "curves with nan": (plots.curves, log_rows(2, 2, **{"Train Loss": float("nan")})),
    "curves without error": (plots.curves, log_rows(2, 2, **{"Valid Acc.": 100.0})),
    "utilization of 16": (plots.utilization, live_history(16, 30)),
    "utilization of 166": (plots.utilization, live_history(166, 100)),
    "utilization of 1 epoch": (plots.utilization, live_history(16, 1)),
    "utilization of 1 layer": (plots.utilization, live_history(1, 2)),
    "scales": (draw_scales, scale_histograms(30)),
    "scales of 1 epoch": (draw_scales, scale_histograms(1)),
    "comparison": (plots.comparison, [("a", log_rows(9, 12)), ("a", log_rows(3, 3))]),
    "comparison of two rounds": (plots.comparison, [("a", two_rounds(9, 12, 3, 4))]),
    "comparison without search": (plots.comparison, [("a", log_rows(0, 1))]),
    "widths of 16": (plots.widths, layer_widths(16)),
    "widths of 166": (plots.widths, layer_widths(166)),
    "widths of 1": (plots.widths, layer_widths(1)),
    "widths unchanged": (plots.widths, [("features.stem.0", 16, 16, 16)]),
    "widths all dropped": (plots.widths, [("features.stage1.0.branch.0", 16, 0, 0)]),
}


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """The figures that were saved during the test: laid out, not rendered."""
    saved = []

    def keep(figure, *args, **kwargs):
        saved.append(figure)
        figure.draw_without_rendering()
        save_unrendered(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES)
def test_picture_is_whole_small_and_alone(case, tmp_path):
    draw, data = CASES[case]
    draw(data, tmp_path / "picture.png")
    assert os.listdir(tmp_path) == ["picture.png"]
    assert (tmp_path / "picture.png").stat().st_size < MAX_BYTES
    height, width, _ = imread(tmp_path / "picture.png").shape  # decodes every pixel
    assert 300 < height <= MAX_PIXELS and 900 < width <= MAX_PIXELS


@pytest.mark.parametrize("draw", [plots.curves, plots.utilization, draw_scales, plots.widths])
def test_nothing_to_draw_leaves_no_picture(draw, tmp_path):
    draw([], tmp_path / "picture.png")
    assert os.listdir(tmp_path) == []


def test_scales_are_shares_of_the_channels_with_the_dead_below_the_line(figures, tmp_path):
    history = [[0] * 39 + [4], [1] + [0] * 38 + [3]]
    draw_scales(history, tmp_path / "picture.png")
    axes = figures[0].axes[0]
    (image,) = axes.images
    shares = image.get_array().tolist()  # [bins, epochs]
    assert shares[0] == [0, 25] and shares[39] == [100, 75]
    assert list(axes.lines[0].get_ydata()) == [-2, -2]
    assert list(image.get_extent()) == [0.5, 2.5, plots.LEAST_DECADE, 0]


def test_compared_runs_are_aligned_at_the_start_of_the_train_phase(figures, tmp_path):
    runs = [("a", log_rows(2, 3)), ("b", log_rows(0, 3)), ("a", log_rows(1, 3))]
    plots.comparison(runs, tmp_path / "picture.png")
    lines = [
        line
        for line in figures[0].axes[0].lines
        if len(line.get_xdata()) and line.get_marker() == "."
    ]
    epochs = [list(line.get_xdata()) for line in lines]
    assert epochs == [[-1, 0], [1, 2, 3], [1, 2, 3], [0], [1, 2, 3]]
    assert list(lines[0].get_ydata()) == [70, 35]  # errors of log_rows: 70 / epoch
    colours = [line.get_color() for line in lines]
    assert colours[0] == colours[1] == colours[3] == colours[4] != colours[2]


@pytest.mark.parametrize("case", ["curves", "utilization of 16", "widths of 16"])
def test_equal_input_gives_equal_bytes_under_any_matplotlibrc(case, tmp_path):
    draw, data = CASES[case]
    draw(data, tmp_path / "first.png")
    dark = {"figure.facecolor": "black", "savefig.dpi": 40, "font.size": 20}
    with matplotlib.rc_context(dark):
        draw(data, tmp_path / "second.png")
        assert matplotlib.rcParams["font.size"] == 20
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert (imread(tmp_path / "first.png")[0, 0] == 1).all()  # white


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_picture_and_nothing_else(error, tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    path.write_bytes(b"the last whole picture")

    def fail(figure, target, **options):
        target.write(b"half")
        raise error

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(type(error)):
        plots.curves(log_rows(1, 1), path)
    assert os.listdir(tmp_path) == ["curves.png"]
    assert path.read_bytes() == b"the last whole picture"


@pytest.mark.parametrize("search, train, marks", [(2, 3, 2), (5, 0, 0), (0, 5, 0)])
def test_rejuvenation_is_marked_where_search_turns_to_train(
    search, train, marks, tmp_path, figures
):
    plots.curves(log_rows(search, train), tmp_path / "curves.png")
    texts = [text for axes in figures[0].axes for text in axes.texts]
    assert [(t.get_text(), t.get_position()[0]) for t in texts] == [("rejuvenation", 2.5)] * marks
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert ("search phase" in labels) == (search > 0)


def test_every_round_is_shaded_marked_and_broken(tmp_path, figures):
    plots.curves(two_rounds(2, 3, 1, 4), tmp_path / "curves.png")
    axes = figures[0].axes[0]
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
    assert spans == [(0.5, 2.5), (5.5, 6.5)]
    assert [text.get_position()[0] for text in axes.texts] == [2.5, 6.5]
    epochs, losses = axes.lines[0].get_data()
    gaps = [epoch for epoch, loss in zip(epochs, losses, strict=True) if loss != loss]
    assert gaps == [2.5, 5.5, 6.5, 10.5]
    assert [epoch for epoch in epochs if epoch not in gaps] == list(range(1, 11))
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels.count("search phase") == 1


def test_compared_rounds_are_dotted_where_they_search(figures, tmp_path):
    runs = [("a", two_rounds(2, 3, 1, 4)), ("b", log_rows(0, 2))]
    plots.comparison(runs, tmp_path / "picture.png")
    lines = figures[0].axes[0].lines[:5]
    assert [list(line.get_xdata()) for line in lines] == [
        [-1, 0],
        [1, 2, 3],
        [4],
        [5, 6, 7, 8],
        [1, 2],
    ]
    assert [line.get_linestyle() for line in lines] == [":", "-", ":", "-", "-"]
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ["a", "b"]


def test_curves_state_the_best_error_of_the_train_phase(tmp_path, figures):
    rows = log_rows(2, 3)
    for row, top1 in zip(rows, [10, 99, 80, 95.5, 90], strict=True):
        row["Valid Acc."] = top1
    plots.curves(rows, tmp_path / "curves.png")
    plots.curves(rows[:2], tmp_path / "curves.png")
    titles = [figure.axes[1].get_title(loc="left") for figure in figures]
    assert titles == ["Error (%), best 4.50 in epoch 4", "Error (%)"]


@pytest.mark.parametrize("layers", [1, 16, 36, 37, 166])
@pytest.mark.parametrize("draw, data", [("utilization", live_history), ("widths", layer_widths)])
def test_layer_names_never_touch(draw, data, layers, tmp_path, figures):
    rows = data(layers, 2) if draw == "utilization" else data(layers)
    getattr(plots, draw)(rows, tmp_path / "picture.png")
    labels = figures[0].axes[0].get_yticklabels()
    assert labels[0].get_text() == "stage1.0.branch.0"
    assert len(labels) == layers or 17 < len(labels) <= plots.MAX_LABELS
    boxes = [label.get_window_extent() for label in labels]
    assert all(above.y0 >= below.y1 for above, below in pairwise(boxes))  # the first is on top


def test_heat_map_has_a_fixed_scale_and_the_layers_in_order(tmp_path, figures):
    history = [{"features.b": 1.0, "features.a": 0.5}, {"features.b": 0.75, "features.a": 0.25}]
    plots.utilization(history, tmp_path / "utilization.png")
    (image,) = figures[0].axes[0].images
    assert image.get_array().tolist() == [[1.0, 0.75], [0.5, 0.25]]  # [layer, epoch]
    assert image.get_clim() == (0, 1)


def test_widths_stack_rejuvenated_on_survived_and_mark_the_width_before(tmp_path, figures):
    plots.widths([("features.a", 8, 3, 7), ("features.b", 6, 0, 0)], tmp_path / "widths.png")
    axes = figures[0].axes[0]
    spans = {
        bars.get_label(): [(bar.get_x(), bar.get_width()) for bar in bars]
        for bars in axes.containers
    }
    assert spans["survived"] == [(0, 3), (0, 0)]
    assert spans["rejuvenated"] == [(3, 4), (0, 0)]
    assert spans["dropped"][1] == (0, 6)
    assert [line[0][0] for line in axes.collections[0].get_segments()] == [8, 6]
