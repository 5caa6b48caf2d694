"""Times of training steps and what surrounds them: python -m tests.benchmark [--device cuda].

Half of each layer is live. The phases take turns, one step each a round (on a GPU a group of them),
and a ratio is the median over the rounds of two times of the same round, so a machine that slows
down for a while does not matter.
"""

import argparse
from pathlib import Path

import torch

from tests.benchmark import settings
from tests.benchmark.measuring import be_a_run, ceiling
from tests.benchmark.settings import COMPILED, DTYPES, HEADER, ROUNDS
from tests.benchmark.table import all_rows


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "CPU")


def print_row(row: tuple) -> None:
    cells = [*map(str, row), *["-"] * (len(HEADER) - len(row))]
    print(f"| {' | '.join(cells)} |", flush=True)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=list(settings.BATCH), default="cpu")
    parser.add_argument(
        "--networks", nargs="+", choices=list(settings.NETWORKS), default=list(settings.NETWORKS)
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--compile", action="store_true", help=f"{COMPILED} compiled, too: slow")
    args = parser.parse_args(words)
    device = torch.device(args.device)
    be_a_run(device)
    ceilings = {name: ceiling(device, dtype) for name, dtype in DTYPES.items()}
    limits = ", ".join(f"{flops / 1e12:.3g} in {name}" for name, flops in ceilings.items())
    print(
        f"{hardware(device)}, {torch.get_num_threads()} threads, torch {torch.__version__},"
        f" batch {settings.BATCH[device.type]} at 32x32; ceiling {limits} TFLOP/s\n",
        flush=True,
    )
    print_row(HEADER)
    print_row(("---",) * len(HEADER))
    for row in all_rows(args.networks, args.rounds, device, ceilings, args.compile):
        print_row(row)


if __name__ == "__main__":
    main()
