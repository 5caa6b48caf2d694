"""torchvision's networks, converted: the same weights and logits in units of nr."""

import torch

import nr
from nr.network.layers import Network

PREFIX = "torchvision_"  # of the names that runs and files use; -a takes torchvision:<name>
IMAGE_SIZES = {"cifar": 32, "imagenet": 224}  # usual H = W in pixels, by family
CLASSES = {"cifar": 10, "imagenet": 1000}


def original(name: str, num_classes: int) -> torch.nn.Module:
    """torchvision's own network with fresh weights. Raises ValueError for an unknown name."""
    with torch.device("cpu"):  # it, and what it imports, computes widths and more with tensors
        import torchvision  # takes a second, which no other network needs

        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            raise ValueError(f"torchvision has no network {name!r}, but for example {known[0]}")
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes)


def network(family: str, name: str, num_classes: int | None = None) -> Network:
    """torchvision's ``name`` for the images of ``family``: [B, 3, H, W] to [B, S, classes].

    Raises ValueError for a network that has no exact form in units.
    """
    try:
        model = original(name, num_classes or CLASSES[family])
        made = nr.convert(model, IMAGE_SIZES[family])
    except ValueError as error:
        raise ValueError(f"arch torchvision:{name}: {error}") from error
    return made.to(torch.empty(0).device)  # get_default_device knows no `with` before torch 2.7
