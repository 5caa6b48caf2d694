"""What the walk refuses before it looks at shapes: each by its name, with a remedy."""

from torch import nn

from nr.network.convolutions import Conv, ConvBN
from nr.network.graph import Graph
from nr.network.layers import Classifier, Head, Network, is_chain
from nr.network.norms import Bias, loses_count
from nr.network.plain import Size
from nr.network.units import FORMS
from nr.network.windows import pair

LARGEST_SIDE = 2**16  # pixels; a larger map is a mistake


def image_hw(image_size: object) -> Size:
    """``image_size`` as (H, W). Raises ValueError for anything but an int or two."""
    pair = tuple(image_size) if isinstance(image_size, tuple | list) else (image_size,) * 2
    if len(pair) != 2 or not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in pair):
        raise ValueError(f"image_size: {image_size!r} is neither a number of pixels nor (H, W)")
    return pair


def check_network(model: object) -> None:
    """Refuse anything but a Network of nr's units, and say what it is."""
    for inside in ("module", "_orig_mod"):  # DataParallel and its kin; torch.compile
        if not isinstance(model, Network) and isinstance(getattr(model, inside, None), nn.Module):
            raise ValueError(
                f"the network is wrapped in {type(model).__name__}: pass what is in it,"
                f" model.{inside}"
            )
    if not isinstance(model, Network):
        raise ValueError(
            f"{type(model).__name__} is no nr.Network: build it from nr.ConvBN, nr.Chain,"
            " nr.Residual, nr.Concat and nr.Classifier"
        )
    check_forward(model, "the network", Network)
    if not isinstance(model.features, nn.Module):
        raise ValueError(
            f"features: a {type(model.features).__name__} is no module: put what is in it into an"
            " nr.Chain"
        )
    odd = sorted(
        {*model._modules, *model._parameters, *model._buffers} - {"features", "classifier"}
    )
    if odd:
        raise ValueError(f"{odd[0]}: an nr.Network has features and a classifier, and nothing else")
    modules = list(model.named_modules())
    ends = [name for name, module in modules if isinstance(module, Graph) and module.outputs]
    if ends != ["features"] * (model.classifier is None):
        raise ValueError(
            "classifier: an nr.Network has one, or none and an nr.Graph with outputs as features"
        )
    if model.classifier is not None:
        check_classifier(model.classifier, "classifier")
    heads = [(name, module) for name, module in modules if isinstance(module, Classifier)]
    if not heads:
        raise ValueError("features: there is no nr.Classifier in them")
    streams = model.streams
    for name, head in heads:
        check_classifier(head, name)
        if len(head.linears) != streams:
            raise ValueError(f"{name}: has {len(head.linears)} streams, not {streams}")


def refuse_sharded(model: object) -> None:
    """Refuse FSDP2's parts of weights: only whole ones can be cut."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    if any(hasattr(parameter, "full_tensor") for parameter in parameters):
        raise ValueError(
            "the network is sharded by fully_shard (FSDP2): gather its weights with torch's"
            " get_model_state_dict(…, full_state_dict=True) in a network that is not, and use that"
        )


def check_forward(module: nn.Module, name: str, base: type[nn.Module]) -> None:
    if type(module).forward is not base.forward:
        raise ValueError(
            f"{name}: {type(module).__name__} has a forward of its own, which cannot be followed:"
            f" use nr.{base.__name__} itself"
        )


def check_unit(unit: ConvBN, name: str, streams: int) -> None:
    """Refuse a unit whose layers were replaced, wrapped or reparametrized."""
    norms, outs = unit.norms, unit.out_channels
    if len(norms) != streams or len(outs) != streams or len(unit.convs) != len(FORMS[unit.form]):
        raise ValueError(f"{name}: has {len(norms)} streams, the classifier {streams}")
    _check_convs(unit, name)
    for norm, width in zip(norms, outs, strict=True):
        if isinstance(unit, Conv):
            if type(norm) is not Bias or norm.width != width:
                raise ValueError(f"{name}: its bias was replaced by {norm}: make a new nr.Conv")
            continue
        if not isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm):
            raise ValueError(f"{name}: its norm is a {type(norm).__name__}, not an nn.BatchNorm2d")
        gamma, mean = norm._parameters.get("weight"), norm._buffers.get("running_mean")
        if gamma is None or mean is None or gamma.shape != (width,):
            raise ValueError(
                f"{name}: its batch norm needs a scale and running statistics of {width} channels"
                " (affine=True, track_running_stats=True)"
            )
        if loses_count(norm):
            raise ValueError(
                f"{name}: its batch norm got momentum=None after it was made, and files would lack"
                " its count of batches: make the unit with nr.ConvBN(..., momentum=None)"
            )


def _check_convs(unit: ConvBN, name: str) -> None:
    ins, outs = unit.in_channels, unit.out_channels
    cls = nn.ConvTranspose2d if unit.transposed else nn.Conv2d
    window = {name: pair(value) for name, value in unit.options().items() if name != "bias"}
    for conv, (reads, writes) in zip(unit.convs, FORMS[unit.form], strict=True):
        weight = conv._parameters.get("weight")
        if type(conv) is not cls or weight is None:
            raise ValueError(
                f"{name}: its convolution is a {type(conv).__name__} whose weight is made of"
                " others: remove the wrapper or parametrization first"
            )
        read, written = sum(ins[i] for i in reads), sum(outs[o] for o in writes)
        shape: tuple[int, ...] = (written, read // unit.groups(read))
        shape = shape[::-1] if unit.transposed and not unit.group else shape
        shape += pair(unit.kernel_size)
        found = {name: getattr(conv, name) for name in window}
        odd = found != window or conv._parameters["bias"] is not None
        if odd or weight.shape != shape or conv.groups != unit.groups(read):
            raise ValueError(
                f"{name}: its convolution was replaced by {conv}: make a new nr.ConvBN"
            )


def check_container(
    module: nn.Module, name: str, branch: str | None, children: tuple[str, ...]
) -> None:
    odd = sorted({*module._modules, *module._parameters, *module._buffers} - {*children})
    if odd:
        raise ValueError(f"{name}.{odd[0]}: a {type(module).__name__} has only {children}")
    if branch is not None:
        raise ValueError(
            f"{name}: a {type(module).__name__} inside the branch of {branch} cannot be dropped"
            " with it: put it into the chain"
        )


def ends_in_unit(module: nn.Module) -> bool:
    while is_chain(module) and len(module):
        module = module[-1]
    return isinstance(module, ConvBN)


def check_classifier(classifier: object, name: str) -> None:
    """Refuse any classifier but nr's own, with one plain layer for each stream."""
    if not isinstance(classifier, Classifier):
        raise ValueError(f"{name}: {type(classifier).__name__} is no nr.Classifier")
    check_forward(classifier, name, Classifier)
    for linear, width in zip(classifier.linears, classifier.in_channels, strict=True):
        if isinstance(classifier, Head):
            options = classifier.options() | {"kernel_size": classifier.window, "groups": 1}
            shape = (classifier.num_classes, width, *classifier.window)
            found = {n: getattr(linear, n, None) for n in options}
            if type(linear) is not nn.Conv2d or found != options or linear.weight.shape != shape:
                raise ValueError(f"{name}: {linear} is no nn.Conv2d of {width} inputs")
        elif type(linear) is not nn.Linear or linear.in_features != width * classifier.taps:
            raise ValueError(f"{name}: {linear} is no nn.Linear of {width} inputs")
