"""nr.plan: what a rejuvenation would do, as plain data; done elsewhere it is the same."""

import copy
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import nr
from nr.network.graph import IMAGE
from nr.network.wiring import wiring
from tests.helpers import FAMILIES, MODES, build, kill, layers, same_tensors, tiny, vary, worn
from tests.nr import test_conversion as converted
from tests.nr.test_families import preactivation

NETWORKS = {
    **{name: partial(worn, name) for name in FAMILIES},
    **{name: partial(converted.worn, name) for name in ("regnet", "mobilenet")},
    "norms": preactivation,
}
# What rejuvenate is told.
WAYS = [
    *({"cross": cross} for cross in (*MODES, "none")),
    {"flops": True, "image_size": 16},
    {"from_scratch": True},
    {"round_to": 4},
    {"published": False},
]


def state_of(model: torch.nn.Module) -> tuple:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return nr.structure(model), state, torch.get_rng_state()


def assert_same(a: tuple, b: tuple) -> None:
    assert a[0] == b[0]
    assert same_tensors(a[1], b[1])
    assert torch.equal(a[2], b[2])


# Each network in every third way: every way in three networks or so.
CASES = [
    pytest.param(name, way, id=f"{name}-{way}")
    for i, name in enumerate(NETWORKS)
    for j, way in enumerate(WAYS)
    if (i + j) % 3 == 0
]


@pytest.mark.parametrize("name, way", CASES)
def test_a_plan_changes_nothing_and_done_elsewhere_is_the_same_to_the_bit(name, way):
    if way.get("image_size") and name not in FAMILIES:
        way = {"flops": True}  # of a size that they do not take
    model, results = NETWORKS[name](), []
    before = state_of(model)
    plan = nr.plan(model, **way)
    assert_same(state_of(model), before)
    given = json.loads(json.dumps(plan.data()))
    for options in (way, {"plan": plan}, {"plan": given}):
        other = copy.deepcopy(model)
        torch.manual_seed(5)
        report = nr.rejuvenate(other, **options)
        results.append(state_of(other))
        assert (report.expansion, report.dropped) == (plan.expansion, plan.dropped)
        assert report.params == (nr.count_params(model), nr.count_params(other))
        assert report.params == plan.params or name == "norms"  # biases of what was dead
        assert sum(row.live for row in report.utilization.layers) == report.utilization.live
        made = wiring(other).by_name
        assert report.budget == plan.cost[1] / plan.cost[0]
        if name != "norms":
            assert plan.cost[1] == cost_of(other, way)
        for row in plan.layers:
            assert row.width == (sum(made[row.name].unit.out_channels) if row.name in made else 0)
    for result in results[1:]:
        assert_same(result, results[0])


def cost_of(model: nr.Network, way: dict) -> int:
    """Σ in·out·k² as if all streams were connected."""
    total = 0
    for layer in wiring(model, way.get("image_size")).layers:
        unit = layer.unit
        ins = unit.in_channels[0] if IMAGE in layer.sources else sum(unit.in_channels)
        ins = unit.group[0] if unit.group else ins
        pixels = layer.pixels if way.get("flops") else 1
        total += ins * sum(unit.out_channels) * unit.taps * pixels
    return total


def test_a_plan_by_hand_as_data_and_as_a_table():
    # live 27·5 + 9·25 = 360 of 27·10 + 9·100 = 1170; r = √3.25 = 1.802776; int(5r) = 9
    model = vary(tiny(10))
    kill(model, dict.fromkeys(("features.first", "features.second"), slice(5)))
    data = nr.plan(model).data()
    assert data["layers"] == [
        {"name": name, "outputs": 10, "survivors": [5, 6, 7, 8, 9], "fresh": [1, 1, 1, 1, 0]}
        for name in ("features.first", "features.second")
    ]
    # 27·9 + 9·81; 27·5 + 27·4 + 9·25 + 9·16 + 4·9 of norms + 2·9 + 2 of the classifier
    assert (data["cost"], data["params"]) == ([1170, 972], [1232, 668])
    assert (data["cross"], data["budget"], data["image_size"]) == ("removed", "params", [8, 8])
    assert str(nr.plan(model)).splitlines() == [
        "layer            outputs  survive    fresh      new",
        "features.first        10        5        4        9",
        "features.second       10        5        4        9",
        "r 1.8028, 1,232 -> 668 parameters, removed; params 1,170 -> 972, 83.1% of the budget",
    ]


@pytest.mark.parametrize("cross", [*MODES, "none"])
def test_an_averaged_copy_is_cut_alike_and_goes_on_averaging(cross):
    model = worn("basic")
    average = AveragedModel(model)
    vary(average.module, seed=9)  # other scales, of which others would be dead
    plan = nr.plan(model, cross)
    for network in (model, average.module):
        torch.manual_seed(0)
        nr.rejuvenate(network, plan=plan)
    assert nr.structure(average.module) == nr.structure(model)
    average.update_parameters(model)  # the first, which is taken as it is
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(average.eval()(images), average.module(images))
    assert same_tensors(dict(average.module.named_parameters()), dict(model.named_parameters()))


def changed(plan: nr.Plan, layer: str, **values) -> nr.Plan:
    rows = [replace(row, **values) if row.name == layer else row for row in plan.layers]
    return replace(plan, layers=tuple(rows))


FIRST, STEM = "features.stage1.0.branch.0", "features.stem.0"
SUM = r"{}: channels that live and grow with those of others"
WRONG = {
    "another network": (
        lambda p: replace(p, layers=p.layers[1:]),
        rf"network: {STEM} is in the ne",
    ),
    "other names": (lambda p: changed(p, FIRST, name="x"), "is of another network"),
    "another order": (lambda p: replace(p, layers=p.layers[::-1]), "not in the order"),
    "other widths": (lambda p: changed(p, FIRST, outputs=9), rf"{FIRST} has 9 outputs in it, in "),
    "unordered": (lambda p: changed(p, FIRST, survivors=(2, 1), fresh=(1, 1)), "places of 0 to 3"),
    "outside": (lambda p: changed(p, FIRST, survivors=(4,), fresh=(1,)), "places of 0 to 3"),
    "no number": (lambda p: changed(p, FIRST, survivors=("a",), fresh=(1,)), "places of 0 to 3"),
    "uneven": (lambda p: changed(p, FIRST, survivors=(1, 2), fresh=(1,)), "places of 0 to 3"),
    "too many": (lambda p: changed(p, FIRST, survivors=(1,), fresh=(2**21,)), "places of 0 to 3"),
    "a sum": (lambda p: changed(p, STEM, survivors=(0,), fresh=(1,)), SUM.format(STEM)),
    "nothing lives": (lambda p: changed(p, FIRST, survivors=(), fresh=()), "no channel in one"),
    "nothing new": (lambda p: changed(p, FIRST, survivors=(1,), fresh=(0,)), "no channel in one"),
    "a mode": (lambda p: replace(p, cross="most"), "cross: 'most' is unknown"),
    "no bool": (lambda p: replace(p, from_scratch=1), "from_scratch: 1 is neither"),
    "a size": (lambda p: replace(p, image_size=(0, 1)), "image_size: "),
    "no plan": (lambda p: 5, "plan: not as nr.plan gives it"),
    "no layers": (lambda p: {"cross": "removed"}, "plan: not as nr.plan gives it"),
    "more": (lambda p: p.data() | {"more": 1}, "plan: not as nr.plan gives it"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_plan_that_does_not_fit_is_refused(name):
    change, message = WRONG[name]
    model = worn("basic")
    plan = change(nr.plan(model))
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        nr.rejuvenate(model, plan=plan)
    assert_same(state_of(model), before)


def test_what_is_said_twice_or_is_no_budget_is_refused():
    model = worn("basic")
    plan = nr.plan(model)
    with pytest.raises(ValueError, match=r"^plan: says by itself"):
        nr.rejuvenate(model, cross="full", plan=plan)
    with pytest.raises(ValueError, match=r"^budget: 'energy' is unknown"):
        nr.plan(model, budget="energy")
    assert nr.plan(model, budget="flops") == nr.plan(model, flops=True)
    nr.rejuvenate(model, plan=plan)
    for work in (nr.plan, lambda model: nr.rejuvenate(model, plan=plan)):
        with pytest.raises(ValueError, match=r"^this network was rejuvenated before"):
            work(model)


def test_a_network_without_a_dead_channel_stays():
    model = build("dense")
    plan, units = nr.plan(model), {name: a.unit.norms[0] for name, a in layers(model).items()}
    assert (plan.expansion, plan.dropped) == (1, ())
    assert plan.params[0] == plan.params[1] and plan.cost[0] == plan.cost[1]
    nr.rejuvenate(model, plan=plan)
    assert model.streams == 1
    assert all(a.unit.norms[0] is units[name] for name, a in layers(model).items())
