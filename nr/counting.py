"""Parameters and multiply-adds."""

from torch import nn

from nr.layers import Network
from nr.plain import Size
from nr.wiring import wiring


def count_params(model: nn.Module) -> int:
    """Number of parameters: convolutions, batch norms and classifier."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: Network, image_size: int | Size | None = None) -> int:
    """Multiply-adds of one image through convolutions and classifier, as torch counts them.

    ``image_size``: H = W of the image, or (H, W) (None: the family's usual size). Raises ValueError
    for a network that nr cannot follow.
    """
    layers = wiring(model, image_size).layers
    convolutions = sum(
        conv.weight.numel() * layer.pixels for layer in layers for conv in layer.unit.convs
    )
    return convolutions + sum(linear.weight.numel() for linear in model.classifier.linears)
