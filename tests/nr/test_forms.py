"""nr.convert: layers in forms of their own, which are those of torch under another name."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nr
from tests.helpers import logits_of, random_norms, relative_difference, wear
from tests.nr.test_conversion import CLASSES, SIZE, ended


class NormAct(nn.BatchNorm2d):
    """A batch norm that activates too, and computes it itself."""

    def __init__(self, width: int, factor: float = 1.0):
        super().__init__(width)
        self.drop, self.act, self.factor = nn.Identity(), nn.SiLU(inplace=True), factor

    def forward(self, x):
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training
        )
        return self.act(self.factor * self.drop(x))


class Same(nn.Conv2d):
    """A convolution that pads as much as the size of its images needs."""

    def forward(self, x):
        sides = [-size % 2 + 1 for size in (x.shape[3], x.shape[2])]
        x = F.pad(x, (0, sides[0], 0, sides[1]))
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Blur(nn.Module):
    """A fixed window over each channel."""

    def __init__(self, width: int):
        super().__init__()
        window = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
        self.register_buffer("window", window[None, None].repeat(width, 1, 1, 1), persistent=False)

    def forward(self, x):
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(x, self.window, stride=2, groups=x.shape[1])


class OwnLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


def in_other_forms(end: str) -> nn.Module:
    stem = [Same(3, 8, 3, stride=2), NormAct(8), nn.Conv2d(8, 9, 3, padding=1), NormAct(9)]
    ends = {
        "linear": [nn.Flatten(), OwnLinear(9, CLASSES), nn.Flatten(), nn.Identity()],
        "convolution": [nn.Conv2d(9, CLASSES, 1), nn.Flatten()],
    }
    torch.manual_seed(0)
    model = nn.Sequential(*stem, Blur(9), nn.AdaptiveAvgPool2d(1), *ends[end]).double()
    random_norms(model)
    return model


@pytest.mark.parametrize("end", ["linear", "convolution"])
def test_layers_in_other_forms_are_converted_and_rejuvenated(end, tmp_path):
    images = torch.randn(4, 3, SIZE, SIZE).double()
    model = in_other_forms(end)
    network = nr.convert(model, SIZE)
    for training in (False, True, False):
        found, wanted = (logits_of(each, images, training) for each in (network, model))
        assert relative_difference(found[:, 0], wanted) < 1e-12
    before = logits_of(wear(network), images)
    nr.rejuvenate(network, "full")
    assert relative_difference(logits_of(network, images)[:, :1], before) < 1e-12
    nr.save(network, tmp_path / "network.pt")
    into = nr.convert(in_other_forms(end), SIZE)  # a file only names the fixed filter
    loaded = nr.load(tmp_path / "network.pt", into=into)
    assert torch.equal(logits_of(loaded, images), logits_of(network, images))


def test_a_norm_that_does_more_than_its_modules_is_refused():
    model = in_other_forms("linear")
    model[1].factor = 2.0
    with pytest.raises(ValueError, match=r"1: NormAct may do more than nn\.BatchNorm2d"):
        nr.convert(model, SIZE)


@pytest.mark.parametrize("relu", [partial(F.relu, inplace=True), torch.relu_, Tensor.relu_])
def test_functions_that_work_in_place_do_so_in_the_network(relu):
    model = ended(lambda m, x: m.fc(torch.flatten(m.pool(relu(x)), 1)))
    network = nr.convert(model, 8)
    assert [m.inplace for m in network.modules() if isinstance(m, nn.ReLU)] == [True]
    x = torch.randn(2, 3, 8, 8)
    assert relative_difference(logits_of(network, x)[:, 0], logits_of(model, x)) < 1e-5
