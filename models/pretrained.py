"""Weights of torchvision for our ResNets, and of both libraries for converted networks."""

import re
from collections.abc import Mapping

from torch import Tensor

from models import converted
from models.imagenet.resnet import PLANS
from nr.network.layers import Classifier, Network

ARCHS = {f"resnet{depth}_nr": f"resnet{depth}" for depth in PLANS}  # ours: torchvision's
CLASSIFIER = "classifier.linears.0."
COUNTER = "num_batches_tracked"  # of batch norm: no weight, and not in every file
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # heads that files may lack; they begin afresh


def source(arch: str) -> tuple[str, str]:
    """The library that has weights of ``arch``, and its name there. ValueError if none has."""
    found = ("torchvision", ARCHS[arch]) if arch in ARCHS else converted.split(arch)
    if found is None:
        raise ValueError(f"arch {arch}: neither torchvision nor timm has weights of it")
    return found


def read(arch: str, file: str | None) -> dict[str, Tensor]:
    """The weights of ``arch``, by the names of its library, from ``file`` or downloaded.

    ``file``: a state_dict as torch.save writes it, or what timm takes. ValueError, in one line, if
    there are none.
    """
    library, name = source(arch)
    return converted.LIBRARIES[library].weights(name, file)


def normalisation(arch: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of pixels / 255 that weights of ``arch`` are made for."""
    library, name = source(arch)
    return converted.LIBRARIES[library].normalisation(name)


def load(network: Network, weights: Mapping[str, Tensor], arch: str | None = None) -> bool:
    """Copy a library's ``weights`` into ``network``, a fresh ResNet or the converted ``arch``.

    If they are of another number of classes, the classifiers stay as they are and False is
    returned. ValueError for a name or shape that the network does not have; it is then as it was.
    """
    own = {k: v for k, v in network.state_dict().items() if not k.endswith(COUNTER)}
    if arch is not None and (named := converted.split(arch)):
        given = {k: (k, v) for k, v in renewed(*named, weights, network).items()}
    else:
        given = {renamed(k): (k, v) for k, v in weights.items() if not k.endswith(COUNTER)}
    for name, (theirs, _) in given.items():
        if name not in own:
            raise ValueError(f"{theirs}: the network has no such weight")
    whole, heads = True, tuple(heads_of(network))
    for name, tensor in own.items():
        if name not in given:
            raise ValueError(f"there are no weights for {name}")
        theirs, found = given[name]
        if found.shape == tensor.shape:
            continue
        if not name.startswith(heads) or found.shape[1:] != tensor.shape[1:]:
            raise ValueError(
                f"{theirs}: is {tuple(found.shape)}, the network's is {tuple(tensor.shape)}"
            )
        whole = False
    kept = {k: v for k, (_, v) in given.items() if whole or not k.startswith(heads)}
    network.load_state_dict(kept, strict=False)
    return whole


def heads_of(network: Network) -> list[str]:
    """How the names of all classifiers' weights begin."""
    modules = network.named_modules()
    return [f"{name}.linears.0." for name, module in modules if isinstance(module, Classifier)]


def renewed(
    library: str, name: str, weights: Mapping[str, Tensor], network: Network
) -> dict[str, Tensor]:
    """The ``weights`` under the names of ``network``, for any number of classes."""
    classes = network.heads[0].num_classes
    model = converted.original(library, name, classes)
    *_, last = (key for key, tensor in model.state_dict().items() if tensor.ndim > 1)
    found = len(weights[last]) if last in weights else classes
    if found != classes:
        model = converted.original(library, name, found)
    try:
        missing, unknown = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error
    missing = [key for key in missing if not key.startswith(AUXILIARY)]
    if missing or unknown:
        what = f"Missing key: {missing[0]}" if missing else f"Unknown key: {unknown[0]}"
        raise ValueError(f"these are no weights of {name}: {what}")
    return converted.in_units(model, network.image_size).state_dict()


def renamed(name: str) -> str:
    """Our name of a weight of torchvision's ResNets; other names as they are."""

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
