"""Does this machine convolve right? python -m tests.memory_order [THREADS ...] checks it.

Output and gradients of nr's units, and of narrow networks of every family and form, in
channels-last memory against contiguous memory; of the units also in bfloat16, as --amp has it. CPU
libraries have been wrong here, and one that is may also crash or never return, so the test runs
this in a process of its own with a time limit.
"""

import itertools
import sys
from functools import cache, partial

import torch
from torch import Tensor, nn

import nr
from nr.network.convolutions import ConvBN
from nr.network.units import FORMS
from tests.helpers import FAMILIES, MODES, batch, kill_random, loss_of, open_cross_blocks, vary

TOLERANCE = 5e-3  # relative to the largest value, which may be what is left of sums of 1e3 terms
AMP_TOLERANCE = 5e-2  # bfloat16 rounds by up to 2⁻⁸, and every result is of several roundings
REPEATS = 3  # of several threads, whose races do not show every time
CHANNELS = (1, 3, 4, 7, 9, 15, 16)
WINDOWS = ((1, 1), (1, 2), (3, 1), (3, 2), (7, 2))  # kernel size, stride
BATCHES = (2, 7)
NETWORKS = {  # of one block a stage: the units have the widths
    "vgg": FAMILIES["vgg"],
    "basic": partial(FAMILIES["basic"], depth=8),
    "bottleneck": partial(FAMILIES["bottleneck"], depth=8),
    "dense": partial(FAMILIES["dense"], depth=10),
}


def repeats() -> int:
    return REPEATS if torch.get_num_threads() > 1 else 1


def passes(module: nn.Module, streams: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs, input gradients and weight gradients of one forward and backward pass."""
    streams = tuple(stream.clone().requires_grad_() for stream in streams)
    outputs = module(streams)
    # Seeded: the same downstream gradient in both memory orders.
    generator = torch.Generator().manual_seed(0)
    sum((y * torch.randn(y.shape, generator=generator)).sum() for y in outputs).backward()
    found = [*outputs, *(s.grad for s in streams), *(c.weight.grad for c in module.convs)]
    module.zero_grad()
    return [tensor.detach().contiguous() for tensor in found]


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference of any tensor, relative to its largest value; infinite for NaN."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        relative = ((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item()
        worst = max(worst, relative if relative == relative else float("inf"))
    return worst


@cache
def unit_of(form: str, channels: int, window: tuple[int, int]) -> ConvBN:
    """In eval mode, so that batch norm blows up no rounding, and in channels-last memory."""
    torch.manual_seed(0)
    widths = (channels,) * (1 if form == "plain" else 2)
    unit = ConvBN(1, 1, *window).eval()
    unit.build(form, widths, tuple(width + 3 for width in widths))
    for conv in unit.convs:
        nn.init.normal_(conv.weight, 0, 0.2)
    return unit.to(memory_format=torch.channels_last)


@cache
def of_unit(
    form: str, channels: int, window: tuple[int, int], count: int
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """Streams for a unit, and what it makes of them in contiguous memory and float32."""
    unit = unit_of(form, channels, window)
    torch.manual_seed(0)
    streams = tuple(torch.randn(count, width, 12, 12) for width in unit.in_channels)
    expected = passes(unit.to(memory_format=torch.contiguous_format), streams)
    unit.to(memory_format=torch.channels_last)
    return tuple(x.to(memory_format=torch.channels_last) for x in streams), expected


def check_unit(form: str, channels: int, window: tuple[int, int], count: int, amp: bool) -> float:
    """The difference for one ConvBN. ``amp``: of bfloat16."""
    streams, expected = of_unit(form, channels, window, count)
    worst = 0.0
    for _ in range(repeats()):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            found = passes(unit_of(form, channels, window), streams)
        worst = max(worst, difference(found, expected))
    return worst


def gradients(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    loss_of(model, images, labels).backward()
    found = [p.grad.contiguous() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return found


@cache
def network_of(family: str, mode: str | None) -> nn.Module:
    """A narrow network, in its search or rejuvenated, in channels-last memory."""
    torch.manual_seed(0)
    model = vary(NETWORKS[family]())
    if mode is not None:
        kill_random(model)
        nr.rejuvenate(model, mode)
        open_cross_blocks(model)
    return model.eval().to(memory_format=torch.channels_last)


@cache
def of_network(family: str, mode: str | None, count: int) -> list[Tensor]:
    """The gradients in contiguous memory."""
    model = network_of(family, mode).to(memory_format=torch.contiguous_format)
    found = gradients(model, *batch(count=count, size=16))
    model.to(memory_format=torch.channels_last)
    return found


def check_network(family: str, mode: str | None, count: int) -> float:
    """The difference in the gradients of a narrow network."""
    images, labels = batch(count=count, size=16)
    images = images.to(memory_format=torch.channels_last)
    model, expected = network_of(family, mode), of_network(family, mode, count)
    return max(difference(gradients(model, images, labels), expected) for _ in range(repeats()))


def checks():
    """(what, difference, what it has to be below) of every check."""
    units = itertools.product((False, True), FORMS, CHANNELS, WINDOWS, BATCHES)
    for amp, form, channels, window, count in units:
        what = f"{form}, {channels} channels, kernel and stride {window}, batch {count}"
        found = check_unit(form, channels, window, count, amp)
        yield what + ", bfloat16" * amp, found, AMP_TOLERANCE if amp else TOLERANCE
    for family, mode, count in itertools.product(NETWORKS, (None, *MODES), BATCHES):
        found = check_network(family, mode, count)
        yield f"{family}, {mode or 'plain'}, batch {count}", found, TOLERANCE


def check(threads: int) -> bool:
    """Print what is wrong with so many threads; whether anything is."""
    torch.set_num_threads(threads)
    results = list(checks())
    wrong = [(what, found) for what, found, tolerance in results if not found < tolerance]
    for what, found in wrong:
        print(f"{what}: off by {found:.2g}")
    print(
        f"{len(wrong)} of {len(results)} wrong with {threads} thread(s) on"
        f" {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}",
        flush=True,
    )
    return bool(wrong)


def main() -> int:
    counts = [int(word) for word in sys.argv[1:]] or [torch.get_num_threads()]
    return int(max(map(check, counts)))


if __name__ == "__main__":
    sys.exit(main())
