"""torchvision's ResNets (stride in the 3x3) for 224x224 images."""

from collections import OrderedDict
from functools import partial

from torch import nn

from models.common import conv_bn_relu, scale
from models.residual import BasicBlock, Block, Bottleneck, stage
from nr.network.layers import Chain, Classifier, Network

PLANS: dict[int, tuple[Block, tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
STEM = 64
STAGES = (64, 128, 256, 512)


def resnet(depth: int, num_classes: int = 1000, width_mult: float = 1.0) -> Network:
    """ResNet of ``depth`` layers: images [B, 3, 224, 224] to logits [B, S, classes]."""
    block, counts = PLANS[depth]
    width = scale(STEM, width_mult)
    stem = Chain(*conv_bn_relu(3, width, 7, stride=2), nn.MaxPool2d(3, 2, 1))
    parts: list[tuple[str, nn.Module]] = [("stem", stem)]
    for index, (base, count) in enumerate(zip(STAGES, counts, strict=True)):
        stride = 1 if index == 0 else 2
        blocks, width = stage(block, width, scale(base, width_mult), count, stride)
        parts.append((f"stage{index + 1}", blocks))
    parts.append(("pool", nn.AdaptiveAvgPool2d(1)))
    return Network(Chain(OrderedDict(parts)), Classifier(width, num_classes), image_size=224)


resnet18_nr, resnet34_nr, resnet50_nr, resnet101_nr, resnet152_nr = (
    partial(resnet, depth) for depth in PLANS
)
