"""VGG for 224x224 images; its hidden linear layers are prunable 1x1 ConvBN on the pooled map."""

from collections import OrderedDict
from functools import partial

from torch import nn

from models.common import conv_bn_relu, scale
from nr.network.layers import Chain, Classifier, Network

GAMMA = 0.5  # initial batch-norm scale of the VGG family
PLANS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions in each group
WIDTHS = (64, 128, 256, 512, 512)
HIDDEN = (4096, 4096)


def vgg(
    depth: int, num_classes: int = 1000, width_mult: float = 1.0, dropout: float = 0.0
) -> Network:
    """VGG of ``depth`` layers: images [B, 3, 224, 224] to logits [B, S, classes].

    ``dropout`` follows each hidden layer of the classifier part.
    """
    parts: list[tuple[str, nn.Module]] = []
    width = 3
    for index, (count, base) in enumerate(zip(PLANS[depth], WIDTHS, strict=True), start=1):
        group = []
        for _ in range(count):
            group += conv_bn_relu(width, scale(base, width_mult), 3, gamma=GAMMA)
            width = scale(base, width_mult)
        parts.append((f"group{index}", Chain(*group)))
        if index < len(WIDTHS):
            parts.append((f"pool{index}", nn.MaxPool2d(2, 2)))
    parts.append(("pool", nn.AdaptiveAvgPool2d(1)))
    hidden = []
    for base in HIDDEN:
        hidden += conv_bn_relu(width, scale(base, width_mult), 1, gamma=GAMMA, dropout=dropout)
        width = scale(base, width_mult)
    parts.append(("hidden", Chain(*hidden)))
    return Network(Chain(OrderedDict(parts)), Classifier(width, num_classes), image_size=224)


vgg16_nr, vgg19_nr = (partial(vgg, depth) for depth in PLANS)
vgg_nr = vgg16_nr
