"""The shapes of a network as plain data, and back; parameter and multiply-add counts."""

from collections.abc import Mapping

from torch import nn

from nr.layers import CROSS, Concat, Network, Residual
from nr.wiring import IMAGE, IMAGE_CHANNELS, Layer, gather_widths, wiring


def structure(model: Network) -> dict:
    """What rejuvenation changed, as strings, ints, lists and dicts only.

    ``form``: "plain" or the cross-connection mode; ``widths``: layer name -> one width a stream;
    ``dropped``: the residual and dense containers whose branch is gone.
    """
    layers, *_ = wiring(model)
    return {
        "form": next((layer.unit.form for layer in layers if IMAGE not in layer.sources), "plain"),
        "widths": {layer.name: list(layer.unit.out_channels) for layer in layers},
        "dropped": [name for name, module in _containers(model).items() if module.branch is None],
    }


def restore(model: Network, structure: Mapping) -> Network:
    """Give a fresh ``model`` the shapes of ``structure``, with fresh weights, and return it.

    Raises ValueError where the structure does not belong to this model; the model is then
    unchanged.
    """
    try:
        widths = _checked_widths(model, structure)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"structure: not as nr.structure writes it: {error!r}") from error
    containers = _containers(model)
    for name in structure["dropped"]:
        containers[name].branch = None
    layers, head, _ = wiring(model)
    like = model.classifier.linears[0].weight
    for layer in layers:
        layer.unit.build(
            _form(layer, structure), gather_widths(widths, layer.sources), widths[layer.name]
        )
    model.classifier.build(gather_widths(widths, head))
    return model.to(like.device, like.dtype).train(model.training)


def _form(layer: Layer, structure: Mapping) -> str:
    """The stem reads the image in both streams, so it has no cross blocks in any mode."""
    form = structure["form"]
    return "removed" if form != "plain" and IMAGE in layer.sources else form


def _checked_widths(model: Network, structure: Mapping) -> dict[str, tuple[int, ...]]:
    """Widths by layer name, the image included, after every check that restore needs."""
    form, dropped = structure["form"], set(structure["dropped"])
    if form not in ("plain", *CROSS):
        raise ValueError(f"structure: unknown form {form!r}, expected 'plain' or one of {CROSS}")
    unknown = sorted(dropped - _containers(model).keys())
    if unknown:
        raise ValueError(f"structure: {unknown[0]} is no branch of this network")
    layers, _, sums = wiring(model)
    names = [layer.name for layer in layers if layer.branch not in dropped]
    if sorted(names) != sorted(structure["widths"]):
        odd = sorted(set(names) ^ set(structure["widths"]))
        raise ValueError(f"structure: its layers are not this network's, for example {odd[0]}")
    streams = 1 if form == "plain" else 2
    for name, widths in structure["widths"].items():
        if len(widths) != streams or not all(type(w) is int and w > 0 for w in widths):
            raise ValueError(f"structure: {name} needs {streams} positive widths, not {widths}")
    widths = {name: tuple(width) for name, width in structure["widths"].items()}
    widths[IMAGE] = (IMAGE_CHANNELS,) * streams
    for name, (branch, shortcut) in sums.items():
        if name not in dropped and gather_widths(widths, branch) != gather_widths(widths, shortcut):
            raise ValueError(f"structure: the branch of {name} is not as wide as its shortcut")
    return widths


def _containers(model: Network) -> dict[str, Residual | Concat]:
    """The modules with a branch that can be dropped, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Residual | Concat)}


def count_params(model: nn.Module) -> int:
    """Number of parameters: convolutions, batch norms and classifier."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: Network, image_size: int | None = None) -> int:
    """Multiply-adds of one image through convolutions and classifier.

    ``image_size``: H = W of the image (None: the family's usual size).
    """
    layers, *_ = wiring(model, image_size)
    convolutions = sum(
        conv.weight.numel() * layer.size**2 for layer in layers for conv in layer.unit.convs
    )
    return convolutions + sum(linear.weight.numel() for linear in model.classifier.linears)
