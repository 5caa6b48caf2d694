"""nr.archive: any network of nr's units there and back, custom modules, hostile files, no utils."""

import hashlib
import io
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nr
from nr.files.archive import Sealing, read_sealed, write_sealed
from nr.network.convolutions import ConvBN
from nr.network.layers import Chain, Classifier, Concat, Network, Residual
from tests.helpers import MODES, build, kill, logits_of, same_tensors, vary, worn
from tests.running import ROOT


class Swish(nn.Module):
    """A plain module that nr does not know, with a parameter."""

    def __init__(self, slope: float = 1.0):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x):
        return x * torch.sigmoid(self.slope * x)


def own(image: int = 1, middle: nn.Module | None = None, width: int = 6) -> Network:
    """A network that no builder makes: other windows, eps, plain modules and image."""
    torch.manual_seed(0)
    features = Chain(
        ConvBN(image, width, 5, 2, padding=1, eps=1e-3, momentum=None),
        middle or nn.LeakyReLU(0.2),
        nn.Sequential(nn.MaxPool2d((3, 2), 2, ceil_mode=True), nn.PReLU()),
        Residual(Chain(ConvBN(width, 8, 3), nn.SiLU(), ConvBN(8, width, 1))),
        Concat(Chain(ConvBN(width, 5, 3), nn.ReLU())),
        nn.Upsample(scale_factor=2.0),
        ConvBN(width + 5, 7, 1, momentum=0.3),
        nn.AdaptiveAvgPool2d(1),
    )
    return vary(Network(features, Classifier(7, 3), (20, 14)))


def rejuvenated(model: Network, mode: str | None) -> Network:
    if mode is not None:
        kill(model, {"features.4.branch.0": [0, 1], "features.3.branch.0": slice(None)})
        nr.rejuvenate(model, mode)
    return model


@pytest.mark.parametrize("mode", [None, *MODES])
def test_any_network_comes_back(tmp_path, mode):
    model = rejuvenated(own(), mode)
    nr.save(model, tmp_path / "own.pth")
    loaded = nr.load(str(tmp_path / "own.pth"))
    images = torch.randn(2, 1, 20, 14)
    assert not loaded.training
    assert torch.equal(loaded(images), logits_of(model, images))
    assert nr.structure(loaded) == nr.structure(model)
    assert loaded.features[0].norms[0].eps == 1e-3 and loaded.features[0].norms[0].momentum is None
    assert os.listdir(tmp_path) == ["own.pth"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_comes_back(tmp_path, dtype):
    model = own().to(dtype)
    nr.save(model, tmp_path / "own.pth")
    assert same_tensors(model.state_dict(), nr.load(tmp_path / "own.pth").state_dict())


@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_custom_module_is_taken_from_the_network_to_load_into(tmp_path, mode):
    model, path = rejuvenated(own(middle=Swish(3.0)), mode), tmp_path / "own.pth"
    nr.save(model, path)
    with pytest.raises(nr.FileError, match=r"features\.1 is a tests.*Swish.*nr\.load\(path, into="):
        nr.load(path)
    into = own(middle=Swish(), width=9).train()
    assert nr.load(path, into=into) is into
    assert into.training
    images = torch.randn(2, 1, 20, 14)
    assert torch.equal(logits_of(into, images), logits_of(model, images))


@pytest.mark.parametrize(
    "other", [lambda: own(), lambda: own(middle=nn.Tanh()), lambda: build("vgg")]
)
def test_another_network_is_not_loaded_into(tmp_path, other):
    nr.save(own(middle=Swish()), tmp_path / "own.pth")
    into = other()
    before, modules = nr.structure(into), dict(into.named_modules())
    with pytest.raises(nr.FileError, match="cannot be rebuilt"):
        nr.load(tmp_path / "own.pth", into=into)
    assert nr.structure(into) == before
    assert dict(into.named_modules()) == modules


def test_a_network_without_custom_modules_is_refused_where_others_stand(tmp_path):
    nr.save(build("basic"), tmp_path / "basic.pth")
    with pytest.raises(nr.FileError, match="not those of the network to load into"):
        nr.load(tmp_path / "basic.pth", into=build("dense"))


def test_weights_of_another_shape_leave_the_network_to_load_into(tmp_path):
    model, path = own(), tmp_path / "own.pth"
    nr.save(model, path)
    payload = read_sealed(path)
    payload["state_dict"]["classifier.linears.0.bias"] = torch.zeros(4)
    write_sealed(path, payload)
    into = own()
    before = {name: value.clone() for name, value in into.state_dict().items()}
    with pytest.raises(nr.FileError, match=r"own\.pth: its network cannot be rebuilt: .*linears"):
        nr.load(path, into=into)
    assert same_tensors(before, into.state_dict())


def test_a_giant_description_takes_no_memory(tmp_path):
    """4 TB of weights are described, and none is there."""
    structure = nr.structure(own())
    modules = structure["features"]["modules"]
    modules["0"]["out_channels"] = modules["6"]["in_channels"] = [2**20]
    for name in ("3", "4"):
        del modules[name]
    write_sealed(tmp_path / "giant.pth", {"structure": structure, "state_dict": {}})
    with pytest.raises(nr.FileError, match="cannot be rebuilt"):
        nr.load(tmp_path / "giant.pth")


class WithoutBias(nn.Module):
    """A hidden and a last layer without bias, and a convolution without batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.bare = nn.Conv2d(4, 4, 1, bias=False)
        self.hidden, self.fc = nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)

    def forward(self, x):
        x = self.bare(torch.relu(self.norm(self.conv(x))))
        return self.fc(torch.relu(self.hidden(x.mean((2, 3)))))


def frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("mode", [None, *MODES])
def test_a_bias_that_a_layer_does_not_have_is_never_made(tmp_path, mode):
    theirs, path = WithoutBias().eval(), tmp_path / "network.pth"
    count = nr.count_params(theirs)
    model = nr.convert(theirs, 8)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(images)[:, 0], theirs(images))
    assert nr.count_params(model) == count
    if mode is not None:
        kill(model, {"features.conv": [0]})
        nr.rejuvenate(model, mode)
    nr.save(model, path)
    into = nr.convert(WithoutBias(), 8)
    for other in (nr.load(path), nr.load(path, into=into), nr.build(nr.structure(model))):
        other.requires_grad_(True)
        shapes, found = ({n: p.shape for n, p in m.named_parameters()} for m in (model, other))
        assert found == shapes
        names = [name for name, _ in other.named_parameters() if name.endswith("bias")]
        assert all(name.startswith("features.conv.norms") for name in names)
    if mode in ("removed", "full"):
        before = logits_of(model, images).sum(1)
        nr.merge(model)
        torch.testing.assert_close(logits_of(model, images).sum(1), before)
        assert [n for n, _ in model.named_parameters() if n.endswith("bias")] == [
            "features.conv.norms.0.bias"
        ]


def test_frozen_parameters_are_converted_frozen():
    theirs = WithoutBias()
    for module in (theirs.conv, theirs.hidden, theirs.norm.bias, theirs.fc):
        module.requires_grad_(False)
    assert frozen(nr.convert(theirs, 8)) == {
        "features.conv.convs.0.weight",
        "features.conv.norms.0.bias",
        "features.hidden.convs.0.weight",
        "classifier.linears.0.weight",
    }


@pytest.mark.parametrize("mode", [None, *MODES])
def test_frozen_parameters_come_back_frozen(tmp_path, mode):
    model, path = own(), tmp_path / "own.pth"
    model.features[0].requires_grad_(False)
    model.features[6].norms.requires_grad_(False)
    model.classifier.linears[0].bias.requires_grad_(False)
    if mode is not None:
        kill(model, {"features.4.branch.0": [0, 1]})
        nr.hold(model, freeze="features.0")
        nr.rejuvenate(model, mode)
    names = frozen(model)
    assert len(names) >= 6
    nr.save(model, path)
    into = own(width=9)
    into.features[3].requires_grad_(False)
    for other in (nr.load(path), nr.load(path, into=into), nr.build(nr.structure(model))):
        assert frozen(other) == names


def test_an_older_file_says_nothing_of_frozen_parameters(tmp_path):
    """All train, and in a network to load into what was frozen there."""
    nr.save(own(), tmp_path / "own.pth")
    payload = read_sealed(tmp_path / "own.pth")
    del payload["structure"]["frozen"]
    write_sealed(tmp_path / "own.pth", payload)
    assert frozen(nr.load(tmp_path / "own.pth")) == set()
    into = own()
    into.features[0].requires_grad_(False)
    before = frozen(into)
    assert frozen(nr.load(tmp_path / "own.pth", into=into)) == before != set()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frozen": ["features.0.convs.7.weight"]}, "is no parameter of this network"),
        ({"frozen": "features"}, "a list of names"),
        ({"classifier": {"in_channels": [7], "num_classes": 3, "bias": 0}}, "bias 0 is no bool"),
    ],
)
def test_senseless_flags_are_refused(change, reason):
    with pytest.raises(ValueError, match=reason):
        nr.build(nr.structure(own()) | change)


@pytest.mark.parametrize("payload", [{}, [], None, {"structure": {}}, {"state_dict": {}}], ids=repr)
def test_a_file_of_another_kind_is_refused(tmp_path, payload):
    write_sealed(tmp_path / "other.pth", payload)
    with pytest.raises(nr.FileError, match=r"other\.pth: holds no network of nr's: no '"):
        nr.load(tmp_path / "other.pth")


def test_a_file_error_is_a_value_error():
    assert issubclass(nr.FileError, ValueError)
    with pytest.raises(nr.FileError, match="not here: No such file"):
        nr.load("not here")


def test_what_cannot_be_followed_is_not_saved(tmp_path):
    model = own(middle=nn.BatchNorm2d(6))
    with pytest.raises(ValueError, match="BatchNorm2d"):
        nr.save(model, tmp_path / "own.pth")
    assert os.listdir(tmp_path) == []


ALONE = """
import sys
sys.modules["models"] = sys.modules["utils"] = None  # importing them raises ImportError
import nr
network = nr.load(sys.argv[1])
nr.utilization(network)
nr.save(network, sys.argv[2])
assert nr.structure(nr.load(sys.argv[2])) == nr.structure(network)
assert not [name for name in sys.modules if name.split(".")[0] in ("torchvision", "matplotlib")]
assert "torch._dynamo" not in sys.modules  # seconds to load
"""


def test_nr_needs_neither_models_nor_utils(tmp_path):
    model = worn("dense")
    nr.rejuvenate(model)
    nr.save(model, tmp_path / "a.pth")
    words = [sys.executable, "-c", ALONE, str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@given(st.binary(min_size=2, max_size=40), st.lists(st.integers(0, 5), max_size=20))
def test_an_archive_is_sealed_in_whatever_pieces_it_comes(archive, sizes):
    file = io.BytesIO()
    sealing, rest = Sealing(file), memoryview(archive)
    for size in [*sizes, len(archive)]:
        assert sealing.write(rest[:size]) == len(rest[:size])
        rest = rest[size:]
    sealing.seal()
    body = archive[:-2] + (71).to_bytes(2, "little")  # "sha256:" and 64 digits
    assert file.getvalue() == body + b"sha256:" + hashlib.sha256(body).hexdigest().encode()
