"""Whether a CPU has instructions for bfloat16, without which it is slower than float32."""

from contextlib import suppress
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")  # of Linux; nothing is said of other systems
LISTS = ("flags", "Features")  # of a core's instructions there: of x86 and of ARM
INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}  # likewise


def say_if_slow(device: torch.device) -> None:
    """One line for --amp where ``device`` is a CPU that would rather do without."""
    known = cpu_instructions()
    if device.type == "cpu" and known and not known & INSTRUCTIONS:
        print("--amp: this CPU has no bfloat16 instructions, so it is slower than without")


def cpu_instructions() -> set[str]:
    """What the first core can do; nothing where the system does not say."""
    with suppress(OSError):
        for line in CPUINFO.read_text().splitlines():
            name, _, words = line.partition(":")
            if name.strip() in LISTS:
                return set(words.split())
    return set()
