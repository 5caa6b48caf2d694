"""nr's units, norms and classifiers with the weights of torch's layers."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nr.network.convolutions import Conv, ConvBN
from nr.network.layers import Classifier, Head
from nr.network.norms import COUNT, Bias, norm_like, take_after
from nr.network.plain import Filter, Gain, Size
from nr.network.units import Norm

Weighing = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
BatchNorms = nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm


def unit(layer: Weighing, after: BatchNorms | None, window: Size | None) -> ConvBN:
    """A convolution, or a linear layer over a map of ``window`` pixels, and its batch norm.

    Raises ValueError for a layer that is not plain.
    """
    options = _window(layer, window)
    if after is None:
        made: ConvBN = Conv(**options, bias=layer.bias is not None)
        take_after(made.biases[0], layer)
        biased(made.biases[0], layer)
    else:
        made = ConvBN(**options, eps=after.eps, momentum=after.momentum)
        _normed(made, after)
        if layer.bias is not None:  # a constant that the norm takes off again
            made.batch_norms[0].running_mean.sub_(layer.bias)
    take_after(made.convs[0], layer)
    weight = made.convs[0].weight
    weight.copy_(layer.weight.view_as(weight))
    return made


def _window(layer: Weighing, window: Size | None) -> dict[str, Any]:
    """The window, stride and so on of a convolution, or of a linear layer over a map."""
    if isinstance(layer, nn.Linear):
        window = window or (1, 1)
        in_channels = layer.in_features // (window[0] * window[1])
        channels = {"in_channels": in_channels, "out_channels": layer.out_features}
        return channels | {"kernel_size": window, "padding": 0}
    transposed = type(layer) is nn.ConvTranspose2d
    if type(layer) not in (nn.Conv2d, nn.ConvTranspose2d) or layer.padding_mode != "zeros":
        raise ValueError(
            f"{layer} is no plain nn.Conv2d, padded with zeros, which is the only one that units"
            " have"
        )
    names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
    found = {name: getattr(layer, name) for name in names}
    same = layer.padding == "same" and all(side % 2 for side in layer.kernel_size)
    words: dict[object, object] = {"valid": 0, "same": None if same else "same"}
    found["padding"] = words.get(layer.padding, layer.padding)
    if transposed:
        found |= {"transposed": True, "output_padding": layer.output_padding}
    return found


def norm(after: BatchNorms) -> Norm:
    """A batch norm before a convolution."""
    made = Norm(after.num_features, eps=after.eps, momentum=after.momentum)
    _normed(made, after)
    return made


def activations(after: BatchNorms) -> list[nn.Module]:
    """The modules that a class derived from nn.BatchNorm2d calls after it, in order.

    They are found by comparing outputs and statistics, in both modes, with a batch norm and the
    module's own children. Raises ValueError if it does something else.
    """
    children = [child for child in after.children() if type(child) is not nn.Identity]
    x = torch.randn(3, after.num_features, 4, 4, generator=torch.Generator().manual_seed(0))
    plain = nn.BatchNorm2d(after.num_features, after.eps, after.momentum)
    for training in (False, True):
        own = copy.deepcopy(after).cpu().float()
        plain.load_state_dict({n: own.state_dict()[n] for n in plain.state_dict()})
        steps = [plain, *copy.deepcopy(children)]
        found = _run([own], x, training)
        same = torch.equal(found, _run(steps, x, training))
        known, others = plain.state_dict(), own.state_dict()
        if after.momentum is not None:  # then nobody reads the count of batches
            del known[COUNT]
        if not same or any(not torch.equal(value, others[n]) for n, value in known.items()):
            raise ValueError(
                f"{type(after).__name__} may do more than nn.BatchNorm2d and its own modules after"
                " it: use these themselves"
            )
    return children


def _run(steps: list[nn.Module], x: Tensor, training: bool) -> Tensor:
    """What ``steps`` give for ``x``, with the same random numbers each time."""
    x = x.clone()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for step in steps:
            x = step.cpu().float().train(training)(x)
    return x


def fixed_filter(weight: Tensor, options: dict[str, Any]) -> Filter:
    """Every channel convolved with one fixed window. Raises ValueError for other weights."""
    groups, dilation = options.pop("groups", 1), options.pop("dilation", 1)
    alone = weight.shape[:2] == (groups, 1) and dilation in (1, (1, 1), [1, 1])
    if not alone or not torch.equal(weight, weight[:1].expand_as(weight)):
        raise ValueError(
            "convolves with weights that are no parameter: only one fixed window for all channels"
            " is known to nr"
        )
    return Filter(weight[0, 0], **options)


def scale(weight: Tensor) -> Norm:
    """A product with a parameter of one number for each channel."""
    made = Norm(weight.numel(), eps=None).to(weight.device, weight.dtype)
    made.scales[0].copy_(weight.flatten()).requires_grad_(weight.requires_grad)
    return made


def gain(weight: Tensor) -> Gain:
    """A product with a parameter of one number."""
    made = Gain().to(weight.device, weight.dtype)
    made.weight.copy_(weight.view(())).requires_grad_(weight.requires_grad)
    return made


def passing(width: int, maps: bool, like: Tensor) -> Classifier:
    """A head that gives its channels as they are."""
    made = (Head if maps else Classifier)(width, width, bias=False).to(like.device, like.dtype)
    made.linears[0].weight.copy_(torch.eye(width).view_as(made.linears[0].weight))
    return made


def _normed(made: ConvBN | Norm, after: BatchNorms) -> None:
    """Give a unit the batch norm ``after``."""
    if isinstance(after, nn.SyncBatchNorm):
        # No norm that a unit makes by itself, but one that it takes.
        made.norms[0] = norm_like(after, after.num_features)  # type: ignore[arg-type]
    take_after(made.norms[0], after)
    made.norms[0].load_state_dict(after.state_dict())


def classifier(linear: nn.Linear, window: Size) -> Classifier:
    """The classifier for a linear layer over a map of ``window`` pixels."""
    channels = linear.in_features // (window[0] * window[1])
    return _same(Classifier(channels, linear.out_features, linear.bias is not None, window), linear)


def head(conv: nn.Conv2d) -> Head:
    """The head for a convolution. Raises ValueError if that is not plain."""
    options = _window(conv, None)
    if options.pop("groups") != 1:
        raise ValueError(f"{conv} has groups, and gives maps of the network: units of it do not")
    padding = options.pop("padding")
    if not isinstance(padding, tuple):
        reach = zip(conv.dilation, conv.kernel_size, strict=True)
        padding = (0, 0) if padding == 0 else tuple(d * (k // 2) for d, k in reach)
    channels = options.pop("in_channels"), options.pop("out_channels")
    return _same(Head(*channels, padding=padding, **options, bias=conv.bias is not None), conv)


H = TypeVar("H", bound=Classifier)


def _same(made: H, layer: nn.Linear | nn.Conv2d) -> H:
    """A classifier with the weights of ``layer``."""
    take_after(made.linears[0], layer)
    made.linears[0].weight.copy_(layer.weight)
    biased(made.linears[0], layer)
    return made


def biased(made: Bias | nn.Linear | nn.Conv2d, layer: Weighing) -> None:
    """The bias of ``layer``, if it has one."""
    if layer.bias is not None and made.bias is not None:
        made.bias.copy_(layer.bias).requires_grad_(layer.bias.requires_grad)
