"""torchvision's weights in our networks: of its ResNets in ours, of any network in it converted."""

import re
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

import nr
from models.converted import PREFIX, original
from models.imagenet.resnet import PLANS
from nr.network.layers import Network
from nr.network.plain import Size

ARCHS = {f"resnet{depth}_nr": f"resnet{depth}" for depth in PLANS}  # ours: torchvision's
CLASSIFIER = "classifier.linears.0."
NO_WEIGHTS = (
    "holds something else than a state_dict, tensors by name, or is damaged; write it with"
    " torch.save(model.state_dict(), FILE)"
)
COUNTER = "num_batches_tracked"  # of batch norm: no weight, and not in every file


def torchvision_name(arch: str) -> str | None:
    """torchvision's name of ``arch``, or None where it has no weights of it."""
    return arch.removeprefix(PREFIX) if arch.startswith(PREFIX) else ARCHS.get(arch)


def read(arch: str, file: str | None) -> dict[str, Tensor]:
    """The weights of torchvision's ``arch``, by its names: of ``file`` or downloaded.

    ``file``: a state_dict as torch.save writes it. ValueError, in one line, where there is none.
    """
    try:
        if file is None:
            import torchvision  # takes a second, which a file does not need

            weights = torchvision.models.get_model_weights(torchvision_name(arch)).DEFAULT
            return dict(weights.get_state_dict(progress=True))
        with warnings.catch_warnings():  # of torch, about what is no file of its
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of the network, the file system, pickle and torch
        if file is None:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"torchvision's {torchvision_name(arch)} cannot be had: {reason}"
            ) from error
        reason = getattr(error, "strerror", None) or NO_WEIGHTS
        raise ValueError(f"{file}: {reason}") from error
    if not isinstance(content, Mapping) or not all(torch.is_tensor(v) for v in content.values()):
        raise ValueError(f"{file}: {NO_WEIGHTS}")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def load(network: Network, weights: Mapping[str, Tensor], arch: str | None = None) -> bool:
    """Copy torchvision's ``weights`` into ``network``, a fresh ResNet or the converted ``arch``.

    Where they are of another number of classes the classifier stays as it is, and False is
    returned. ValueError, and the network as it was, where a name or shape is not the network's.
    """
    own = {k: v for k, v in network.state_dict().items() if not k.endswith(COUNTER)}
    if arch is not None and arch.startswith(PREFIX):
        weights = converted(arch.removeprefix(PREFIX), weights, network.image_size)
        given = {name: (name, weight) for name, weight in weights.items()}
    else:
        given = {renamed(k): (k, v) for k, v in weights.items() if not k.endswith(COUNTER)}
    for name, (theirs, _) in given.items():
        if name not in own:
            raise ValueError(f"{theirs}: the network has no such weight")
    whole = True
    for name, tensor in own.items():
        if name not in given:
            raise ValueError(f"there are no weights for {name}")
        theirs, found = given[name]
        if found.shape == tensor.shape:
            continue
        if not name.startswith(CLASSIFIER) or found.shape[1:] != tensor.shape[1:]:
            raise ValueError(
                f"{theirs}: is {tuple(found.shape)}, the network's is {tuple(tensor.shape)}"
            )
        whole = False
    kept = {k: v for k, (_, v) in given.items() if whole or not k.startswith(CLASSIFIER)}
    network.load_state_dict(kept, strict=False)
    return whole


def converted(name: str, weights: Mapping[str, Tensor], size: int | Size) -> dict[str, Tensor]:
    """torchvision's ``weights`` of ``name`` under our names, of any number of classes."""
    matrices = [tensor for tensor in weights.values() if tensor.ndim == 2]
    if not matrices:
        raise ValueError(f"these are no weights of {name}: no linear layer is among them")
    model = original(name, num_classes=len(matrices[-1]))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    return nr.convert(model, size).state_dict()


def renamed(name: str) -> str:
    """Our name of a weight of torchvision's ResNets; another name as it is."""

    def branch(match: re.Match[str]) -> str:
        layer = 2 * (int(match["number"]) - 1)  # a ReLU stands between two units
        return f"branch.{layer}.{'convs' if match['kind'] == 'conv' else 'norms'}.0."

    name = re.sub(r"^layer(\d+)\.", r"features.stage\1.", name)
    name = re.sub(r"^(?=(conv|bn)1\.)", "features.stem.0.", name)
    name = re.sub(r"(?<=stem\.0\.)conv1\.", "convs.0.", name)
    name = re.sub(r"(?<=stem\.0\.)bn1\.", "norms.0.", name)
    name = re.sub(r"(?P<kind>conv|bn)(?P<number>\d)\.", branch, name)
    name = name.replace("downsample.0.", "shortcut.convs.0.")
    name = name.replace("downsample.1.", "shortcut.norms.0.")
    return re.sub(r"^fc\.", CLASSIFIER, name)
