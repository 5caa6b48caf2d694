"""nr.rounding: survivors and widths in multiples of N, by hand, by property, and exact."""

import copy
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nr
from models.cifar import vgg19_bn
from nr.method.growth import Families
from nr.method.life import life
from nr.method.rejuvenation import LayerChange
from nr.method.rounding import new_widths, round_up
from nr.method.utilization import live_masks
from nr.network.wiring import wiring
from tests.copies import copied
from tests.helpers import (
    CLASSES,
    FAMILIES,
    FIRST,
    MODES,
    SECOND,
    batch,
    kill,
    layers,
    logits_of,
    prunable,
    rebuilt,
    relative_difference,
    same_tensors,
    tiny,
    vary,
    worn,
)

BUDGET_TOLERANCE = 0.02  # of the old total, for wide layers


def uneven() -> torch.nn.Module:
    """tiny() of width 12 with channels 0 to 6 of the first and 0 to 7 of the second layer dead."""
    model = vary(tiny(12))
    kill(model, {FIRST: slice(7), SECOND: slice(8)})
    dead = torch.tensor([1.0, -4.0, 2.0, 3.0, -2.0, 0.0, 1.0]) * 1e-4
    model.features.first.norms[0].weight.data[:7] = dead
    return model


def test_the_tiny_network_by_hand():
    # Survivors 5 -> 8 and 4. live 27·8 + 9·8·4 = 504 of 27·12 + 9·12·12 = 1620, r = 1.7928430
    # Widths: 8·r = 14.34 -> 16, and 4·r = 7.17 -> 8. 27·16 + 9·16·8 = 1584 with all connections
    model = uneven()
    report = nr.rejuvenate(model, round_to=4)
    assert (report.utilization.live, report.utilization.total) == (504, 1620)
    assert report.expansion == pytest.approx(1.7928430)
    assert report.layers == (
        LayerChange(FIRST, before=(3, 12), survived=(3, 8), after=(3, 16)),
        LayerChange(SECOND, before=(12, 12), survived=(8, 4), after=(16, 8)),
    )
    assert report.budget == pytest.approx(1584 / 1620)
    # Before 1620 + 2·24 + 26; after 27·16 + 9·(8·4 + 8·4) + 2·(16 + 8) + 2·8 + 2
    assert report.params == (1694, 1074)
    assert nr.count_params(model) == 1074


def test_the_dead_channels_of_the_largest_scales_survive():
    """|γ| 4, 3 and 2·1e-4, the first of the two that are 2: channels 1, 2 and 3, in order."""
    model = uneven()
    old = copy.deepcopy(model.features.first)
    nr.rejuvenate(model, round_to=4)
    kept = [1, 2, 3, 7, 8, 9, 10, 11]
    survived = model.features.first
    assert torch.equal(survived.convs[0].weight, old.convs[0].weight[kept])
    for name in ("weight", "bias", "running_mean", "running_var"):
        expected = getattr(old.norms[0], name)[kept]
        assert torch.equal(getattr(survived.norms[0], name), expected)


def test_where_too_few_are_dead_all_survive():
    """Five of six live channels and N = 4: six survive, and the width is at least 6 + 4."""
    model = vary(tiny(6))
    kill(model, {FIRST: 0, SECOND: slice(3)})
    report = nr.rejuvenate(model, round_to=4)
    assert [change.survived[1] for change in report.layers] == [6, 4]
    assert [change.after[1] for change in report.layers] == [12, 8]


def test_where_nothing_dead_is_left_nothing_changes():
    model = vary(tiny(6))
    kill(model, {FIRST: 0, SECOND: slice(3)})
    before = copy.deepcopy(model.state_dict())
    report = nr.rejuvenate(model, round_to=8)
    assert (report.expansion, report.budget) == (1, 1)
    assert report.params[0] == report.params[1]
    assert same_tensors(before, model.state_dict())


@pytest.mark.parametrize(
    ("live", "total_live", "total", "multiple", "expected"),
    [
        (8, 504, 1620, 4, (8, 8)),
        (4, 504, 1620, 4, (4, 4)),
        (16, 100, 101, 8, (16, 8)),  # 16.08 would not grow
        (12, 1, 4, 8, (12, 12)),  # 24
        (10, 1, 4, 8, (10, 14)),  # 20 is as near to 16 as to 24
        (10, 1000, 3999, 8, (10, 14)),  # 19.997 is nearer to 16, but 10 + 8 needs 24
        (40, 1000, 3024, 8, (40, 32)),  # 69.56 -> 72
        (40, 10_000, 28_899, 8, (40, 24)),  # 40·√2.8899 = 67.999, a half short of 68
        (40, 10_000, 28_900, 8, (40, 32)),  # 40·1.7 = 68, as near to 64 as to 72
        (13, 5, 5, 8, (13, 0)),  # nothing dead
        (512, 5_005_152, 20_018_880, 8, (512, 0 + 512)),
    ],
)
def test_new_widths_by_hand(live, total_live, total, multiple, expected):
    assert new_widths(live, total_live, total, multiple) == expected


@given(
    live=st.integers(1, 5000),
    total_live=st.integers(1, 10**13),
    extra=st.integers(1, 10**13),
    multiple=st.integers(2, 64),
)
@settings(max_examples=300, deadline=None)
def test_widths_are_multiples_and_grow(live, total_live, extra, multiple):
    """Exactly: the nearest multiple, or the least one that is N more; monotone in live."""
    total = total_live + extra
    survived, rejuvenated = new_widths(live, total_live, total, multiple)
    width = survived + rejuvenated
    assert survived == live
    assert width % multiple == 0
    assert rejuvenated >= multiple
    square = Fraction(live * live * total, total_live)  # (live·r)²
    if rejuvenated >= 2 * multiple:  # not held up by the least width
        assert square >= Fraction(2 * width - multiple, 2) ** 2
    assert square < Fraction(2 * width + multiple, 2) ** 2
    assert sum(new_widths(live + 1, total_live, total, multiple)) >= width


@pytest.mark.parametrize("mode", [*MODES, "scratch"])
@pytest.mark.parametrize("multiple", [3, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_widths_are_multiples(family, multiple, mode):
    plan = wiring(worn(family))
    old = {layer.name: layer.unit.out_channels[0] for layer in plan.layers}
    alive = live_masks(plan)
    model, report = rebuilt(family, mode, round_to=multiple)
    rows = {row.name: row for row in report.layers}
    for name, layer in layers(model).items():
        survived, width = rows[name].survived[1], sum(layer.unit.out_channels)
        assert width % multiple == 0 and width >= survived + multiple
        live = int(alive[name][0].sum())
        up = old[name] if layer.fixed else min(live + -live % multiple, old[name])
        assert survived == up


@copied
def rounded_up(family: str, multiple: int) -> tuple[nr.Network, torch.Tensor]:
    """``worn``, in which what does not survive a rounding says nothing, and its logits."""
    model = worn(family)
    plan = wiring(model)
    rounded = round_up(Families(plan), life(plan), multiple)
    with torch.no_grad():
        for layer in plan.layers:
            (live,) = rounded.masks(layer)
            layer.unit.norms[0].weight[~live] = 0
            layer.unit.norms[0].bias[~live] = 0
    return model, logits_of(model, batch()[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("multiple", [3, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_survived_logits_are_unchanged(family, multiple, mode):
    """Dead channels that survive for their number are no zeros: they count."""
    images, _ = batch()
    model, before = rounded_up(family, multiple)
    nr.rejuvenate(model, cross=mode, round_to=multiple)
    after = logits_of(model, images)
    assert after.shape == (8, 2, CLASSES)
    assert relative_difference(after[:, :1], before) < 1e-5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_is_the_default_and_the_old_widths(family, mode):
    first, second = worn(family), worn(family)
    torch.manual_seed(5)
    expected = nr.rejuvenate(first, cross=mode)
    torch.manual_seed(5)
    assert nr.rejuvenate(second, cross=mode, round_to=1) == expected
    assert same_tensors(first.state_dict(), second.state_dict())
    for layer in layers(first).values():
        survived, rejuvenated = layer.unit.out_channels
        expanded = int(survived * expected.expansion)
        assert survived + rejuvenated == max(expanded, survived + 1)


@pytest.mark.parametrize("share", [None, 0.3, 0.6])
def test_the_budget_of_wide_layers_is_kept(share):
    """VGG-19, with the first half of each layer dead (None) or with shares around this one."""
    model = vgg19_bn()
    generator = torch.Generator().manual_seed(4)
    for name, layer in prunable(model).items():
        part = share and share + 0.2 * (torch.rand((), generator=generator).item() - 0.5)
        count = layer.unit.out_channels[0]
        kill(model, {name: slice(round(count * (0.5 if share is None else part)))})
    before = nr.count_params(model)
    report = nr.rejuvenate(model, round_to=8)
    assert abs(report.budget - 1) < BUDGET_TOLERANCE
    assert report.params == (before, nr.count_params(model))
    if share is None:  # r = 1.99991: twice as wide as what survived, which is as before
        assert report.budget == 1
        assert all(change.before == change.after for change in report.layers)


@pytest.mark.parametrize("multiple", [0, -8, 1.0, True, "8", None])
def test_senseless_multiples_are_refused(multiple):
    model = uneven()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"round_to: .* not a whole number of at least 1"):
        nr.rejuvenate(model, round_to=multiple)
    assert same_tensors(before, model.state_dict())
