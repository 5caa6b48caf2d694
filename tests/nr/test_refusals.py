"""nr.convert: what has no form in units is refused by name, with the reason."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune
from torchvision.models.convnext import CNBlockConfig as Blocks
from torchvision.models.convnext import ConvNeXt

import nr
from tests.helpers import logits_of, relative_difference
from tests.nr.test_conversion import SIZE, ended, plain


def head(m, x):
    return m.fc(torch.flatten(m.pool(x), 1))


REFUSED = {
    "tuple": (lambda m, x: (head(m, x), 3), "logits of an nn.Linear alone"),
    "softmax": (lambda m, x: head(m, x).softmax(1), "softmax"),
    "inplace": (lambda m, x: head(m, x.relu_() + x), "sum|in place"),
    "inplace, named": (lambda m, x: head(m, F.relu(x, inplace=True) + x), "in place"),
    "inplace, by place": (lambda m, x: head(m, F.leaky_relu(x, 0.1, True) + x), "in place"),
    "both": (lambda m, x: head(m, x * x[:, :1]), "getitem|mul"),
    "twice": (lambda m, x: head(m, m.norm(m.conv(x[:, :3]))), "called more than once"),
    "values": (lambda m, x: head(m, x) if x.sum() > 0 else x, "cannot trace"),
    "dropout": (lambda m, x: head(m, F.dropout(x)), "nn.Dropout"),
    "alpha": (lambda m, x: head(m, torch.add(m.pool(x), m.pool(x), alpha=2)), "alpha"),
    "half a channel": (lambda m, x: head(m, x[:, :, 1:]), "something else than whole channels"),
    "size": (lambda m, x: m.fc(torch.flatten(x, 1)), "other image_size|image_size"),
    "means": (lambda m, x: head(m, x * x.mean(1, True)), "mean: is no mean over H and W in one"),
    "moved": (lambda m, x: m.fc(x.view(x.shape[0], 4, 2, -1).mean(3)[..., 0]), "is no mean over H"),
    "named": (lambda m, x: head(m, torch.special.expit(x)), "not known"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_form_in_units_is_named(case):
    end, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        nr.convert(ended(end), 8)


def test_what_nothing_reads_is_left_out_and_what_has_weights_is_named():
    model = ended(lambda m, x: (m.spare_norm(m.spare(m.pool(x))), head(m, m.bn(x)))[1]).eval()
    model.spare, model.spare_norm = nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)
    model.bn = nn.BatchNorm2d(4)
    with pytest.warns(UserWarning, match=r"left out of the network: spare, spare_norm$"):
        network = nr.convert(model, 8)
    x = torch.randn(2, 3, 8, 8)
    assert relative_difference(logits_of(network, x)[:, 0], logits_of(model, x)) < 1e-5
    assert not [name for name, _ in network.named_modules() if "spare" in name or "pool_" in name]


BY_NAME = {
    "convnext_tiny": (lambda: ConvNeXt([Blocks(8, 16, 1), Blocks(16, None, 2)], 0.1), "LayerNorm"),
    "vgg11": (torchvision.models.vgg11, "no batch norm"),
}


@pytest.mark.parametrize("name", BY_NAME)
def test_torchvisions_other_networks_are_refused_with_the_reason(name):
    make, words = BY_NAME[name]
    with torch.device("meta"):  # no weights, of which they have up to 133 million
        model = make()
    with pytest.raises(ValueError, match=words):
        nr.convert(model, 64)


def test_networks_of_units_and_wrapped_ones_are_refused():
    model = plain("vgg")
    with pytest.raises(ValueError, match="already"):
        nr.convert(nr.convert(model, SIZE), SIZE)
    with pytest.raises(ValueError, match=r"model\.module"):
        nr.convert(nn.DataParallel(model), SIZE)
    with pytest.raises(ValueError, match="image_size"):
        nr.convert(model, -1)
    with pytest.raises(ValueError, match=r"^'resnet18': is no nn\.Module"):
        nr.convert("resnet18", SIZE)
    with pytest.raises(ValueError, match=r"no nn\.Conv2d"):
        nr.convert(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), SIZE)
    with pytest.raises(ValueError, match="lazy modules without weights yet: run a batch first"):
        nr.convert(nn.Sequential(nn.LazyConv2d(4, 1), nn.Flatten(), nn.Linear(4, 2)), SIZE)


HIDDEN = {
    "a hook": (lambda m: m.register_forward_hook(lambda *_: None), "a forward hook"),
    "a pre-hook": (lambda m: m.register_forward_pre_hook(lambda *_: None), "a forward hook"),
    "pruning": (lambda m: prune.l1_unstructured(m, "weight", 0.5), "a forward hook"),
    "spectral norm": (parametrizations.spectral_norm, "remove_parametrizations first"),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_what_the_graph_does_not_show_is_refused_in_one_line(case):
    change, words = HIDDEN[case]
    model = plain("basic")
    change(model.layer1[0].conv1)
    with pytest.raises(ValueError, match=r"^layer1\.0\.conv1: .*" + words) as caught:
        nr.convert(model, SIZE)
    assert "\n" not in str(caught.value)


class OwnConv(nn.Conv2d):
    """A convolution of a user's own."""


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv2d(4, 4, 3, padding_mode="circular"), r"3: Conv2d\(.* is no plain nn.Conv2d"),
        (nn.InstanceNorm2d(4), "3: InstanceNorm2d .* is no batch norm"),
        (OwnConv(4, 4, 3), r"3: OwnConv\(.* is no plain nn.Conv2d"),
        (nn.Sequential(nn.Conv2d(4, 4, 3), OwnNorm(4)), r"3\.1: OwnNorm may do more than"),
    ],
)
def test_other_convolutions_and_norms_are_refused_as_what_they_are(module, words):
    stem = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    end = [nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    with pytest.raises(ValueError, match=words):
        nr.convert(nn.Sequential(*stem, module, *end), 8)


def test_a_module_that_is_called_twice_is_refused():
    block = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
    with pytest.raises(ValueError, match="called more than once"):
        nr.convert(nn.Sequential(block, block, *end), 8)


def test_groups_that_read_the_image_are_refused():
    end = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
    with pytest.raises(ValueError, match="groups read the image"):
        nr.convert(nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3), *end), 8)
