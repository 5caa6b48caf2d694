"""Layers of torch with the weights of nr's: copies that do not need nr."""

import copy

import torch
from torch import Tensor, nn

from nr.network.convolutions import ConvBN
from nr.network.layers import Classifier
from nr.network.norms import BatchNorm, take_after
from nr.network.units import FORMS
from nr.network.windows import pair


def convolution(unit: ConvBN, place: int) -> nn.Module:
    """One of a unit's convolutions; an nn.Linear if it was one.

    It has the biases of the streams that it writes, unless a gate comes between.
    """
    conv = copy.deepcopy(unit.convs[place])
    conv.stride = pair(unit.stride)
    own = [unit.biases[s].bias for s in FORMS[unit.form][place][1]] if unit.biases else []
    biases: list[Tensor] = [bias for bias in own if bias is not None]
    if biases and unit.form != "attention":
        conv.bias = nn.Parameter(torch.cat(biases), requires_grad=biases[0].requires_grad)
    return _linear(conv) if unit.linear else conv


def _linear(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Linear:
    """The linear layer over whole maps that a convolution stands for."""
    weight = conv.weight.detach().flatten(1)  # [o, i·h·w]
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    made.register_parameter("bias", conv._parameters["bias"])
    return made.train(conv.training)


def batch_norm(norm: BatchNorm, flat: bool) -> nn.Module:
    """A batch norm of maps [B, C, H, W], or of [B, C]."""
    cls = nn.BatchNorm1d if flat else nn.BatchNorm2d
    made = cls(norm.num_features, eps=norm.eps, momentum=norm.momentum)
    take_after(made, norm)
    made.load_state_dict(norm.state_dict(), strict=False)  # nr's has no count of batches
    return made


def head(classifier: Classifier, stream: int) -> nn.Module:
    """The layer of one stream, with the shared bias."""
    made = copy.deepcopy(classifier.linears[stream])
    made.bias = copy.deepcopy(classifier.linears[0].bias)
    return made
