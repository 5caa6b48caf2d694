"""torchvision's networks and weights, by their names; imported when one is asked for."""

import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

NO_WEIGHTS = (
    "holds something else than a state_dict, tensors by name, or is damaged; write it with"
    " torch.save(model.state_dict(), FILE)"
)
# Networks whose weights want images of mean and deviation 0.5: torchvision rescales inside them.
RESCALED = ("googlenet", "inception_v3")
HALF = ((0.5,) * 3, (0.5,) * 3)


def names() -> list[str]:
    """All networks for classification."""
    from torchvision import models

    return models.list_models(module=models)


def make(name: str, num_classes: int) -> nn.Module:
    """A network with fresh weights."""
    from torchvision import models

    options = {"init_weights": True} if name in RESCALED else {}  # the default, without a warning
    return models.get_model(name, weights=None, num_classes=num_classes, **options)


def weights(name: str, file: str | None) -> dict[str, Tensor]:
    """The weights of ``name``: from ``file``, a state_dict as torch.save writes it, or downloaded.

    ValueError, in one line, if there are none.
    """
    if file is None:
        return _downloaded(name)
    try:
        with warnings.catch_warnings():  # of torch, about what is no file of its
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of the file system, pickle and torch
        raise ValueError(f"{file}: {getattr(error, 'strerror', None) or NO_WEIGHTS}") from error
    if not isinstance(content, Mapping) or not all(torch.is_tensor(v) for v in content.values()):
        raise ValueError(f"{file}: {NO_WEIGHTS}")
    return _by_name(content)


def _by_name(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under today's names; what modules note about a state_dict stays."""
    found = OrderedDict((_today(name), tensor) for name, tensor in content.items())
    if hasattr(content, "_metadata"):
        vars(found)["_metadata"] = content._metadata
    return found


def _today(name: str) -> str:
    """A weight's name without DataParallel's prefix, and new where DenseNets have an old one."""
    name = name.removeprefix("module.")
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)", r"\1", name)


def _downloaded(name: str) -> dict[str, Tensor]:
    from torchvision import models

    found = models.get_model_weights(name).DEFAULT
    try:
        return _by_name(found.get_state_dict(progress=True))
    except Exception as error:  # of the network and of the file system
        raise ValueError(
            f"torchvision's {name} cannot be had: {first_line(error)}; {remedy(found.url)}"
        ) from error


def kept(url: str) -> str:
    """Where torch keeps, and looks first for, what it downloads from ``url``."""
    return os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))


def remedy(url: str, place: str | None = None) -> str:
    """What helps if ``url`` cannot be reached; ``place``: where the file is looked for."""
    return f"get {url} and put it at {place or kept(url)}, or name it: --pretrained FILE"


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels / 255 in the weights' training."""
    from torchvision import models

    if name in RESCALED:
        return HALF
    images = models.get_model_weights(name).DEFAULT.transforms()
    return tuple(images.mean), tuple(images.std)
