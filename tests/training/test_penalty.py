"""training.penalty: what is said of the penalty before, in and after a search."""

from types import SimpleNamespace

import pytest

from tests.helpers import prunable, tiny
from utils.training.penalty import Penalty, largest_scale
from utils.training.state import RunState

QUICKSTART = {"sparsity": 5e-3, "epochs": 9, "steps": 50, "schedule": [3]}


def penalty(
    sparsity=1.5e-4, epochs=300, steps=781, scale=0.5, rows=(), state=None, **args
) -> Penalty:
    """Of a search with --lr 0.1 and --momentum 0.9, whose largest scale is ``scale``."""
    network = tiny()
    for layer in prunable(network).values():
        layer.unit.norms[0].weight.data.fill_(scale)
    flags = {"lr": 0.1, "momentum": 0.9, "schedule": [150], "gamma": 0.1, "nr_max_epochs": epochs}
    state = state or RunState("search", 1, sparsity=sparsity, rows=list(rows))
    run = SimpleNamespace(args=SimpleNamespace(**flags | args), state=state, network=network)
    shares = [SimpleNamespace(steps=True), SimpleNamespace(steps=False)] * steps
    return Penalty(run, SimpleNamespace(shares=shares))


def row(lr: float, sparsity: float, phase: str = "search") -> dict:
    return {"Phase": phase, "Learning Rate": lr, "Sparsity": sparsity}


@pytest.mark.parametrize(
    ("of", "line"),
    [
        (  # 0.495 / 1.5e-4 = 3,300 steps, as nr/README.md has it
            {},
            "a scale of 0.5 that nothing holds falls by 0.00015 a step at first and is dead after"
            " 3,300 steps, 4.2 epochs",
        ),
        (
            QUICKSTART,
            "a scale of 0.5 that nothing holds falls by 0.005 a step at first and is dead after"
            " 99 steps, 2.0 epochs",
        ),
        (  # 25 steps of 5e-3, then 0.37 is left, at 5e-4 a step 740 steps
            QUICKSTART | {"steps": 25, "schedule": [1], "epochs": 40},
            "a scale of 0.5 that nothing holds falls by 0.005 a step at first and is dead after"
            " 765 steps, 30.6 epochs",
        ),
        (  # 0.125 in the first epoch, 0.0125 in each of the eight others
            QUICKSTART | {"steps": 25, "schedule": [1]},
            "a scale of 0.5 that nothing holds falls by 0.23 only in the 9 epochs of the search"
            " (25 steps each), too little to die",
        ),
        (
            {"sparsity": 0.0},
            "a scale of 0.5 that nothing holds falls by 0 only in the 300 epochs of the search"
            " (781 steps each), too little to die",
        ),
        (  # 0, 1e-3, 2e-3 times 100 steps are 0.3, then 0.195 is left at 3e-3 a step
            {"sparsity": 0.0, "steps": 100, "nr_increase_step": 1e-3},
            "λ grows from 0 by 0.001 an epoch at most: a scale of 0.5 that nothing holds is dead"
            " after 365 steps, 3.6 epochs, at the soonest",
        ),
    ],
)
def test_a_search_says_when_a_scale_would_die(of, line, capsys):
    found = penalty(**of)
    found.tell()
    found.tell()  # once
    assert capsys.readouterr() == (f"| Penalty: {line}\n", "")


def test_a_search_that_goes_on_counts_from_there():
    state = RunState("search", 1, epoch=8, round=2, round_start=2, sparsity=5e-3)
    found = penalty(**QUICKSTART | {"state": state})  # three epochs are left, at a tenth of the lr
    assert "falls by 0.075 only in" in found.forecast()


def test_the_next_round_says_it_again(capsys):
    found = penalty()
    found.tell()
    found.run.state = RunState("search", 1, epoch=9, round=2, round_start=9, sparsity=1e-3)
    found.tell()
    assert capsys.readouterr().out.count("| Penalty: ") == 2


@pytest.mark.parametrize(
    ("of", "warns"),
    [
        ({}, False),
        (QUICKSTART, False),  # exactly 1 %
        ({"sparsity": 5.1e-3}, True),
        ({"sparsity": 5.1e-3, "scale": 1.0}, False),
        ({"sparsity": 5.1e-3, "momentum": 0.5}, False),
        ({"sparsity": 5.1e-3, "lr": 0.01}, False),
        ({"sparsity": 0.04, "scale": -1.0}, True),
    ],
)
def test_a_step_above_a_hundredth_of_the_largest_scale_is_warned_of_once(of, warns, capsys):
    found = penalty(**of)
    found.tell()
    found.tell()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == warns
    assert all("scales jump over 0" in line and "a smaller λ or --lr" in line for line in lines)


def test_a_penalty_that_grows_too_strong_is_warned_of_then(capsys):
    found = penalty(sparsity=0.0, nr_increase_step=1e-3)
    for epoch in range(8):
        found.run.state.epoch, found.run.state.sparsity = epoch, epoch * 1e-3
        found.tell()
        assert ("Warning" in capsys.readouterr().err) == (epoch == 6)


@pytest.mark.parametrize(
    ("of", "remedy"),
    [
        (  # what the first command with --subset 500 --schedule 1 does
            QUICKSTART | {"steps": 25, "rows": [row(0.1, 5e-3)] + [row(0.01, 5e-3)] * 8},
            "a scale that nothing holds has fallen by 0.23 only: a larger --nr-sparsity, a later"
            " --schedule or a larger --nr-max-epochs lets it die",
        ),
        (
            {"steps": 25, "rows": [row(0.1, 5e-3)] * 3},
            "a scale that nothing holds has fallen by 0.38 only: a larger --nr-sparsity or a"
            " larger --nr-max-epochs lets it die",
        ),
        (
            {"rows": [row(0.1, 0.04)] * 30},
            "scales jump over 0 instead of dying: a smaller --nr-sparsity or --lr lets them die",
        ),
        (
            {"rows": [row(0.1, 1e-3)] * 30},
            "the loss holds the scales: a larger --nr-sparsity or --nr-max-epochs lets more die",
        ),
        (  # the rounds before do not count
            {"steps": 25, "rows": [row(0.1, 1e-3), row(0.1, 0, "train"), row(0.1, 1e-3)]},
            "a scale that nothing holds has fallen by 0.025 only: a larger --nr-sparsity or a"
            " larger --nr-max-epochs lets it die",
        ),
    ],
)
def test_the_remedy_fits(of, remedy):
    assert penalty(**of).remedy("--nr-sparsity") == remedy


def test_the_largest_scale_is_of_those_that_are_penalised():
    found = penalty(scale=-0.3)
    assert largest_scale(found.run) == pytest.approx(0.3)
