"""timm's networks and weights, by their names there; imported only when one is asked for."""

import contextlib
import os
import urllib.error
import urllib.request
from typing import Any

from torch import Tensor, nn

from models.from_torchvision import first_line, kept, remedy

HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of weights, as timm looks for them
PATIENCE = 10  # seconds for a first answer of the hub, which tries again for 50


def names() -> list[str]:
    """All networks, with the tags of their weights and without."""
    import timm

    return [*timm.list_models(), *timm.list_models(include_tags=True)]


def make(name: str, num_classes: int) -> nn.Module:
    """A network with fresh weights."""
    import timm

    return timm.create_model(name, num_classes=num_classes)


def weights(name: str, file: str | None) -> dict[str, Tensor]:
    """The weights of ``name`` as timm loads them: from ``file``, from its caches, or downloaded.

    ValueError, in one line, if there are none.
    """
    import timm

    found = timm.get_pretrained_cfg(name)
    if file is None and not (found and found.has_weights):
        raise ValueError(f"timm has no weights of {name}: name a file of yours, --pretrained FILE")
    given: dict[str, Any] = {}
    try:
        if path := file or _cached(found):
            given = _overlay(path, found)
        elif found.hf_hub_id:
            _reach(_hub_url(found))
        classes = given.get("num_classes", found and found.num_classes)
        model = timm.create_model(
            name, pretrained=True, num_classes=classes, pretrained_cfg_overlay=given
        )
    except Exception as error:  # of the network, the file system, pickle, torch and timm
        if file is not None:
            reason = getattr(error, "strerror", None) or first_line(error)[:200]
            raise ValueError(f"{file}: {reason}") from error
        raise ValueError(
            f"timm's {name} cannot be had: {first_line(error)[:200]}; {_remedy(found)}"
        ) from error
    return model.state_dict()


def _overlay(path: str, found: Any) -> dict[str, Any]:
    """The entries of a configuration of weights that make timm take those of a file."""
    from timm.models import PretrainedCfg, load_state_dict

    found = found or PretrainedCfg()

    with open(path, "rb"):  # timm does not say why it cannot
        held = load_state_dict(path)
    usual, offset = found.num_classes, found.label_offset or 0
    rows = len(held.get(f"{found.classifier}.weight", range(usual)))
    if rows == usual + offset:  # timm takes the classes off that the others do not know
        return {"state_dict": held, "num_classes": usual}
    return {"state_dict": held, "num_classes": rows, "label_offset": 0}


def _cached(found: Any) -> str | None:
    """The file of these weights, if torch's downloads or the hub's cache have it."""
    if found.url and os.path.exists(path := kept(found.url)):
        return path
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for name in _hub_files(found):
        path = try_to_load_from_cache(found.hf_hub_id, name)
        if isinstance(path, str):
            return path
    return None


def _hub_files(found: Any) -> list[str]:
    """The files of these weights on the hub, in the order in which timm looks for them."""
    if not found.hf_hub_id:
        return []
    return [found.hf_hub_filename] if found.hf_hub_filename else [*HUB_FILES]


def _hub_url(found: Any) -> str:
    return f"https://huggingface.co/{found.hf_hub_id}/resolve/main/{_hub_files(found)[0]}"


def _reach(url: str) -> None:
    """Raise URLError at once if there is no network."""
    with contextlib.suppress(urllib.error.HTTPError):  # that is an answer
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()


def _remedy(found: Any) -> str:
    """What helps if the weights cannot be reached: a file where ``_cached`` finds it."""
    if found.url:
        return remedy(found.url)
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return f"get {_hub_url(found)} and name it: --pretrained FILE"
    folder = "models--" + found.hf_hub_id.replace("/", "--")
    place = os.path.join(HF_HUB_CACHE, folder, "snapshots", "main", _hub_files(found)[0])
    return remedy(_hub_url(found), place)


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of pixels / 255 in the weights' training, if timm knows them."""
    import timm

    found = timm.get_pretrained_cfg(name)
    return (tuple(found.mean), tuple(found.std)) if found else None
