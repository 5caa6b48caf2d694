"""What is measured beside what, and the figures that it should keep."""

import torch

from tests import plain

THREADS = 2  # of a CPU
BATCH = {"cpu": 16, "cuda": 64}
GROUP = {"cpu": 1, "cuda": 20}  # steps of a phase in a round; a GPU is waited for after the last
ROUNDS = 9
WARM_UP = 4  # rounds
MATRIX = {"cpu": 2048, "cuda": 8192}  # rows and columns of the product that is the ceiling
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OPTIMIZER = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
SPARSITY = 1e-4

NETWORKS = {
    "VGG-19": (plain.vgg19, "vgg19_bn", {}),
    "ResNet-164": (plain.resnet164, "resnet", {"depth": 110}),
    "DenseNet-100-40": (plain.densenet100, "densenet", {"depth": 100, "growth_rate": 40}),
}
# phase -> what its time is compared to: phases, each with a name in FIGURES or None
PHASES = {
    "plain torch": (),
    "plain torch, defaults": (("plain torch", None),),
    "search": (("plain torch", "search"),),
    "search --amp": (("search", "amp"),),
    "new widths": (("search", None),),
    "removed": (("search", "removed"), ("new widths", "removed, same widths")),
    "attention": (("search", "attention"), ("new widths", "attention, same widths")),
    "new widths --nr-round-to 8": (("search", None),),
    "removed --nr-round-to 8": (
        ("search", None),
        ("new widths --nr-round-to 8", "removed, same widths"),
    ),
    "attention --nr-round-to 8": (
        ("search", None),
        ("new widths --nr-round-to 8", "attention, same widths"),
    ),
    "removed --amp": (("removed", "amp"),),
    "attention --amp": (("attention", "amp"),),
    "search --compile": (("search", None),),
    "removed --compile": (("search", None),),
    "attention --compile": (("search", None),),
}
# Phases that take turns, few at once: the processes of ten would not fit in 16 GB.
TURNS = (
    ("plain torch", "plain torch, defaults", "search", "search --amp"),
    ("search", "new widths", "removed", "attention"),
    (
        "search",
        "new widths --nr-round-to 8",
        "removed --nr-round-to 8",
        "attention --nr-round-to 8",
    ),
    ("removed", "attention", "removed --amp", "attention --amp"),
    ("search", "search --compile", "removed --compile", "attention --compile"),
)
NEW_WIDTHS = "new widths"  # the plain network of the widths that survived and rejuvenated have
ROUND_TO = 8  # of the phases that say so
GPU_ONLY = ("removed --amp", "attention --amp")
COMPILED = "ResNet-164"  # whose many small kernels gain the most
FIGURES = {
    "VGG-19": {"search": 1.03, "removed": 0.55, "attention": 1.1, "amp": 0.5},
    "ResNet-164": {"search": 1.05, "removed": 1.2, "attention": 1.9, "amp": 0.65},
    "DenseNet-100-40": {"search": 1.05, "removed": 0.85, "attention": 1.4, "amp": 0.7},
}
SAME_WIDTHS = {"removed, same widths": 1.05, "attention, same widths": 2.0}
HEADER = ("network", "phase", "img/s", "launches", "of the ceiling", "ratio", "to", "figure")
NOT_MEASURED = "not measured"


def phases(network: str, device: torch.device, compiled: bool) -> list[str]:
    """The phases that are measured on this device."""
    return [
        phase
        for phase in PHASES
        if not (phase in GPU_ONLY and device.type == "cpu")
        and not (phase.endswith("--compile") and not (compiled and network == COMPILED))
    ]


def home(phase: str) -> tuple[str, ...]:
    """The phases that this one takes turns with, among them all that it is compared to."""
    together = {phase, *(reference for reference, _ in PHASES[phase])}
    return next(group for group in TURNS if together <= {*group})
