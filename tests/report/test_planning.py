"""python -m utils.report FOLDER --plan: what a search would become."""

from functools import cache

import pytest
import torch

import nr
from nr.method import latency
from nr.network.units import CROSS, PRUNED
from tests.helpers import tiny, worn
from utils.report.__main__ import main
from utils.training import checkpoint
from utils.training.phases import TABLE

ARGS = {"image_size": 32, "nr_flops": False, "nr_round_to": 4, "nr_cross": "attention"}


def save(path, network: nr.Network, phase: str) -> None:
    payload = dict.fromkeys(checkpoint.KEYS) | {
        "format": checkpoint.FORMAT,
        "state_dict": network.state_dict(),
        "structure": nr.structure(network),
        "run": {"phase": phase},
        "args": ARGS,
    }
    checkpoint.save(path, payload)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@cache
def rejuvenated(cross: str, budget: str, round_to: int) -> list[str]:
    """Expansion, parameters, multiply-adds and share of the budget, as the table has them."""
    made = worn("basic")
    report = nr.rejuvenate(made, cross, budget=budget, round_to=round_to)
    counts = f"{nr.count_params(made):,}", f"{nr.count_macs(made):,}"
    return [f"{report.expansion:.4f}", *counts, f"{report.budget:.1%}"]


@pytest.mark.parametrize("phase", ["search", "train"])
def test_forms_and_budgets_side_by_side_are_what_rejuvenation_makes(phase, tmp_path, capsys):
    """Of a search under way, and of one that is over."""
    network = worn("basic")
    if phase == "search":
        save(tmp_path / checkpoint.LAST, network, phase)
    else:
        save(tmp_path / "NR_resnet_before_0.5.pth.tar", network, "search")
        trained = worn("basic")
        nr.rejuvenate(trained)
        save(tmp_path / checkpoint.LAST, trained, phase)
    assert main(["--plan", str(tmp_path)]) == 0
    first, forms, layers = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert f"{nr.count_params(network):,} parameters, {nr.count_macs(network):,}" in first[0]
    rows = [cells(line) for line in forms[2:]]
    assert [row[:3] for row in rows if row[-1]] == [["params", "4", "attention"]]
    ways = {(budget, to, cross) for budget, to, cross, *_ in rows}
    both = {(b, to, cross) for b in ("params", "flops") for to in "14" for cross in CROSS}
    assert ways == both | {("params", to, PRUNED) for to in "14"}
    for budget, to, cross, *found, _ in rows:
        assert found == rejuvenated(cross, budget, int(to))
    assert cells(layers[0])[2:] == ["params, 1", "params, 4", "flops, 1", "flops, 4"]
    plan = nr.plan(network, budget="flops", round_to=4)
    widths = [(row.name, f"{len(row.survivors)} -> {row.width}") for row in plan.layers]
    assert [(c[0], c[-1]) for c in map(cells, layers[2:])] == widths


def test_seconds_are_beside_them_where_a_run_keeps_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(latency, "timed", lambda work, inputs, repeats=0: 1e-9 * inputs[0].numel())
    monkeypatch.setitem(ARGS, "nr_budget", "latency")
    monkeypatch.setitem(ARGS, "nr_latency_batch", 2)
    save(tmp_path / checkpoint.LAST, tiny(8), "search")
    assert main(["--plan", str(tmp_path)]) == 0
    _, forms, layers = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    rows = [cells(line) for line in forms[2:]]
    assert [row[:3] for row in rows if row[-1]] == [["latency", "4", "attention"]]
    assert cells(layers[0])[-1] == "latency, 4" and (tmp_path / TABLE).exists()


def test_a_folder_without_a_search_is_one_line(tmp_path, capsys):
    model = worn("basic")
    nr.rejuvenate(model)
    torch.manual_seed(0)
    assert main(["--plan", str(tmp_path)]) == 1
    save(tmp_path / checkpoint.LAST, model, "train")
    assert main(["--plan", str(tmp_path)]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "no checkpoint.pth.tar" in first and "is no search's" in second
    for words, said in ((["--plot", "x.png"], "not beside --plan"), ([str(tmp_path)], "one RUN")):
        with pytest.raises(SystemExit):
            main(["--plan", str(tmp_path), *words])
        assert said in capsys.readouterr().err
