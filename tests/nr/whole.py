"""Whole networks of torch, through all that nr does: converted, worn down, rebuilt, merged, filed.

Of each network one of each kind is made, in double; tests get copies.
"""

import copy
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torchvision.ops import StochasticDepth

import nr
from nr.method.rejuvenation import Report
from tests.copies import copied
from tests.helpers import random_norms, relative_difference, same_tensors, wear

SIZE = 32  # pixels
EXACT = 1e-12  # of the largest output, in double


def images(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator).double()


class Networks:
    """Networks of torch by name; ``scaled``: those without batch norm, which get scales."""

    def __init__(self, makers: Mapping[str, Callable[[], nn.Module]], scaled: Collection = ()):
        self.makers, self.scaled = makers, scaled

    def plain(self, name: str) -> nn.Module:
        torch.manual_seed(0)
        model = self.makers[name]().double()
        random_norms(model)
        return model

    @copied
    def converted(self, name: str) -> nr.Network:
        return nr.convert(self.plain(name), SIZE, scales=name in self.scaled)

    @copied
    def worn(self, name: str) -> nr.Network:
        network = wear(self.converted(name))
        torch.manual_seed(0)
        return network

    @copied
    def rebuilt(self, name: str, cross: str, **options) -> tuple[nr.Network, Report]:
        network = self.worn(name)
        return network, nr.rejuvenate(network, cross, **options)


def outputs(model: nn.Module, training: bool = False):
    """Of ``images``, in what the network gives them; what is random is the same each time."""
    torch.manual_seed(1)
    with torch.no_grad():
        return model.train(training)(images())


def quiet(network: nr.Network) -> nr.Network:
    """Without the noise of dropout and of stochastic depth."""
    for module in network.modules():
        if isinstance(module, nn.Dropout | StochasticDepth):
            module.p = 0.0
    return network


def close(found, wanted) -> bool:
    pairs = [*zip(tree_leaves(found), tree_leaves(wanted), strict=True)]
    assert all(a.shape == b.shape for a, b in pairs)
    return max(relative_difference(a, b) for a, b in pairs) < EXACT


def survived(found):
    """The first stream alone: [B, 1, ...]."""
    return tree_map(lambda output: output[:, :1], found)


def check_outputs(networks: Networks, name: str) -> None:
    """The network's own, in both modes, of one stream, in the dict or tuple that it gives."""
    network, model = networks.converted(name), networks.plain(name)
    for training in (False, True, False):  # the last one sees the statistics of a step
        found, wanted = (outputs(each, training) for each in (network, model))
        ours = isinstance(wanted, OrderedDict) or hasattr(wanted, "_fields")  # dict and tuple
        assert ours or isinstance(found, type(wanted))
        assert not isinstance(wanted, dict) or found.keys() == wanted.keys()
        assert {leaf.shape[:2] for leaf in tree_leaves(found)} == {(4, 1)}
        assert close(tree_map(lambda output: output[:, 0], found), wanted)


def check_survived(
    networks: Networks, name: str, cross: str, modes: Collection[bool], most: float, **options
) -> None:
    """Measuring changes nothing; the survived outputs and the budget stay, all of it learns.

    ``modes``: of training or not, in which the outputs are compared; ``most``: of the budget.
    """
    network = networks.worn(name)
    state = copy.deepcopy(network.state_dict())
    usage = nr.utilization(network)
    assert same_tensors(state, network.state_dict())
    network, report = networks.rebuilt(name, cross, **options)
    assert usage.ratio == report.utilization.ratio < 0.9
    for training in modes:
        before, (after, _) = networks.worn(name), networks.rebuilt(name, cross, **options)
        wanted = outputs(quiet(before), training)
        assert close(survived(outputs(quiet(after), training)), wanted)
    if cross != "none":
        assert 0.9 <= report.budget <= most
    sum(output.square().sum() for output in tree_leaves(network.train()(images()))).backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None]


def check_merged(networks: Networks, name: str, cross: str) -> None:
    """Merged, the outputs are the sums of the streams'; and worn down it can be rebuilt again."""
    streams, network = (quiet(networks.rebuilt(name, cross)[0]) for _ in range(2))
    nr.merge(network)
    for training in (False, True):
        wanted = tree_map(lambda output: output.sum(1, keepdim=True), outputs(streams, training))
        assert close(outputs(network, training), wanted)
    assert nr.utilization(wear(network)).ratio < 1  # and again
    before = outputs(network)
    nr.rejuvenate(network, cross)
    assert close(survived(outputs(network)), before)


def check_files(networks: Networks, name: str, folder: Path, alone: bool = True) -> None:
    """A copy, a description and a file bring it back; ``alone``: into no network, too."""
    (network, _), path = networks.rebuilt(name, "attention"), folder / "network.pt"
    nr.save(network, path)
    into = nr.load(path, into=networks.converted(name))
    others = [copy.deepcopy(network), into]
    names = [[n for n, _ in model.named_parameters()] for model in (network, into)]
    assert names[0] == names[1]  # an optimizer knows them by their order
    if alone:
        found = nr.structure(network)
        assert nr.structure(nr.build(json.loads(json.dumps(found)))) == found
        others.append(nr.load(path))
    wanted = tree_leaves(outputs(network))
    for other in others:
        found = tree_leaves(outputs(other))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
