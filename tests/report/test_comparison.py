"""utils.report.comparison: paired differences by hand, and the table of a study."""

import json
import math

import pytest

from tests.report.test_report import identity, table_row, write_run
from utils.report.__main__ import main
from utils.report.comparison import T975, difference


def test_a_worked_example_of_three_seeds():
    # Differences -2, -1, -3: mean -2, deviation √((0 + 1 + 1) / 2) = 1, t(2) = 4.303,
    # half the interval 4.303 · 1 / √3 = 2.484: [-4.48, 0.48] holds 0.
    found = difference({1: 20.0, 2: 22.0, 3: 21.0}, {1: 22.0, 2: 23.0, 3: 24.0})
    assert (found.n, found.mean, found.deviation) == (3, -2, 1)
    assert found.half == pytest.approx(2.4843, abs=1e-4)
    assert found.open
    assert str(found) == "-2.00 ± 1.00 [-4.48, +0.48], open"


def test_a_difference_that_is_not_open():
    # -3, -3.5, -4: deviation 0.5, half 4.303 · 0.5 / √3 = 1.242.
    found = difference({1: 7.0, 2: 6.5, 3: 6.0}, {1: 10.0, 2: 10.0, 3: 10.0})
    assert not found.open
    assert str(found) == "-3.50 ± 0.50 [-4.74, -2.26]"


def test_only_seeds_of_both_are_paired():
    found = difference({1: 7.0, 2: 6.0, 5: 0.0}, {1: 10.0, 2: 10.0, 9: 90.0})
    assert (found.n, found.mean) == (2, -3.5)
    assert difference({1: 7.0}, {2: 10.0}) is None


def test_one_pair_has_no_interval_and_is_open():
    found = difference({1: 7.0}, {1: 10.0})
    assert math.isnan(found.half) and found.open
    assert str(found) == "-3.00 (n = 1, open)"


def test_equal_differences_have_an_interval_of_no_width():
    found = difference({1: 7.0, 2: 8.0}, {1: 10.0, 2: 11.0})
    assert found.half == 0 and not found.open
    assert difference({1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.0}).open  # no difference at all


def test_quantiles_of_students_t():
    """t of n degrees: half of its two-sided area at 95 % by integration of the density."""
    for degrees, t in enumerate(T975, start=1):
        constant = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2)
        constant /= math.sqrt(degrees * math.pi)
        steps = 20_000
        width = t / steps
        points = ((k + 0.5) * width for k in range(steps))
        area = sum((1 + x * x / degrees) ** (-(degrees + 1) / 2) for x in points)
        assert constant * area * width == pytest.approx(0.475, abs=5e-5)


def evaluate(folder, accuracy: float) -> None:
    """evaluation.json as the study writes it."""
    content = {"accuracy": accuracy, "loss": 1.0, "images": 10000}
    (folder / "evaluation.json").write_text(json.dumps(content))


def test_compare_prints_the_differences_of_a_study(tmp_path, capsys):
    for seed, ours, base in ((1, 80.0, 78.0), (2, 78.0, 77.0), (3, 79.0, 76.0)):
        for arm, accuracy in (("nr-cr", ours), ("plain-long", base)):
            folder = tmp_path / f"a-{arm}-seed{seed}"
            form = "removed" if arm == "nr-cr" else "plain"
            target = 0.25 if arm == "nr-cr" else 1
            write_run(folder, seed=seed, form=form, search=int(arm == "nr-cr"), nr_target=target)
            evaluate(folder, accuracy)
    write_run(tmp_path / "another", seed=1)  # not named as the study names its runs
    folders = [str(path) for path in sorted(tmp_path.iterdir())]
    assert main([*folders, "--compare", "plain-long"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("Setting a: ResNet-8 x0.25, CIFAR-10; 10,000 test images.")
    rows = output[output.index("| arm") :]
    row = table_row(rows, "| nr-cr")
    assert row["minus plain-long"] == "-2.00 ± 1.00 [-4.48, +0.48], open"
    assert row["error, %"] == "21.00 ± 1.00"  # not the 20 of the log's last epoch
    assert row["n"] == "3"
    assert row["epochs (search + train)"] == "1 + 2"
    assert table_row(rows, "| plain-long")["minus plain-long"] == "-"
    assert "Not converged, least train accuracy below 95 %: nr-cr (90.0)" in output


@pytest.mark.parametrize(
    ("folders", "arm", "words"),
    [
        (["a-nr-cr-seed1"], "plain", "there are nr-cr"),
        (["run"], "plain", "there is none"),
    ],
)
def test_an_arm_that_is_not_there_is_named(tmp_path, capsys, folders, arm, words):
    for folder in folders:
        write_run(tmp_path / folder)
    assert main([*map(str, tmp_path.iterdir()), "--compare", "nr-cr", "--compare", arm]) == 1
    output, error = capsys.readouterr()
    (line,) = error.splitlines()
    assert output == "" and line.endswith(words)
    assert f"--compare {arm}" in line or folders == ["run"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"dataset": "folder", "data": "x/pets"}, "different data (CIFAR-10, pets)"),
        ({"known": identity("cifar10")}, "different data (CIFAR-10, CIFAR-10)"),
        ({"known": identity("cifar10", "0" * 16), "seed": 1}, "the same seed 1"),
    ],
)
def test_runs_of_two_places_that_are_not_one_study_are_named(tmp_path, capsys, other, words):
    write_run(tmp_path / "one/a-plain-seed1", known=identity("cifar10", "0" * 16))
    write_run(tmp_path / "two/a-plain-seed2", **{"seed": 2} | other)
    assert main([*map(str, tmp_path.glob("*/*")), "--compare", "plain"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "one/a-plain-seed1" in line and "two/a-plain-seed2" in line and words in line


def test_a_run_without_an_evaluation_is_not_compared(tmp_path, capsys):
    for arm in ("nr-cr", "plain-long"):
        write_run(tmp_path / f"a-{arm}-seed1")
    evaluate(tmp_path / "a-plain-long-seed1", 70.0)
    main([*map(str, tmp_path.iterdir()), "--compare", "plain-long"])
    output = capsys.readouterr().out
    row = table_row(output[output.index("| arm") :], "| nr-cr")
    assert (row["error, %"], row["minus plain-long"]) == ("not evaluated", "-")
