"""Does this machine convolve right? python -m tests.memory_order [THREADS ...] checks it.

Output and gradients of nr's units, and of narrow networks of every family and form, in
channels-last memory against contiguous memory; of the units also in bfloat16, as --amp has it. CPU
libraries have been wrong here, and one that is may also crash or never return, so the test runs
this in a process of its own with a time limit.
"""

import copy
import itertools
import sys

import torch
from torch import Tensor, nn

import nr
from nr.units import FORMS, ConvBN
from tests.helpers import FAMILIES, MODES, batch, build, loss_of, open_cross_blocks, vary, worn

TOLERANCE = 5e-3  # relative to the largest value, which may be what is left of sums of 1e3 terms
AMP_TOLERANCE = 5e-2  # bfloat16 rounds by up to 2⁻⁸, and every result is of several roundings
REPEATS = 3  # of several threads, whose races do not show every time
CHANNELS = (1, 3, 4, 7, 9, 15, 16)
WINDOWS = ((1, 1), (1, 2), (3, 1), (3, 2), (7, 2))  # kernel size, stride
BATCHES = (2, 7)


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


def check_unit(form: str, channels: int, window: tuple[int, int], count: int, amp: bool) -> float:
    """The difference for one ConvBN, in eval mode, so that batch norm blows up no rounding.

    ``amp``: of bfloat16, to contiguous memory in float32.
    """
    torch.manual_seed(0)
    widths = (channels,) * (1 if form == "plain" else 2)
    unit = ConvBN(1, 1, *window).eval()
    unit.build(form, widths, tuple(width + 3 for width in widths))
    for conv in unit.convs:
        nn.init.normal_(conv.weight, 0, 0.2)
    streams = tuple(torch.randn(count, width, 12, 12) for width in widths)
    expected = passes(unit, streams)
    unit.to(memory_format=torch.channels_last)
    ordered = tuple(stream.to(memory_format=torch.channels_last) for stream in streams)
    worst = 0.0
    for _ in range(repeats()):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            found = passes(unit, ordered)
        worst = max(worst, difference(found, expected))
    return worst


def check_network(family: str, mode: str | None, count: int) -> float:
    """The difference in the gradients of a narrow network, in its search or rejuvenated."""
    model = vary(build(family)) if mode is None else worn(family)
    if mode is not None:
        nr.rejuvenate(model, mode)
        open_cross_blocks(model)
    images, labels = batch(count=count, size=16)
    gradients = []
    for order in (torch.contiguous_format, *[torch.channels_last] * repeats()):
        twin = copy.deepcopy(model).to(memory_format=order).eval()
        loss_of(twin, images.to(memory_format=order), labels).backward()
        gradients.append([p.grad.contiguous() for p in twin.parameters() if p.grad is not None])
    return max(difference(found, gradients[0]) for found in gradients[1:])


def checks():
    """(what, difference, what it has to be below) of every check."""
    units = itertools.product((False, True), FORMS, CHANNELS, WINDOWS, BATCHES)
    for amp, form, channels, window, count in units:
        what = f"{form}, {channels} channels, kernel and stride {window}, batch {count}"
        found = check_unit(form, channels, window, count, amp)
        yield what + ", bfloat16" * amp, found, AMP_TOLERANCE if amp else TOLERANCE
    for family, mode, count in itertools.product(FAMILIES, (None, *MODES), BATCHES):
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
