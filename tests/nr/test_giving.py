"""nr.to_torch: networks given back as modules of torch's own layers, which need no nr."""

import copy
import io
import pickle
import warnings
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

import nr
from nr.network.plain import Filter
from tests.copies import copied
from tests.helpers import (
    MODES,
    build,
    kill,
    open_cross_blocks,
    random_norms,
    relative_difference,
    same_tensors,
    tiny,
    vary,
    wear,
    worn,
)

SIZE, CLASSES = 8, 3
CASES = [  # a ReLU behind a head does not merge
    (name, form)
    for name in ("mixed", "heads", "basic", "tiny")
    for form in (None, "none", *MODES, "merged")
    if (name, form) != ("heads", "merged")
]
EXACT = 1e-12  # of the largest logit, in double


class Mixed(nn.Module):
    """A bit of everything: sums, gates, halves, norms before convolutions, hidden layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.deep, self.deep_bn = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.side = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        squeeze = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1)]
        self.gate = nn.Sequential(*squeeze)
        self.gamma = nn.Parameter(torch.rand(16, 1, 1) + 0.5)
        self.before, self.last = nn.BatchNorm2d(32), nn.Conv2d(32, 6, 1)
        self.hidden, self.hidden_bn = nn.Linear(6 * 16, 10), nn.BatchNorm1d(10)
        self.end = nn.Sequential(nn.Linear(10, 6), nn.ReLU(True), nn.Dropout(0.1))
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        a, b = x.chunk(2, dim=1)
        x = torch.cat([b, F.relu(self.deep_bn(self.deep(a)))], dim=1)
        x = x + self.side(x) * self.gamma
        y = x * torch.sigmoid(self.gate(x))
        x = self.last(F.relu(self.before(torch.cat([x, y], dim=1))))
        x = F.relu(self.hidden_bn(self.hidden(x.flatten(1))))
        return self.fc(self.end(x))


class Heads(nn.Module):
    """Maps and logits in a dict, of a size that the forward reads."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.maps, self.fc = nn.Conv2d(6, CLASSES, 1), nn.Linear(6, CLASSES)

    def forward(self, x):
        size = x.shape[-2:]
        x = F.relu(self.bn(self.stem(2 * x - 1)))
        maps = F.interpolate(self.maps(x), size, mode="bilinear", align_corners=False)
        return {"maps": F.relu(maps), "logits": (self.fc(x.mean((2, 3))),)}


def images(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, SIZE, SIZE, dtype=torch.double, generator=generator)


def source(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = {"mixed": Mixed, "heads": Heads}[name]().double()
    random_norms(model)
    return model


@copied
def network(name: str) -> nr.Network:
    if name in ("mixed", "heads"):
        return nr.convert(source(name), SIZE)
    return (vary(tiny()) if name == "tiny" else worn(name)).double()


@copied
def rebuilt(name: str, form: str | None) -> nr.Network:
    """A network in one of its forms, with cross blocks that are at work."""
    model = network(name)
    torch.manual_seed(0)
    if form is None:
        return model
    if name == "tiny":
        kill(model, {"features.first": slice(2)})
    elif name != "basic":
        wear(model)
    nr.rejuvenate(model, "full" if form == "merged" else form)
    open_cross_blocks(model)
    if form == "merged":
        nr.merge(model)
    torch.manual_seed(0)
    return model


def outputs(model: nn.Module, training: bool) -> list[Tensor]:
    torch.manual_seed(1)  # of the dropout
    with torch.no_grad():
        return tree_leaves(model.train(training)(images()))


def agree(found: nn.Module, wanted: nn.Module) -> bool:
    """In eval and in train mode, and in eval mode after that step, which statistics have seen."""
    pairs = ((outputs(found, t), outputs(wanted, t)) for t in (False, True, False))
    return all(
        a.shape == b.shape and relative_difference(a, b) < EXACT
        for left, right in pairs
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize(("name", "form"), CASES)
def test_outputs_are_the_sum_of_the_networks_in_both_modes(name, form):
    model = rebuilt(name, form)
    found = nr.to_torch(model)
    assert not [m for m in found.modules() if type(m).__module__.startswith("nr.")]
    assert type(found(images())) is type(nr.Joined(model)(images()))
    found, before = nr.to_torch(model), copy.deepcopy(model.state_dict())
    outputs(copy.deepcopy(found).train(), True)
    assert same_tensors(before, model.state_dict())
    assert agree(found, nr.Joined(model))
    sum(y.square().sum() for y in tree_leaves(found.train()(images()))).backward()
    assert not [n for n, p in found.named_parameters() if p.grad is None]


def unnamed(structure: dict) -> dict:
    """A structure whose operations without a module are named by their place."""
    features = structure["features"]
    nodes, names = features["nodes"], {}
    for place, node in enumerate(nodes):
        kind = node["op"] if isinstance(node["op"], str) else node["op"]["type"]
        if kind in ("add", "cat", "mul", "flat", "Affine", "FixedSize"):
            names[node["name"]] = f"{kind} {place}"
        if kind == "FixedSize":
            del node["op"]["reader"]
    for node in nodes:
        node["name"] = names.get(node["name"], node["name"])
        node["inputs"] = [names.get(name, name) for name in node["inputs"]]
    if "outputs" in features:
        features["outputs"] = tree_map(lambda name: names.get(name, name), features["outputs"])
    return structure


@pytest.mark.parametrize(
    ("name", "form"),
    [("mixed", None), ("mixed", "none"), ("mixed", "merged"), ("heads", None), ("heads", "none")],
)
def test_there_and_back_is_the_identity(name, form, tmp_path):
    """Structure and weights, with names; also after a file."""
    model = rebuilt(name, form)
    nr.save(model, tmp_path / "network.pt")
    given = nr.to_torch(nr.load(tmp_path / "network.pt"))
    again = nr.convert(given, SIZE)
    assert same_tensors(model.state_dict(), again.state_dict())
    assert unnamed(nr.structure(again)) == unnamed(nr.structure(model))
    assert same_tensors(nr.to_torch(again).state_dict(), given.state_dict())


def test_names_are_those_of_the_network_that_was_converted():
    torch_names = {n for n in source("mixed").state_dict() if n not in ("stem.bias", "deep.bias")}
    torch_names -= {"hidden.bias"}  # it moved into the norm behind it
    found = nr.to_torch(network("mixed"))
    assert {n for n in found.state_dict() if not n.startswith("getitem")} == torch_names
    assert type(found.hidden) is nn.Linear and type(found.hidden_bn) is nn.BatchNorm1d
    two = nr.to_torch(rebuilt("mixed", "removed")).state_dict()
    assert {"stem.weight", "stem_rejuvenated.weight", "bn_rejuvenated.running_mean"} <= {*two}
    own = nr.to_torch(rebuilt("tiny", None)).state_dict()
    assert {"first.weight", "first_norm.weight", "classifier.bias"} <= {*own}


def test_frozen_parameters_and_modes_stay():
    model = network("mixed")
    model.get_submodule("features.stem").requires_grad_(False).eval()
    found = nr.to_torch(model.train())
    model.get_submodule("features.stem").eval()
    assert [n for n, p in found.named_parameters() if not p.requires_grad] == [
        "stem.weight",
        "bn.weight",
        "bn.bias",
    ]
    assert all(m.training for m in found.modules())
    found = nr.to_torch(model)
    assert [n for n, m in found.named_modules() if not m.training] == ["stem", "bn"]


class Recorder(pickle.Unpickler):
    """Unpickles, and takes down which modules that needs."""

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data))
        self.needed: set[str] = set()

    def find_class(self, module: str, name: str) -> object:
        self.needed.add(module.split(".")[0])
        return super().find_class(module, name)


@pytest.mark.parametrize("form", [None, "removed"])
def test_tools_of_torch_take_it_and_nr_is_not_needed(form):
    model = rebuilt("mixed" if form is None else "tiny", form).float().eval()
    found, x = nr.to_torch(model), images().float()
    wanted = found(x)
    unpickler = Recorder(pickle.dumps(found))
    assert torch.equal(unpickler.load()(x), wanted)
    assert unpickler.needed <= {"torch", "collections"}
    assert "nr" not in found.code
    assert torch.equal(fx.symbolic_trace(found)(x), wanted)
    ao = pytest.importorskip("torch.ao.quantization")  # which torch moves elsewhere
    pytest.importorskip("torch.ao.quantization.quantize_fx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dynamic = ao.quantize_dynamic(found)
        mapping = ao.get_default_qconfig_mapping().set_global(ao.default_qconfig)  # sooner done
        prepared = ao.quantize_fx.prepare_fx(copy.deepcopy(found), mapping, (x,))
        prepared(x)
        quantized = ao.quantize_fx.convert_fx(prepared)
    for each in (dynamic, quantized):
        assert relative_difference(each(x), wanted) < 0.2  # eight bits


def test_it_exports():
    found, x = nr.to_torch(rebuilt("tiny", "removed").eval()), images()
    dynamic = ({0: torch.export.Dim("B")},)
    program = torch.export.export(found, (x,), dynamic_shapes=dynamic)
    assert relative_difference(program.module()(x[:3]), found(x[:3])) < EXACT


def test_it_trains_as_the_network_does():
    """The same step of one optimizer, of one stream."""
    model, labels = network("mixed").eval(), torch.tensor([0, 1, 2, 1])
    found = nr.to_torch(model)
    for each in (found, nr.Joined(model)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1, weight_decay=1e-2)
        F.cross_entropy(each(images()), labels).backward()
        optimizer.step()
    assert relative_difference(found(images()), model(images())[:, 0]) < EXACT


def test_a_fixed_window_and_a_module_of_ones_own():
    """A Filter is a convolution with a buffer; other modules are taken along."""

    class Shifted(nn.Module):
        def forward(self, x):
            return F.leaky_relu(x, 0.2)

    model = vary(tiny()).double()
    model.features.relu1, model.features.relu2 = Shifted(), Filter(torch.rand(2, 2).double())
    kill(model, {"features.first": slice(2)})
    nr.rejuvenate(model)
    found = nr.to_torch(model)
    assert agree(found, nr.Joined(model))
    assert isinstance(found.relu1, Shifted) and found.relu2.shape == (4, 1, 2, 2)


def test_what_training_alone_gives_is_given_in_training():
    class Auxiliary(Heads):
        def forward(self, x):
            low = F.relu(self.bn(self.stem(x)))
            aux = self.maps(low) if self.training else None
            return self.fc(low.mean((2, 3))), aux

    torch.manual_seed(0)
    model = nr.convert(Auxiliary().double(), SIZE)
    assert nr.to_torch(model.train())(images())[1].shape == (4, CLASSES, 4, 4)
    found = nr.to_torch(model.eval())
    assert found(images())[1] is None and not [n for n, _ in found.named_modules() if n == "maps"]


def test_names_that_torch_fx_has_itself_give_way():
    inner = nr.Chain(OrderedDict(code=nr.ConvBN(3, 4, 3), classifier=nn.AdaptiveAvgPool2d(1)))
    chain = nr.Chain(OrderedDict(graph=inner, classifier=nn.ReLU()))
    model = nr.Network(chain, nr.Classifier(4, 2), SIZE).double()
    assert agree(nr.to_torch(model), nr.Joined(model))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), tiny().features])
def test_what_is_no_network_is_refused(model):
    with pytest.raises(ValueError, match="is no nr"):
        nr.to_torch(model)


def test_a_network_of_a_family_is_given_back_as_it_is():
    """Another network than the ones made for this page, without a conversion before."""
    model = build("dense").double()
    assert agree(nr.to_torch(model), nr.Joined(model))
    again = nr.convert(nr.to_torch(model), model.image_size)
    assert agree(again, model)
