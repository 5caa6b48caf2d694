"""Plain modules between units: what they do to sizes, to zeros and to scales.

They work on each channel by itself. The table holds the modules of torch whose behaviour is known;
any other module is tried on three channels.
"""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Size = tuple[int, int]  # H, W in pixels


class Kind(NamedTuple):
    """A plain module of torch.

    - ``arguments``: of its constructor, which are attributes of the same names.
    - ``resizes``: its output may have another H and W.
    - ``homogeneous``: f(s·x) = s·f(x) for s > 0, which rescaling needs.
    - ``keeps_zero``: f(0) = 0, so that a dead channel stays 0.
    - ``linear``: f(a) + f(b) = f(a + b), which merging needs behind a classifier (dropout counts).
    """

    cls: type[nn.Module]
    arguments: tuple[str, ...] = ()
    resizes: bool = False
    homogeneous: bool = True
    keeps_zero: bool = True
    linear: bool = False


class Effect(NamedTuple):
    """What a module does to maps of a given size; see Kind."""

    size: Size
    homogeneous: bool
    keeps_zero: bool


class FixedSize(nn.Module):
    """Passes maps [B, C, H, W] of one ``size``; ValueError for others.

    ``reader``: the operation that needs this size, since it became a constant there.
    """

    def __init__(self, size: Size, reader: str):
        super().__init__()
        self.size, self.reader = size, reader

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.size:
            (h, w), found = self.size, " x ".join(map(str, x.shape[-2:]))
            raise ValueError(
                f"this network is bound to images of {h} x {w} pixels, and these have {found}:"
                f" {self.reader} read the size when it was converted: convert it for this size"
            )
        return x

    def extra_repr(self) -> str:
        return f"{self.size}, {self.reader}"


class Affine(nn.Module):
    """factor·x + term."""

    def __init__(self, factor: float = 1.0, term: float = 0.0):
        super().__init__()
        self.factor, self.term = factor, term

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.factor == 1 else x * self.factor
        return x if self.term == 0 else x + self.term

    def extra_repr(self) -> str:
        return f"{self.factor}, {self.term}"


class Gain(nn.Module):
    """weight·x, where weight is one trained number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class PaddedMaxPool2d(nn.MaxPool2d):
    """A max pooling of maps with -inf at the ``sides``: left, right, top, bottom."""

    def __init__(self, sides: tuple[int, ...], *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.sides = tuple(sides)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, self.sides, value=-math.inf))


class Filter(nn.Module):
    """Convolves every channel with one fixed ``window`` [h, w]; files hold only its name."""

    window: Tensor

    def __init__(self, window: Tensor, stride: int | Size = 1, padding: int | Size = 0):
        super().__init__()
        self.stride, self.padding = stride, padding
        self.register_buffer("window", window.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.window.expand(x.shape[1], 1, -1, -1)
        return nn.functional.conv2d(x, weight, None, self.stride, self.padding, groups=x.shape[1])

    def extra_repr(self) -> str:
        return f"{tuple(self.window.shape)}, stride={self.stride}, padding={self.padding}"


_POOL = ("kernel_size", "stride", "padding")
_curved = partial(Kind, homogeneous=False)
_sized = partial(Kind, resizes=True, linear=True)
KINDS = {
    kind.cls: kind
    for kind in (
        Kind(nn.Identity, linear=True),
        Kind(nn.ReLU, ("inplace",)),
        Kind(nn.LeakyReLU, ("negative_slope", "inplace")),
        Kind(nn.PReLU, ("num_parameters",)),
        Kind(nn.Dropout, ("p", "inplace"), linear=True),
        Kind(nn.Dropout2d, ("p", "inplace"), linear=True),
        _curved(nn.ReLU6, ("inplace",)),
        _curved(nn.Hardtanh, ("min_val", "max_val", "inplace")),
        _curved(nn.Hardswish, ("inplace",)),
        _curved(nn.SiLU, ("inplace",)),
        _curved(nn.Mish, ("inplace",)),
        _curved(nn.GELU, ("approximate",)),
        _curved(nn.ELU, ("alpha", "inplace")),
        _curved(nn.CELU, ("alpha", "inplace")),
        _curved(nn.SELU, ("inplace",)),
        _curved(nn.Tanh),
        _curved(nn.Softsign),
        _curved(nn.Sigmoid, keeps_zero=False),
        _curved(nn.Hardsigmoid, ("inplace",), keeps_zero=False),
        _curved(nn.Softplus, ("beta", "threshold"), keeps_zero=False),
        Kind(nn.MaxPool2d, (*_POOL, "dilation", "ceil_mode"), resizes=True),
        _sized(nn.AvgPool2d, (*_POOL, "ceil_mode", "count_include_pad", "divisor_override")),
        _sized(nn.AdaptiveAvgPool2d, ("output_size",)),
        Kind(nn.AdaptiveMaxPool2d, ("output_size",), resizes=True),
        _sized(nn.Upsample, ("size", "scale_factor", "mode", "align_corners")),
        _sized(nn.ZeroPad2d, ("padding",)),
        _sized(nn.ReflectionPad2d, ("padding",)),
        _sized(nn.ReplicationPad2d, ("padding",)),
        Kind(PaddedMaxPool2d, ("sides", *_POOL, "dilation", "ceil_mode"), resizes=True),
        Kind(Affine, ("factor", "term"), linear=True),
        Kind(Gain, linear=True),
        _sized(FixedSize, ("size", "reader")),
    )
}
BY_NAME = {cls.__name__: kind for cls, kind in KINDS.items()}

# Modules that are bound to a number of channels, and what to do instead.
_NORM = "an nr.ConvBN's own batch norm is the only norm that is rebuilt with it"
COUNTED = (
    (nn.modules.conv._ConvNd, "put it into an nr.ConvBN, together with the batch norm after it"),
    (nn.modules.batchnorm._NormBase, _NORM),
    (nn.GroupNorm, _NORM),
    (nn.LayerNorm, _NORM),
    (nn.RMSNorm, _NORM),
    (nn.Linear, "inside the features use an nr.ConvBN of kernel size 1 on the pooled map"),
    (nn.PReLU, "use nn.PReLU() with one parameter, or nn.ReLU()"),
)
SCALES = (1e-3, 1e3)  # factors with which homogeneity is tried
TOLERANCE = 1e-4  # of the largest value
# Sizes that were found, by class, size of the input, and attributes: torch takes long on meta.
_SIZES: dict[tuple[type[nn.Module], Size, str], Size] = {}


def is_linear(module: object) -> bool:
    """Whether f(a) + f(b) = f(a + b) for ``module``; False if it is not plain."""
    kind = KINDS.get(type(module)) if isinstance(module, nn.Module) else None
    return kind is not None and kind.linear and not getattr(module, "term", 0)


def effect(module: nn.Module, size: Size) -> Effect:
    """What ``module`` does to maps [B, C, *size]. Raises ValueError with reason and remedy."""
    kind = KINDS.get(type(module))
    if kind is None or (type(module) is nn.PReLU and module.num_parameters != 1):
        _refuse_counted(module)
        return _tried(module, size)
    if kind.resizes:
        own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        key = type(module), size, repr(own)
        if key not in _SIZES:
            _SIZES[key] = _resized(module, size)
        size = _SIZES[key]
    homogeneous, keeps_zero = kind.homogeneous, kind.keeps_zero
    if type(module) is nn.Hardtanh:
        bounds = (module.min_val, module.max_val)
        homogeneous = all(bound == 0 or math.isinf(bound) for bound in bounds)  # never saturates
        keeps_zero = bounds[0] <= 0 <= bounds[1]
    if type(module) is Affine:
        homogeneous = keeps_zero = module.term == 0
    return Effect(size, homogeneous, keeps_zero)


@torch.no_grad()
def _resized(module: nn.Module, size: Size) -> Size:
    """The size of what ``module`` makes of maps of ``size``, found without memory."""
    if type(module) is nn.AdaptiveAvgPool2d:  # on meta torch does its mean in Python, very slowly
        module = nn.AdaptiveMaxPool2d(module.output_size)  # of the same size
    return _shape(module.forward, torch.empty(1, 1, *size, device="meta"))


def _refuse_counted(module: nn.Module) -> None:
    for cls, remedy in COUNTED:
        if isinstance(module, cls):
            raise ValueError(f"it is bound to a number of channels, which changes: {remedy}")


def _shape(f: Callable[[Tensor], Tensor], x: Tensor) -> Size:
    """H and W of f(x). Raises ValueError if B or C changes."""
    try:
        y = f(x)
    except Exception as error:  # whatever a module may raise
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"it does not take maps of {list(x.shape)}: {reason}") from error
    if not isinstance(y, Tensor) or y.ndim != 4 or y.shape[:2] != x.shape[:2]:
        found = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"it makes {found} of {list(x.shape)}: a plain module keeps [B, C, ., .]"
            " (nr.Classifier flattens by itself)"
        )
    return y.shape[2], y.shape[3]


@torch.no_grad()
def _tried(module: nn.Module, size: Size) -> Effect:
    """The effect of a module that is not in the table, found on a copy of it in eval mode."""
    try:
        f = copy.deepcopy(module).cpu().float().eval().forward
    except Exception as error:  # whatever a module may raise
        reason = " ".join(str(error).split())[:120]
        raise ValueError(f"it cannot be copied, to try what it does: {reason}") from error
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0), device="cpu")
    new_size = _shape(f, x.clone())
    y = f(x.clone())

    def close(a: Tensor, b: Tensor) -> bool:
        return bool((a - b).abs().max() <= TOLERANCE * b.abs().max())

    for channel in range(3):
        alone = x[:, channel : channel + 1].clone()
        _shape(f, alone.clone())
        if not close(f(alone), y[:, channel : channel + 1]):
            raise ValueError("it mixes channels: a plain module treats each by itself")
    f_train = copy.deepcopy(module).cpu().float().train().forward
    other = x.clone()
    other[:, 0] += 1
    _shape(lambda x: _drawn(f_train, x), x)
    if not torch.equal(_drawn(f_train, other)[:, 1:], _drawn(f_train, x)[:, 1:]):
        raise ValueError("it mixes channels in train mode: a plain module treats each by itself")
    zeros = (f(torch.zeros_like(x)), _drawn(f_train, torch.zeros_like(x)))
    homogeneous = all(close(f(scale * x), scale * y) for scale in SCALES)
    return Effect(new_size, homogeneous, not any(zero.any() for zero in zeros))


def _drawn(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f(x), with the same random numbers each time; the generators stay as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return f(x.clone())
