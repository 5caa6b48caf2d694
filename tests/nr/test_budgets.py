"""Budgets in what the user pays: r solved for multiply-adds, seconds, or any function."""

import copy
import json

import pytest
import torch
from torch import nn

import nr
from nr.method.latency import LADDER, UNEVEN
from nr.method.operations import operations, operations_after
from nr.method.planning import planned
from tests.helpers import FAMILIES, MODES, same_tensors, worn
from tests.nr import test_conversion as converted
from tests.nr.test_planning import state_of

NETWORKS = {name: lambda name=name: worn(name) for name in FAMILIES} | {
    name: lambda name=name: converted.worn(name) for name in ("regnet", "mobilenet")
}


def by_size(work, inputs) -> float:
    """A clock by hand: a nanosecond an entry of what is read, and one a weight."""
    weights = sum(p.numel() for p in work.parameters()) if isinstance(work, nn.Module) else 0
    with torch.inference_mode():
        work(*inputs)  # which has to run
    return 1e-9 * (weights + sum(x.numel() for x in inputs))


@pytest.mark.parametrize("cross", [*MODES, "none"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_operations_of_a_plan_are_those_of_the_network_that_it_leads_to(name, cross):
    model = NETWORKS[name]()
    _, cut = planned(model, cross, False, None, False, 1, None, "params")
    found = sorted((op.name, op.widths) for op in operations_after(model, cut))
    nr.rejuvenate(model, cross)
    made = sorted((op.name, op.widths) for op in operations(model))
    assert [op for op in found if "selection" not in op[0]] == [
        op for op in made if "selection" not in op[0]
    ]


@pytest.mark.parametrize(
    ("budget", "cross"), [("latency", "removed"), ("function", "removed"), ("function", "full")]
)
def test_r_is_the_largest_that_does_not_cost_more(budget, cross):
    model = worn("basic")
    before, latency = state_of(model), nr.Latency(2, timer=by_size)
    cost = latency.seconds if budget == "latency" else nr.count_params
    limit = cost(model)
    plan = nr.plan(model, cross, budget=latency if budget == "latency" else nr.count_params)
    assert plan.cost[0] == limit >= plan.cost[1] and plan.expansion > 1
    assert plan.budget == ("latency" if budget == "latency" else "count_params")
    after = state_of(model)
    assert after[0] == before[0] and same_tensors(after[1], before[1])
    assert torch.equal(after[2], before[2])
    twins = [copy.deepcopy(model) for _ in range(2)]
    nr.rejuvenate(twins[0], plan=plan)
    assert cost(twins[0]) == pytest.approx(plan.cost[1])
    if budget == "function":  # a little more is too much
        grown = nr.plan(model, cross, published=True).expansion
        assert plan.expansion > grown or cross == "full"
        assert limit - plan.cost[1] < 0.1 * limit
    report = nr.rejuvenate(
        twins[1], cross, budget=latency if budget == "latency" else nr.count_params
    )
    assert nr.structure(twins[1]) == nr.structure(twins[0])
    assert report.budget == plan.cost[1] / plan.cost[0]
    if budget == "latency":
        predicted, measured = report.latency
        assert predicted > 0 and measured > 0
    else:
        assert report.latency is None


@pytest.mark.parametrize(
    ("name", "cross"), [("basic", "removed"), ("dense", "full"), ("regnet", "removed")]
)
def test_what_a_form_takes_beyond_its_operations_is_in_the_prediction(name, cross, monkeypatch):
    """A clock by which a whole pass of two streams takes twice the sum of its operations."""

    def clock(work, inputs, repeats=0):
        if isinstance(work, nr.Network):
            return work.streams * nr.Latency(2, timer=by_size).seconds(work)
        return by_size(work, inputs)

    monkeypatch.setattr("nr.method.latency.timed", clock)
    model, latency = NETWORKS[name](), nr.Latency(2)
    before, alone = state_of(model), nr.plan(model, cross, budget=nr.Latency(2, timer=by_size))
    plan = nr.plan(model, cross, budget=latency)
    after = state_of(model)
    assert same_tensors(after[1], before[1]) and torch.equal(after[2], before[2])
    assert plan.cost[0] == alone.cost[0]
    assert plan.expansion < alone.expansion or plan.cost[1] > plan.cost[0]  # the least there is
    known = dict(latency.table)
    report = nr.rejuvenate(model, cross, budget=latency)
    assert latency.table == known  # timed once
    predicted, measured = report.latency
    assert predicted == pytest.approx(measured)
    assert report.budget == pytest.approx(measured / plan.cost[0])


def test_widths_in_between_are_interpolated_and_each_is_timed_once(tmp_path):
    timed = []

    def clock(work, inputs) -> float:
        timed.append(tuple(inputs[0].shape))
        return by_size(work, inputs)

    features = nr.Chain(nr.ConvBN(3, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model = nr.Network(features, nr.Classifier(10, 4), image_size=8)
    file = tmp_path / "latency.json"
    found = nr.Latency(2, file, timer=clock).seconds(model)
    # 10 is half of 9 and 11. A convolution 27·10 and 2·3·64; 2·10 and 2·10·64 of a norm; twice
    # 2·10·64 of ReLU and pooling; a classifier 4·10 + 4 and 2·10
    assert found == pytest.approx(1e-9 * (654 + 1300 + 2 * 1280 + 64))
    assert {shape[1] for shape in timed} == {3, 9, 11}
    assert len(timed) == len(set(json.loads(file.read_text())["seconds"])) == 10
    again = nr.Latency(2, file, timer=clock)
    assert again.seconds(model) == found and len(timed) == 10
    for ladder in (LADDER, UNEVEN):
        assert sorted({*ladder}) == [*ladder]
    assert not any(width % 8 == 0 for width in UNEVEN[8:])
    taken = nr.Latency(2, table=again.table)
    assert taken.seconds(model) == found  # by hand, without a clock


def test_the_clock_runs_and_leaves_the_network_as_it_is():
    model = worn("basic").train()
    model.features.stem[0].norms[0].eval()
    modes = [module.training for module in model.modules()]
    before, latency = state_of(model), nr.Latency()
    assert latency.measure(model) > 0 and latency.seconds(model, 16) > 0
    assert torch.equal(state_of(model)[2], before[2])
    assert [module.training for module in model.modules()] == modes
    assert same_tensors(before[1], model.state_dict())


def test_what_is_no_budget_is_refused(tmp_path):
    model = worn("basic")
    before = state_of(model)
    file = tmp_path / "latency.json"
    nr.Latency(2, file, timer=by_size).seconds(model)
    for work, said in (
        (lambda: nr.Latency(0), r"^batch: 0 is not a whole number"),
        (lambda: nr.Latency(3, file), r"latency\.json: was timed with batches of 2, not 3"),
        (lambda: nr.plan(model, budget="time"), r"^budget: 'time' is unknown"),
        (lambda: nr.plan(model, budget="latency", flops=True), r"^flops: is a budget of its own"),
        (lambda: nr.plan(model, budget=lambda network: "x"), r"^budget: <lambda> gives 'x', not a"),
        (lambda: nr.plan(model, budget=lambda network: 0), r"^budget: <lambda> gives 0, not a"),
    ):
        with pytest.raises(ValueError, match=said):
            work()
    described = json.loads(file.read_text())
    file.write_text(json.dumps(described | {"machine": {"device": "another"}}))
    with pytest.raises(ValueError, match=r"was timed on .*another.*this is"):
        nr.Latency(2, file).seconds(model)
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"is no table of nr\.Latency"):
        nr.Latency(2, file)
    assert same_tensors(state_of(model)[1], before[1])
