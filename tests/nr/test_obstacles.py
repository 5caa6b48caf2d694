"""nr.obstacles: all that is in the way, in the order of the network; the page of what is taken."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nr
from tests.helpers import relative_difference
from tests.nr.test_operators import Net
from tests.nr.test_tracing import Doubled

ROOT = Path(__file__).parents[2]
SIZE = 16  # pixels


class Quiet(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            return x.relu()


class Own(nn.Module):
    def forward(self, x):
        return Doubled.apply(x)


class Eca(nn.Module):
    """Attention over channels by a small convolution."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv(x.mean((2, 3)).view(x.shape[0], 1, -1))
        return x * y.view(x.shape[0], -1, 1, 1).sigmoid()


def space_to_depth(m, x):
    b, c, h, w = x.shape
    x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return m.narrow(x.reshape(b, c * 4, h // 2, w // 2))


def twice(m, x):
    return m.inner(m.inner(x))


# The network, and of each obstacle its module and what its reason says, in order.
CASES = {
    "two": (
        lambda: Net(lambda m, x: m.act(m.norm(x)), norm=nn.GroupNorm(3, 12), act=nn.PReLU(12)),
        [("norm", "GroupNorm"), ("act", "bound to a number of channels")],
    ),
    "three": (
        lambda: Net(
            lambda m, x: torch.special.expit(m.conv(m.quiet(x))),
            quiet=Quiet(),
            conv=nn.Conv2d(12, 12, 3, padding=1, padding_mode="circular"),
        ),
        [("quiet", "no_grad"), ("conv", "no plain nn.Conv2d"), ("special_expit", "not known")],
    ),
    "behind a module that cannot be traced": (
        lambda: Net(lambda m, x: m.norm(m.own(x)), own=Own(), norm=nn.GroupNorm(3, 12)),
        [("own", "an autograd function"), ("norm", "GroupNorm")],
    ),
    "channels last": (
        lambda: Net(
            lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(12)
        ),
        [("norm", "LayerNorm")],
    ),
    "attention over channels": (
        lambda: Net(lambda m, x: m.eca(x), eca=Eca()),
        [("eca.conv", "mixes channels where it slides over them")],
    ),
    "space to depth": (
        lambda: Net(space_to_depth, narrow=nn.Conv2d(48, 12, 1)),
        [("reshape", "something else than whole channels")],
    ),
    "called twice": (
        lambda: Net(twice, inner=nn.Conv2d(12, 12, 1)),
        [("inner", "called more than once")],
    ),
    "a trained term": (
        lambda: Net(lambda m, x: x + m.term, term=nn.Parameter(torch.zeros(1))),
        [("add", "adds term, a parameter, which a dead channel would go on saying")],
    ),
    "a softmax over channels": (
        lambda: Net(lambda m, x: F.softmax(x, 1)),
        [("softmax", "mixes channels")],
    ),
    "a sum over pixels": (
        lambda: Net(end=lambda m, x: x.sum((2, 3))),
        [("sum_1", "mixes channels, or depends on the size")],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_all_obstacles_are_listed_in_order_and_the_first_is_what_convert_says(case):
    make, wanted = CASES[case]
    torch.manual_seed(0)
    model, state = make(), torch.get_rng_state()
    found = nr.obstacles(model, SIZE)
    assert [module for module, _, _ in found] == [module for module, _ in wanted]
    for (_, reason, remedy), (_, words) in zip(found, wanted, strict=True):
        assert words in reason and remedy
    lines = str(found).splitlines()
    assert len(lines) == len(found) + 1 and lines[0].split() == ["module", "reason", "remedy"]
    with pytest.raises(ValueError) as caught:
        nr.convert(model, SIZE)
    assert str(caught.value).startswith(f"{found[0].module}: {found[0].reason}")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_without_obstacles_has_none():
    found = nr.obstacles(Net(), SIZE)
    assert found == [] and str(found) == "no obstacles"
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    bare = nn.Sequential(*bare, nn.Linear(4, 2))
    assert "has no batch norm" in nr.obstacles(bare, SIZE)[0].reason
    assert nr.obstacles(bare, SIZE, scales=True) == []


def test_hidden_changes_are_listed_beside_the_rest():
    model = Net(lambda m, x: m.norm(x), norm=nn.GroupNorm(3, 12))
    model.body.register_forward_hook(lambda *_: None)
    found = nr.obstacles(model, SIZE)
    assert [row.module for row in found] == ["norm", "body"]
    assert found[1].remedy == "remove it first"
    assert [row.module for row in nr.obstacles("resnet18", SIZE)] == ["'resnet18'"]


def test_what_a_forward_does_besides_its_result_is_not_seen():
    seen = []
    network = nr.convert(Net(lambda m, x: (seen.append(1), x)[1]), SIZE)
    before = len(seen)
    network(torch.zeros(1, 3, SIZE, SIZE))
    assert len(seen) == before


def test_layers_that_no_mode_calls_are_not_seen():
    network = nr.convert(
        Net(lambda m, x: m.spare(x) if x.shape[2] > 99 else x, spare=nn.GroupNorm(3, 12)), SIZE
    )
    assert not [name for name, _ in network.named_modules() if "spare" in name]
    with pytest.raises(ValueError, match="bound to images of 16 x 16 pixels"):
        network(torch.zeros(1, 3, 200, 200))


def test_buffers_are_the_constants_that_they_were():
    model = Net(lambda m, x: x * m.factor).eval()
    model.register_buffer("factor", torch.tensor(0.5))
    network, images = nr.convert(model, SIZE), torch.randn(2, 3, SIZE, SIZE)
    before = model(images)
    model.factor.fill_(2)
    assert relative_difference(network(images)[:, 0], before) < 1e-5
    assert relative_difference(model(images), before) > 1e-5


def test_every_line_of_the_page_of_what_is_taken_has_its_test():
    text = (ROOT / "nr/SUPPORT.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ") and "::" in line]
    named = re.findall(r"`([a-z_]+)\.py::(test_\w+)`", text)
    assert len(lines) >= 30 and len(named) >= len(lines)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Supported",
        "## Supported after a change",
        "## Refused",
        "## Known limits of what is checked",
    ]
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / f"tests/nr/{file}.py").read_text(), f"{file}: {test}"
    assert "SUPPORT.md" in (ROOT / "nr/README.md").read_text()
